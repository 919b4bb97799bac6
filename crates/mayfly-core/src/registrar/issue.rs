//! From an ask to a credential: promise, sign, look again, release.

use alloc::{string::String, vec::Vec};

use super::{After, Registrar, Signing, fold::minute_of};
use crate::{
    event::{Ask, Basis, Denial, Effect},
    evidence::Holder,
    grant::{Grant, TaskClaim},
    id::{PolicyEpoch, TaskId, TaskVersion, Ticket},
    ledger::{Kind, Place, Serial, Window},
    limits,
    mandate::Trigger,
    record::Fact,
    scope::Scope,
    task::{Cause, State, Task},
    time::Timestamp,
};

impl Registrar {
    pub(super) fn asked(&mut self, ticket: Ticket, basis: Basis, ask: Ask, luck: u64) {
        if basis.epoch != self.policy_epoch {
            return self.effects.push_back(Effect::Reconsider { ticket });
        }
        let id = basis.task;
        match self.promise(ticket, basis, ask, luck) {
            Ok(()) => {}
            Err(Denial::TaskVersion) => self.effects.push_back(Effect::Reconsider { ticket }),
            Err(denial) => {
                let trigger = denial == Denial::BudgetSpent;
                let ends = |task: &&Task| task.mandate.triggers.contains(&Trigger::Budget);
                if trigger && self.tasks.get(&id).filter(ends).is_some() {
                    self.end(id, Cause::BudgetSpent);
                }
                let profile = self.tasks.get(&id).map(|task| task.terms.profile.clone());
                self.refuse(ticket, denial, (Some(id), &profile.unwrap_or_default()));
            }
        }
    }

    fn promise(
        &mut self,
        ticket: Ticket,
        Basis { task: id, version, .. }: Basis,
        ask: Ask,
        luck: u64,
    ) -> Result<(), Denial> {
        if self.halted {
            return Err(Denial::JournalFailed);
        }
        if self.is_full() || self.signing.contains_key(&ticket) {
            return Err(Denial::Overloaded);
        }
        let now = self.now;
        let task = self.tasks.get(&id).ok_or(Denial::TaskUnknown)?;
        active(task, version)?;
        let count = self.count(task)?;
        let task = self.tasks.get_mut(&id).ok_or(Denial::TaskUnknown)?;
        forget_expired(task, now);
        if task.credentials.len() >= limits::CREDENTIALS_PER_TASK_MAX {
            return Err(Denial::Overloaded);
        }
        permits(&ask, &task.mandate.scope)?;
        let kind = ask.kind();
        if kind == Kind::X509
            && let Some(ahead) = self.take_ahead(id)
        {
            let grant = self.grant(id, ask, (ahead.serial, ahead.not_after))?;
            self.signing.insert(ticket, Signing { task: id, version, serial: ahead.serial });
            self.promised(ticket, grant);
            return Ok(());
        }
        let (not_after, place) = self.term(id, kind)?;
        let serial = Serial::new(place, luck);
        let grant = self.grant(id, ask, (serial, not_after))?;
        self.signing.insert(ticket, Signing { task: id, version, serial });
        let fact = Fact::Promised { task: id, version, kind, serial, not_after, count };
        self.journal_then(fact, [After::Sign { ticket, grant }]);
        Ok(())
    }

    /// Until when what is promised now to a task will be valid, and where it will stand.
    pub(super) fn term(&mut self, id: TaskId, kind: Kind) -> Result<(Timestamp, Place), Denial> {
        let task = self.tasks.get(&id).ok_or(Denial::TaskUnknown)?;
        let not_after = not_after(task, kind, (self.now, self.not_after_max(task)))?;
        let window = Window::of(not_after);
        let place = place(task, window).or_else(|| self.slots.take(window));
        Ok((not_after, place.ok_or(Denial::Overloaded)?))
    }

    fn grant(
        &self,
        id: TaskId,
        ask: Ask,
        (serial, not_after): (Serial, Timestamp),
    ) -> Result<Grant, Denial> {
        let task = self.tasks.get(&id).ok_or(Denial::TaskUnknown)?;
        Ok(Grant {
            kind: ask.kind(),
            serial,
            spiffe_id: task.spiffe_id(),
            not_before: self.now.minus(limits::BACKDATE).floor_to_second(),
            not_after,
            audience: ask.audience(),
            task: TaskClaim {
                id,
                version: task.version,
                parent: task.parent,
                root: task.root,
                depth: task.depth,
            },
            actors: self.actors_of(id).collect(),
        })
    }

    /// INVARIANT P13: the task's credentials with this one, and those of this minute, are within its
    /// budget. One writer counts, so callers that come together cannot pass each other.
    fn count(&self, task: &Task) -> Result<(u64, u32), Denial> {
        let (budget, spent) = (&task.mandate.budget, &task.spent);
        if !budget.counts() {
            return Ok((0, 0));
        }
        #[cfg(feature = "planted")]
        if self.has_planted(super::Planted::ForgetCounts) {
            return Ok((1, 1));
        }
        let in_minute = if spent.minute == minute_of(self.now) { spent.in_minute } else { 0 };
        if budget.issuances.is_some_and(|most| spent.issued >= most) {
            return Err(Denial::BudgetSpent);
        }
        if budget.per_minute.is_some_and(|most| in_minute >= most) {
            return Err(Denial::RateExceeded);
        }
        Ok((spent.issued.saturating_add(1), in_minute.saturating_add(1)))
    }

    /// INVARIANT P7: no credential outlives the lease or the deadline of its task, nor those of the
    /// tasks above it, because it would outlive its own task's end then.
    fn not_after_max(&self, task: &Task) -> Option<Timestamp> {
        let parent = |task: &&Task| task.parent.and_then(|parent| self.tasks.get(&parent));
        core::iter::successors(Some(task), parent).filter_map(Task::not_after_max).min()
    }

