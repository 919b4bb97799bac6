//! Opening: who holds the directory, is it the log that was left, and what does it say?

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use mayfly_audit::{Chain, Entry, Log, LogError, Reader, Recovery, Torn};
use mayfly_core::{Fact, Record, Sequence, Shard, Snapshot, TaskId, Timestamp};

use crate::{
    compaction::{self, Compaction},
    error::StoreError,
    index::{Index, IndexError, guarded},
    journal::LogJournal,
    keeper::{Desk, Keeper, Tools},
    lock::Lock,
    sentinel::{Found, Sentinel, SentinelFile},
};

/// Records read before they are folded into an index that is built again.
const CHUNK: usize = 1024;
/// Records that the index may be behind without being brought up to date before anybody is served: they
/// are replayed from memory, which takes seconds where sled takes a minute. The keeper folds them later.
const TAIL_MAX: usize = 4_000_000;
/// How far beyond everything known the journal goes on after a confirmed loss. Nobody can have seen a
/// position this far on, however old the backup; 2^32 such steps fit.
const RESUME_STEP: u64 = 1 << 32;

/// How to open a store.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Whose journal it is.
    pub shard: Shard,
    /// The instant for a record of what was confirmed.
    pub now: Timestamp,
    /// An operator has confirmed that a restored backup may serve.
    pub confirm_restored: bool,
    /// Where the sentinel is kept, if not in the data directory. The directory must exist.
    pub sentinel_dir: Option<PathBuf>,
    /// When a log segment is followed by a new one.
    pub segment_bytes: u64,
    /// Up to what size the index's file is left alone, however little it holds.
    pub index_floor_bytes: u64,
}

impl OpenOptions {
    /// The usual: shard 0, nothing confirmed, 64 MiB segments, an index of up to 128 MiB left alone.
    #[must_use]
    pub const fn new(now: Timestamp) -> Self {
        Self {
            shard: Shard(0),
            now,
            confirm_restored: false,
            sentinel_dir: None,
            segment_bytes: Log::SEGMENT_BYTES,
            index_floor_bytes: compaction::FLOOR_BYTES,
        }
    }
}

/// What became of the index.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum IndexReport {
    /// It was good up to this record; the rest came from the log.
    Used(Sequence),
    /// There was none.
    Created,
    /// It was thrown away and built again from the log, because of this.
    Rebuilt(String),
    /// None can be kept, because of this. The log alone serves.
    Unusable(String),
}

/// What was noticed while opening.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OpenReport {
    /// A write that never finished, which was cut off.
    pub torn: Option<Torn>,
    /// What became of the index.
    pub index: IndexReport,
    /// What an operator has confirmed to be lost.
    pub restored: Option<String>,
}

/// An open store.
#[derive(Debug)]
pub struct Opened {
    /// What the registrar has to replay; complete, there is no tail to it.
    pub snapshot: Snapshot,
    /// The last record of the journal.
    pub last: Sequence,
    /// What was noticed.
    pub report: OpenReport,
    /// For the [`crate::Committer`].
    pub journal: LogJournal,
    /// For questions and for forgetting.
    pub store: Store,
}

/// A handle to the part of the store that is not the journal.
#[derive(Clone, Debug)]
pub struct Store {
    desk: Arc<Desk>,
    log: PathBuf,
    _lock: Arc<Lock>,
}

impl Store {
    /// Opens the store below the data directory `dir`, which is created if it is missing.
    ///
    /// # Errors
    /// [`StoreError::Locked`], if a daemon runs there; [`StoreError::Restored`], if records are
    /// missing; [`StoreError::Log`], if the log is damaged. The log has not been changed then.
    pub fn open(dir: &Path, options: &OpenOptions) -> Result<Opened, StoreError> {
        create_dirs(&dir.join("store"))?;
        let lock = Arc::new(Lock::take(dir)?);
        let sentinel = SentinelFile::new(options.sentinel_dir.as_deref().unwrap_or(dir));
        let found = sentinel.read()?;
        let places = Places { log: dir.join("store/log"), index: dir.join("store/index") };

        let (mut candidate, mut report) = places.open_index();
        let (recovery, seen) = places.recover(options.shard, found, &mut candidate)?;
        let torn = recovery.torn().cloned();
        if let Some(torn) = &torn {
            tracing::warn!(
                after = torn.after.0,
                bytes = torn.bytes,
                why = torn.why,
                "cutting off a write that never finished"
            );
        }
        let lost = judge(options.shard, found, seen, &recovery);
        let (log, restored) = open_log(recovery, options, lost, found)?;
        if restored.is_some() {
            candidate.read_on(&places.log)?;
        }
        let settled = places.settle_index(candidate, log.last(), &mut report)?;

        let (last, chain) = (log.last(), *log.chain());
        sentinel.write(&Sentinel { shard: options.shard, sequence: last, chain })?;
        let reader = Reader::new(&places.log, log.cursor());
        let Settled { index, snapshot, backlog } = settled;
        let backlog = backlog.into();
        let tools = Tools { shard: options.shard, sentinel, reader, index, backlog };
        let compaction = Compaction::new(places.index, options.index_floor_bytes);
        let keeper = Keeper::start(tools, compaction, last, chain)
            .map_err(|error| StoreError::io("start a thread for", dir, error))?;
        let store = Self { desk: keeper.desk(), log: places.log, _lock: Arc::clone(&lock) };
        let report = OpenReport { torn, index: report, restored };
        let journal = LogJournal::new(log, keeper, lock);
        Ok(Opened { snapshot, last, report, journal, store })
    }

