//! Connections as they come.

use mayfly_core::Status;
use mayfly_verify::{Authorize, Party, Refused};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant, timeout},
};
use tokio_stream::StreamExt as _;

use crate::common::{Authority, CALM, NOW, delta, hold, party, serial, view};

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_client_that_says_nothing_stops_nobody() {
    let (authority, view) = (Authority::new("example.org"), view(CALM));
    let server = party(authority.context("/a", serial(1).as_bytes()), &view);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut incoming = server.incoming(listener, || NOW);

    // More of them than a queue of one would bear; and one that says something else than TLS.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    silent[0].write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    // Whoever has ended is not handed over either.
    view.apply(&delta(1, 2, &[(3, Status::Revoked)]), Instant::now()).unwrap();
    let ended = party(authority.context("/c", serial(3).as_bytes()), &view);
    let stream = TcpStream::connect(address).await.unwrap();
    let turned_away = timeout(LONG, async {
        let mut stream = ended.connect(stream, NOW).await?;
        stream.read_u8().await
    });
    turned_away.await.unwrap().unwrap_err();

    let client = party(authority.context("/b", serial(2).as_bytes()), &view);
    let stream = TcpStream::connect(address).await.unwrap();
    let (near, far) = tokio::join!(incoming.next(), client.connect(stream, NOW));
    let (mut near, mut far) = (near.unwrap().unwrap(), far.unwrap());
    assert_eq!(near.peer().leaf.serial, Some(serial(2)));
    far.write_all(b"x").await.unwrap();
    far.flush().await.unwrap();
    assert_eq!(near.read_u8().await.unwrap(), b'x');

    // Nobody serves any more: the door is shut, and what was let in goes on.
    drop(incoming);
    let closed = timeout(LONG, async { while TcpStream::connect(address).await.is_ok() {} });
    closed.await.unwrap();
    far.write_all(b"y").await.unwrap();
    far.flush().await.unwrap();
    assert_eq!(near.read_u8().await.unwrap(), b'y');
}

#[tokio::test(start_paused = true)]
async fn a_party_with_less_patience_cuts_before_its_view_does() {
    const SECOND: Duration = Duration::from_secs(1);
    let view = view(mayfly_verify::Patience::Closed { after: 10 * SECOND });
    let authority = Authority::new("example.org");
    let held = hold(authority.context("/a", serial(1).as_bytes()));
    let hurried = Party::new(held.subscribe(), Authorize::Any, view.clone())
        .with_patience(mayfly_verify::Patience::Closed { after: 2 * SECOND });
    let peer = party(authority.context("/b", serial(2).as_bytes()), &view);
    let (near, far) = tokio::io::duplex(1 << 16);
    let (near, far) = tokio::join!(hurried.accept(near, NOW), peer.connect(far, NOW));
    let (mut near, _far) = (near.unwrap(), far.unwrap());
    let began = Instant::now();
    let error = near.read(&mut [0]).await.unwrap_err();
    let reason = error.get_ref().unwrap().downcast_ref::<Refused>().unwrap();
    assert_eq!((reason, began.elapsed().as_secs()), (&Refused::Dark, 2));
    // A new connection is judged by the same measure; the patient party goes on.
    let (near, far) = tokio::io::duplex(1 << 16);
    let (near, far) = tokio::join!(hurried.accept(near, NOW), peer.connect(far, NOW));
    near.map(drop).unwrap_err();
    drop(far);
    let (near, far) = tokio::io::duplex(1 << 16);
    let (near, far) = tokio::join!(peer.accept(near, NOW), peer.connect(far, NOW));
    near.map(drop).unwrap();
    far.map(drop).unwrap();
}
