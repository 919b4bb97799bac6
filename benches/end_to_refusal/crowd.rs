//! A crowd around the broker: followers of the feed, and tasks that begin, get a token and end.
//!
//! It is a process of its own, so that its work is not counted as the verifier's. Each follower has a
//! connection of its own, as a process would, and asks for at most ten messages a second: most verifiers
//! on a busy machine care about the second, and the few that care about the millisecond say so.

use std::{
    io::BufRead as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use mayfly::admin;
use mayfly_proto::mayfly::v1::{
    self as wire, begin_task_request::Holder, order_task_request::Order,
    revocation_feed_client::RevocationFeedClient,
};
use mayfly_verify::{Endpoint, WorkloadClient};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::UnixStream,
    process::{Child, Command},
    task::JoinSet,
    time::MissedTickBehavior,
};
use tonic::transport::{Channel, Uri};

use crate::measure::{Fault, say};

/// The word that makes this program a crowd.
pub(crate) const WORD: &str = "crowd";
/// The least time between two messages to one follower.
const PACE_MS: u32 = 100;
/// Ends are asked for in small lots, because timers count milliseconds.
const LOT_EVERY: Duration = Duration::from_millis(10);
/// Tasks that may be under way at once; when the broker is slower than that, fewer end.
const UNDER_WAY_MAX: usize = 256;

/// A crowd that is running.
pub(crate) struct Crowd {
    child: Child,
}

impl Crowd {
    /// Starts a crowd and waits until every follower has its snapshot.
    pub(crate) async fn gather(
        dir: &Path,
        (followers, ends): (usize, usize),
    ) -> Result<Self, Fault> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([WORD, &dir.display().to_string(), &followers.to_string(), &ends.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.as_mut().ok_or("the crowd has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).await?;
        if line.trim() != "ready" {
            return Err(format!("the crowd says `{}`", line.trim()).into());
        }
        Ok(Self { child })
    }

    /// Sends it home, and says what it did.
    pub(crate) async fn disperse(mut self) -> Result<String, Fault> {
        drop(self.child.stdin.take());
        let mut said = String::new();
        let stdout = self.child.stdout.as_mut().ok_or("the crowd has no output")?;
        stdout.read_to_string(&mut said).await?;
        self.child.wait().await?;
        Ok(said.trim().to_owned())
    }
}

#[derive(Debug, Default)]
struct Counts {
    messages: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
}

/// What the child does: `crowd DIR FOLLOWERS ENDS_PER_SECOND`, until its input ends.
pub(crate) fn be() -> Result<(), Fault> {
    let words: Vec<String> = std::env::args().skip(2).collect();
    let [dir, followers, ends] = words.as_slice() else {
        return Err("crowd DIR FOLLOWERS ENDS_PER_SECOND".into());
    };
    let (dir, followers, ends) = (PathBuf::from(dir), followers.parse()?, ends.parse()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(crowd(&dir, followers, ends))
}

async fn crowd(dir: &Path, followers: usize, ends: usize) -> Result<(), Fault> {
    let counts = Arc::new(Counts::default());
    let mut members = JoinSet::new();
    for _ in 0..followers {
        let mut stream = follow(&dir.join("workload.sock")).await?;
        let counts = Arc::clone(&counts);
        members.spawn(async move {
            while let Ok(Some(_message)) = stream.message().await {
                counts.messages.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let began = tokio::time::Instant::now();
    members.spawn(keep_ending(dir.to_owned(), ends, Arc::clone(&counts)));
    say("ready");
    tokio::task::spawn_blocking(|| std::io::stdin().lock().read_line(&mut String::new())).await??;
    let seconds = began.elapsed().as_secs_f64();
    let rate = |count: &AtomicU64| {
        #[expect(clippy::cast_precision_loss, reason = "a count of a minute's messages")]
        let count = count.load(Ordering::Relaxed) as f64;
        count / seconds
    };
    say(&format!(
        "{followers} followers got {:.0} messages a second; {:.0} tasks a second began, got a token \
         and ended; {} failed",
        rate(&counts.messages),
        rate(&counts.ended),
        counts.failed.load(Ordering::Relaxed)
    ));
    Ok(())
}

async fn follow(socket: &Path) -> Result<tonic::Streaming<wire::FollowResponse>, Fault> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = tonic::transport::Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await?;
    let mut client = RevocationFeedClient::new(channel).max_decoding_message_size(64 << 20);
    let request = wire::FollowRequest {
        pace_ms: PACE_MS,
        nonce: vec![7; 16],
        ..wire::FollowRequest::default()
    };
    let mut stream = client.follow(request).await?.into_inner();
    stream.message().await?.ok_or("the feed ended")?;
    Ok(stream)
}

async fn keep_ending(dir: PathBuf, per_second: usize, counts: Arc<Counts>) {
    let Ok(operator) = admin::connect(&dir).await else { return };
    let mut lots = tokio::time::interval(LOT_EVERY);
    lots.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut lives = JoinSet::new();
    let mut owed = 0;
    loop {
        lots.tick().await;
        owed += per_second;
        while owed >= 100 {
            owed -= 100;
            while lives.try_join_next().is_some() {}
            if lives.len() < UNDER_WAY_MAX {
                lives.spawn(live(operator.clone(), Arc::clone(&counts)));
            }
        }
    }
}

async fn live(mut operator: wire::operator_client::OperatorClient<Channel>, counts: Arc<Counts>) {
    let life = async {
        let begin = wire::BeginTaskRequest {
            profile: "crowd".to_owned(),
            holder: Some(Holder::LeaseOnly(true)),
            lease_ms: 60_000,
            ..wire::BeginTaskRequest::default()
        };
        let begun = operator.begin_task(begin).await?.into_inner();
        let endpoint = Endpoint::parse(&format!("unix://{}", begun.socket))?;
        WorkloadClient::new(&endpoint).fetch_jwt(&["crowd"], None).await?;
        let end = Some(Order::End("completed".to_owned()));
        operator
            .order_task(wire::OrderTaskRequest {
                task: begun.task,
                order: end,
                reason: String::new(),
            })
            .await?;
        Ok::<_, Fault>(())
    };
    let count = if life.await.is_ok() { &counts.ended } else { &counts.failed };
    count.fetch_add(1, Ordering::Relaxed);
}
