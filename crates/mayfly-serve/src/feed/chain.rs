//! What the feed has said, as a chain of batches: each holds the hash of the one before it, so the
//! newest head vouches for all of them.
//!
//! Nothing here waits, asks for the time or signs. The chain holds the set that all followers arrive
//! at, and as many of the last batches as it may, so that a follower that was away for a while is told
//! what it has missed and not everything.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use mayfly_core::{
    Delta, Position, RevocationSet, Timestamp,
    batch::{BATCH_LABEL, Changes, HASH_BYTES},
};
use mayfly_proto::mayfly::v1 as wire;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::limits;

/// SHA-256.
pub type Hash = [u8; HASH_BYTES];

/// Hashes pieces as if they were one.
pub(crate) fn hash(pieces: &[&[u8]]) -> Hash {
    let mut hash = Sha256::new();
    pieces.iter().for_each(|piece| hash.update(piece));
    hash.finalize().into()
}

/// A batch as it travels, and what vouches for it.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Where it begins.
    pub from: Position,
    /// Where it ends.
    pub to: Position,
    /// The chain's hash after it.
    pub hash: Hash,
    /// The message.
    pub body: Bytes,
    /// The chain's hash before it.
    prev: Hash,
}

/// A batch with its seal.
#[derive(Clone, Debug)]
pub struct Told {
    /// The batch.
    pub batch: Batch,
    /// The seal over its end.
    pub sealed: wire::Sealed,
    /// When it was told, on the clock that only goes on.
    pub at: Timestamp,
}

/// What a follower at some position has to hear.
#[derive(Debug)]
pub enum Next {
    /// Nothing: it stands where the chain does.
    Nothing,
    /// These, in order.
    Batches(Vec<Arc<Told>>),
    /// The chain does not remember that position.
    Everything,
}

/// See the module.
#[derive(Debug)]
pub struct Chain {
    set: RevocationSet,
    hash: Hash,
    history: VecDeque<Arc<Told>>,
    /// Bytes of all bodies in the history.
    bytes: usize,
    /// When it last dropped what is over.
    forgot_at: Timestamp,
}

impl Chain {
    /// A chain that begins with `set`. Two that begin at the same position are told apart by when they
    /// began: what lies behind them may differ, after a backup was restored.
    #[must_use]
    pub fn start(set: RevocationSet, at: Timestamp) -> Self {
        let position = set.position();
        let (shard, sequence) = (position.shard.0.to_be_bytes(), position.sequence.0.to_be_bytes());
        let hash = hash(&[b"mayfly.v1 start\0", &shard, &sequence, &at.0.to_be_bytes()]);
        Self { set, hash, history: VecDeque::new(), bytes: 0, forgot_at: Timestamp(0) }
    }

