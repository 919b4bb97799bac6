//! A cgroup of one's own: the tree of processes that a task is bound to.
//!
//! Descendants cannot leave it by forking or by letting their parents die, which makes it the
//! strongest binding. It needs the v2 hierarchy and a place in it where we may make directories;
//! where there is none, `mayfly run` falls back to lineage.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{fs::CWD, io::Errno};

use crate::{
    error::AttestError,
    process::read_file,
    procfs::{self, CgroupMount},
};

/// Longest name of a cgroup that we make.
const NAME_BYTES_MAX: usize = 128;
/// How deep a tree is removed; deeper ones were not made by anybody sane.
const REMOVE_DEPTH_MAX: usize = 32;

/// Why there is no cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// This machine shows us no cgroup v2 hierarchy.
    #[error("no cgroup v2 hierarchy is mounted")]
    NoHierarchy,
    /// The name or path would lead elsewhere.
    #[error("`{0}` is not the name of a cgroup")]
    InvalidName(String),
    /// We may not make, enter or remove cgroups here.
    #[error("not permitted in `{0}`")]
    NotPermitted(String),
    /// A process still lives in the cgroup.
    #[error("`{0}` still holds a process")]
    NotEmpty(String),
    /// The kernel refused for another reason.
    #[error("`{path}` failed")]
    Io {
        /// The file or directory.
        path: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

impl CgroupError {
    fn of(path: &Path, source: io::Error) -> Self {
        let path = path.display().to_string();
        match Errno::from_io_error(&source) {
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => Self::NotPermitted(path),
            Some(Errno::BUSY | Errno::NOTEMPTY) => Self::NotEmpty(path),
            Some(_) | None => Self::Io { path, source },
        }
    }
}

/// A cgroup made by us. It stays until [`Self::remove`]: a task may outlive whoever made it.
#[derive(Debug)]
pub struct Cgroup {
    path: String,
    dir: PathBuf,
}

impl Cgroup {
    /// Makes a cgroup below our own one; below `/mayfly` if ours is the root, which is kept tidy.
    ///
    /// # Errors
    /// [`CgroupError`]; all of them mean "use another binding".
    pub fn create(name: &str) -> Result<Self, CgroupError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !is_plain(name) || name.contains('/') {
            return Err(CgroupError::InvalidName(name.into()));
        }
        let own = own_path()?;
        let parent = if own == "/" { "/mayfly" } else { own.trim_end_matches('/') };
        let path = format!("{parent}/{name}");
        let dir = directory(&path)?;
        if own == "/" {
            let parent = dir.parent().unwrap_or(&dir);
            match fs::create_dir(parent) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::of(parent, error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        fs::create_dir(&dir).map_err(|error| CgroupError::of(&dir, error))?;
        let made = Self { path, dir };
        // A directory is worth nothing if no process can be moved into it, and that is another
        // permission. Opening the file is where the kernel checks most of it.
        match made.procs() {
            Ok(_) => Ok(made),
            Err(error) => {
                made.remove()?;
                Err(error)
            }
        }
    }

    /// The path as `/proc/<pid>/cgroup` shows it, for [`mayfly_core::evidence::Holder::Cgroup`].
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Moves a process, with all its threads, into the cgroup. Its children stay where they are.
    ///
    /// # Errors
    /// [`CgroupError::NotPermitted`] if the process is not ours to move.
    pub fn place(&self, pid: u32) -> Result<(), CgroupError> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Moves the calling process into the cgroup; what it starts from now on is born there.
    ///
    /// This is how `mayfly run` starts its command: enter, begin the task, start the command, leave.
    /// The command never runs an instruction outside, and the caller who begins the task shows by
    /// its own evidence that it is in the cgroup.
    ///
    /// # Errors
    /// [`CgroupError::NotPermitted`] if the kernel does not allow the move.
    pub fn enter(&self) -> Result<Visit, CgroupError> {
        let home = directory(&own_path()?)?;
        let visit = Visit { home };
        self.write("cgroup.procs", "0")?;
        Ok(visit)
    }

    /// Kills every process in the cgroup and below it, at once and without escape (Linux 5.14).
    ///
    /// # Errors
    /// [`CgroupError::Io`] if the kernel is too old.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")
    }

    /// Whether a process lives in the cgroup or below it.
    ///
    /// # Errors
    /// [`AttestError`] if the kernel does not say.
    pub fn is_populated(&self) -> Result<bool, AttestError> {
        match open_events(&self.path)? {
            Some(events) => is_populated(events),
            None => Ok(false),
        }
    }

    /// Removes the cgroup and what was made below it. One that is gone already is no error.
    ///
    /// # Errors
    /// [`CgroupError::NotEmpty`] while a process lives in it.
    pub fn remove(&self) -> Result<(), CgroupError> {
        remove_tree(&self.dir, REMOVE_DEPTH_MAX)
    }

    fn procs(&self) -> Result<File, CgroupError> {
        let file = self.dir.join("cgroup.procs");
        OpenOptions::new().write(true).open(&file).map_err(|error| CgroupError::of(&file, error))
    }

    fn write(&self, file: &str, text: &str) -> Result<(), CgroupError> {
        write(&self.dir.join(file), text)
    }
}

/// A stay in a cgroup, from which the process goes home at the end.
#[derive(Debug)]
#[must_use = "the process goes home when this is dropped"]
pub struct Visit {
    home: PathBuf,
}

impl Visit {
    /// Goes back to where the process came from.
    ///
    /// # Errors
    /// [`CgroupError`] if the way back is closed; the process stays in the cgroup.
    pub fn leave(self) -> Result<(), CgroupError> {
        write(&self.home.join("cgroup.procs"), "0")
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        // A second move to the same place is harmless, and an error was told by `leave` or belongs
        // to a process that is failing anyway.
        let _moved = write(&self.home.join("cgroup.procs"), "0");
    }
}

/// Opens the `cgroup.events` file of a cgroup, which can be asked and waited for. `None` if there is
/// no such cgroup, which is as empty as it gets.
pub(crate) fn open_events(path: &str) -> Result<Option<OwnedFd>, AttestError> {
    let failed = |source| AttestError::Io { what: "cgroup.events", source };
    let dir = directory(path).map_err(|error| failed(io::Error::other(error)))?;
    match File::open(dir.join("cgroup.events")) {
        Ok(file) => Ok(Some(file.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Whether a process lives in the cgroup of these events or below it.
pub(crate) fn is_populated(events: impl AsFd) -> Result<bool, AttestError> {
    let mut text = [0; 256];
    match rustix::io::pread(events, &mut text, 0) {
        Ok(read) => procfs::parse_populated(text.get(..read).unwrap_or_default())
            .ok_or(AttestError::Malformed { file: "cgroup.events" }),
        // The directory was removed while we had the file open, which needs an empty cgroup.
        Err(Errno::NODEV) => Ok(false),
        Err(errno) => Err(AttestError::of("cgroup.events", errno)),
    }
}

/// The directory of a cgroup, from its path in the hierarchy.
///
/// Paths come out of tasks, which others began: one with `..` would lead out of the hierarchy.
pub(crate) fn directory(path: &str) -> Result<PathBuf, CgroupError> {
    let invalid = || CgroupError::InvalidName(path.into());
    let inner = path.strip_prefix('/').filter(|inner| is_plain(inner)).ok_or_else(invalid)?;
    let mount = mount()?;
    // In a container only a part of the hierarchy may be mounted.
    let root = mount.root.trim_matches('/');
    let inner = if root.is_empty() {
        inner
    } else {
        let below = inner.strip_prefix(root).ok_or_else(invalid)?;
        match below.strip_prefix('/') {
            Some(rest) => rest,
            None if below.is_empty() => below,
            None => return Err(invalid()),
        }
    };
    Ok(Path::new(&mount.point).join(inner))
}

/// Whether a path has no segment that means another place, and no character that ends it early.
fn is_plain(path: &str) -> bool {
    path.is_empty()
        || path.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
            && !path.bytes().any(|byte| byte < 0x20 || byte == 0x7f)
}

fn mount() -> Result<CgroupMount, CgroupError> {
    let text = read_file(CWD, "/proc/self/mountinfo").unwrap_or_default();
    procfs::parse_cgroup_mount(&text).ok_or(CgroupError::NoHierarchy)
}

fn own_path() -> Result<String, CgroupError> {
    let text = read_file(CWD, "/proc/self/cgroup").unwrap_or_default();
    procfs::parse_cgroup(&text).and_then(|found| found.unified).ok_or(CgroupError::NoHierarchy)
}

fn write(file: &Path, text: &str) -> Result<(), CgroupError> {
    let written = OpenOptions::new().write(true).open(file);
    written
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| CgroupError::of(file, error))
}

/// Removes the deepest directories first; the kernel's files in them vanish with them.
fn remove_tree(dir: &Path, depth_left: usize) -> Result<(), CgroupError> {
    let failed = |error: io::Error| CgroupError::of(dir, error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if depth_left > 0 && entry.file_type().map_err(failed)?.is_dir() {
            remove_tree(&entry.path(), depth_left - 1)?;
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
