//! What a verifier tells the broker of misuse (R21).

use std::sync::Arc;

use mayfly_core::{SpiffeId, Status};
use mayfly_proto::mayfly::v1::{
    FollowRequest, FollowResponse, ReportRequest, ReportResponse, Use as WireUse,
    revocation_feed_server::{RevocationFeed, RevocationFeedServer},
};
use mayfly_verify::{
    Action, Actions, Authorize, CheckLayer, Endpoint, Misuse, Party, Peer, Reporter, Use,
    no_server_name,
};
use tokio::{
    net::UnixListener,
    sync::mpsc,
    task::JoinSet,
    time::{Duration, Instant, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, transport::Server};
use tower::{Layer as _, ServiceExt as _};

use crate::common::{Authority, CALM, NOW, delta, hold, serial, view};

const LONG: Duration = Duration::from_secs(20);

/// A broker that takes reports and nothing else.
#[derive(Clone)]
struct Ear(mpsc::Sender<ReportRequest>);

#[tonic::async_trait]
impl RevocationFeed for Ear {
    type FollowStream = ReceiverStream<Result<FollowResponse, tonic::Status>>;

    async fn follow(
        &self,
        _: Request<FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("reports only"))
    }

    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReportResponse>, tonic::Status> {
        let full = |_| tonic::Status::unavailable("full");
        self.0.try_send(request.into_inner()).map_err(full)?;
        Ok(Response::new(ReportResponse {}))
    }
}

struct Stage {
    endpoint: Endpoint,
    heard: mpsc::Receiver<ReportRequest>,
    _server: JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("feed.sock");
        let listener = UnixListenerStream::new(UnixListener::bind(&path).expect("a socket"));
        let (sender, heard) = mpsc::channel(4096);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let server = Server::builder().add_service(RevocationFeedServer::new(Ear(sender)));
            server.serve_with_incoming(listener).await.expect("the server runs");
        });
        Self { endpoint: Endpoint::Unix(path), heard, _server: server, _dir: dir }
    }

    fn reporter(&self) -> Reporter {
        Reporter::connect(&self.endpoint, "spiffe://example.org/verifier")
    }

    async fn next(&mut self) -> ReportRequest {
        timeout(LONG, self.heard.recv()).await.expect("a report").expect("the server runs")
    }

    /// Nothing was reported up to a report that is made now.
    async fn assert_nothing_before(&mut self, reporter: &Reporter) {
        let last = misuse(Use::Unknown, "/last");
        reporter.report(last);
        assert_eq!(self.next().await.spiffe_id, "spiffe://example.org/last");
    }
}

fn misuse(kind: Use, path: &str) -> Misuse {
    let spiffe_id = SpiffeId::parse(&format!("spiffe://example.org{path}")).expect("an id");
    let presenter = spiffe_id.clone();
    Misuse { kind, serial: Some(serial(2)), spiffe_id, presenter, at: NOW }
}