    /// Where the chain stands.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.set.position()
    }

    /// The hash at that position.
    #[must_use]
    pub const fn hash(&self) -> &Hash {
        &self.hash
    }

    /// What its followers arrive at.
    #[must_use]
    pub const fn set(&self) -> &RevocationSet {
        &self.set
    }

    /// Writes the batch that would come next.
    #[must_use]
    pub fn draft(&self, to: Position, changes: &Changes) -> Batch {
        let from = self.position();
        let body = wire::Batch {
            shard: from.shard.0.into(),
            from: from.sequence.0,
            to: to.sequence.0,
            prev_hash: Bytes::copy_from_slice(&self.hash),
            changes: changes.encode().into(),
        };
        let body = Bytes::from(body.encode_to_vec());
        Batch { from, to, hash: hash(&[BATCH_LABEL, &body]), body, prev: self.hash }
    }

    /// Appends a batch that was drafted last, with the changes in it.
    pub fn append(&mut self, told: Told, changes: &Changes) {
        self.advance(told.batch.to, changes);
        self.hash = told.batch.hash;
        self.bytes += told.batch.body.len();
        let kept_since = told.at.minus(limits::HISTORY_FOR);
        self.history.push_back(Arc::new(told));
        while self.bytes > limits::HISTORY_BYTES_MAX
            || self.history.len() > limits::HISTORY_BATCHES_MAX
            || self.history.front().is_some_and(|oldest| oldest.at < kept_since)
        {
            let Some(oldest) = self.history.pop_front() else { break };
            self.bytes -= oldest.batch.body.len();
        }
    }

    /// Takes changes that are too many to be told one by one: everybody starts over.
    pub fn leap(&mut self, to: Position, changes: &Changes, at: Timestamp) {
        self.advance(to, changes);
        let set = std::mem::take(&mut self.set);
        *self = Self::start(set, at);
    }

    fn advance(&mut self, to: Position, changes: &Changes) {
        let delta = Delta { from: self.position(), to, changes: changes.iter().collect() };
        let applied = self.set.apply(&delta);
        // INVARIANT P9: it begins where the set stands, so the set takes it.
        debug_assert!(applied, "P9: a batch does not fit the chain it was written for");
    }

    /// Drops the windows that nobody can show any more at `now`.
    pub fn forget(&mut self, now: Timestamp) {
        self.set.forget(now);
        self.forgot_at = now;
    }

    /// The same, once in a while.
    pub fn forget_at_times(&mut self, now: Timestamp) {
        if now.since(self.forgot_at) >= limits::FORGET_EACH {
            self.forget(now);
        }
    }

    /// Whether the chain remembers having been at `position` with `hash`.
    #[must_use]
    pub fn remembers(&self, position: Position, hash: &Hash) -> bool {
        if position == self.position() {
            return self.hash == *hash;
        }
        self.find(position).is_some_and(|told| told.batch.prev == *hash)
    }

    /// The bytes of all batches after `position`; `None` if it is not remembered.
    #[must_use]
    pub fn bytes_after(&self, position: Position) -> Option<usize> {
        if position == self.position() {
            return Some(0);
        }
        let first = self.index(position)?;
        Some(self.history.iter().skip(first).map(|told| told.batch.body.len()).sum())
    }

    /// What a follower at `position` hears next, in one message.
    #[must_use]
    pub fn next(&self, position: Position) -> Next {
        if position == self.position() {
            return Next::Nothing;
        }
        let Some(first) = self.index(position) else { return Next::Everything };
        let mut bytes = 0;
        let fits = |told: &&Arc<Told>| {
            let is_first = bytes == 0;
            bytes += told.batch.body.len();
            is_first || bytes <= limits::BATCHES_BYTES_MAX
        };
        Next::Batches(self.history.iter().skip(first).take_while(fits).cloned().collect())
    }

    fn find(&self, position: Position) -> Option<&Arc<Told>> {
        self.history.get(self.index(position)?)
    }

    /// Where the batch that begins at `position` stands in the history.
    fn index(&self, position: Position) -> Option<usize> {
        let at = self.history.partition_point(|told| told.batch.from < position);
        self.history.get(at).filter(|told| told.batch.from == position).map(|_| at)
    }
}

#[cfg(test)]
mod tests {
    use mayfly_core::{Change, Place, Sequence, Shard, Slot, Status, Window};

    use super::*;

    #[test]
    fn batches_are_kept_for_five_minutes() {
        let mut chain = Chain::start(RevocationSet::default(), Timestamp(0));
        let position = |sequence| Position { shard: Shard(0), sequence: Sequence(sequence) };
        for second in 0..1_000_u32 {
            let place = Place { window: Window(3_000_000), slot: Slot(second) };
            let mut changes = Changes::default();
            changes.take(Change::Place(place, Status::Revoked));
            let batch = chain.draft(position(u64::from(second) + 1), &changes);
            let at = Timestamp(u64::from(second) * 1_000);
            chain.append(Told { batch, sealed: wire::Sealed::default(), at }, &changes);
        }
        assert!(chain.bytes_after(position(699)).is_some(), "told 300 seconds before the last");
        assert!(chain.bytes_after(position(698)).is_none(), "told 301 seconds before it");
        let bodies = chain.history.iter().map(|told| told.batch.body.len());
        assert_eq!(bodies.sum::<usize>(), chain.bytes);
    }
}
