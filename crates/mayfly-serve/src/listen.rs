//! Sockets: how one comes to be in the file system, who may come in, and how it goes again.
//!
//! The kernel is asked who connected before a byte is read. There are many doors (one for everybody,
//! one for operators, one for each task that is bound to a socket), and each may close on its own.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{Stream, stream};
use mayfly_attest::Peer;
use mayfly_core::{Denial, TaskId};
use tokio::{
    net::{UnixListener, UnixSocket, UnixStream},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{service::Routes, transport::Server};

use crate::{
    connection::Connection,
    guest::Guest,
    limits,
    quota::{Quota, Seat},
};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers there.
    #[error("another process is listening on `{0}`")]
    InUse(PathBuf),
    /// The path is taken by something that must not be removed.
    #[error("`{0}` exists and is not a socket")]
    NotASocket(PathBuf),
    /// A path with no file name, or in no folder.
    #[error("`{0}` cannot be the path of a socket")]
    Path(PathBuf),
    /// The file system or the kernel refused.
    #[error("cannot listen on `{path}`")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A socket in the file system. Dropping it removes the file, if it is still this socket's.
#[derive(Debug)]
pub struct Listener {
    inner: UnixListener,
    file: SocketFile,
}

impl Listener {
    /// Listens on `path`, which is created with `mode`, and its folders with 0755 where they are
    /// missing. A socket that a dead process left there is replaced.
    ///
    /// The file appears under its name only when it has its mode and answers: it is made under another
    /// name and moved, so that there is no moment at which too many may come in or nobody answers.
    ///
    /// # Errors
    /// [`ListenError`], and nothing has changed.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Io { path: path.to_owned(), source };
        let bad = || ListenError::Path(path.to_owned());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.filter(|_| path.file_name().is_some()).ok_or_else(bad)?;
        fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed)?;
        check_free(path)?;
        // Short, because the path of a socket has at most 107 bytes.
        let draft = folder.join(format!(".{}", std::process::id()));
        remove_if_there(&draft).map_err(failed)?;
        let socket = UnixSocket::new_stream().map_err(failed)?;
        socket.bind(&draft).map_err(failed)?;
        let ready = || {
            fs::set_permissions(&draft, fs::Permissions::from_mode(mode))?;
            let meta = fs::symlink_metadata(&draft)?;
            let inner = socket.listen(limits::BACKLOG)?;
            fs::rename(&draft, path)?;
            Ok((inner, (meta.dev(), meta.ino())))
        };
        let ready: io::Result<_> = ready();
        if ready.is_err() {
            let _unchanged = remove_if_there(&draft);
        }
        let (inner, identity) = ready.map_err(failed)?;
        Ok(Self { inner, file: SocketFile { path: path.to_owned(), identity } })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }
}

/// Makes sure that nobody answers at `path`.
fn check_free(path: &Path) -> Result<(), ListenError> {
    use std::os::unix::fs::FileTypeExt;
    let failed = |source| ListenError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => Err(ListenError::NotASocket(path.to_owned())),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_answered) => Err(ListenError::InUse(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let still_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity);
        if still_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a socket could not be removed");
        }
    }
}

/// Every socket of this process, and who may come in.
#[derive(Debug)]
pub struct Doors {
    quota: Arc<Quota>,
    open: Mutex<Open>,
    serving: TaskTracker,
}

#[derive(Debug, Default)]
struct Open {
    of_tasks: BTreeMap<TaskId, watch::Sender<Option<Denial>>>,
    of_all: Vec<watch::Sender<Option<Denial>>>,
    shut: bool,
}

impl Default for Doors {
    fn default() -> Self {
        Self::new(Quota::new(limits::CONNECTIONS_MAX, limits::CONNECTIONS_PER_USER_MAX))
    }
}

impl Doors {
    /// Doors that let in as many as `quota` says.
    #[must_use]
    pub fn new(quota: Arc<Quota>) -> Self {
        Self { quota, open: Mutex::default(), serving: TaskTracker::new() }
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
        let door = Door { socket, closing, quota: Arc::clone(&self.quota) };
        drop(self.serving.spawn(door.serve(listener, routes)));
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

/// One socket being served.
#[derive(Clone, Debug)]
struct Door {
    socket: Option<TaskId>,
    closing: watch::Receiver<Option<Denial>>,
    quota: Arc<Quota>,
}

impl Door {
    async fn serve(self, listener: Listener, routes: Routes) {
        let cut = CancellationToken::new();
        let mut closing = self.closing.clone();
        let mut drained = self.closing.clone();
        let path = listener.path().to_owned();
        let guests = self.guests(listener, cut.clone());
        let server = server().add_routes(routes).serve_with_incoming_shutdown(guests, async move {
            let _why = closing.wait_for(Option::is_some).await.map(|why| *why);
        });
        let limit = async {
            let _why = drained.wait_for(Option::is_some).await.map(|why| *why);
            tokio::time::sleep(limits::DRAIN_MAX).await;
        };
        tokio::select! {
            served = server => if let Err(error) = served {
                tracing::error!(path = %path.display(), %error, "a socket is no longer served");
            },
            () = limit => tracing::debug!(path = %path.display(), "cutting those who did not leave"),
        }
        cut.cancel();
    }

    /// Everybody who comes in and is let in.
    fn guests(
        self,
        listener: Listener,
        cut: CancellationToken,
    ) -> impl Stream<Item = io::Result<Connection>> {
        stream::unfold((self, listener, cut), |(door, listener, cut)| async move {
            loop {
                match listener.inner.accept().await {
                    Ok((socket, _nameless)) => {
                        if let Some((guest, seat)) = door.admit(&socket) {
                            let cut_off = cut.clone().cancelled_owned();
                            let guest = Connection::new(socket, guest, cut_off, seat);
                            return Some((Ok(guest), (door, listener, cut)));
                        }
                    }
                    Err(error) => {
                        // Mostly no descriptor is left. Those who wait in the backlog still can.
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                    }
                }
            }
        })
    }

    /// Sees who is there before a byte is read. Who cannot be seen or is one too many is not spoken
    /// to: to a gRPC client a closed connection is `Unavailable`, and it tries again.
    fn admit(&self, socket: &UnixStream) -> Option<(Guest, Seat)> {
        let peer = Peer::of(socket)
            .map_err(|error| tracing::info!(%error, "a caller was turned away"))
            .ok()?;
        let Some(seat) = self.quota.take(peer.uid()) else {
            tracing::warn!(uid = peer.uid(), "too many connections");
            return None;
        };
        Some((Guest::new(peer, self.socket, self.closing.clone()), seat))
    }
}

/// HTTP/2 with every bound named. No keepalive towards clients: they may be silent for as long as they
/// like.
fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(limits::HEADER_LIST_BYTES_MAX)
}
