//! A connection's other end, for as long as the connection lasts: who it is, which door it came
//! through, and whether either of the two is closing.
//!
//! A caller on this machine is a process, which the kernel names. One from elsewhere is an address, and
//! a SPIFFE ID where its door asked for one; it can be answered, but never attested.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, RawFd},
    pin::Pin,
    sync::{Arc, OnceLock},
};

use mayfly_attest::{AttestError, CollectOptions, Collector, Peer};
use mayfly_core::{Denial, Evidence, SpiffeId, TaskId};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

use crate::desk::Clock;

/// What was seen, or why nothing could be.
pub type Sight = Pin<Box<dyn Future<Output = Result<Evidence, AttestError>> + Send>>;

/// Looks at callers. Asked anew for every call and every renewal: what is dear about a look (digests
/// of programs, names of accounts) is remembered behind it, and the rest costs microseconds, for which
/// a caller that has moved to another cgroup or become another program is noticed.
pub trait Eyes: Send + Sync + 'static {
    /// Collects the evidence about a peer. Its last look is at whether the peer still lives.
    fn look(&self, peer: &Peer) -> Sight;
}

/// The eyes of this machine.
#[derive(Clone)]
pub struct LocalEyes {
    collector: Arc<Collector>,
    options: Arc<dyn Fn() -> CollectOptions + Send + Sync>,
    clock: Clock,
}

impl LocalEyes {
    /// Eyes that ask `options` before every look, because profiles may change what is worth seeing.
    #[must_use]
    pub fn new(
        collector: Arc<Collector>,
        options: Arc<dyn Fn() -> CollectOptions + Send + Sync>,
        clock: Clock,
    ) -> Self {
        Self { collector, options, clock }
    }
}

impl std::fmt::Debug for LocalEyes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalEyes").finish_non_exhaustive()
    }
}

impl Eyes for LocalEyes {
    fn look(&self, peer: &Peer) -> Sight {
        let (eyes, peer) = (self.clone(), peer.clone());
        Box::pin(
            async move { eyes.collector.collect(&peer, (eyes.options)(), (eyes.clock)()).await },
        )
    }
}

/// The user that all callers from elsewhere count as: the one number that no user can have.
pub const ELSEWHERE: u32 = u32::MAX;

/// Whoever is at the other end of one connection.
#[derive(Debug)]
pub struct Guest {
    who: Who,
    closing: watch::Receiver<Option<Denial>>,
}

#[derive(Debug)]
enum Who {
    Process {
        peer: Peer,
        socket: Option<TaskId>,
        pidfd: OnceLock<Option<AsyncFd<Pidfd>>>,
    },
    Remote {
        address: SocketAddr,
        id: Option<SpiffeId>,
    },
    /// Of this machine, and known by what it proved and not by its process.
    Proven {
        uid: u32,
        id: SpiffeId,
    },
}

impl Guest {
    /// A peer that came through the socket of `socket`, or through a socket for everybody. `closing`
    /// says, once it holds something, why that door closes.
    #[must_use]
    pub const fn new(
        peer: Peer,
        socket: Option<TaskId>,
        closing: watch::Receiver<Option<Denial>>,
    ) -> Self {
        Self { who: Who::Process { peer, socket, pidfd: OnceLock::new() }, closing }
    }

    /// A caller from another machine, and who it proved to be in its handshake, if it was asked.
    #[must_use]
    pub const fn remote(
        address: SocketAddr,
        id: Option<SpiffeId>,
        closing: watch::Receiver<Option<Denial>>,
    ) -> Self {
        Self { who: Who::Remote { address, id }, closing }
    }

    /// A caller of this machine's user `uid` that proved to be `id` in its handshake.
    #[must_use]
    pub const fn proven(uid: u32, id: SpiffeId, closing: watch::Receiver<Option<Denial>>) -> Self {
        Self { who: Who::Proven { uid, id }, closing }
    }

    /// A process that this guest speaks for, through the same door.
    #[must_use]
    pub(crate) fn speaking_for(&self, peer: Peer) -> Self {
        Self::new(peer, None, self.closing.clone())
    }

