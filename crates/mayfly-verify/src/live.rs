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
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use mayfly_core::Timestamp;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::{
    refused::Refused,
    tls::{Party, Peer, no_server_name},
    view::Watched,
};

/// A stream that fails with [`Refused`] once its peer is not to be talked to any more.
#[derive(Debug)]
pub struct Guarded<S> {
    stream: S,
    peer: Peer,
    watched: Option<Watched>,
    /// One for each direction, because a timer wakes only whoever asked last.
    read_ends: Pin<Box<Sleep>>,
    write_ends: Pin<Box<Sleep>>,
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
        let config = self.server_config().map_err(io::Error::other)?;
        let stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await?;
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
        let config = self.client_config().map_err(io::Error::other)?;
        let stream = TlsConnector::from(Arc::new(config)).connect(no_server_name(), stream).await?;
        let peer = self.peer(stream.get_ref().1)?;
        Ok(self.guard(stream, peer, now)?)
    }

    /// Guards a stream whose peer is known; `now` is the wall clock's, for the certificate's end.
    ///
    /// # Errors
    /// [`Refused`] if the peer's task has ended since the handshake.
    pub fn guard<S>(&self, stream: S, peer: Peer, now: Timestamp) -> Result<Guarded<S>, Refused> {
        let watched = match (peer.own, peer.leaf.serial) {
            (true, Some(serial)) => Some(self.view().watch(serial)),
            (true, None) => return Err(Refused::ForeignSerial(peer.leaf.id)),
            (false, _) => None,
        };
        if let Some(reason) = watched.as_ref().and_then(Watched::refused) {
            return Err(reason);
        }
        let left = Duration::from_millis(peer.leaf.not_after.since(now).as_millis());
        Ok(Guarded {
            stream,
            peer,
            watched,
            read_ends: Box::pin(tokio::time::sleep(left)),
            write_ends: Box::pin(tokio::time::sleep(left)),
        })
    }
}

impl<S> Guarded<S> {
    /// Who is at the other end.
    #[must_use]
    pub const fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The stream inside.
    #[must_use]
    pub const fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Why the connection is over, if it is.
    #[must_use]
    pub fn refused(&self) -> Option<Refused> {
        self.watched
            .as_ref()
            .and_then(Watched::refused)
            .or_else(|| self.read_ends.is_elapsed().then_some(Refused::OutOfDate))
    }

    fn check_reader(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(watched) = &self.watched {
            // Registered before the look, so that news between the two is not missed.
            watched.wake_reader(cx.waker());
        }
        let ends = self.read_ends.as_mut().poll(cx);
        self.check(ends)
    }

    fn check_writer(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(watched) = &self.watched {
            watched.wake_writer(cx.waker());
        }
        let ends = self.write_ends.as_mut().poll(cx);
        self.check(ends)
    }

    fn check(&self, ends: Poll<()>) -> io::Result<()> {
        let reason = self.watched.as_ref().and_then(Watched::refused);
        match reason.or_else(|| ends.is_ready().then_some(Refused::OutOfDate)) {
            Some(reason) => Err(reason.into()),
            None => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_reader(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_writer(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_writer(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Allowed even when cut: saying goodbye tells the peer nothing but that.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
