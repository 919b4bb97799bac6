//! Two sides of mutual TLS over plain tokio-rustls: no HTTP, no rules, only who may talk at all.
//!
//! ```text
//! SPIFFE_ENDPOINT_SOCKET=unix:///… cargo run --example raw_tls -- server 127.0.0.1:7443 spiffe://example.org/client
//! SPIFFE_ENDPOINT_SOCKET=unix:///… cargo run --example raw_tls -- client 127.0.0.1:7443 spiffe://example.org/server
//! ```
//!
//! The server echoes what it hears; the client says something every second. End the client's task and
//! watch the connection fall at once, not when the certificate expires.

#[expect(dead_code, reason = "one beginning for all examples; this one verifies no tokens")]
#[path = "../common/mod.rs"]
mod common;
mod service;

use std::time::Duration;

use common::{Fault, now, say, side, wish};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Fault> {
    let wish = wish()?;
    let side = side(&wish.peer).await?;
    if wish.is_server {
        let listener = TcpListener::bind(&wish.address).await?;
        service::serve(&side.party, listener, now).await;
        return Ok(());
    }
    let mut stream = service::connect(&side.party, &wish.address, now()).await?;
    say(&format!("talking to {}", stream.peer().leaf.id));
    loop {
        service::exchange(&mut stream, b"still here").await?;
        say("answered");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
