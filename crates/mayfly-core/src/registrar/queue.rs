//! Asks that wait for their turn, in order of need.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use crate::{
    event::{Ask, Basis},
    id::{TaskId, Ticket},
    limits,
    time::Timestamp,
};

/// Whose turn it is: the earliest need first, and of equal ones whoever came first.
pub(super) type Turn = (Timestamp, Ticket);

/// An ask that waits, as it was heard.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) basis: Basis,
    pub(super) ask: Ask,
    pub(super) luck: u64,
    pub(super) came_at: Timestamp,
}

/// See the module. Lost in a crash, as those are who wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    asks: BTreeMap<Turn, Waiting>,
    by_task: BTreeSet<(TaskId, Turn)>,
    by_coming: BTreeSet<(Timestamp, Turn)>,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.asks.len()
    }

    pub(super) fn insert(&mut self, turn: Turn, waiting: Waiting) {
        self.by_task.insert((waiting.basis.task, turn));
        self.by_coming.insert((waiting.came_at, turn));
        self.asks.insert(turn, waiting);
    }

    pub(super) fn remove(&mut self, turn: Turn) -> Option<(Ticket, Waiting)> {
        let waiting = self.asks.remove(&turn)?;
        self.by_task.remove(&(waiting.basis.task, turn));
        self.by_coming.remove(&(waiting.came_at, turn));
        Some((turn.1, waiting))
    }

    /// Whoever is next.
    pub(super) fn pop_first(&mut self) -> Option<(Ticket, Waiting)> {
        let turn = *self.asks.first_key_value()?.0;
        self.remove(turn)
    }

    /// Whoever can wait longest.
    pub(super) fn pop_last(&mut self) -> Option<(Ticket, Waiting)> {
        let turn = *self.asks.last_key_value()?.0;
        self.remove(turn)
    }

    /// When somebody will have waited for too long.
    pub(super) fn overdue_at(&self) -> Option<Timestamp> {
        self.by_coming.first().map(|(came_at, _)| came_at.plus(limits::ASK_WAIT_MAX))
    }

    /// Whoever has waited longest, if that is too long at `now`.
    pub(super) fn pop_overdue(&mut self, now: Timestamp) -> Option<(Ticket, Waiting)> {
        self.overdue_at().filter(|at| *at <= now)?;
        let (_, turn) = *self.by_coming.first()?;
        self.remove(turn)
    }

    /// The turns of a task.
    pub(super) fn of(&self, task: TaskId) -> impl Iterator<Item = Turn> {
        let (first, last) = ((Timestamp(0), Ticket(0)), (Timestamp(u64::MAX), Ticket(u64::MAX)));
        self.by_task.range((task, first)..=(task, last)).map(|(_, turn)| *turn)
    }

    /// Takes all, in their order.
    pub(super) fn drain(&mut self) -> Vec<Ticket> {
        let all = core::mem::take(self).asks;
        all.into_keys().map(|(_, ticket)| ticket).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{PolicyEpoch, TaskVersion};

    fn waiting(task: u8, came_at: u64) -> Waiting {
        let task = TaskId::from_bytes([task; 16]);
        let basis = Basis { task, version: TaskVersion(1), epoch: PolicyEpoch(1) };
        Waiting { basis, ask: Ask::X509, luck: 0, came_at: Timestamp(came_at) }
    }

    #[test]
    fn the_earliest_need_is_first_and_whoever_leaves_leaves_nothing() {
        let mut queue = Queue::default();
        for (need, ticket, task) in [(30, 1, 1), (10, 2, 2), (10, 3, 1), (20, 4, 2)] {
            queue.insert((Timestamp(need), Ticket(ticket)), waiting(task, ticket));
        }
        let of = |queue: &Queue, task: u8| -> Vec<u64> {
            queue.of(TaskId::from_bytes([task; 16])).map(|(_, ticket)| ticket.0).collect()
        };
        assert_eq!(
            (of(&queue, 1), of(&queue, 2), of(&queue, 3)),
            ([3, 1].into(), [2, 4].into(), [].into())
        );
        let ticket = |one: Option<(Ticket, Waiting)>| one.map(|(ticket, _)| ticket.0);
        let longest = limits::ASK_WAIT_MAX.as_millis();
        assert_eq!(ticket(queue.pop_overdue(Timestamp(longest))), None);
        assert_eq!(ticket(queue.pop_overdue(Timestamp(longest + 1))), Some(1));
        assert_eq!(ticket(queue.pop_first()), Some(2));
        assert_eq!(ticket(queue.pop_last()), Some(4));
        assert_eq!((queue.drain(), queue.len()), ([Ticket(3)].into(), 0));
        assert!(queue.by_task.is_empty() && queue.by_coming.is_empty());
    }
}
