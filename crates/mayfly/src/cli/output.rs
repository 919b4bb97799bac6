//! Tables for people, JSON for programs.

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use mayfly_core::Timestamp;
use mayfly_proto::mayfly::v1 as wire;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Screens are narrow; a table that wraps is not read.
const WIDTH: u16 = 100;

#[expect(clippy::print_stdout, reason = "this is where results leave the program")]
pub(crate) fn line(text: &str) {
    println!("{text}");
}

pub(crate) fn json(value: &Value) {
    // Indented, because people pipe it into a pager as often as into a program.
    line(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Prints rows under a head, without rules: they copy well.
pub(crate) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(WIDTH).set_header(head.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    if let Some(first) = table.column_mut(0) {
        // What a row is about is copied into the next command, so it is never broken.
        first.set_constraint(ColumnConstraint::ContentWidth);
    }
    for row in table.lines() {
        line(row.trim_end());
    }
}

/// An instant as RFC 3339, to the second; empty for none.
pub(crate) fn instant(ms: u64) -> String {
    let seconds = i64::try_from(Timestamp(ms).seconds()).unwrap_or(i64::MAX);
    let at = OffsetDateTime::from_unix_timestamp(seconds).ok().filter(|_| ms != 0);
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

/// A span in its two largest units, for people.
pub(crate) fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

fn maybe(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { json!(text) }
}

fn maybe_instant(ms: u64) -> Value {
    maybe(&instant(ms))
}

/// A task as JSON. The keys are API.
pub(crate) fn task(task: &wire::TaskView) -> Value {
    json!({
        "task": task.task,
        "version": task.version,
        "state": task.state,
        "profile": task.profile,
        "spiffe_id": task.spiffe_id,
        "owner": task.owner,
        "intent": maybe(&task.intent),
        "binding": task.binding,
        "holder": task.holder,
        "parent": maybe(&task.parent),
        "begun_at": maybe_instant(task.begun_at_ms),
        "deadline": maybe_instant(task.deadline_ms),
        "lease_until": maybe_instant(task.lease_until_ms),
        "cause": maybe(&task.cause),
        "ended_at": maybe_instant(task.ended_at_ms),
        "exit": task.exit,
        "credentials": task.credentials.iter().map(credential).collect::<Vec<_>>(),
    })
}

fn credential(credential: &wire::CredentialView) -> Value {
    json!({
        "serial": credential.serial,
        "kind": credential.kind,
        "version": credential.version,
        "not_after": maybe_instant(credential.not_after_ms),
        "revoked_at": maybe_instant(credential.revoked_at_ms),
    })
}
