//! `mayfly revoke`: by task, tree, owner, profile, node, selector, serial number or token id.

use clap::{Args, Subcommand};
use mayfly_proto::mayfly::v1::{self as wire, revoke_request::Target};
use serde_json::json;

use super::{CliError, Context, output};
use crate::admin;

/// Arguments of `mayfly revoke`.
#[derive(Args, Debug)]
pub(crate) struct RevokeArgs {
    #[command(subcommand)]
    target: RevokeTarget,
    /// Only say how many tasks and credentials would be hit
    #[arg(long, global = true)]
    dry_run: bool,
    /// Why, for the log
    #[arg(long, global = true, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
}

#[derive(Debug, Subcommand)]
enum RevokeTarget {
    /// A task and everything below it
    Task {
        /// The task's id
        task: String,
    },
    /// The whole tree that a task is in, from its root
    Tree {
        /// The id of any task of it
        task: String,
    },
    /// Every task of an owner
    Owner {
        /// The owner's name
        owner: String,
    },
    /// Every task of a profile
    Profile {
        /// The profile's name
        profile: String,
    },
    /// Every task that is held on a node
    Node {
        /// The node's name
        node: String,
    },
    /// Every task whose profile asks for a selector, or whose holder shows it now
    Selector {
        /// For example unix:uid:1000
        selector: String,
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
        RevokeTarget::Tree { task } => Target::Tree(task),
        RevokeTarget::Owner { owner } => Target::Owner(owner),
        RevokeTarget::Profile { profile } => Target::Profile(profile),
        RevokeTarget::Node { node } => Target::Node(node),
        RevokeTarget::Selector { selector } => Target::Selector(selector),
        RevokeTarget::Serial { serial } => Target::Serial(serial),
        RevokeTarget::Jti { jti } if mayfly_core::Serial::parse(&jti).is_err() => {
            let rule = "it has to be the `jti` of a JWT-SVID of ours, 34 hexadecimal digits";
            return Err(CliError::Usage(format!("invalid jti `{jti}`: {rule}")));
        }
        RevokeTarget::Jti { jti } => Target::Serial(jti),
    };
    let mut client = context.operator().await?;
    let (target, dry_run, reason) = (Some(target), args.dry_run, args.reason);
    let request = wire::RevokeRequest { target, dry_run, reason };
    let answer = client.revoke(request).await.map_err(admin::AdminError::from)?.into_inner();
    if context.output.is_data() {
        let (tasks, credentials) = (answer.tasks, answer.credentials);
        let value = json!({ "tasks": tasks, "credentials": credentials, "dry_run": dry_run });
        output::data(context.output, &value);
    } else {
        let verb = if dry_run { "would revoke" } else { "revoked" };
        let tasks = output::count(answer.tasks, "task");
        let credentials = output::count(answer.credentials, "unexpired credential");
        output::line(&format!("{verb} {tasks}, {credentials}"));
    }
    Ok(())
}
