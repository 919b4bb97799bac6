//! Reading without deciding.

use alloc::{collections::BTreeMap, vec::Vec};
use core::ops::Bound;

use super::{Registrar, keys::Keys};
use crate::{
    event::Denial,
    evidence::{Caller, Holder},
    id::{PolicyEpoch, Sequence, SpiffeId, TaskId, TaskVersion},
    ledger::{Credential, Serial, Window},
    limits,
    mandate::RequestKey,
    revocation::RevocationSet,
    task::{Cause, State, Task},
    time::Timestamp,
};

/// Why a certificate stands on the revocation list.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Ground {
    /// Its task is over.
    Ended(Cause),
    /// Its task has a newer version.
    Overtaken,
    /// It was revoked on its own.
    Alone,
    /// Its task is quarantined. The only ground that can go away.
    Suspended,
}

/// An entry of the certificate revocation list.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct RevokedCertificate {
    /// Which.
    pub serial: Serial,
    /// Since when.
    pub revoked_at: Timestamp,
    /// When it expires by itself.
    pub not_after: Timestamp,
    /// Why.
    pub ground: Ground,
}

impl RevokedCertificate {
    pub(super) fn forget_at(&self) -> Timestamp {
        self.not_after.plus(limits::FORGET_AFTER)
    }
}

/// What a registrar remembers, in a form that two registrars can be compared by (P6).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Memory {
    /// Tasks that may not be forgotten yet.
    pub tasks: BTreeMap<TaskId, Task>,
    /// The next free slot of each live window.
    pub next_slots: Vec<(Window, u32)>,
    /// Revoked certificates that have not expired.
    pub certificates: Vec<RevokedCertificate>,
}

