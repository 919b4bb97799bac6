//! The index: sled, checked by position and digest, and never believed beyond them.

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    fs::{self, File},
    io, iter,
    num::NonZero,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::mpsc::{RecvTimeoutError, sync_channel},
    thread::{self, Builder},
    time::Duration,
};

use mayfly_audit::{Chain, Entry};
use mayfly_core::{Sequence, Snapshot, TaskId, Timestamp};
use rustix::fs::{FlockOperation, flock};

use crate::{
    draft::Draft,
    fold::{self, Gather},
    tally::{Digest, Tally},
};

const CACHE_BYTES: u64 = 40 << 20;
/// While a second one is written, which nobody reads.
const COPY_CACHE_BYTES: u64 = 8 << 20;
/// Octets copied before somebody is asked whether to go on: some tens of milliseconds.
const COPY_BYTES: u64 = 1 << 18;
/// Threads that read it at a start.
const READERS_MAX: usize = 8;
/// How often sled's lock is asked for again, and the pause between: a second, all in all.
const LOCK_TRIES_MAX: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// How long sled may take to open before it is given up; a million rows take half a second.
const OPEN_PATIENCE: Duration = Duration::from_secs(120);
/// How often sled writes what it holds to its file. Whatever a crash takes is folded again from the log.
const FLUSH_MS: u64 = 5_000;
/// Records folded in at once. Sled makes a copy of a page for each row of it that changes, and holds on to all
/// of them until its batch is over: those of a small one are still in the processor's caches when they are
/// let go, while a smaller one still is written for too few rows.
const PORTION: usize = 256;
const META: &[u8] = b"m";
const META_BYTES: usize = 81;

/// Why the index is of no use. A sentence for the log; nobody decides by it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct IndexError(String);

impl IndexError {
    pub(crate) fn bad_row() -> Self {
        Self("a row cannot be read".into())
    }
}

impl From<String> for IndexError {
    fn from(why: String) -> Self {
        Self(why)
    }
}

impl From<sled::Error> for IndexError {
    fn from(error: sled::Error) -> Self {
        Self(format!("sled: {error}"))
    }
}

/// Runs what may panic: sled does where it does not understand its own files.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T, IndexError>) -> Result<T, IndexError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_panic| Err(IndexError("sled panicked".into())))
}

/// What the index says about itself, written with every change in one sled batch.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Meta {
    position: Sequence,
    at: Timestamp,
    chain: Chain,
    digest: Digest,
}

impl Meta {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![fold::VERSION];
        bytes.extend(self.position.0.to_le_bytes());
        bytes.extend(self.at.0.to_le_bytes());
        bytes.extend(self.chain.as_bytes());
        bytes.extend(self.digest.0.iter().flat_map(|lane| lane.to_le_bytes()));
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != META_BYTES || bytes.first() != Some(&fold::VERSION) {
            return None;
        }
        let number = |at: usize| {
            let bytes = bytes.get(at..at + 8)?.try_into().ok()?;
            Some(u64::from_le_bytes(bytes))
        };
        Some(Self {
            position: Sequence(number(1)?),
            at: Timestamp(number(9)?),
            chain: Chain::from_bytes(bytes.get(17..49)?.try_into().ok()?),
            digest: Digest([number(49)?, number(57)?, number(65)?, number(73)?]),
        })
    }
}

/// The index, open and as far as [`Self::position`].
#[derive(Debug)]
pub(crate) struct Index {
    rows: sled::Db,
    meta: Meta,
    /// What all rows hold, in octets of keys and values.
    live: u64,
}

