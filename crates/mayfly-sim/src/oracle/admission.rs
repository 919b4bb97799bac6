//! Who asks, who waits, and whether the one who needed it first was served first.

use mayfly_core::{Admission, Basis, Kind, Serial, TaskId, Ticket, Timestamp, limits};

use super::{Oracle, Violation, uphold};

type Checked = Result<(), Violation>;

/// An ask that is not answered.
#[derive(Debug)]
pub(super) struct Asking {
    ticket: Ticket,
    basis: Basis,
    kind: Kind,
    luck: u64,
    /// Since when, or from when on, its task is without such a credential.
    need: Timestamp,
    came_at: Timestamp,
    promised: bool,
}

impl Oracle {
    /// Somebody asks for a credential of this kind.
    pub(crate) fn asks(&mut self, ticket: Ticket, basis: Basis, (kind, luck): (Kind, u64)) {
        let held = self.promises().filter(|known| {
            (known.task, known.kind) == (basis.task, kind)
                && known.version == self.version(basis.task)
                && known.not_after > self.now
                && !self.is_revoked_alone(known.serial)
                && !self.is_ahead(known.serial)
        });
        let end = held.last().map(|newest| newest.not_after);
        let need = end.map_or(self.now, |end| end.minus(limits::RENEWAL_MARGIN));
        let came_at = self.now;
        self.asking.push(Asking { ticket, basis, kind, luck, need, came_at, promised: false });
    }

    /// Somebody is answered.
    pub(crate) fn answered(&mut self, ticket: Ticket) {
        self.asking.retain(|asking| asking.ticket != ticket);
    }

    /// The ask for which `serial` was promised.
    pub(super) fn asked_for(&self, serial: Serial) -> Result<Ticket, Violation> {
        let is_it = |asking: &&Asking| !asking.promised && luck_of(serial) == asking.luck;
        let asking = self.asking.iter().find(is_it).map(|asking| asking.ticket);
        asking.ok_or_else(|| Violation { law: "P10", what: format!("nobody asked for {serial}") })
    }

    /// Whether it is a certificate for this task for which that caller waits.
    pub(super) fn waits_for_first(&self, ticket: Ticket, task: TaskId) -> bool {
        self.asking.iter().any(|asking| {
            asking.ticket == ticket
                && !asking.promised
                && (asking.basis.task, asking.kind) == (task, Kind::X509)
        })
    }

    /// Whose turn it was.
    ///
    /// # Errors
    /// P14 if somebody waits who needed it before, P10 if nobody asked.
    pub(super) fn takes_turn(&mut self, ticket: Ticket, serial: Serial) -> Checked {
        let of = |asking: &&Asking| !asking.promised && asking.ticket == ticket;
        let Some(need) = self.asking.iter().find(of).map(|asking| asking.need) else {
            return Err(Violation { law: "P10", what: format!("nobody waits for {serial}") });
        };
        let mut waiting = self.asking.iter().filter(|other| !other.promised);
        let before = waiting.find(|other| (other.need, other.ticket) < (need, ticket));
        uphold!(
            before.is_none(),
            "P14",
            "{serial} is for #{}, needed at {}, and {before:?} waits",
            ticket.0,
            need.0
        );
        for asking in self.asking.iter_mut().filter(|asking| asking.ticket == ticket) {
            asking.promised = true;
        }
        Ok(())
    }

    /// Looks at those that wait, between two events.
    ///
    /// # Errors
    /// P10 for a queue that is too long or has no reason, P1 for one who waits for what is over.
    pub(crate) fn check_waiting(&self, admission: Admission) -> Checked {
        let promised = self.asking.iter().filter(|asking| asking.promised).count();
        let waiting: Vec<_> = self.asking.iter().filter(|asking| !asking.promised).collect();
        let Admission { signing_max, waiting_max, per_task_max } = admission;
        uphold!(promised <= signing_max, "P10", "{promised} credentials are under way at once");
        uphold!(waiting.len() <= waiting_max, "P10", "{} callers wait", waiting.len());
        let idle = !waiting.is_empty() && promised < signing_max;
        uphold!(!idle, "P14", "{waiting:?} and there is room");
        for one in &waiting {
            let task = one.basis.task;
            let same = waiting.iter().filter(|other| other.basis.task == task).count();
            uphold!(same <= per_task_max, "P10", "{same} callers wait for {task} alone");
            let over = self.is_over(task) || self.is_suspended(task);
            uphold!(!over, "P1", "#{} waits for {task}, which is not active", one.ticket.0);
            let old = one.basis.version != self.version(task);
            uphold!(!old, "P1", "#{} waits for an old version of {task}", one.ticket.0);
            let until = one.came_at.plus(limits::ASK_WAIT_MAX);
            uphold!(until > self.now, "P10", "#{} has waited for too long", one.ticket.0);
        }
        Ok(())
    }
}

/// The random part of a serial.
pub(super) fn luck_of(serial: Serial) -> u64 {
    let luck = serial.as_bytes().last_chunk().copied();
    luck.map_or(0, u64::from_be_bytes)
}
