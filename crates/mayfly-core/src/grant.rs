//! The permission to sign exactly one credential.
//!
//! A [`Grant`] cannot be made outside this crate and cannot be copied: whoever signs has to use one
//! up. So "may this be signed?" is answered by the type, not by a check that could be forgotten.

use alloc::{string::String, vec::Vec};

use crate::{
    id::{SpiffeId, TaskId, TaskVersion},
    ledger::{Kind, Serial},
    time::Timestamp,
};

/// The task's part of a credential.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TaskClaim {
    /// The task.
    pub id: TaskId,
    /// Its version.
    pub version: TaskVersion,
    /// Its parent.
    pub parent: Option<TaskId>,
    /// The root of its tree.
    pub root: TaskId,
    /// Steps to the root.
    pub depth: u32,
}

/// The core's permission to sign one credential; consumed by signing.
#[derive(Debug)]
pub struct Grant {
    pub(crate) kind: Kind,
    pub(crate) serial: Serial,
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    pub(crate) audience: Vec<String>,
    pub(crate) task: TaskClaim,
    pub(crate) actors: Vec<SpiffeId>,
}

impl Grant {
    /// Certificate or token.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The credential's name and place.
    #[must_use]
    pub const fn serial(&self) -> &Serial {
        &self.serial
    }

    /// Whom it names.
    #[must_use]
    pub const fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// First instant of validity, a whole second in the past.
    #[must_use]
    pub const fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// Last instant of validity, a whole second.
    #[must_use]
    pub const fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// A token's audiences; empty for a certificate.
    #[must_use]
    pub fn audience(&self) -> &[String] {
        &self.audience
    }

    /// The task it belongs to.
    #[must_use]
    pub const fn task(&self) -> &TaskClaim {
        &self.task
    }

    /// SPIFFE IDs of the task's ancestors, nearest first: on whose behalf it acts.
    #[must_use]
    pub fn actors(&self) -> &[SpiffeId] {
        &self.actors
    }
}

/// Makes grants for tests and benches of other crates, where no registrar is at hand. Behind a
/// feature that no release enables.
#[cfg(feature = "planted")]
pub mod planted {
    use super::{Grant, TaskClaim};
    use crate::{
        id::{SpiffeId, TaskId, TaskVersion},
        ledger::{Kind, Serial},
        time::{Span, Timestamp},
    };
    use alloc::{string::String, vec::Vec};

    /// A grant for a root task, valid from ten seconds before `now` for `ttl`.
    #[must_use]
    pub fn grant(
        kind: Kind,
        serial: Serial,
        spiffe_id: SpiffeId,
        (now, ttl): (Timestamp, Span),
        audience: Vec<String>,
    ) -> Grant {
        let id = TaskId::from_bytes([7; 16]);
        Grant {
            kind,
            serial,
            spiffe_id,
            not_before: now.minus(crate::limits::BACKDATE).floor_to_second(),
            not_after: now.plus(ttl).floor_to_second(),
            audience,
            task: TaskClaim { id, version: TaskVersion(1), parent: None, root: id, depth: 0 },
            actors: Vec::new(),
        }
    }

    /// The same for a task below as many others as there are actors.
    #[must_use]
    pub fn delegated(grant: Grant, actors: Vec<SpiffeId>) -> Grant {
        let depth = u32::try_from(actors.len()).unwrap_or(u32::MAX);
        let (parent, root) = (TaskId::from_bytes([8; 16]), TaskId::from_bytes([9; 16]));
        let task = match depth {
            0 => grant.task,
            _ => TaskClaim { parent: Some(parent), root, depth, ..grant.task },
        };
        Grant { task, actors, ..grant }
    }
}
