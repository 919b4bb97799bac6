//! What orchestrators wish, read once and whole.

use mayfly_core::{
    Amendment, Budget, Cause, Denial, Extent, Mandate, Reach, RequestKey, Scope, Span, TaskId,
    TaskVersion, Tier, Timestamp, Trigger,
};
use mayfly_proto::mayfly::v1 as wire;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::{
    limits,
    office::{BeginWish, HolderWish, Refusal},
};

/// A field that cannot be read: names it and the rule, never the value.
pub(super) fn wrong(field: &str, rule: &str) -> Refusal {
    Refusal { denial: Denial::Malformed, detail: format!("invalid {field}: {rule}") }
}

pub(super) fn task(field: &str, text: &str) -> Result<TaskId, Refusal> {
    TaskId::parse(text).map_err(|invalid| wrong(field, invalid.rule))
}

/// Reads a wish to begin a task, below `below` if it is delegated. `by` is whose wish it is.
pub(super) fn begin(
    request: wire::BeginRequest,
    below: Option<TaskId>,
    by: &str,
) -> Result<BeginWish, Refusal> {
    let key = key(&request, below, by)?;
    let own = Some(&request.parent).filter(|parent| !parent.is_empty());
    let own = own.map(|parent| task("parent", parent)).transpose()?;
    Ok(BeginWish {
        profile: request.profile,
        holder: holder(request.holder)?,
        parent: below.or(own),
        delegated: below.is_some(),
        owner: Some(request.owner).filter(|owner| !owner.is_empty()),
        mandate: mandate(request.declaration.unwrap_or_default())?,
        deadline: (request.deadline_ms != 0).then_some(Timestamp(request.deadline_ms)),
        lease: (request.lease_ms != 0).then_some(Span(request.lease_ms)),
        key,
    })
}

/// The names of a wish and of what it says. A key is its caller's own, and below a task that task's: two
/// agents of one user that count their steps do not meet.
fn key(
    request: &wire::BeginRequest,
    below: Option<TaskId>,
    by: &str,
) -> Result<Option<RequestKey>, Refusal> {
    let told = &request.idempotency_key;
    if told.is_empty() {
        return Ok(None);
    }
    if told.len() > limits::KEY_BYTES_MAX {
        return Err(wrong("idempotency_key", "it may have 128 bytes"));
    }
    let below = below.map(|task| *task.as_bytes()).unwrap_or_default();
    // Lengths first, so that no two wishes are spelled alike.
    let length = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX).to_be_bytes();
    let mut key = Sha256::new();
    key.update(length(by.len()));
    key.update(by);
    key.update(below);
    key.update(told);
    // No map and no unknown field: a message that was read is written in one way only.
    let said = wire::BeginRequest { idempotency_key: String::new(), ..request.clone() };
    let mut body = Sha256::new();
    body.update(below);
    body.update(said.encode_to_vec());
    Ok(Some(RequestKey { key: key.finalize().into(), body: body.finalize().into() }))
}

fn holder(wish: Option<wire::HolderWish>) -> Result<HolderWish, Refusal> {
    use wire::holder_wish::Holder as Wish;
    let wrong = |rule| wrong("holder", rule);
    let pid = |pid: i32| {
        if pid > 0 { Ok(pid) } else { Err(wrong("a pid has to be positive")) }
    };
    let named =
        |name: String| if name.is_empty() { Err(wrong("it has no name")) } else { Ok(name) };
    let told = wish.and_then(|wish| wish.holder).ok_or_else(|| wrong("it is missing"))?;
    Ok(match told {
        Wish::LineagePid(number) => HolderWish::Lineage(pid(number)?),
        Wish::ProcessPid(number) => HolderWish::Process(pid(number)?),
        Wish::Cgroup(path) if path.starts_with('/') => HolderWish::Cgroup(path),
        Wish::Cgroup(_) => return Err(wrong("a cgroup has to start with '/'")),
        Wish::Socket(true) => HolderWish::Socket,
        Wish::Lease(true) => HolderWish::Lease,
        Wish::Job(true) => HolderWish::Job,
        Wish::Socket(false) | Wish::Lease(false) | Wish::Job(false) => {
            return Err(wrong("it is named and denied"));
        }
        Wish::SystemdUnit(name) => HolderWish::Unit(named(name)?),
        Wish::ContainerId(id) => HolderWish::Container(named(id)?),
        Wish::PodUid(uid) => HolderWish::Pod(named(uid)?),
    })
}

