//! Workloads as processes of their own: this very test binary, entered again by another door.
//!
//! An actor reads one JSON line for each thing that it is asked, and answers with one; what its open
//! stream says comes in between. So the test decides when something is done, and the kernel, the
//! broker and the Workload API's client see a process that did it.

use std::{
    collections::VecDeque,
    io::Write as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use mayfly_proto::spiffe::workload::{self as spiffe, spiffe_workload_api_client as api};
use mayfly_verify::{Endpoint, WorkloadClient, WorkloadError, X509Context};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinSet,
};
use tonic::Status;

use crate::common::within;

const ROLE: &str = "MAYFLY_TEST_ROLE";
/// Distinguishes an actor's words from those of the test harness around it.
const MARK: char = '@';

/// What an actor may be asked.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Ask {
    /// One call for an X.509-SVID.
    X509,
    /// One call for a token.
    Jwt { audience: String },
    /// Open the X.509 stream and report what it says.
    Watch,
    /// One call of the Task API or the operator's at the socket that the environment names.
    Call(Deed),
    /// Let a child of yours do it, and tell what it said.
    Child(Box<Self>),
}

/// What an actor may try at the Task API, and at the operator's.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Deed {
    Begin { profile: String },
    Delegate { parent: String, profile: String },
    Get { task: String },
    Heartbeat { task: String },
    Amend { task: String },
    End { task: String },
    List,
    Quarantine { task: String },
    Release { task: String },
    Profiles,
}

/// What an actor says.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Said {
    /// It is there.
    Here { pid: i32 },
    /// An X.509-SVID.
    X509(Svid),
    /// A token.
    Jwt { spiffe_id: String, token: String },
    /// It was done: the task that it was about, or how many there are.
    Done(String),
    /// No.
    Refused(No),
    /// Its stream brought an X.509-SVID.
    Stream(Svid),
    /// Its stream ended.
    StreamEnded(No),
}

/// A refusal.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct No {
    pub(crate) code: i32,
    pub(crate) message: String,
}

/// An X.509-SVID as its holder sees it; the key stays with the holder.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Svid {
    pub(crate) spiffe_id: String,
    pub(crate) serial: String,
    pub(crate) not_after_ms: u64,
    pub(crate) federated: Vec<String>,
    chain: Vec<String>,
    bundle: Vec<String>,
}

impl Svid {
    pub(crate) fn of(context: &X509Context) -> Self {
        let svid = context.default_svid().expect("never empty");
        let text = |der: &[u8]| BASE64_STANDARD.encode(der);
        Self {
            spiffe_id: svid.spiffe_id.to_string(),
            serial: svid.leaf.serial.map(|serial| serial.to_string()).unwrap_or_default(),
            not_after_ms: svid.leaf.not_after.0,
            federated: context.federated.keys().map(ToString::to_string).collect(),
            chain: svid.chain.iter().map(|der| text(der)).collect(),
            bundle: svid.bundle.authorities.iter().map(|der| text(der)).collect(),
        }
    }

    /// The task that the SPIFFE ID names.
    pub(crate) fn task(&self) -> String {
        self.spiffe_id.rsplit('/').next().unwrap_or_default().to_owned()
    }

    pub(crate) fn leaf(&self) -> Vec<u8> {
        BASE64_STANDARD.decode(self.chain.first().expect("a leaf")).expect("our own base64")
    }

    pub(crate) fn bundle(&self) -> Vec<Vec<u8>> {
        let der = |text: &String| BASE64_STANDARD.decode(text).expect("our own base64");
        self.bundle.iter().map(der).collect()
    }
}

fn no(status: &Status) -> No {
    No { code: status.code() as i32, message: status.message().to_owned() }
}

// ---- the actor's side ----

/// The door. Does nothing when the tests are run as tests.
#[test]
#[ignore = "the body of the workload processes that the other tests start"]
fn play() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    match std::env::var(ROLE).as_deref() {
        Ok("holder") => runtime.block_on(hold()),
        Ok(_actor) => runtime.block_on(act()),
        Err(_unset) => {}
    }
}

fn say(said: &Said) {
    let line = serde_json::to_string(said).expect("it can be written");
    let mut stdout = std::io::stdout().lock();
    // The harness may have begun a line. Nobody may be listening any more.
    drop(writeln!(stdout, "\n{MARK}{line}").and_then(|()| stdout.flush()));
}

/// Starts an actor on its own input and output, and waits to be told how to leave.
async fn hold() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut well = signal(SignalKind::user_defined1()).expect("a signal");
    let mut badly = signal(SignalKind::user_defined2()).expect("a signal");
    let mut actor = itself("actor").spawn().expect("it starts");
    let code = tokio::select! {
        _ = well.recv() => 0,
        _ = badly.recv() => 3,
        _ = actor.wait() => 0,
    };
    std::process::exit(code);
}

