//! An echo behind a guarded stream.

use std::io;

use futures_util::StreamExt as _;
use mayfly_core::Timestamp;
use mayfly_verify::{Accepted, Guarded, Party};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::client::TlsStream;

/// Answers everybody whom `party` lets in, for as long as it does.
pub(crate) async fn serve(
    party: &Party,
    listener: TcpListener,
    clock: impl Fn() -> Timestamp + Send + 'static,
) {
    let mut incoming = party.incoming(listener, clock);
    let mut connections = JoinSet::new();
    while let Some(Ok(stream)) = incoming.next().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(echo(stream));
    }
}

/// Ends with an error when the peer's task does, in the middle of a read or a write.
async fn echo(mut stream: Accepted) -> io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        let Some(heard) = buffer.get(..length).filter(|heard| !heard.is_empty()) else {
            return Ok(());
        };
        stream.write_all(heard).await?;
        stream.flush().await?;
    }
}

/// The client's end. It is guarded as well: a server whose task has ended is nobody to talk to.
pub(crate) type Called = Guarded<TlsStream<TcpStream>>;

pub(crate) async fn connect(party: &Party, address: &str, now: Timestamp) -> io::Result<Called> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    party.connect(stream, now).await
}

/// Says something and hears the same.
pub(crate) async fn exchange(stream: &mut Called, words: &[u8]) -> io::Result<()> {
    stream.write_all(words).await?;
    stream.flush().await?;
    let mut heard = vec![0; words.len()];
    stream.read_exact(&mut heard).await.map(drop)
}
