//! Doors: which of this process's sockets and ports are open, who may come in, and how they close.
//!
//! At a socket the kernel is asked who connected before a byte is read; at a port a handshake goes
//! before the first word. There are many doors (one for everybody, one for operators, one for each task
//! that is bound to a socket, one for each port), and each may close on its own.

use std::{
    collections::BTreeMap,
    fmt,
    future::ready,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use mayfly_attest::Peer;
use mayfly_core::{Denial, SpiffeId, TaskId};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{service::Routes, transport::Server};

use crate::{
    connection::{Connection, Mended},
    guest::{Eyes, Guest},
    limits,
    listen::{Listener, Port},
    quota::{Quota, Seat},
};

/// Octets in both directions, from whatever stream.
pub trait Octets: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Octets for S {}

/// A connection after its handshake.
pub struct Secured {
    /// What is said from here on.
    pub octets: Box<dyn Octets>,
    /// Who the other end proved to be, where it was asked.
    pub id: Option<SpiffeId>,
}

impl fmt::Debug for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secured").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A handshake that goes on.
pub type Securing = Pin<Box<dyn Future<Output = io::Result<Secured>> + Send>>;

/// The handshake of a port, or of a socket where it is asked for. This crate holds no key and links no
/// TLS, so whoever wires brings one.
pub trait Secure: Send + Sync + 'static {
    /// Shakes hands with whoever is at the other end of `stream`.
    fn secure(&self, stream: Box<dyn Octets>) -> Securing;
}

/// What is talked about at a port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Manner {
    /// gRPC: HTTP/2 alone, and streams that may last.
    Streams,
    /// The same for few who are known by name and ask for many: as many streams as at a socket.
    Brokers,
    /// Documents: HTTP/1.1 too, and no connection lasts for long.
    Pages,
}

/// Every socket of this process, and who may come in.
pub struct Doors {
    quota: Arc<Quota>,
    remote: Arc<Quota<IpAddr>>,
    eyes: Option<Arc<dyn Eyes>>,
    open: Mutex<Open>,
    serving: TaskTracker,
}

#[derive(Debug, Default)]
struct Open {
    of_tasks: BTreeMap<TaskId, watch::Sender<Option<Denial>>>,
    of_all: Vec<watch::Sender<Option<Denial>>>,
    shut: bool,
}

impl fmt::Debug for Doors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doors").field("quota", &self.quota).finish_non_exhaustive()
    }
}

impl Default for Doors {
    fn default() -> Self {
        Self::new(Quota::new(limits::CONNECTIONS_MAX, limits::CONNECTIONS_PER_USER_MAX))
    }
}

impl Doors {
    /// Doors that let in as many of this machine as `quota` says.
    #[must_use]
    pub fn new(quota: Arc<Quota>) -> Self {
        let remote =
            Quota::new(limits::PORT_CONNECTIONS_MAX, limits::PORT_CONNECTIONS_PER_HOST_MAX);
        Self::with_remote(quota, remote)
    }

    /// The same, and as many from elsewhere as `remote` says.
    #[must_use]
    pub fn with_remote(quota: Arc<Quota>, remote: Arc<Quota<IpAddr>>) -> Self {
        let (open, serving) = (Mutex::default(), TaskTracker::new());
        Self { quota, remote, eyes: None, open, serving }
    }

    /// The same, where whoever comes to a task's own socket is looked at with `eyes` as it comes, and not only
    /// when it asks: there it mostly asks at once, and by then has been seen.
    #[must_use]
    pub fn with_eyes(self, eyes: Arc<dyn Eyes>) -> Self {
        Self { eyes: Some(eyes), ..self }
    }

    /// Serves `routes` on `listener`. Whoever comes in stands for `socket`, if that is a task. Must be
    /// called in a runtime. After [`Self::shut`] nothing is opened any more.
    pub fn open(&self, socket: Option<TaskId>, listener: Listener, routes: Routes) {
        let (sender, closing) = watch::channel(None);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.shut {
            return;
        }
        match socket {
            // A door of the same task that was open closes here, as its sender is dropped.
            Some(task) => drop(open.of_tasks.insert(task, sender)),
            None => open.of_all.push(sender),
        }
        let (cut, place) = (CancellationToken::new(), listener.path().display().to_string());
        let door = Door { place, closing, cut };
        let eyes = self.eyes.clone().filter(|_| socket.is_some());
        let eyes = eyes.map(|eyes| (eyes, self.serving.clone()));
        let guests = guests(listener, (socket, Arc::clone(&self.quota), eyes), door.clone());
        drop(self.serving.spawn(door.serve(server(), routes, guests)));
    }

    /// Serves `routes` on `port` to those who get through `secure`. Must be called in a runtime. After
    /// [`Self::shut`] nothing is opened any more.
    pub fn open_port(&self, port: Port, secure: Arc<dyn Secure>, manner: Manner, routes: Routes) {
        let (sender, closing) = watch::channel(None);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.shut {
            return;
        }
        open.of_all.push(sender);
        let (cut, place) = (CancellationToken::new(), port.address().to_string());
        let door = Door { place, closing, cut };
        let visitors = visitors(port, (secure, Arc::clone(&self.remote)), door.clone());
        drop(self.serving.spawn(door.serve(manner.server(), routes, visitors)));
    }

