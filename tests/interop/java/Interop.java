import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.StatusRuntimeException;
import io.spiffe.provider.SpiffeSslContextFactory;
import io.spiffe.spiffeid.SpiffeId;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.svid.x509svid.X509Svid;
import io.spiffe.svid.x509svid.X509SvidValidator;
import io.spiffe.workloadapi.DefaultJwtSource;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.DefaultX509Source;
import io.spiffe.workloadapi.JwtSource;
import io.spiffe.workloadapi.JwtSourceOptions;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.X509Context;
import java.net.InetAddress;
import java.security.cert.X509Certificate;
import java.time.Duration;
import java.util.List;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.logging.Handler;
import java.util.logging.LogManager;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import java.util.stream.Collectors;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;

/**
 * The interop workload in Java: java-spiffe against Mayfly, in the vocabulary of ../README.md.
 *
 * <p>java-spiffe 0.8.17 answers a PermissionDenied by trying again behind the caller's back: no
 * watcher is told, and the sources keep what they had. The one place where it shows the end is the
 * log record of its stream observer, so that record is what {@code --until-ended} waits for.
 */
public final class Interop {
    private static final String AUDIENCE = "interop";
    private static final Duration CALL = Duration.ofSeconds(10);

    /** The library logs through this logger each time a stream of its own breaks. */
    private static final Logger STREAMS = Logger.getLogger("io.spiffe.workloadapi.StreamObservers");

    private static final BlockingQueue<Status> BROKEN = new LinkedBlockingQueue<>();

    private final WorkloadApiClient client;
    private final Duration patience;

    private Interop(WorkloadApiClient client, Duration patience) {
        this.client = client;
        this.patience = patience;
    }

    public static void main(String[] args) {
        listenToTheLog();
        int code = 0;
        try {
            run(List.of(args));
        } catch (Exception e) {
            say("error", "\"detail\":" + quoted(chain(e)));
            code = 1;
        }
        // The client's executors are no daemons: without this the process would linger.
        System.exit(code);
    }

