//! `mayfly task`: look at tasks, and end them.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use mayfly_proto::mayfly::v1 as wire;
use serde_json::{Value, json};

use super::{CliError, Context, Output, output};
use crate::{admin, clock};

/// Arguments of `mayfly task`.
#[derive(Args, Debug)]
pub(crate) struct TaskArgs {
    #[command(subcommand)]
    command: TaskCommand,
}

#[derive(Debug, Subcommand)]
enum TaskCommand {
    /// List tasks that are going on
    List {
        /// Ended tasks that are still remembered, too
        #[arg(long)]
        all: bool,
        /// Only tasks of this profile
        #[arg(long)]
        profile: Option<String>,
    },
    /// Show one task: its credentials and its story
    Show {
        /// The task's id
        task: String,
    },
    /// Show tasks as the trees they form
    Tree {
        /// Only the tree of this task
        task: Option<String>,
        /// Ended tasks that are still remembered, too
        #[arg(long)]
        all: bool,
    },
    /// End a task and everything below it
    End {
        /// The task's id
        task: String,
        /// completed, failed, superseded or revoked
        #[arg(long, default_value = "completed")]
        cause: String,
    },
}

pub(crate) async fn task(context: &Context, args: TaskArgs) -> Result<(), CliError> {
    match args.command {
        TaskCommand::List { all, profile } => {
            let tasks = fetch(context, all, profile.unwrap_or_default()).await?;
            list(context, &tasks);
        }
        TaskCommand::Show { task } => show(context, task).await?,
        TaskCommand::Tree { task, all } => {
            let tasks = fetch(context, all || task.is_some(), String::new()).await?;
            tree(context, &tasks, task.as_deref())?;
        }
        TaskCommand::End { task, cause } => end(context, task, cause).await?,
    }
    Ok(())
}

async fn fetch(
    context: &Context,
    ended: bool,
    profile: String,
) -> Result<Vec<wire::TaskView>, CliError> {
    let mut client = admin::connect(&context.data_dir).await?;
    let request = wire::ListTasksRequest { ended, profile };
    let answer = client.list_tasks(request).await.map_err(admin::AdminError::from)?;
    let mut tasks = answer.into_inner().tasks;
    tasks.sort_by(|a, b| (a.begun_at_ms, &a.task).cmp(&(b.begun_at_ms, &b.task)));
    Ok(tasks)
}

fn list(context: &Context, tasks: &[wire::TaskView]) {
    if context.output == Output::Json {
        return output::json(&Value::Array(tasks.iter().map(output::task).collect()));
    }
    let now = clock::now().0;
    let row = |task: &wire::TaskView| {
        vec![
            task.task.clone(),
            state(task),
            task.profile.clone(),
            task.holder.clone(),
            output::span(now.saturating_sub(task.begun_at_ms)),
            live(task, now).to_string(),
        ]
    };
    output::table(
        &["TASK", "STATE", "PROFILE", "HELD BY", "AGE", "CREDENTIALS"],
        tasks.iter().map(row),
    );
}

fn state(task: &wire::TaskView) -> String {
    if task.cause.is_empty() { task.state.clone() } else { task.cause.clone() }
}

fn live(task: &wire::TaskView, now: u64) -> usize {
    let stands = |c: &&wire::CredentialView| c.revoked_at_ms == 0 && c.not_after_ms > now;
    task.credentials.iter().filter(stands).count()
}

