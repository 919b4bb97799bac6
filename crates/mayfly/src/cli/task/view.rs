//! A task in the words of the command line.

use mayfly_proto::mayfly::v1 as wire;
use serde_json::{Value, json};

use crate::cli::output::{self, maybe, maybe_instant};

/// A task as data. The keys are API.
pub(super) fn value(task: &wire::TaskView) -> Value {
    let (who, when, limits) = (who(task), when(task), limits(task));
    let mut all = serde_json::Map::new();
    for part in [who, when, limits] {
        if let Value::Object(part) = part {
            all.extend(part);
        }
    }
    Value::Object(all)
}

fn who(task: &wire::TaskView) -> Value {
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
        "root": maybe(&task.root),
        "depth": task.depth,
        "children_live": task.children,
        "credentials": task.credentials.iter().map(credential).collect::<Vec<_>>(),
    })
}

fn when(task: &wire::TaskView) -> Value {
    json!({
        "begun_at": maybe_instant(task.begun_at_ms),
        "deadline": maybe_instant(task.deadline_ms),
        "lease_until": maybe_instant(task.lease_until_ms),
        "cause": maybe(&task.cause),
        "ended_at": maybe_instant(task.ended_at_ms),
        "exit": task.exit,
        "quarantined_by": maybe(&task.quarantined_by),
    })
}

fn limits(task: &wire::TaskView) -> Value {
    json!({
        "scope": output::scope(task.scope.clone().unwrap_or_default()),
        "risk": maybe(&task.risk),
        "triggers": task.triggers,
        "budget": output::budget(task.budget.unwrap_or_default()),
        "issued": task.issued,
        "attempts": task.attempts,
        "reach": output::reach(task.reach),
        "credential_ttl_ms": task.credential_ttl_ms,
        "approval": maybe(&task.approval),
        "telemetry": maybe(&task.telemetry),
        "escalation": maybe(&task.escalation),
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

/// Its state, or why it has ended.
pub(super) fn state(task: &wire::TaskView) -> String {
    if task.cause.is_empty() { task.state.clone() } else { task.cause.clone() }
}

/// How many of its credentials a verifier would accept; none while it is quarantined.
pub(super) fn live(task: &wire::TaskView, now: u64) -> usize {
    if task.state == "quarantined" {
        return 0;
    }
    let stands = |c: &&wire::CredentialView| c.revoked_at_ms == 0 && c.not_after_ms > now;
    task.credentials.iter().filter(stands).count()
}

/// What it may do, dimension by dimension, as far as it is bounded.
pub(super) fn scope(task: &wire::TaskView) -> Vec<(&'static str, String)> {
    let scope = task.scope.clone().unwrap_or_default();
    let dimensions = [
        ("actions", scope.actions),
        ("resources", scope.resources),
        ("audiences", scope.audiences),
        ("tools", scope.tools),
    ];
    let words = |names: wire::Names| {
        if names.names.is_empty() { "none".to_owned() } else { names.names.join(", ") }
    };
    dimensions.into_iter().filter_map(|(name, names)| Some((name, words(names?)))).collect()
}
