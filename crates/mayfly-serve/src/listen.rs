//! Where callers arrive: a unix socket, and how it comes to be in the file system and goes again, or a
//! TCP port.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket};

use crate::limits;

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
    /// Somebody has the port.
    #[error("another process is listening on `{0}`")]
    PortInUse(SocketAddr),
    /// The kernel refused a port.
    #[error("cannot listen on `{address}`: {source}")]
    Port {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A socket in the file system. Dropping it removes the file, if it is still this socket's.
#[derive(Debug)]
pub struct Listener {
    pub(crate) inner: UnixListener,
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
        Ok(Self { inner, file: SocketFile { path: path.to_owned(), identity: Some(identity) } })
    }

    /// The same in a folder of its own, which goes with it. Where there is no such folder yet, and
    /// nobody else can write beside it, there is nothing to be careful about; tasks that come and go by
    /// the hundred are spared a dozen calls.
    ///
    /// # Errors
    /// [`ListenError`], and nothing has changed.
    pub fn bind_alone(path: &Path, mode: u32) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Io { path: path.to_owned(), source };
        let folder = path.parent().ok_or_else(|| ListenError::Path(path.to_owned()))?;
        if fs::DirBuilder::new().mode(0o755).create(folder).is_err() {
            // There from another run, or not to be made: what is wrong is said there.
            return Self::bind(path, mode);
        }
        let draft = folder.join(".new");
        let listen = || {
            let socket = UnixSocket::new_stream()?;
            socket.bind(&draft)?;
            fs::set_permissions(&draft, fs::Permissions::from_mode(mode))?;
            let inner = socket.listen(limits::BACKLOG)?;
            fs::rename(&draft, path)?;
            Ok(inner)
        };
        let listening: io::Result<_> = listen();
        if listening.is_err() {
            let _unchanged = remove_if_there(&draft).and_then(|()| fs::remove_dir(folder));
        }
        let inner = listening.map_err(failed)?;
        Ok(Self { inner, file: SocketFile { path: path.to_owned(), identity: None } })
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
    /// Device and inode; none where nobody else could have put another in its place.
    identity: Option<(u64, u64)>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let still_ours = self.identity.is_none_or(|identity| {
            fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == identity)
        });
        if still_ours && let Err(error) = remove_if_there(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a socket could not be removed");
        }
    }
}

/// A TCP port that is listened on.
#[derive(Debug)]
pub struct Port {
    pub(crate) inner: TcpListener,
    address: SocketAddr,
}

impl Port {
    /// Listens on `address`; port 0 is whichever is free. Must be called in a runtime.
    ///
    /// # Errors
    /// [`ListenError::PortInUse`] or [`ListenError::Port`].
    pub fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let failed = |source: io::Error| {
            if source.kind() == io::ErrorKind::AddrInUse {
                ListenError::PortInUse(address)
            } else {
                ListenError::Port { address, source }
            }
        };
        let listen = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // Connections of the process before linger for a minute and must not keep its successor
            // from the port. Two that listen still cannot share it.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            let inner = socket.listen(limits::BACKLOG)?;
            let address = inner.local_addr()?;
            Ok(Self { inner, address })
        };
        listen().map_err(failed)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}