/// R21: a certificate that is shown after its task's end, on a new connection.
#[tokio::test]
async fn r21_a_handshake_after_the_end_is_reported_once() {
    let mut stage = Stage::new();
    let (authority, view) = (Authority::new("example.org"), view(CALM));
    let reporter = stage.reporter();
    let held = hold(authority.context("/a", serial(1).as_bytes()));
    // The peer would not have been welcome either; that it has ended is said all the same.
    let whom = Authorize::Id(SpiffeId::parse("spiffe://example.org/other").unwrap());
    let server = Party::new(held.subscribe(), whom, Arc::clone(&view));
    let acceptor =
        TlsAcceptor::from(Arc::new(server.reporting(reporter.clone()).server_config().unwrap()));
    let client = hold(authority.context("/b", serial(2).as_bytes()));
    let client = Party::new(client.subscribe(), Authorize::Any, Arc::clone(&view));
    let connector = TlsConnector::from(Arc::new(client.client_config().unwrap()));
    let knock = async || {
        let (near, far) = tokio::io::duplex(1 << 16);
        let connect = connector.connect(no_server_name(), far);
        tokio::join!(acceptor.accept(near), connect).0.expect_err("refused");
    };
    knock().await;
    for (from, status, kind) in
        [(1, Status::Suspended, WireUse::WhileSuspended), (2, Status::Revoked, WireUse::AfterEnd)]
    {
        view.apply(&delta(from, from + 1, &[(2, status)]), Instant::now()).unwrap();
        for _ in 0..3 {
            knock().await;
        }
        let report = stage.next().await;
        assert_eq!(report.r#use(), kind);
        assert_eq!(report.serial, serial(2).as_bytes());
        assert_eq!(report.spiffe_id, "spiffe://example.org/b");
        assert_eq!(report.verifier, "spiffe://example.org/verifier");
        assert!(report.at_ms > 0);
    }
    stage.assert_nothing_before(&reporter).await;
}

/// R21: a request over a connection that outlived its peer's task.
#[tokio::test]
async fn r21_a_request_after_the_end_is_reported_and_a_denied_one_is_not() {
    let mut stage = Stage::new();
    let (authority, view) = (Authority::new("example.org"), view(CALM));
    let reporter = stage.reporter();
    let context = authority.context("/b", serial(2).as_bytes());
    let leaf = context.default_svid().unwrap().leaf.clone();
    let held = hold(context);
    let party = Party::new(held.subscribe(), Authorize::Any, Arc::clone(&view));
    let standing = party.reporting(reporter.clone()).standing(Peer { leaf, own: true }, NOW);
    let actions = Actions::none().allow(Action::any_method("/a"), Authorize::Any);
    let router = axum::Router::new().route("/a", axum::routing::get(async || "a"));
    let service = standing.introduce(CheckLayer::new(actions).layer(router));
    let ask = async |path: &str| {
        let request = http::Request::builder().uri(path).body(axum::body::Body::empty());
        service.clone().oneshot(request.unwrap()).await.unwrap().status().as_u16()
    };
    assert_eq!((ask("/a").await, ask("/b").await), (200, 403));
    view.apply(&delta(1, 2, &[(2, Status::Revoked)]), Instant::now()).unwrap();
    assert_eq!((ask("/a").await, ask("/a").await), (403, 403));
    let report = stage.next().await;
    assert_eq!(
        (report.r#use(), report.serial.as_slice()),
        (WireUse::AfterEnd, &serial(2).as_bytes()[..])
    );
    stage.assert_nothing_before(&reporter).await;
}

#[tokio::test]
async fn a_flood_of_misuse_neither_waits_nor_grows_nor_repeats() {
    let stage = Stage::new();
    let reporter = stage.reporter();
    // Nothing is sent before this task yields, so what fits is what the queue holds.
    for n in 0..10_000 {
        reporter.report(misuse(Use::AfterEnd, &format!("/{n}")));
        reporter.report(misuse(Use::AfterEnd, &format!("/{n}")));
    }
    let mut stage = stage;
    for n in 0..256 {
        assert_eq!(stage.next().await.spiffe_id, format!("spiffe://example.org/{n}"));
    }
    // What was dropped was not taken for told.
    reporter.report(misuse(Use::AfterEnd, "/9999"));
    assert_eq!(stage.next().await.spiffe_id, "spiffe://example.org/9999");
}

#[tokio::test]
async fn a_report_waits_for_a_broker_that_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("feed.sock");
    let reporter = Reporter::connect(&Endpoint::Unix(path.clone()), "v");
    reporter.report(misuse(Use::ByAnother, "/b"));
    tokio::task::yield_now().await;
    let (sender, mut heard) = mpsc::channel(16);
    let listener = UnixListenerStream::new(UnixListener::bind(&path).unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move {
        let server = Server::builder().add_service(RevocationFeedServer::new(Ear(sender)));
        server.serve_with_incoming(listener).await.expect("the server runs");
    });
    let report = timeout(LONG, heard.recv()).await.unwrap().unwrap();
    assert_eq!(report.r#use(), WireUse::ByAnother);
}
