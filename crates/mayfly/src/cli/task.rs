//! `mayfly task`: begin, change, watch and end tasks.
//!
//! These commands are an orchestrator's: they speak `mayfly.v1.Tasks`, and who may do what is in the
//! configuration's roles. Only quarantine and revocation are an operator's alone.

use clap::{Args, Subcommand};
use mayfly_proto::mayfly::v1 as wire;
use serde_json::json;

use super::{CliError, Context, output};
use crate::client::{Client, ClientError};

mod begin;
mod list;
mod show;
mod view;
mod watch;

/// Arguments of `mayfly task`.
#[derive(Args, Debug)]
pub(crate) struct TaskArgs {
    #[command(subcommand)]
    command: TaskCommand,
}

#[derive(Debug, Subcommand)]
enum TaskCommand {
    /// Begin a task
    Begin(Box<begin::BeginArgs>),
    /// Begin a task below another: strictly narrower, no longer, and ended with it
    Delegate(Box<begin::DelegateArgs>),
    /// Make a new version: credentials of older ones are refused from then on
    Amend(begin::AmendArgs),
    /// Keep a task with a lease alive for another lease
    Heartbeat {
        /// The task's id
        task: String,
    },
    /// List tasks that are going on
    List(list::ListArgs),
    /// Show one task: what it may do, what it holds, and its story
    Show {
        /// The task's id
        task: String,
    },
    /// Show tasks as the trees they form
    Tree {
        /// Only this task and what is below it
        task: Option<String>,
        /// Ended tasks that are still remembered, too
        #[arg(long)]
        all: bool,
    },
    /// Show tasks as they change: a live table on a terminal, else one line for each change
    Watch(list::FilterArgs),
    /// End a task and everything below it
    End {
        /// The task's id
        task: String,
        /// completed, failed, superseded or revoked
        #[arg(long, default_value = "completed")]
        cause: String,
        /// Why, for the log
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        reason: String,
    },
}

pub(crate) async fn task(context: &Context, args: TaskArgs) -> Result<(), CliError> {
    let client = context.tasks().await?;
    match args.command {
        TaskCommand::Begin(args) => begin::begin(context, &client, *args).await,
        TaskCommand::Delegate(args) => begin::delegate(context, &client, *args).await,
        TaskCommand::Amend(args) => begin::amend(context, &client, args).await,
        TaskCommand::Heartbeat { task } => heartbeat(context, &client, &task).await,
        TaskCommand::List(args) => list::list(context, &client, args).await,
        TaskCommand::Show { task } => show::show(context, &client, &task).await,
        TaskCommand::Tree { task, all } => list::tree(context, &client, task, all).await,
        TaskCommand::Watch(args) => watch::watch(context, &client, args).await,
        TaskCommand::End { task, cause, reason } => {
            end(context, &client, wire::EndRequest { task, cause, reason }).await
        }
    }
}

async fn heartbeat(context: &Context, client: &Client, task: &str) -> Result<(), CliError> {
    let renewed = client.heartbeat(task).await?;
    let until = output::instant(renewed.lease_until_ms);
    if context.output.is_data() {
        let value = json!({ "task": task, "version": renewed.version, "lease_until": until });
        output::data(context.output, &value);
    } else {
        output::line(&format!("{task} has its lease until {until}"));
    }
    Ok(())
}

async fn end(
    context: &Context,
    client: &Client,
    request: wire::EndRequest,
) -> Result<(), CliError> {
    let task = request.task.clone();
    let ended = client.end_once(request).await?;
    if context.output.is_data() {
        let value = json!({
            "task": task,
            "version": ended.version,
            "state": ended.state,
            "cause": output::maybe(&ended.cause),
            "ended_at": output::maybe_instant(ended.ended_at_ms),
        });
        output::data(context.output, &value);
    } else if ended.cause.is_empty() {
        output::line(&format!("{task} {}", ended.state));
    } else {
        output::line(&format!("{task} {}: {}", ended.state, ended.cause));
    }
    Ok(())
}

/// Every task that matches, oldest first.
async fn all(client: &Client, filter: wire::Filter) -> Result<Vec<wire::TaskView>, ClientError> {
    const PAGE: u32 = 1000;
    let mut tasks = Vec::new();
    let mut token = String::new();
    loop {
        let (page, next) = client.list(filter.clone(), PAGE, token).await?;
        tasks.extend(page);
        if next.is_empty() {
            tasks.sort_by(|a, b| (a.begun_at_ms, &a.task).cmp(&(b.begun_at_ms, &b.task)));
            return Ok(tasks);
        }
        token = next;
    }
}
