//! What applying a file would change, before it is applied.

use std::{collections::BTreeMap, fmt};

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
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { profile } => write!(f, "+ {profile}"),
            Self::Removed { profile } => write!(f, "- {profile}"),
            Self::Changed { profile, field, was, is } => {
                write!(f, "~ {profile}: {field}: {was} -> {is}")
            }
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
fn settings(profile: &Profile) -> [(&'static str, String); 10] {
    let terms = &profile.terms;
    let list = |items: Vec<&str>| format!("[{}]", items.join(", "));
    let identity = if terms.stable_identity { "stable" } else { "task" };
    [
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
    ]
}
