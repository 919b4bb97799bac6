//! A gRPC service with mutual TLS and rules for each method. The service is gRPC's own health check.
//!
//! ```text
//! SPIFFE_ENDPOINT_SOCKET=unix:///… cargo run --example tonic_mtls -- server 127.0.0.1:7443 spiffe://example.org/client
//! SPIFFE_ENDPOINT_SOCKET=unix:///… cargo run --example tonic_mtls -- client 127.0.0.1:7443 spiffe://example.org/server
//! ```
//!
//! End the client's task while it watches: the stream ends at once.

#[expect(dead_code, reason = "one beginning for all examples; this one verifies no tokens")]
#[path = "../common/mod.rs"]
mod common;
mod service;

use common::{Fault, now, say, side, wish};
use tokio::net::TcpListener;
use tonic_health::pb::HealthCheckRequest;

#[tokio::main]
async fn main() -> Result<(), Fault> {
    let wish = wish()?;
    let side = side(&wish.peer).await?;
    if wish.is_server {
        let listener = TcpListener::bind(&wish.address).await?;
        service::serve(&side.party, listener, &wish.peer, now).await?;
        return Ok(());
    }
    let mut client = service::client(&side.party, &wish.address, now);
    client.check(HealthCheckRequest::default()).await?;
    say("it is well; watching");
    let mut stream = client.watch(HealthCheckRequest::default()).await?.into_inner();
    while let Some(message) = stream.message().await? {
        say(&format!("{:?}", message.status()));
    }
    Ok(())
}
