//! What tells at a glance that a process is as it was when it was last looked at.
//!
//! A full look reads four files of /proc and costs as much as a signature, and most callers ask again
//! and again without having changed. The kernel tells in two calls who a process is, in which cgroup it
//! lives and which version of which file it executes. If none of that has moved, what was read before
//! is still so. The rest (supplementary groups, cgroups of the first kind, what another file system
//! has been mounted over) is read again after [`REMEMBERED_MAX`].

use std::sync::{Mutex, PoisonError};

use mayfly_core::{
    evidence::Evidence,
    time::{Span, Timestamp},
};
use rustix::fs::{AtFlags, CWD, statat};

use crate::{collect::CollectOptions, exe::Version, kernel, peer::Peer};

/// How old a full look may be that a glance vouches for.
const REMEMBERED_MAX: Span = Span::from_secs(1);

/// Who a process is, where it lives, and what it executes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Glance {
    /// Real, effective, saved and file system user and group.
    ids: [u32; 8],
    /// The inode of its cgroup in the unified hierarchy.
    cgroup: u64,
    exe: Version,
}

impl Glance {
    /// Looks. `None` where the kernel does not tell all of it: then only a full look will do. That the
    /// process lives, and so had its PID all the time, is for the caller to see afterwards.
    pub(crate) fn at(peer: &Peer) -> Option<Self> {
        let info = kernel::info(peer.process()).ok()?;
        let exe = format!("/proc/{}/exe", peer.key().pid);
        let exe = Version::of(&statat(CWD, exe, AtFlags::empty()).ok()?);
        Some(Self { ids: info.ids?, cgroup: info.cgroup?, exe })
    }
}

/// What a full look found, and when.
#[derive(Debug)]
struct Look {
    glance: Glance,
    options: CollectOptions,
    at: Timestamp,
    evidence: Evidence,
}

/// The last full look at one peer.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    last: Mutex<Option<Look>>,
    looking: tokio::sync::Mutex<()>,
}

impl Memory {
    /// One looks at a time; whoever waited finds what the one before has seen.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.looking.lock().await
    }

    /// The evidence of the last full look, if it was at this and for this, and not long ago.
    pub(crate) fn recall(
        &self,
        glance: Glance,
        options: CollectOptions,
        now: Timestamp,
    ) -> Option<Evidence> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let last = last.as_ref()?;
        let is_fresh = last.at <= now && now.since(last.at) < REMEMBERED_MAX;
        let is_same = (last.glance, last.options) == (glance, options);
        (is_fresh && is_same).then(|| last.evidence.clone())
    }

    /// Keeps what a full look found that came after `glance`.
    pub(crate) fn keep(
        &self,
        glance: Glance,
        options: CollectOptions,
        (at, evidence): (Timestamp, &Evidence),
    ) {
        let look = Look { glance, options, at, evidence: evidence.clone() };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(look);
    }
}
