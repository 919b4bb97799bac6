//! The command line: words in, one screen out.
//!
//! Results go to standard output, everything else to standard error, so that `--output json` can be
//! piped. A command that is refused exits with 1 and says the stable code and the remedy; `error.rs` has
//! the other exit codes; `run` exits as its command did.

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};

mod authority;
mod context;
pub(crate) mod demo;
mod doctor;
mod error;
mod fetch;
mod inventory;
mod output;
mod papers;
mod profile;
mod quarantine;
mod revoke;
mod run;
mod sidecar;
mod task;
mod up;
mod yaml;

pub(crate) use context::Context;
use error::{CliError, complain, report};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused, or failed on the way: the stable code and the remedy stand on standard error
  2  wrong usage
  3  no broker where one was looked for
  4  the caller is not entitled to this
`mayfly run` exits as its command does.";

/// Where options stand that every command has, so that they do not hide its own.
const GLOBAL: &str = "Global options";

/// A SPIFFE workload-credential broker in which every credential belongs to a task and dies with it.
#[derive(Debug, Parser)]
#[command(name = "mayfly", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    /// Where the broker keeps its state and its sockets
    /// [default: $XDG_RUNTIME_DIR/mayfly, else ~/.local/share/mayfly]
    #[arg(long, global = true, env = "MAYFLY_DATA_DIR", value_name = "DIR", help_heading = GLOBAL)]
    data_dir: Option<PathBuf>,
    /// A broker elsewhere: unix:///PATH/tasks.sock, or https://HOST:PORT with our own SVID
    /// [default: that of the data directory]
    #[arg(long, global = true, env = "MAYFLY_ENDPOINT", value_name = "URI", help_heading = GLOBAL)]
    endpoint: Option<String>,
    /// A file with a token of an OIDC issuer that the broker knows: who asks is then its subject
    #[arg(long, global = true, env = "MAYFLY_TOKEN_FILE", value_name = "FILE", help_heading = GLOBAL)]
    token_file: Option<PathBuf>,
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t = Output::Table, help_heading = GLOBAL)]
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
    /// For programs, and for people who read much of it.
    Yaml,
}

impl Output {
    /// Whether a program reads it.
    const fn is_data(self) -> bool {
        match self {
            Self::Table => false,
            Self::Json | Self::Yaml => true,
        }
    }
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
    /// Begin, change, watch and end tasks
    #[command(visible_alias = "tasks")]
    Task(Box<task::TaskArgs>),
    /// Show who holds what, for which task, until when
    Inventory(inventory::InventoryArgs),
    /// Revoke tasks or credentials: nobody accepts them any more
    Revoke(revoke::RevokeArgs),
    /// Stop a task for the time being, with everything below it
    Quarantine(quarantine::QuarantineArgs),
    /// Let a quarantined task go on
    Release(quarantine::QuarantineArgs),
    /// Look at the keys that sign, and change them
    Authority(authority::AuthorityArgs),
    /// Say why a process has the identities that it has, or none
    Doctor(doctor::DoctorArgs),
    /// Check, apply and list profiles
    Profile(profile::ProfileArgs),
    /// Print the completions for a shell
    Completions(papers::CompletionsArgs),
    /// Write the manual pages into a directory
    Man(papers::ManArgs),
    /// Stop until continued, then become another program (used by `run`)
    #[command(hide = true)]
    Hold(run::HoldArgs),
    /// The workload of the demonstration
    #[command(hide = true)]
    DemoWorkload(demo::WorkloadArgs),
}

/// The words that there are, for the papers about them.
pub(crate) fn words() -> clap::Command {
    Cli::command()
}

/// Parses the command line and carries it out.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = match cli.data_dir.or_else(default_data_dir) {
        Some(data_dir) => Context {
            data_dir,
            endpoint: cli.endpoint,
            token_file: cli.token_file,
            output: cli.output,
        },
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
        Command::Task(args) => task::task(&context, *args).await,
        Command::Inventory(args) => inventory::inventory(&context, args).await,
        Command::Revoke(args) => revoke::revoke(&context, args).await,
        Command::Quarantine(args) => quarantine::quarantine(&context, args).await,
        Command::Release(args) => quarantine::release(&context, args).await,
        Command::Authority(args) => authority::authority(&context, args).await,
        Command::Doctor(args) => doctor::doctor(&context, &args).await,
        Command::Profile(args) => profile::profile(&context, &args).await,
        Command::Completions(args) => papers::completions(&args),
        Command::Man(args) => papers::man(&args),
        Command::Hold(args) => return run::hold(&args),
    };
    let lost = || if output::is_lost() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    outcome.map_or_else(report, |()| lost())
}

fn fail(why: &str) -> ExitCode {
    complain(why);
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
