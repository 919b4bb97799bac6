//! One HTTP/2 connection, reused after its peer's end (R18): with the stream guarded below, with the
//! layer above, and, to show what both are for, with neither.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use mayfly_core::Status;
use mayfly_verify::{Action, Actions, Authorize, CheckLayer, Party, Standing, View};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    task::JoinSet,
    time::{Duration, Instant, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::{
    Code,
    transport::{Channel, Endpoint, Server, server::Connected},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::common::{Authority, CALM, NOW, delta, party, serial, view};

const LONG: Duration = Duration::from_secs(20);
const SERVICE: &str = "grpc.health.v1.Health";

#[derive(Clone, Copy, PartialEq)]
enum Protection {
    None,
    Layer,
    Stream,
}

/// A health service, and a client (slot 2) that has one connection to it.
#[expect(clippy::unused_async, reason = "it spawns, so it is called within a runtime")]
async fn stage(protection: Protection) -> (Arc<View>, HealthClient<Channel>, JoinSet<()>) {
    let (authority, view) = (Authority::new("example.org"), view(CALM));
    let (server, client) = (
        party(authority.context("/a", serial(1).as_bytes()), &view),
        party(authority.context("/b", serial(2).as_bytes()), &view),
    );
    let (near, far) = tokio::io::duplex(1 << 16);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (_reporter, health) = tonic_health::server::health_reporter();
        let actions = Actions::none().allow(Action::grpc_service(SERVICE), Authorize::Any);
        let served = match protection {
            Protection::None => {
                let open = Unguarded::accept(&server, near).await;
                Server::builder().add_service(health).serve_with_incoming(once(open)).await
            }
            Protection::Layer => {
                let open = Unguarded::accept(&server, near).await;
                let mut server = Server::builder().layer(CheckLayer::new(actions));
                server.add_service(health).serve_with_incoming(once(open)).await
            }
            Protection::Stream => {
                let guarded = server.accept(near, NOW).await.expect("accepted");
                Server::builder().add_service(health).serve_with_incoming(once(guarded)).await
            }
        };
        served.expect("the server runs");
    });
    (view, HealthClient::new(channel(client, far)), tasks)
}

/// One connection, and never another.
fn once<T>(connection: T) -> impl tokio_stream::Stream<Item = io::Result<T>> {
    tokio_stream::StreamExt::chain(tokio_stream::iter([Ok(connection)]), tokio_stream::pending())
}

/// A channel over this one stream: it cannot connect a second time.
fn channel(client: Party, far: DuplexStream) -> Channel {
    let mut far = Some(far);
    Endpoint::from_static("http://mayfly").connect_with_connector_lazy(tower::service_fn(
        move |_| {
            let (client, far) = (client.clone(), far.take());
            async move {
                let far = far.ok_or_else(|| io::Error::other("there is no second stream"))?;
                client.connect(far, NOW).await.map(TokioIo::new)
            }
        },
    ))
}

/// A connection that nobody guards: what a server has that only does the handshake. It still knows who
/// its peer is, so that a layer can do its part.
struct Unguarded {
    stream: TlsStream<DuplexStream>,
    standing: Standing,
}

impl Unguarded {
    async fn accept(party: &Party, near: DuplexStream) -> Self {
        let acceptor = TlsAcceptor::from(Arc::new(party.server_config().expect("versions")));
        let stream = acceptor.accept(near).await.expect("accepted");
        let peer = party.peer(stream.get_ref().1).expect("an svid");
        Self { standing: party.standing(peer, NOW), stream }
    }
}

impl Connected for Unguarded {
    type ConnectInfo = Standing;

    fn connect_info(&self) -> Standing {
        self.standing.clone()
    }
}

impl AsyncRead for Unguarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Unguarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn end(view: &View) {
    view.apply(&delta(1, 2, &[(2, Status::Revoked)]), Instant::now()).expect("the next delta");
}

async fn check(client: &mut HealthClient<Channel>) -> Result<(), tonic::Status> {
    let answer = client.check(HealthCheckRequest::default());
    timeout(LONG, answer).await.expect("it answers").map(drop)
}

/// The hole: an HTTP/2 connection that was opened in time serves whoever has ended, for ever.
#[tokio::test]
async fn without_protection_a_reused_connection_outlives_its_peer() {
    let (view, mut client, _tasks) = stage(Protection::None).await;
    check(&mut client).await.unwrap();
    end(&view);
    check(&mut client).await.unwrap();
}

/// R18: the second request comes over the same live connection and is refused, with a code.
#[tokio::test]
async fn r18_the_layer_refuses_the_next_request_of_a_reused_connection() {
    let (view, mut client, _tasks) = stage(Protection::Layer).await;
    check(&mut client).await.unwrap();
    let mut stream = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    stream.message().await.unwrap().expect("a first message");
    // One stream is open when the end comes: it hears of it, in the middle of its life.
    let (cut, ()) = tokio::join!(timeout(LONG, stream.message()), async { end(&view) });
    for status in [cut.expect("it is told").unwrap_err(), check(&mut client).await.unwrap_err()] {
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "revoked"));
    }
}

/// R18: with the stream guarded, the connection itself is gone, and every request on it.
#[tokio::test]
async fn r18_the_guard_cuts_a_reused_connection_with_its_open_streams() {
    let (view, mut client, _tasks) = stage(Protection::Stream).await;
    check(&mut client).await.unwrap();
    let mut stream = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    stream.message().await.unwrap().expect("a first message");
    let (cut, ()) = tokio::join!(timeout(LONG, stream.message()), async { end(&view) });
    cut.expect("it is told").unwrap_err();
    check(&mut client).await.unwrap_err();
}
