//! What becomes of the requests of a live connection (R3, R18, R20).

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use axum::{Router, body::Body, routing::get};
use http::{Method, Request, Response, StatusCode, header};
use http_body::{Body as _, Frame};
use mayfly_core::{Span, SpiffeId, Status, TrustDomain};
use mayfly_verify::{
    Action, Actions, Authorize, Bundle, CheckLayer, Held, LiveBody, Party, Patience, Peer,
    REFUSED_HEADER, Refused, Standing, Tier, Tiers, View,
};
use tokio::{
    sync::watch,
    time::{Duration, Instant},
};
use tower::{Layer as _, Service, ServiceExt as _, service_fn};

use crate::common::{Authority, CALM, NOW, delta, hold, serial, view};

/// A party with slot 1, whose peer is slot 2.
struct Stage {
    view: Arc<View>,
    held: watch::Sender<Held>,
    standing: Standing,
}

impl Stage {
    fn new(patience: Patience) -> Self {
        Self::with_peer(patience, |authority| authority.context("/b", serial(2).as_bytes()))
    }

    fn with_peer(
        patience: Patience,
        peer: impl FnOnce(&Authority) -> mayfly_verify::X509Context,
    ) -> Self {
        let (authority, view) = (Authority::new("example.org"), view(patience));
        let held = hold(authority.context("/a", serial(1).as_bytes()));
        let party = Party::new(held.subscribe(), Authorize::Any, Arc::clone(&view));
        let leaf = peer(&authority).default_svid().expect("one").leaf.clone();
        let own = leaf.id.trust_domain().as_str() == "example.org";
        let standing = party.standing(Peer { leaf, own }, NOW);
        Self { view, held, standing }
    }

    fn tell(&self, from: u64, status: Status) {
        let delta = delta(from, from + 1, &[(2, status)]);
        self.view.apply(&delta, Instant::now()).expect("the next delta");
    }

    fn request(&self, method: Method, path: &str) -> Request<Body> {
        let mut request = Request::builder().method(method).uri(path).body(Body::empty());
        let request = request.as_mut().expect("a request");
        request.extensions_mut().insert(self.standing.clone());
        std::mem::take(request)
    }

    fn grpc(&self, path: &str) -> Request<Body> {
        let mut request = self.request(Method::POST, path);
        let kind = header::HeaderValue::from_static("application/grpc+proto");
        request.headers_mut().insert(header::CONTENT_TYPE, kind);
        request
    }
}

fn everything() -> Actions {
    Actions::none().allow(Action::any_method("/"), Authorize::Any)
}

fn router(layer: CheckLayer) -> Router {
    Router::new().route("/", get(async || "hello")).layer(layer)
}

