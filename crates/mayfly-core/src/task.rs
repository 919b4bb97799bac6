//! A task: one piece of work, the unit of issuance, revocation and audit.
//!
//! Only `Active` issues. A state that is not known is a state that does not issue.

use alloc::{collections::BTreeSet, string::String, sync::Arc, vec::Vec};
use core::fmt;

use crate::{
    credentials::Credentials,
    evidence::Holder,
    id::{InvalidId, SpiffeId, TaskId, TaskVersion, TrustDomain},
    ledger::{Credential, Place},
    mandate::{Bounds, Mandate, Reach, RequestKey, Spent, Tier},
    time::{Span, Timestamp},
};

/// How a profile ties a task to what runs.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Binding {
    /// Exactly one process.
    Process,
    /// A process and its verified descendants.
    Lineage,
    /// Every process of a cgroup.
    Cgroup,
    /// Every process of one run of a systemd unit.
    Systemd,
    /// Every process of one run of a container.
    Container,
    /// Every process of a Kubernetes pod.
    Pod,
    /// Whoever reaches the task's own socket.
    Socket,
    /// A heartbeat, wherever it comes from.
    Lease,
}

impl Binding {
    /// Every binding.
    pub const ALL: [Self; 8] = [
        Self::Process,
        Self::Lineage,
        Self::Cgroup,
        Self::Systemd,
        Self::Container,
        Self::Pod,
        Self::Socket,
        Self::Lease,
    ];

    /// The word used in profiles and listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Lineage => "lineage",
            Self::Cgroup => "cgroup",
            Self::Systemd => "systemd",
            Self::Container => "container",
            Self::Pod => "pod",
            Self::Socket => "socket",
            Self::Lease => "lease",
        }
    }

    /// Finds a binding by its word.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|binding| binding.name() == name)
    }

    /// Whether a caller that is met for the first time may be given a task of its own.
    #[must_use]
    pub const fn is_observable(self) -> bool {
        match self {
            Self::Process | Self::Cgroup | Self::Systemd | Self::Container | Self::Pod => true,
            Self::Lineage | Self::Socket | Self::Lease => false,
        }
    }
}

/// What a profile grants to whoever matches it, as the judge read it at one policy epoch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Terms {
    /// The profile's name.
    pub profile: String,
    /// SPIFFE ID path, without the task's part.
    pub path: String,
    /// Who is accountable.
    pub owner: String,
    /// How tasks are held.
    pub binding: Binding,
    /// Whether the SPIFFE ID is the path alone, for peers that match exactly.
    pub stable_identity: bool,
    /// Life of an X.509-SVID.
    pub x509_ttl: Span,
    /// Life of a JWT-SVID.
    pub jwt_ttl: Span,
    /// Longest life of a task, if capped.
    pub task_ttl: Option<Span>,
    /// The Workload API's hint; empty for none.
    pub hint: String,
    /// Foreign trust domains whose bundles the holder is given.
    pub federates_with: Vec<TrustDomain>,
    /// What its tasks have to declare, and how far they may go.
    pub bounds: Bounds,
}

impl Terms {
    /// Whether a task can have a SPIFFE ID by these: its profile's path, and its own name unless peers match
    /// exactly.
    pub(crate) fn check_id(&self, domain: &TrustDomain, id: TaskId) -> Result<(), InvalidId> {
        SpiffeId::new(domain, self.id_of(domain, id).path()).map(|_| ())
    }

    fn id_of(&self, domain: &TrustDomain, id: TaskId) -> SpiffeId {
        let own = (!self.stable_identity).then_some(id);
        SpiffeId::of_task(domain, &self.path, own)
    }
}

/// Why a task ended.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Cause {
    /// Its orchestrator said that it is done.
    Completed,
    /// Its orchestrator said that it failed, or it exited with an error under a profile that cares.
    Failed,
    /// Its holder is gone.
    Exited,
    /// No heartbeat in time.
    LeaseLapsed,
    /// Its time was up.
    Deadline,
    /// An operator ended it.
    Revoked,
    /// A newer task took its place.
    Superseded,
    /// Its parent ended.
    ParentEnded,
    /// Its owner is no longer accountable.
    OwnerRemoved,
    /// Its profile no longer exists.
    PolicyChange,
    /// Its risk rose too high.
    Risk,
    /// Nobody could see its holder any more.
    WatcherBlind,
    /// Its budget is spent, and it said that it ends then.
    BudgetSpent,
    /// Its parent was amended to less than it holds.
    ParentNarrowed,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 14] = [
        Self::Completed,
        Self::Failed,
        Self::Exited,
        Self::LeaseLapsed,
        Self::Deadline,
        Self::Revoked,
        Self::Superseded,
        Self::ParentEnded,
        Self::OwnerRemoved,
        Self::PolicyChange,
        Self::Risk,
        Self::WatcherBlind,
        Self::BudgetSpent,
        Self::ParentNarrowed,
    ];

    /// The stable word in logs and listings.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Exited => "exited",
            Self::LeaseLapsed => "lease_lapsed",
            Self::Deadline => "deadline",
            Self::Revoked => "revoked",
            Self::Superseded => "superseded",
            Self::ParentEnded => "parent_ended",
            Self::OwnerRemoved => "owner_removed",
            Self::PolicyChange => "policy_change",
            Self::Risk => "risk",
            Self::WatcherBlind => "watcher_blind",
            Self::BudgetSpent => "budget_spent",
            Self::ParentNarrowed => "parent_narrowed",
        }
    }

    /// Finds a cause by its word.
    #[must_use]
    pub fn parse(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.code() == code)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// The only state that issues.
    Active,
    /// Suspended by an operator; reversible.
    Quarantined {
        /// The task that the operator named: this one, or an ancestor that took it along.
        by: TaskId,
    },
    /// Over, for ever.
    Ended {
        /// Why.
        cause: Cause,
        /// When it was heard.
        at: Timestamp,
        /// Exit code, or 128 + signal, where the holder's exit was seen.
        exit: Option<i32>,
    },
}

