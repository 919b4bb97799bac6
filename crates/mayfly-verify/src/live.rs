//! A live connection that ends with its peer's task.
//!
//! TLS asks who the peer is once, at the beginning. A task that ends an hour later would keep its
//! connection for as long as it likes; [`Guarded`] cuts it when the news comes, waking whoever waits
//! for a byte.
//!
//! The connection ends with the peer's certificate as well. A status is remembered no longer than
//! the certificate is valid, so after that date an end could not be learned any more.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use mayfly_core::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tonic::transport::server::Connected;

use crate::{
    peer::{Peer, Standing, Vigil},
    refused::Refused,
    telemetry::{self, Place},
    tls::{Party, no_server_name},
};

/// A stream that fails with [`Refused`] once its peer is not to be talked to any more.
///
/// It is also a connection for tonic: requests that come over it carry its [`Standing`].
#[derive(Debug)]
pub struct Guarded<S> {
    stream: S,
    /// One for each direction, because a timer wakes only whoever asked last.
    reads: Vigil,
    writes: Vigil,
    told: bool,
}

impl Party {
    /// Answers a client: handshake, then a guarded stream.
    ///
    /// # Errors
    /// The handshake's, or [`Refused`] within.
    pub async fn accept<IO>(
        &self,
        stream: IO,
        now: Timestamp,
    ) -> io::Result<Guarded<server::TlsStream<IO>>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.shared_server_config().map_err(io::Error::other)?;
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let peer = self.peer(stream.get_ref().1)?;
        Ok(self.guard(stream, peer, now)?)
    }

    /// Calls a server: handshake, then a guarded stream.
    ///
    /// # Errors
    /// The handshake's, or [`Refused`] within.
    pub async fn connect<IO>(
        &self,
        stream: IO,
        now: Timestamp,
    ) -> io::Result<Guarded<client::TlsStream<IO>>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.shared_client_config().map_err(io::Error::other)?;
        let stream = TlsConnector::from(config).connect(no_server_name(), stream).await?;
        let peer = self.peer(stream.get_ref().1)?;
        Ok(self.guard(stream, peer, now)?)
    }

    /// Guards a stream whose peer is known; `now` is the wall clock's, for the certificate's end.
    ///
    /// # Errors
    /// [`Refused`] if the peer's task has ended since the handshake.
    pub fn guard<S>(&self, stream: S, peer: Peer, now: Timestamp) -> Result<Guarded<S>, Refused> {
        let standing = self.standing(peer, now);
        // Watched from here on, so that a quarantine that is lifted before the first byte still cuts.
        let watched = standing.watch();
        let reads = Vigil::over(standing, watched);
        reads.look()?;
        let writes = reads.other_half();
        Ok(Guarded { stream, reads, writes, told: false })
    }
}

impl<S> Guarded<S> {
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        self.standing().peer()
    }

    /// Whether the peer may still be talked to, for whoever works above the stream.
    #[must_use]
    pub const fn standing(&self) -> &Standing {
        self.reads.standing()
    }

    /// The stream inside.
    #[must_use]
    pub const fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Why the connection is over, if it is.
    #[must_use]
    pub fn refused(&self) -> Option<Refused> {
        self.reads.look().err()
    }

    fn check(&mut self, ended: Poll<Refused>) -> io::Result<()> {
        let Poll::Ready(reason) = ended else { return Ok(()) };
        // Both directions end, and each is asked more than once; it is told once.
        if !std::mem::replace(&mut self.told, true) {
            telemetry::refused(Place::Connection, &reason, Some(self.peer()));
        }
        Err(reason.into())
    }
}

/// What a request over this connection brings along: the peer's standing.
impl<S> Connected for Guarded<S> {
    type ConnectInfo = Standing;

    fn connect_info(&self) -> Standing {
        self.standing().clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let ended = self.reads.poll_end(cx);
        self.check(ended)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let ended = self.writes.poll_end(cx);
        self.check(ended)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = self.writes.poll_end(cx);
        self.check(ended)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Allowed even when cut: saying goodbye tells the peer nothing but that.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
