//! The X.509-SVIDs that are in use, so that a task has one at a time.
//!
//! A stock client opens one stream to get started and another to stay; if each got a certificate of
//! its own, every start would look like a rotation and cost a signature more. So whoever asks for a
//! task before its certificate is half through gets the same one. It is dropped, with its key, as soon
//! as anything happens to its task.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use mayfly_core::{Basis, TaskId};
use mayfly_serve::desk::X509Svid;

/// Certificates that are kept. One more and all are dropped: they cost a signature each to make anew.
const KEPT_MAX: usize = 100_000;

/// A task's certificate, and what it rests on. Those who ask at the same time wait for one signature.
pub type Kept = Arc<tokio::sync::Mutex<Option<(Basis, X509Svid)>>>;

/// See the module.
#[derive(Debug, Default)]
pub struct Svids(Mutex<HashMap<TaskId, Kept>>);

impl Svids {
    /// Drops the certificate of `task`.
    pub fn forget(&self, task: TaskId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&task);
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
