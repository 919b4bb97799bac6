//! The workload as the stage sees it: a holder that can be killed, and what its survivor says.

use std::{net::SocketAddr, path::Path, process::Stdio};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::{PATIENCE, Probe, StageError, io};
use crate::clock;

/// What the survivor says, a line of JSON each.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "cue", rename_all = "snake_case")]
pub(super) enum Cue {
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
    pub(super) const fn at(&self) -> u64 {
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
pub(super) struct Troupe {
    holder: Child,
    pid: i32,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Troupe {
    pub(super) const fn pid(&self) -> i32 {
        self.pid
    }

    pub(super) async fn start(
        program: &Path,
        dir: &Path,
        service: SocketAddr,
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

    /// Tells the survivor to begin, and what to try later.
    pub(super) async fn go(&mut self, probe: Probe) -> Result<(), StageError> {
        let line = serde_json::to_string(&probe).unwrap_or_default() + "\n";
        self.stdin.write_all(line.as_bytes()).await.map_err(io("the workload does not listen"))
    }

    async fn line(&mut self) -> Result<String, StageError> {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.map_err(|_elapsed| StageError::Missing("the workload says nothing"))?;
        line.map_err(io("cannot hear the workload"))?
            .ok_or(StageError::Missing("the workload left"))
    }

    pub(super) async fn hear(&mut self, wanted: impl Fn(&Cue) -> bool) -> Result<Cue, StageError> {
        loop {
            let cue = serde_json::from_str(&self.line().await?);
            let cue = cue.map_err(|_not_json| StageError::Missing("the workload stammers"))?;
            if wanted(&cue) {
                return Ok(cue);
            }
        }
    }

    /// Kills the holder, and says when.
    pub(super) fn kill(&mut self) -> Result<u64, StageError> {
        let at = clock::monotonic_ns();
        self.holder.start_kill().map_err(io("cannot kill the workload"))?;
        Ok(at)
    }

    /// When its stream was closed, and when it was turned away, if it tried to connect.
    pub(super) async fn told(&mut self, probe: Probe) -> Result<(u64, Option<u64>), StageError> {
        // The holder is reaped by whoever started it, which is what a supervisor would do.
        let _exit = self.holder.wait().await;
        let (mut closed, mut turned_away) = (None, None);
        loop {
            match (closed, turned_away) {
                (Some(closed), Some(_)) => return Ok((closed, turned_away)),
                (Some(closed), None) if !probe.connects() => return Ok((closed, None)),
                (Some(_), None) | (None, _) => {}
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
