import io.spiffe.bundle.BundleSource;
import io.spiffe.bundle.jwtbundle.JwtBundle;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.workloadapi.DefaultJwtSource;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.JwtSource;
import io.spiffe.workloadapi.WorkloadApiClient;
import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyFactory;
import java.security.KeyStore;
import java.security.PrivateKey;
import java.security.cert.CertStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.cert.CollectionCertStoreParameters;
import java.security.cert.PKIXBuilderParameters;
import java.security.cert.X509CertSelector;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.Base64;
import java.util.Set;
import javax.net.ssl.CertPathTrustManagerParameters;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;

/**
 * A relying party for benches/verifiers, in the line protocol of ../README.md.
 *
 * <p>{@code tls plain|crl KEYS}: a JSSE server; with {@code crl}, PKIX looks each client up in the
 * lists of a CertStore. {@code jwt offline|online}: judges tokens from standard input with java-spiffe.
 */
public final class Verifier {
    private static final String AUDIENCE = "verifiers";

    private static volatile SSLContext current;

    private Verifier() {}

    public static void main(String[] args) throws Exception {
        System.out.println("VERSION Java " + System.getProperty("java.version"));
        if (args.length == 3 && args[0].equals("tls")) {
            serve(Path.of(args[2]), args[1].equals("crl"));
        } else if (args.length == 2 && args[0].equals("jwt")) {
            judge(args[1].equals("online"));
        } else {
            System.exit(2);
        }
    }

    /** One moment of the files: the link is resolved once. */
    private static SSLContext load(Path keys, boolean check) throws Exception {
        Path version = keys.resolve("..data").toRealPath();
        CertificateFactory x509 = CertificateFactory.getInstance("X.509");
        var chain = x509.generateCertificates(Files.newInputStream(version.resolve("svid.pem")));
        KeyStore own = KeyStore.getInstance("PKCS12");
        own.load(null, null);
        own.setKeyEntry("svid", key(version), new char[0], chain.toArray(new Certificate[0]));
        KeyManagerFactory keyManagers = KeyManagerFactory.getInstance("PKIX");
        keyManagers.init(own, new char[0]);

        KeyStore authorities = KeyStore.getInstance("PKCS12");
        authorities.load(null, null);
        int at = 0;
        for (Certificate one : x509.generateCertificates(Files.newInputStream(version.resolve("bundle.pem")))) {
            authorities.setCertificateEntry("authority" + at++, one);
        }
        PKIXBuilderParameters path = new PKIXBuilderParameters(authorities, new X509CertSelector());
        path.setRevocationEnabled(check);
        if (check) {
            var lists = x509.generateCRLs(new ByteArrayInputStream(Files.readAllBytes(version.resolve("crl.pem"))));
            path.addCertStore(CertStore.getInstance("Collection", new CollectionCertStoreParameters(lists)));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
        trust.init(new CertPathTrustManagerParameters(path));
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(keyManagers.getKeyManagers(), trust.getTrustManagers(), null);
        return context;
    }

    private static PrivateKey key(Path version) throws Exception {
        String text = Files.readString(version.resolve("svid_key.pem")).replaceAll("-----.*-----", "");
        return KeyFactory.getInstance("EC")
                .generatePrivate(new PKCS8EncodedKeySpec(Base64.getMimeDecoder().decode(text)));
    }

    @SuppressWarnings({"sunapi", "restriction"}) // The only way to hear a signal.
    private static void serve(Path keys, boolean check) throws Exception {
        current = load(keys, check);
        sun.misc.Signal.handle(new sun.misc.Signal("HUP"), signal -> {
            try {
                current = load(keys, check);
            } catch (Exception e) {
                System.err.println(e);
            }
        });
        ServerSocket listener = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
        System.out.println("READY 127.0.0.1:" + listener.getLocalPort());
        while (true) {
            Socket plain = listener.accept();
            Thread thread = new Thread(() -> echo(plain));
            thread.setDaemon(true);
            thread.start();
        }
    }

    private static void echo(Socket plain) {
        // Each context has its own session cache, and each connection its own context's: a session that
        // was made before a reload is not resumed after it.
        try (SSLSocket socket = (SSLSocket) current.getSocketFactory().createSocket(plain, null, true)) {
            socket.setUseClientMode(false);
            socket.setNeedClientAuth(true);
            byte[] octets = new byte[4096];
            OutputStream out = socket.getOutputStream();
            for (int n = socket.getInputStream().read(octets); n > 0; n = socket.getInputStream().read(octets)) {
                out.write(octets, 0, n);
            }
        } catch (IOException refusedOrGone) {
            // The other side hears it as an alert.
        }
    }

    private static void judge(boolean online) throws Exception {
        WorkloadApiClient client = DefaultWorkloadApiClient.newClient();
        JwtSource source = DefaultJwtSource.newSource();
        BundleSource<JwtBundle> bundles = source;
        System.out.println("READY -");
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            try {
                if (online) {
                    client.validateJwtSvid(line, AUDIENCE);
                } else {
                    JwtSvid.parseAndValidate(line, bundles, Set.of(AUDIENCE));
                }
                System.out.println("ACCEPTED");
            } catch (Exception e) {
                System.out.println("REFUSED " + String.valueOf(e.getMessage()).replace('\n', ' '));
            }
        }
        System.exit(0);
    }
}
