//! A broker as a process of its own, in a directory of its own, with its operator.
//!
//! Everything waits for an event with a bound; nothing waits for a time.

use std::{
    ffi::OsStr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use mayfly::admin;
use mayfly_proto::mayfly::v1::{self as wire, operator_client::OperatorClient};
use mayfly_verify::{Endpoint, WorkloadClient};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use tonic::{Status, transport::Channel};

/// The longest that anything may take that is expected to happen. The machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The pause between two looks at something that gives no sign by itself.
const BEAT: Duration = Duration::from_millis(10);

/// Waits for `work`, but not for ever.
pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_elapsed) => panic!("waited too long: {what}"),
    }
}

/// Looks again and again until there is something to see.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    within(what, async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(BEAT).await;
        }
    })
    .await
}

/// Who runs these tests.
pub(crate) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// A place for a broker: its data directory, its configuration, its socket and its log.
#[derive(Debug)]
pub(crate) struct Site {
    root: Arc<tempfile::TempDir>,
}

/// A broker that did not start.
#[derive(Debug)]
pub(crate) struct NoStart {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
}

impl Site {
    /// A site whose broker is configured with `config`.
    pub(crate) fn new(config: &str) -> Self {
        let root = tempfile::Builder::new().prefix("mayfly").tempdir().expect("a directory");
        // Other users have to reach the socket; what is private lies in the data directory.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(root.path(), open).expect("it is ours");
        let site = Self { root: Arc::new(root) };
        std::fs::write(site.config(), config).expect("a configuration");
        site
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.root().join("data")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.root().join("mayfly.toml")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.root().join("workload.sock")
    }

    fn log(&self) -> PathBuf {
        self.root().join("broker.log")
    }

    /// What all brokers of this site have written to standard error.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Starts a broker and waits until it serves.
    pub(crate) async fn start(&self) -> Broker {
        match self.try_start(&[]).await {
            Ok(broker) => broker,
            Err(refused) => panic!("the broker does not start: {refused:?}"),
        }
    }

    /// Starts a broker with something in its environment.
    pub(crate) async fn start_with(&self, environment: &[(&str, String)]) -> Broker {
        let before = self.said().len();
        match self.ready(self.spawn_with(&[], environment), before).await {
            Ok(broker) => broker,
            Err(refused) => panic!("the broker does not start: {refused:?}"),
        }
    }

    /// Starts a broker with more arguments.
    pub(crate) async fn try_start(&self, arguments: &[&str]) -> Result<Broker, NoStart> {
        let before = self.said().len();
        self.ready(self.spawn(arguments), before).await
    }

    /// Waits until `child` serves; what it says of a failure stands in the log behind `before`.
    async fn ready(&self, mut child: Child, before: usize) -> Result<Broker, NoStart> {
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let line = within("the broker's first word", lines.next_line()).await.expect("a pipe");
        if line.is_some_and(|line| line.starts_with("ready ")) {
            let pid = i32::try_from(child.id().expect("it runs")).expect("a pid");
            let (data, socket) = (self.data(), self.socket());
            return Ok(Broker { child, pid, data, socket, _root: Arc::clone(&self.root) });
        }
        let code = within("the broker's exit", child.wait()).await.expect("ours").code();
        let said = self.said().get(before..).unwrap_or_default().to_owned();
        Err(NoStart { code, said })
    }

    /// Starts a broker and does not wait for anything.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        self.spawn_with(arguments, &[])
    }

    fn spawn_with(&self, arguments: &[&str], environment: &[(&str, String)]) -> Child {
        let options = std::fs::OpenOptions::new().create(true).append(true).open(self.log());
        Command::new(env!("CARGO_BIN_EXE_mayfly"))
            .arg("up")
            .arg("--data-dir")
            .arg(self.data())
            .arg("--config")
            .arg(self.config())
            .args(arguments)
            .env("MAYFLY_LOG", "info")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::from(options.expect("a log")))
            .kill_on_drop(true)
            .spawn()
            .expect("the program is built")
    }

    /// A `mayfly` command for the broker of this site.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mayfly"));
        command
            .args(arguments)
            .env("MAYFLY_DATA_DIR", self.data())
            .env_remove("SPIFFE_ENDPOINT_SOCKET")
            .env_remove("MAYFLY_TASK")
            .env_remove("MAYFLY_LOG")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs a `mayfly` command to its end.
    pub(crate) async fn mayfly<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        within("a command", self.command(arguments).output()).await.expect("it starts")
    }
}

