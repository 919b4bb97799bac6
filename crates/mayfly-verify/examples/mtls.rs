//! Two sides of mutual TLS over plain tokio-rustls, with identities from the Workload API and peers
//! that are refused and cut once their task has ended.
//!
//! ```text
//! SPIFFE_ENDPOINT_SOCKET=unix:///… cargo run --example mtls -- serve 127.0.0.1:7443
//! SPIFFE_ENDPOINT_SOCKET=unix:///… cargo run --example mtls -- call  127.0.0.1:7443
//! ```
//!
//! `serve` echoes what it hears; `call` says something every second. End the caller's task and watch
//! the connection fall at once, not when the certificate expires.

use std::{error::Error, time::Duration};

use mayfly_core::Timestamp;
use mayfly_verify::{Authorize, Endpoint, Follower, Party, Patience, WorkloadClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [role, address] = arguments.as_slice() else {
        return Err("usage: mtls serve|call ADDRESS".into());
    };

    let endpoint = Endpoint::from_env()?;
    let source = WorkloadClient::new(&endpoint).watch_x509();
    let follower = Follower::connect(&endpoint, Patience::default());
    let own = source.ready().await.ok_or("no identity issued")?;
    follower.ready().await;

    // Whoever has an SVID of our trust domain may talk to us; a real service names whom it means.
    let domain = own.default_svid().ok_or("no identity issued")?.spiffe_id.trust_domain().clone();
    let party = Party::new(source.held(), Authorize::TrustDomain(domain), follower.view().clone());
    match role.as_str() {
        "serve" => serve(party, address).await,
        "call" => call(party, address).await,
        _ => Err("usage: mtls serve|call ADDRESS".into()),
    }
}

async fn serve(party: Party, address: &str) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(address).await?;
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        let party = party.clone();
        connections.spawn(async move {
            if let Err(error) = echo(party, stream).await {
                say(&format!("connection over: {error}"));
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn echo(party: Party, stream: TcpStream) -> std::io::Result<()> {
    let mut stream = party.accept(stream, now()).await?;
    say(&format!("talking to {}", stream.peer().leaf.id));
    let mut buffer = vec![0; 4096];
    loop {
        let length = stream.read(&mut buffer).await?;
        let Some(heard) = buffer.get(..length).filter(|heard| !heard.is_empty()) else {
            return Ok(());
        };
        stream.write_all(heard).await?;
        stream.flush().await?;
    }
}

async fn call(party: Party, address: &str) -> Result<(), Box<dyn Error>> {
    let mut stream = party.connect(TcpStream::connect(address).await?, now()).await?;
    say(&format!("talking to {}", stream.peer().leaf.id));
    let mut buffer = [0; 64];
    loop {
        stream.write_all(b"still here").await?;
        stream.flush().await?;
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Err("the server hung up".into());
        }
        say("answered");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]
fn say(line: &str) {
    println!("{line}");
}

#[expect(
    clippy::disallowed_methods,
    reason = "an example is its own shell, and the shell owns the clock"
)]
fn now() -> Timestamp {
    let since =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
