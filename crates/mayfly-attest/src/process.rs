//! A process held by its pidfd: it may end, but it cannot turn into another one.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::OnceLock,
};

use mayfly_core::evidence::ProcessKey;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{CWD, Mode, OFlags, fstat, fstatfs, openat, readlinkat},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{
    error::AttestError,
    kernel::info,
    procfs::{self, Stat},
};

/// The file system that pidfds live on since Linux 6.9. Its inodes are never reused before a reboot.
const PID_FS_MAGIC: i128 = 0x5049_4446;
/// How often to start over when a parent ends while we look at it.
const PARENT_TRIES_MAX: usize = 4;

/// How a process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl Exit {
    /// Reads a wait status as `waitpid` gives it.
    #[must_use]
    pub const fn from_wait_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Code((status >> 8) & 0xff),
            signal => Self::Signal(signal),
        }
    }
}

/// A process of this machine, held by a pidfd.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
    key: ProcessKey,
}

impl Process {
    /// Opens the process that has this PID at the moment.
    ///
    /// # Errors
    /// [`AttestError::PeerGone`] if there is none, or it has ended and waits to be reaped.
    pub fn open(pid: i32) -> Result<Self, AttestError> {
        let number = Pid::from_raw(pid).filter(|_| pid > 0).ok_or(AttestError::PeerGone)?;
        let pidfd = pidfd_open(number, PidfdFlags::NONBLOCK).map_err(|errno| match errno {
            // The number belongs to a thread by now, which shows that it changed hands.
            Errno::INVAL => AttestError::PeerGone,
            other => AttestError::of("pidfd_open", other),
        })?;
        Self::from_pidfd(pidfd, pid)
    }

    /// Opens the process that `key` names, `None` if it has ended: no process has its PID, or the
    /// one that has it is somebody else, or the machine was started again since.
    ///
    /// # Errors
    /// [`AttestError`] if the kernel does not let us look; then nothing is known.
    pub fn find(key: &ProcessKey) -> Result<Option<Self>, AttestError> {
        if key.boot != boot_id()? {
            return Ok(None);
        }
        match Self::open(key.pid) {
            Ok(found) => Ok((found.key == *key).then_some(found)),
            Err(AttestError::PeerGone) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// Takes a pidfd that the kernel gave us for `pid`, and names its process.
    ///
    /// # Errors
    /// [`AttestError::PeerGone`] if the process has ended.
    pub(crate) fn from_pidfd(pidfd: OwnedFd, pid: i32) -> Result<Self, AttestError> {
        let inode = match pidfs_inode(&pidfd)? {
            Some(inode) => inode,
            None => read_stat(pid)?.start_time,
        };
        let process = Self { pidfd, key: ProcessKey { boot: boot_id()?, inode, pid } };
        // After the start time was read: a process that lives still has its PID, so the start time
        // was its own and not that of a successor.
        process.still_there()?;
        Ok(process)
    }

    /// The process's name until the next boot.
    #[must_use]
    pub const fn key(&self) -> ProcessKey {
        self.key
    }

    /// Whether the process has ended. One `poll`, without waiting.
    ///
    /// # Errors
    /// [`AttestError::Io`] if the kernel does not say.
    pub fn is_gone(&self) -> Result<bool, AttestError> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            match poll(&mut fds, Some(&no_wait)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(AttestError::of("poll", errno)),
            }
        }
    }

    /// Makes sure that the process lives.
    ///
    /// # Errors
    /// [`AttestError::PeerGone`] if it does not.
    pub fn still_there(&self) -> Result<(), AttestError> {
        if self.is_gone()? { Err(AttestError::PeerGone) } else { Ok(()) }
    }

    /// The parent, `None` at the top of what we can see.
    ///
    /// The number of the parent is read, the parent opened, and the number read again: if the parent
    /// is still alive after that, it had this number all the time, so it is the parent and not a
    /// successor. Otherwise the process was inherited by somebody meanwhile and we start over.
    ///
    /// # Errors
    /// [`AttestError::PeerGone`] if this process ended.
    pub fn parent(&self) -> Result<Option<Self>, AttestError> {
        for _ in 0..PARENT_TRIES_MAX {
            let ppid = self.ppid()?;
            if ppid <= 0 {
                return Ok(None);
            }
            let parent = match Self::open(ppid) {
                Ok(parent) => parent,
                Err(AttestError::PeerGone) => continue,
                Err(other) => return Err(other),
            };
            if self.ppid()? == ppid && !parent.is_gone()? {
                return Ok(Some(parent));
            }
        }
        Ok(None)
    }