    /// The promise is durable: sign, unless the task ended while the disk was busy.
    pub(super) fn promised(&mut self, ticket: Ticket, grant: Grant) {
        match self.may_release(ticket) {
            // INVARIANT P2: a signature is ordered only here, behind its durable promise.
            Ok(()) => self.effects.push_back(Effect::Sign { ticket, grant }),
            Err(denial) => self.finish(ticket, Err(denial)),
        }
    }

    pub(super) fn signed(&mut self, ticket: Ticket) {
        #[cfg(feature = "planted")]
        if self.has_planted(super::Planted::ReleaseAfterEnd) {
            return self.finish(ticket, Ok(()));
        }
        // INVARIANT P1: the last look before a credential leaves, because its task may have ended
        // while the key was moving.
        let verdict = self.may_release(ticket);
        self.finish(ticket, verdict);
    }

    pub(super) fn signing_failed(&mut self, ticket: Ticket) {
        self.finish(ticket, Err(Denial::SigningFailed));
    }

    fn finish(&mut self, ticket: Ticket, verdict: Result<(), Denial>) {
        if self.signing.remove(&ticket).is_none() {
            return; // Answered already, when the journal failed.
        }
        match verdict {
            Ok(()) => self.effects.push_back(Effect::Release { ticket }),
            Err(denial) => self.withhold(ticket, denial),
        }
    }

    fn may_release(&self, ticket: Ticket) -> Result<(), Denial> {
        if self.halted {
            return Err(Denial::JournalFailed);
        }
        let signing = self.signing.get(&ticket).ok_or(Denial::TaskUnknown)?;
        self.standing(signing.task, &signing.serial).and_then(|task| active(task, signing.version))
    }

    pub(super) fn policy_changed(
        &mut self,
        epoch: PolicyEpoch,
        gone: &[String],
        (left, transfers): (&[String], &[(String, String)]),
    ) {
        // INVARIANT P9: editions only rise, so a verdict can be told to be old.
        assert!(epoch >= self.policy_epoch, "P9: policy epochs only rise");
        self.policy_epoch = epoch;
        for (old, new) in transfers {
            for task in self.live_where(|task| task.terms.owner == *old) {
                self.journal(Fact::Transferred { task, owner: new.clone() });
            }
        }
        if !gone.is_empty() {
            for id in self.live_where(|task| gone.contains(&task.terms.profile)) {
                self.end(id, Cause::PolicyChange);
            }
        }
        if !left.is_empty() {
            for id in self.live_where(|task| left.contains(&task.terms.owner)) {
                self.end(id, Cause::OwnerRemoved);
            }
        }
    }

    fn live_where(&self, which: impl Fn(&Task) -> bool) -> Vec<TaskId> {
        let live = self.tasks.values().filter(|task| !task.state.is_ended());
        live.filter(|task| which(task)).map(|task| task.id).collect()
    }
}

pub(super) fn active(task: &Task, version: TaskVersion) -> Result<(), Denial> {
    match task.state {
        State::Ended { .. } => Err(Denial::TaskEnded),
        State::Quarantined { .. } => Err(Denial::TaskQuarantined),
        State::Active if task.version != version => Err(Denial::TaskVersion),
        State::Active if task.holder == Holder::Job => Err(Denial::JobHoldsNothing),
        State::Active => Ok(()),
    }
}

/// Whether a credential may be for those audiences.
pub(super) fn permits(ask: &Ask, scope: &Scope) -> Result<(), Denial> {
    match ask {
        Ask::X509 => Ok(()),
        Ask::Jwt { audience } => {
            let fits = |one: &String| (1..=limits::AUDIENCE_BYTES_MAX).contains(&one.len());
            let many = (1..=limits::AUDIENCES_MAX).contains(&audience.len());
            if !many || !audience.iter().all(fits) {
                Err(Denial::AudienceInvalid)
            } else if audience.iter().all(|one| scope.audiences.permits(one)) {
                Ok(())
            } else {
                Err(Denial::AudienceOutOfScope)
            }
        }
    }
}

fn not_after(
    task: &Task,
    kind: Kind,
    (now, max): (Timestamp, Option<Timestamp>),
) -> Result<Timestamp, Denial> {
    let ttl = match kind {
        Kind::X509 => task.terms.x509_ttl,
        Kind::Jwt => task.terms.jwt_ttl,
    };
    let ttl = task.mandate.ttl.map_or(ttl, |own| own.min(ttl)).min(task.tier().ttl_max());
    let wanted = now.plus(ttl);
    let capped = max.map_or(wanted, |max| max.min(wanted)).floor_to_second();
    if capped > now {
        Ok(capped)
    } else if task.deadline.is_some_and(|at| at.floor_to_second() <= now) {
        Err(Denial::DeadlineNear)
    } else {
        Err(Denial::LeaseTooShort)
    }
}

fn place(task: &Task, window: Window) -> Option<Place> {
    let mut places = task.places.iter().rev();
    places
        .find(|(version, place)| *version == task.version && place.window == window)
        .map(|(_, place)| *place)
}

/// Drops what has expired, seldom enough that each credential pays for its removal once.
fn forget_expired(task: &mut Task, now: Timestamp) {
    let count = task.credentials.len();
    if (count >= 16 && count.is_power_of_two()) || count >= limits::CREDENTIALS_PER_TASK_MAX {
        task.credentials.retain(|c| c.not_after.plus(limits::FORGET_AFTER) > now);
        task.places.retain(|(_, place)| place.window.forget_at() > now);
    }
}
