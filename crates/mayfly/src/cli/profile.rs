//! `mayfly profile`: check, apply and list.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use mayfly_core::TrustDomain;
use mayfly_proto::mayfly::v1 as wire;
use serde_json::{Value, json};

use super::{CliError, Context, output};
use crate::{admin, config};

/// Arguments of `mayfly profile`.
#[derive(Args, Debug)]
pub(crate) struct ProfileArgs {
    #[command(subcommand)]
    command: ProfileCommand,
}

#[derive(Debug, Subcommand)]
enum ProfileCommand {
    /// Check a profile file without a broker
    Check {
        /// A TOML file with `[[profile]]` tables
        file: PathBuf,
        /// The trust domain that the profiles are for
        #[arg(long, default_value = "example.org")]
        trust_domain: String,
    },
    /// Replace the broker's profiles by those of a file, live; tasks of profiles that are gone end
    Apply {
        /// A TOML file with `[[profile]]` tables
        file: PathBuf,
    },
    /// List the profiles in force
    List,
}

pub(crate) async fn profile(context: &Context, args: &ProfileArgs) -> Result<(), CliError> {
    match &args.command {
        ProfileCommand::Check { file, trust_domain } => check(context, file, trust_domain),
        ProfileCommand::Apply { file } => apply(context, file).await,
        ProfileCommand::List => list(context).await,
    }
}

fn read(file: &Path) -> Result<String, CliError> {
    let what = format!("cannot read `{}`", file.display());
    std::fs::read_to_string(file).map_err(CliError::io(what))
}

fn check(context: &Context, file: &Path, trust_domain: &str) -> Result<(), CliError> {
    let domain = TrustDomain::parse(trust_domain).map_err(|e| CliError::Other(e.to_string()))?;
    let profiles = config::parse_profiles(&read(file)?, &domain, config::FIRST_EPOCH)?;
    let names: Vec<_> = profiles.names().collect();
    if context.output.is_data() {
        output::data(context.output, &json!({ "profiles": names }));
    } else {
        output::line(&format!("{}: {} profiles, no problems", file.display(), names.len()));
    }
    Ok(())
}

async fn apply(context: &Context, file: &Path) -> Result<(), CliError> {
    let text = read(file)?;
    let mut client = context.operator().await?;
    let answer = client.apply_profiles(wire::ApplyProfilesRequest { text }).await;
    let answer = answer.map_err(admin::AdminError::from)?.into_inner();
    if context.output.is_data() {
        let value = json!({
            "epoch": answer.epoch,
            "gone": answer.gone,
            "owners_left": answer.left,
            "differences": answer.differences,
        });
        output::data(context.output, &value);
        return Ok(());
    }
    output::line(&format!("profiles applied, epoch {}", answer.epoch));
    for difference in &answer.differences {
        output::line(&format!("  {difference}"));
    }
    for name in &answer.gone {
        output::line(&format!("profile {name} is gone, its tasks have ended"));
    }
    for name in &answer.left {
        output::line(&format!("owner {name} has left, tasks that nobody took have ended"));
    }
    Ok(())
}

async fn list(context: &Context) -> Result<(), CliError> {
    let mut client = context.operator().await?;
    let answer = client.list_profiles(wire::ListProfilesRequest {}).await;
    let answer = answer.map_err(admin::AdminError::from)?.into_inner();
    if context.output.is_data() {
        output::data(context.output, &Value::Array(answer.profiles.iter().map(value).collect()));
        return Ok(());
    }
    let row = |one: &wire::ProfileView| {
        vec![
            one.name.clone(),
            one.path.clone(),
            one.binding.clone(),
            one.owner.clone(),
            output::span(one.x509_ttl_ms),
            one.requires.join(" "),
            one.selectors.join(" "),
        ]
    };
    let head = ["PROFILE", "PATH", "BINDING", "OWNER", "X509 TTL", "REQUIRES", "SELECTORS"];
    output::table(&head, answer.profiles.iter().map(row));
    Ok(())
}

/// A profile as data. The keys are API.
fn value(one: &wire::ProfileView) -> Value {
    let budget = one.budget.unwrap_or_default();
    json!({
        "name": one.name,
        "path": one.path,
        "owner": one.owner,
        "binding": one.binding,
        "selectors": one.selectors,
        "x509_ttl_ms": one.x509_ttl_ms,
        "jwt_ttl_ms": one.jwt_ttl_ms,
        "max_task_ms": Some(one.max_task_ms).filter(|span| *span != 0),
        "hint": output::maybe(&one.hint),
        "identity": if one.stable_identity { "stable" } else { "task" },
        "requires": one.requires,
        "risk": output::maybe(&one.risk),
        "on_failure": output::maybe(&one.on_failure),
        "delegates_to": one.delegates_to.as_ref().map(|names| &names.names),
        "reach": output::reach(one.reach),
        "scope": output::scope(one.scope.clone().unwrap_or_default()),
        "budget": output::budget(budget),
    })
}