    /// How the process ended, if it has and we may know.
    ///
    /// The pidfd knows once the process was reaped. Before that, /proc shows the zombie, and a look
    /// at the pidfd afterwards shows that it was not reaped meanwhile, so the PID was still its own.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        let reaped = || info(&self.pidfd).ok().and_then(|info| info.exit);
        let status = reaped().or_else(|| {
            // `X` is a zombie that is being reaped: its parent has it, and the pidfd does not yet know.
            let dead = |stat: &Stat| matches!(stat.state, b'Z' | b'X');
            let zombie = read_stat(self.key.pid).ok().filter(dead);
            let zombie = zombie.filter(|_| may_see(self.key.pid));
            let shown = || self.exists().then(|| zombie.map(|stat| stat.exit)).flatten();
            // The pidfd is told before the PID is free: who is gone by now has been written down.
            reaped().or_else(shown).or_else(reaped)
        })?;
        Some(Exit::from_wait_status(status))
    }

    /// Another descriptor for the same process; an event queue takes each descriptor only once.
    pub(crate) fn duplicate(&self) -> Result<Self, AttestError> {
        let pidfd = self.pidfd.try_clone();
        let pidfd = pidfd.map_err(|source| AttestError::Io { what: "dup", source })?;
        Ok(Self { pidfd, key: self.key })
    }

    /// The descriptor alone, to sleep on. [`Self::wake`] is the way back.
    pub(crate) fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }

    /// The process of a descriptor that came out of [`Self::into_pidfd`].
    pub(crate) const fn wake(pidfd: OwnedFd, key: ProcessKey) -> Self {
        Self { pidfd, key }
    }

    /// Whether the process was not reaped yet: alive, or a zombie that still owns its PID.
    fn exists(&self) -> bool {
        match info(&self.pidfd) {
            Ok(info) => info.ppid.is_some(),
            // Without the request, signal 0 tells the two apart. It needs no permission to say so.
            Err(_) => !matches!(
                rustix::process::test_kill_process(
                    Pid::from_raw(self.key.pid).unwrap_or(Pid::INIT)
                ),
                Err(Errno::SRCH)
            ),
        }
    }

    fn ppid(&self) -> Result<i32, AttestError> {
        match info(&self.pidfd) {
            Ok(info) => {
                let ppid = info.ppid.ok_or(AttestError::PeerGone)?;
                i32::try_from(ppid)
                    .map_err(|_negative| AttestError::Malformed { file: "pidfd_info" })
            }
            Err(Errno::SRCH) => Err(AttestError::PeerGone),
            Err(_) => {
                let stat = read_stat(self.key.pid)?;
                self.still_there()?;
                Ok(stat.ppid)
            }
        }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// This boot's id. It cannot change while we run, so it is read once.
pub(crate) fn boot_id() -> Result<[u8; 16], AttestError> {
    static BOOT: OnceLock<[u8; 16]> = OnceLock::new();
    if let Some(id) = BOOT.get() {
        return Ok(*id);
    }
    let text = read_file(CWD, "/proc/sys/kernel/random/boot_id");
    let id = text.ok().and_then(|text| procfs::parse_boot_id(&text));
    let id = id.ok_or(AttestError::Malformed { file: "boot_id" })?;
    Ok(*BOOT.get_or_init(|| id))
}

/// The inode of a pidfd, where inodes of pidfds mean something.
fn pidfs_inode(pidfd: &OwnedFd) -> Result<Option<u64>, AttestError> {
    let kind = fstatfs(pidfd).map_err(|errno| AttestError::of("fstatfs", errno))?;
    if i128::from(kind.f_type) != PID_FS_MAGIC {
        return Ok(None);
    }
    let stat = fstat(pidfd).map_err(|errno| AttestError::of("fstat", errno))?;
    Ok(Some(stat.st_ino))
}

/// Whether the kernel shows us this process's secrets. Where it does not, it says "exit code 0" of
/// every zombie instead of refusing, so another file that is guarded alike is asked.
fn may_see(pid: i32) -> bool {
    let probe = readlinkat(CWD, format!("/proc/{pid}/ns/user"), Vec::new());
    !matches!(probe, Err(Errno::ACCESS | Errno::PERM))
}

fn read_stat(pid: i32) -> Result<Stat, AttestError> {
    let text = read_file(CWD, &format!("/proc/{pid}/stat"))?;
    procfs::parse_stat(&text).ok_or(AttestError::Malformed { file: "stat" })
}

/// Reads a whole small file of /proc, in one call where it fits a page.
pub(crate) fn read_file(dir: impl AsFd, path: &str) -> Result<Vec<u8>, AttestError> {
    let failed = |errno| AttestError::of("read /proc", errno);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(dir, path, flags, Mode::empty()).map_err(failed)?;
    let mut text = Vec::with_capacity(4096);
    loop {
        text.reserve(2048);
        let read = match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut text)) {
            Ok(read) => read,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(failed(errno)),
        };
        if read == 0 {
            return Ok(text);
        }
        if text.len() > procfs::TEXT_BYTES_MAX {
            return Err(AttestError::Malformed { file: "a file of /proc" });
        }
    }
}
