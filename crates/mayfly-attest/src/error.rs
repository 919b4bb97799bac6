//! What can go wrong while looking at a process.

use std::io;

/// Why a process could not be seen, or must not be believed.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The process has ended: whoever holds its socket or its PID by now is somebody else.
    #[error("the process has ended")]
    PeerGone,
    /// The kernel shows the peer as PID 0: it lives in a PID namespace that we cannot see into.
    #[error("the peer lives in another pid namespace")]
    ForeignNamespace,
    /// The process is not what it was when it connected, so old and new facts would be mixed.
    #[error("the process changed its `{what}` since it connected")]
    Changed {
        /// `credentials` or `executable`.
        what: &'static str,
    },
    /// A file under /proc did not have the form that the kernel documents.
    #[error("`{file}` is malformed")]
    Malformed {
        /// The file's name below /proc, for example `stat`.
        file: &'static str,
    },
    /// The kernel refused.
    #[error("`{what}` failed")]
    Io {
        /// The call or file.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

impl AttestError {
    /// Wraps an error of `what`. "No such process" and its spellings mean that the process is gone.
    pub(crate) fn of(what: &'static str, errno: rustix::io::Errno) -> Self {
        match errno {
            rustix::io::Errno::SRCH | rustix::io::Errno::NOENT => Self::PeerGone,
            other => Self::Io { what, source: other.into() },
        }
    }
}
