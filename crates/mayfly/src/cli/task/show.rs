//! `mayfly task show`: one task, what it holds, and its story.

use mayfly_proto::mayfly::v1 as wire;
use serde_json::{Value, json};

use super::view;
use crate::{
    cli::{CliError, Context, output},
    client::Client,
    clock,
};

pub(super) async fn show(context: &Context, client: &Client, task: &str) -> Result<(), CliError> {
    let answer = client.show(task, true).await?;
    let task = answer.task.unwrap_or_default();
    if context.output.is_data() {
        let mut value = view::value(&task);
        if let Some(map) = value.as_object_mut() {
            let timeline = answer.timeline.iter().map(entry).collect();
            map.insert("timeline".to_owned(), Value::Array(timeline));
        }
        output::data(context.output, &value);
        return Ok(());
    }
    output::fields(&who(&task));
    output::fields(&may(&task));
    output::fields(&when(&task));
    credentials(&task);
    story(&task, &answer.timeline);
    Ok(())
}

fn entry(entry: &wire::Entry) -> Value {
    json!({
        "position": entry.position,
        "at": output::instant(entry.at_ms),
        "at_ms": entry.at_ms,
        "what": entry.what,
        "detail": entry.detail,
    })
}

fn who(task: &wire::TaskView) -> [(&'static str, String); 11] {
    let mut state = view::state(task);
    if !task.cause.is_empty() {
        state = format!("{}: {}", task.state, task.cause);
    }
    if let Some(code) = task.exit {
        state = format!("{state}, exit {code}");
    }
    let quarantined_by = Some(&task.quarantined_by).filter(|by| **by != task.task);
    let root = Some(&task.root).filter(|root| **root != task.task);
    let children = if task.children == 0 { String::new() } else { task.children.to_string() };
    [
        ("task", task.task.clone()),
        ("version", task.version.to_string()),
        ("state", state),
        ("stopped with", quarantined_by.cloned().unwrap_or_default()),
        ("spiffe id", task.spiffe_id.clone()),
        ("profile", task.profile.clone()),
        ("owner", task.owner.clone()),
        ("intent", task.intent.clone()),
        ("held by", task.holder.clone()),
        ("part of", parents(&task.parent, root)),
        ("children", children),
    ]
}

fn parents(parent: &str, root: Option<&String>) -> String {
    match root {
        Some(root) if root != parent => format!("{parent}, and of {root}"),
        Some(_) | None => parent.to_owned(),
    }
}

fn may(task: &wire::TaskView) -> Vec<(&'static str, String)> {
    let budget = task.budget.unwrap_or_default();
    let spent = |spent: u64, of: Option<u64>| match of {
        Some(of) => format!("{spent} of {of}"),
        None if spent > 0 => spent.to_string(),
        None => String::new(),
    };
    let per_minute = budget.per_minute.map(|n| format!("{n} credentials"));
    let reach = |reach: wire::Reach| format!("{} deep, {} wide", reach.depth, reach.children);
    let ttl = Some(task.credential_ttl_ms).filter(|ttl| *ttl != 0).map(output::span);
    let mut fields = view::scope(task);
    fields.extend([
        ("risk", task.risk.clone()),
        ("ends on", task.triggers.join(", ")),
        ("credentials", spent(task.issued, budget.issuances)),
        ("per minute", per_minute.unwrap_or_default()),
        ("attempts", spent(task.attempts.into(), budget.attempts.map(u64::from))),
        ("delegates", task.reach.map(reach).unwrap_or_default()),
        ("ttl", ttl.unwrap_or_default()),
        ("approval", task.approval.clone()),
        ("telemetry", task.telemetry.clone()),
        ("escalation", task.escalation.clone()),
    ]);
    fields
}

fn when(task: &wire::TaskView) -> [(&'static str, String); 4] {
    [
        ("begun", output::instant(task.begun_at_ms)),
        ("deadline", output::instant(task.deadline_ms)),
        ("lease until", output::instant(task.lease_until_ms)),
        ("ended", output::instant(task.ended_at_ms)),
    ]
}

fn credentials(task: &wire::TaskView) {
    if task.credentials.is_empty() {
        return;
    }
    output::line("");
    let now = clock::now().0;
    let row = |one: &wire::CredentialView| {
        let state = match (one.revoked_at_ms, one.not_after_ms > now) {
            (0, true) if task.state == "quarantined" => "not while quarantined".to_owned(),
            (0, true) => format!("for {}", output::span(one.not_after_ms - now)),
            (0, false) => "expired".to_owned(),
            (_, _) => "revoked".to_owned(),
        };
        vec![one.serial.clone(), one.kind.clone(), one.version.to_string(), state]
    };
    output::table(&["SERIAL", "KIND", "VERSION", "STANDS"], task.credentials.iter().map(row));
}

fn story(task: &wire::TaskView, timeline: &[wire::Entry]) {
    output::line("");
    let row = |entry: &wire::Entry| {
        let since = entry.at_ms.saturating_sub(task.begun_at_ms);
        let since = if since < 10_000 {
            format!("+{since}ms")
        } else {
            format!("+{}", output::span(since))
        };
        vec![entry.position.to_string(), since, entry.what.clone(), entry.detail.clone()]
    };
    output::table(&["POSITION", "AFTER", "WHAT", "DETAIL"], timeline.iter().map(row));
}
