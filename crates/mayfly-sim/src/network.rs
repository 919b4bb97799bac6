//! The feed and those who follow it: what is told is lost, repeated and overtaken.
//!
//! The world knows no messages, only their numbers: what a message is and what a follower makes of it
//! is behind [`Post`]. The world's own post hands deltas to copies of the core's set; `tests/sim.rs`
//! brings another, in which the shipped feed writes and the shipped library reads.

use std::fmt;

use mayfly_core::{Delta, Position, RevocationSet, Serial, Status, Timestamp};

use crate::rng::Rng;

/// A feed and its followers, who are known by number.
pub trait Post: fmt::Debug {
    /// The broker starts, and this is what it has published before.
    fn start(&mut self, published: &RevocationSet);
    /// The broker publishes. Gives the message's number.
    fn publish(&mut self, delta: &Delta) -> usize;
    /// A message arrives. `false` if the follower sees that it has missed something.
    fn deliver(&mut self, follower: usize, message: usize) -> bool;
    /// A follower connects anew, and the broker is there. `false` if the feed went back behind what
    /// this follower had heard (P9).
    fn connect(&mut self, follower: usize, published: &RevocationSet) -> bool;
    /// What a follower thinks of a credential.
    fn status(&self, follower: usize, serial: &Serial) -> Status;
    /// How far a follower has heard.
    fn position(&self, follower: usize) -> Position;
    /// Time passes for a follower.
    fn forget(&mut self, follower: usize, now: Timestamp);
}

/// Deltas as they are, and copies of the core's set.
#[derive(Debug)]
pub(crate) struct Plain {
    sent: Vec<Delta>,
    sets: Vec<RevocationSet>,
}

impl Plain {
    pub(crate) fn new(followers: usize) -> Self {
        Self { sent: Vec::new(), sets: vec![RevocationSet::default(); followers] }
    }
}

impl Post for Plain {
    fn start(&mut self, _published: &RevocationSet) {}

    fn publish(&mut self, delta: &Delta) -> usize {
        self.sent.push(delta.clone());
        self.sent.len() - 1
    }

    fn deliver(&mut self, follower: usize, message: usize) -> bool {
        let (Some(delta), Some(set)) = (self.sent.get(message), self.sets.get_mut(follower)) else {
            return false;
        };
        set.apply(delta)
    }

    fn connect(&mut self, follower: usize, published: &RevocationSet) -> bool {
        let Some(set) = self.sets.get_mut(follower) else { return false };
        let forward = published.position() >= set.position();
        *set = published.clone();
        forward
    }

    fn status(&self, follower: usize, serial: &Serial) -> Status {
        self.sets.get(follower).map_or(Status::Revoked, |set| set.status(serial))
    }

    fn position(&self, follower: usize) -> Position {
        self.sets.get(follower).map(RevocationSet::position).unwrap_or_default()
    }

    fn forget(&mut self, follower: usize, now: Timestamp) {
        if let Some(set) = self.sets.get_mut(follower) {
            set.forget(now);
        }
    }
}

/// The line to one follower.
#[derive(Debug, Default)]
pub(crate) struct Line {
    inbox: Vec<usize>,
    connected: bool,
    holed: bool,
}

impl Line {
    /// Whether messages are put on it at all.
    #[must_use]
    pub(crate) const fn is_connected(&self) -> bool {
        self.connected
    }

    /// Whether its follower knows that it has missed something.
    #[must_use]
    pub(crate) const fn is_holed(&self) -> bool {
        self.holed
    }

    /// Sends a message on its way, unless the network loses it.
    pub(crate) fn send(&mut self, message: usize, (loss, echo): (u64, u64), rng: &mut Rng) {
        if !self.connected || rng.chance(loss) {
            return;
        }
        self.inbox.push(message);
        if rng.chance(echo) {
            self.inbox.push(message);
        }
    }

    /// Takes one message that is under way off the line: the oldest, or any.
    pub(crate) fn next(&mut self, reorder: u64, rng: &mut Rng) -> Option<usize> {
        if self.inbox.is_empty() {
            return None;
        }
        let at = if rng.chance(reorder) { rng.index(self.inbox.len()) } else { 0 };
        Some(self.inbox.remove(at))
    }

    /// Its follower has missed something: it keeps what it has until it connects anew.
    pub(crate) const fn missed(&mut self) {
        self.holed = true;
    }

    /// A new connection.
    pub(crate) const fn connect(&mut self) {
        self.connected = true;
        self.holed = false;
    }

    /// The connection breaks. What is under way may still arrive.
    pub(crate) const fn cut(&mut self) {
        self.connected = false;
    }
}
