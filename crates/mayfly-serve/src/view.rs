//! What is told about tasks, by the operator's API and by the orchestrators'.

use std::sync::Arc;

use mayfly_core::{Binding, Credential, Extent, Holder, Kind, Scope, State, Task};
use mayfly_proto::mayfly::v1 as wire;

/// A task as it is told to those who may read it.
pub(crate) fn view(task: Task) -> wire::TaskView {
    let (cause, ended_at, exit) = match task.state {
        State::Ended { cause, at, exit } => (cause.code(), at.0, exit),
        State::Active | State::Quarantined { .. } => ("", 0, None),
    };
    let (binding, holder) = match &task.holder {
        Holder::Process(key) => (Binding::Process, format!("pid {}", key.pid)),
        Holder::Lineage(key) => (Binding::Lineage, format!("pid {} and below", key.pid)),
        Holder::Cgroup(path) => (Binding::Cgroup, path.clone()),
        Holder::Unit(unit) => (Binding::Systemd, unit.name.clone()),
        Holder::Container(container) => (Binding::Container, container.id.clone()),
        Holder::Pod(pod) => (Binding::Pod, pod.uid.clone()),
        Holder::Socket => (Binding::Socket, "its own socket".to_owned()),
        Holder::Lease => (Binding::Lease, "its lease".to_owned()),
        Holder::Job => (task.terms.binding, "its window".to_owned()),
    };
    let quarantined_by = match task.state {
        State::Quarantined { by } => by.to_string(),
        State::Active | State::Ended { .. } => String::new(),
    };
    let (tier, reach) = (task.tier(), task.reach());
    let spiffe_id = task.spiffe_id().to_string();
    let credentials = task.credentials().map(|one| credential(&one)).collect();
    let mandate = Arc::unwrap_or_clone(task.mandate);
    wire::TaskView {
        task: task.id.to_string(),
        version: task.version.0,
        state: task.state.name().to_owned(),
        profile: task.terms.profile.clone(),
        spiffe_id,
        owner: task.terms.owner.clone(),
        intent: mandate.intent,
        binding: binding.name().to_owned(),
        holder,
        parent: task.parent.map(|parent| parent.to_string()).unwrap_or_default(),
        begun_at_ms: task.begun_at.0,
        deadline_ms: task.deadline.map_or(0, |at| at.0),
        lease_until_ms: task.lease_until.map_or(0, |at| at.0),
        cause: cause.to_owned(),
        ended_at_ms: ended_at,
        exit,
        credentials,
        scope: Some(scope(&mandate.scope)),
        risk: tier.name().to_owned(),
        triggers: mandate.triggers.iter().map(|one| one.name().to_owned()).collect(),
        budget: Some(wire::Budget {
            issuances: mandate.budget.issuances,
            per_minute: mandate.budget.per_minute,
            attempts: mandate.budget.attempts,
        }),
        reach: Some(wire::Reach { depth: reach.depth, children: reach.children }),
        root: task.root.to_string(),
        depth: task.depth,
        children: u32::try_from(task.children.len()).unwrap_or(u32::MAX),
        attempts: task.attempts,
        issued: task.spent.issued,
        credential_ttl_ms: mandate.ttl.map_or(0, |ttl| ttl.0),
        approval: mandate.approval.into(),
        telemetry: mandate.telemetry.into(),
        escalation: mandate.escalation.into(),
        quarantined_by,
    }
}

/// A scope as it is told.
pub(crate) fn scope(scope: &Scope) -> wire::Scope {
    let names = |extent: &Extent| match extent {
        Extent::Any => None,
        Extent::Only(names) => Some(wire::Names { names: names.iter().cloned().collect() }),
    };
    wire::Scope {
        actions: names(&scope.actions),
        resources: names(&scope.resources),
        audiences: names(&scope.audiences),
        tools: names(&scope.tools),
    }
}

fn credential(credential: &Credential) -> wire::CredentialView {
    wire::CredentialView {
        serial: credential.serial.to_string(),
        kind: match credential.kind {
            Kind::X509 => "x509",
            Kind::Jwt => "jwt",
        }
        .to_owned(),
        version: credential.version.0,
        not_after_ms: credential.not_after.0,
        revoked_at_ms: credential.revoked_at.map_or(0, |at| at.0),
    }
}
