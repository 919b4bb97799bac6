//! What can go wrong between a decision and the disk.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use mayfly_audit::LogError;
use mayfly_core::Sequence;

/// Why the store cannot be opened or written. Cloned, because many wait for one commit.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The log failed: full, damaged, vanished, of another version.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Another daemon holds the data directory.
    #[error(
        "`{}` is in use by {}; stop it first, or choose another directory with `--data-dir`",
        dir.display(),
        holder.map_or_else(|| "another daemon".into(), |pid| format!("process {pid}"))
    )]
    Locked {
        /// The data directory.
        dir: PathBuf,
        /// Who holds it, if it says so.
        holder: Option<u32>,
    },
    /// The log is not the one that the sentinel saw: a backup was restored, or records were lost.
    #[error(
        "{why}: the log ends at record {}, the sentinel stands at {}; credentials revoked since may be \
         valid again. If that is understood, start once with `--accept-restored`",
        log.0,
        sentinel.map_or_else(|| "no known record".into(), |at| format!("record {}", at.0))
    )]
    Restored {
        /// The last record of the log.
        log: Sequence,
        /// The last record that the sentinel knows of, if it can be read.
        sentinel: Option<Sequence>,
        /// What does not fit.
        why: &'static str,
    },
    /// The file system failed outside the log.
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's words.
        source: Arc<io::Error>,
    },
    /// The thread that writes the journal stopped for a reason of its own.
    #[error("the committer stopped unexpectedly")]
    Stopped,
}

impl StoreError {
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_path_buf(), source: Arc::new(source) }
    }
}