/// A broker that serves. Killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Broker {
    child: Child,
    pub(crate) pid: i32,
    data: PathBuf,
    socket: PathBuf,
    /// Its directory is removed after it, or it would write into what is being removed.
    _root: Arc<tempfile::TempDir>,
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Whether it was there to be killed, and how it ended, is of no interest any more.
        drop(self.child.start_kill());
        let is_gone = |child: &mut Child| child.try_wait().map_or(true, |exit| exit.is_some());
        while !is_gone(&mut self.child) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Broker {
    /// Its operator API.
    pub(crate) async fn operator(&self) -> Operator {
        Operator(admin::connect(&self.data).await.expect("it serves"))
    }

    /// Its Workload API's address.
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::parse(&format!("unix://{}", self.socket.display())).expect("an absolute path")
    }

    /// Its Workload API, as this very process.
    pub(crate) fn workload(&self) -> WorkloadClient {
        WorkloadClient::new(&self.endpoint())
    }

    /// kill -9, and gone.
    pub(crate) async fn kill(mut self) {
        within("the end of a killed broker", self.child.kill()).await.expect("it is ours");
    }

    /// Asks it to stop, and waits.
    pub(crate) async fn stop(mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(self.pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it is ours");
        within("the broker's exit", self.child.wait()).await.expect("it is ours").code()
    }

    /// Whether it still runs.
    pub(crate) fn lives(&mut self) -> bool {
        self.child.try_wait().expect("it is ours").is_none()
    }
}

/// The operator of one broker.
#[derive(Clone, Debug)]
pub(crate) struct Operator(pub(crate) OperatorClient<Channel>);

/// What a task is begun with, where nothing else is said.
pub(crate) fn task_of(
    profile: &str,
    holder: wire::begin_task_request::Holder,
) -> wire::BeginTaskRequest {
    wire::BeginTaskRequest {
        profile: profile.to_owned(),
        holder: Some(holder),
        ..wire::BeginTaskRequest::default()
    }
}

impl Operator {
    pub(crate) async fn begin(
        &mut self,
        request: wire::BeginTaskRequest,
    ) -> Result<wire::BeginTaskResponse, Status> {
        Ok(self.0.begin_task(request).await?.into_inner())
    }

    async fn order(
        &mut self,
        task: &str,
        order: wire::order_task_request::Order,
    ) -> Result<u32, Status> {
        let request = wire::OrderTaskRequest {
            task: task.to_owned(),
            order: Some(order),
            reason: String::new(),
        };
        Ok(self.0.order_task(request).await?.into_inner().version)
    }

    pub(crate) async fn end(&mut self, task: &str, cause: &str) -> Result<(), Status> {
        let end = wire::order_task_request::Order::End(cause.to_owned());
        self.order(task, end).await.map(drop)
    }

    pub(crate) async fn quarantine(&mut self, task: &str) -> Result<u32, Status> {
        self.order(task, wire::order_task_request::Order::Quarantine(true)).await
    }

    pub(crate) async fn release(&mut self, task: &str) -> Result<u32, Status> {
        self.order(task, wire::order_task_request::Order::Release(true)).await
    }

    pub(crate) async fn amend(&mut self, task: &str, intent: &str) -> Result<u32, Status> {
        self.order(task, wire::order_task_request::Order::Amend(intent.to_owned())).await
    }

    pub(crate) async fn revoke(
        &mut self,
        target: wire::revoke_request::Target,
    ) -> Result<wire::RevokeResponse, Status> {
        let request =
            wire::RevokeRequest { target: Some(target), dry_run: false, reason: String::new() };
        Ok(self.0.revoke(request).await?.into_inner())
    }

    pub(crate) async fn show(
        &mut self,
        task: &str,
    ) -> Result<(wire::TaskView, Vec<wire::Entry>), Status> {
        let request = wire::ShowTaskRequest { task: task.to_owned() };
        let answer = self.0.show_task(request).await?.into_inner();
        Ok((answer.task.unwrap_or_default(), answer.timeline))
    }

    pub(crate) async fn list(&mut self, ended: bool) -> Result<Vec<wire::TaskView>, Status> {
        let request = wire::ListTasksRequest { ended, profile: String::new() };
        Ok(self.0.list_tasks(request).await?.into_inner().tasks)
    }

    pub(crate) async fn status(&mut self) -> Result<wire::GetStatusResponse, Status> {
        Ok(self.0.get_status(wire::GetStatusRequest {}).await?.into_inner())
    }
}