    /// Serves `routes` on `listener` to those who get through `secure` and prove to be somebody there. Must
    /// be called in a runtime. After [`Self::shut`] nothing is opened any more.
    pub fn open_secured(&self, listener: Listener, secure: Arc<dyn Secure>, routes: Routes) {
        let (sender, closing) = watch::channel(None);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.shut {
            return;
        }
        open.of_all.push(sender);
        let (cut, place) = (CancellationToken::new(), listener.path().display().to_string());
        let door = Door { place, closing, cut };
        let proven = proven(listener, (secure, Arc::clone(&self.quota)), door.clone());
        drop(self.serving.spawn(door.serve(server(), routes, proven)));
    }

    /// Whether the door of `task` is open.
    #[must_use]
    pub fn is_open(&self, task: TaskId) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.of_tasks.contains_key(&task)
    }

    /// Closes the door of `task`, whose streams end because the task has.
    pub fn close(&self, task: TaskId) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = open.of_tasks.remove(&task) {
            sender.send_replace(Some(Denial::TaskEnded));
        }
    }

    /// Closes every door and waits until everybody has left or was cut off.
    pub async fn shut(&self) {
        let (of_tasks, of_all) = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.shut = true;
            (std::mem::take(&mut open.of_tasks), std::mem::take(&mut open.of_all))
        };
        for sender in of_tasks.values().chain(&of_all) {
            sender.send_replace(Some(Denial::NotServing));
        }
        self.serving.close();
        self.serving.wait().await;
    }
}

/// One door being served.
#[derive(Clone, Debug)]
struct Door {
    /// For people.
    place: String,
    closing: watch::Receiver<Option<Denial>>,
    cut: CancellationToken,
}

impl Door {
    async fn serve<S, T>(
        self,
        mut server: Server,
        routes: Routes,
        arriving: impl Stream<Item = io::Result<Connection<S, T>>>,
    ) where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        T: Send + Unpin + 'static,
    {
        let Self { place, closing, cut } = self;
        let (mut left, mut drained) = (closing.clone(), closing);
        let served = server.add_routes(routes).serve_with_incoming_shutdown(arriving, async move {
            let _why = left.wait_for(Option::is_some).await.map(|why| *why);
        });
        let limit = async {
            let _why = drained.wait_for(Option::is_some).await.map(|why| *why);
            tokio::time::sleep(limits::DRAIN_MAX).await;
        };
        tokio::select! {
            served = served => if let Err(error) = served {
                tracing::error!(place, %error, "a door is no longer served");
            },
            () = limit => tracing::debug!(place, "cutting those who did not leave"),
        }
        cut.cancel();
    }
}

/// Who looks at callers as they come, and where that goes on.
type Lookout = (Arc<dyn Eyes>, TaskTracker);

/// Everybody who comes to a socket and is let in.
fn guests(
    listener: Listener,
    (socket, quota, eyes): (Option<TaskId>, Arc<Quota>, Option<Lookout>),
    door: Door,
) -> impl Stream<Item = io::Result<Connection<Mended<UnixStream>, Seat>>> {
    // Sees who is there before a byte is read. Who cannot be seen or is one too many is not spoken
    // to: to a gRPC client a closed connection is `Unavailable`, and it tries again.
    let admit = move |stream: &UnixStream, door: &Door| {
        let peer = Peer::of(stream)
            .map_err(|error| tracing::info!(%error, "a caller was turned away"))
            .ok()?;
        let Some(seat) = quota.take(peer.uid()) else {
            tracing::warn!(uid = peer.uid(), "too many connections");
            return None;
        };
        if let Some((eyes, looking)) = &eyes {
            let sight = eyes.look(&peer);
            // What it finds is remembered with the peer, and so is nothing if it fails: then the call says why.
            // Not longer than the door is there: a name service that does not answer must not keep it open.
            drop(looking.spawn(door.cut.clone().run_until_cancelled_owned(sight).map(drop)));
        }
        Some((Guest::new(peer, socket, door.closing.clone()), seat))
    };
    stream::unfold((listener, admit, door), |(listener, admit, door)| async move {
        loop {
            match listener.inner.accept().await {
                Ok((stream, _nameless)) => {
                    if let Some((guest, seat)) = admit(&stream, &door) {
                        let cut = door.cut.clone().cancelled_owned();
                        let guest = Connection::new(Mended::new(stream), guest, cut, seat);
                        return Some((Ok(guest), (listener, admit, door)));
                    }
                }
                Err(error) => not_accepted(&error).await,
            }
        }
    })
}

