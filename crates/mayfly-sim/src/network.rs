//! The feed and those who follow it: deltas are lost, repeated and overtaken.

use mayfly_core::{Delta, Position, RevocationSet};

use crate::rng::Rng;

/// A verifier, with its copy of the revocation set.
#[derive(Debug)]
pub(crate) struct Follower {
    /// What it has heard.
    pub set: RevocationSet,
    inbox: Vec<Delta>,
    connected: bool,
    holed: bool,
}

impl Follower {
    /// A follower that has heard nothing.
    #[must_use]
    pub(crate) const fn new() -> Self {
        let set = RevocationSet::at(Position {
            shard: mayfly_core::Shard(0),
            sequence: mayfly_core::Sequence(0),
        });
        Self { set, inbox: Vec::new(), connected: false, holed: false }
    }

    /// Whether deltas reach it at all.
    #[must_use]
    pub(crate) const fn is_connected(&self) -> bool {
        self.connected
    }

    /// Whether it knows that it has missed something.
    #[must_use]
    pub(crate) const fn is_holed(&self) -> bool {
        self.holed
    }

    /// Sends a delta on its way, unless the network loses it.
    pub(crate) fn send(&mut self, delta: &Delta, (loss, echo): (u64, u64), rng: &mut Rng) {
        if !self.connected || rng.chance(loss) {
            return;
        }
        self.inbox.push(delta.clone());
        if rng.chance(echo) {
            self.inbox.push(delta.clone());
        }
    }

    /// Hears one delta that is under way: the oldest, or any. Says whether there was one.
    pub(crate) fn hear(&mut self, reorder: u64, rng: &mut Rng) -> bool {
        if self.inbox.is_empty() {
            return false;
        }
        let at = if rng.chance(reorder) { rng.index(self.inbox.len()) } else { 0 };
        let delta = self.inbox.remove(at);
        // A hole is not guessed over: the follower keeps what it has until it hears a snapshot.
        self.holed |= !self.set.apply(&delta);
        true
    }

    /// Takes a whole set, as a snapshot brings it. `false` if the feed went back behind what this
    /// follower had heard (P9).
    #[must_use]
    pub(crate) fn resync(&mut self, set: &RevocationSet) -> bool {
        let forward = set.position() >= self.set.position();
        self.set = set.clone();
        self.connected = true;
        self.holed = false;
        forward
    }

    /// Loses its connection. What is under way may still arrive.
    pub(crate) const fn cut(&mut self) {
        self.connected = false;
    }
}

impl Default for Follower {
    fn default() -> Self {
        Self::new()
    }
}
