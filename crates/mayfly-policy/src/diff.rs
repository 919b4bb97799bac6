//! What applying a file would change, before it is applied.

use std::{collections::BTreeMap, fmt};

use mayfly_core::{Bounds, Extent};

use crate::{duration, profiles::Profile};

/// One change between two editions.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Difference {
    /// A profile that the old edition does not have.
    Added {
        /// Its name.
        profile: String,
    },
    /// A profile that the new edition does not have: its tasks end.
    Removed {
        /// Its name.
        profile: String,
    },
    /// A setting of a profile. Tasks that have begun keep the terms that they began with.
    Changed {
        /// The profile's name.
        profile: String,
        /// The key in the file.
        field: &'static str,
        /// What it was.
        was: String,
        /// What it is to be.
        is: String,
    },
    /// Somebody who was not accountable before.
    Joined {
        /// Who.
        owner: String,
    },
    /// Somebody who is not accountable any more: their tasks end, or go to somebody else.
    Left {
        /// Who.
        owner: String,
        /// Who takes their tasks.
        heir: Option<String>,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { profile } => write!(f, "+ {profile}"),
            Self::Removed { profile } => write!(f, "- {profile}"),
            Self::Changed { profile, field, was, is } => {
                write!(f, "~ {profile}: {field}: {was} -> {is}")
            }
            Self::Joined { owner } => write!(f, "+ owner {owner}"),
            Self::Left { owner, heir: None } => write!(f, "- owner {owner}"),
            Self::Left { owner, heir: Some(heir) } => write!(f, "- owner {owner}, to {heir}"),
        }
    }
}

/// Everything that differs, in the order of the new file; what is gone comes last.
pub(crate) fn diff(old: &[Profile], new: &[Profile]) -> Vec<Difference> {
    let (before, after) = (by_name(old), by_name(new));
    let mut all = Vec::new();
    for profile in new {
        match before.get(profile.terms.profile.as_str()) {
            None => all.push(Difference::Added { profile: profile.terms.profile.clone() }),
            Some(was) => all.extend(changes(was, profile)),
        }
    }
    let gone = old
        .iter()
        .map(|profile| &profile.terms.profile)
        .filter(|name| !after.contains_key(name.as_str()));
    all.extend(gone.map(|name| Difference::Removed { profile: name.clone() }));
    all
}

fn by_name(profiles: &[Profile]) -> BTreeMap<&str, &Profile> {
    profiles.iter().map(|profile| (profile.terms.profile.as_str(), profile)).collect()
}

fn changes(old: &Profile, new: &Profile) -> Vec<Difference> {
    settings(old)
        .into_iter()
        .zip(settings(new))
        .filter(|((_, was), (_, is))| was != is)
        .map(|((field, was), (_, is))| Difference::Changed {
            profile: new.terms.profile.clone(),
            field,
            was,
            is,
        })
        .collect()
}

/// Every setting as the file would spell it.
fn settings(profile: &Profile) -> Vec<(&'static str, String)> {
    let terms = &profile.terms;
    let list = |items: Vec<&str>| format!("[{}]", items.join(", "));
    let identity = if terms.stable_identity { "stable" } else { "task" };
    let mut all = vec![
        ("path", terms.path.clone()),
        ("selectors", list(profile.selectors.iter().map(|s| s.as_str()).collect())),
        ("owner", terms.owner.clone()),
        ("binding", terms.binding.name().into()),
        ("identity", identity.into()),
        ("hint", format!("{:?}", terms.hint)),
        ("x509_ttl", duration::format(terms.x509_ttl)),
        ("jwt_ttl", duration::format(terms.jwt_ttl)),
        ("max_task", terms.task_ttl.map_or_else(|| "none".into(), duration::format)),
        ("federates_with", list(terms.federates_with.iter().map(|td| td.as_str()).collect())),
    ];
    all.extend(bounds(&terms.bounds));
    all
}

/// The same of what tasks have to declare, and of how far they may go.
fn bounds(bounds: &Bounds) -> [(&'static str, String); 13] {
    let names = |names: Vec<&str>| format!("[{}]", names.join(", "));
    let extent = |extent: &Extent| match extent {
        Extent::Any => "any".to_owned(),
        Extent::Only(only) => names(only.iter().map(String::as_str).collect()),
    };
    let delegates_to = bounds.delegates_to.as_ref();
    let (reach, budget) = (bounds.reach, bounds.budget);
    let most = |number: Option<u64>| number.map_or_else(|| "none".into(), |n| n.to_string());
    [
        ("requires", names(bounds.requires.iter().map(|part| part.name()).collect())),
        ("risk", bounds.tier.name().into()),
        ("on_failure", bounds.on_failure.name().into()),
        (
            "delegates_to",
            delegates_to.map_or_else(
                || "any".into(),
                |only| names(only.iter().map(String::as_str).collect()),
            ),
        ),
        ("max_depth", reach.depth.to_string()),
        ("max_children", reach.children.to_string()),
        ("scope.actions", extent(&bounds.scope.actions)),
        ("scope.resources", extent(&bounds.scope.resources)),
        ("scope.audiences", extent(&bounds.scope.audiences)),
        ("scope.tools", extent(&bounds.scope.tools)),
        ("budget.issuances", most(budget.issuances)),
        ("budget.per_minute", most(budget.per_minute.map(u64::from))),
        ("budget.attempts", most(budget.attempts.map(u64::from))),
    ]
}
