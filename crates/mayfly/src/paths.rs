//! Where a broker keeps things, under one private directory.

use std::{
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use mayfly_core::TaskId;

/// A data directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Paths(PathBuf);

/// Why a data directory is not used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It cannot be made or looked at.
    #[error("cannot use `{path}`: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is somebody else's.
    #[error("`{path}` belongs to user {owner}: choose another directory with `--data-dir`")]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Whose.
        owner: u32,
    },
    /// Others can write to it.
    #[error("`{path}` can be written by others (mode {mode:o}): run `chmod 700` on it")]
    Open {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

impl Paths {
    /// Uses `dir`, which is made with mode 0700 if it is not there.
    ///
    /// # Errors
    /// [`DataDirError`] if others could read our keys or put theirs in place.
    pub fn prepare(dir: &Path, uid: u32) -> Result<Self, DataDirError> {
        let io = |source| DataDirError::Io { path: dir.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
        let dir = dir.canonicalize().map_err(io)?;
        let path = dir.clone();
        let meta = std::fs::metadata(&dir)
            .map_err(|source| DataDirError::Io { path: path.clone(), source })?;
        if meta.uid() != uid {
            return Err(DataDirError::Foreign { path, owner: meta.uid() });
        }
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o022 != 0 {
            return Err(DataDirError::Open { path, mode });
        }
        Ok(Self(dir))
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// The operator API's socket.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        crate::admin::socket(&self.0)
    }

    /// The Task API's socket, for orchestrators and operators that are somebody else.
    #[must_use]
    pub fn tasks_socket(&self) -> PathBuf {
        self.0.join("tasks.sock")
    }

    /// Authority keys, 0700.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.0.join("keys")
    }

    /// The profiles that were applied while the broker ran, if any were.
    #[must_use]
    pub fn applied_profiles(&self) -> PathBuf {
        self.0.join("profiles.toml")
    }

    /// Revocation lists, one per authority.
    #[must_use]
    pub fn crls(&self) -> PathBuf {
        self.0.join("crl")
    }

    /// What bundle endpoints gave, one file per foreign trust domain.
    #[must_use]
    pub fn bundles(&self) -> PathBuf {
        self.0.join("bundles")
    }

    /// The log, as `mayfly-store` lays it out.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.0.join("store").join("log")
    }

    /// The socket of one task.
    #[must_use]
    pub fn task_socket(&self, task: TaskId) -> PathBuf {
        self.0.join("tasks").join(task.to_string()).join("workload.sock")
    }
}

/// Replaces a file that only its owner may read, durably and whole.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let temporary = path.with_extension("tmp");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all())
}
