//! The X.509-SVIDs that are in use, so that a task has one at a time.
//!
//! A stock client opens one stream to get started and another to stay; if each got a certificate of
//! its own, every start would look like a rotation and cost a signature more. So whoever asks for a
//! task before its certificate is to be renewed gets the same one. It is dropped, with its key, as soon
//! as anything happens to its task.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use mayfly_core::{Basis, TaskId};
use mayfly_serve::desk::X509Svid;
use tokio::sync::{Mutex, MutexGuard};

/// Certificates that are kept. One more and all are dropped: they cost a signature each to make anew.
const KEPT_MAX: usize = 100_000;

/// A certificate in use.
#[derive(Clone, Debug)]
pub struct InUse {
    /// What it rests on.
    pub basis: Basis,
    /// The certificate.
    pub svid: X509Svid,
    /// The key id of the authority that signed it.
    pub authority: String,
}

/// A task's certificate. Those who ask at the same time wait for one signature, or for one refusal.
#[derive(Debug, Default)]
pub struct Shared {
    in_use: Mutex<Option<InUse>>,
    refusals: AtomicU64,
}

impl Shared {
    /// The certificate, once whoever asks for it has an answer.
    pub async fn lock(&self) -> MutexGuard<'_, Option<InUse>> {
        self.in_use.lock().await
    }

    /// How often there was no room to sign one. Whoever sees another number after [`Self::lock`] than before
    /// came while another was turned away: if each asked anew, the last would wait for as many turns.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// There was no room to sign one.
    pub fn turned_away(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where a task's certificate is, or will be.
pub type Kept = Arc<Shared>;

/// See the module.
#[derive(Debug, Default)]
pub struct Svids(std::sync::Mutex<BTreeMap<TaskId, Kept>>);

impl Svids {
    /// Drops the certificate of `task`.
    pub fn forget(&self, task: TaskId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&task);
    }

    /// Drops the certificates that `authority` has signed. Says how many that are, and which tasks have a
    /// certificate that stays good. One that is being signed at this moment is dropped unseen.
    pub fn distrust(&self, authority: &str) -> (u64, BTreeSet<TaskId>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut dropped = 0;
        all.retain(|_, kept| {
            let Ok(kept) = kept.in_use.try_lock() else { return false };
            let is_theirs = kept.as_ref().is_some_and(|one| one.authority == authority);
            dropped += u64::from(is_theirs);
            kept.is_some() && !is_theirs
        });
        (dropped, all.keys().copied().collect())
    }

    /// Where the certificate of `task` is, or will be.
    #[must_use]
    pub fn of(&self, task: TaskId) -> Kept {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KEPT_MAX {
            all.clear();
        }
        Arc::clone(all.entry(task).or_default())
    }
}