/// The code of a refusal, or none.
async fn ask(router: &Router, request: Request<Body>) -> Option<String> {
    let response = router.clone().oneshot(request).await.expect("it cannot fail");
    let code = response.headers().get(REFUSED_HEADER);
    let code = code.map(|code| code.to_str().expect("a word").to_owned());
    let expected = if code.is_some() { StatusCode::FORBIDDEN } else { StatusCode::OK };
    assert_eq!(response.status(), expected);
    code
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with an answer that may be none")]
fn refused(code: &str) -> Option<String> {
    Some(code.to_owned())
}

/// R3: a certificate that passes every check opens nothing by itself.
#[tokio::test]
async fn r3_an_identity_alone_opens_nothing() {
    let stage = Stage::new(CALM);
    assert_eq!(stage.standing.check(), Ok(()), "a peer in good standing");
    let called = Arc::new(AtomicUsize::new(0));
    let handler = {
        let called = Arc::clone(&called);
        async move || {
            called.fetch_add(1, Ordering::Relaxed);
            "hello"
        }
    };
    let open = Router::new().route("/", axum::routing::any(handler));
    let closed = open.clone().layer(CheckLayer::new(Actions::none()));
    let methods =
        [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::HEAD];
    for method in methods {
        assert_eq!(ask(&closed, stage.request(method, "/")).await, refused("not_permitted"));
    }
    assert_eq!(called.load(Ordering::Relaxed), 0, "no handler was reached");
    let granted = open.layer(CheckLayer::new(everything()));
    assert_eq!(ask(&granted, stage.request(Method::GET, "/")).await, None);
    assert_eq!(called.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_request_whose_connection_nobody_guards_is_refused() {
    let router = router(CheckLayer::new(everything()));
    let request = Request::builder().uri("/").body(Body::empty()).unwrap();
    assert_eq!(ask(&router, request).await, refused("no_peer"));
}

#[tokio::test]
async fn a_handler_finds_its_peer() {
    let stage = Stage::new(CALM);
    let whoami = async |axum::Extension(peer): axum::Extension<Peer>| peer.leaf.id.to_string();
    let router = Router::new().route("/", get(whoami)).layer(CheckLayer::new(everything()));
    let introduced = stage.standing.introduce(router);
    let plain = Request::builder().uri("/").body(Body::empty()).unwrap();
    let response = introduced.oneshot(plain).await.unwrap();
    let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
    assert_eq!(&body[..], b"spiffe://example.org/b");
}

/// R18, R20: one connection, many requests, each asked anew.
#[tokio::test]
async fn r18_each_request_of_a_live_connection_is_checked() {
    let stage = Stage::new(CALM);
    let router = router(CheckLayer::new(everything()));
    let get = || stage.request(Method::GET, "/");
    assert_eq!(ask(&router, get()).await, None);
    stage.tell(1, Status::Suspended);
    assert_eq!(ask(&router, get()).await, refused("suspended"));
    stage.tell(2, Status::Valid);
    assert_eq!(ask(&router, get()).await, None, "released");
    stage.tell(3, Status::Revoked);
    assert_eq!(ask(&router, get()).await, refused("revoked"));
    stage.tell(4, Status::Valid);
    assert_eq!(ask(&router, get()).await, refused("revoked"), "an end is for ever");
}

#[tokio::test(start_paused = true)]
async fn r18_a_certificates_last_moment_is_the_last_request() {
    let authority = Authority::new("example.org");
    let view = view(Patience::Closed { after: Duration::MAX });
    let context = authority.context("/b", serial(2).as_bytes());
    let leaf = context.default_svid().unwrap().leaf.clone();
    let held = hold(context);
    let party = Party::new(held.subscribe(), Authorize::Any, view);
    let now = leaf.not_after.minus(Span::from_secs(5));
    let standing = party.standing(Peer { leaf, own: true }, now);
    tokio::time::advance(Duration::from_millis(4_999)).await;
    assert_eq!(standing.check(), Ok(()));
    assert_eq!(standing.now(), now.plus(Span(4_999)));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(standing.check(), Err(Refused::OutOfDate));
}

#[tokio::test]
async fn without_an_identity_of_ones_own_nobody_is_served() {
    let stage = Stage::new(CALM);
    let router = router(CheckLayer::new(everything()));
    stage.held.send_replace(Held::Withdrawn);
    assert_eq!(ask(&router, stage.request(Method::GET, "/")).await, refused("no_identity"));
}

/// A federation that is called off ends live connections too, not only new ones.
#[tokio::test]
async fn a_foreign_peer_is_served_for_as_long_as_its_bundle_is_held() {
    let other = Authority::new("other.org");
    let stage = Stage::with_peer(CALM, |_| other.context("/b", serial(2).as_bytes()));
    let router = router(CheckLayer::new(everything()));
    assert_eq!(ask(&router, stage.request(Method::GET, "/")).await, refused("untrusted"));
    let mut context = (**stage.held.borrow().context().unwrap()).clone();
    let bundle = Bundle::parse(&other.der).unwrap();
    context.federated.insert(TrustDomain::parse("other.org").unwrap(), bundle);
    stage.held.send_replace(Held::Context(Arc::new(context)));
    assert_eq!(ask(&router, stage.request(Method::GET, "/")).await, None);
    // Our feed does not speak of it: its place is another task's here.
    stage.tell(1, Status::Revoked);
    assert_eq!(ask(&router, stage.request(Method::GET, "/")).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_risky_route_loses_patience_before_the_rest() {
    let tiers = Tiers::default();
    let stage = Stage::new(tiers.together());
    let layer = |tier| router(CheckLayer::new(everything()).with_patience(tiers.of(tier)));
    let (low, medium, high) = (layer(Tier::Low), layer(Tier::Medium), layer(Tier::High));
    let get = || stage.request(Method::GET, "/");
    for (seconds, codes) in [
        (0, [None, None, None]),
        (1, [None, None, refused("dark")]),
        (2, [None, refused("dark"), refused("dark")]),
        (60, [refused("dark"), refused("dark"), refused("dark")]),
    ] {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        let said = [ask(&low, get()).await, ask(&medium, get()).await, ask(&high, get()).await];
        assert_eq!(said, codes, "{seconds} s later");
    }
}

#[tokio::test]
async fn a_rule_that_is_taken_back_counts_from_the_next_request_on() {
    let stage = Stage::new(CALM);
    let rules = watch::Sender::new(Arc::new(everything()));
    let router = router(CheckLayer::following(rules.subscribe()));
    let get = || stage.request(Method::GET, "/");
    assert_eq!(ask(&router, get()).await, None);
    rules.send_replace(Arc::new(Actions::none()));
    assert_eq!(ask(&router, get()).await, refused("not_permitted"));
    let id = SpiffeId::parse("spiffe://example.org/b").unwrap();
    let again = Actions::none().allow(Action::new(Method::GET, "/"), Authorize::Id(id));
    rules.send_replace(Arc::new(again));
    assert_eq!(ask(&router, get()).await, None);
}

#[tokio::test]
async fn grpc_hears_permission_denied_and_the_code() {
    let stage = Stage::new(CALM);
    let router = router(CheckLayer::new(Actions::none()));
    let response = router.oneshot(stage.grpc("/p.S/M")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    assert_eq!(header("content-type"), Some("application/grpc"));
    assert_eq!(header("grpc-status"), Some("7"));
    assert_eq!(header("grpc-message"), Some("not_permitted"));
    assert!(response.into_body().is_end_stream(), "headers alone");
}

struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// R18: what a handler was doing for a peer stops with the peer's task.
#[tokio::test]
async fn r18_a_handler_in_flight_is_dropped_when_its_peer_ends() {
    let stage = Stage::new(CALM);
    let dropped = Arc::new(AtomicBool::new(false));
    let service = service_fn(|_: Request<Body>| {
        let here = Dropped(Arc::clone(&dropped));
        async move {
            let _here = here;
            std::future::pending::<Result<Response<Body>, Infallible>>().await
        }
    });
    let mut service = CheckLayer::new(everything()).layer(service);
    let answer = service.call(stage.request(Method::GET, "/"));
    let (answer, ()) = tokio::join!(answer, async {
        // `join` polls in order, so the handler is waiting by now.
        assert!(!dropped.load(Ordering::Relaxed));
        stage.tell(1, Status::Revoked);
    });
    let answer = answer.unwrap();
    assert_eq!(answer.headers()[REFUSED_HEADER], "revoked");
    assert!(dropped.load(Ordering::Relaxed));
    assert_eq!(stage.view.guarded(), 0, "a request that is over leaves nothing behind");
}

/// Sends one piece, then waits for ever.
struct Endless(bool, Arc<AtomicBool>);

impl http_body::Body for Endless {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Infallible>>> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(Frame::data(bytes::Bytes::from_static(b"first")))))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Relaxed);
    }
}

async fn frame(
    body: &mut LiveBody<Endless>,
) -> Option<Result<Frame<bytes::Bytes>, tonic::codegen::StdError>> {
    let mut body = pin!(body);
    poll_fn(|cx| body.as_mut().poll_frame(cx)).await
}

/// R18: a stream that was opened before the end does not go on after it.
#[tokio::test]
async fn r18_an_open_stream_ends_with_its_peer() {
    for (status, code) in [(Status::Revoked, "revoked"), (Status::Suspended, "suspended")] {
        for grpc in [false, true] {
            let stage = Stage::new(CALM);
            let dropped = Arc::new(AtomicBool::new(false));
            let service = service_fn(|_: Request<Body>| {
                let body = Endless(false, Arc::clone(&dropped));
                async move { Ok::<_, Infallible>(Response::new(body)) }
            });
            let mut service = CheckLayer::new(everything()).layer(service);
            let request = if grpc { stage.grpc("/p.S/M") } else { stage.request(Method::GET, "/") };
            let mut body = service.call(request).await.unwrap().into_body();
            let first = frame(&mut body).await.unwrap().unwrap();
            assert_eq!(first.data_ref().map(|data| &data[..]), Some(&b"first"[..]));
            let (end, ()) = tokio::join!(frame(&mut body), async { stage.tell(1, status) });
            match end.expect("it says why") {
                Ok(frame) => {
                    let trailers = frame.into_trailers().expect("a status");
                    assert!(grpc && trailers["grpc-status"] == "7");
                    assert_eq!(trailers["grpc-message"], code);
                }
                Err(error) => {
                    let refused = error.downcast_ref::<Refused>().expect("ours");
                    assert!(!grpc && refused.code() == code);
                }
            }
            assert!(dropped.load(Ordering::Relaxed), "the handler's stream is gone");
            assert!(frame(&mut body).await.is_none(), "and nothing follows");
        }
    }
}

#[tokio::test]
async fn an_end_is_told_to_who_waits_for_it() {
    let stage = Stage::new(CALM);
    let (reason, ()) =
        tokio::join!(stage.standing.ended(), async { stage.tell(1, Status::Suspended) });
    assert_eq!(reason, Refused::Suspended);
}
