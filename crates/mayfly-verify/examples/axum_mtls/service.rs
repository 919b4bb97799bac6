//! A small shop: what may be done, and by whom, stands in [`rules`] and nowhere else.

use std::{convert::Infallible, io, time::Duration};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::StreamExt as _;
use http::{HeaderMap, Method, Request, StatusCode};
use hyper::client::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use mayfly_core::{SpiffeId, Timestamp};
use mayfly_verify::{
    Accepted, Action, Actions, Authorize, CheckLayer, Party, Peer, REFUSED_HEADER, Refused,
    Standing, Tier, Tiers,
    jwt::{self, Verifier},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// The audience of tokens that are meant for this service.
pub(crate) const AUDIENCE: &str = "orders";

/// What may be done. Nothing allows `/admin`, so nobody may, whoever he is.
fn rules(clients: &SpiffeId) -> Actions {
    let clients = || Authorize::Profile(clients.clone());
    Actions::none()
        .allow(Action::new(Method::GET, "/hello"), clients())
        .allow(Action::new(Method::GET, "/ticks"), clients())
        .allow(Action::new(Method::POST, "/orders"), clients())
        // A task sees its own notes, and no other task's.
        .allow_own_task(Action::new(Method::GET, "/notes"), clients())
}

/// The service for the tasks of profile `clients`.
pub(crate) fn router(clients: &SpiffeId, verifier: Verifier) -> Router {
    // What cannot be undone has no patience with a silent feed.
    let risky = CheckLayer::new(rules(clients)).with_patience(Tiers::default().of(Tier::High));
    let orders = Router::new().route("/orders", post(order)).with_state(verifier).layer(risky);
    let rest = Router::new()
        .route("/hello", get(hello))
        .route("/ticks", get(ticks))
        .route("/notes/{task}", get(notes))
        .route("/admin", get(async || "the keys of the house"))
        .layer(CheckLayer::new(rules(clients)));
    orders.merge(rest)
}

async fn hello(Extension(peer): Extension<Peer>) -> String {
    format!("hello {}\n", peer.leaf.id)
}

async fn notes(Path(task): Path<String>) -> String {
    format!("the notes of {task}\n")
}

/// A line ten times a second, for as long as somebody may listen.
async fn ticks() -> Body {
    let ticks = futures_util::stream::unfold((), async |()| {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Some((Ok::<_, Infallible>(Bytes::from_static(b"tick\n")), ()))
    });
    Body::from_stream(ticks)
}

/// An order is made with a token, which has to be the peer's own.
async fn order(
    State(verifier): State<Verifier>,
    Extension(standing): Extension<Standing>,
    headers: HeaderMap,
) -> Result<String, Denied> {
    let token = jwt::bearer(&headers)?;
    let bearer = verifier.verify(token, standing.now()).await?;
    let claims = bearer.presented_by(standing.peer(), standing.now())?;
    Ok(format!("ordered by {}\n", claims.id))
}

/// A handler's refusal, told like the layer's.
struct Denied(Refused);

impl From<Refused> for Denied {
    fn from(refused: Refused) -> Self {
        Self(refused)
    }
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let code = self.0.code();
        (StatusCode::FORBIDDEN, [(REFUSED_HEADER, code)], code).into_response()
    }
}

/// Serves everybody whom `party` lets in, over HTTP/1 or HTTP/2.
pub(crate) async fn serve(
    party: &Party,
    listener: TcpListener,
    app: Router,
    clock: impl Fn() -> Timestamp + Send + 'static,
) {
    let mut incoming = party.incoming(listener, clock);
    let mut connections = JoinSet::new();
    while let Some(Ok(stream)) = incoming.next().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(serve_one(stream, app.clone()));
    }
}

async fn serve_one(stream: Accepted, app: Router) {
    // Each request of this connection carries its peer; axum does not ask for it by itself.
    let service = TowerToHyperService::new(stream.standing().introduce(app));
    let server = auto::Builder::new(TokioExecutor::new());
    // Fails when the peer leaves or is cut off, which the library has logged.
    drop(server.serve_connection(TokioIo::new(stream), service).await);
}

/// One HTTP/2 connection to the service.
pub(crate) struct Client {
    sender: http2::SendRequest<Body>,
    _connection: JoinSet<()>,
}

impl Client {
    pub(crate) async fn connect(party: &Party, address: &str, now: Timestamp) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let stream = TokioIo::new(party.connect(stream, now).await?);
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), stream).await.map_err(io::Error::other)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(connection.await) });
        Ok(Self { sender, _connection: tasks })
    }

    /// Asks and gives the answer's head.
    pub(crate) async fn open(
        &mut self,
        method: &Method,
        path: &str,
        token: Option<&str>,
    ) -> io::Result<http::Response<Body>> {
        let mut request = Request::builder().method(method).uri(format!("https://service{path}"));
        if let Some(token) = token {
            request = request.header(http::header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Body::empty()).map_err(io::Error::other)?;
        self.sender.ready().await.map_err(io::Error::other)?;
        let answer = self.sender.send_request(request).await.map_err(io::Error::other)?;
        Ok(answer.map(Body::new))
    }

    /// Asks and reads the whole answer.
    pub(crate) async fn ask(
        &mut self,
        method: &Method,
        path: &str,
        token: Option<&str>,
    ) -> io::Result<(StatusCode, String)> {
        let (head, body) = self.open(method, path, token).await?.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.map_err(io::Error::other)?;
        Ok((head.status, String::from_utf8_lossy(&bytes).into_owned()))
    }
}
