//! The program that a process runs, looked at through one descriptor.
//!
//! Opening `/proc/<pid>/exe` leads to the file that is being executed, wherever its name points by
//! now. Path, identity and digest are all taken from that one descriptor, so they speak of the same
//! file even if the process executes another one meanwhile.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _},
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, Stat, fstat, openat, readlinkat, statat},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use crate::{error::AttestError, hash::FileKey};

/// How often a program is read again because it changed meanwhile.
const READ_TRIES_MAX: usize = 3;

/// An opened program.
#[derive(Debug)]
pub(crate) struct Exe {
    file: OwnedFd,
    stat: Stat,
    readable: bool,
}

impl Exe {
    /// Opens the program of the process whose /proc directory this is. `None` if it has none (a
    /// kernel thread, a zombie) or if we may not see it: less evidence never grants more.
    pub(crate) fn open(dir: impl AsFd, to_read: bool) -> Result<Option<Self>, AttestError> {
        let read = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let look = OFlags::PATH | OFlags::CLOEXEC;
        let open = |flags| openat(&dir, "exe", flags, Mode::empty());
        let (opened, readable) = match to_read.then(|| open(read)) {
            Some(Ok(file)) => (Ok(file), true),
            // A program may be executable without being readable.
            Some(Err(_)) | None => (open(look), false),
        };
        let file = match opened {
            Ok(file) => file,
            Err(Errno::ACCESS | Errno::PERM | Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(AttestError::of("open /proc/<pid>/exe", errno)),
        };
        let stat = fstat(&file).map_err(|errno| AttestError::of("fstat", errno))?;
        Ok(Some(Self { file, stat, readable }))
    }

    /// The file's path, if that path leads to this very file now.
    ///
    /// A binary that was deleted or replaced after the start, or that lies in another mount
    /// namespace, has a name here that belongs to another file or to none.
    pub(crate) fn intact_path(&self) -> Option<String> {
        use std::os::fd::AsRawFd;
        let link = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let path = readlinkat(CWD, link, Vec::with_capacity(256)).ok()?.into_string().ok()?;
        let named = statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        (path.starts_with('/') && same_file(&named, &self.stat)).then_some(path)
    }

    /// Which file this is, for a second look after the descriptor was given away.
    pub(crate) const fn identity(&self) -> Identity {
        Identity(self.stat)
    }

    /// What the digest of this file may be remembered by, if the file can be read.
    pub(crate) fn file_key(&self) -> Option<FileKey> {
        self.readable.then(|| key_of(&self.stat)).flatten()
    }

    /// Reads the file to its end, and says which version of it was read. Blocks. `None` if it is
    /// longer than `bytes_max`, cannot be read, or changes again and again.
    pub(crate) fn sha256(self, bytes_max: u64) -> Option<(FileKey, [u8; 32])> {
        let mut file = File::from(self.file);
        // The inode changes without its content when a package update drops one of its names, so one
        // change is no reason to give up.
        for _ in 0..READ_TRIES_MAX {
            let before = fstat(&file).ok().and_then(|stat| key_of(&stat))?;
            if before.size > bytes_max {
                return None;
            }
            file.rewind().ok()?;
            let digest = sha256_of(&mut file, before.size).ok()?;
            if fstat(&file).ok().and_then(|stat| key_of(&stat))? == before {
                return Some((before, digest));
            }
        }
        None
    }
}

/// Reads at most one byte more than `size`: a file that grows while it is read has no other end.
fn sha256_of(file: &mut File, size: u64) -> io::Result<[u8; 32]> {
    let mut file = file.take(size.saturating_add(1));
    let mut digest = Sha256::new();
    let mut block = vec![0_u8; 256 * 1024];
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(digest.finalize().into()),
            Ok(read) => digest.update(block.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A file, apart from its name and content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity(Stat);

impl Identity {
    /// Whether the process still runs this program.
    pub(crate) fn still_runs(&self, dir: impl AsFd) -> bool {
        statat(dir, "exe", AtFlags::empty()).is_ok_and(|stat| same_file(&stat, &self.0))
    }
}

/// One version of a file: another content, another name or another owner is another one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Version {
    device: u64,
    inode: u64,
    changed: (i64, u64),
}

impl Version {
    pub(crate) fn of(stat: &Stat) -> Self {
        let changed = (stat.st_ctime, stat.st_ctime_nsec);
        Self { device: stat.st_dev, inode: stat.st_ino, changed }
    }
}

fn same_file(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

fn key_of(stat: &Stat) -> Option<FileKey> {
    const NANOS: i128 = 1_000_000_000;
    Some(FileKey {
        device: stat.st_dev,
        inode: stat.st_ino,
        size: u64::try_from(stat.st_size).ok()?,
        modified_ns: i128::from(stat.st_mtime) * NANOS + i128::from(stat.st_mtime_nsec),
        changed_ns: i128::from(stat.st_ctime) * NANOS + i128::from(stat.st_ctime_nsec),
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn a_process_that_executed_another_program_no_longer_runs_the_first() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo; read line; exec cat"]);
        let mut kid = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut tell, mut told) =
            (kid.stdin.take().unwrap(), kid.stdout.take().map(BufReader::new).unwrap());
        let mut hear = || told.read_line(&mut String::new()).unwrap();
        // It says its first word after it became a shell.
        hear();
        let dir = File::open(format!("/proc/{}", kid.id())).unwrap();
        let first = Exe::open(&dir, false).unwrap().unwrap().identity();
        assert!(first.still_runs(&dir));
        tell.write_all(b"go\nare you a cat?\n").unwrap();
        hear();
        assert!(!first.still_runs(&dir));
        drop(tell);
        kid.wait().unwrap();
        assert!(!first.still_runs(&dir));
    }

    #[test]
    fn a_file_is_read_at_most_one_byte_beyond_its_size() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"program").unwrap();
        file.rewind().unwrap();
        assert_eq!(sha256_of(&mut file, 7).unwrap(), <[u8; 32]>::from(Sha256::digest(b"program")));
        file.rewind().unwrap();
        // The one byte more makes the digest differ from that of the expected part.
        assert_eq!(sha256_of(&mut file, 2).unwrap(), <[u8; 32]>::from(Sha256::digest(b"pro")));
    }
}
