//! The two calls for which no safe wrapper exists: the only unsafe code of Mayfly.
//!
//! `PIDFD_GET_INFO` (Linux 6.13) tells facts about exactly the process behind a pidfd. Everything
//! under /proc is reached by a PID, which may change hands between two reads; this call cannot be
//! fooled that way. It also still knows how a process ended after its parent reaped it (Linux 6.15),
//! which nothing else does for a process that is not our child.
//!
//! Registering a descriptor with tokio is unsafe because a type might answer a different descriptor
//! each time it is asked. An `OwnedFd` does not.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use tokio::io::{Interest, unix::AsyncFd};

/// The first published size of the kernel's `struct pidfd_info`. Later kernels accept it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Raw {
    mask: u64,
    cgroup: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ids: [u32; 8],
    exit: i32,
}

/// Sizes are part of the request's number; a different layout would be a different request.
const _: () = assert!(size_of::<Raw>() == 64);

const PIDFD_GET_INFO: Opcode = opcode::read_write::<Raw>(0xff, 11);
const MASK_PID: u64 = 1;
const MASK_CREDENTIALS: u64 = 1 << 1;
const MASK_CGROUP: u64 = 1 << 2;
const MASK_EXIT: u64 = 1 << 3;

/// What the kernel said; a field is absent where it did not know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Info {
    /// The parent's PID in our namespace, 0 for none. Absent once the process was reaped.
    pub(crate) ppid: Option<u32>,
    /// Real, effective, saved and file system ids, of user and group in turn.
    pub(crate) ids: Option<[u32; 8]>,
    /// The inode of the cgroup in the unified hierarchy.
    pub(crate) cgroup: Option<u64>,
    /// The wait status. Present only once the process was reaped.
    pub(crate) exit: Option<i32>,
}

/// Asks the kernel about the process behind `pidfd`. Fails on kernels without the request.
#[expect(unsafe_code, reason = "no crate wraps this ioctl")]
pub(crate) fn info(pidfd: impl AsFd) -> rustix::io::Result<Info> {
    let mask = MASK_PID | MASK_CREDENTIALS | MASK_CGROUP | MASK_EXIT;
    let mut raw = Raw { mask, ..Raw::default() };
    // SAFETY: the opcode encodes the size of `Raw`, and the kernel writes at most that many bytes;
    // `Raw` is plain integers without padding, so every byte the kernel writes is a valid value. A
    // descriptor that is no pidfd answers ENOTTY and leaves `raw` as it was, because no other driver
    // has this type, number and size.
    unsafe { ioctl(pidfd, Updater::<PIDFD_GET_INFO, Raw>::new(&mut raw))? };
    Ok(Info {
        ppid: (raw.mask & MASK_PID != 0 && raw.pid != 0).then_some(raw.ppid),
        ids: (raw.mask & MASK_CREDENTIALS != 0).then_some(raw.ids),
        cgroup: (raw.mask & MASK_CGROUP != 0).then_some(raw.cgroup),
        exit: (raw.mask & MASK_EXIT != 0).then_some(raw.exit),
    })
}

/// Lets a task sleep until something happens to `fd`. Must be called within a tokio runtime.
#[expect(unsafe_code, reason = "tokio offers no safe way for a type whose answer is known")]
pub(crate) fn sleep_on(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open as long as it exists, names one descriptor for life, and is given
    // away here, so nobody else can close it before the `AsyncFd` does.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
