//! What a task leaves behind: a process with everything that a thief would want.

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use mayfly_verify::{Authorize, Endpoint, Follower, Party, Patience, WorkloadClient};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use super::{AUDIENCE, Probe, StageError, beat, io, troupe::Cue};
use crate::clock;

/// How often the live connection is used.
const WORK_EVERY: Duration = Duration::from_millis(2);

/// The holder: starts the survivor and waits, for ever as far as it knows. It is one thread without a
/// runtime, so that what is measured is not how long the kernel takes to tear a large process down.
///
/// # Errors
/// If the survivor cannot be started.
pub fn hold(program: &Path, service: &str) -> Result<(), StageError> {
    let mut survivor = Command::new(program)
        .args(["demo-workload", "--survivor", "--service", service])
        .spawn()
        .map_err(io("cannot start the survivor"))?;
    survivor.wait().map_err(io("cannot wait for the survivor"))?;
    Ok(())
}

/// The survivor: fetches, connects, and reports how it loses everything. Ends when its input does.
///
/// # Errors
/// [`StageError`] says which step failed.
pub async fn survive(service: &str) -> Result<(), StageError> {
    say_line("ready").await?;
    let mut cues = BufReader::new(tokio::io::stdin()).lines();
    let cue_line = cues.next_line().await.map_err(io("no cue"))?.unwrap_or_default();
    let probe: Probe = serde_json::from_str(&cue_line)
        .map_err(|_not_a_probe| StageError::Missing("a cue that the survivor understands"))?;
    let endpoint = Endpoint::from_env()?;
    let client = WorkloadClient::new(&endpoint);
    let source = client.watch_x509();
    source.ready().await.ok_or(StageError::Missing("the workload has no identity"))?;
    cue(&Cue::Svid { at: clock::monotonic_ns() }).await?;
    let tokens = client.fetch_jwt(&[AUDIENCE], None).await?;
    let token = tokens.into_iter().next().ok_or(StageError::Missing("no token"))?.token;
    cue(&Cue::Token { token }).await?;

    // A thief keeps what was there: a copy of the identities that no withdrawal reaches.
    let stolen = tokio::sync::watch::channel(source.held().borrow().clone()).1;
    let follower = Follower::connect(&endpoint, Patience::default());
    // Until it has heard who has ended, it trusts nobody.
    follower.ready().await;
    let party = Party::new(stolen, Authorize::Any, Arc::clone(follower.view()));
    let mut live = connect(&party, service).await.map_err(io("cannot connect"))?;
    cue(&Cue::Connected { at: clock::monotonic_ns() }).await?;
    let closed = stream_closed(source.held());
    let turned_away =
        async { if probe.connects() { turned_away(&party, service).await } else { Ok(()) } };
    let work = async {
        // The live connection is used all the time; its end is the service's to report.
        while exchange(&mut live).await.is_ok() {
            tokio::time::sleep(WORK_EVERY).await;
        }
    };
    let left = async { while let Ok(Some(_)) = cues.next_line().await {} };
    // It stays until it has lost everything: a connection that it closes itself is not one that was cut.
    let told = async {
        let (told, ()) = tokio::join!(async { tokio::try_join!(closed, turned_away) }, work);
        told
    };
    tokio::select! {
        told = told => { told?; }
        () = left => {}
    }
    Ok(())
}

async fn stream_closed(
    mut held: tokio::sync::watch::Receiver<mayfly_verify::Held>,
) -> Result<(), StageError> {
    let withdrawn = held.wait_for(|held| matches!(held, mayfly_verify::Held::Withdrawn)).await;
    drop(withdrawn.map_err(|_gone| StageError::Missing("the source ended"))?);
    let code = "PERMISSION_DENIED".to_owned();
    cue(&Cue::StreamClosed { at: clock::monotonic_ns(), code }).await
}

/// Connects again and again; reports the first time that it may not.
async fn turned_away(party: &Party, service: &str) -> Result<(), StageError> {
    while connect(party, service).await.is_ok() {
        beat().await;
    }
    cue(&Cue::TurnedAway { at: clock::monotonic_ns() }).await
}

type Live = mayfly_verify::Guarded<tokio_rustls::client::TlsStream<TcpStream>>;

async fn connect(party: &Party, service: &str) -> std::io::Result<Live> {
    let stream = TcpStream::connect(service).await?;
    let mut stream = party.connect(stream, clock::now()).await?;
    // In TLS 1.3 a client hears of a refusal only when it reads.
    exchange(&mut stream).await?;
    Ok(stream)
}

async fn exchange(stream: &mut Live) -> std::io::Result<()> {
    let mut byte = [7];
    stream.write_all(&byte).await?;
    stream.read_exact(&mut byte).await.map(drop)
}

async fn cue(cue: &Cue) -> Result<(), StageError> {
    say_line(&serde_json::to_string(cue).unwrap_or_default()).await
}

async fn say_line(line: &str) -> Result<(), StageError> {
    let mut stdout = tokio::io::stdout();
    let line = format!("{line}\n");
    stdout.write_all(line.as_bytes()).await.map_err(io("nobody listens"))?;
    stdout.flush().await.map_err(io("nobody listens"))
}
