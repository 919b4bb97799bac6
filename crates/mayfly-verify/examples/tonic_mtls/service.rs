//! gRPC's health service, for one profile's tasks.

use hyper_util::rt::TokioIo;
use mayfly_core::{SpiffeId, Timestamp};
use mayfly_verify::{Action, Actions, Authorize, CheckLayer, Party};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::{Channel, Endpoint, Error, Server};
use tonic_health::pb::health_client::HealthClient;

const SERVICE: &str = "grpc.health.v1.Health";

/// What may be done. Another method of this service, or another service, nobody may call.
fn rules(clients: &SpiffeId) -> Actions {
    let clients = || Authorize::Profile(clients.clone());
    Actions::none()
        .allow(Action::grpc(SERVICE, "Check"), clients())
        .allow(Action::grpc(SERVICE, "Watch"), clients())
}

/// Serves everybody whom `party` lets in. The guarded connection says by itself who its peer is.
pub(crate) async fn serve(
    party: &Party,
    listener: TcpListener,
    clients: &SpiffeId,
    clock: impl Fn() -> Timestamp + Send + 'static,
) -> Result<(), Error> {
    let (_reporter, health) = tonic_health::server::health_reporter();
    Server::builder()
        .layer(CheckLayer::new(rules(clients)))
        .add_service(health)
        .serve_with_incoming(party.incoming(listener, clock))
        .await
}

/// A client that connects on its first call, and again when it was cut off.
pub(crate) fn client(
    party: &Party,
    address: &str,
    clock: fn() -> Timestamp,
) -> HealthClient<Channel> {
    let (party, address) = (party.clone(), address.to_owned());
    let connector = tower::service_fn(move |_| {
        let (party, address) = (party.clone(), address.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            party.connect(stream, clock()).await.map(TokioIo::new)
        }
    });
    // The URI only fills `:authority`; whom we mean, the party knows.
    let endpoint = Endpoint::from_static("http://service");
    HealthClient::new(endpoint.connect_with_connector_lazy(connector))
}
