//! Profiles as operators are shown them.

use mayfly_proto::mayfly::v1 as wire;

use crate::{office::ProfileLine, view::scope};

pub(super) fn line(line: ProfileLine) -> wire::ProfileView {
    let ProfileLine { terms, selectors } = line;
    let bounds = terms.bounds;
    let (reach, budget) = (bounds.reach, bounds.budget);
    let delegates_to =
        bounds.delegates_to.map(|names| wire::Names { names: names.into_iter().collect() });
    wire::ProfileView {
        name: terms.profile,
        path: terms.path,
        owner: terms.owner,
        binding: terms.binding.name().to_owned(),
        selectors: selectors.iter().map(ToString::to_string).collect(),
        x509_ttl_ms: terms.x509_ttl.0,
        jwt_ttl_ms: terms.jwt_ttl.0,
        hint: terms.hint,
        stable_identity: terms.stable_identity,
        requires: bounds.requires.iter().map(|part| part.name().to_owned()).collect(),
        risk: bounds.tier.name().to_owned(),
        on_failure: bounds.on_failure.name().to_owned(),
        delegates_to,
        reach: Some(wire::Reach { depth: reach.depth, children: reach.children }),
        scope: Some(scope(&bounds.scope)),
        budget: Some(wire::Budget {
            issuances: budget.issuances,
            per_minute: budget.per_minute,
            attempts: budget.attempts,
        }),
        max_task_ms: terms.task_ttl.map_or(0, |ttl| ttl.0),
    }
}