impl State {
    /// The stable word in listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Quarantined { .. } => "quarantined",
            Self::Ended { .. } => "ended",
        }
    }

    /// Whether the task is over.
    #[must_use]
    pub const fn is_ended(self) -> bool {
        match self {
            Self::Ended { .. } => true,
            Self::Active | Self::Quarantined { .. } => false,
        }
    }
}

/// One task, as the registrar remembers it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Task {
    /// Its name.
    pub id: TaskId,
    /// Its current version.
    pub version: TaskVersion,
    /// What its profile granted when it began. Tasks of one profile and edition share it: there may be a
    /// million of them.
    pub terms: Arc<Terms>,
    /// Who vouches for it.
    pub domain: TrustDomain,
    /// What it is bound to.
    pub holder: Holder,
    /// Whether somebody began it by name, rather than being met.
    pub declared: bool,
    /// What it declared, with what its profile and its parent said where it was silent.
    pub mandate: Arc<Mandate>,
    /// What it has used of its budget.
    pub spent: Spent,
    /// Attempts begun, if this is a job.
    pub attempts: u32,
    /// The wish that began it.
    pub key: Option<RequestKey>,
    /// The task it is a part of.
    pub parent: Option<TaskId>,
    /// The topmost task of its tree; itself if it has no parent.
    pub root: TaskId,
    /// Steps to the root.
    pub depth: u32,
    /// When it was opened.
    pub begun_at: Timestamp,
    /// When it ends at the latest.
    pub deadline: Option<Timestamp>,
    /// How long a heartbeat keeps it alive.
    pub lease: Option<Span>,
    /// Until when the last durable heartbeat keeps it alive.
    pub lease_until: Option<Timestamp>,
    /// Where it stands.
    pub state: State,
    /// Its direct children.
    pub children: BTreeSet<TaskId>,
    /// Its places in the status bitmaps.
    pub places: Vec<(TaskVersion, Place)>,
    /// Its unexpired credentials, with what was revoked before its end: see [`Self::credentials`].
    pub(crate) credentials: Credentials,
    /// Whether the holder is known to be gone. Until then an ended task is remembered, or its holder
    /// would simply be met anew.
    pub(crate) holder_gone: bool,
    /// Whether the eyes have lost sight of the holder. It is looked for anew before the task goes on.
    pub(crate) unseen: bool,
}

impl Task {
    /// Its SPIFFE ID. Not kept: there may be a million tasks, and of most nobody asks for it twice.
    #[must_use]
    pub fn spiffe_id(&self) -> SpiffeId {
        // What could not have one did not begin: see `Terms::check_id`.
        self.terms.id_of(&self.domain, self.id)
    }

    /// The latest `notAfter` that a credential of this task may carry (P7).
    #[must_use]
    pub fn not_after_max(&self) -> Option<Timestamp> {
        match (self.deadline, self.lease_until) {
            (Some(deadline), Some(lease)) => Some(deadline.min(lease)),
            (one, other) => one.or(other),
        }
    }

    /// Its unexpired credentials, certificates first. Its end is their end: nobody has to mark each of them.
    pub fn credentials(&self) -> impl Iterator<Item = Credential> {
        let end = match self.state {
            State::Ended { at, .. } => Some(at),
            State::Active | State::Quarantined { .. } => None,
        };
        self.credentials.iter().map(move |credential| {
            let ended = end.filter(|at| credential.outlives(*at));
            Credential { revoked_at: credential.revoked_at.or(ended), ..*credential }
        })
    }

    /// When this task may be forgotten, once it has ended and its holder is gone.
    pub(crate) fn forget_at(&self) -> Option<Timestamp> {
        let State::Ended { at, .. } = self.state else {
            return None;
        };
        let last = self.credentials.latest();
        Some(last.map_or(at, |last| last.max(at)).plus(crate::limits::FORGET_AFTER))
    }

    /// The tier that counts: the higher of what it declared and of its profile's.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.mandate.tier.unwrap_or_default().max(self.terms.bounds.tier)
    }

    /// How far it may delegate.
    #[must_use]
    pub fn reach(&self) -> Reach {
        self.mandate.reach.unwrap_or_default().min(self.terms.bounds.reach)
    }

    /// Whether nobody can come back to an ended task as its holder.
    pub(crate) fn is_unheld(&self) -> bool {
        self.holder_gone || self.holder.is_nobody()
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    #[test]
    fn an_id_that_is_written_by_hand_is_the_one_that_is_parsed() {
        let domain = TrustDomain::parse("example.org").expect("a name");
        let id = TaskId::from_bytes(core::array::from_fn(|at| u8::try_from(at * 17).unwrap_or(0)));
        for path in ["", "/agents/a-b.c_d"] {
            let named = SpiffeId::of_task(&domain, path, Some(id));
            assert_eq!(
                SpiffeId::parse(&format!("spiffe://example.org{path}/task/{id}")),
                Ok(named)
            );
            let shared = SpiffeId::of_task(&domain, path, None);
            assert_eq!(SpiffeId::parse(&format!("spiffe://example.org{path}")), Ok(shared));
        }
    }
}
