//! The command line: words in, one screen out.
//!
//! Results go to standard output, everything else to standard error, so that `--output json` can be
//! piped. A command that is refused exits with 1 and says the stable code and the remedy; wrong usage
//! exits with 2; `run` exits as its command did.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};

use crate::admin::AdminError;

pub(crate) mod demo;
mod doctor;
mod fetch;
mod output;
mod profile;
mod revoke;
mod run;
mod sidecar;
mod task;
mod up;

/// A SPIFFE workload-credential broker in which every credential belongs to a task and dies with it.
#[derive(Debug, Parser)]
#[command(name = "mayfly", version, max_term_width = 100)]
struct Cli {
    /// Where the broker keeps its state and its sockets
    /// [default: $XDG_RUNTIME_DIR/mayfly, else ~/.local/share/mayfly]
    #[arg(long, global = true, env = "MAYFLY_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the whole story in ten seconds, on this machine, and leave nothing behind
    Demo(demo::DemoArgs),
    /// Run a trust domain on this machine: broker, attestation, Workload API, embedded store
    Up(up::UpArgs),
    /// Run a command as a task that ends with it
    Run(run::RunArgs),
    /// Keep certificate, key, bundle and revocation lists as files, until the task ends
    Sidecar(sidecar::SidecarArgs),
    /// Fetch what a workload would get, as this process
    Fetch(fetch::FetchArgs),
    /// Look at tasks, and end them
    Task(task::TaskArgs),
    /// Revoke a task, a profile's tasks, or one credential
    Revoke(revoke::RevokeArgs),
    /// Say why a process has the identities that it has, or none
    Doctor(doctor::DoctorArgs),
    /// Check, apply and list profiles
    Profile(profile::ProfileArgs),
    /// Stop until continued, then become another program (used by `run`)
    #[command(hide = true)]
    Hold(run::HoldArgs),
    /// The workload of the demonstration
    #[command(hide = true)]
    DemoWorkload(demo::WorkloadArgs),
}

/// What every command needs to find the broker.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// The broker's data directory.
    pub(crate) data_dir: PathBuf,
    /// How to print.
    pub(crate) output: Output,
}

/// Parses the command line and carries it out.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = match cli.data_dir.or_else(default_data_dir) {
        Some(data_dir) => Context { data_dir, output: cli.output },
        None => return fail("no home directory: name one with `--data-dir DIR`"),
    };
    if let Command::Hold(args) = cli.command {
        return run::hold(&args);
    }
    if let Command::DemoWorkload(args) = &cli.command
        && !args.survivor
    {
        return demo::hold(args).map_or_else(report, |()| ExitCode::SUCCESS);
    }
    let quiet = !matches!(cli.command, Command::Up(_));
    start_logging(quiet);
    // Two workers: one for the driver's turn, one for everybody else; threads of their own sign and
    // write. More are taken on larger machines.
    let workers = std::thread::available_parallelism().map_or(2, std::num::NonZero::get).max(2);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(dispatch(context, cli.command));
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
            code
        }
        Err(error) => fail(&format!("the runtime could not be started: {error}")),
    }
}

async fn dispatch(context: Context, command: Command) -> ExitCode {
    let outcome = match command {
        Command::Demo(args) => demo::demo(&context, &args).await,
        Command::DemoWorkload(args) => demo::workload(&args).await,
        Command::Up(args) => up::up(&context, &args).await,
        Command::Run(args) => return run::run(&context, args).await.unwrap_or_else(report),
        Command::Sidecar(args) => sidecar::sidecar(&context, args).await,
        Command::Fetch(args) => fetch::fetch(&context, &args).await,
        Command::Task(args) => task::task(&context, args).await,
        Command::Revoke(args) => revoke::revoke(&context, args).await,
        Command::Doctor(args) => doctor::doctor(&context, &args).await,
        Command::Profile(args) => profile::profile(&context, &args).await,
        Command::Hold(args) => return run::hold(&args),
    };
    outcome.map_or_else(report, |()| ExitCode::SUCCESS)
}

/// Why a command came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Broker(#[from] crate::broker::BrokerError),
    #[error(transparent)]
    Workload(#[from] mayfly_verify::WorkloadError),
    #[error(transparent)]
    Stage(#[from] crate::stage::StageError),
    #[error(transparent)]
    Sidecar(#[from] crate::sidecar::SidecarError),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{0}")]
    Other(String),
}

impl CliError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

fn report(error: CliError) -> ExitCode {
    fail(&error.to_string())
}

#[expect(clippy::print_stderr, reason = "a command line tool says on standard error why it failed")]
fn fail(why: &str) -> ExitCode {
    eprintln!("mayfly: {why}");
    ExitCode::FAILURE
}

fn default_data_dir() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_RUNTIME_DIR")
        .map(|dir| dir.join("mayfly"))
        .or_else(|| set("HOME").map(|home| home.join(".local/share/mayfly")))
}

fn start_logging(quiet: bool) {
    let default = if quiet { "error" } else { "info" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("MAYFLY_LOG")
        .unwrap_or_else(|_unset| tracing_subscriber::EnvFilter::new(default));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // A second subscriber could only come from a test that started one already.
    drop(subscriber.with_ansi(ansi).try_init());
}
