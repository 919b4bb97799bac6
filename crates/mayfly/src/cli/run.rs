//! `mayfly run`: a command as a task that ends with it.
//!
//! The command must not run a single instruction before its task exists, or its first request would
//! meet no task. So this program starts itself as `hold`, which stops itself; the task is begun on the
//! stopped process; and then it is continued and becomes the command, under the same PID.

use std::{
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, ExitCode, ExitStatus},
};

use clap::Args;
use mayfly_attest::Cgroup;
use mayfly_proto::mayfly::v1::{
    self as wire, begin_task_request::Holder, operator_client::OperatorClient,
    order_task_request::Order,
};
use nix::{
    sys::{
        signal::{Signal, kill, raise},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Channel;

use super::{CliError, Context};
use crate::{admin, clock};

/// Arguments of `mayfly run`.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// The profile to run under
    #[arg(long = "as", value_name = "PROFILE", default_value = "dev")]
    profile: String,
    /// What the task is for, in your words
    #[arg(long, default_value = "", hide_default_value = true)]
    intent: String,
    /// The task that this one is a part of; it ends when that ends
    #[arg(
        long,
        value_name = "TASK",
        env = "MAYFLY_TASK",
        default_value = "",
        hide_default_value = true
    )]
    parent: String,
    /// End the task after this time, for example 10m
    #[arg(long, value_name = "DURATION")]
    max_time: Option<String>,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    command: Vec<std::ffi::OsString>,
}

/// Arguments of the hidden `hold`.
#[derive(Args, Debug)]
pub(crate) struct HoldArgs {
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<std::ffi::OsString>,
}

/// Stops, and becomes the command when continued.
pub(crate) fn hold(args: &HoldArgs) -> ExitCode {
    if raise(Signal::SIGSTOP).is_err() {
        return ExitCode::FAILURE;
    }
    let Some((program, rest)) = args.command.split_first() else { return ExitCode::from(2) };
    let error = Command::new(program).args(rest).exec();
    report_exec(&error);
    // As shells do: 127 when there is no such program, 126 when it cannot be run.
    ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 })
}

#[expect(clippy::print_stderr, reason = "the held process has no other voice")]
fn report_exec(error: &std::io::Error) {
    eprintln!("mayfly: the command could not be run: {error}");
}

pub(crate) async fn run(context: &Context, args: RunArgs) -> Result<ExitCode, CliError> {
    let mut client = admin::connect(&context.data_dir).await?;
    let status = client.get_status(wire::GetStatusRequest {}).await;
    let status = status.map_err(admin::AdminError::from)?.into_inner();
    let socket = format!("unix://{}", status.workload_socket);
    let mut held = Held::start(&args.command, &socket)?;
    let begun = begin(&mut client, &args, &held).await?;
    tracing::info!(task = begun.task, spiffe_id = begun.spiffe_id, "task begun");
    let exit = held.go_on().await?;
    let cause = if exit.success() { "completed" } else { "failed" };
    let order = Some(Order::End(cause.to_owned()));
    let request = wire::OrderTaskRequest { task: begun.task, order, reason: String::new() };
    // The broker sees the exit by itself; whoever is first is the one who is written down.
    if let Err(status) = client.order_task(request).await {
        tracing::warn!(%status, "the broker was not told that the task is over");
    }
    Ok(exit_code(exit))
}

async fn begin(
    client: &mut OperatorClient<Channel>,
    args: &RunArgs,
    held: &Held,
) -> Result<wire::BeginTaskResponse, CliError> {
    let deadline_ms = match &args.max_time {
        None => 0,
        Some(text) => {
            let span = mayfly_policy::duration::parse(text);
            let wrong = || CliError::Other(format!("`{text}` is not a duration such as 10m"));
            clock::now().plus(span.ok_or_else(wrong)?).0
        }
    };
    let request = wire::BeginTaskRequest {
        profile: args.profile.clone(),
        holder: Some(held.holder()),
        parent: args.parent.clone(),
        intent: args.intent.clone(),
        deadline_ms,
        lease_ms: 0,
    };
    let answer = client.begin_task(request).await.map_err(admin::AdminError::from)?;
    Ok(answer.into_inner())
}

/// A stopped command, in a cgroup of its own where that may be made. Killed if it is dropped before
/// it went on: without a task it must not run.
struct Held {
    child: Option<Child>,
    pid: Pid,
    cgroup: Option<Cgroup>,
}