impl Registrar {
    /// A task that is remembered.
    #[must_use]
    pub fn task(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id)
    }

    /// Every task that is remembered, ended ones included.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values()
    }

    /// The tasks behind `last` in the order of their names. Long listings are read in many turns, so that
    /// nobody waits for one.
    pub fn tasks_after(&self, last: Option<TaskId>) -> impl Iterator<Item = &Task> {
        self.tasks.after(last)
    }

    /// A task and those above it, the nearest first.
    pub fn line_of(&self, id: TaskId) -> impl Iterator<Item = &Task> {
        let above = |task: &&Task| task.parent.and_then(|parent| self.tasks.get(&parent));
        core::iter::successors(self.tasks.get(&id), above)
    }

    /// The SPIFFE IDs of those above a task, the nearest first. They are remembered for as long as it is.
    pub fn actors_of(&self, id: TaskId) -> impl Iterator<Item = SpiffeId> {
        self.line_of(id).skip(1).map(Task::spiffe_id)
    }

    /// The tasks that `caller` stands for and that are not over: those begun by name for the innermost
    /// thing that holds it, else those under which it was met.
    #[must_use]
    pub fn held_by(&self, caller: &Caller) -> Vec<TaskId> {
        let held = self.declared_for(caller).unwrap_or_else(|| {
            let own = caller.lineage.first().map(|key| Holder::Process(*key));
            let cgroups = caller.cgroup.as_deref().into_iter().flat_map(super::meet::ancestors);
            let holders = own.into_iter().chain(cgroups.map(|path| Holder::Cgroup(path.into())));
            holders.filter_map(|holder| self.holders.get(&holder)).flatten().copied().collect()
        });
        held.into_iter().filter(|id| self.live(*id).is_ok()).collect()
    }

    /// What a wish began that was told before under the same key. The key is remembered as long as its
    /// task is, also across crashes.
    #[must_use]
    pub fn told_before(&self, wish: RequestKey) -> Option<Result<(TaskId, TaskVersion), Denial>> {
        let task = self.tasks.get(&self.begun_by(&wish.key)?)?;
        let same = task.key == Some(wish);
        Some(if same { Ok((task.id, task.version)) } else { Err(Denial::IdempotencyConflict) })
    }

    /// The task that was begun by the wish of this key.
    pub(super) fn begun_by(&self, key: &[u8; 32]) -> Option<TaskId> {
        let is_its = |task: &Task| task.key.is_some_and(|wish| wish.key == *key);
        self.keys.of(Keys::start_of(key)).find(|id| self.tasks.get(id).is_some_and(is_its))
    }

    /// Whether a credential still stands: as of every No that was heard, and every Yes that is durable.
    ///
    /// # Errors
    /// The denial that a verifier is to answer with.
    pub fn standing(&self, task: TaskId, serial: &Serial) -> Result<&Task, Denial> {
        let task = self.tasks.get(&task).ok_or(Denial::TaskUnknown)?;
        match task.state {
            State::Ended { .. } => return Err(Denial::TaskEnded),
            State::Quarantined { .. } => return Err(Denial::TaskQuarantined),
            // A quarantine that is lifted in memory only could be back after a crash.
            State::Active if self.resuming.contains_key(&task.id) => {
                return Err(Denial::TaskQuarantined);
            }
            State::Active => {}
        }
        let credential = task.credentials.find(serial);
        let credential = credential.ok_or(Denial::SerialUnknown)?;
        if credential.version != task.version {
            return Err(Denial::TaskVersion);
        }
        if credential.revoked_at.is_some() {
            return Err(Denial::CredentialRevoked);
        }
        Ok(task)
    }

    /// The credentials of `task` that a verifier accepts at `now`: what [`Self::standing`] says, and not
    /// expired.
    pub fn holdings<'a>(
        &self,
        task: &'a Task,
        now: Timestamp,
    ) -> impl Iterator<Item = &'a Credential> + use<'a> {
        let goes_on = task.state == State::Active && !self.resuming.contains_key(&task.id);
        let version = task.version;
        task.credentials.iter().filter(move |credential| {
            goes_on
                && credential.version == version
                && credential.revoked_at.is_none()
                && credential.not_after > now
        })
    }

    /// INVARIANT P5: each unexpired certificate of each ended task, as far as the end is durable.
    /// Those of quarantined tasks stand there too, for as long as the quarantine lasts.
    pub fn revoked_certificates(&self) -> impl Iterator<Item = &RevokedCertificate> {
        self.certificates.values()
    }

    /// [`Self::revoked_certificates`] in portions: at most `count`, the first after `last`. A long list is
    /// read in many turns, so that nobody waits for one.
    pub fn revoked_certificates_after(
        &self,
        last: Option<Serial>,
        count: usize,
    ) -> impl Iterator<Item = &RevokedCertificate> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        self.certificates.range((from, Bound::Unbounded)).take(count).map(|(_, entry)| entry)
    }

    /// The next free slot of each live window: how long its bitmap has to be for those who were given
    /// a place in it.
    pub fn next_slots(&self) -> impl Iterator<Item = (Window, u32)> {
        self.slots.iter()
    }

    /// The published statuses: what a follower that has heard everything holds.
    #[must_use]
    pub const fn revocations(&self) -> &RevocationSet {
        &self.set
    }

    /// The edition of the profiles in force.
    #[must_use]
    pub const fn policy_epoch(&self) -> PolicyEpoch {
        self.policy_epoch
    }

    /// The last record that was ordered.
    #[must_use]
    pub const fn last_sequence(&self) -> Sequence {
        self.last
    }

    /// The last record that is known to be on disk.
    #[must_use]
    pub const fn durable_sequence(&self) -> Sequence {
        self.durable
    }

    /// Whether the journal has failed and nothing is issued.
    #[must_use]
    pub const fn is_halted(&self) -> bool {
        self.halted
    }

    /// What is remembered at `now`, without what may be forgotten: two registrars that agree here
    /// answer every later event alike.
    #[must_use]
    pub fn memory(&self, now: Timestamp) -> Memory {
        let kept = |at: Timestamp| at.plus(limits::FORGET_AFTER) > now;
        let tasks = self.tasks.values().filter(|task| task.forget_at().is_none_or(|at| at > now));
        let tasks = tasks.map(|task| {
            let mut task = task.clone();
            task.credentials.retain(|c| kept(c.not_after));
            task.places.retain(|(_, place)| place.window.forget_at() > now);
            // Not durable: the kernel is asked again, and the last follows from tasks.
            task.holder_gone = false;
            task.unseen = false;
            task.children.clear();
            if task.state.is_ended() {
                // Attempts are counted for jobs that may have more.
                task.attempts = 0;
            }
            (task.id, task)
        });
        Memory {
            tasks: tasks.collect(),
            next_slots: self.slots.iter().filter(|(w, _)| w.forget_at() > now).collect(),
            certificates: self
                .certificates
                .values()
                .copied()
                .filter(|c| kept(c.not_after))
                .collect(),
        }
    }
}
