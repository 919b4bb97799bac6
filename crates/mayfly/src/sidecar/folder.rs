//! One directory whose files change all at once.
//!
//! ```text
//! DIR/..data -> ..mayfly-6f0c…      the one thing that is ever replaced
//! DIR/..mayfly-6f0c…/svid.pem       the files of this moment
//! DIR/..mayfly-91aa…/svid.pem       those of the moment before, for who is still reading
//! DIR/svid.pem -> ..data/svid.pem   the names that people configure
//! ```
//!
//! A new set is written into a directory of its own, made durable, and then put in force by renaming
//! one symbolic link. Whoever opens `..data` once and reads below it sees one moment; so does whoever
//! reads one file, and `credential-bundle.pem` holds certificate and key. Kubernetes' volumes work the
//! same way.
//!
//! Everything goes through one descriptor of the directory, with names that hold no slash, never
//! following a link. A name that is taken by something that we would not have made is an error before
//! anything is written, and nothing is deleted that cannot be ours.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use mayfly_core::Timestamp;
use rustix::{
    fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags},
    io::Errno,
};

use super::set::{FileSet, is_ours};
use crate::{clock, pem};

/// The link that is replaced.
const DATA: &str = "..data";
/// What it is made as before it takes the place.
const DATA_NEXT: &str = "..data_next";
/// What versions are called: this and sixteen hexadecimal digits.
const VERSION: &str = "..mayfly-";
/// A predecessor's certificate is not longer than that.
const SVID_BYTES_MAX: u64 = 64 * 1024;

/// Why the directory cannot be used, or could not be written. Codes are API.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// There is nothing to make it in.
    #[error("directory_missing: there is no directory to make `{0}` in: make its parent first")]
    Missing(PathBuf),
    /// It is something else.
    #[error("directory_unfit: `{0}` is a symbolic link or no directory: name the directory itself")]
    Unfit(PathBuf),
    /// It is somebody else's.
    #[error(
        "directory_foreign: `{0}` belongs to user {1}: run the sidecar as that user, or change its owner"
    )]
    Foreign(PathBuf, u32),
    /// Others may use it.
    #[error("directory_open: `{0}` has mode {1:04o}: nobody else may have access, `chmod 700` it")]
    Open(PathBuf, u32),
    /// Another sidecar has it.
    #[error("directory_in_use: another sidecar keeps `{0}`: give each a directory of its own")]
    InUse(PathBuf),
    /// A name that is needed is taken.
    #[error("file_foreign: `{0}` is not the sidecar's: move it away")]
    Taken(PathBuf),
    /// No room.
    #[error("disk_full: no room in `{0}`; what was there is still there")]
    Full(PathBuf),
    /// It may not be written.
    #[error("directory_unwritable: `{0}` cannot be written ({1})")]
    Unwritable(PathBuf, Errno),
    /// Something else.
    #[error("io: `{0}`: {1}")]
    Io(PathBuf, Errno),
}

/// A directory that is ours alone. See the module.
#[derive(Debug)]
pub struct Folder {
    dir: OwnedFd,
    path: PathBuf,
    /// The version in force.
    current: Option<String>,
}