async fn act() {
    let client = WorkloadClient::from_env().expect("an endpoint");
    say(&Said::Here { pid: i32::try_from(std::process::id()).expect("a pid") });
    let mut streams = JoinSet::new();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line).expect("the test asks well") {
            Ask::Watch => drop(streams.spawn(watch())),
            Ask::Child(ask) => say(&child(&ask).await),
            Ask::Call(deed) => {
                let done = crate::api::attempt(&deed).await;
                say(&done.map_or_else(|status| Said::Refused(no(&status)), Said::Done));
            }
            ask @ (Ask::X509 | Ask::Jwt { .. }) => say(&call(&client, &ask).await),
        }
    }
}

async fn call(client: &WorkloadClient, ask: &Ask) -> Said {
    let answer = match ask {
        Ask::Jwt { audience } => client.fetch_jwt(&[audience], None).await.map(|tokens| {
            let first = tokens.into_iter().next().expect("never empty");
            Said::Jwt { spiffe_id: first.spiffe_id.to_string(), token: first.token }
        }),
        Ask::X509 | Ask::Watch | Ask::Call(_) | Ask::Child(_) => {
            client.fetch_x509().await.map(|context| Said::X509(Svid::of(&context)))
        }
    };
    answer.unwrap_or_else(|error| match error {
        WorkloadError::Status(status) => Said::Refused(no(&status)),
        other @ (WorkloadError::Endpoint(_) | WorkloadError::Svid(_) | WorkloadError::Empty(_)) => {
            Said::Refused(No { code: -1, message: other.to_string() })
        }
    })
}

async fn watch() {
    let mut stream = X509Stream::open(&Endpoint::from_env().expect("an endpoint"));
    loop {
        match stream.next().await {
            Ok(context) => say(&Said::Stream(Svid::of(&context))),
            Err(status) => return say(&Said::StreamEnded(no(&status))),
        }
    }
}

async fn child(ask: &Ask) -> Said {
    let mut command = itself("actor");
    let mut actor = Actor::raise(command.stdin(Stdio::piped()).stdout(Stdio::piped())).await;
    actor.ask(ask).await
}

fn itself(role: &str) -> Command {
    door(&std::env::current_exe().expect("it runs"), role)
}