/// Everybody who comes to a port and gets through its handshake. Handshakes go on side by side, so
/// that one who is slow at it keeps nobody else waiting; each has its seat already.
fn visitors(
    port: Port,
    (secure, quota): (Arc<dyn Secure>, Arc<Quota<IpAddr>>),
    door: Door,
) -> impl Stream<Item = io::Result<Connection<Box<dyn Octets>, Seat<IpAddr>>>> {
    let arrivals = stream::unfold((port, quota), |(port, quota)| async move {
        loop {
            match port.inner.accept().await {
                Ok((stream, address)) => match quota.take(host(address.ip())) {
                    Some(seat) => return Some(((stream, address, seat), (port, quota))),
                    None => tracing::warn!(%address, "too many connections"),
                },
                Err(error) => not_accepted(&error).await,
            }
        }
    });
    let enter = move |(stream, address, seat): (TcpStream, SocketAddr, Seat<IpAddr>)| {
        // A heartbeat is small and must not wait for more to come. Without it everything still works.
        let _still_fine = stream.set_nodelay(true).is_ok();
        let (door, secured) = (door.clone(), secure.secure(Box::new(stream)));
        async move {
            let Secured { octets, id } = shake(secured, &door.place).await?;
            let guest = Guest::remote(address, id, door.closing.clone());
            let cut = door.cut.clone().cancelled_owned();
            Some(Ok(Connection::new(octets, guest, cut, seat)))
        }
    };
    arrivals.map(enter).buffer_unordered(limits::PORT_CONNECTIONS_MAX).filter_map(ready)
}

/// Everybody who comes to a socket and proves to be somebody. Which process that is does not matter here,
/// so it may live where we cannot see it.
fn proven(
    listener: Listener,
    (secure, quota): (Arc<dyn Secure>, Arc<Quota>),
    door: Door,
) -> impl Stream<Item = io::Result<Connection<Mended<Box<dyn Octets>>, Seat>>> {
    let admit = move |stream: &UnixStream| {
        let uid = stream.peer_cred().ok()?.uid();
        let seat = quota.take(uid);
        if seat.is_none() {
            tracing::warn!(uid, "too many connections");
        }
        Some((uid, seat?))
    };
    let arrivals = stream::unfold((listener, admit), |(listener, admit)| async move {
        loop {
            match listener.inner.accept().await {
                Ok((stream, _nameless)) => {
                    if let Some((uid, seat)) = admit(&stream) {
                        return Some(((stream, uid, seat), (listener, admit)));
                    }
                }
                Err(error) => not_accepted(&error).await,
            }
        }
    });
    let enter = move |(stream, uid, seat): (UnixStream, u32, Seat)| {
        let (door, secured) = (door.clone(), secure.secure(Box::new(stream)));
        async move {
            let Secured { octets, id } = shake(secured, &door.place).await?;
            // A handshake that asks for no name has no business at such a socket.
            let guest = Guest::proven(uid, id?, door.closing.clone());
            let cut = door.cut.clone().cancelled_owned();
            Some(Ok(Connection::new(Mended::new(octets), guest, cut, seat)))
        }
    };
    arrivals.map(enter).buffer_unordered(limits::HANDSHAKES_MAX).filter_map(ready)
}

async fn shake(secured: Securing, place: &str) -> Option<Secured> {
    match tokio::time::timeout(limits::HANDSHAKE_MAX, secured).await {
        Ok(Ok(secured)) => Some(secured),
        Ok(Err(error)) => {
            tracing::debug!(place, %error, "a caller was turned away");
            None
        }
        Err(_elapsed) => {
            tracing::debug!(place, "a caller took too long over its handshake");
            None
        }
    }
}

/// What counts as one host: of IPv6 the network, whose addresses are all one host's to choose from.
fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(long) => IpAddr::V6(Ipv6Addr::from_bits(long.to_bits() >> 64 << 64)),
        short @ IpAddr::V4(_) => short,
    }
}

/// Mostly no descriptor is left. Those who wait in the backlog still can.
async fn not_accepted(error: &io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(limits::ACCEPT_PAUSE).await;
}

/// HTTP/2 with every bound named. No keepalive towards clients: they may be silent for as long as they
/// like.
fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(limits::HEADER_LIST_BYTES_MAX)
}

impl Manner {
    /// The same for callers from elsewhere, who may vanish without a word: they are asked whether they
    /// are there.
    fn server(self) -> Server {
        let streams = match self {
            Self::Streams | Self::Pages => limits::STREAMS_PER_PORT_CONNECTION_MAX,
            Self::Brokers => limits::STREAMS_PER_CONNECTION_MAX,
        };
        let server = server()
            .max_concurrent_streams(streams)
            .http2_keepalive_interval(Some(limits::PORT_KEEPALIVE))
            .http2_keepalive_timeout(Some(limits::PORT_KEEPALIVE_ANSWER_MAX));
        match self {
            Self::Streams | Self::Brokers => server,
            Self::Pages => server
                .accept_http1(true)
                .max_connection_age(limits::PAGES_CONNECTION_MAX)
                .max_connection_age_grace(limits::DRAIN_MAX),
        }
    }
}
