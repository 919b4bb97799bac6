//! An accepted connection: its octets on the way in pass through the `:authority` mend, its guest is
//! known before the first of them, and it is cut when its door has closed and it does not go.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

use crate::{authority::Mend, guest::Guest, limits};

/// A unix socket whose incoming octets are mended.
#[derive(Debug)]
pub struct Mended<S> {
    inner: S,
    mend: Mend,
    /// Octets that the mend let go of and the reader had no room for.
    ready: Option<u8>,
}

impl<S> Mended<S> {
    /// Mends what comes out of `inner`.
    #[must_use]
    pub fn new(inner: S) -> Self {
        Self { inner, mend: Mend::default(), ready: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Mended<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Some(octet) = self.ready.take() {
            out.put_slice(&[octet]);
            return Poll::Ready(Ok(()));
        }
        loop {
            // One place is left free for an octet that was kept back; h2 reads by the kilobyte.
            let room = out.remaining() - 1;
            let this = &mut *self;
            if room == 0 {
                let mut one = [0_u8];
                let mut small = ReadBuf::new(&mut one);
                ready!(Pin::new(&mut this.inner).poll_read(context, &mut small))?;
                if small.filled().is_empty() {
                    this.mend.finish().into_iter().for_each(|octet| out.put_slice(&[octet]));
                    return Poll::Ready(Ok(()));
                }
                let fed = this.mend.feed(small.filled_mut());
                let fresh = small.filled().first().copied().filter(|_| fed.pass == 1);
                let (first, second) = (fed.before.or(fresh), fed.before.and(fresh));
                this.ready = second;
                if let Some(octet) = first {
                    out.put_slice(&[octet]);
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            let mut part = ReadBuf::new(out.initialize_unfilled_to(room));
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut part))?;
            let read = part.filled().len();
            if read == 0 {
                this.mend.finish().into_iter().for_each(|octet| out.put_slice(&[octet]));
                return Poll::Ready(Ok(()));
            }
            let fed = this.mend.feed(part.filled_mut());
            if let Some(before) = fed.before {
                // The octets were read one place too early.
                let area = out.initialize_unfilled_to(read + 1);
                area.copy_within(..fed.pass, 1);
                area.iter_mut().take(1).for_each(|first| *first = before);
            }
            let total = fed.pass + usize::from(fed.before.is_some());
            out.advance(total);
            if total > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Mended<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, octets)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// A connection as tonic takes it. `S` carries its octets and `T` gives its seat back when dropped.
#[derive(Debug)]
pub(crate) struct Connection<S, T> {
    io: S,
    guest: Arc<Guest>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Runs until the first octet, so that seats are not kept by those who say nothing.
    silence: Option<Pin<Box<Sleep>>>,
    _seat: T,
}

impl<S, T> Connection<S, T> {
    pub(crate) fn new(io: S, guest: Guest, cut: WaitForCancellationFutureOwned, seat: T) -> Self {
        Self {
            io,
            guest: Arc::new(guest),
            cut: Box::pin(cut),
            silence: Some(Box::pin(sleep(limits::SILENCE_MAX))),
            _seat: seat,
        }
    }
}

impl<S, T> Connected for Connection<S, T> {
    type ConnectInfo = Arc<Guest>;

    fn connect_info(&self) -> Arc<Guest> {
        Arc::clone(&self.guest)
    }
}

impl<S: AsyncRead + Unpin, T: Unpin> AsyncRead for Connection<S, T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if self.silence.as_mut().is_some_and(|silence| silence.as_mut().poll(context).is_ready()) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        ready!(Pin::new(&mut self.io).poll_read(context, out))?;
        self.silence = None;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin, T: Unpin> AsyncWrite for Connection<S, T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, octets)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
