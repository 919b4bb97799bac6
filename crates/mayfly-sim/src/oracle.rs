//! The obvious model: plain lists of what was ordered, heard, signed, released and published, and
//! every answer computed from the whole of them. It shares no code with the core, knows no index and
//! no state machine, and is as slow as it looks.

use mayfly_core::{
    Kind, Record, Serial, Span, TaskId, TaskVersion, Ticket, Timestamp, record::Fact, task::Terms,
};

mod admission;
mod ahead;
mod check;
mod narrow;
mod settled;

/// A law of `docs/invariants.md` that did not hold.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Violation {
    /// Its number, for example `P3`.
    pub law: &'static str,
    /// What was seen.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.law, self.what)
    }
}

impl std::error::Error for Violation {}

/// Returns the violation of a law unless its condition holds.
macro_rules! uphold {
    ($condition:expr, $law:literal, $($what:tt)+) => {
        if !$condition {
            return Err($crate::oracle::Violation { law: $law, what: format!($($what)+) });
        }
    };
}
pub(crate) use uphold;

/// An operator's quarantine by name.
#[derive(Debug)]
struct Ward {
    task: TaskId,
    /// Who asked for it, if somebody did: of two quarantines of one task each has its own answer.
    by: Option<Ticket>,
    /// Known to be on disk.
    acknowledged: bool,
    /// Releases that were asked for and are not answered.
    releasing: Vec<Ticket>,
}

/// Everything that the world has seen of a registrar, across its crashes.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    journal: Vec<Record>,
    durable: usize,
    /// Tasks of which the registrar has heard that they are over.
    heard: Vec<TaskId>,
    wards: Vec<Ward>,
    /// Owners who are accountable for nothing any more.
    left: Vec<String>,
    /// Tasks that the registrar has forgotten.
    forgotten: Vec<TaskId>,
    asking: Vec<admission::Asking>,
    ahead: ahead::Promises,
    signing: Vec<Serial>,
    released: Vec<Serial>,
    position: u64,
    now: Timestamp,
}

/// A promise as the journal has it.
#[derive(Clone, Copy, Debug)]
struct Promise {
    task: TaskId,
    version: TaskVersion,
    kind: Kind,
    serial: Serial,
    not_after: Timestamp,
}

/// A beginning as the journal has it.
#[derive(Clone, Copy, Debug)]
struct Beginning<'a> {
    at: Timestamp,
    terms: &'a Terms,
    holder: &'a mayfly_core::Holder,
    parent: Option<TaskId>,
    deadline: Option<Timestamp>,
    lease: Option<Span>,
}

impl Oracle {
    fn facts(&self) -> impl DoubleEndedIterator<Item = &Fact> {
        self.journal.iter().map(|record| &record.fact)
    }

    fn on_disk(&self) -> impl DoubleEndedIterator<Item = &Fact> {
        self.journal.iter().take(self.durable).map(|record| &record.fact)
    }

    fn promises(&self) -> impl Iterator<Item = Promise> {
        self.facts().filter_map(promise)
    }

    /// Every task that was begun and not lost, in order.
    fn tasks(&self) -> impl Iterator<Item = TaskId> {
        self.facts().filter_map(|fact| {
            let Fact::Began { task, .. } = fact else { return None };
            Some(*task)
        })
    }

    fn beginning(&self, id: TaskId) -> Option<Beginning<'_>> {
        self.journal.iter().find_map(|record| {
            let Fact::Began { task, terms, holder, parent, deadline, lease, .. } = &record.fact
            else {
                return None;
            };
            let (parent, deadline, lease) = (*parent, *deadline, *lease);
            let begun = Beginning { at: record.at, terms, holder, parent, deadline, lease };
            (*task == id).then_some(begun)
        })
    }

    /// The task and everything above it.
    fn line(&self, id: TaskId) -> Vec<TaskId> {
        let up = |id: &TaskId| self.beginning(*id).and_then(|begun| begun.parent);
        std::iter::successors(Some(id), up).collect()
    }

    fn is_ended(&self, id: TaskId) -> bool {
        is_ended(self.facts(), id)
    }

    /// Whether the task or one above it is over, as far as anybody was told.
    fn is_over(&self, id: TaskId) -> bool {
        self.line(id).iter().any(|id| self.heard.contains(id) || self.is_ended(*id))
    }

    fn is_suspended(&self, id: TaskId) -> bool {
        is_suspended(self.facts(), id)
    }

    fn version(&self, id: TaskId) -> TaskVersion {
        version(self.facts(), id)
    }

    fn is_revoked_alone(&self, serial: Serial) -> bool {
        is_revoked_alone(self.facts(), serial)
    }

    /// Until when the journal keeps the task alive: the earlier of its deadline and its lease.
    fn keeps_until(&self, id: TaskId) -> Option<Timestamp> {
        let begun = self.beginning(id)?;
        let renewed = self.facts().rev().find_map(|fact| {
            let Fact::Renewed { task, lease_until } = fact else { return None };
            (*task == id).then_some(*lease_until)
        });
        let lease = renewed.or_else(|| begun.lease.map(|lease| begun.at.plus(lease)));
        [begun.deadline, lease].into_iter().flatten().min()
    }

    /// The earliest such instant of the task and everything above it.
    fn line_keeps_until(&self, id: TaskId) -> Option<Timestamp> {
        self.line(id).iter().filter_map(|id| self.keeps_until(*id)).min()
    }
}

fn promise(fact: &Fact) -> Option<Promise> {
    let Fact::Promised { task, version, kind, serial, not_after, .. } = fact else { return None };
    let (task, version, kind) = (*task, *version, *kind);
    Some(Promise { task, version, kind, serial: *serial, not_after: *not_after })
}

fn is_ended<'a>(mut facts: impl Iterator<Item = &'a Fact>, id: TaskId) -> bool {
    facts.any(|fact| matches!(fact, Fact::Ended { task, .. } if *task == id))
}

fn is_suspended<'a>(facts: impl DoubleEndedIterator<Item = &'a Fact>, id: TaskId) -> bool {
    let last = facts.rev().find_map(|fact| {
        if let Fact::Suspended { task, .. } = fact {
            (*task == id).then_some(true)
        } else if let Fact::Resumed { task, .. } = fact {
            (*task == id).then_some(false)
        } else {
            None
        }
    });
    last == Some(true)
}

fn version<'a>(facts: impl DoubleEndedIterator<Item = &'a Fact>, id: TaskId) -> TaskVersion {
    let last = facts.rev().find_map(|fact| {
        let Fact::Amended { task, version, .. } = fact else { return None };
        (*task == id).then_some(*version)
    });
    last.unwrap_or(TaskVersion(1))
}

fn is_revoked_alone<'a>(mut facts: impl Iterator<Item = &'a Fact>, name: Serial) -> bool {
    facts.any(|fact| matches!(fact, Fact::CredentialRevoked { serial, .. } if *serial == name))
}