fn mandate(told: wire::Declaration) -> Result<Mandate, Refusal> {
    let tier = match told.risk.as_str() {
        "" => None,
        name => {
            let rule = "it has to be low, medium or high";
            Some(Tier::parse(name).ok_or_else(|| wrong("risk", rule))?)
        }
    };
    let trigger = |name: &String| {
        let known = Trigger::ALL.map(Trigger::name).join(", ");
        Trigger::parse(name).ok_or_else(|| wrong("triggers", &format!("they are {known}")))
    };
    let budget = told.budget.unwrap_or_default();
    Ok(Mandate {
        intent: told.intent,
        scope: scope(told.scope),
        tier,
        triggers: told.triggers.iter().map(trigger).collect::<Result<_, _>>()?,
        budget: Budget {
            issuances: budget.issuances,
            per_minute: budget.per_minute,
            attempts: budget.attempts,
        },
        reach: told.reach.map(|reach| Reach { depth: reach.depth, children: reach.children }),
        ttl: (told.credential_ttl_ms != 0).then_some(Span(told.credential_ttl_ms)),
        approval: told.approval.into(),
        telemetry: told.telemetry.into(),
        escalation: told.escalation.into(),
    })
}

fn scope(told: Option<wire::Scope>) -> Scope {
    let extent = |names: Option<wire::Names>| names.map_or(Extent::Any, |n| Extent::only(n.names));
    let told = told.unwrap_or_default();
    Scope {
        actions: extent(told.actions),
        resources: extent(told.resources),
        audiences: extent(told.audiences),
        tools: extent(told.tools),
    }
}

pub(super) fn amendment(request: wire::AmendRequest) -> Amendment {
    Amendment {
        intent: request.intent,
        scope: scope(request.scope),
        if_version: (request.if_version != 0).then_some(TaskVersion(request.if_version)),
    }
}

/// Why a task is over, by somebody's word; what the broker sees itself nobody can say.
pub(super) fn cause(told: &str) -> Result<Cause, Refusal> {
    match told {
        "" | "completed" => Ok(Cause::Completed),
        "failed" => Ok(Cause::Failed),
        "superseded" => Ok(Cause::Superseded),
        "revoked" => Ok(Cause::Revoked),
        _ => Err(wrong("cause", "it has to be completed, failed, superseded or revoked")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(key: &str) -> wire::BeginRequest {
        wire::BeginRequest {
            profile: "job".to_owned(),
            holder: Some(wire::HolderWish { holder: Some(wire::holder_wish::Holder::Lease(true)) }),
            idempotency_key: key.to_owned(),
            ..wire::BeginRequest::default()
        }
    }

    fn key_of(request: wire::BeginRequest, below: Option<TaskId>, by: &str) -> RequestKey {
        begin(request, below, by).unwrap().key.unwrap()
    }

    #[test]
    fn a_wish_is_known_by_its_caller_and_its_key_and_compared_by_what_it_says() {
        let first = key_of(named("a"), None, "uid:1");
        assert_eq!(first, key_of(named("a"), None, "uid:1"));
        let later = wire::BeginRequest { lease_ms: 1000, ..named("a") };
        let later = key_of(later, None, "uid:1");
        assert!(later.key == first.key && later.body != first.body);
        let other = key_of(named("b"), None, "uid:1");
        assert!(other.key != first.key && other.body == first.body);
        assert_ne!(key_of(named("a"), None, "uid:2").key, first.key);
        assert_ne!(key_of(named("a"), Some(TaskId::from_bytes([1; 16])), "uid:1").key, first.key);
        assert_eq!(begin(named(""), None, "uid:1").unwrap().key, None);
        assert!(begin(named(&"k".repeat(129)), None, "uid:1").is_err());
    }

    #[test]
    fn what_cannot_be_read_is_named_by_its_field() {
        let with = |declaration| wire::BeginRequest { declaration: Some(declaration), ..named("") };
        let none = wire::Declaration::default();
        for (request, field) in [
            (wire::BeginRequest { holder: None, ..named("") }, "holder"),
            (wire::BeginRequest { parent: "x".to_owned(), ..named("") }, "parent"),
            (with(wire::Declaration { risk: "dire".to_owned(), ..none.clone() }), "risk"),
            (with(wire::Declaration { triggers: vec!["rain".to_owned()], ..none }), "triggers"),
        ] {
            let refused = begin(request, None, "uid:1").unwrap_err();
            assert_eq!(refused.denial, Denial::Malformed);
            assert!(refused.detail.starts_with(&format!("invalid {field}: ")), "{refused:?}");
        }
        assert!(cause("exited").is_err() && cause("").is_ok());
    }
}
