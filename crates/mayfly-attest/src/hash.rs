//! Digests of programs, remembered.
//!
//! Reading a program costs 0.7 ms per MiB, a hundred times the rest of an attestation, so it is done
//! on a blocking thread, by few at a time, and once per version of the file.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mayfly_core::time::Timestamp;
use tokio::{sync::Semaphore, task::spawn_blocking};

use crate::exe::Exe;

/// Programs that are read at the same time. More would only take the disk from each other.
const READERS_MAX: usize = 2;
/// How long a file must have been left alone before its digest is remembered. File systems count
/// changes in clock ticks, so a file can change twice under one time stamp.
const SETTLED_MS: u64 = 2_000;

/// One version of a file. The change time cannot be set by its owner, unlike the other times.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct FileKey {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) modified_ns: i128,
    pub(crate) changed_ns: i128,
}

impl FileKey {
    /// Whether the last change is old enough for this key to name one content only.
    fn settled_at(&self, now: Timestamp) -> bool {
        let changed_ms = self.changed_ns.div_euclid(1_000_000);
        changed_ms.saturating_add(i128::from(SETTLED_MS)) <= i128::from(now.0)
    }
}

/// The least recently used digest leaves first.
#[derive(Debug, Default)]
struct Shelf {
    digests: BTreeMap<FileKey, ([u8; 32], u64)>,
    by_use: BTreeMap<u64, FileKey>,
    uses: u64,
}

impl Shelf {
    fn find(&mut self, key: &FileKey) -> Option<[u8; 32]> {
        let (digest, used) = self.digests.get_mut(key)?;
        self.by_use.remove(used);
        self.uses += 1;
        *used = self.uses;
        self.by_use.insert(self.uses, *key);
        Some(*digest)
    }

    fn keep(&mut self, key: FileKey, digest: [u8; 32], entries_max: usize) {
        self.uses += 1;
        if let Some((_, used)) = self.digests.insert(key, (digest, self.uses)) {
            self.by_use.remove(&used);
        }
        self.by_use.insert(self.uses, key);
        while self.digests.len() > entries_max {
            let Some((_, oldest)) = self.by_use.pop_first() else {
                return;
            };
            self.digests.remove(&oldest);
        }
    }
}

/// A bounded memory of program digests, shared by all who attest.
#[derive(Debug)]
pub struct HashCache {
    shelf: Arc<Mutex<Shelf>>,
    readers: Arc<Semaphore>,
    /// One turn per user, and the users that wait for it.
    turns: Mutex<BTreeMap<u32, Arc<Semaphore>>>,
    entries_max: usize,
}

impl HashCache {
    /// An empty cache for this many programs.
    #[must_use]
    pub fn new(entries_max: usize) -> Self {
        let readers = Arc::new(Semaphore::new(READERS_MAX));
        Self { shelf: Arc::default(), readers, turns: Mutex::default(), entries_max }
    }

    /// How many digests are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.shelf).digests.len()
    }

    /// Whether nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The digest of a program that `uid` runs, `None` if it is longer than `bytes_max`, cannot be
    /// read, or changed while it was read.
    pub(crate) async fn sha256(
        &self,
        exe: Exe,
        uid: u32,
        bytes_max: u64,
        now: Timestamp,
    ) -> Option<[u8; 32]> {
        let key = exe.file_key().filter(|key| key.size <= bytes_max)?;
        if let Some(digest) = self.find(&key) {
            return Some(digest);
        }
        // First the turn among the user's own, then the one among all: a user who starts a hundred
        // great programs keeps nobody waiting but itself.
        let turn = self.turn_of(uid).acquire_owned().await.ok()?;
        let reader = Arc::clone(&self.readers).acquire_owned().await.ok()?;
        // A hundred processes of one new program started together: the first one read it.
        if let Some(digest) = self.find(&key) {
            return Some(digest);
        }
        let (shelf, entries_max) = (Arc::clone(&self.shelf), self.entries_max);
        let read = spawn_blocking(move || {
            // The turns end with the reading and not with the caller, who may hang up and call again
            // while the disk is still busy with the last call.
            let _turns = (turn, reader);
            let (key, digest) = exe.sha256(bytes_max)?;
            if key.settled_at(now) {
                lock(&shelf).keep(key, digest, entries_max);
            }
            Some(digest)
        });
        read.await.ok().flatten()
    }

    fn find(&self, key: &FileKey) -> Option<[u8; 32]> {
        lock(&self.shelf).find(key)
    }

    fn turn_of(&self, uid: u32) -> Arc<Semaphore> {
        let mut turns = lock(&self.turns);
        // Held by nobody but this map: that user waits for nothing.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(1))))
    }
}

/// Every change leaves what is behind these locks usable, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn key(inode: u64) -> FileKey {
        FileKey { device: 1, inode, size: 9, modified_ns: 0, changed_ns: 5_000_000_000 }
    }

    #[test]
    fn the_least_recently_used_digest_leaves_first() {
        let mut shelf = Shelf::default();
        shelf.keep(key(1), [1; 32], 2);
        shelf.keep(key(2), [2; 32], 2);
        assert_eq!(shelf.find(&key(1)), Some([1; 32]));
        shelf.keep(key(3), [3; 32], 2);
        assert_eq!(shelf.find(&key(2)), None);
        assert_eq!(shelf.find(&key(1)), Some([1; 32]));
        assert_eq!(shelf.find(&key(3)), Some([3; 32]));
        assert_eq!(shelf.by_use.len(), 2);
    }

    #[test]
    fn another_change_time_is_another_file() {
        let mut shelf = Shelf::default();
        shelf.keep(key(1), [1; 32], 2);
        assert_eq!(shelf.find(&FileKey { changed_ns: 5_000_000_001, ..key(1) }), None);
    }

    #[test]
    fn a_file_changed_a_moment_ago_is_not_remembered() {
        assert!(!key(1).settled_at(Timestamp(6_999)));
        assert!(key(1).settled_at(Timestamp(7_000)));
        // A clock that was set back must not make the future look settled.
        assert!(!key(1).settled_at(Timestamp(0)));
    }

    #[tokio::test]
    async fn a_user_with_many_programs_keeps_only_itself_waiting() {
        let cache = HashCache::new(2);
        let busy = cache.turn_of(7).try_acquire_owned().unwrap();
        assert!(cache.turn_of(7).try_acquire_owned().is_err());
        assert!(cache.turn_of(8).try_acquire_owned().is_ok());
        drop(busy);
        assert!(cache.turn_of(7).try_acquire_owned().is_ok());
        drop(cache.turn_of(9));
        assert_eq!(lock(&cache.turns).len(), 1);
    }
}
