//! The stage of `mayfly demo` and of the bench `end_to_refusal`: a broker, a service that verifies, and
//! a workload that is killed, each a process of its own.
//!
//! The workload is two processes. The first is the task's holder and does nothing; the second descends
//! from it, holds the credentials, and survives the first. So the survivor is what a thief would be:
//! it has a valid certificate, a valid token, an open stream and a live connection, and none of them
//! may work a moment after the holder has died.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use mayfly_proto::mayfly::v1 as wire;
use mayfly_verify::{
    Authorize, Endpoint, Follower, InvalidEndpoint, Party, Patience, WorkloadClient, WorkloadError,
    X509Source,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

use crate::{admin, clock};

/// The longest that any step may take. Nothing here takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(10);
/// The audience of the demonstration's token.
const AUDIENCE: &str = "demo";
/// A pause between two tries of a thing that is measured in milliseconds.
const BEAT: Duration = Duration::from_micros(200);

/// Waits for a beat. On a thread, because tokio's timers count whole milliseconds, and two of those
/// would be half of what is measured.
async fn beat() {
    // Cannot be cancelled or panic; if it were, the next try would only come early.
    drop(tokio::task::spawn_blocking(|| std::thread::sleep(BEAT)).await);
}

/// What went wrong on stage.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The system.
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
    /// The operator API.
    #[error(transparent)]
    Admin(#[from] admin::AdminError),
    /// The Workload API.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// TLS.
    #[error("tls: {0}")]
    Tls(#[from] rustls::Error),
    /// Something that should have happened did not.
    #[error("{0}")]
    Missing(&'static str),
}

impl From<InvalidEndpoint> for StageError {
    fn from(invalid: InvalidEndpoint) -> Self {
        Self::Workload(invalid.into())
    }
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> StageError {
    move |error| StageError::Io(what, error)
}

/// What a killed task leaves behind, in milliseconds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Round {
    /// From the order to begin the task until its workload had an X.509-SVID in hand.
    pub begin_to_svid_ms: f64,
    /// From the kill until the survivor's Workload API stream was closed.
    pub stream_closed_ms: f64,
    /// … until `ValidateJWTSVID` refused its token.
    pub token_refused_ms: f64,
    /// … until the service refused its certificate on a new connection.
    pub new_connection_refused_ms: f64,
    /// … until the service cut the connection that was open.
    pub live_connection_cut_ms: f64,
}

/// A broker and a verifying service, ready for rounds.
#[derive(Debug)]
pub struct Stage {
    dir: PathBuf,
    program: PathBuf,
    broker: Child,
    service: Service,
}

impl Stage {
    /// Starts a broker and a service in `dir`. `program` is started as `up` and as `demo-workload`.
    ///
    /// # Errors
    /// [`StageError`] says which step failed.
    pub async fn start(program: &Path, dir: &Path) -> Result<Self, StageError> {
        let uid = rustix::process::geteuid().as_raw();
        let config = dir.join("mayfly.toml");
        std::fs::write(&config, configuration(uid)).map_err(io("cannot write a configuration"))?;
        let broker = start_broker(program, dir, &config).await?;
        let service = Service::start(dir).await?;
        Ok(Self { dir: dir.to_owned(), program: program.to_owned(), broker, service })
    }

    /// The Workload API's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("workload.sock")
    }

    /// A task begins, works, and is killed; who notices, and when?
    ///
    /// # Errors
    /// [`StageError`] says which step failed.
    pub async fn round(&mut self) -> Result<Round, StageError> {
        let mut troupe = Troupe::start(&self.program, &self.dir, self.service.address).await?;
        let began = clock::monotonic_ns();
        begin(&self.dir, troupe.pid).await?;
        troupe.say("go").await?;
        let svid = troupe.hear(|cue| matches!(cue, Cue::Svid { .. })).await?;
        let heard = troupe.hear(|cue| matches!(cue, Cue::Token { .. })).await?;
        let Cue::Token { token } = heard else {
            return Err(StageError::Missing("the workload has no token"));
        };
        let connected = |cue: &Cue| matches!(cue, Cue::Connected { .. });
        troupe.hear(connected).await?;
        // The service has seen a live connection of this workload by now; older news is another's.
        self.service.forget_news();
        let watch = self.service.client.clone();
        watch.validate_jwt(AUDIENCE, &token).await?;

        let killed = troupe.kill()?;
        let refused = refused_token(&watch, &token);
        let cut = self.service.cut();
        let told = troupe.told();
        let (token_refused, cut, told) = tokio::join!(refused, cut, told);
        let (closed, turned_away) = told?;
        let since = |at: u64| ms(at.saturating_sub(killed));
        Ok(Round {
            begin_to_svid_ms: ms(svid.at().saturating_sub(began)),
            stream_closed_ms: since(closed),
            token_refused_ms: since(token_refused?),
            new_connection_refused_ms: since(turned_away),
            live_connection_cut_ms: since(cut?),
        })
    }

    /// Ends the broker and waits for it.
    ///
    /// # Errors
    /// If it cannot be ended.
    pub async fn strike(mut self) -> Result<(), StageError> {
        let pid = self.broker.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.ok_or(StageError::Missing("the broker has ended by itself"))?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)
            .map_err(|errno| io("cannot end the broker")(errno.into()))?;
        let ended = timeout(PATIENCE, self.broker.wait()).await;
        ended
            .map_err(|_elapsed| StageError::Missing("the broker does not end"))?
            .map_err(io("cannot wait for the broker"))?;
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a measurement of milliseconds")]
fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

fn configuration(uid: u32) -> String {
    format!(
        r#"trust_domain = "example.org"

[[profile]]
name = "workload"
path = "/demo/workload"
selectors = ["unix:uid:{uid}"]
owner = "demo"
binding = "lineage"

[[profile]]
name = "service"
path = "/demo/service"
selectors = []
owner = "demo"
binding = "socket"
"#
    )
}

/// Starts `program` as a broker with its state in `dir`, and waits until it serves.
///
/// # Errors
/// [`StageError`] says what it said instead.
pub async fn start_broker(program: &Path, dir: &Path, config: &Path) -> Result<Child, StageError> {
    let mut broker = Command::new(program)
        .args(["up", "--data-dir"])
        .arg(dir)
        .arg("--config")
        .arg(config)
        .env("MAYFLY_LOG", std::env::var("MAYFLY_LOG").unwrap_or_else(|_| "error".to_owned()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(io("cannot start a broker"))?;
    let stdout = broker.stdout.take().ok_or(StageError::Missing("the broker has no output"))?;
    let mut lines = BufReader::new(stdout).lines();
    let ready = timeout(PATIENCE, lines.next_line()).await;
    let ready = ready.map_err(|_elapsed| StageError::Missing("the broker does not start"))?;
    match ready.map_err(io("cannot read the broker's output"))? {
        Some(line) if line.starts_with("ready ") => Ok(broker),
        _ => Err(StageError::Missing("the broker did not start; see what it says above")),
    }
}

async fn begin(dir: &Path, pid: i32) -> Result<(), StageError> {
    begin_as(dir, "workload", wire::begin_task_request::Holder::LineagePid(pid)).await?;
    Ok(())
}

async fn begin_as(
    dir: &Path,
    profile: &str,
    holder: wire::begin_task_request::Holder,
) -> Result<wire::BeginTaskResponse, StageError> {
    let mut operator = admin::connect(dir).await?;
    let request = wire::BeginTaskRequest {
        profile: profile.to_owned(),
        holder: Some(holder),
        intent: "demonstration".to_owned(),
        ..wire::BeginTaskRequest::default()
    };
    let begun = operator.begin_task(request).await.map_err(admin::AdminError::from)?;
    Ok(begun.into_inner())
}

/// Asks whether the token is good until it is not; the instant of the first No.
async fn refused_token(client: &WorkloadClient, token: &str) -> Result<u64, StageError> {
    let asking = async {
        loop {
            if client.validate_jwt(AUDIENCE, token).await.is_err() {
                return clock::monotonic_ns();
            }
            beat().await;
        }
    };
    timeout(PATIENCE, asking)
        .await
        .map_err(|_elapsed| StageError::Missing("the token is still good"))
}

/// A service in Rust that verifies its callers with `mayfly-verify`.
#[derive(Debug)]
struct Service {
    address: std::net::SocketAddr,
    client: WorkloadClient,
    cuts: mpsc::Receiver<u64>,
    _source: X509Source,
    _follower: Follower,
    _serving: JoinSet<()>,
}

impl Service {
    async fn start(dir: &Path) -> Result<Self, StageError> {
        let socket = wire::begin_task_request::Holder::Socket(true);
        let begun = begin_as(dir, "service", socket).await?;
        let endpoint = Endpoint::parse(&format!("unix://{}", begun.socket))?;
        let client = WorkloadClient::new(&endpoint);
        let source = client.watch_x509();
        source.ready().await.ok_or(StageError::Missing("the service has no identity"))?;
        let follower = Follower::connect(&endpoint, Patience::default());
        follower.ready().await;
        let party = Party::new(source.held(), Authorize::Any, Arc::clone(follower.view()));
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(io("cannot listen"))?;
        let address = listener.local_addr().map_err(io("cannot listen"))?;
        let (cut, cuts) = mpsc::channel(64);
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, party, cut));
        let (_source, _follower, _serving) = (source, follower, serving);
        Ok(Self { address, client, cuts, _source, _follower, _serving })
    }

    fn forget_news(&mut self) {
        while self.cuts.try_recv().is_ok() {}
    }

    /// The instant at which the service cut a live connection.
    async fn cut(&mut self) -> Result<u64, StageError> {
        let cut = timeout(PATIENCE, self.cuts.recv()).await;
        cut.ok().flatten().ok_or(StageError::Missing("the live connection goes on"))
    }
}

async fn serve(listener: TcpListener, party: Party, cut: mpsc::Sender<u64>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(echo(stream, party.clone(), cut.clone()));
    }
}

/// Answers each byte with itself until the peer leaves or is cut off.
async fn echo(stream: TcpStream, party: Party, cut: mpsc::Sender<u64>) {
    let Ok(mut stream) = party.accept(stream, clock::now()).await else { return };
    let mut byte = [0];
    while stream.read_exact(&mut byte).await.is_ok() && stream.write_all(&byte).await.is_ok() {}
    if stream.refused().is_some() {
        let _nobody_listens_between_rounds = cut.try_send(clock::monotonic_ns());
    }
}

/// What the survivor says, a line of JSON each.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "cue", rename_all = "snake_case")]
enum Cue {
    /// It has an X.509-SVID.
    Svid { at: u64 },
    /// It has a token.
    Token { token: String },
    /// It has a live connection that works.
    Connected { at: u64 },
    /// Its Workload API stream was closed.
    StreamClosed { at: u64, code: String },
    /// It was turned away on a new connection.
    TurnedAway { at: u64 },
}

impl Cue {
    const fn at(&self) -> u64 {
        match self {
            Self::Svid { at }
            | Self::Connected { at }
            | Self::StreamClosed { at, .. }
            | Self::TurnedAway { at } => *at,
            Self::Token { .. } => 0,
        }
    }
}

/// The holder and, through its pipes, the survivor.
#[derive(Debug)]
struct Troupe {
    holder: Child,
    pid: i32,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Troupe {
    async fn start(
        program: &Path,
        dir: &Path,
        service: std::net::SocketAddr,
    ) -> Result<Self, StageError> {
        let mut holder = Command::new(program)
            .args(["demo-workload", "--service", &service.to_string()])
            .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}/workload.sock", dir.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(io("cannot start a workload"))?;
        let pid = holder.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.ok_or(StageError::Missing("the workload has no pid"))?;
        let stdin = holder.stdin.take().ok_or(StageError::Missing("the workload has no input"))?;
        let stdout =
            holder.stdout.take().ok_or(StageError::Missing("the workload has no output"))?;
        let mut troupe = Self { holder, pid, stdin, lines: BufReader::new(stdout).lines() };
        // The survivor is up and waits for its cue, so that what is measured is not a process's start.
        troupe.line().await?;
        Ok(troupe)
    }

    async fn say(&mut self, word: &str) -> Result<(), StageError> {
        let line = format!("{word}\n");
        self.stdin.write_all(line.as_bytes()).await.map_err(io("the workload does not listen"))
    }

    async fn line(&mut self) -> Result<String, StageError> {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.map_err(|_elapsed| StageError::Missing("the workload says nothing"))?;
        line.map_err(io("cannot hear the workload"))?
            .ok_or(StageError::Missing("the workload left"))
    }

    async fn hear(&mut self, wanted: impl Fn(&Cue) -> bool) -> Result<Cue, StageError> {
        loop {
            let cue = serde_json::from_str(&self.line().await?);
            let cue = cue.map_err(|_not_json| StageError::Missing("the workload stammers"))?;
            if wanted(&cue) {
                return Ok(cue);
            }
        }
    }

    /// Kills the holder, and says when.
    fn kill(&mut self) -> Result<u64, StageError> {
        let at = clock::monotonic_ns();
        self.holder.start_kill().map_err(io("cannot kill the workload"))?;
        Ok(at)
    }

    /// When its stream was closed, and when it was turned away.
    async fn told(&mut self) -> Result<(u64, u64), StageError> {
        // The holder is reaped by whoever started it, which is what a supervisor would do.
        let _exit = self.holder.wait().await;
        let (mut closed, mut turned_away) = (None, None);
        loop {
            if let (Some(closed), Some(turned_away)) = (closed, turned_away) {
                return Ok((closed, turned_away));
            }
            let told = |cue: &Cue| matches!(cue, Cue::StreamClosed { .. } | Cue::TurnedAway { .. });
            match self.hear(told).await? {
                Cue::StreamClosed { at, .. } => closed = Some(at),
                Cue::TurnedAway { at } => turned_away = Some(at),
                Cue::Svid { .. } | Cue::Token { .. } | Cue::Connected { .. } => {}
            }
        }
    }
}

/// The holder: starts the survivor and waits, for ever as far as it knows.
///
/// # Errors
/// If the survivor cannot be started.
pub async fn hold(program: &Path, service: &str) -> Result<(), StageError> {
    let mut survivor = Command::new(program)
        .args(["demo-workload", "--survivor", "--service", service])
        .spawn()
        .map_err(io("cannot start the survivor"))?;
    survivor.wait().await.map_err(io("cannot wait for the survivor"))?;
    Ok(())
}

/// The survivor: fetches, connects, and reports how it loses everything. Ends when its input does.
///
/// # Errors
/// [`StageError`] says which step failed.
pub async fn survive(service: &str) -> Result<(), StageError> {
    say_line("ready").await?;
    let mut cues = BufReader::new(tokio::io::stdin()).lines();
    cues.next_line().await.map_err(io("no cue"))?;
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
    let turned_away = turned_away(&party, service);
    let work = async {
        // The live connection is used all the time; its end is the service's to report.
        while exchange(&mut live).await.is_ok() {
            beat().await;
        }
        std::future::pending::<()>().await;
    };
    let left = async { while let Ok(Some(_)) = cues.next_line().await {} };
    let told = async { tokio::try_join!(closed, turned_away) };
    tokio::select! {
        told = told => { told?; }
        () = work => {}
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
