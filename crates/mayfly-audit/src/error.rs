//! What can be wrong with a log.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use mayfly_core::Sequence;

/// Why the log cannot be read or written. It can be cloned, because a poisoned log repeats its first
/// error for ever.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The disk or a quota is full.
    #[error("no space left to write `{}`", path.display())]
    Full {
        /// What was being written.
        path: PathBuf,
        /// The kernel's words.
        source: Arc<io::Error>,
    },
    /// The file system failed in another way.
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        /// What was being done, for example `sync`.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The kernel's words.
        source: Arc<io::Error>,
    },
    /// The log holds something that was never written there, or lacks something that was.
    #[error("the log is damaged at record {} in `{}`: {why}", at.0, segment.display())]
    Corrupt {
        /// The first record that cannot be read.
        at: Sequence,
        /// Where it should be.
        segment: PathBuf,
        /// What is wrong there.
        why: &'static str,
    },
    /// Another version of Mayfly wrote this.
    #[error("`{}` has format version {found}, this build reads {expected}", segment.display())]
    WrongVersion {
        /// Which file.
        segment: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// The file that is being written to is no longer where it was.
    #[error("`{}` was removed or replaced while in use", path.display())]
    Vanished {
        /// Which file.
        path: PathBuf,
    },
    /// A record beyond the bound; nothing was written.
    #[error("record {} has {bytes} bytes, at most {max} are allowed", sequence.0)]
    TooLarge {
        /// Which.
        sequence: Sequence,
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// A record that does not follow the last one; nothing was written.
    #[error("record {} does not follow record {}", found.0, last.0)]
    OutOfOrder {
        /// The last record of the log.
        last: Sequence,
        /// The one that was to be appended.
        found: Sequence,
    },
}

impl LogError {
    /// Sorts a system error by what the operator has to do about it.
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        let full = matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        );
        let source = Arc::new(source);
        if full { Self::Full { path, source } } else { Self::Io { doing, path, source } }
    }

    pub(crate) fn corrupt(at: Sequence, segment: &Path, why: &'static str) -> Self {
        Self::Corrupt { at, segment: segment.to_path_buf(), why }
    }
}