impl Folder {
    /// Makes or takes the directory at `path`, and removes what a killed predecessor left half done.
    ///
    /// # Errors
    /// [`FolderError`] if it is not fit to hold keys, or holds what is not ours under our names.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        match fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(FolderError::Missing(path.to_owned())),
            Err(errno) => return Err(wrong(path, errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match fs::open(path, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(FolderError::Unfit(path.to_owned())),
            Err(errno) => return Err(wrong(path, errno)),
        };
        let stat = fs::fstat(&dir).map_err(|errno| wrong(path, errno))?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(FolderError::Foreign(path.to_owned(), stat.st_uid));
        }
        if stat.st_mode & 0o077 != 0 {
            return Err(FolderError::Open(path.to_owned(), stat.st_mode & 0o7777));
        }
        match fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(FolderError::InUse(path.to_owned())),
            Err(errno) => return Err(wrong(path, errno)),
        }
        let mut folder = Self { dir, path: path.to_owned(), current: None };
        folder.current = folder.version_in_force()?;
        folder.sweep(None)?;
        Ok(folder)
    }

    /// Its path, as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Until when the files are good that a predecessor left; the beginning of time if nobody can tell,
    /// `None` if there are none.
    #[must_use]
    pub fn left_until(&self) -> Option<Timestamp> {
        let version = self.current.as_ref()?;
        let read = || {
            let version = self.open_version(version).ok()?;
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = fs::openat(&version, "svid.pem", flags, Mode::empty()).ok()?;
            let mut text = String::new();
            File::from(file).take(SVID_BYTES_MAX).read_to_string(&mut text).ok()?;
            let der = pem::first(pem::CERTIFICATE, &text)?;
            mayfly_verify::x509::Leaf::parse(&der).ok()
        };
        Some(read().map_or_else(Timestamp::default, |leaf| leaf.not_after))
    }

    /// Puts `set` in the place of what is there, all at once.
    ///
    /// # Errors
    /// [`FolderError`] if that cannot be done; then what was there is still there, and nothing more.
    pub fn replace(&mut self, set: &FileSet) -> Result<(), FolderError> {
        for (name, _) in set.files() {
            self.check_name(name)?;
        }
        let version = format!("{VERSION}{:016x}", u64::from_le_bytes(clock::luck()));
        let placed = self
            .write_version(&version, set)
            // Names that are new point to nothing until the link is swapped: they appear with the rest.
            .and_then(|()| self.link_names(set))
            .and_then(|()| self.swap(&version));
        if let Err(errno) = placed {
            best_effort(self.remove_version(&version));
            best_effort(fs::unlinkat(&self.dir, DATA_NEXT, AtFlags::empty()));
            best_effort(self.unlink_names(|name| !self.stands(name)));
            return Err(wrong(&self.path, errno));
        }
        // The one before stays for whoever is reading it; older ones go.
        let before = self.current.replace(version);
        best_effort(self.unlink_names(|name| !set.contains(name)));
        if let Err(error) = self.sweep(before.as_deref()) {
            tracing::warn!(%error, "old files stay");
        }
        Ok(())
    }

    /// Removes all that is ours: first the link, and with it every name at once.
    ///
    /// # Errors
    /// [`FolderError`] of the first thing that could not be removed; the others are gone.
    pub fn clear(&mut self) -> Result<(), FolderError> {
        let mut first = Ok(());
        let mut note = |done: Result<(), Errno>| {
            if let (Err(errno), Ok(())) = (done, &first)
                && errno != Errno::NOENT
            {
                first = Err(errno);
            }
        };
        if self.current.take().is_some() {
            note(fs::unlinkat(&self.dir, DATA, AtFlags::empty()));
        }
        note(self.unlink_names(|_| true));
        let swept = self.sweep(None);
        note(fs::fsync(&self.dir));
        first.map_err(|errno| wrong(&self.path, errno)).and(swept)
    }

    fn write_version(&self, version: &str, set: &FileSet) -> Result<(), Errno> {
        fs::mkdirat(&self.dir, version, Mode::RWXU)?;
        let version = self.open_version(version)?;
        for (name, bytes) in set.files() {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
            let mode = Mode::RUSR | Mode::WUSR;
            let mut file = File::from(fs::openat(&version, name, flags | OFlags::CLOEXEC, mode)?);
            let written = file.write_all(bytes).and_then(|()| file.sync_all());
            written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        }
        fs::fsync(&version)
    }

    fn swap(&self, version: &str) -> Result<(), Errno> {
        fs::symlinkat(version, &self.dir, DATA_NEXT)?;
        // The version is on disk before the link can be: an empty file never comes into force.
        fs::renameat(&self.dir, DATA_NEXT, &self.dir, DATA)?;
        fs::fsync(&self.dir)
    }

    fn link_names(&self, set: &FileSet) -> Result<(), Errno> {
        for (name, _) in set.files() {
            match fs::symlinkat(format!("{DATA}/{name}"), &self.dir, name) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Removes those of our links whose name is `unwanted`.
    fn unlink_names(&self, unwanted: impl Fn(&str) -> bool) -> Result<(), Errno> {
        for name in self.names()? {
            if is_ours(&name) && self.is_our_link(&name)? && unwanted(&name) {
                fs::unlinkat(&self.dir, &name, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    /// Whether there is a file behind a name.
    fn stands(&self, name: &str) -> bool {
        fs::statat(&self.dir, name, AtFlags::empty()).is_ok()
    }

    fn is_our_link(&self, name: &str) -> Result<bool, Errno> {
        let target = match fs::readlinkat(&self.dir, name, Vec::new()) {
            Ok(target) => target,
            Err(Errno::INVAL | Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(errno),
        };
        Ok(target.to_bytes() == format!("{DATA}/{name}").as_bytes())
    }

    /// Nothing stands there, or our own link does.
    fn check_name(&self, name: &str) -> Result<(), FolderError> {
        let wrong = |errno| wrong(&self.path, errno);
        match fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(wrong(errno)),
            Ok(_) if self.is_our_link(name).map_err(wrong)? => Ok(()),
            Ok(_) => Err(FolderError::Taken(self.path.join(name))),
        }
    }

    /// What the link points to, if it is there and ours.
    fn version_in_force(&self) -> Result<Option<String>, FolderError> {
        let taken = || FolderError::Taken(self.path.join(DATA));
        match fs::readlinkat(&self.dir, DATA, Vec::new()) {
            Ok(target) => {
                let target = target.into_string().ok().filter(|target| is_version(target));
                target.map(Some).ok_or_else(taken)
            }
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::INVAL) => Err(taken()),
            Err(errno) => Err(wrong(&self.path, errno)),
        }
    }

    /// Removes versions that are neither in force nor `before`, and a link that never came into force.
    fn sweep(&self, before: Option<&str>) -> Result<(), FolderError> {
        let wrong = |errno| wrong(&self.path, errno);
        for name in self.names().map_err(wrong)? {
            let is_kept = self.current.as_deref() == Some(&name) || before == Some(&name);
            if is_version(&name) && !is_kept {
                self.remove_version(&name).map_err(wrong)?;
            }
        }
        let next = fs::readlinkat(&self.dir, DATA_NEXT, Vec::new());
        if next.is_ok_and(|target| target.to_str().is_ok_and(is_version)) {
            fs::unlinkat(&self.dir, DATA_NEXT, AtFlags::empty()).map_err(wrong)?;
        }
        Ok(())
    }

    /// Removes our files in a version, and the version if nothing else is in it.
    fn remove_version(&self, name: &str) -> Result<(), Errno> {
        let version = match self.open_version(name) {
            Ok(version) => version,
            // Somebody else's file with a name like ours.
            Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        for file in list(&version)? {
            let kind = fs::statat(&version, &file, AtFlags::SYMLINK_NOFOLLOW)?.st_mode;
            if is_ours(&file) && FileType::from_raw_mode(kind) == FileType::RegularFile {
                fs::unlinkat(&version, &file, AtFlags::empty())?;
            }
        }
        match fs::unlinkat(&self.dir, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                tracing::warn!(version = name, "left, there is something in it that is not ours");
                Ok(())
            }
            done => done,
        }
    }

    fn open_version(&self, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(&self.dir, name, flags, Mode::empty())
    }

    fn names(&self) -> Result<Vec<String>, Errno> {
        list(&self.dir)
    }
}

/// The names in a directory. One that is no UTF-8 is none of ours.
fn list(dir: impl AsFd) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(dir)? {
        let name = entry?.file_name().to_str().map(str::to_owned);
        names.extend(name.ok().filter(|name| name != "." && name != ".."));
    }
    Ok(names)
}

/// For what has failed already, or can wait: it is swept at the next swap or the next start.
fn best_effort(done: Result<(), Errno>) {
    if let Err(errno) = done.or_else(|errno| (errno == Errno::NOENT).then_some(()).ok_or(errno)) {
        tracing::warn!(%errno, "something was left over in the directory");
    }
}

fn is_version(name: &str) -> bool {
    name.strip_prefix(VERSION).is_some_and(|digits| {
        digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn wrong(path: &Path, errno: Errno) -> FolderError {
    let path = path.to_owned();
    match errno {
        Errno::NOSPC | Errno::DQUOT => FolderError::Full(path),
        Errno::ROFS | Errno::ACCESS | Errno::PERM => FolderError::Unwritable(path, errno),
        errno => FolderError::Io(path, errno),
    }
}

#[cfg(test)]
#[path = "folder/tests.rs"]
mod tests;