impl Index {
    /// Opens what is in `dir`, checks every row of it and says what they hold; an empty index if there is
    /// nothing.
    ///
    /// On a thread of its own and with a time limit, because garbage can make sled wait as well as
    /// panic. It can also make it ask for more memory than there is, which ends the process: hence the
    /// mark, which a start that did not survive leaves behind.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Snapshot), IndexError> {
        let mark = dir.with_extension("opening");
        if mark.exists() {
            return Err(IndexError("the last start did not survive opening it".into()));
        }
        let at = |what, error: io::Error| IndexError(format!("cannot {what}: {error}"));
        fs::write(&mark, []).map_err(|error| at("mark the index", error))?;
        let (sender, receiver) = sync_channel(1);
        let path = dir.to_path_buf();
        let work = move || {
            // If nobody listens any more, nobody wants the index either.
            drop(sender.send(guarded(|| Self::open_here(&path))));
        };
        let thread = Builder::new().name("index-open".into()).spawn(work);
        thread.map_err(|error| at("start a thread", error))?;
        let index = match receiver.recv_timeout(OPEN_PATIENCE) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(IndexError("sled did not open in time".into())),
            Err(RecvTimeoutError::Disconnected) => Err(IndexError("sled panicked".into())),
        };
        fs::remove_file(&mark).map_err(|error| at("unmark the index", error))?;
        index
    }

    fn open_here(dir: &Path) -> Result<(Self, Snapshot), IndexError> {
        let is_new = !dir.exists();
        let rows = open_rows(dir, CACHE_BYTES)?;
        let meta = match rows.get(META)? {
            Some(bytes) => {
                Meta::decode(&bytes).ok_or_else(|| IndexError("its head cannot be read".into()))?
            }
            None if is_new => {
                // From here on an index without a head is one that was emptied.
                rows.insert(META, Meta::default().encode())?;
                Meta::default()
            }
            None => return Err(IndexError("it is empty".into())),
        };
        let mut index = Self { rows, meta, live: 0 };
        let (snapshot, tally) = index.read()?;
        index.live = tally.octets;
        Ok((index, snapshot))
    }

    /// Throws away what is in `dir` and begins an empty index.
    pub(crate) fn replace(dir: &Path) -> Result<(Self, Snapshot), IndexError> {
        let at = |error: io::Error| IndexError(format!("cannot remove it: {error}"));
        for path in [dir.to_path_buf(), dir.with_extension("opening")] {
            let removed =
                if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
                Ok(()) | Err(_) => {}
            }
        }
        Self::open(dir)
    }

    /// The last record that is folded in.
    pub(crate) const fn position(&self) -> Sequence {
        self.meta.position
    }

    /// The log's link at that record.
    pub(crate) const fn chain(&self) -> Chain {
        self.meta.chain
    }

    /// Changes to it that nobody has made yet.
    pub(crate) fn draft(&self) -> Draft<'_> {
        Draft::over(&self.rows, Tally { digest: self.meta.digest, octets: self.live })
    }

    /// Folds records in, by portions of which each is folded in whole or not at all. None is held for longer
    /// than its turn: thousands of them are megabytes, which would be got from the kernel and given back each
    /// time.
    pub(crate) fn apply<E: Borrow<Entry>>(
        &mut self,
        entries: impl IntoIterator<Item = Result<E, IndexError>>,
    ) -> Result<(), IndexError> {
        self.fold_all(entries, false)
    }

    /// The same where there is no core that says what it has forgotten.
    pub(crate) fn apply_alone(
        &mut self,
        entries: impl IntoIterator<Item = Entry>,
    ) -> Result<(), IndexError> {
        self.fold_all(entries.into_iter().map(Ok), true)
    }

    fn fold_all<E: Borrow<Entry>>(
        &mut self,
        entries: impl IntoIterator<Item = Result<E, IndexError>>,
        is_alone: bool,
    ) -> Result<(), IndexError> {
        let mut entries = entries.into_iter();
        while self.fold(entries.by_ref().take(PORTION), is_alone)? == PORTION {}
        Ok(())
    }

    /// How many there were.
    fn fold<E: Borrow<Entry>>(
        &mut self,
        portion: impl Iterator<Item = Result<E, IndexError>>,
        is_alone: bool,
    ) -> Result<usize, IndexError> {
        let (mut meta, mut count) = (self.meta, 0);
        let mut draft = self.draft();
        draft.is_alone = is_alone;
        for entry in portion {
            let entry = entry?;
            let entry = entry.borrow();
            fold::take(&mut draft, entry)?;
            meta.position = entry.sequence;
            meta.chain = entry.chain;
            meta.at = meta.at.max(entry.record.at);
            count += 1;
        }
        if count > 0 {
            fold::sweep(&mut draft, (meta.at, count))?;
            self.write(draft.changes, meta, draft.tally)?;
        }
        Ok(count)
    }

    /// Drops tasks that core has forgotten, by portions too.
    pub(crate) fn forget(&mut self, tasks: &[TaskId]) -> Result<(), IndexError> {
        for portion in tasks.chunks(PORTION) {
            let meta = self.meta;
            let mut draft = self.draft();
            for task in portion {
                fold::forget(&mut draft, *task, meta.at)?;
            }
            self.write(draft.changes, meta, draft.tally)?;
        }
        Ok(())
    }

    fn write(
        &mut self,
        changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
        meta: Meta,
        tally: Tally,
    ) -> Result<(), IndexError> {
        let meta = Meta { digest: tally.digest, ..meta };
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        batch.insert(META, meta.encode());
        self.rows.apply_batch(batch)?;
        self.meta = meta;
        self.live = tally.octets;
        Ok(())
    }

    /// All rows as a snapshot, checked on the way.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, IndexError> {
        self.read().map(|(snapshot, _)| snapshot)
    }

    fn read(&self) -> Result<(Snapshot, Tally), IndexError> {
        let (mut gather, mut tally) = (Gather::default(), Tally::default());
        for part in self.scan()? {
            gather.join(part.gather);
            tally.join(part.tally);
        }
        self.check(&tally)?;
        Ok((gather.finish(self.meta.position, self.meta.at), tally))
    }

    fn check(&self, tally: &Tally) -> Result<(), IndexError> {
        if tally.digest == self.meta.digest {
            Ok(())
        } else {
            Err(IndexError("its rows do not add up to its digest".into()))
        }
    }

    /// Reads every row, on as many threads as there are cores.
    fn scan(&self) -> Result<Vec<Part>, IndexError> {
        let readers = thread::available_parallelism().map_or(1, NonZero::get).min(READERS_MAX);
        let edges = self.edges(readers)?;
        thread::scope(|scope| {
            let read = |from: &Option<Vec<u8>>, to: &Option<Vec<u8>>| {
                let (from, to) = (from.clone(), to.clone());
                scope.spawn(move || guarded(|| Part::read(&self.rows, (from, to))))
            };
            let pairs = edges.iter().zip(edges.iter().skip(1));
            let readers: Vec<_> = pairs.map(|(from, to)| read(from, to)).collect();
            let joined = readers.into_iter().map(|reader| {
                reader.join().unwrap_or_else(|_panic| Err(IndexError("a reader panicked".into())))
            });
            joined.collect()
        })
    }

    /// Where `readers` parts of about the same number of rows begin and end: nearly all rows are those of
    /// tasks, whose names begin with the instant of their begin.
    fn edges(&self, readers: usize) -> Result<Vec<Option<Vec<u8>>>, IndexError> {
        let mut tasks = self.rows.range(b"t".as_slice()..b"u".as_slice()).keys();
        let first = tasks.next().transpose()?.and_then(|key| place(&key));
        let last = tasks.next_back().transpose()?.and_then(|key| place(&key));
        let within = first.zip(last).into_iter().flat_map(|(first, last)| {
            let step = last.saturating_sub(first) / readers as u64;
            (1..readers as u64).map(move |at| first.saturating_add(step.saturating_mul(at)))
        });
        let within = within.map(|place| {
            let mut key = b"t".to_vec();
            key.extend(place.to_be_bytes());
            Some(key)
        });
        Ok(iter::once(None).chain(within).chain([None]).collect())
    }

    pub(crate) fn flush(&self) -> Result<(), IndexError> {
        self.rows.flush()?;
        Ok(())
    }

    /// What all rows hold, in octets of keys and values.
    pub(crate) const fn live(&self) -> u64 {
        self.live
    }

    /// What sled's files take. Asks the file system for a few numbers and reads nothing.
    pub(crate) fn size(&self) -> Result<u64, IndexError> {
        Ok(self.rows.size_on_disk()?)
    }

    /// Writes all rows into an index in `dir`, where there is none, and closes it; what it holds is on
    /// disk then. `false` if `go_on` said so before the end.
    pub(crate) fn copy(
        &self,
        dir: &Path,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool, IndexError> {
        let copy = open_rows(dir, COPY_CACHE_BYTES)?;
        let (mut tally, mut asked_at) = (Tally::default(), 0);
        // One by one: nobody reads a copy before it is whole, so what a batch costs in memory buys nothing.
        for row in self.rows.iter() {
            let (key, value) = row?;
            if key == META {
                continue;
            }
            tally.add(&key, &value);
            copy.insert(key, value)?;
            if tally.octets - asked_at >= COPY_BYTES {
                asked_at = tally.octets;
                if !go_on() {
                    return Ok(false);
                }
            }
        }
        self.check(&tally)?;
        copy.insert(META, self.meta.encode())?;
        copy.flush()?;
        drop(copy);
        wait_until_closed(dir)?;
        Ok(true)
    }

    /// Closes the index in `dir`, lets `exchange` put a copy of it in its place and opens what is there.
    pub(crate) fn exchange(self, dir: &Path, exchange: impl FnOnce()) -> Result<Self, IndexError> {
        let Self { rows, meta, live } = self;
        drop(rows);
        // Sled removes some of its files late and by name: it must not meet those of the other.
        wait_until_closed(dir)?;
        exchange();
        let rows = open_rows(dir, CACHE_BYTES)?;
        if rows.get(META)?.is_none_or(|head| head != meta.encode()) {
            return Err(IndexError("a copy says something else".into()));
        }
        Ok(Self { rows, meta, live })
    }
}

