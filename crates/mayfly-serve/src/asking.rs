//! Who asks an office, about what, and what of the tasks it wants to see.

use std::pin::Pin;

use futures_util::Stream;
use mayfly_attest::Peer;
use mayfly_core::{Denial, Fact, Principal, Sequence, Span, State, Task, TaskId, Timestamp};

use crate::{guest::Guest, story};

/// Who asks, and how to look at it again.
#[derive(Clone, Debug)]
pub struct Asker {
    /// Who it proved to be.
    pub principal: Principal,
    /// The process, if it is one of this machine: it may stand for a task.
    pub peer: Option<Peer>,
}

impl Asker {
    /// The caller at the other end of a connection.
    #[must_use]
    pub fn of(guest: &Guest) -> Self {
        let principal = match (guest.id(), guest.peer()) {
            (Some(id), _) => Principal::Spiffe(id.clone()),
            (None, Some(peer)) => Principal::User(peer.uid()),
            (None, None) => Principal::Nobody,
        };
        Self { principal, peer: guest.peer().cloned() }
    }
}

/// Whom a token of a configured issuer is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bearer {
    /// Its subject.
    pub principal: Principal,
    /// How long it still counts.
    pub lasts: Span,
}

/// What something is to be done to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Object {
    /// Everything, or nothing in particular.
    Everything,
    /// The tasks of a profile.
    Profile(String),
    /// One task.
    Task(TaskId),
    /// A new task of this profile below another.
    Child {
        /// The other.
        parent: TaskId,
        /// The profile.
        profile: String,
    },
}

/// Which tasks somebody wants to see. What is left empty matches everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Query {
    /// Those that are over, too.
    pub ended: bool,
    /// Of this profile.
    pub profile: String,
    /// Of this owner.
    pub owner: String,
    /// Direct children of this task.
    pub parent: Option<TaskId>,
    /// This task and everything below it.
    pub tree: Option<TaskId>,
    /// With a SPIFFE ID that begins with this.
    pub spiffe_id_prefix: String,
    /// In this state, by its name.
    pub state: Option<&'static str>,
}

impl Query {
    /// Whether `task`, which has `above` it, is one of these, whatever its state.
    #[must_use]
    pub fn is_about(&self, task: &Task, above: &[TaskId]) -> bool {
        (self.profile.is_empty() || self.profile == task.terms.profile)
            && (self.owner.is_empty() || self.owner == task.terms.owner)
            && (self.parent.is_none() || self.parent == task.parent)
            && self.tree.is_none_or(|tree| tree == task.id || above.contains(&tree))
            && (self.spiffe_id_prefix.is_empty()
                || task.spiffe_id().as_str().starts_with(&self.spiffe_id_prefix))
    }

    /// Whether a task in this state is one of these.
    #[must_use]
    pub fn admits(&self, state: State) -> bool {
        match self.state {
            Some(name) => name == state.name(),
            None => self.ended || !state.is_ended(),
        }
    }
}

/// One part of what matches.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Found {
    /// In the order of their names.
    pub tasks: Vec<Task>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

/// What somebody who watches is told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Seen {
    /// A task as it is on disk.
    Task {
        /// It.
        task: Box<Task>,
        /// What changed it, and where that stands in the log, if it has just been changed.
        change: Option<(&'static str, Sequence)>,
    },
    /// Everything that matched at the beginning was told.
    Synced,
}

/// What is told, until the first No, which ends it.
pub type Watching = Pin<Box<dyn Stream<Item = Result<Seen, Denial>> + Send>>;

/// The word for a fact in a timeline.
#[must_use]
pub fn word(fact: &Fact) -> &'static str {
    story::tell(fact, Timestamp::default()).0
}
