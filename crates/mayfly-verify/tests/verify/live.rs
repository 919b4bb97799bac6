//! What becomes of a connection whose peer's task ends while it is open.

use std::{io, sync::Arc};

use crate::common::{Authority, CALM, NOW, at, delta, party, serial, view};
use mayfly_core::{RevocationSet, Span, Status, Timestamp};
use mayfly_verify::{Endpoint, Follower, Guarded, Patience, Peer, Refused, View, X509Context};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    time::{Duration, Instant},
};
use tokio_rustls::server::TlsStream;

type Served = Guarded<TlsStream<DuplexStream>>;
type Called = Guarded<tokio_rustls::client::TlsStream<DuplexStream>>;

/// A server (slot 1) and a client (slot 2) that have shaken hands.
async fn connected(view: &Arc<View>) -> (Served, Called) {
    let authority = Authority::new("example.org");
    let side = |path, slot| party(authority.context(path, serial(slot).as_bytes()), view);
    let (server, client) = (side("/a", 1), side("/b", 2));
    let (near, far) = tokio::io::duplex(1 << 16);
    let (near, far) = tokio::join!(server.accept(near, NOW), client.connect(far, NOW));
    (near.expect("accepted"), far.expect("connected"))
}

fn reason(error: &io::Error) -> Refused {
    let inner = error.get_ref().expect("a reason");
    inner.downcast_ref::<Refused>().expect("ours").clone()
}

#[tokio::test]
async fn a_pending_read_is_woken_when_the_peers_task_ends() {
    for (status, expected) in
        [(Status::Revoked, Refused::Revoked), (Status::Suspended, Refused::Suspended)]
    {
        let view = view(CALM);
        let (mut server, _client) = connected(&view).await;
        let mut byte = [0];
        let (read, ()) = tokio::join!(server.read(&mut byte), async {
            // `join` polls in order, so the read is pending by now.
            view.apply(&delta(1, 2, &[(2, status)]), Instant::now()).unwrap();
        });
        let error = read.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(reason(&error), expected);
    }
}

#[tokio::test]
async fn a_pending_write_is_woken_beside_a_pending_read() {
    let view = view(CALM);
    let (server, _client) = connected(&view).await;
    let (mut reader, mut writer) = tokio::io::split(server);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move { reader.read(&mut [0]).await.map(|_| ()) });
    // Nobody reads at the other end, so this fills every buffer and waits.
    tasks.spawn(async move { writer.write_all(&vec![0; 8 << 20]).await });
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
    view.apply(&delta(1, 2, &[(2, Status::Revoked)]), Instant::now()).unwrap();
    while let Some(outcome) = tasks.join_next().await {
        assert_eq!(reason(&outcome.unwrap().unwrap_err()), Refused::Revoked);
    }
}