impl Held {
    fn start(command: &[std::ffi::OsString], socket: &str) -> Result<Self, CliError> {
        let own = std::env::current_exe().map_err(CliError::io("cannot find this program"))?;
        let child = Command::new(own)
            .arg("hold")
            .arg("--")
            .args(command)
            .env("SPIFFE_ENDPOINT_SOCKET", socket)
            .spawn()
            .map_err(CliError::io("cannot start the command"))?;
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        let mut held = Self { child: Some(child), pid, cgroup: None };
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(pid), flags) {
            Ok(WaitStatus::Stopped(..)) => {}
            other => {
                return Err(CliError::Other(format!("the command could not be held: {other:?}")));
            }
        }
        held.cgroup = own_cgroup(pid);
        Ok(held)
    }

    fn holder(&self) -> Holder {
        match &self.cgroup {
            Some(cgroup) => Holder::Cgroup(cgroup.path().to_owned()),
            None => Holder::LineagePid(self.pid.as_raw()),
        }
    }

    /// Lets the command run, forwards signals to it, and waits for its end.
    async fn go_on(&mut self) -> Result<ExitStatus, CliError> {
        let mut child = self.child.take().ok_or(CliError::Other("already gone on".to_owned()))?;
        let pid = self.pid;
        kill(pid, Signal::SIGCONT).map_err(|e| CliError::io("cannot continue")(e.into()))?;
        let mut wait = tokio::task::spawn_blocking(move || child.wait());
        let mut signals = Signals::listen()?;
        loop {
            tokio::select! {
                exit = &mut wait => {
                    let exit = exit.map_err(|e| CliError::Other(e.to_string()))?;
                    return exit.map_err(CliError::io("cannot wait for the command"));
                }
                // It may have ended this instant; then the wait says so.
                signal = signals.next() => drop(kill(pid, signal)),
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Nothing can be done about a child that cannot be killed or has ended.
            drop(child.kill());
            drop(child.wait());
        }
        if let Some(cgroup) = &self.cgroup {
            // Members that outlive the command keep it; the machine's owner sees it in the tree.
            if let Err(error) = cgroup.remove() {
                tracing::debug!(%error, "the task's cgroup stays");
            }
        }
    }
}

fn own_cgroup(pid: Pid) -> Option<Cgroup> {
    let id = u32::try_from(pid.as_raw()).ok()?;
    let name = format!("mayfly-run-{id}");
    let placed = Cgroup::create(&name).and_then(|cgroup| cgroup.place(id).map(|()| cgroup));
    placed
        .inspect_err(|error| tracing::debug!(%error, "no cgroup of its own, ancestry instead"))
        .ok()
}

/// Signals that are passed on. A terminal sends its interrupt to the command by itself.
struct Signals {
    hangup: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    user1: tokio::signal::unix::Signal,
    user2: tokio::signal::unix::Signal,
    terminal: bool,
}

impl Signals {
    fn listen() -> Result<Self, CliError> {
        let on = |kind| signal(kind).map_err(CliError::io("cannot listen for signals"));
        Ok(Self {
            hangup: on(SignalKind::hangup())?,
            interrupt: on(SignalKind::interrupt())?,
            quit: on(SignalKind::quit())?,
            terminate: on(SignalKind::terminate())?,
            user1: on(SignalKind::user_defined1())?,
            user2: on(SignalKind::user_defined2())?,
            terminal: std::io::IsTerminal::is_terminal(&std::io::stdin()),
        })
    }

    async fn next(&mut self) -> Signal {
        loop {
            let (signal, from_terminal) = tokio::select! {
                _ = self.hangup.recv() => (Signal::SIGHUP, false),
                _ = self.interrupt.recv() => (Signal::SIGINT, self.terminal),
                _ = self.quit.recv() => (Signal::SIGQUIT, self.terminal),
                _ = self.terminate.recv() => (Signal::SIGTERM, false),
                _ = self.user1.recv() => (Signal::SIGUSR1, false),
                _ = self.user2.recv() => (Signal::SIGUSR2, false),
            };
            if !from_terminal {
                return signal;
            }
        }
    }
}

fn exit_code(exit: ExitStatus) -> ExitCode {
    let code = exit.code().or_else(|| exit.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