/// Rows that were read, and what they add up to.
#[derive(Default)]
struct Part {
    gather: Gather,
    tally: Tally,
}

impl Part {
    fn read(
        rows: &sled::Tree,
        (from, to): (Option<Vec<u8>>, Option<Vec<u8>>),
    ) -> Result<Self, IndexError> {
        let from = from.map_or(Bound::Unbounded, Bound::Included);
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        let mut part = Self::default();
        for row in rows.range::<Vec<u8>, _>((from, to)) {
            let (key, value) = row?;
            if key != META {
                part.tally.add(&key, &value);
                part.gather.take(&key, &value)?;
            }
        }
        Ok(part)
    }
}

/// What the first octets of a key of a task say, as a number.
fn place(key: &[u8]) -> Option<u64> {
    key.get(1..)?.first_chunk().copied().map(u64::from_be_bytes)
}

/// Opens sled's files, waiting for a handle of ours that is on its way out.
fn open_rows(dir: &Path, cache_bytes: u64) -> Result<sled::Db, IndexError> {
    if dir.join("db").exists() {
        wait_until_closed(dir)?;
    }
    let config = sled::Config::new().path(dir).cache_capacity(cache_bytes);
    Ok(config.flush_every_ms(Some(FLUSH_MS)).open()?)
}

