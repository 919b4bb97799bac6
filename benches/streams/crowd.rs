//! Streams that wait for certificates, in a process of their own, and when each of them got its next.

use std::{
    io::{BufRead as _, Read as _},
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mayfly::clock;
use mayfly_proto::spiffe::workload::{
    X509svidRequest, X509svidResponse, spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdout, Command},
    sync::Notify,
    task::JoinSet,
};
use tonic::{Request, Streaming, transport::Channel};

use crate::{
    broker::connect,
    measure::{Fault, say},
};

/// The word that makes this program a crowd.
pub(crate) const WORD: &str = "crowd";
/// How long a stream may take to get what it waits for.
const PATIENCE: Duration = Duration::from_secs(180);

/// A crowd that is running.
pub(crate) struct Crowd {
    child: Child,
    lines: tokio::io::Lines<BufReader<ChildStdout>>,
}

impl Crowd {
    /// Opens so many streams, spread over the sockets, and waits until each has its first certificate.
    pub(crate) async fn gather(sockets: &[String], streams: usize) -> Result<Self, Fault> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([WORD, &streams.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().ok_or("the crowd has no output")?;
        let input = child.stdin.as_mut().ok_or("the crowd has no input")?;
        input.write_all(format!("{}\n", sockets.join(" ")).as_bytes()).await?;
        let mut crowd = Self { child, lines: BufReader::new(stdout).lines() };
        match crowd.line().await?.as_str() {
            "ready" => Ok(crowd),
            other => Err(format!("the crowd says `{other}`").into()),
        }
    }

    async fn line(&mut self) -> Result<String, Fault> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await??;
        Ok(line.ok_or("the crowd has gone")?)
    }

    /// When the last stream got another certificate than its first, once all have.
    pub(crate) async fn renewed(&mut self) -> Result<u64, Fault> {
        Ok(self.line().await?.parse()?)
    }

    pub(crate) async fn disperse(mut self) -> Result<(), Fault> {
        drop(self.child.stdin.take());
        self.child.wait().await?;
        Ok(())
    }
}

/// What the child does: `crowd STREAMS`, with sockets on its input, until that ends.
pub(crate) fn be() -> Result<(), Fault> {
    let streams = std::env::args().nth(2).ok_or("crowd STREAMS")?.parse()?;
    let mut sockets = String::new();
    std::io::stdin().lock().read_line(&mut sockets)?;
    let sockets: Vec<PathBuf> = sockets.split_whitespace().map(Into::into).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(crowd(&sockets, streams))
}

#[derive(Default)]
struct Ears {
    renewed: Mutex<Vec<u64>>,
    all: Notify,
}

async fn crowd(sockets: &[PathBuf], streams: usize) -> Result<(), Fault> {
    let ears = Arc::new(Ears::default());
    let mut members = JoinSet::new();
    for (at, socket) in sockets.iter().enumerate() {
        let channel = connect(socket.clone()).await?;
        for _ in (at..streams).step_by(sockets.len()) {
            let (stream, first) = open(&channel).await?;
            members.spawn(listen((stream, first), Arc::clone(&ears), streams));
        }
    }
    say("ready");
    ears.all.notified().await;
    let last = ears.renewed.lock().unwrap_or_else(PoisonError::into_inner).iter().max().copied();
    say(&last.ok_or("nobody has heard")?.to_string());
    // Streams stay open until the bench has seen enough.
    let end = || std::io::stdin().lock().read_to_end(&mut Vec::new());
    tokio::task::spawn_blocking(end).await??;
    Ok(())
}

/// A stream with its first certificate.
async fn open(channel: &Channel) -> Result<(Streaming<X509svidResponse>, Vec<u8>), Fault> {
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", "true".parse()?);
    let mut client = SpiffeWorkloadApiClient::new(channel.clone());
    let mut stream = client.fetch_x509svid(request).await?.into_inner();
    let first = stream.message().await?.ok_or("the stream ended")?;
    Ok((stream, leaf(&first)))
}

fn leaf(message: &X509svidResponse) -> Vec<u8> {
    message.svids.first().map(|svid| svid.x509_svid.to_vec()).unwrap_or_default()
}

/// Waits for another certificate than the first: answers with new bundles come in between.
async fn listen(
    (mut stream, first): (Streaming<X509svidResponse>, Vec<u8>),
    ears: Arc<Ears>,
    streams: usize,
) {
    let mut waits = true;
    while let Ok(Some(message)) = stream.message().await {
        if waits && leaf(&message) != first {
            waits = false;
            let mut renewed = ears.renewed.lock().unwrap_or_else(PoisonError::into_inner);
            renewed.push(clock::monotonic_ns());
            if renewed.len() >= streams {
                ears.all.notify_one();
            }
        }
    }
}