#[tokio::test]
async fn what_was_sent_before_the_end_is_not_delivered_after_it() {
    let view = view(CALM);
    let (mut server, mut client) = connected(&view).await;
    client.write_all(b"too late").await.unwrap();
    client.flush().await.unwrap();
    view.apply(&delta(1, 2, &[(2, Status::Revoked)]), Instant::now()).unwrap();
    assert!(server.read(&mut [0; 8]).await.is_err());
    assert!(server.write_all(b"x").await.is_err());
    assert!(server.flush().await.is_err());
    server.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_end_cuts_its_own_connections_and_no_others() {
    let view = view(CALM);
    let (mut server, mut client) = connected(&view).await;
    view.apply(&delta(1, 2, &[(3, Status::Revoked)]), Instant::now()).unwrap();
    client.write_all(b"x").await.unwrap();
    client.flush().await.unwrap();
    server.read_exact(&mut [0]).await.unwrap();
    assert_eq!(server.refused(), None);
    assert_eq!(view.guarded(), 2);
    drop((server, client));
    assert_eq!(view.guarded(), 0, "a connection that is gone leaves nothing behind");
}

#[tokio::test]
async fn a_snapshot_cuts_as_a_delta_does() {
    let view = view(CALM);
    let (mut server, _client) = connected(&view).await;
    let mut later = RevocationSet::at(at(9));
    later.insert_window(
        crate::common::place(2).window,
        crate::common::bitmap(&[(2, Status::Revoked)]),
    );
    view.replace(later, Instant::now()).unwrap();
    assert_eq!(reason(&server.read(&mut [0]).await.unwrap_err()), Refused::Revoked);
}

#[tokio::test]
async fn an_end_between_handshake_and_guard_is_not_missed() {
    let view = view(CALM);
    let authority = Authority::new("example.org");
    let context = authority.context("/a", serial(1).as_bytes());
    let leaf = context.default_svid().unwrap().leaf.clone();
    let party = party(context, &view);
    view.apply(&delta(1, 2, &[(1, Status::Revoked)]), Instant::now()).unwrap();
    let (near, _far) = tokio::io::duplex(8);
    let guarded = party.guard(near, Peer { leaf, own: true }, NOW);
    assert_eq!(guarded.map(|_| ()), Err(Refused::Revoked));
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_with_its_certificate() {
    let view = view(Patience::Closed { after: Duration::MAX });
    let authority = Authority::new("example.org");
    let context: X509Context = authority.context("/a", serial(1).as_bytes());
    let leaf = context.default_svid().unwrap().leaf.clone();
    let now: Timestamp = leaf.not_after.minus(Span::from_secs(5));
    let (near, _far) = tokio::io::duplex(8);
    let guarded = party(context, &view).guard(near, Peer { leaf, own: true }, now);
    let (mut reader, mut writer) = tokio::io::split(guarded.unwrap());
    let began = Instant::now();
    let (read, written) = tokio::join!(reader.read_u8(), writer.write_all(&[0; 64]));
    assert_eq!(reason(&read.unwrap_err()), Refused::OutOfDate);
    assert_eq!(reason(&written.unwrap_err()), Refused::OutOfDate);
    assert_eq!(began.elapsed().as_secs(), 5);
}

/// Nobody is behind this endpoint: the test speaks in the feed's place, then falls silent.
fn follower(patience: Patience) -> Follower {
    let follower = Follower::connect(&Endpoint::Unix("/nonexistent/feed.sock".into()), patience);
    let first = RevocationSet::at(at(1));
    follower.view().replace(first, Instant::now()).expect("the first snapshot");
    follower
}

#[tokio::test(start_paused = true)]
async fn a_live_connection_is_cut_when_patience_ends() {
    const SECOND: Duration = Duration::from_secs(1);
    for (patience, seconds) in [
        (Patience::Closed { after: 3 * SECOND }, 3),
        (Patience::Grace { after: 3 * SECOND, then: 7 * SECOND }, 10),
    ] {
        let follower = follower(patience);
        let (mut server, _client) = connected(follower.view()).await;
        let began = Instant::now();
        let error = server.read(&mut [0]).await.unwrap_err();
        assert_eq!(reason(&error), Refused::Dark);
        assert_eq!(began.elapsed().as_secs(), seconds, "{patience:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_renews_patience() {
    let follower = follower(Patience::Closed { after: Duration::from_secs(3) });
    let (mut server, _client) = connected(follower.view()).await;
    let began = Instant::now();
    let mut byte = [0];
    let mut read = Box::pin(server.read(&mut byte));
    for _ in 0..5 {
        let wait = tokio::time::timeout(Duration::from_secs(2), &mut read).await;
        assert!(wait.is_err(), "cut although the feed spoke");
        follower.view().beat(at(1), Timestamp(0), Instant::now()).unwrap();
    }
    assert_eq!(reason(&read.await.unwrap_err()), Refused::Dark);
    assert_eq!(began.elapsed().as_secs(), 13);
}

#[tokio::test]
async fn a_follower_that_is_dropped_leaves_the_dark_behind() {
    let follower = follower(CALM);
    let view = follower.view().clone();
    let (mut server, _client) = connected(&view).await;
    drop(follower);
    assert_eq!(reason(&server.read(&mut [0]).await.unwrap_err()), Refused::Dark);
    assert_eq!(view.admit(&serial(2)), Err(Refused::Dark));
}