    /// Drops a task that core has forgotten from the index. Never waits. The log keeps it.
    pub fn forget(&self, task: TaskId) {
        self.desk.forget(task);
    }

    /// How far the index is; `None` if it is stale and will be rebuilt at the next start.
    #[must_use]
    pub fn indexed(&self) -> Option<Sequence> {
        self.desk.indexed()
    }

    /// All that the log says about `task`. Reads the whole log.
    ///
    /// # Errors
    /// [`StoreError::Log`], if the log is damaged.
    pub fn timeline(&self, task: TaskId) -> Result<Vec<(Sequence, Record)>, StoreError> {
        Ok(mayfly_audit::timeline(&self.log, task)?)
    }
}

struct Places {
    log: PathBuf,
    index: PathBuf,
}

/// An index that is being compared with the log, record by record.
struct Candidate {
    index: Result<Index, IndexError>,
    /// What it held when it was opened; `None` once something was folded in.
    snapshot: Option<Snapshot>,
    /// Whether the log was seen to have the link that the index stands on.
    is_placed: bool,
    /// What it does not hold yet.
    tail: Vec<Entry>,
    tail_max: usize,
}

/// Where the store begins.
struct Settled {
    index: Option<Index>,
    /// Everything, up to the end of the log.
    snapshot: Snapshot,
    /// What the index is still to be told.
    backlog: Vec<Entry>,
}

impl Candidate {
    fn new(opened: Result<(Index, Snapshot), IndexError>, tail_max: usize) -> Self {
        let (index, snapshot) = match opened {
            Ok((index, snapshot)) => (Ok(index), Some(snapshot)),
            Err(why) => (Err(why), None),
        };
        let is_placed = index.as_ref().is_ok_and(|index| index.position() == Sequence(0));
        Self { index, snapshot, is_placed, tail: Vec::new(), tail_max }
    }

    fn take(&mut self, entry: Entry) {
        let Ok(index) = &self.index else {
            return;
        };
        if self.is_placed && entry.sequence > index.position() {
            self.tail.push(entry);
            if self.tail.len() >= self.tail_max {
                self.fold();
            }
        } else if entry.sequence == index.position() {
            self.is_placed = entry.chain == index.chain();
        }
    }

    /// Takes what was written after the log was read: the record of a confirmed loss.
    fn read_on(&mut self, log: &Path) -> Result<(), LogError> {
        let from = self.end().next();
        mayfly_audit::read(log, from, |entry| self.take(entry)).map(drop)
    }

    /// The last record that it was told of.
    fn end(&self) -> Sequence {
        let indexed = self.index.as_ref().map_or(Sequence(0), Index::position);
        self.tail.last().map_or(indexed, |entry| entry.sequence)
    }

    fn fold(&mut self) {
        let tail = std::mem::take(&mut self.tail);
        self.snapshot = None;
        if let Ok(index) = &mut self.index
            && let Err(error) = guarded(|| index.apply_alone(tail))
        {
            self.index = Err(error);
        }
    }

    /// The index, if with what comes after it it reaches to the end of the log.
    fn finish(mut self, end: Sequence) -> Result<Settled, IndexError> {
        let reached = self.end();
        if self.snapshot.is_none() {
            self.fold();
        }
        let index = self.index?;
        if !self.is_placed || reached != end {
            return Err("it stands on records that are not in the log".to_owned().into());
        }
        let mut snapshot = match self.snapshot {
            Some(snapshot) => snapshot,
            None => guarded(|| index.snapshot())?,
        };
        // What comes after the rows is folded like the rows, and in the same order.
        for entry in &self.tail {
            snapshot.at = snapshot.at.max(entry.record.at);
            snapshot.records.push(entry.record.clone());
        }
        snapshot.position = end;
        Ok(Settled { index: Some(index), snapshot, backlog: self.tail })
    }
}

impl Places {
    fn open_index(&self) -> (Candidate, IndexReport) {
        let report =
            if self.index.exists() { IndexReport::Used(Sequence(0)) } else { IndexReport::Created };
        compaction::clear(&self.index);
        let opened = Index::open(&self.index);
        let report = match (&opened, report) {
            (Ok((index, _)), IndexReport::Used(_)) => IndexReport::Used(index.position()),
            (_, report) => report,
        };
        (Candidate::new(opened, TAIL_MAX), report)
    }

