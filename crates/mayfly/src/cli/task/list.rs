//! `mayfly task list` and `mayfly task tree`.

use std::collections::BTreeMap;

use clap::Args;
use mayfly_proto::mayfly::v1 as wire;
use serde_json::Value;

use super::{all, view};
use crate::{
    cli::{CliError, Context, complain, output},
    client::Client,
    clock,
};

/// Which tasks are meant; all of what is said has to fit.
#[derive(Args, Debug)]
pub(super) struct FilterArgs {
    /// Ended tasks that are still remembered, too
    #[arg(long)]
    all: bool,
    /// Only tasks of this profile
    #[arg(long, default_value = "", hide_default_value = true)]
    profile: String,
    /// Only tasks of this owner
    #[arg(long, default_value = "", hide_default_value = true)]
    owner: String,
    /// Only direct children of this task
    #[arg(long, value_name = "TASK", default_value = "", hide_default_value = true)]
    parent: String,
    /// Only this task and what is below it
    #[arg(long, value_name = "TASK", default_value = "", hide_default_value = true)]
    tree: String,
    /// Only SPIFFE IDs that begin with this
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    spiffe_id: String,
    /// Only tasks that are active, quarantined or ended
    #[arg(long, default_value = "", hide_default_value = true)]
    state: String,
}

impl FilterArgs {
    pub(super) fn filter(self) -> wire::Filter {
        wire::Filter {
            ended: self.all || self.state == "ended",
            profile: self.profile,
            owner: self.owner,
            parent: self.parent,
            tree: self.tree,
            spiffe_id_prefix: self.spiffe_id,
            state: self.state,
        }
    }
}

/// Arguments of `mayfly task list`.
#[derive(Args, Debug)]
pub(super) struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// No more than so many, 1 to 1000 [default: all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: Option<u32>,
    /// Go on where the last page ended, with the same filter
    #[arg(
        long,
        value_name = "TOKEN",
        default_value = "",
        hide_default_value = true,
        requires = "limit"
    )]
    page: String,
}

pub(super) const HEAD: [&str; 7] = ["TASK", "STATE", "PROFILE", "OWNER", "HELD BY", "AGE", "CREDS"];

/// A task as a row under [`HEAD`].
pub(super) fn row(task: &wire::TaskView, now: u64) -> Vec<String> {
    let until = if task.ended_at_ms == 0 { now } else { task.ended_at_ms };
    vec![
        task.task.clone(),
        view::state(task),
        task.profile.clone(),
        task.owner.clone(),
        task.holder.clone(),
        output::span(until.saturating_sub(task.begun_at_ms)),
        view::live(task, now).to_string(),
    ]
}

pub(super) async fn list(
    context: &Context,
    client: &Client,
    args: ListArgs,
) -> Result<(), CliError> {
    let filter = args.filter.filter();
    let (tasks, next) = match args.limit {
        None => (all(client, filter).await?, String::new()),
        Some(limit) => client.list(filter, limit, args.page).await?,
    };
    if context.output.is_data() {
        output::data(context.output, &Value::Array(tasks.iter().map(view::value).collect()));
    } else {
        let now = clock::now().0;
        output::table(&HEAD, tasks.iter().map(|task| row(task, now)));
    }
    if !next.is_empty() {
        complain(&format!("there are more: add `--page {next}`"));
    }
    Ok(())
}

pub(super) async fn tree(
    context: &Context,
    client: &Client,
    root: Option<String>,
    ended: bool,
) -> Result<(), CliError> {
    if let Some(root) = &root {
        // It is asked for by name, so that it says why when there is none.
        client.get(root).await?;
    }
    let ended = ended || root.is_some();
    let tree = root.clone().unwrap_or_default();
    let tasks = all(client, wire::Filter { ended, tree, ..wire::Filter::default() }).await?;
    let known: BTreeMap<_, _> = tasks.iter().map(|task| (task.task.as_str(), task)).collect();
    let is_root = |task: &&wire::TaskView| match &root {
        Some(root) => task.task == *root,
        None => !known.contains_key(task.parent.as_str()),
    };
    let mut below = BTreeMap::<_, Vec<_>>::new();
    for task in &tasks {
        below.entry(task.parent.as_str()).or_default().push(task);
    }
    let roots = tasks.iter().filter(is_root);
    if context.output.is_data() {
        let trees = roots.map(|root| nest(root, &below)).collect();
        output::data(context.output, &Value::Array(trees));
    } else {
        let paint = output::paints();
        roots.for_each(|root| branch(root, &below, "", paint));
    }
    Ok(())
}

type Below<'a> = BTreeMap<&'a str, Vec<&'a wire::TaskView>>;

fn children<'a>(task: &wire::TaskView, below: &'a Below<'_>) -> &'a [&'a wire::TaskView] {
    below.get(task.task.as_str()).map_or(&[], Vec::as_slice)
}

fn nest(task: &wire::TaskView, below: &Below<'_>) -> Value {
    let mut value = view::value(task);
    if let Some(map) = value.as_object_mut() {
        let below = children(task, below).iter().map(|child| nest(child, below)).collect();
        map.insert("children".to_owned(), Value::Array(below));
    }
    value
}

/// One line for a task, and below it its children, each behind the lines that lead to it.
fn branch(task: &wire::TaskView, below: &Below<'_>, lead: &str, paint: bool) {
    let state = view::state(task);
    let room = usize::from(output::WIDTH)
        .saturating_sub(lead.chars().count() + task.task.len() + state.len() + 4);
    let words = format!("{}  {}", task.profile, task.intent);
    let words = output::shortened(words.trim_end(), room);
    let state = if paint { output::coloured(&state) } else { state };
    output::line(&format!("{lead}{}  {state}  {words}", task.task));
    // What led here as a branch goes on as a bar, or as nothing behind the last one.
    let lead = lead.replace("├─ ", "│  ").replace("└─ ", "   ");
    let children = children(task, below);
    for (n, child) in children.iter().enumerate() {
        let turn = if n + 1 == children.len() { "└─ " } else { "├─ " };
        branch(child, below, &format!("{lead}{turn}"), paint);
    }
}