    private static void run(List<String> args) throws Exception {
        int at = args.indexOf("--patience");
        Duration patience = Duration.ofSeconds(at < 0 ? 60 : Long.parseLong(args.get(at + 1)));
        if (args.stream().noneMatch(Set.of("--once", "--until-rotated", "--until-ended")::contains)) {
            throw new IllegalArgumentException("one of --once --until-rotated --until-ended is needed");
        }
        try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient()) {
            Interop interop = new Interop(client, patience);
            interop.fetchX509();
            String token = interop.fetchJwt();
            interop.mtls();
            if (args.contains("--until-rotated")) {
                interop.untilRotated();
            }
            if (args.contains("--until-ended")) {
                interop.untilEnded(token);
            }
        }
    }

    private void fetchX509() throws Exception {
        X509Context context = client.fetchX509Context();
        X509Svid svid = context.getDefaultSvid();
        sayX509(svid);
        context.getX509BundleSet().getBundles().keySet().stream()
                .map(Object::toString)
                .sorted()
                .forEach(name -> say("bundle", "\"kind\":\"x509\",\"trust_domain\":" + quoted(name)));
        X509SvidValidator.verifyChain(svid.getChain(), context.getX509BundleSet());
        say("validated", "\"what\":\"x509\"");
    }

    private String fetchJwt() throws Exception {
        JwtSourceOptions options =
                JwtSourceOptions.builder().workloadApiClient(keptOpen()).initTimeout(CALL).build();
        JwtSvid fetched;
        try (JwtSource source = DefaultJwtSource.newSource(options)) {
            fetched = source.fetchJwtSvid(AUDIENCE);
            long exp = fetched.getExpiry().getTime() / 1000;
            say("jwt", "\"spiffe_id\":" + quoted(fetched.getSpiffeId().toString()) + ",\"exp\":" + exp);
            String domain = source.getBundleForTrustDomain(fetched.getSpiffeId().getTrustDomain())
                    .getTrustDomain().toString();
            say("bundle", "\"kind\":\"jwt\",\"trust_domain\":" + quoted(domain));
            JwtSvid.parseAndValidate(fetched.getToken(), source, Set.of(AUDIENCE));
            say("validated", "\"what\":\"jwt\"");
        }
        client.validateJwtSvid(fetched.getToken(), AUDIENCE);
        say("validated", "\"what\":\"jwt_online\"");
        return fetched.getToken();
    }

    /** A source closes the client it was given, so each source has one of its own. */
    private static WorkloadApiClient keptOpen() throws Exception {
        return DefaultWorkloadApiClient.newClient();
    }

    /** Both ends of one connection, with key and trust managers of java-spiffe on either side. */
    private void mtls() throws Exception {
        DefaultX509Source.X509SourceOptions options = DefaultX509Source.X509SourceOptions.builder()
                .workloadApiClient(keptOpen())
                .initTimeout(CALL)
                .build();
        try (DefaultX509Source source = DefaultX509Source.newSource(options)) {
            mtlsWith(source);
        }
    }

    private static void mtlsWith(DefaultX509Source source) throws Exception {
        SpiffeId self = source.getX509Svid().getSpiffeId();
        SSLContext tls = SpiffeSslContextFactory.getSslContext(
                SpiffeSslContextFactory.SslContextOptions.builder()
                        .sslProtocol("TLSv1.3")
                        .x509Source(source)
                        .acceptedSpiffeIdsSupplier(() -> Set.of(self))
                        .build());
        InetAddress loopback = InetAddress.getLoopbackAddress();
        try (SSLServerSocket listener =
                (SSLServerSocket) tls.getServerSocketFactory().createServerSocket(0, 1, loopback)) {
            listener.setNeedClientAuth(true);
            CompletableFuture<String> seen = CompletableFuture.supplyAsync(() -> serveOne(listener));
            try (SSLSocket socket = (SSLSocket) tls.getSocketFactory()
                    .createSocket(loopback, listener.getLocalPort())) {
                socket.getOutputStream().write('m');
                if (socket.getInputStream().read() != 'm') {
                    throw new IllegalStateException("the echo is wrong");
                }
                String peer = peer(socket);
                if (!peer.equals(seen.get(CALL.toSeconds(), TimeUnit.SECONDS))) {
                    throw new IllegalStateException("the two sides of the connection disagree");
                }
                say("mtls", "\"ok\":true,\"peer\":" + quoted(peer));
            }
        }
    }

    private static String serveOne(SSLServerSocket listener) {
        try (SSLSocket socket = (SSLSocket) listener.accept()) {
            socket.getOutputStream().write(socket.getInputStream().read());
            return peer(socket);
        } catch (Exception e) {
            throw new IllegalStateException(e);
        }
    }

    private static String peer(SSLSocket socket) throws Exception {
        X509Certificate leaf = (X509Certificate) socket.getSession().getPeerCertificates()[0];
        return leaf.getSubjectAlternativeNames().iterator().next().get(1).toString();
    }

    /** A rotation is a second certificate on one and the same stream. */
    private void untilRotated() throws Exception {
        BlockingQueue<X509Svid> seen = watch();
        X509Svid first = null;
        X509Svid next = null;
        while (first == null || serial(next).equals(serial(first))) {
            next = seen.poll(patience.toMillis(), TimeUnit.MILLISECONDS);
            if (next == null) {
                throw new IllegalStateException("no rotation within " + patience.toSeconds() + " s");
            }
            first = first == null ? next : first;
        }
        sayX509(next);
        say("rotated", "\"serial\":" + quoted(serial(next)));
    }

    private void untilEnded(String token) throws Exception {
        BROKEN.clear();
        if (watch().poll(CALL.toMillis(), TimeUnit.MILLISECONDS) == null) {
            throw new IllegalStateException("the watch brought nothing");
        }
        say("waiting", null);
        Status status = BROKEN.poll(patience.toMillis(), TimeUnit.MILLISECONDS);
        if (status == null) {
            say("unseen", null);
            return;
        }
        say("ended", "\"code\":" + quoted(status.getCode().name())
                + ",\"detail\":" + quoted("logged by the library, which retries: " + status.getDescription()));
        refused("jwt", () -> client.fetchJwtSvid(AUDIENCE));
        refused("jwt_online", () -> client.validateJwtSvid(token, AUDIENCE));
    }

    private BlockingQueue<X509Svid> watch() {
        BlockingQueue<X509Svid> seen = new LinkedBlockingQueue<>();
        client.watchX509Context(new Watcher<>() {
            @Override
            public void onUpdate(X509Context update) {
                seen.add(update.getDefaultSvid());
            }

            @Override
            public void onError(Throwable error) {
                BROKEN.add(status(error));
            }
        });
        return seen;
    }

    private interface Call {
        void run() throws Exception;
    }

    private static void refused(String what, Call call) {
        try {
            call.run();
            say("error", "\"detail\":" + quoted(what + " was still granted after the end"));
        } catch (Exception e) {
            say("refused", "\"what\":" + quoted(what) + ",\"code\":" + quoted(status(e).getCode().name())
                    + ",\"detail\":" + quoted(chain(e)));
        }
    }

    /** Keeps the library's log off the terminal and takes the broken streams out of it. */
    private static void listenToTheLog() {
        LogManager.getLogManager().reset();
        STREAMS.addHandler(new Handler() {
            @Override
            public void publish(LogRecord entry) {
                if (entry.getThrown() != null) {
                    BROKEN.add(status(entry.getThrown()));
                }
            }

            @Override
            public void flush() {}

            @Override
            public void close() {}
        });
    }

    private static Status status(Throwable error) {
        for (Throwable t = error; t != null; t = t.getCause()) {
            if (t instanceof StatusRuntimeException || t instanceof StatusException) {
                return Status.fromThrowable(t);
            }
        }
        return Status.UNKNOWN.withDescription(chain(error));
    }

    private static String chain(Throwable error) {
        return java.util.stream.Stream.iterate(error, t -> t != null, Throwable::getCause)
                .map(Throwable::toString)
                .collect(Collectors.joining(" <- "));
    }

    private static String serial(X509Svid svid) {
        return svid.getLeaf().getSerialNumber().toString(16);
    }

    private static void sayX509(X509Svid svid) {
        say("x509", "\"spiffe_id\":" + quoted(svid.getSpiffeId().toString())
                + ",\"serial\":" + quoted(serial(svid))
                + ",\"not_after\":" + svid.getLeaf().getNotAfter().getTime() / 1000);
    }

    private static synchronized void say(String event, String fields) {
        System.out.println("{\"event\":" + quoted(event) + (fields == null ? "" : "," + fields) + "}");
        System.out.flush();
    }

    private static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c < ' ') {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        return out.append('"').toString();
    }
}