    /// The process that connected; nobody from elsewhere has one.
    #[must_use]
    pub const fn peer(&self) -> Option<&Peer> {
        match &self.who {
            Who::Process { peer, .. } => Some(peer),
            Who::Remote { .. } | Who::Proven { .. } => None,
        }
    }

    /// Whom the caller proved to be by an X.509-SVID.
    #[must_use]
    pub const fn id(&self) -> Option<&SpiffeId> {
        match &self.who {
            Who::Process { .. } => None,
            Who::Remote { id, .. } => id.as_ref(),
            Who::Proven { id, .. } => Some(id),
        }
    }

    /// Where the caller is, if that is elsewhere.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        match &self.who {
            Who::Process { .. } | Who::Proven { .. } => None,
            Who::Remote { address, .. } => Some(*address),
        }
    }

    /// Whose seats it takes.
    #[must_use]
    pub fn user(&self) -> u32 {
        match &self.who {
            Who::Process { peer, .. } => peer.uid(),
            Who::Remote { .. } => ELSEWHERE,
            Who::Proven { uid, .. } => *uid,
        }
    }

    /// The task whose own socket this is.
    #[must_use]
    pub const fn socket(&self) -> Option<TaskId> {
        match &self.who {
            Who::Process { socket, .. } => *socket,
            Who::Remote { .. } | Who::Proven { .. } => None,
        }
    }

    /// Makes sure that the door is open and the peer alive: asked before every answer.
    ///
    /// # Errors
    /// Why nothing may be answered.
    pub fn check(&self) -> Result<(), Denial> {
        if let Some(denial) = *self.closing.borrow() {
            return Err(denial);
        }
        self.peer().map_or(Ok(()), |peer| peer.still_there().map_err(|error| denial_of(&error)))
    }

    /// Waits until nothing more may be answered, and says why.
    pub async fn gone(&self) -> Denial {
        let mut closing = self.closing.clone();
        tokio::select! {
            biased;
            denial = closing.wait_for(Option::is_some) => {
                denial.ok().and_then(|denial| *denial).unwrap_or(Denial::NotServing)
            }
            denial = self.peer_gone() => denial,
        }
    }

    /// Waits for the connector's end. Mostly its sockets end with it and nobody waits here any more;
    /// but a child that inherited the socket keeps the connection alive, and it is a stranger.
    async fn peer_gone(&self) -> Denial {
        let Who::Process { peer, pidfd, .. } = &self.who else {
            // Its connection is all that is known of it, and whoever reads from that hears its end.
            return std::future::pending().await;
        };
        let Some(pidfd) = pidfd.get_or_init(|| Pidfd::watched(peer)) else {
            // The kernel has no room to watch it; the check before every answer still holds.
            return std::future::pending().await;
        };
        loop {
            let Ok(mut ready) = pidfd.readable().await else {
                return Denial::AttestationFailed;
            };
            if let Err(error) = peer.still_there() {
                return denial_of(&error);
            }
            ready.clear_ready();
        }
    }
}

/// Why a caller that could not be seen gets nothing. What exactly was seen stays in our log.
pub(crate) fn denial_of(error: &AttestError) -> Denial {
    match error {
        AttestError::PeerGone => Denial::PeerGone,
        AttestError::ForeignNamespace
        | AttestError::Changed { .. }
        | AttestError::Malformed { .. }
        | AttestError::Io { .. } => Denial::AttestationFailed,
    }
}

/// A peer's pidfd as the event queue wants it.
#[derive(Debug)]
struct Pidfd(Peer);

impl Pidfd {
    fn watched(peer: &Peer) -> Option<AsyncFd<Self>> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe and asks for a descriptor that stays open and the \
                      same while it is watched; this one belongs to the peer held here"
        )]
        AsyncFd::with_interest(Self(peer.clone()), Interest::READABLE).ok()
    }
}

impl AsRawFd for Pidfd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.process().as_fd().as_raw_fd()
    }
}
