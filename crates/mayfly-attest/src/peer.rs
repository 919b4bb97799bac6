//! Who is at the other end of a unix socket.

use std::{os::fd::AsFd, sync::Arc};

use mayfly_core::evidence::ProcessKey;
use nix::{
    errno::Errno,
    sys::socket::{getsockopt, sockopt},
};

use crate::{error::AttestError, glance::Memory, process::Process};

/// The process that connected, as the kernel noted it at that moment, alive when we looked.
///
/// A socket outlives its connector: a child that inherited it may go on talking after the process
/// that the kernel names is gone, and with a bare PID it would be taken for whoever gets that number
/// next. So a peer is made at accept, and [`Self::still_there`] is asked before every answer.
#[derive(Clone, Debug)]
pub struct Peer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    process: Process,
    uid: u32,
    gid: u32,
    memory: Memory,
}

impl Peer {
    /// Asks the kernel who connected `socket`.
    ///
    /// With `SO_PEERPIDFD` (Linux 6.5) the answer is the connector itself. Without, its PID is
    /// opened: a successor of a connector that ended within these microseconds could be taken for
    /// it, which is why a new kernel is recommended.
    ///
    /// # Errors
    /// [`AttestError::PeerGone`] if the connector has ended, [`AttestError::ForeignNamespace`] if it
    /// has no PID here.
    pub fn of(socket: &impl AsFd) -> Result<Self, AttestError> {
        let failed = |what, errno: Errno| AttestError::Io { what, source: errno.into() };
        let credentials = getsockopt(socket, sockopt::PeerCredentials)
            .map_err(|errno| failed("SO_PEERCRED", errno))?;
        let pid = credentials.pid();
        if pid <= 0 {
            return Err(AttestError::ForeignNamespace);
        }
        let process = match getsockopt(socket, sockopt::PeerPidfd) {
            Ok(pidfd) => Process::from_pidfd(pidfd, pid)?,
            Err(Errno::ENOPROTOOPT) => Process::open(pid)?,
            // Kernels before 6.16 give no pidfd for a process that was reaped.
            Err(Errno::ESRCH | Errno::EINVAL | Errno::ENODATA) => {
                return Err(AttestError::PeerGone);
            }
            Err(errno) => return Err(failed("SO_PEERPIDFD", errno)),
        };
        Ok(Self::new(process, (credentials.uid(), credentials.gid())))
    }

    /// The process that has this PID at the moment, as if it had connected: for diagnosis, where an
    /// operator names a process instead of being one.
    ///
    /// # Errors
    /// [`AttestError::PeerGone`] if there is none.
    pub fn of_pid(pid: i32) -> Result<Self, AttestError> {
        let process = Process::open(pid)?;
        let status = crate::collect::status_of(pid)?;
        process.still_there()?;
        Ok(Self::new(process, (status.euid, status.egid)))
    }

    fn new(process: Process, (uid, gid): (u32, u32)) -> Self {
        Self(Arc::new(Inner { process, uid, gid, memory: Memory::default() }))
    }

    /// Makes sure that the connector lives. Costs one `poll`; asked before every answer.
    ///
    /// # Errors
    /// [`AttestError::PeerGone`] if it does not.
    pub fn still_there(&self) -> Result<(), AttestError> {
        self.0.process.still_there()
    }

    /// The connector's name until the next boot.
    #[must_use]
    pub fn key(&self) -> ProcessKey {
        self.0.process.key()
    }

    /// The connector's effective user when it connected.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.0.uid
    }

    /// The connector's effective group when it connected.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.0.gid
    }

    /// What was seen of it before.
    pub(crate) fn memory(&self) -> &Memory {
        &self.0.memory
    }

    /// The connector itself.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.0.process
    }
}