async fn show(context: &Context, task: String) -> Result<(), CliError> {
    let mut client = admin::connect(&context.data_dir).await?;
    let answer = client.show_task(wire::ShowTaskRequest { task }).await;
    let answer = answer.map_err(admin::AdminError::from)?.into_inner();
    let view = answer.task.unwrap_or_default();
    if context.output == Output::Json {
        let entry = |e: &wire::Entry| json!({ "position": e.position, "at": output::instant(e.at_ms), "at_ms": e.at_ms, "what": e.what, "detail": e.detail });
        let mut value = output::task(&view);
        if let Some(map) = value.as_object_mut() {
            let timeline = answer.timeline.iter().map(entry).collect::<Vec<_>>();
            map.insert("timeline".to_owned(), Value::Array(timeline));
        }
        output::json(&value);
        return Ok(());
    }
    let fields = [
        ("task", view.task.clone()),
        ("version", view.version.to_string()),
        ("state", state(&view)),
        ("spiffe id", view.spiffe_id.clone()),
        ("profile", view.profile.clone()),
        ("owner", view.owner.clone()),
        ("intent", view.intent.clone()),
        ("held by", view.holder.clone()),
        ("parent", view.parent.clone()),
        ("begun", output::instant(view.begun_at_ms)),
        ("deadline", output::instant(view.deadline_ms)),
        ("lease until", output::instant(view.lease_until_ms)),
        ("ended", output::instant(view.ended_at_ms)),
        ("exit", view.exit.map(|code| code.to_string()).unwrap_or_default()),
    ];
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        output::line(&format!("{name:<12} {value}"));
    }
    output::line("");
    let row = |entry: &wire::Entry| {
        let since = entry.at_ms.saturating_sub(view.begun_at_ms);
        vec![
            entry.position.to_string(),
            format!("+{since} ms"),
            entry.what.clone(),
            entry.detail.clone(),
        ]
    };
    output::table(&["POSITION", "TIME", "WHAT", "DETAIL"], answer.timeline.iter().map(row));
    Ok(())
}

fn tree(context: &Context, tasks: &[wire::TaskView], root: Option<&str>) -> Result<(), CliError> {
    let known: BTreeMap<_, _> = tasks.iter().map(|task| (task.task.as_str(), task)).collect();
    let is_root = |task: &&wire::TaskView| match root {
        Some(root) => task.task == root,
        None => !known.contains_key(task.parent.as_str()),
    };
    let roots: Vec<_> = tasks.iter().filter(is_root).collect();
    if let (Some(root), true) = (root, roots.is_empty()) {
        return Err(CliError::Other(format!("task_unknown: no task `{root}` is remembered")));
    }
    if context.output == Output::Json {
        let trees = roots.iter().map(|root| nest(root, tasks)).collect();
        output::json(&Value::Array(trees));
    } else {
        roots.iter().for_each(|root| branch(root, tasks, 0));
    }
    Ok(())
}

fn children<'a>(
    task: &'a wire::TaskView,
    tasks: &'a [wire::TaskView],
) -> impl Iterator<Item = &'a wire::TaskView> {
    tasks.iter().filter(|child| child.parent == task.task)
}

fn nest(task: &wire::TaskView, tasks: &[wire::TaskView]) -> Value {
    let mut value = output::task(task);
    if let Some(map) = value.as_object_mut() {
        let below = children(task, tasks).map(|child| nest(child, tasks)).collect();
        map.insert("children".to_owned(), Value::Array(below));
    }
    value
}

fn branch(task: &wire::TaskView, tasks: &[wire::TaskView], depth: usize) {
    let intent = if task.intent.is_empty() { String::new() } else { format!("  {}", task.intent) };
    let indent = "  ".repeat(depth);
    output::line(&format!("{indent}{}  {}  {}{intent}", task.task, state(task), task.profile));
    children(task, tasks).for_each(|child| branch(child, tasks, depth + 1));
}

async fn end(context: &Context, task: String, cause: String) -> Result<(), CliError> {
    let mut client = admin::connect(&context.data_dir).await?;
    let order = Some(wire::order_task_request::Order::End(cause));
    let request = wire::OrderTaskRequest { task: task.clone(), order, reason: String::new() };
    client.order_task(request).await.map_err(admin::AdminError::from)?;
    if context.output == Output::Json {
        output::json(&json!({ "task": task, "state": "ended" }));
    } else {
        output::line(&format!("{task} ended"));
    }
    Ok(())
}