fn door(program: &Path, role: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(["actor::play", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(ROLE, role);
    command
}

// ---- the test's side ----

/// How an actor is started.
#[derive(Debug, Default)]
pub(crate) struct Casting {
    /// Another program file than this one, a copy of it.
    pub(crate) program: Option<PathBuf>,
    /// Another user.
    pub(crate) uid: Option<u32>,
    /// Whether it is the child of a process that does nothing but live and die.
    pub(crate) held: bool,
}

/// A workload process. It leaves when it is dropped.
#[derive(Debug)]
pub(crate) struct Actor {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    heard: VecDeque<Said>,
    /// Who was started: the actor, or the process that holds it.
    pub(crate) pid: i32,
}

impl Actor {
    /// A workload at `socket`.
    pub(crate) async fn start(socket: &Path) -> Self {
        Self::cast(socket, Casting::default()).await
    }

    pub(crate) async fn cast(socket: &Path, casting: Casting) -> Self {
        let own = std::env::current_exe().expect("it runs");
        let program = casting.program.unwrap_or(own);
        let mut command = door(&program, if casting.held { "holder" } else { "actor" });
        command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", socket.display()));
        command.env(crate::api::SOCKET, socket.with_file_name("data").join("tasks.sock"));
        if let Some(uid) = casting.uid {
            command.uid(uid).gid(uid);
        }
        Self::raise(command.stdin(Stdio::piped()).stdout(Stdio::piped())).await
    }

    async fn raise(command: &mut Command) -> Self {
        let mut child = command.kill_on_drop(true).spawn().expect("it starts");
        let stdin = child.stdin.take().expect("piped");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let pid = i32::try_from(child.id().expect("it runs")).expect("a pid");
        let mut actor = Self { child, stdin, lines, heard: VecDeque::new(), pid };
        actor.hear("a greeting", |said| matches!(said, Said::Here { .. })).await;
        actor
    }

    async fn hear(&mut self, what: &str, wanted: impl Fn(&Said) -> bool) -> Said {
        if let Some(at) = self.heard.iter().position(&wanted) {
            return self.heard.remove(at).expect("just found");
        }
        loop {
            let line = within(what, self.lines.next_line()).await.expect("a pipe");
            let line = line.unwrap_or_else(|| panic!("the actor left before {what}"));
            let Some(json) = line.strip_prefix(MARK) else { continue };
            let said = serde_json::from_str(json).expect("the actor speaks well");
            if wanted(&said) {
                return said;
            }
            self.heard.push_back(said);
        }
    }

    async fn tell(&mut self, ask: &Ask) {
        let line = serde_json::to_string(ask).expect("it can be written") + "\n";
        self.stdin.write_all(line.as_bytes()).await.expect("the actor listens");
    }

    pub(crate) async fn ask(&mut self, ask: &Ask) -> Said {
        self.tell(ask).await;
        let answers = |said: &Said| {
            matches!(said, Said::X509(_) | Said::Jwt { .. } | Said::Done(_) | Said::Refused(_))
        };
        self.hear("an answer", answers).await
    }

    pub(crate) async fn x509(&mut self) -> Result<Svid, No> {
        as_svid(self.ask(&Ask::X509).await)
    }

    /// What becomes of one call of the Task API: a refusal is told by its code.
    pub(crate) async fn call(&mut self, deed: Deed) -> Result<String, String> {
        match self.ask(&Ask::Call(deed)).await {
            Said::Done(about) => Ok(about),
            Said::Refused(no) => Err(no.message.split(':').next().unwrap_or_default().to_owned()),
            other => panic!("{other:?} is no answer"),
        }
    }

    /// The same, by a process that this one starts.
    pub(crate) async fn child_x509(&mut self) -> Result<Svid, No> {
        as_svid(self.ask(&Ask::Child(Box::new(Ask::X509))).await)
    }

    pub(crate) async fn jwt(&mut self, audience: &str) -> Result<String, No> {
        match self.ask(&Ask::Jwt { audience: audience.to_owned() }).await {
            Said::Jwt { token, .. } => Ok(token),
            Said::Refused(no) => Err(no),
            other => panic!("{other:?} is no answer"),
        }
    }

    /// Opens a stream and waits for its first message.
    pub(crate) async fn watch(&mut self) -> Svid {
        self.tell(&Ask::Watch).await;
        match self.hear("a first message", |said| matches!(said, Said::Stream(_))).await {
            Said::Stream(svid) => svid,
            other => panic!("{other:?} is no message"),
        }
    }

    /// Waits for the end of the stream.
    pub(crate) async fn stream_end(&mut self) -> No {
        match self.hear("the stream's end", |said| matches!(said, Said::StreamEnded(_))).await {
            Said::StreamEnded(no) => no,
            other => panic!("{other:?} is no end"),
        }
    }

    /// Sends `signal` to the process that was started.
    pub(crate) fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), signal).expect("it is ours");
    }

    /// Reaps the process that was started.
    pub(crate) async fn reap(&mut self) -> ExitStatus {
        within("the process's exit", self.child.wait()).await.expect("it is ours")
    }

    /// kill -9, and gone.
    pub(crate) async fn kill(mut self) {
        within("the process's end", self.child.kill()).await.expect("it is ours");
    }
}

fn as_svid(said: Said) -> Result<Svid, No> {
    match said {
        Said::X509(svid) => Ok(svid),
        Said::Refused(no) => Err(no),
        other => panic!("{other:?} is no answer"),
    }
}

/// A copy of this program, made by another process: while we hold a program open for writing, a
/// process that another test starts would hold it too, and the kernel runs nothing that is written.
pub(crate) async fn copy_of(program: &Path, to: &Path) {
    let copied = Command::new("cp").arg(program).arg(to).status().await;
    assert!(copied.expect("cp starts").success(), "a copy of the program");
}

/// The X.509 stream, without the reconnection that [`mayfly_verify::X509Source`] adds.
#[derive(Debug)]
pub(crate) struct X509Stream {
    endpoint: Endpoint,
    stream: Option<tonic::Streaming<spiffe::X509svidResponse>>,
}

impl X509Stream {
    pub(crate) fn open(endpoint: &Endpoint) -> Self {
        Self { endpoint: endpoint.clone(), stream: None }
    }

    /// The next message, or how the stream ended.
    pub(crate) async fn next(&mut self) -> Result<X509Context, Status> {
        if self.stream.is_none() {
            let mut client = api::SpiffeWorkloadApiClient::new(self.endpoint.channel());
            let request = with_header(spiffe::X509svidRequest {});
            self.stream = Some(client.fetch_x509svid(request).await?.into_inner());
        }
        let stream = self.stream.as_mut().expect("just opened");
        let message = stream.message().await?;
        let message = message.ok_or_else(|| Status::ok("the stream ended without a status"))?;
        X509Context::parse(message).map_err(|invalid| Status::internal(invalid.to_string()))
    }
}

/// A request as SPIFFE wants it.
pub(crate) fn with_header<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let yes = tonic::metadata::MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", yes);
    request
}
