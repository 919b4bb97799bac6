//! Streams that follow, in a process of their own, and when each of them heard of the last change.

use std::{
    io::BufRead as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
};

use hyper_util::rt::TokioIo;
use mayfly::clock;
use mayfly_proto::mayfly::v1::{
    self as wire, follow_response::Content, revocation_feed_client::RevocationFeedClient,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    process::{Child, ChildStdout, Command},
    sync::Notify,
    task::JoinSet,
};
use tonic::transport::{Channel, Uri};

use crate::measure::{Fault, say};

/// The word that makes this program a crowd.
pub(crate) const WORD: &str = "crowd";
/// Streams on one connection: as a proxy on each machine would have them.
const PER_CONNECTION: usize = 500;
/// Rare, so that what is measured is the fan-out of a change.
const HEARTBEAT_MS: u32 = 20_000;

/// When a change was heard, by the machine's monotonic clock.
pub(crate) struct Heard {
    pub(crate) median: u64,
    pub(crate) last: u64,
}

/// A crowd that is running.
pub(crate) struct Crowd {
    child: Child,
    lines: tokio::io::Lines<BufReader<ChildStdout>>,
}

impl Crowd {
    /// Starts a crowd and waits until every stream has its snapshot.
    pub(crate) async fn gather(socket: &Path, streams: usize) -> Result<Self, Fault> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([WORD, &socket.display().to_string(), &streams.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().ok_or("the crowd has no output")?;
        let mut crowd = Self { child, lines: BufReader::new(stdout).lines() };
        match crowd.line().await?.as_str() {
            "ready" => Ok(crowd),
            other => Err(format!("the crowd says `{other}`").into()),
        }
    }

    async fn line(&mut self) -> Result<String, Fault> {
        let line =
            tokio::time::timeout(std::time::Duration::from_secs(120), self.lines.next_line());
        Ok(line.await??.ok_or("the crowd has gone")?)
    }

    /// When the last change was heard, once all have heard it.
    pub(crate) async fn heard(&mut self) -> Result<Heard, Fault> {
        self.child.stdin.as_mut().ok_or("no way to ask")?.write_all(b"?\n").await?;
        let line = self.line().await?;
        let (median, last) = line.split_once(' ').ok_or("the crowd says something else")?;
        Ok(Heard { median: median.parse()?, last: last.parse()? })
    }

    pub(crate) async fn disperse(mut self) -> Result<(), Fault> {
        drop(self.child.stdin.take());
        self.child.wait().await?;
        Ok(())
    }
}

#[derive(Default)]
struct Ears {
    heard: Mutex<Vec<u64>>,
    all: Notify,
}

/// What the child does: `crowd SOCKET STREAMS`, until its input ends.
pub(crate) fn be() -> Result<(), Fault> {
    let words: Vec<String> = std::env::args().skip(2).collect();
    let [socket, streams] = words.as_slice() else { return Err("crowd SOCKET STREAMS".into()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(crowd(socket.into(), streams.parse()?))
}

async fn crowd(socket: PathBuf, streams: usize) -> Result<(), Fault> {
    let ears = Arc::new(Ears::default());
    let mut members = JoinSet::new();
    let mut left = streams;
    while left > 0 {
        let channel = connect(&socket).await?;
        for _ in 0..left.min(PER_CONNECTION) {
            members.spawn(listen(follow(&channel).await?, Arc::clone(&ears), streams));
        }
        left -= left.min(PER_CONNECTION);
    }
    say("ready");
    loop {
        let read = || std::io::stdin().lock().read_line(&mut String::new());
        if tokio::task::spawn_blocking(read).await?? == 0 {
            return Ok(());
        }
        loop {
            let all = ears.all.notified();
            if let Some(line) = ears.taken(streams) {
                say(&line);
                break;
            }
            all.await;
        }
    }
}

impl Ears {
    /// When the middle one and the last of so many heard it, once all have; forgets it then.
    fn taken(&self, streams: usize) -> Option<String> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.len() < streams {
            return None;
        }
        heard.sort_unstable();
        let (median, last) = (heard.get(streams / 2)?, heard.last()?);
        let line = format!("{median} {last}");
        heard.clear();
        Some(line)
    }
}

async fn listen(
    mut stream: tonic::Streaming<wire::FollowResponse>,
    ears: Arc<Ears>,
    streams: usize,
) {
    while let Ok(Some(message)) = stream.message().await {
        if matches!(message.content, Some(Content::Batches(_))) {
            let mut heard = ears.heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.push(clock::monotonic_ns());
            if heard.len() >= streams {
                ears.all.notify_one();
            }
        }
    }
}

async fn connect(socket: &Path) -> Result<Channel, Fault> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
    Ok(endpoint.connect_with_connector(connector).await?)
}

/// A stream that has been told everything.
async fn follow(channel: &Channel) -> Result<tonic::Streaming<wire::FollowResponse>, Fault> {
    let mut client = RevocationFeedClient::new(channel.clone());
    let nonce = vec![7; 16];
    let request =
        wire::FollowRequest { heartbeat_ms: HEARTBEAT_MS, nonce, ..wire::FollowRequest::default() };
    let mut stream = client.follow(request).await?.into_inner();
    for _ in 0..2 {
        stream.message().await?.ok_or("the feed ended")?;
    }
    Ok(stream)
}
