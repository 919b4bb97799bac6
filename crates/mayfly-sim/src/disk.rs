//! A journal on a disk that forgets what was not synced, and a snapshot of it.
//!
//! At a crash the records behind the last sync survive as a prefix of any length: the kernel may
//! have written them, and nobody was told.

use std::collections::{BTreeMap, BTreeSet};

use mayfly_core::{Record, Sequence, Snapshot, TaskId, Window, record::Fact};

use crate::rng::Rng;

/// The journal's files.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    records: Vec<Record>,
    synced: usize,
    forgotten: BTreeSet<TaskId>,
    snapshot_at: usize,
    broken: bool,
}

impl Disk {
    /// Takes one more record. `false` when the disk has failed or the number is not the next one.
    #[must_use]
    pub(crate) fn append(&mut self, sequence: Sequence, record: Record) -> bool {
        let next = sequence.0 == self.records.len() as u64 + 1;
        if next && !self.broken {
            self.records.push(record);
        }
        next && !self.broken
    }

    /// Records that a crash may lose.
    #[must_use]
    pub(crate) fn unsynced(&self) -> usize {
        self.records.len() - self.synced
    }

    /// Records that no crash loses.
    #[must_use]
    pub(crate) const fn synced(&self) -> usize {
        self.synced
    }

    /// Makes the next `count` records durable, and says up to which.
    pub(crate) fn sync(&mut self, count: usize) -> Sequence {
        self.synced = self.records.len().min(self.synced.saturating_add(count));
        Sequence(self.synced as u64)
    }

    /// From here on the disk takes nothing. What was not synced may or may not be there.
    pub(crate) const fn fail(&mut self) {
        self.broken = true;
    }

    /// Loses all but a prefix of what was not synced, and says how many records there are after it.
    /// A disk that had failed has been replaced or emptied meanwhile.
    pub(crate) fn crash(&mut self, rng: &mut Rng) -> usize {
        let kept = rng.index(self.unsynced() + 1);
        self.crash_keeping(kept)
    }

    /// [`Self::crash`] with `kept` unsynced records that survive.
    pub(crate) fn crash_keeping(&mut self, kept: usize) -> usize {
        self.records.truncate(self.synced + kept);
        self.synced = self.records.len();
        self.broken = false;
        self.synced
    }

    /// Learns that a task is forgotten: snapshots leave it out.
    pub(crate) fn forget(&mut self, task: TaskId) {
        self.forgotten.insert(task);
    }

    /// Throws the snapshot away: the next one is made from the whole journal, in which what was
    /// forgotten comes back until it is forgotten again.
    pub(crate) fn rebuild(&mut self) {
        self.forgotten.clear();
        self.snapshot_at = 0;
    }

    /// Keeps what came back with the journal's tail.
    pub(crate) fn remember(&mut self, is_back: impl Fn(TaskId) -> bool) {
        self.forgotten.retain(|task| !is_back(*task));
    }

    /// Whether snapshots leave `task` out.
    #[must_use]
    pub(crate) fn has_forgotten(&self, task: TaskId) -> bool {
        self.forgotten.contains(&task)
    }

    /// Every record, synced or not, with its number.
    pub(crate) fn journal(&self) -> impl Iterator<Item = (Sequence, Record)> {
        (1..).map(Sequence).zip(self.records.iter().cloned())
    }

    /// The newest snapshot as a store would write it: facts about tasks that are not forgotten, and
    /// the next free slot of every window that somebody may still need.
    pub(crate) fn snapshot(&mut self, rng: &mut Rng) -> Snapshot {
        // A store writes its snapshot now and then, of what is durable, and never an older one.
        let newer = rng.index(self.synced - self.snapshot_at.min(self.synced) + 1);
        self.snapshot_at = (self.snapshot_at + newer).min(self.synced);
        self.snapshot_of(self.snapshot_at)
    }

    /// A snapshot of the first `count` records.
    #[must_use]
    pub(crate) fn snapshot_of(&self, count: usize) -> Snapshot {
        let records = || self.records.iter().take(count);
        let at = records().next_back().map(|record| record.at).unwrap_or_default();
        let mut next_slots: BTreeMap<Window, u32> = BTreeMap::new();
        for record in records() {
            if let Fact::Promised { serial, .. } = &record.fact {
                let place = serial.place();
                let next = next_slots.entry(place.window).or_default();
                *next = (*next).max(place.slot.0 + 1);
            }
        }
        next_slots.retain(|window, _| window.forget_at() > at);
        let kept = records().filter(|record| match &record.fact {
            Fact::Refused { .. } | Fact::Misused { .. } | Fact::Noted { .. } => false,
            Fact::Began { task, .. }
            | Fact::Promised { task, .. }
            | Fact::Ended { task, .. }
            | Fact::Suspended { task, .. }
            | Fact::Resumed { task, .. }
            | Fact::Transferred { task, .. }
            | Fact::Renewed { task, .. }
            | Fact::Amended { task, .. }
            | Fact::CredentialRevoked { task, .. } => !self.forgotten.contains(task),
        });
        Snapshot {
            position: Sequence(count as u64),
            at,
            next_slots: next_slots.into_iter().collect(),
            records: kept.cloned().collect(),
        }
    }
}
