//! An axum service with mutual TLS, rules for each action, and tokens that belong to who shows them.
//!
//! ```text
//! SPIFFE_ENDPOINT_SOCKET=unix:///… cargo run --example axum_mtls -- server 127.0.0.1:7443 spiffe://example.org/client
//! SPIFFE_ENDPOINT_SOCKET=unix:///… cargo run --example axum_mtls -- client 127.0.0.1:7443 spiffe://example.org/server
//! ```
//!
//! The client asks for several things over one HTTP/2 connection, some of which it may not. End its
//! task while it waits for ticks, and the stream breaks off.

#[path = "../common/mod.rs"]
mod common;
mod service;

use common::{Fault, now, say, side, wish};
use http::Method;
use http_body_util::BodyExt as _;
use mayfly_verify::jwt::Verifier;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Fault> {
    let wish = wish()?;
    let side = side(&wish.peer).await?;
    if wish.is_server {
        let keys = side.workload.watch_jwt_bundles();
        keys.ready().await;
        let domain = wish.peer.trust_domain().clone();
        let verifier = Verifier::offline(service::AUDIENCE, keys.keys())
            .with_view(domain, side.follower.view().clone())
            .reporting(side.reporter.clone());
        let app = service::router(&wish.peer, verifier);
        let listener = TcpListener::bind(&wish.address).await?;
        service::serve(&side.party, listener, app, now).await;
        return Ok(());
    }
    let tokens = side.workload.fetch_jwt(&[service::AUDIENCE], None).await?;
    let token = tokens.first().map(|one| one.token.as_str());
    let mut client = service::Client::connect(&side.party, &wish.address, now()).await?;
    for (method, path, token) in [
        (Method::GET, "/hello", None),
        (Method::GET, "/admin", None),
        (Method::POST, "/orders", None),
        (Method::POST, "/orders", token),
    ] {
        say(&format!("{method} {path}"));
        let (status, said) = client.ask(&method, path, token).await?;
        say(&format!("  {status} {}", said.trim_end()));
    }
    let mut ticks = client.open(&Method::GET, "/ticks", None).await?.into_body();
    while let Some(frame) = ticks.frame().await {
        say(if frame?.is_data() { "tick" } else { "that was all" });
    }
    Ok(())
}
