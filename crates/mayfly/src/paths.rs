//! Where a broker keeps things, under one private directory.

use std::{
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use mayfly_core::TaskId;

/// A data directory, and where the tasks' own sockets stand.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Paths {
    root: PathBuf,
    tasks: PathBuf,
}

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
    #[error("`{path}` belongs to user {owner}: choose another directory")]
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
        let root = prepare_private(dir, uid)?;
        Ok(Self { tasks: root.join("tasks"), root })
    }

    /// The tasks' own sockets stand in `dir`, which is made as the data directory is.
    ///
    /// # Errors
    /// [`DataDirError`] if others could put theirs in place.
    pub fn with_task_sockets(self, dir: &Path, uid: u32) -> Result<Self, DataDirError> {
        Ok(Self { tasks: prepare_private(dir, uid)?, ..self })
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The operator API's socket.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        crate::admin::socket(&self.root)
    }

    /// The Task API's socket, for orchestrators and operators that are somebody else.
    #[must_use]
    pub fn tasks_socket(&self) -> PathBuf {
        self.root.join("tasks.sock")
    }

    /// Authority keys, 0700.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// The profiles that were applied while the broker ran, if any were.
    #[must_use]
    pub fn applied_profiles(&self) -> PathBuf {
        self.root.join("profiles.toml")
    }

    /// Revocation lists, one per authority.
    #[must_use]
    pub fn crls(&self) -> PathBuf {
        self.root.join("crl")
    }

    /// What bundle endpoints gave, one file per foreign trust domain.
    #[must_use]
    pub fn bundles(&self) -> PathBuf {
        self.root.join("bundles")
    }

    /// Which tokens of OIDC issuers were used.
    #[must_use]
    pub fn oidc_seen(&self) -> PathBuf {
        self.root.join("oidc-seen")
    }

    /// The log, as `mayfly-store` lays it out.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.root.join("store").join("log")
    }

    /// Where each task that has a socket has a folder.
    #[must_use]
    pub fn tasks(&self) -> &Path {
        &self.tasks
    }

    /// The socket of one task.
    #[must_use]
    pub fn task_socket(&self, task: TaskId) -> PathBuf {
        self.tasks.join(task.to_string()).join("workload.sock")
    }
}

/// A directory of ours, which nobody else can write to.
fn prepare_private(dir: &Path, uid: u32) -> Result<PathBuf, DataDirError> {
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
    Ok(dir)
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
