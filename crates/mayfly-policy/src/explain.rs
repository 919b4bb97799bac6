//! Why not? The answer that `mayfly doctor` prints.

use std::cmp::Reverse;

use mayfly_core::{Binding, Evidence, Selector};

use crate::profiles::Profile;

/// How near one profile is to the evidence.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Explanation {
    /// Its name.
    pub profile: String,
    /// How its tasks are held: one that matches may still ask for a task that is begun by name.
    pub binding: Binding,
    /// The selectors that were seen.
    pub matched: Vec<Selector>,
    /// The selectors that were not.
    pub missing: Vec<Missing>,
    /// Whether the caller would have had to come through a task's own socket, and did not.
    pub needs_socket: bool,
}

/// One selector that was asked for and not seen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Missing {
    /// What the profile asks for.
    pub wanted: Selector,
    /// What was seen of the same kind instead. Empty if the attestor said nothing about it.
    pub had: Vec<Selector>,
}

impl Explanation {
    /// Whether the profile matches.
    #[must_use]
    pub const fn matches(&self) -> bool {
        self.missing.is_empty() && !self.needs_socket
    }

    /// How many conditions were not met.
    const fn distance(&self) -> usize {
        self.missing.len() + self.needs_socket as usize
    }
}

/// Explains every profile, nearest first: fewest conditions unmet, then most met, then file order.
pub(crate) fn explain(profiles: &[Profile], evidence: &Evidence) -> Vec<Explanation> {
    let mut all: Vec<_> = profiles.iter().map(|profile| explain_one(profile, evidence)).collect();
    all.sort_by_key(|one| (one.distance(), Reverse(one.matched.len())));
    all
}

fn explain_one(profile: &Profile, evidence: &Evidence) -> Explanation {
    let (matched, missing): (Vec<_>, Vec<_>) = profile
        .selectors
        .iter()
        .cloned()
        .partition(|selector| evidence.selectors.contains(selector));
    Explanation {
        profile: profile.terms.profile.clone(),
        binding: profile.terms.binding,
        matched,
        missing: missing
            .into_iter()
            .map(|wanted| Missing { had: same_kind(&wanted, evidence), wanted })
            .collect(),
        needs_socket: profile.rests_on_socket() && evidence.caller.socket.is_none(),
    }
}

fn same_kind(wanted: &Selector, evidence: &Evidence) -> Vec<Selector> {
    evidence.selectors.iter().filter(|seen| seen.kind() == wanted.kind()).cloned().collect()
}
