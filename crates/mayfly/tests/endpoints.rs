//! What a bundle endpoint may answer, and what becomes of it. Points are those of the SPIFFE checklist.
#![expect(clippy::expect_used, clippy::panic, reason = "a test that cannot run should stop")]

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mayfly::{
    config::{BundleEndpoint, EndpointProfile, Federation},
    federation::{Federations, Poller, fetched},
};
use mayfly_core::TrustDomain;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

/// An HTTPS server for `localhost` that answers each path with what it was told to, and counts.
struct Server {
    port: u16,
    ca: PathBuf,
    called: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

type Answer = fn(&str, u16) -> String;

fn document(sequence: u64) -> String {
    let key = r#"{"use":"jwt-svid","kty":"EC","kid":"a"}"#;
    ok(&format!(r#"{{"keys":[{key}],"spiffe_sequence":{sequence},"spiffe_refresh_hint":1}}"#))
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn to(status: &str, location: &str) -> String {
    format!("HTTP/1.1 {status} x\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n")
}

impl Server {
    async fn start(dir: &Path, name: &str, answer: Answer) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("papers");
        let ca = dir.join("ca.pem");
        std::fs::write(&ca, made.cert.pem()).expect("ours");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a pair");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let called = Arc::new(AtomicUsize::new(0));
        let heard = Arc::clone(&called);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                heard.fetch_add(1, Ordering::SeqCst);
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { break };
                    request.push(byte);
                }
                counted.fetch_add(1, Ordering::SeqCst);
                let request = String::from_utf8(request).expect("a request is text");
                assert!(request.starts_with("GET /"), "{request}");
                let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                // Whoever asked may have had enough in the middle of it.
                let _left = stream.write_all(answer(&path, port).as_bytes()).await;
                let _left = stream.shutdown().await;
            }
        });
        Self { port, ca, called, asked, _serving: serving }
    }

    fn entry(&self, host: &str) -> Federation {
        let url = format!("https://{host}:{}/bundle", self.port).parse().expect("a url");
        let profile = EndpointProfile::HttpsWeb { ca: Some(self.ca.clone()) };
        Federation {
            trust_domain: TrustDomain::parse("other.org").expect("a trust domain"),
            bundle: None,
            endpoint: Some(BundleEndpoint { url, profile }),
        }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// Somebody who follows `entry`.
struct Following {
    entry: Federation,
    dir: PathBuf,
    _polling: JoinSet<()>,
}

impl Following {
    fn begin(entry: Federation, dir: &Path) -> Self {
        let bundles = tokio::sync::watch::channel(Arc::default()).1;
        let poller = Poller::new(&entry, dir, bundles).expect("it has an endpoint");
        let mut polling = JoinSet::new();
        polling.spawn(poller.run(CancellationToken::new()));
        Self { entry, dir: dir.to_owned(), _polling: polling }
    }

    /// The edition in force, by the way that the broker goes.
    fn edition(&self) -> Option<u64> {
        let mut federations = Federations::new(std::slice::from_ref(&self.entry), &self.dir);
        federations.reload();
        federations.bundles().get(&self.entry.trust_domain).and_then(|bundle| bundle.sequence)
    }
}

async fn until(what: &str, mut seen: impl FnMut() -> bool) {
    let look = async {
        while !seen() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, look).await.is_err() {
        panic!("waited too long: {what}");
    }
}

/// A server that answers so gives nothing, and is left alone for the usual five minutes.
async fn gives_nothing(host: &str, answer: Answer, asked: usize) {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(dir.path(), "localhost", answer).await;
    let kept = dir.path().join("kept");
    let following = Following::begin(server.entry(host), &kept);
    until("a call", || server.called.load(Ordering::SeqCst) > 0).await;
    until("a fetch", || server.asked() >= asked).await;
    // Not an event that one could wait for: that nothing happens. A hot retry would be here at once.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.asked(), asked, "no hot retry");
    assert_eq!(following.edition(), None);
    assert!(!fetched(&kept, &following.entry.trust_domain).exists());
}

#[tokio::test]
async fn point_85_a_bundle_is_fetched_as_often_as_it_asks_for_and_an_older_one_is_not_taken() {
    static SEQUENCE: AtomicUsize = AtomicUsize::new(0);
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(dir.path(), "localhost", |_, _| {
        // 5, 6, then older ones for ever.
        let editions = [5, 6, 3, 2];
        let at = SEQUENCE.fetch_add(1, Ordering::SeqCst).min(editions.len() - 1);
        document(editions.get(at).copied().unwrap_or_default())
    })
    .await;
    let following = Following::begin(server.entry("localhost"), &dir.path().join("kept"));
    until("the first edition", || following.edition() == Some(5)).await;
    until("the next edition", || following.edition() == Some(6)).await;
    until("older ones", || server.asked() >= 4).await;
    assert_eq!(following.edition(), Some(6));
}

#[tokio::test]
async fn point_84_a_temporary_redirect_is_followed_and_begun_anew_each_time() {
    static FIRST: AtomicUsize = AtomicUsize::new(0);
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(dir.path(), "localhost", |path, port| match path {
        "/bundle" => {
            FIRST.fetch_add(1, Ordering::SeqCst);
            to("307", &format!("https://localhost:{port}/moved"))
        }
        "/moved" => to("302", "/again"),
        "/again" => document(1),
        _ => "HTTP/1.1 404 x\r\n\r\n".to_owned(),
    })
    .await;
    let following = Following::begin(server.entry("localhost"), &dir.path().join("kept"));
    until("the bundle", || following.edition() == Some(1)).await;
    until("the configured url again", || FIRST.load(Ordering::SeqCst) >= 2).await;
}

#[tokio::test]
async fn point_84_what_moves_for_good_or_away_from_https_is_not_followed() {
    gives_nothing("localhost", |_, port| to("301", &format!("https://localhost:{port}/x")), 1)
        .await;
    gives_nothing("localhost", |_, port| to("308", &format!("https://localhost:{port}/x")), 1)
        .await;
    gives_nothing("localhost", |_, port| to("302", &format!("http://localhost:{port}/x")), 1).await;
    gives_nothing("localhost", |_, _| to("302", "/bundle"), 6).await;
}

#[tokio::test]
async fn point_82_a_server_of_another_name_is_not_asked() {
    // The certificate is for `localhost`; the address is the same machine.
    gives_nothing("127.0.0.1", |_, _| document(1), 0).await;
}

#[tokio::test]
async fn what_is_no_bundle_or_too_long_is_not_taken() {
    gives_nothing("localhost", |_, _| ok("-----BEGIN CERTIFICATE-----"), 1).await;
    gives_nothing("localhost", |_, _| ok(r#"{"keys":[{"use":"jwt-svid"}]}"#), 1).await;
    gives_nothing("localhost", |_, _| ok(&" ".repeat((1 << 20) + 1)), 1).await;
    gives_nothing("localhost", |_, _| "HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n".to_owned(), 1)
        .await;
    gives_nothing("localhost", |_, _| "HTTP/1.1 200 x\r\ncontent-length: 9\r\n\r\n{".to_owned(), 1)
        .await;
}
