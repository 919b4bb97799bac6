//! `mayfly sidecar`: the Workload API as files, for programs that read files.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{CliError, Context, Output, fetch, output};
use crate::sidecar::{FileSet, Folder, Hook, Orders, Outcome, Report, Sidecar, set};

/// Longest name that a file may have.
const NAME_BYTES_MAX: usize = 255;

/// Arguments of `mayfly sidecar`.
#[derive(Args, Debug)]
pub(crate) struct SidecarArgs {
    /// Where the files are kept: a directory of its own, 0700; it is made if its parent is there
    #[arg(long, env = "SPIFFE_CREDENTIAL_FOLDER", value_name = "DIR")]
    dir: PathBuf,
    /// The Workload API's address, for example unix:///run/mayfly/workload.sock
    /// [default: that of the broker of the data directory]
    #[arg(long, env = "SPIFFE_ENDPOINT_SOCKET", value_name = "URI")]
    socket: Option<String>,
    /// Keep a token for this audience as well; may be given several times
    #[arg(long, value_name = "AUD")]
    jwt_audience: Vec<String>,
    /// Run this with `sh -c` after each change; MAYFLY_SIDECAR_CHANGED says what is new
    #[arg(long, value_name = "CMD")]
    on_renew: Option<String>,
    /// Run this with `sh -c` after the task has ended and the files are gone
    #[arg(long, value_name = "CMD")]
    on_end: Option<String>,
    /// How long such a command may take before it is killed
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    command_timeout: String,
    /// Write the files once and leave
    #[arg(long, conflicts_with_all = ["on_end", "keep_on_exit"])]
    once: bool,
    /// Leave the files when asked to stop, for a successor [default: remove them]
    #[arg(long)]
    keep_on_exit: bool,
}

pub(crate) async fn sidecar(context: &Context, args: SidecarArgs) -> Result<(), CliError> {
    let orders = orders(&args)?;
    let folder = Folder::open(&args.dir).map_err(crate::sidecar::SidecarError::from)?;
    let endpoint = fetch::endpoint(context, args.socket.as_deref()).await?;
    let stop = CancellationToken::new();
    let on = |kind| signal(kind).map_err(CliError::io("cannot listen for signals"));
    let (mut terminate, mut interrupt) =
        (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    let (output, dir) = (context.output, args.dir.display().to_string());
    let running = Sidecar::new(folder, &endpoint, orders)
        .run(stop.clone(), |report| tell(output, &dir, report));
    let signals = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
        std::future::pending::<std::convert::Infallible>().await
    };
    let outcome = tokio::select! {
        outcome = running => outcome?,
        never = signals => match never {},
    };
    if let (Outcome::Ended(why), false) = (&outcome, output.is_data()) {
        output::line(&format!("ended    {why}"));
    }
    Ok(())
}

fn orders(args: &SidecarArgs) -> Result<Orders, CliError> {
    let patience = mayfly_policy::duration::parse(&args.command_timeout).ok_or_else(|| {
        CliError::Other(format!("`{}` is not a duration such as 30s", args.command_timeout))
    })?;
    let patience = Duration::from_millis(patience.0);
    let hook = |line: &Option<String>| line.clone().map(|line| Hook { line, patience });
    for audience in &args.jwt_audience {
        if audience.is_empty() || set::jwt_name(audience).len() > NAME_BYTES_MAX {
            return Err(CliError::Other(format!(
                "audience_unfit: `{audience}` is empty or too long to name a file"
            )));
        }
    }
    Ok(Orders {
        audiences: args.jwt_audience.clone(),
        on_renew: hook(&args.on_renew),
        on_end: hook(&args.on_end),
        once: args.once,
        keep_on_exit: args.keep_on_exit,
    })
}

fn tell(output: Output, dir: &str, report: &Report<'_>) {
    if output.is_data() {
        return output::event(output, &as_json(dir, report));
    }
    output::line(&match report {
        Report::Written(set, changed) => {
            let changed: Vec<_> = changed.iter().map(|part| part.as_str()).collect();
            let (id, until) = (set.spiffe_id(), output::instant(set.not_after().0));
            format!("written  {id} until {until}: {}", changed.join(", "))
        }
        Report::Removed(why) => format!("removed  {dir}: {}", why.code()),
        Report::NotWritten(error) => format!("failed   {error}"),
        Report::Hook(error) => format!("command  {error}"),
        Report::Waiting(why) => format!("waiting  {why}"),
    });
}

/// One object a line. The keys are API.
fn as_json(dir: &str, report: &Report<'_>) -> Value {
    let at = crate::clock::now().0;
    match report {
        Report::Written(set, changed) => json!({
            "event": "written",
            "at_ms": at,
            "dir": dir,
            "spiffe_id": set.spiffe_id(),
            "serial": set.serial(),
            "not_after": output::instant(set.not_after().0),
            "changed": changed.iter().map(|part| part.as_str()).collect::<Vec<_>>(),
            "files": names(set),
        }),
        Report::Removed(why) => {
            json!({ "event": "removed", "at_ms": at, "dir": dir, "code": why.code() })
        }
        Report::NotWritten(error) => failure("not_written", at, &error.to_string()),
        Report::Hook(error) => failure("command_failed", at, &error.to_string()),
        Report::Waiting(why) => failure("waiting", at, why),
    }
}

fn failure(event: &str, at: u64, reason: &str) -> Value {
    json!({ "event": event, "at_ms": at, "reason": reason })
}

fn names(set: &FileSet) -> Vec<&str> {
    set.files().map(|(name, _)| name).collect()
}
