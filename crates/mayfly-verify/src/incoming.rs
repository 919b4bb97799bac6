//! Connections as they come: handshakes beside each other, bounded in number and in time.
//!
//! Whoever does the handshake in the loop that accepts can be stopped by one client that says nothing.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use mayfly_core::Timestamp;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_rustls::server::TlsStream;

use crate::{live::Guarded, tls::Party};

/// Handshakes at a time. More callers wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 256;
/// The longest that a handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// The pause after the system could not give a connection, for example for want of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection whose peer was let in.
pub type Accepted = Guarded<TlsStream<TcpStream>>;

/// The connections of one listener whose handshake succeeded; the others are in the log. For tonic's
/// `serve_with_incoming`, or to be served one by one.
#[derive(Debug)]
pub struct Incoming {
    accepted: mpsc::Receiver<Accepted>,
    _accepting: JoinSet<()>,
}

impl Party {
    /// Accepts on `listener` for as long as the stream is kept. `clock` tells the hour, for the dates of
    /// certificates. To be called within a tokio runtime.
    #[must_use]
    pub fn incoming(
        &self,
        listener: TcpListener,
        clock: impl Fn() -> Timestamp + Send + 'static,
    ) -> Incoming {
        let (sender, accepted) = mpsc::channel(1);
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(self.clone(), listener, clock, sender));
        Incoming { accepted, _accepting: accepting }
    }
}

async fn accept(
    party: Party,
    listener: TcpListener,
    clock: impl Fn() -> Timestamp,
    accepted: mpsc::Sender<Accepted>,
) {
    let turn = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut handshakes = JoinSet::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&turn).acquire_owned().await else { return };
        let stream = tokio::select! {
            () = accepted.closed() => return,
            stream = listener.accept() => stream,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (party, accepted, now) = (party.clone(), accepted.clone(), clock());
        handshakes.spawn(async move {
            match handshake(&party, stream, now).await {
                // If it cannot be handed over, nobody serves any more.
                Ok(connection) => drop(accepted.send(connection).await),
                Err(error) => tracing::debug!(%error, "handshake failed"),
            }
            // Until here: who is let in and not served yet counts as well.
            drop(permit);
        });
    }
}

async fn handshake(party: &Party, stream: TcpStream, now: Timestamp) -> io::Result<Accepted> {
    // Small answers are the rule, and each waits for the one before where this is not said.
    stream.set_nodelay(true)?;
    tokio::time::timeout(HANDSHAKE_MAX, party.accept(stream, now))
        .await
        .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))?
}

impl Stream for Incoming {
    type Item = io::Result<Accepted>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.accepted.poll_recv(cx).map(|accepted| accepted.map(Ok))
    }
}
