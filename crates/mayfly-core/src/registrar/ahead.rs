//! The first certificate of a task, promised before anybody asks for it.
//!
//! Whoever begins a task with a socket of its own sends somebody there, and what they come for first is a
//! certificate. Its promise stands right behind the beginning, so that one commit of the disk bears both and
//! the ask, when it comes, waits for none. If nobody comes it is remembered, listed and revoked like
//! every other promise of which nothing has come, and signed by nobody.
//!
//! It is dated at the beginning, so it is good for a short while only. That it has not been used yet is not
//! written down: after a crash, whoever comes is promised another.

use alloc::collections::BTreeMap;

use super::Registrar;
use crate::{
    evidence::Holder,
    id::{Sequence, TaskId, TaskVersion},
    ledger::{Kind, Serial},
    limits,
    record::Fact,
    time::{Span, Timestamp},
};

/// A promise that waits for somebody to ask.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ahead {
    pub(super) serial: Serial,
    pub(super) not_after: Timestamp,
    sequence: Sequence,
    /// Until when it is as good as one that is promised when it is asked for.
    pub(super) until: Timestamp,
}

pub(super) type AheadOf = BTreeMap<TaskId, Ahead>;

impl Registrar {
    /// Promises a task that was begun just now its first certificate, if it is worth it.
    pub(super) fn promise_ahead(&mut self, id: TaskId, luck: u64) {
        let Some(task) = self.tasks.get(&id).filter(|_| !self.is_full()) else { return };
        // Who keeps a lease from afar may never come to its socket, and what is counted is not spent on
        // somebody who may not come.
        if task.holder != Holder::Socket || task.mandate.budget.counts() {
            return;
        }
        // What speaks against it will be told to whoever asks.
        let Ok((not_after, place)) = self.term(id, Kind::X509) else { return };
        let (serial, version, count) = (Serial::new(place, luck), TaskVersion(1), (0, 0));
        let kind = Kind::X509;
        self.journal(Fact::Promised { task: id, version, kind, serial, not_after, count });
        let life = not_after.since(self.now);
        let fresh = Span(life.0 / limits::AHEAD_SHARE).min(limits::AHEAD_MAX);
        let ahead = Ahead { serial, not_after, sequence: self.last, until: self.now.plus(fresh) };
        self.ahead.insert(id, ahead);
    }

    /// What was promised to the task ahead, for the first who asks; nothing, if that would be worse than a
    /// new promise.
    pub(super) fn take_ahead(&mut self, id: TaskId) -> Option<Ahead> {
        let ahead = self.ahead.remove(&id)?;
        // INVARIANT P2: what is not on disk yet is signed by nobody. Who comes so early waits for the disk anyway.
        let durable = ahead.sequence <= self.durable;
        let stands = self.standing(id, &ahead.serial).is_ok();
        (durable && stands && self.now < ahead.until).then_some(ahead)
    }

    /// Whether nobody has been given that certificate yet, which was promised ahead.
    pub(super) fn is_ahead(&self, id: TaskId, serial: Serial) -> bool {
        self.ahead.get(&id).is_some_and(|ahead| ahead.serial == serial && self.now < ahead.until)
    }
}
