//! A Mayfly broker in a process of its own, and what is done to it over its public APIs.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mayfly::{clock, stage};
use mayfly_proto::mayfly::v1::{self as wire, holder_wish::Holder, tasks_client::TasksClient};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::process::Child;
use tonic::transport::Channel;

use crate::{
    drive::Call,
    measure::{Fault, program},
    workload::{connect, fetch_x509},
};

/// Tasks of many workloads that live in one process are told apart by sockets of their own; `own` is the
/// profile of a task that is bound to a process.
const CONFIGURATION: &str = r#"trust_domain = "example.org"

[workload]
task_sockets = "TASK_SOCKETS"

[[profile]]
name = "load"
path = "/agents/load"
owner = "bench"
binding = "socket"
max_task = "10m"

[[profile]]
name = "own"
path = "/agents/own"
selectors = ["unix:uid:OUR_UID"]
owner = "bench"
binding = "process"
max_task = "30m"
"#;

/// The broker and the ways to it.
pub(crate) struct House {
    broker: Child,
    pub(crate) pid: Pid,
    dir: PathBuf,
    _sockets: TempDir,
    tasks: TasksClient<Channel>,
}

impl House {
    /// Starts a broker that has its state in a new directory `dir`.
    pub(crate) async fn open(dir: &Path) -> Result<Self, Fault> {
        fs::create_dir(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        // Where operators are told to have them: what is on the disk that is meant is the log.
        let memory = Path::new("/dev/shm");
        let sockets = if memory.is_dir() { memory } else { dir };
        let sockets = tempfile::Builder::new().prefix("mayfly-load").tempdir_in(sockets)?;
        let uid = rustix::process::geteuid().as_raw().to_string();
        let text = CONFIGURATION.replace("TASK_SOCKETS", &sockets.path().to_string_lossy());
        let text = text.replace("OUR_UID", &uid);
        let config = dir.join("mayfly.toml");
        fs::write(&config, text)?;
        let broker = stage::start_broker(&program(), dir, &config).await?;
        let pid = broker.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = Pid::from_raw(pid.ok_or("the broker has no pid")?);
        let tasks = TasksClient::new(connect(&Arc::new(dir.join("tasks.sock"))).await?);
        Ok(Self { broker, pid, dir: dir.to_owned(), _sockets: sockets, tasks })
    }

    /// Tasks with sockets of their own, where they are asked for over and over. Many, because one task may be
    /// given a hundred thousand credentials and no more.
    pub(crate) async fn residents(&self, count: usize) -> Result<Vec<Task>, Fault> {
        let mut all = Vec::with_capacity(count);
        for _ in 0..count {
            let task = begin(self.tasks.clone(), ("load", Holder::Socket(true))).await?;
            drop(patiently(&task.socket()).await?);
            all.push(task);
        }
        Ok(all)
    }

    pub(crate) async fn end_all(&self, tasks: Vec<Task>) -> Result<(), Fault> {
        for task in tasks {
            end(self.tasks.clone(), task).await?;
        }
        Ok(())
    }

    /// Tasks, each with a socket and a connection of its own, over and over.
    pub(crate) fn lives(&self) -> Lives {
        Lives { tasks: self.tasks.clone() }
    }

    /// Tasks of this process one after the other, each with a connection of its own.
    pub(crate) fn own_lives(&self) -> Result<OwnLives, Fault> {
        let pid = i32::try_from(std::process::id())?;
        let socket = Arc::new(self.dir.join("workload.sock"));
        Ok(OwnLives { tasks: self.tasks.clone(), socket, pid })
    }

    pub(crate) async fn close(mut self) -> Result<(), Fault> {
        nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGTERM)?;
        self.broker.wait().await?;
        Ok(())
    }
}

/// A task that has begun.
pub(crate) struct Task(wire::BeginResponse);

impl Task {
    /// Where its workload asks.
    pub(crate) fn socket(&self) -> Arc<PathBuf> {
        Arc::new(PathBuf::from(&self.0.socket))
    }
}

async fn begin(
    mut tasks: TasksClient<Channel>,
    (profile, holder): (&str, Holder),
) -> Result<Task, Fault> {
    let request = wire::BeginRequest {
        profile: profile.to_owned(),
        holder: Some(wire::HolderWish { holder: Some(holder) }),
        ..wire::BeginRequest::default()
    };
    Ok(Task(tasks.begin(request).await?.into_inner()))
}

async fn end(mut tasks: TasksClient<Channel>, task: Task) -> Result<(), Fault> {
    let cause = "completed".to_owned();
    let request = wire::EndRequest { task: task.0.task, cause, reason: String::new() };
    tasks.end(request).await?;
    Ok(())
}

/// Begin → a connection to the task's own socket → `FetchX509SVID` → End. The wait is until the
/// certificate is in hand; the end is paid for and not waited for.
pub(crate) struct Lives {
    tasks: TasksClient<Channel>,
}

impl Call for Lives {
    async fn call(&self, _worker: usize, due: u64) -> Result<u64, Fault> {
        let task = begin(self.tasks.clone(), ("load", Holder::Socket(true))).await?;
        let fetched = fetch_x509(patiently(&task.socket()).await?).await;
        let wait = clock::monotonic_ns() - due;
        end(self.tasks.clone(), task).await?;
        fetched?;
        Ok(wait)
    }
}

/// The same for tasks that this process holds itself, at the socket for everybody. One at a time: whoever
/// holds several is given a certificate of each.
pub(crate) struct OwnLives {
    tasks: TasksClient<Channel>,
    socket: Arc<PathBuf>,
    pid: i32,
}

impl Call for OwnLives {
    async fn call(&self, _worker: usize, due: u64) -> Result<u64, Fault> {
        let task = begin(self.tasks.clone(), ("own", Holder::ProcessPid(self.pid))).await?;
        let fetched = fetch_x509(connect(&self.socket).await?).await;
        let wait = clock::monotonic_ns() - due;
        end(self.tasks.clone(), task).await?;
        match fetched?.len() {
            1 => Ok(wait),
            others => Err(format!("{others} identities instead of the task's").into()),
        }
    }
}

/// A task's socket may appear a moment after its begin was answered.
async fn patiently(socket: &Arc<PathBuf>) -> Result<Channel, Fault> {
    for _ in 0..1_000 {
        if socket.exists() {
            return connect(socket).await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Err("the task's socket did not appear".into())
}
