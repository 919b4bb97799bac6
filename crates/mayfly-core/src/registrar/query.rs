//! Reading without deciding.

use alloc::{collections::BTreeMap, vec::Vec};

use super::Registrar;
use crate::{
    event::Denial,
    id::{PolicyEpoch, Sequence, TaskId},
    ledger::{Serial, Window},
    limits,
    revocation::RevocationSet,
    task::{State, Task},
    time::Timestamp,
};

/// An entry of the certificate revocation list.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct RevokedCertificate {
    /// Which.
    pub serial: Serial,
    /// Since when.
    pub revoked_at: Timestamp,
    /// When it expires by itself.
    pub not_after: Timestamp,
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
        // The newest stand last, and they are asked about most.
        let credential = task.credentials.iter().rev().find(|c| c.serial == *serial);
        let credential = credential.ok_or(Denial::SerialUnknown)?;
        if credential.version != task.version {
            return Err(Denial::TaskVersion);
        }
        if credential.revoked_at.is_some() {
            return Err(Denial::CredentialRevoked);
        }
        Ok(task)
    }

    /// INVARIANT P5: each unexpired certificate of each ended task, as far as the end is durable.
    pub fn revoked_certificates(&self) -> impl Iterator<Item = &RevokedCertificate> {
        self.certificates.values()
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
            // Neither is durable: the one is asked of the kernel again, the other follows from tasks.
            task.holder_gone = false;
            task.children.clear();
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
