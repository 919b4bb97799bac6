//! `mayfly demo`: the whole story in ten seconds.

use clap::Args;
use serde_json::json;

use super::{CliError, Context, output};
use crate::stage::{self, Probe, Stage};

/// Arguments of `mayfly demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {}

/// Arguments of the hidden `demo-workload`.
#[derive(Args, Debug)]
pub(crate) struct WorkloadArgs {
    /// The service to talk to
    #[arg(long)]
    service: String,
    /// Be the one that outlives the holder
    #[arg(long)]
    pub(super) survivor: bool,
}

pub(crate) async fn workload(args: &WorkloadArgs) -> Result<(), CliError> {
    Ok(stage::survive(&args.service).await?)
}

pub(crate) fn hold(args: &WorkloadArgs) -> Result<(), CliError> {
    let program = std::env::current_exe().map_err(CliError::io("cannot find this program"))?;
    Ok(stage::hold(&program, &args.service)?)
}

pub(crate) async fn demo(context: &Context, _args: &DemoArgs) -> Result<(), CliError> {
    let program = std::env::current_exe().map_err(CliError::io("cannot find this program"))?;
    let dir = tempfile::tempdir().map_err(CliError::io("cannot make a directory"))?;
    let talk = !context.output.is_data();
    let say = |text: &str| {
        if talk {
            output::line(text);
        }
    };
    say("A broker starts, and a service that speaks mutual TLS and asks nobody's leave.");
    let mut stage = Stage::start(&program, dir.path()).await?;
    say("A task begins. Its workload fetches an X.509-SVID and a JWT-SVID with a SPIFFE client,");
    say("and talks to the service. Then the task's process is killed with -9.");
    say("A child of it survives, with the key, the token and the open connection in its hands.");
    let round = stage.round(Probe::All).await?;
    stage.strike().await?;
    if !talk {
        output::data(context.output, &json!(round));
        return Ok(());
    }
    say("");
    let step = |what: &str, ms: f64| say(&format!("  {what:.<52} {ms:>8.2} ms"));
    step("task begun, SVID in hand ", round.begin_to_svid_ms);
    say("  kill -9");
    step("its Workload API stream was closed ", round.stream_closed_ms);
    for (what, ms) in [
        ("its token was refused ", round.token_refused_ms),
        ("its certificate was refused on a new connection ", round.new_connection_refused_ms),
    ] {
        ms.map(|ms| step(what, ms)).unwrap_or_default();
    }
    step("its live connection was cut ", round.live_connection_cut_ms);
    say("");
    say("Certificate and token would have been valid for minutes. Nothing is left behind.");
    Ok(())
}
