//! What survives a crash. State is the fold of these records, in order.

use alloc::{boxed::Box, string::String, sync::Arc, vec::Vec};

use crate::{
    event::Denial,
    evidence::Holder,
    id::{Sequence, TaskId, TaskVersion},
    ledger::{Kind, Serial, Window},
    mandate::{Author, Mandate, RequestKey},
    misuse::Finding,
    scope::Scope,
    task::{Cause, Terms},
    time::{Span, Timestamp},
};

/// One decision, with the instant at which it was taken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// When.
    pub at: Timestamp,
    /// What.
    pub fact: Fact,
}

/// What was decided.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fact {
    /// A task was opened.
    Began {
        /// The new task.
        task: TaskId,
        /// Under which terms.
        terms: Arc<Terms>,
        /// Bound to what.
        holder: Holder,
        /// As part of which task.
        parent: Option<TaskId>,
        /// What it declared, completed by what its profile and its parent say.
        mandate: Arc<Mandate>,
        /// Its end at the latest.
        deadline: Option<Timestamp>,
        /// Its lease.
        lease: Option<Span>,
        /// Begun by name rather than met.
        declared: bool,
        /// The wish that must not be carried out twice, if it was told as one.
        key: Option<RequestKey>,
        /// On whose word.
        author: Author,
    },
    /// A credential was promised; only then may it be signed.
    Promised {
        /// Whose.
        task: TaskId,
        /// Of which version.
        version: TaskVersion,
        /// Certificate or token.
        kind: Kind,
        /// Its name and place.
        serial: Serial,
        /// Its expiry.
        not_after: Timestamp,
        /// The task's credentials so far and in this minute, where they are counted; else 0.
        count: (u64, u32),
    },
    /// A task is over.
    Ended {
        /// Which.
        task: TaskId,
        /// Why.
        cause: Cause,
        /// The holder's exit, where it was seen.
        exit: Option<i32>,
        /// On whose word.
        author: Author,
    },
    /// A task is quarantined.
    Suspended {
        /// Which.
        task: TaskId,
        /// The task that was to be quarantined: this one, or the ancestor that took it along.
        by: TaskId,
        /// Why, if nobody ordered it.
        cause: Option<Cause>,
        /// On whose word, if somebody did.
        author: Author,
    },
    /// A quarantine is lifted.
    Resumed {
        /// Which.
        task: TaskId,
        /// On whose word.
        author: Author,
    },
    /// A lease was extended.
    Renewed {
        /// Whose.
        task: TaskId,
        /// Until when.
        lease_until: Timestamp,
    },
    /// A task has a new version; credentials of the old one stop.
    Amended {
        /// Which.
        task: TaskId,
        /// The new version.
        version: TaskVersion,
        /// The new intent.
        intent: String,
        /// The new scope.
        scope: Box<Scope>,
        /// On whose word.
        author: Author,
    },
    /// A task has another owner.
    Transferred {
        /// Which.
        task: TaskId,
        /// Who is accountable from here on.
        owner: String,
    },
    /// One credential is revoked apart from its task.
    CredentialRevoked {
        /// Whose.
        task: TaskId,
        /// Which.
        serial: Serial,
        /// On whose word.
        author: Author,
    },
    /// Somebody left with nothing.
    Refused {
        /// Why.
        denial: Denial,
        /// About which task, if one was found.
        task: Option<TaskId>,
        /// Under which profile, if one matched; empty otherwise.
        profile: String,
    },
    /// A credential was shown to a verifier although it should not have been.
    Misused {
        /// What is wrong with that.
        finding: Finding,
        /// Which, if it has a name of ours.
        serial: Option<Serial>,
        /// Whose, if that is known.
        task: Option<TaskId>,
        /// Who showed it: a SPIFFE ID, or empty.
        presenter: String,
        /// Who says so: a SPIFFE ID, or empty.
        verifier: String,
    },
    /// Something worth testifying that changes no task.
    Noted {
        /// A stable word, for example `started`.
        what: String,
        /// Free text.
        detail: String,
    },
}

impl Fact {
    /// The task this fact is about, if it is about one.
    #[must_use]
    pub const fn task(&self) -> Option<TaskId> {
        match self {
            Self::Began { task, .. }
            | Self::Promised { task, .. }
            | Self::Ended { task, .. }
            | Self::Suspended { task, .. }
            | Self::Resumed { task, .. }
            | Self::Renewed { task, .. }
            | Self::Amended { task, .. }
            | Self::Transferred { task, .. }
            | Self::CredentialRevoked { task, .. } => Some(*task),
            Self::Refused { task, .. } | Self::Misused { task, .. } => *task,
            Self::Noted { .. } => None,
        }
    }
}

/// Live state as a shortened journal: replaying it and the records after `position` gives the same
/// registrar as replaying everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Snapshot {
    /// The last record that this snapshot contains.
    pub position: Sequence,
    /// The instant of that record.
    pub at: Timestamp,
    /// The next free slot of each live window. It outlives the tasks that used the slots before it.
    pub next_slots: Vec<(Window, u32)>,
    /// Facts about tasks that are not yet forgotten, in journal order.
    pub records: Vec<Record>,
}
