//! What tasks declare and profiles demand, as protobuf. Read as strictly as everything else.

use std::collections::BTreeSet;

use mayfly_core::{
    Author, Bounds, Budget, Extent, Mandate, OnFailure, Part, Reach, RequestKey, Scope, Span, Tier,
    Trigger,
};
use mayfly_proto::mayfly::v1 as proto;

use super::InvalidRecord;

pub(super) fn spell_author(author: &Author) -> Option<proto::Author> {
    let silent = author.by.is_empty() && author.why.is_empty();
    (!silent).then(|| proto::Author { by: author.by.clone(), why: author.why.clone() })
}

pub(super) fn parse_author(author: Option<proto::Author>) -> Author {
    author.map(|author| Author { by: author.by, why: author.why }).unwrap_or_default()
}

pub(super) fn spell_scope(scope: &Scope) -> Option<proto::Scope> {
    let names = |extent: &Extent| match extent {
        Extent::Any => None,
        Extent::Only(names) => Some(proto::Names { names: names.iter().cloned().collect() }),
    };
    (*scope != Scope::default()).then(|| proto::Scope {
        actions: names(&scope.actions),
        resources: names(&scope.resources),
        audiences: names(&scope.audiences),
        tools: names(&scope.tools),
    })
}

pub(super) fn parse_scope(scope: Option<proto::Scope>) -> Scope {
    let extent =
        |names: Option<proto::Names>| names.map_or(Extent::Any, |names| Extent::only(names.names));
    scope.map_or_else(Scope::default, |scope| Scope {
        actions: extent(scope.actions),
        resources: extent(scope.resources),
        audiences: extent(scope.audiences),
        tools: extent(scope.tools),
    })
}

fn spell_budget(budget: &Budget) -> Option<proto::Budget> {
    let Budget { issuances, per_minute, attempts } = *budget;
    (*budget != Budget::default()).then_some(proto::Budget { issuances, per_minute, attempts })
}

fn parse_budget(budget: Option<proto::Budget>) -> Budget {
    budget.map_or_else(Budget::default, |it| Budget {
        issuances: it.issuances,
        per_minute: it.per_minute,
        attempts: it.attempts,
    })
}

fn spell_reach(reach: Reach) -> proto::Reach {
    proto::Reach { depth: reach.depth, children: reach.children }
}

fn parse_reach(reach: proto::Reach) -> Reach {
    Reach { depth: reach.depth, children: reach.children }
}

pub(super) fn spell_mandate(mandate: &Mandate) -> proto::Mandate {
    proto::Mandate {
        scope: spell_scope(&mandate.scope),
        tier: mandate.tier.map(|tier| tier.name().to_owned()).unwrap_or_default(),
        triggers: mandate.triggers.iter().map(|one| one.name().to_owned()).collect(),
        budget: spell_budget(&mandate.budget),
        reach: mandate.reach.map(spell_reach),
        ttl_ms: mandate.ttl.map(|ttl| ttl.0),
        approval: mandate.approval.to_string(),
        telemetry: mandate.telemetry.to_string(),
        escalation: mandate.escalation.to_string(),
    }
}

pub(super) fn parse_mandate(
    intent: String,
    mandate: Option<proto::Mandate>,
) -> Result<Mandate, InvalidRecord> {
    let mandate = mandate.unwrap_or_default();
    let trigger = |name: &String| Trigger::parse(name).ok_or(InvalidRecord("triggers"));
    Ok(Mandate {
        intent,
        scope: parse_scope(mandate.scope),
        tier: match mandate.tier.as_str() {
            "" => None,
            name => Some(Tier::parse(name).ok_or(InvalidRecord("tier"))?),
        },
        triggers: mandate.triggers.iter().map(trigger).collect::<Result<_, _>>()?,
        budget: parse_budget(mandate.budget),
        reach: mandate.reach.map(parse_reach),
        ttl: mandate.ttl_ms.map(Span),
        approval: mandate.approval.into(),
        telemetry: mandate.telemetry.into(),
        escalation: mandate.escalation.into(),
    })
}

pub(super) fn spell_bounds(bounds: &Bounds) -> Option<proto::Bounds> {
    (*bounds != Bounds::default()).then(|| proto::Bounds {
        requires: bounds.requires.iter().map(|part| part.name().to_owned()).collect(),
        scope: spell_scope(&bounds.scope),
        tier: bounds.tier.name().to_owned(),
        on_failure: bounds.on_failure.name().to_owned(),
        budget: spell_budget(&bounds.budget),
        reach: Some(spell_reach(bounds.reach)),
        delegates_to: bounds
            .delegates_to
            .as_ref()
            .map(|names| proto::Names { names: names.iter().cloned().collect() }),
    })
}

pub(super) fn parse_bounds(bounds: Option<proto::Bounds>) -> Result<Bounds, InvalidRecord> {
    let Some(bounds) = bounds else { return Ok(Bounds::default()) };
    let part = |name: &String| Part::parse(name).ok_or(InvalidRecord("requires"));
    Ok(Bounds {
        requires: bounds.requires.iter().map(part).collect::<Result<BTreeSet<_>, _>>()?,
        scope: parse_scope(bounds.scope),
        tier: Tier::parse(&bounds.tier).ok_or(InvalidRecord("tier"))?,
        on_failure: OnFailure::parse(&bounds.on_failure).ok_or(InvalidRecord("on_failure"))?,
        budget: parse_budget(bounds.budget),
        reach: parse_reach(bounds.reach.ok_or(InvalidRecord("reach"))?),
        delegates_to: bounds.delegates_to.map(|names| names.names.into_iter().collect()),
    })
}

pub(super) fn parse_key(key: &[u8], body: &[u8]) -> Result<Option<RequestKey>, InvalidRecord> {
    if key.is_empty() && body.is_empty() {
        return Ok(None);
    }
    let key = key.try_into().map_err(|_length| InvalidRecord("request_key"))?;
    let body = body.try_into().map_err(|_length| InvalidRecord("request_body"))?;
    Ok(Some(RequestKey { key, body }))
}
