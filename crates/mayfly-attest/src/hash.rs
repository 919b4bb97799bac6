//! Digests of programs, remembered.
//!
//! Reading a program costs 0.7 ms per MiB, a hundred times the rest of an attestation, so it is done
//! on a blocking thread, by few at a time, and once per version of the file.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use mayfly_core::time::Timestamp;
use tokio::{sync::Semaphore, task::spawn_blocking};

use crate::{error::AttestError, exe::Exe};

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
    shelf: Mutex<Shelf>,
    readers: Semaphore,
    entries_max: usize,
}

impl HashCache {
    /// An empty cache for this many programs.
    #[must_use]
    pub fn new(entries_max: usize) -> Self {
        Self { shelf: Mutex::default(), readers: Semaphore::new(READERS_MAX), entries_max }
    }

    /// How many digests are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shelf().digests.len()
    }

    /// Whether nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The digest of an opened program, `None` if it is longer than `bytes_max`, cannot be read, or
    /// changed while it was read.
    pub(crate) async fn sha256(
        &self,
        exe: Exe,
        bytes_max: u64,
        now: Timestamp,
    ) -> Result<Option<[u8; 32]>, AttestError> {
        let Some(key) = exe.file_key().filter(|key| key.size <= bytes_max) else {
            return Ok(None);
        };
        if let Some(digest) = self.find(&key) {
            return Ok(Some(digest));
        }
        // A hundred processes of one new program start together: the first ones read it, the others
        // find it when their turn comes.
        let Ok(_turn) = self.readers.acquire().await else {
            return Ok(None);
        };
        if let Some(digest) = self.find(&key) {
            return Ok(Some(digest));
        }
        let read = spawn_blocking(move || exe.sha256(bytes_max)).await;
        let read = read.map_err(|error| AttestError::Io {
            what: "read the executable",
            source: std::io::Error::other(error),
        })?;
        let Some((key, digest)) = read else { return Ok(None) };
        if key.settled_at(now) {
            self.shelf().keep(key, digest, self.entries_max);
        }
        Ok(Some(digest))
    }

    fn find(&self, key: &FileKey) -> Option<[u8; 32]> {
        self.shelf().find(key)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // Every change leaves the shelf usable, so a panic elsewhere does not spoil it.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
}
