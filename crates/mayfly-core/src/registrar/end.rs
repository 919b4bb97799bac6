//! Ends, suspensions and revocations: each a No, so each takes effect as soon as it is heard.

use alloc::{collections::VecDeque, vec::Vec};

use super::{After, Registrar, Timer, due::Due, keys::Keys};
use crate::{
    event::{Closing, Denial, Effect},
    evidence::Holder,
    id::{TaskId, TaskVersion, Ticket},
    ledger::Serial,
    limits,
    mandate::{Author, OnFailure},
    record::Fact,
    task::{Cause, State, Task},
};

/// What there is to do after a replay.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Who holds something that this process could be asked about.
    pub(super) held: Vec<(TaskId, Holder)>,
    /// Tasks that go on and have a socket of their own.
    pub(super) sockets: Vec<TaskId>,
    parents: Vec<TaskId>,
    /// Alive below a task that is over.
    orphans: Vec<TaskId>,
    /// Free below a task that is suspended, by the task that was named then.
    strays: Vec<(TaskId, TaskId)>,
}

impl Registrar {
    pub(super) fn end_asked(
        &mut self,
        ticket: Ticket,
        id: TaskId,
        (cause, author): (Cause, Author),
    ) {
        let Some(task) = self.tasks.get(&id) else {
            return self.refuse(ticket, Denial::TaskUnknown, (Some(id), ""));
        };
        let version = task.version;
        if cause == Cause::Failed {
            self.fail(id, (cause, None), author);
        } else {
            self.end_by(id, (cause, None), author);
        }
        self.acknowledge(ticket, id, version);
    }

    /// Answers `ticket` once everything decided so far is durable. Ending an ended task is answered
    /// the same way, and only after the first end is on disk.
    pub(super) fn acknowledge(&mut self, ticket: Ticket, task: TaskId, version: TaskVersion) {
        if self.halted {
            return self.withhold(ticket, Denial::JournalFailed);
        }
        if self.durable == self.last {
            return self.effects.push_back(Effect::Acknowledge { ticket, task, version });
        }
        // INVARIANT P10: whoever repeats a wish while the disk is slow does not make the queue longer.
        if self.pending.len() >= limits::RECORDS_IN_FLIGHT_MAX {
            return self.withhold(ticket, Denial::Overloaded);
        }
        self.pending.push_back((self.last, After::Acknowledge { ticket, task, version }));
    }