/// Sled's threads let go of their lock some moments after the handle is dropped. Nobody else can hold it,
/// because the data directory is locked.
fn wait_until_closed(dir: &Path) -> Result<(), IndexError> {
    let file = File::open(dir.join("db"))
        .map_err(|error| IndexError(format!("cannot look at sled's file: {error}")))?;
    for _ in 0..LOCK_TRIES_MAX {
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(());
        }
        thread::sleep(LOCK_PAUSE);
    }
    Err(IndexError("sled does not let go of its files".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_what_began_within_an_hour() {
        let dir = tempfile::tempdir().unwrap();
        let (index, _) = Index::open(&dir.path().join("index")).unwrap();
        assert_eq!(index.edges(2).unwrap(), [None, None], "there is nothing to share");
        for number in 0..1_000_u64 {
            let began_ms = 1_790_000_000_000 + number * 3_600;
            let name = [&b"t"[..], &(began_ms << 16).to_be_bytes(), &[0; 9]].concat();
            index.rows.insert(name, &b""[..]).unwrap();
        }
        for readers in [1, 2, 3, 8] {
            let edges = index.edges(readers).unwrap();
            assert_eq!(edges.len(), readers + 1);
            let mut shares = edges.windows(2).map(|pair| {
                let from = pair[0].clone().unwrap_or_else(|| b"t".to_vec());
                let to = pair[1].clone().unwrap_or_else(|| b"u".to_vec());
                index.rows.range(from..to).count()
            });
            assert!(shares.all(|share| share.abs_diff(1_000 / readers) <= 2), "{readers}");
        }
    }
}
