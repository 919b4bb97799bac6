//! `mayfly authority`: the keys that sign, and what becomes of them.

use clap::{Args, Subcommand, ValueEnum};
use mayfly_proto::mayfly::v1 as wire;
use serde_json::{Value, json};

use super::{CliError, Context, output};
use crate::{admin, clock};

/// Arguments of `mayfly authority`.
#[derive(Args, Debug)]
pub(crate) struct AuthorityArgs {
    #[command(subcommand)]
    command: AuthorityCommand,
}

#[derive(Debug, Subcommand)]
enum AuthorityCommand {
    /// Show the keys that there are
    Show {
        /// Only those that sign this
        kind: Option<Kind>,
    },
    /// Make a successor and publish it, so that verifiers know it before it signs
    Prepare(Change),
    /// Let the prepared key sign from now on
    Activate(Prepared),
    /// Make everything anew that this key has signed; it stays known for as long as that stands
    Taint(Known),
    /// Take this key back: whatever it has signed is refused
    Revoke(Known),
}

#[derive(Args, Debug)]
struct Change {
    /// What it signs
    kind: Kind,
    /// Why, for the log
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
}

#[derive(Args, Debug)]
struct Prepared {
    #[command(flatten)]
    change: Change,
    /// Which key [default: the prepared one]
    #[arg(value_name = "KEY")]
    id: Option<String>,
}

#[derive(Args, Debug)]
struct Known {
    #[command(flatten)]
    change: Change,
    /// Which key, as `mayfly authority show` names it
    #[arg(value_name = "KEY")]
    id: String,
}

/// What a key signs.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Certificates.
    X509,
    /// Tokens.
    Jwt,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::Jwt => "jwt",
        }
    }
}

pub(crate) async fn authority(context: &Context, args: AuthorityArgs) -> Result<(), CliError> {
    let (order, change, id) = match args.command {
        AuthorityCommand::Show { kind } => return show(context, kind).await,
        AuthorityCommand::Prepare(change) => ("prepare", change, None),
        AuthorityCommand::Activate(Prepared { change, id }) => ("activate", change, id),
        AuthorityCommand::Taint(Known { change, id }) => ("taint", change, Some(id)),
        AuthorityCommand::Revoke(Known { change, id }) => ("revoke", change, Some(id)),
    };
    let mut client = context.operator().await?;
    let request = wire::ChangeAuthorityRequest {
        kind: change.kind.as_str().to_owned(),
        order: order.to_owned(),
        id: id.unwrap_or_default(),
        reason: change.reason,
    };
    let answer = client.change_authority(request).await.map_err(admin::AdminError::from)?;
    let answer = answer.into_inner();
    if context.output.is_data() {
        let authorities = answer.authorities.iter().map(value).collect::<Vec<_>>();
        let value = json!({ "authorities": authorities, "tasks": answer.tasks });
        output::data(context.output, &value);
        return Ok(());
    }
    table(&answer.authorities);
    if answer.tasks > 0 {
        let tasks = output::count(answer.tasks, "task");
        output::line(&format!("the credentials of {tasks} are made anew"));
    }
    Ok(())
}

async fn show(context: &Context, kind: Option<Kind>) -> Result<(), CliError> {
    let mut client = context.operator().await?;
    let status = client.get_status(wire::GetStatusRequest {}).await;
    let mut authorities = status.map_err(admin::AdminError::from)?.into_inner().authorities;
    if let Some(kind) = kind {
        authorities.retain(|authority| authority.kind == kind.as_str());
    }
    if context.output.is_data() {
        output::data(context.output, &Value::Array(authorities.iter().map(value).collect()));
    } else {
        table(&authorities);
    }
    Ok(())
}

fn value(authority: &wire::Authority) -> Value {
    json!({
        "kind": authority.kind,
        "id": authority.id,
        "state": authority.state,
        "not_after": output::maybe_instant(authority.not_after_ms),
    })
}

fn table(authorities: &[wire::Authority]) {
    let now = clock::now().0;
    let row = |one: &wire::Authority| {
        let left = output::span(one.not_after_ms.saturating_sub(now));
        vec![one.id.clone(), one.kind.clone(), one.state.clone(), left]
    };
    output::table(&["KEY", "SIGNS", "STATE", "EXPIRES IN"], authorities.iter().map(row));
}
