//! A real broker in a process of its own: started, looked at from outside, stopped and started again.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use mayfly::{admin, clock, stage};
use mayfly_proto::mayfly::v1::{
    self as wire, operator_client::OperatorClient, outcome::Outcome as Said,
    tasks_client::TasksClient, wish::Wish as Of,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{net::UnixStream, process::Child, time::timeout};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::measure::{Fault, program};

/// Longer than any start may take: a start that is too slow is a figure and not a failure.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a broker with nothing to do is waited for, and how it is told from one that works.
const QUIET_AFTER_MAX: Duration = Duration::from_secs(90);
const QUIET_LOOK: Duration = Duration::from_millis(500);
const QUIET_SHARE: f64 = 0.04;

/// A running broker.
pub(crate) struct Broker {
    child: Child,
    pid: Pid,
    dir: PathBuf,
    config: PathBuf,
}

impl Broker {
    /// Starts a broker that has its state in a new directory `dir`.
    pub(crate) async fn open(dir: &Path, configuration: &str) -> Result<Self, Fault> {
        fs::create_dir(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        let config = dir.join("mayfly.toml");
        fs::write(&config, configuration)?;
        let (child, pid) = start(dir, &config).await?;
        Ok(Self { child, pid, dir: dir.to_owned(), config })
    }

    /// Stops it as `signal` does, and starts it again. Seconds from the start of the program until it
    /// says that callers are served.
    pub(crate) async fn restart(&mut self, signal: Signal) -> Result<f64, Fault> {
        kill(self.pid, signal)?;
        timeout(PATIENCE, self.child.wait()).await??;
        let began = clock::monotonic_ns();
        (self.child, self.pid) = start(&self.dir, &self.config).await?;
        Ok(seconds(clock::monotonic_ns() - began))
    }

    pub(crate) async fn close(mut self) -> Result<(), Fault> {
        kill(self.pid, Signal::SIGTERM)?;
        timeout(PATIENCE, self.child.wait()).await??;
        Ok(())
    }

    /// Where everybody asks.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("workload.sock")
    }

    pub(crate) async fn tasks(&self) -> Result<TasksClient<Channel>, Fault> {
        Ok(TasksClient::new(connect(self.dir.join("tasks.sock")).await?))
    }

    pub(crate) async fn operator(&self) -> Result<OperatorClient<Channel>, Fault> {
        Ok(admin::connect(&self.dir).await?)
    }

    /// Processor time of all its threads, those that ended included; seconds.
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a bench")]
    pub(crate) fn cpu_s(&self) -> Result<f64, Fault> {
        let clock = nix::time::clock_getcpuclockid(self.pid)?;
        let now = nix::time::clock_gettime(clock)?;
        Ok(now.tv_sec() as f64 + now.tv_nsec() as f64 / 1e9)
    }

    /// What it holds in memory, in bytes.
    pub(crate) fn resident(&self) -> Result<f64, Fault> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmRSS")?;
        Ok(kib.parse::<f64>()? * 1024.0)
    }

    /// Its open files.
    pub(crate) fn descriptors(&self) -> Result<usize, Fault> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid))?.count())
    }

    /// Waits until it does nothing that anybody would notice, but not for ever.
    pub(crate) async fn quiet(&self) -> Result<(), Fault> {
        let give_up = tokio::time::Instant::now() + QUIET_AFTER_MAX;
        let mut calm = 0;
        while calm < 3 && tokio::time::Instant::now() < give_up {
            let before = self.cpu_s()?;
            tokio::time::sleep(QUIET_LOOK).await;
            let busy = (self.cpu_s()? - before) / QUIET_LOOK.as_secs_f64();
            calm = if busy < QUIET_SHARE { calm + 1 } else { 0 };
        }
        Ok(())
    }
}

async fn start(dir: &Path, config: &Path) -> Result<(Child, Pid), Fault> {
    let child = stage::start_broker_within(PATIENCE, &program(), (dir, config)).await?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or("the broker has no pid")?;
    Ok((child, Pid::from_raw(pid)))
}

/// A connection to a Unix socket.
pub(crate) async fn connect(socket: PathBuf) -> Result<Channel, Fault> {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Ok(Endpoint::from_static("http://localhost").connect_with_connector(connector).await?)
}

/// Carries out `wishes` in one call; every one of them has to be granted.
pub(crate) async fn batch(
    tasks: &TasksClient<Channel>,
    wishes: Vec<Of>,
) -> Result<Vec<Said>, Fault> {
    let wishes = wishes.into_iter().map(|wish| wire::Wish { wish: Some(wish) }).collect();
    let answer = tasks.clone().batch(wire::BatchRequest { wishes }).await?.into_inner();
    let said = answer.outcomes.into_iter().map(|outcome| match outcome.outcome {
        Some(Said::Refused(refusal)) => Err(format!("refused: {refusal:?}").into()),
        Some(said) => Ok(said),
        None => Err("an answer says nothing".into()),
    });
    said.collect()
}

/// A wish to begin a task of `profile`.
pub(crate) fn begin(
    profile: &str,
    holder: wire::holder_wish::Holder,
    key: String,
) -> wire::BeginRequest {
    wire::BeginRequest {
        profile: profile.to_owned(),
        holder: Some(wire::HolderWish { holder: Some(holder) }),
        declaration: Some(wire::Declaration {
            intent: format!("one piece of work: {key}"),
            ..wire::Declaration::default()
        }),
        idempotency_key: key,
        ..wire::BeginRequest::default()
    }
}

/// A wish to end it.
pub(crate) fn end(task: String) -> wire::EndRequest {
    wire::EndRequest { task, cause: "completed".to_owned(), reason: String::new() }
}

/// As many open files as the system gives; the broker inherits the limit.
pub(crate) fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // What is not given shows as calls that fail.
    let _not_given = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Nanoseconds as seconds.
#[expect(clippy::cast_precision_loss, reason = "less than a day")]
pub(crate) const fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// A count, to calculate with.
#[expect(clippy::cast_precision_loss, reason = "counts of a bench are small")]
pub(crate) const fn float(count: usize) -> f64 {
    count as f64
}
