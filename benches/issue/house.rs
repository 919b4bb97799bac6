//! A real broker in a process of its own, and workloads that speak to it over its sockets.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use mayfly::{admin, stage};
use mayfly_proto::mayfly::v1::{
    BeginTaskRequest, OrderTaskRequest, begin_task_request::Holder,
    operator_client::OperatorClient, order_task_request::Order,
};
use mayfly_verify::{Endpoint, WorkloadClient};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::process::Child;
use tonic::transport::Channel;

use crate::measure::{Fault, program};

/// Tasks are reached by sockets of their own, so one process of clients can hold many of them.
const CONFIGURATION: &str = r#"trust_domain = "example.org"

[workload]
task_sockets = "TASK_SOCKETS"

[[profile]]
name = "bench"
path = "/agents/bench"
selectors = []
owner = "bench"
binding = "socket"
"#;

/// The broker and its operator.
pub(crate) struct House {
    broker: Child,
    pid: Pid,
    _sockets: TempDir,
    operator: OperatorClient<Channel>,
}

/// A task and whoever reaches its socket.
#[derive(Clone)]
pub(crate) struct Guest {
    task: String,
    pub(crate) client: WorkloadClient,
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
        let sockets = tempfile::Builder::new().prefix("mayfly-issue").tempdir_in(sockets)?;
        let text = CONFIGURATION.replace("TASK_SOCKETS", &sockets.path().to_string_lossy());
        fs::write(&config, text)?;
        let broker = stage::start_broker(&program(), dir, &config).await?;
        let pid = broker.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = Pid::from_raw(pid.ok_or("the broker has no pid")?);
        let operator = admin::connect(dir).await?;
        Ok(Self { broker, pid, _sockets: sockets, operator })
    }

    /// Processor time of the broker.
    pub(crate) fn cpu_ns(&self) -> Result<f64, Fault> {
        process_cpu_ns(self.pid)
    }

    /// Processor time of the broker's live threads whose names begin like this; nanoseconds.
    pub(crate) fn threads_ns(&self, name: &str) -> Result<f64, Fault> {
        let mut total = 0.0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let dir = thread?.path();
            // A thread that ends meanwhile is none of those that work all the time.
            let read = |file| fs::read_to_string(dir.join(file)).unwrap_or_default();
            if read("comm").starts_with(name) {
                let ran = read("schedstat");
                total += ran.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0);
            }
        }
        Ok(total)
    }

    /// Begins a task. Its client has not connected yet.
    pub(crate) async fn begin(&self) -> Result<Guest, Fault> {
        let request = BeginTaskRequest {
            profile: "bench".into(),
            holder: Some(Holder::Socket(true)),
            ..BeginTaskRequest::default()
        };
        let begun = self.operator.clone().begin_task(request).await?.into_inner();
        let endpoint = Endpoint::parse(&format!("unix://{}", begun.socket))?;
        appear(begun.socket.into()).await?;
        Ok(Guest { task: begun.task, client: WorkloadClient::new(&endpoint) })
    }

    pub(crate) async fn end(&self, guest: &Guest) -> Result<(), Fault> {
        let order = Some(Order::End("completed".into()));
        let request = OrderTaskRequest { task: guest.task.clone(), order, reason: String::new() };
        self.operator.clone().order_task(request).await?;
        Ok(())
    }

    pub(crate) async fn close(mut self) -> Result<(), Fault> {
        nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGTERM)?;
        self.broker.wait().await?;
        Ok(())
    }
}

/// Processor time of a process, all threads, those that ended included; nanoseconds.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a short run")]
pub(crate) fn process_cpu_ns(pid: Pid) -> Result<f64, Fault> {
    let clock = nix::time::clock_getcpuclockid(pid)?;
    let now = nix::time::clock_gettime(clock)?;
    Ok(now.tv_sec() as f64 * 1e9 + now.tv_nsec() as f64)
}

/// The socket of a task appears a moment after the task was acknowledged.
async fn appear(socket: PathBuf) -> Result<(), Fault> {
    for _ in 0..5_000 {
        if socket.exists() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Err("the socket did not appear".into())
}
