//! A real broker in a process of its own, and the ways to it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use hyper_util::rt::TokioIo;
use mayfly::{admin, stage};
use mayfly_proto::mayfly::v1::{
    GetStatusRequest, operator_client::OperatorClient, tasks_client::TasksClient,
};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;
use tokio::{net::UnixStream, process::Child};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::measure::{Fault, program};

/// Tasks are reached by sockets of their own, so one process of clients can hold many of them.
const CONFIGURATION: &str = r#"trust_domain = "example.org"

[workload]
task_sockets = "TASK_SOCKETS"

[[profile]]
name = "churn"
path = "/agents/churn"
owner = "bench"
binding = "socket"
max_task = "30s"
"#;

/// The parts that the broker's processor time goes to, by the beginnings of its threads' names.
const THREADS: [(&str, &str); 5] = [
    ("tokio", "sockets, attestation, registrar"),
    ("sign", "signing"),
    ("committer", "journal"),
    ("keeper", "index"),
    ("sled", "index's own threads"),
];

/// The broker and the ways to it.
pub(crate) struct House {
    broker: Child,
    pid: Pid,
    dir: PathBuf,
    _sockets: TempDir,
    pub(crate) tasks: TasksClient<Channel>,
    operator: OperatorClient<Channel>,
}

impl House {
    /// Starts a broker that has its state in a new directory `dir`.
    pub(crate) async fn open(dir: &Path) -> Result<Self, Fault> {
        fs::create_dir(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        let config = dir.join("mayfly.toml");
        // Where operators are told to have them: what is on the disk that is meant is the log.
        let memory = Path::new("/dev/shm");
        let sockets = if memory.is_dir() { memory } else { dir };
        let sockets = tempfile::Builder::new().prefix("mayfly-churn").tempdir_in(sockets)?;
        let text = CONFIGURATION.replace("TASK_SOCKETS", &sockets.path().to_string_lossy());
        fs::write(&config, text)?;
        let broker = stage::start_broker(&program(), dir, &config).await?;
        let pid = broker.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = Pid::from_raw(pid.ok_or("the broker has no pid")?);
        let tasks = TasksClient::new(connect(dir.join("tasks.sock")).await?);
        let operator = admin::connect(dir).await?;
        Ok(Self { broker, pid, dir: dir.to_owned(), _sockets: sockets, tasks, operator })
    }

    /// Where everybody asks.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("workload.sock")
    }

    /// Tasks that have begun and not ended.
    pub(crate) async fn live(&self) -> Result<u64, Fault> {
        let status = self.operator.clone().get_status(GetStatusRequest {}).await?;
        Ok(status.into_inner().tasks_live)
    }

    /// Processor time of the broker, all threads, those that ended included; seconds.
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a short run")]
    pub(crate) fn cpu_s(&self) -> Result<f64, Fault> {
        let clock = nix::time::clock_getcpuclockid(self.pid)?;
        let now = nix::time::clock_gettime(clock)?;
        Ok(now.tv_sec() as f64 + now.tv_nsec() as f64 / 1e9)
    }

    /// The same of its live threads, in parts.
    pub(crate) fn parts_s(&self) -> Result<Vec<(&'static str, f64)>, Fault> {
        let mut parts = THREADS.map(|(_, what)| (what, 0.0));
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let dir = thread?.path();
            // A thread that ends meanwhile is none of those that work all the time.
            let read = |file| fs::read_to_string(dir.join(file)).unwrap_or_default();
            let (name, ran) = (read("comm"), read("schedstat"));
            let ns: f64 = ran.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0);
            for ((begins, _), (_, sum)) in THREADS.iter().zip(&mut parts) {
                if name.starts_with(begins) {
                    *sum += ns / 1e9;
                }
            }
        }
        Ok(parts.into())
    }

    pub(crate) async fn close(mut self) -> Result<(), Fault> {
        nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGTERM)?;
        self.broker.wait().await?;
        Ok(())
    }
}

async fn connect(socket: PathBuf) -> Result<Channel, Fault> {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Ok(Endpoint::from_static("http://localhost").connect_with_connector(connector).await?)
}

/// Each task is two files to the broker, a listener and a connection; the child inherits the limit.
pub(crate) fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // What is not given shows as calls that fail, and those are counted.
    let _not_given = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
