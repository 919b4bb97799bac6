//! Which tokens were used: each begins one task, also across restarts.
//!
//! A token is known by a digest, so nothing that is kept here can be shown again. It is written down and
//! on disk before anything is begun for it; whoever shows it a second time is refused until it has
//! expired for everybody. The file holds records of one length, is rewritten whole when half of it is
//! over, and has a bound: full is an answer, because forgetting a token early would let it be used again.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use mayfly_core::Timestamp;

use crate::paths::write_private;

/// Tokens that are remembered at once: an hour of eighteen a second.
const TOKENS_MAX: usize = 65_536;
/// A digest, and until when.
const RECORD_BYTES: usize = 32 + 8;
/// A file of fewer records is not worth rewriting.
const REWRITE_MIN: usize = 1024;

/// Why a token may not be used.
#[derive(Debug, thiserror::Error)]
pub enum SeenError {
    /// It was used.
    #[error("it was used before")]
    Used,
    /// Too many are remembered.
    #[error("{TOKENS_MAX} tokens are remembered, and none of them has expired")]
    Full,
    /// It cannot be written down.
    #[error("it cannot be written down: {0}")]
    Io(#[from] std::io::Error),
}

/// A token being written down.
pub type Taking = Pin<Box<dyn Future<Output = Result<(), SeenError>> + Send>>;

/// What remembers used tokens.
pub trait Seen: Send + Sync + 'static {
    /// Takes the token that `key` stands for, which nobody can take again until `forget_after`. Answered
    /// when that is durable.
    fn take(&self, key: [u8; 32], forget_after: Timestamp, now: Timestamp) -> Taking;
    /// Nothing was begun for it after all: it may be shown again.
    fn give_back(&self, key: [u8; 32]);
}

/// [`Seen`] in a file.
#[derive(Clone, Debug)]
pub struct SeenFile(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    tokens: BTreeMap<[u8; 32], Timestamp>,
    /// Open for as long as what was written last is whole.
    file: Option<File>,
    /// Records in the file, those that are over included.
    written: usize,
}

impl SeenFile {
    /// Reads what is remembered at `path`, which need not be there.
    ///
    /// # Errors
    /// When the file cannot be read or written: without it a restart would let every token be used again.
    pub fn open(path: &Path, now: Timestamp) -> std::io::Result<Self> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        // What is behind the last whole record was never answered for.
        let tokens = bytes.chunks_exact(RECORD_BYTES).filter_map(read).collect();
        let path = path.to_owned();
        let mut inner = Inner { path, tokens, file: None, written: 0 };
        inner.rewrite(now)?;
        Ok(Self(Arc::new(Mutex::new(inner))))
    }
}

impl Seen for SeenFile {
    fn take(&self, key: [u8; 32], forget_after: Timestamp, now: Timestamp) -> Taking {
        let inner = Arc::clone(&self.0);
        let taking = move || {
            let mut inner = inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.take(key, forget_after, now)
        };
        Box::pin(async move {
            let taken = tokio::task::spawn_blocking(taking).await;
            taken.unwrap_or_else(|stopped| Err(std::io::Error::other(stopped).into()))
        })
    }

    fn give_back(&self, key: [u8; 32]) {
        // In memory alone: after a restart it counts as used, which is the safe side of a mistake.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).tokens.remove(&key);
    }
}

impl Inner {
    fn take(
        &mut self,
        key: [u8; 32],
        forget_after: Timestamp,
        now: Timestamp,
    ) -> Result<(), SeenError> {
        if self.tokens.get(&key).is_some_and(|until| *until > now) {
            return Err(SeenError::Used);
        }
        let over = self.written >= REWRITE_MIN.max(self.tokens.len() * 2);
        if over || self.file.is_none() || self.tokens.len() >= TOKENS_MAX {
            self.rewrite(now)?;
        }
        if self.tokens.len() >= TOKENS_MAX {
            return Err(SeenError::Full);
        }
        // First in memory: whatever becomes of the disk, this process does not take it again.
        self.tokens.insert(key, forget_after);
        let Some(mut file) = self.file.take() else {
            return Err(std::io::Error::other("it is not open").into());
        };
        file.write_all(&record(&key, forget_after))?;
        file.sync_data()?;
        // A write that failed leaves half a record, behind which nothing would be read: the next one
        // begins by writing the file anew.
        self.file = Some(file);
        self.written += 1;
        Ok(())
    }

    fn rewrite(&mut self, now: Timestamp) -> std::io::Result<()> {
        self.file = None;
        self.tokens.retain(|_, until| *until > now);
        let records: Vec<u8> =
            self.tokens.iter().flat_map(|(key, until)| record(key, *until)).collect();
        write_private(&self.path, &records)?;
        self.file = Some(std::fs::OpenOptions::new().append(true).mode(0o600).open(&self.path)?);
        self.written = self.tokens.len();
        Ok(())
    }
}

fn record(key: &[u8; 32], until: Timestamp) -> Vec<u8> {
    [key.as_slice(), &until.0.to_be_bytes()].concat()
}

fn read(record: &[u8]) -> Option<([u8; 32], Timestamp)> {
    let (key, rest) = record.split_first_chunk::<32>()?;
    Some((*key, Timestamp(u64::from_be_bytes(*rest.first_chunk::<8>()?))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);
    const LATER: Timestamp = Timestamp(1_800_000_060_000);

    fn key(n: u32) -> [u8; 32] {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        key
    }

    #[tokio::test]
    async fn r5_a_token_is_taken_once_also_across_restarts_and_torn_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("oidc-seen");
        let seen = SeenFile::open(&path, NOW).unwrap();
        seen.take(key(1), LATER, NOW).await.unwrap();
        assert!(matches!(seen.take(key(1), LATER, NOW).await, Err(SeenError::Used)));
        seen.take(key(2), LATER, NOW).await.unwrap();
        seen.give_back(key(2));
        seen.take(key(2), LATER, NOW).await.unwrap();
        drop(seen);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend([1, 2, 3]);
        std::fs::write(&path, bytes).unwrap();
        let seen = SeenFile::open(&path, NOW).unwrap();
        for used in [1, 2] {
            assert!(matches!(seen.take(key(used), LATER, NOW).await, Err(SeenError::Used)));
        }
        seen.take(key(3), LATER, NOW).await.unwrap();
        drop(seen);
        let seen = SeenFile::open(&path, NOW).unwrap();
        assert!(matches!(seen.take(key(3), LATER, NOW).await, Err(SeenError::Used)));
        // When it has expired it is refused for that, and need not be remembered.
        drop(SeenFile::open(&path, LATER).unwrap());
        assert!(std::fs::read(&path).unwrap().is_empty());
    }

    #[test]
    fn r5_a_full_memory_refuses_and_forgets_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("oidc-seen");
        let records: Vec<u8> =
            (0..).take(TOKENS_MAX).flat_map(|n| record(&key(n), LATER)).collect();
        std::fs::write(&path, records).unwrap();
        let seen = SeenFile::open(&path, NOW).unwrap();
        let mut inner = seen.0.lock().unwrap();
        let many = u32::try_from(TOKENS_MAX).unwrap();
        assert!(matches!(inner.take(key(many), LATER, NOW), Err(SeenError::Full)));
        assert!(matches!(inner.take(key(0), LATER, NOW), Err(SeenError::Used)));
        inner.take(key(many), LATER.plus(mayfly_core::Span(1)), LATER).unwrap();
        assert_eq!(inner.tokens.len(), 1);
    }
}