    pub(super) fn holder_gone(&mut self, id: TaskId, exit: Option<i32>) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        task.holder_gone = true;
        let failed = exit.is_some_and(|code| code != 0);
        match task.state {
            State::Ended { .. } => self.remember_until(id),
            // Kept for whoever looks into it: its holder's death was the reason, or is one more.
            State::Quarantined { .. } if task.terms.bounds.on_failure == OnFailure::Quarantine => {}
            _ if failed => self.fail(id, (Cause::Failed, exit), Author::default()),
            State::Active | State::Quarantined { .. } => {
                self.end_by(id, (Cause::Exited, exit), Author::default());
            }
        }
    }

    /// Nobody can see the holder any more, which is a failure (R16).
    pub(super) fn watcher_blinded(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.unseen = true;
        }
        self.fail(id, (Cause::WatcherBlind, None), Author::default());
    }

    /// A task failed: it ends, or is quarantined if its profile says so (R16).
    pub(super) fn fail(&mut self, id: TaskId, ending: (Cause, Option<i32>), author: Author) {
        let Some(task) = self.tasks.get(&id) else {
            return;
        };
        match (task.terms.bounds.on_failure, task.state) {
            (OnFailure::End, _) => self.end_by(id, ending, author),
            (OnFailure::Quarantine, State::Quarantined { by }) if by == id => {}
            // What an ancestor's quarantine took along has a reason of its own now, which the
            // ancestor's release does not undo.
            (OnFailure::Quarantine, State::Active | State::Quarantined { .. }) => {
                self.suspend(id, Some(ending.0), author);
            }
            (OnFailure::Quarantine, State::Ended { .. }) => {}
        }
    }

    /// Ends a task and everything below it, because it is so.
    pub(super) fn end(&mut self, id: TaskId, cause: Cause) {
        self.end_by(id, (cause, None), Author::default());
    }

    /// Ends a task and everything below it, on somebody's word.
    pub(super) fn end_by(
        &mut self,
        id: TaskId,
        (cause, exit): (Cause, Option<i32>),
        author: Author,
    ) {
        let own = (id, cause, exit, author);
        // A job goes before its last attempt: a crash between the two must not leave it open.
        let job = self.job_done(id, cause).map(|(job, why)| (job, why, None, Author::default()));
        let mut ending: VecDeque<_> = job.into_iter().chain([own]).collect();
        while let Some((id, cause, exit, author)) = ending.pop_front() {
            let Some(task) = self.tasks.get(&id) else {
                continue;
            };
            if task.state.is_ended() {
                continue;
            }
            let below = |child: &TaskId| (*child, Cause::ParentEnded, None, Author::default());
            ending.extend(task.children.iter().map(below));
            let has_socket = task.holder.owns_socket();
            self.journal(Fact::Ended { task: id, cause, exit, author });
            self.close(id, Closing::Ended);
            if has_socket {
                self.effects.push_back(Effect::CloseSocket { task: id });
            }
        }
    }

    /// Wakes the task's streams, and those that wait for their turn.
    pub(super) fn close(&mut self, task: TaskId, why: Closing) {
        self.effects.push_back(Effect::Close { task, why });
        self.dismiss(task);
    }

    /// The job that is over with this attempt: it has completed, or there is none left (R43).
    fn job_done(&self, attempt: TaskId, cause: Cause) -> Option<(TaskId, Cause)> {
        let attempt = self.tasks.get(&attempt).filter(|task| !task.state.is_ended())?;
        let job = self.tasks.get(&attempt.parent?)?;
        if job.holder != Holder::Job || job.state.is_ended() {
            None
        } else if cause == Cause::Completed {
            Some((job.id, Cause::Completed))
        } else {
            let spent = job.attempts >= super::narrow::attempts_max(job);
            spent.then_some((job.id, Cause::Failed))
        }
    }

    pub(super) fn quarantine_asked(&mut self, ticket: Ticket, by: TaskId, author: Author) {
        let version = match self.live(by) {
            Ok(task) => task.version,
            Err(denial) => return self.refuse(ticket, denial, (Some(by), "")),
        };
        self.suspend(by, None, author);
        self.acknowledge(ticket, by, version);
    }

    /// Suspends a task and everything below it.
    fn suspend(&mut self, by: TaskId, cause: Option<Cause>, author: Author) {
        // What an ancestor's quarantine took along becomes this one's, or the ancestor's release would
        // set free what an operator has named.
        let inherited = self.tasks.get(&by).map(|task| task.state);
        let inherited = inherited.filter(|state| *state != State::Quarantined { by });
        let takes = |task: &Task| task.state == State::Active || Some(task.state) == inherited;
        for id in self.subtree(by, takes) {
            let author = if id == by { author.clone() } else { Author::default() };
            self.journal(Fact::Suspended { task: id, by, cause, author });
            self.close(id, Closing::Suspended);
        }
    }

    pub(super) fn release_asked(&mut self, ticket: Ticket, by: TaskId, author: Author) {
        let version = match self.live(by).and_then(|task| self.parent_active(task)) {
            Ok(_) if self.halted => return self.withhold(ticket, Denial::JournalFailed),
            Ok(_) if self.is_full() => return self.withhold(ticket, Denial::Overloaded),
            Ok(task) => task.version,
            Err(denial) => return self.refuse(ticket, denial, (Some(by), "")),
        };
        // What an operator quarantined by name stays so when an ancestor is released.
        for id in self.subtree(by, |task| task.state == State::Quarantined { by }) {
            if self.tasks.get(&id).is_none_or(|task| task.holder_gone) {
                // Nobody is left who could go on with it.
                self.end_by(id, (Cause::Failed, None), author.clone());
                continue;
            }
            if self.tasks.get(&id).is_some_and(|task| task.state.is_ended()) {
                continue; // With the one above it, just now.
            }
            self.journal(Fact::Resumed { task: id, author: author.clone() });
            self.resuming.insert(id, self.last);
            self.effects.push_back(Effect::Close { task: id, why: Closing::Changed });
            self.look_again(id);
        }
        self.acknowledge(ticket, by, version);
    }

    /// A task that goes on has to be seen: an eye that was blind is opened anew, or fails once more, and
    /// a holder that went while nobody cared is missed at once.
    fn look_again(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(&id).filter(|task| !task.holder.is_nobody()) {
            task.unseen = false;
            let holder = task.holder.clone();
            self.effects.push_back(Effect::Watch { task: id, holder });
        }
    }

    fn parent_active<'a>(&self, task: &'a Task) -> Result<&'a Task, Denial> {
        let parent = task.parent.and_then(|parent| self.tasks.get(&parent));
        let active = parent.is_none_or(|parent| parent.state == State::Active);
        if active { Ok(task) } else { Err(Denial::ParentInactive) }
    }

    /// A task and those below it that satisfy `which`, parents before children.
    fn subtree(&self, id: TaskId, which: impl Fn(&Task) -> bool) -> Vec<TaskId> {
        let mut found = Vec::new();
        let mut next = VecDeque::from([id]);
        while let Some(id) = next.pop_front() {
            let Some(task) = self.tasks.get(&id) else { continue };
            next.extend(task.children.iter().copied());
            if which(task) {
                found.push(task.id);
            }
        }
        found
    }

    pub(super) fn heartbeat_heard(&mut self, ticket: Ticket, id: TaskId) {
        let lease = match self.live(id) {
            Ok(task) => task.lease.ok_or(Denial::NoLease).map(|lease| (lease, task.version)),
            Err(denial) => Err(denial),
        };
        match lease {
            Ok((lease, version)) => {
                let lease_until = self.now.plus(lease);
                let answer = After::Acknowledge { ticket, task: id, version };
                if self.halted {
                    return self.withhold(ticket, Denial::JournalFailed);
                }
                if self.is_full() {
                    return self.withhold(ticket, Denial::Overloaded);
                }
                self.journal_then(Fact::Renewed { task: id, lease_until }, [answer]);
            }
            Err(denial) => self.refuse(ticket, denial, (Some(id), "")),
        }
    }

    pub(super) fn revoke_asked(&mut self, ticket: Ticket, serial: Serial, author: Author) {
        let found = self.holder_of(&serial).and_then(|task| {
            let mut named = task.credentials().filter(|c| c.serial == serial);
            named.next().map(|credential| (task, credential.revoked_at.is_some()))
        });
        let Some((task, known)) = found else {
            return self.refuse(ticket, Denial::SerialUnknown, (None, ""));
        };
        let (id, version) = (task.id, task.version);
        if !known {
            self.journal(Fact::CredentialRevoked { task: id, serial, author });
            self.effects.push_back(Effect::Close { task: id, why: Closing::Changed });
        }
        self.acknowledge(ticket, id, version);
    }

    pub(super) fn live(&self, id: TaskId) -> Result<&Task, Denial> {
        let task = self.tasks.get(&id).ok_or(Denial::TaskUnknown)?;
        if task.state.is_ended() { Err(Denial::TaskEnded) } else { Ok(task) }
    }

    /// Sets the timer that forgets an ended task, once its holder cannot come back as a stranger.
    pub(super) fn remember_until(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else {
            return;
        };
        if let (Some(at), true) = (task.forget_at(), task.is_unheld()) {
            self.timers.insert(Due::new(at, Timer::Forget, id));
        }
    }

    pub(super) fn forget(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else {
            return;
        };
        let job = task.parent.and_then(|parent| self.tasks.get(&parent));
        let counts = job.is_some_and(|job| job.holder == Holder::Job && !job.state.is_ended());
        if counts || task.children.iter().any(|child| self.tasks.contains_key(child)) {
            // A child that is still remembered names its parent in listings, and a job counts its
            // attempts by those that are remembered after a crash.
            let later = self.now.plus(limits::FORGET_AFTER);
            self.timers.insert(Due::new(later, Timer::Forget, id));
            return;
        }
        let (holder, parent) = (task.holder.clone(), task.parent);
        for (_, place) in &task.places {
            self.places.remove(place);
        }
        if let Some(wish) = task.key {
            // After a replay the key may be a later task's already, and then this is not there.
            self.keys.remove(Keys::start_of(&wish.key), id);
        }
        self.tasks.remove(&id);
        if let Some(held) = self.holders.get_mut(&holder) {
            held.retain(|other| *other != id);
            if held.is_empty() {
                self.holders.remove(&holder);
            }
        }
        if let Some(parent) = parent.and_then(|parent| self.tasks.get_mut(&parent)) {
            parent.children.remove(&id);
        }
        #[cfg(feature = "planted")]
        if self.has_planted(super::Planted::ReuseSlots) {
            self.slots.clear();
        }
        // The shell drops what it keeps about the task, so it hears of this only when a crash can no
        // longer bring the task back to life: its end may still be on its way to the disk.
        if self.durable == self.last {
            self.effects.push_back(Effect::Forget { task: id });
        } else {
            self.pending.push_back((self.last, After::Forget { task: id }));
        }
    }

    /// Looks once at every task: there may be a million, and each is a miss of every cache.
    pub(super) fn found(&self) -> Found {
        let mut found = Found::default();
        for task in self.tasks.values() {
            if !task.is_unheld() {
                found.held.push((task.id, task.holder.clone()));
            }
            if !task.children.is_empty() {
                found.parents.push(task.id);
            }
            if task.state.is_ended() {
                continue;
            }
            if task.holder.owns_socket() {
                found.sockets.push(task.id);
            }
            match task.parent.and_then(|id| self.tasks.get(&id)).map(|above| above.state) {
                Some(State::Ended { .. }) => found.orphans.push(task.id),
                Some(State::Quarantined { by }) if task.state == State::Active => {
                    found.strays.push((task.id, by));
                }
                Some(State::Quarantined { .. } | State::Active) | None => {}
            }
        }
        found
    }

    /// Finishes what a crash has torn: the journal may end between a parent's record and those of its
    /// children, which would leave them alive below a dead task, or free below a quarantined one.
    pub(super) fn finish_cascades(&mut self, found: &Found) {
        for id in &found.orphans {
            self.end(*id, Cause::ParentEnded);
        }
        for id in &found.parents {
            self.end_wider_children(*id);
        }
        for (id, by) in found.strays.iter().copied() {
            for id in self.subtree(id, |task| task.state == State::Active) {
                let author = Author::default();
                self.journal(Fact::Suspended { task: id, by, cause: None, author });
                self.effects.push_back(Effect::Close { task: id, why: Closing::Suspended });
            }
        }
    }
}
