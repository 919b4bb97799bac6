//! What profiles bound and tasks declare, from a universe so small that things meet in it.

use mayfly_core::{
    Bounds, Budget, Extent, Mandate, OnFailure, Reach, RequestKey, Scope, Span, Tier, Trigger,
};

use crate::rng::Rng;

/// The names of every dimension: some stand for others.
const NAMES: [&str; 7] = ["a", "ab", "abc", "b", "a*", "ab*", "*"];
/// Words that tell any two extents of [`NAMES`] apart.
pub(crate) const WORDS: [&str; 7] = ["a", "ab", "abc", "abd", "ac", "b", "c"];
/// Who may be accountable.
pub(crate) const OWNERS: [&str; 3] = ["o0", "o1", "o2"];
/// Who takes what others leave. Never leaves.
pub(crate) const HEIR: &str = "heir";

/// How much of it there is in one world, per mille.
#[derive(Clone, Copy, Debug)]
pub struct Charge {
    /// Dimensions of which something is said.
    pub narrow: u64,
    /// Budgets, reaches and lives of credentials that are bounded.
    pub counted: u64,
    /// Beginnings that are jobs.
    pub jobs: u64,
    /// Beginnings that are told under a key.
    pub keys: u64,
    /// Holders that exit with an error, and tasks that fail.
    pub fails: u64,
}

impl Charge {
    fn extent(self, rng: &mut Rng) -> Extent {
        if !rng.chance(self.narrow) {
            return Extent::Any;
        }
        let count = rng.index(5);
        Extent::only((0..count).filter_map(|_| rng.pick(&NAMES).copied()))
    }

    pub(crate) fn scope(self, rng: &mut Rng) -> Scope {
        Scope {
            actions: self.extent(rng),
            resources: self.extent(rng),
            audiences: self.extent(rng),
            tools: self.extent(rng),
        }
    }

    fn budget(self, rng: &mut Rng) -> Budget {
        Budget {
            issuances: rng.chance(self.counted).then(|| 1 + rng.below(8)),
            per_minute: rng.chance(self.counted).then(|| 1 + few(rng, 3)),
            attempts: rng.chance(self.counted).then(|| 1 + few(rng, 3)),
        }
    }

    fn reach(self, rng: &mut Rng) -> Option<Reach> {
        let bounded = rng.chance(self.counted);
        bounded.then(|| Reach { depth: few(rng, 4), children: 1 + few(rng, 3) })
    }

    /// What a profile demands and allows, when there are so many.
    pub(crate) fn bounds(self, profiles: u64, rng: &mut Rng) -> Bounds {
        let to = rng.chance(self.counted / 3);
        let to = to.then(|| (0..2).map(|_| format!("p{}", rng.below(profiles))).collect());
        Bounds {
            requires: Default::default(),
            scope: self.scope(rng),
            tier: *rng.pick(&Tier::ALL).unwrap_or(&Tier::Low),
            on_failure: if rng.chance(400) { OnFailure::Quarantine } else { OnFailure::End },
            budget: self.budget(rng),
            reach: self.reach(rng).unwrap_or_default(),
            delegates_to: to,
        }
    }

    /// What a task declares. Most say little: whoever claims at random is refused.
    pub(crate) fn mandate(self, rng: &mut Rng) -> Mandate {
        let mut mandate = Mandate::default();
        if rng.chance(600) {
            return mandate;
        }
        mandate.scope = self.scope(rng);
        mandate.budget = self.budget(rng);
        mandate.reach = self.reach(rng);
        mandate.ttl = rng.chance(self.counted).then(|| Span::from_secs(2 + rng.below(60)));
        mandate.tier = rng.pick(&Tier::ALL).copied();
        if rng.chance(300) {
            mandate.triggers.insert(Trigger::Budget);
        }
        mandate
    }

    /// Audiences that somebody asks for.
    pub(crate) fn audience(rng: &mut Rng) -> Vec<String> {
        let count = 1 + rng.index(2);
        (0..count).filter_map(|_| rng.pick(&WORDS)).map(|word| String::from(*word)).collect()
    }

    /// A name for a wish.
    pub(crate) fn key(rng: &mut Rng) -> RequestKey {
        let half = |rng: &mut Rng| {
            let mut bytes = [0; 32];
            bytes.iter_mut().zip(rng.bytes()).for_each(|(to, from)| *to = from);
            bytes
        };
        RequestKey { key: half(rng), body: half(rng) }
    }
}

fn few(rng: &mut Rng, below: u64) -> u32 {
    u32::try_from(rng.below(below)).unwrap_or(0)
}
