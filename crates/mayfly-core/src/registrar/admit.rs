//! Who is served first when many ask at once.
//!
//! So many credentials are promised and not signed yet at a time; whoever asks beyond that waits here.
//! An ask has a *need*: the instant from which its task is without a credential of that kind. Of a task
//! that holds none, that is the instant at which it asked. Of a renewal it is the end of what the task
//! holds, less a margin in which a queue that is full can be worked off. The earliest need is served
//! first: so new tasks come before renewals, renewals by the nearness of their end, and a renewal whose
//! end is upon it before new tasks. Nobody starves of it, because time passes every need, and whoever
//! asks later than that has a later one.
//!
//! Waiting promises nothing. When its turn has come an ask is judged like one that has just arrived.

use alloc::vec::Vec;

use super::{
    Registrar,
    issue::{active, permits},
    queue::Waiting,
};
use crate::{
    event::{Ask, Basis, Denial, Effect},
    id::{TaskId, Ticket},
    ledger::Kind,
    limits,
    task::Task,
    time::Timestamp,
};

/// How many may ask at once. A registrar that serves has the bounds of [`limits`], which are the default.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Admission {
    /// Credentials that are promised and not signed yet.
    pub signing_max: usize,
    /// Asks that wait.
    pub waiting_max: usize,
    /// Those of them that are of one task.
    pub per_task_max: usize,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            signing_max: limits::SIGNING_MAX,
            waiting_max: limits::ASKS_WAITING_MAX,
            per_task_max: limits::ASKS_WAITING_PER_TASK_MAX,
        }
    }
}

impl Registrar {
    /// Serves an ask at once where there is room, and lets it wait otherwise.
    pub(super) fn admit(&mut self, ticket: Ticket, basis: Basis, ask: Ask, luck: u64) {
        // INVARIANT P14: nobody waits while there is room, so whoever comes then passes nobody.
        if self.has_room() || self.halted {
            return self.asked(ticket, basis, ask, luck);
        }
        match self.need(basis, &ask) {
            Some(need) => {
                let came_at = self.now;
                self.wait((need, ticket), Waiting { basis, ask, luck, came_at });
            }
            // A No does not have to wait for its turn.
            None => self.asked(ticket, basis, ask, luck),
        }
    }

    fn has_room(&self) -> bool {
        self.signing.len() < self.charter.admission.signing_max.max(1)
    }

    /// From when on the task is without what it asks for; `None` if it will not be given it anyway.
    fn need(&self, basis: Basis, ask: &Ask) -> Option<Timestamp> {
        let task = self.tasks.get(&basis.task).filter(|_| basis.epoch == self.policy_epoch)?;
        active(task, basis.version).and_then(|()| permits(ask, &task.mandate.scope)).ok()?;
        #[cfg(feature = "planted")]
        if self.has_planted(super::Planted::ServeByArrival) {
            return Some(self.now);
        }
        let end = self.end_of_held(task, ask.kind());
        Some(end.map_or(self.now, |end| end.minus(limits::RENEWAL_MARGIN)))
    }

    /// When the newest credential of that kind expires which the task can use.
    fn end_of_held(&self, task: &Task, kind: Kind) -> Option<Timestamp> {
        // The newest stand last.
        let held = task.credentials.of(kind).iter().rev().find(|credential| {
            credential.version == task.version
                && credential.revoked_at.is_none()
                && credential.not_after > self.now
                && !self.is_ahead(task.id, credential.serial)
        });
        held.map(|credential| credential.not_after)
    }

    fn wait(&mut self, turn: (Timestamp, Ticket), waiting: Waiting) {
        let task = waiting.basis.task;
        // INVARIANT P10: a task that asks as fast as it can takes few of the places that all share.
        if self.waiting.of(task).count() >= self.charter.admission.per_task_max {
            return self.turn_away(turn.1, task);
        }
        self.waiting.insert(turn, waiting);
        if self.waiting.len() > self.charter.admission.waiting_max
            && let Some((ticket, last)) = self.waiting.pop_last()
        {
            self.turn_away(ticket, last.basis.task);
        }
    }

    fn turn_away(&mut self, ticket: Ticket, task: TaskId) {
        let profile = self.tasks.get(&task).map(|task| task.terms.profile.clone());
        self.refuse(ticket, Denial::Overloaded, (Some(task), &profile.unwrap_or_default()));
    }

    /// Serves those that wait, for as long as there is room.
    pub(super) fn take_turns(&mut self) {
        while self.has_room() {
            // INVARIANT P14: the earliest need first.
            let Some((ticket, waiting)) = self.waiting.pop_first() else { return };
            self.asked(ticket, waiting.basis, waiting.ask, waiting.luck);
        }
    }

    /// Answers those that have waited for too long: full is an answer, also where nothing moves.
    pub(super) fn turn_away_overdue(&mut self) {
        while let Some((ticket, waiting)) = self.waiting.pop_overdue(self.now) {
            self.turn_away(ticket, waiting.basis.task);
        }
    }

    /// INVARIANT P1: the task has changed, and those that wait for it hear what of it at once.
    pub(super) fn dismiss(&mut self, id: TaskId) {
        let turns: Vec<_> = self.waiting.of(id).collect();
        for turn in turns {
            let Some((ticket, waiting)) = self.waiting.remove(turn) else { continue };
            let task = self.tasks.get(&id).ok_or(Denial::TaskUnknown);
            match task.and_then(|task| active(task, waiting.basis.version)) {
                Ok(()) => self.waiting.insert(turn, waiting),
                Err(Denial::TaskVersion) => self.effects.push_back(Effect::Reconsider { ticket }),
                Err(denial) => self.withhold(ticket, denial),
            }
        }
    }

    /// Asks that wait for their turn.
    #[must_use]
    pub fn asks_waiting(&self) -> usize {
        self.waiting.len()
    }
}