    /// Reads the log as far back as anybody needs it. Changes nothing but the index.
    fn recover(
        &self,
        shard: Shard,
        found: Found,
        candidate: &mut Candidate,
    ) -> Result<(Recovery, Option<Chain>), StoreError> {
        let known = match found {
            Found::Sentinel(sentinel) => sentinel.sequence,
            Found::Nothing | Found::Damaged => Sequence(0),
        };
        let indexed = candidate.index.as_ref().map_or(known, Index::position);
        let mut seen = (known == Sequence(0)).then_some(Chain::GENESIS);
        let recovery = Log::recover(&self.log, shard, known.min(indexed), |entry| {
            if entry.sequence == known {
                seen = Some(entry.chain);
            }
            candidate.take(entry);
        })?;
        Ok((recovery, seen))
    }

    /// The index at the end of the log and its snapshot: the one that was there, or else a new one, or
    /// else none and a snapshot that is simply everything.
    fn settle_index(
        &self,
        candidate: Candidate,
        last: Sequence,
        report: &mut IndexReport,
    ) -> Result<Settled, StoreError> {
        let why = match candidate.finish(last) {
            Ok(settled) => {
                if *report == IndexReport::Created && last > Sequence(0) {
                    tracing::warn!("there was no index; it was built again from the log");
                    *report = IndexReport::Rebuilt("there was none".into());
                }
                return Ok(settled);
            }
            Err(why) => why.to_string(),
        };
        tracing::warn!(why, "the index is thrown away and built again from the log");
        let mut candidate = Candidate::new(guarded(|| Index::replace(&self.index)), CHUNK);
        mayfly_audit::read(&self.log, Sequence(0), |entry| candidate.take(entry))?;
        match candidate.finish(last) {
            Ok(settled) => {
                *report = IndexReport::Rebuilt(why);
                Ok(settled)
            }
            Err(error) => {
                tracing::warn!(%error, "no index can be kept; the log alone serves");
                *report = IndexReport::Unusable(error.to_string());
                let snapshot = self.everything(last)?;
                Ok(Settled { index: None, snapshot, backlog: Vec::new() })
            }
        }
    }

    fn everything(&self, position: Sequence) -> Result<Snapshot, LogError> {
        let mut snapshot = Snapshot { position, ..Snapshot::default() };
        mayfly_audit::read(&self.log, Sequence(0), |entry| {
            snapshot.at = snapshot.at.max(entry.record.at);
            snapshot.records.push(entry.record);
        })?;
        Ok(snapshot)
    }
}

/// What is wrong with the log in the eyes of the sentinel; `None` if nothing is.
fn judge(
    shard: Shard,
    found: Found,
    seen: Option<Chain>,
    recovery: &Recovery,
) -> Option<&'static str> {
    match found {
        Found::Nothing if recovery.last() == Sequence(0) => None,
        Found::Nothing => Some("there is a log but no sentinel"),
        Found::Damaged => Some("the sentinel cannot be read"),
        Found::Sentinel(sentinel) if sentinel.shard != shard => {
            Some("the sentinel is that of another shard")
        }
        Found::Sentinel(sentinel) if sentinel.sequence > recovery.last() => {
            Some("records that were durable are missing")
        }
        Found::Sentinel(sentinel) if seen != Some(sentinel.chain) => {
            Some("the log has another history than the sentinel")
        }
        Found::Sentinel(_) => None,
    }
}

fn open_log(
    recovery: Recovery,
    options: &OpenOptions,
    lost: Option<&'static str>,
    found: Found,
) -> Result<(Log, Option<String>), StoreError> {
    let Some(why) = lost else {
        return Ok((recovery.open(options.segment_bytes)?, None));
    };
    let log = recovery.last();
    let sentinel = match found {
        Found::Sentinel(sentinel) => Some(sentinel.sequence),
        Found::Nothing | Found::Damaged => None,
    };
    if !options.confirm_restored {
        return Err(StoreError::Restored { log, sentinel, why });
    }
    let known = sentinel.map_or(log, |sentinel| sentinel.max(log));
    let first = Sequence(known.0.saturating_add(RESUME_STEP));
    let detail = format!(
        "{why}; the log ended at {}, the sentinel stood at {}; confirmed, going on at {}",
        log.0,
        sentinel.map_or_else(|| "nothing".into(), |at| at.0.to_string()),
        first.0
    );
    tracing::warn!(detail, "a restored log is accepted");
    let mut log = recovery.resume_at(first, options.segment_bytes)?;
    let fact = Fact::Noted { what: "restored".into(), detail: detail.clone() };
    log.append(&[(first, Record { at: options.now, fact })])?;
    log.sync()?;
    Ok((log, Some(detail)))
}

/// Only the daemon's user may look in.
fn create_dirs(dir: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(StoreError::io("create", dir, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
