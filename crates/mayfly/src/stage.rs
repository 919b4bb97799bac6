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
    time::Duration,
};

use mayfly_proto::mayfly::v1 as wire;
use mayfly_verify::{InvalidEndpoint, WorkloadClient, WorkloadError};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::{
    admin, clock,
    stage::{
        service::Service,
        troupe::{Cue, Troupe},
    },
};

mod service;
mod survivor;
mod troupe;

pub use survivor::{hold, survive};

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
    pub token_refused_ms: Option<f64>,
    /// … until the service refused its certificate on a new connection.
    pub new_connection_refused_ms: Option<f64>,
    /// … until the service cut the connection that was open.
    pub live_connection_cut_ms: f64,
}

/// What the survivor tries again and again, until it may not. Each try costs the machine something that
/// the broker then lacks, so a bench tries one thing at a time.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// Both.
    All,
    /// New connections.
    Connection,
    /// Its token.
    Token,
}

impl Probe {
    const fn connects(self) -> bool {
        matches!(self, Self::All | Self::Connection)
    }

    const fn shows_token(self) -> bool {
        matches!(self, Self::All | Self::Token)
    }
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

    /// The broker's data directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A task begins, works, and is killed; who notices, and when?
    ///
    /// # Errors
    /// [`StageError`] says which step failed.
    pub async fn round(&mut self, probe: Probe) -> Result<Round, StageError> {
        let mut troupe = Troupe::start(&self.program, &self.dir, self.service.address()).await?;
        let began = clock::monotonic_ns();
        begin(&self.dir, troupe.pid()).await?;
        troupe.go(probe).await?;
        let svid = troupe.hear(|cue| matches!(cue, Cue::Svid { .. })).await?;
        let heard = troupe.hear(|cue| matches!(cue, Cue::Token { .. })).await?;
        let Cue::Token { token } = heard else {
            return Err(StageError::Missing("the workload has no token"));
        };
        let connected = |cue: &Cue| matches!(cue, Cue::Connected { .. });
        troupe.hear(connected).await?;
        // The service has seen a live connection of this workload by now; older news is another's.
        self.service.forget_news();
        let watch = self.service.client().clone();
        watch.validate_jwt(AUDIENCE, &token).await?;

        let killed = troupe.kill()?;
        let refused = async {
            if !probe.shows_token() {
                return Ok(None);
            }
            refused_token(&watch, &token).await.map(Some)
        };
        let cut = self.service.cut();
        let told = troupe.told(probe);
        let (token_refused, cut, told) = tokio::join!(refused, cut, told);
        let (closed, turned_away) = told?;
        let since = |at: u64| ms(at.saturating_sub(killed));
        Ok(Round {
            begin_to_svid_ms: ms(svid.at().saturating_sub(began)),
            stream_closed_ms: since(closed),
            token_refused_ms: token_refused?.map(since),
            new_connection_refused_ms: turned_away.map(since),
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

[[profile]]
name = "crowd"
path = "/demo/crowd"
selectors = ["unix:uid:{uid}"]
owner = "demo"
binding = "lease"
"#
    )
}

/// Starts `program` as a broker with its state in `dir`, and waits until it serves.
///
/// # Errors
/// [`StageError`] says what it said instead.
pub async fn start_broker(program: &Path, dir: &Path, config: &Path) -> Result<Child, StageError> {
    start_broker_within(PATIENCE, program, (dir, config)).await
}

/// The same for a broker that has much to remember, which may take as long as `patience`.
///
/// # Errors
/// [`StageError`] says what it said instead.
pub async fn start_broker_within(
    patience: Duration,
    program: &Path,
    (dir, config): (&Path, &Path),
) -> Result<Child, StageError> {
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
    let ready = timeout(patience, lines.next_line()).await;
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
