//! A workload: a process of its own that holds a task, renews what it has, and does not expect to die.

use std::{
    io::BufRead as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use mayfly_core::{Serial, Timestamp};
use mayfly_verify::WorkloadClient;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdout, Command},
    time::{interval, sleep},
};

use crate::{
    life::{AUDIENCE, endpoint},
    measure::{Fault, say},
    shared::Held,
};

/// The word that makes this program a workload.
pub(crate) const WORD: &str = "work";
/// How often it fetches a token.
const TOKENS: Duration = Duration::from_secs(3);
/// How long it waits for the broker to come back.
const BETWEEN: Duration = Duration::from_millis(50);

/// A workload that runs.
pub(crate) struct Worker {
    child: Child,
    lines: tokio::io::Lines<BufReader<ChildStdout>>,
}

impl Worker {
    pub(crate) fn start(socket: &Path) -> Result<Self, Fault> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(WORD)
            .arg(socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().ok_or("a workload has no output")?;
        Ok(Self { child, lines: BufReader::new(stdout).lines() })
    }

    pub(crate) fn pid(&self) -> Result<i32, Fault> {
        Ok(i32::try_from(self.child.id().ok_or("a workload has ended by itself")?)?)
    }

    /// Tells it that its task has begun.
    pub(crate) async fn go(&mut self) -> Result<(), Fault> {
        let input = self.child.stdin.as_mut().ok_or("a workload has no input")?;
        input.write_all(b"go\n").await?;
        Ok(())
    }

    /// The next credential that it got; `None` if it has ended.
    pub(crate) async fn next(&mut self) -> Option<Result<Held, Fault>> {
        let line = self.lines.next_line().await.transpose()?;
        Some(line.map_err(Fault::from).and_then(|line| read(&line)))
    }

    /// Kills it, and reads what it had said.
    pub(crate) async fn kill(mut self) -> Result<Vec<Held>, Fault> {
        self.child.kill().await?;
        let mut held = Vec::new();
        while let Some(line) = self.lines.next_line().await? {
            // A line that death has cut is not a credential that anybody has.
            held.extend(read(&line));
        }
        Ok(held)
    }
}

fn read(line: &str) -> Result<Held, Fault> {
    let (serial, until) = line.split_once(' ').ok_or("a workload says something else")?;
    Ok((Serial::parse(serial)?, Timestamp(until.parse()?)))
}

/// The token's name and end. It was just given to us, so its signature is not asked for.
pub(crate) fn expiry_and_name(token: &str) -> Result<Held, Fault> {
    let payload = token.split('.').nth(1).ok_or("not a token")?;
    let claims: serde_json::Value =
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload)?)?;
    let jti = claims.get("jti").and_then(serde_json::Value::as_str).ok_or("no `jti`")?;
    let until = claims.get("exp").and_then(serde_json::Value::as_u64).ok_or("no `exp`")?;
    Ok((Serial::parse(jti)?, Timestamp(until * 1000)))
}

/// What the child does: `work SOCKET`, until it is killed.
pub(crate) fn be() -> Result<(), Fault> {
    let socket: PathBuf = std::env::args_os().nth(2).ok_or("work SOCKET")?.into();
    let mut word = String::new();
    if std::io::stdin().lock().read_line(&mut word)? == 0 {
        return Ok(()); // The soak has ended before the task began.
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work(&socket))
}

async fn work(socket: &Path) -> Result<(), Fault> {
    let client = WorkloadClient::new(&endpoint(socket)?);
    let source = client.watch_x509();
    let mut held = source.held();
    let mut tokens = interval(TOKENS);
    let mut last = None;
    loop {
        tokio::select! {
            changed = held.changed() => changed?,
            _ = tokens.tick() => tell(&token(&client).await?),
        }
        let context = held.borrow_and_update().context().cloned();
        let leaf =
            context.as_ref().and_then(|context| context.default_svid()).map(|svid| &svid.leaf);
        let seen = leaf.and_then(|leaf| Some((leaf.serial?, leaf.not_after)));
        if seen != last {
            last = seen;
            if let Some(seen) = &seen {
                tell(seen);
            }
        }
    }
}

async fn token(client: &WorkloadClient) -> Result<Held, Fault> {
    loop {
        match client.fetch_jwt(&[AUDIENCE], None).await {
            Ok(tokens) => return expiry_and_name(&tokens.first().ok_or("no token")?.token),
            // The broker starts anew; the task of this process has not ended.
            Err(_away) => sleep(BETWEEN).await,
        }
    }
}

fn tell((serial, until): &Held) {
    say(&format!("{serial} {}", until.0));
}
