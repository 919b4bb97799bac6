//! `mayfly revoke`: by task, profile, serial number or token id.

use clap::{Args, Subcommand};
use mayfly_proto::mayfly::v1::{self as wire, revoke_request::Target};
use serde_json::json;

use super::{CliError, Context, Output, output};
use crate::admin;

/// Arguments of `mayfly revoke`.
#[derive(Args, Debug)]
pub(crate) struct RevokeArgs {
    #[command(subcommand)]
    target: RevokeTarget,
    /// Only say how many tasks and credentials would be hit
    #[arg(long, global = true)]
    dry_run: bool,
}

#[derive(Debug, Subcommand)]
enum RevokeTarget {
    /// A task and everything below it
    Task {
        /// The task's id
        task: String,
    },
    /// Every task of a profile
    Profile {
        /// The profile's name
        profile: String,
    },
    /// One X.509-SVID
    Serial {
        /// Its serial number, 34 hexadecimal digits
        serial: String,
    },
    /// One JWT-SVID
    Jti {
        /// Its `jti`, 34 hexadecimal digits
        jti: String,
    },
}

pub(crate) async fn revoke(context: &Context, args: RevokeArgs) -> Result<(), CliError> {
    let target = match args.target {
        RevokeTarget::Task { task } => Target::Task(task),
        RevokeTarget::Profile { profile } => Target::Profile(profile),
        RevokeTarget::Serial { serial: id } | RevokeTarget::Jti { jti: id } => Target::Serial(id),
    };
    let mut client = admin::connect(&context.data_dir).await?;
    let request =
        wire::RevokeRequest { target: Some(target), dry_run: args.dry_run, reason: String::new() };
    let answer = client.revoke(request).await.map_err(admin::AdminError::from)?.into_inner();
    if context.output == Output::Json {
        let (tasks, credentials) = (answer.tasks, answer.credentials);
        let value = json!({ "tasks": tasks, "credentials": credentials, "dry_run": args.dry_run });
        output::json(&value);
    } else {
        let verb = if args.dry_run { "would revoke" } else { "revoked" };
        let count = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let tasks = count(answer.tasks, "task");
        let credentials = count(answer.credentials, "unexpired credential");
        output::line(&format!("{verb} {tasks}, {credentials}"));
    }
    Ok(())
}
