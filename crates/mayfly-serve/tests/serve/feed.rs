//! The revocation feed.

use std::{sync::Arc, time::Duration};

use mayfly_core::{
    Change, Delta, Place, Position, RevocationSet, Sequence, Serial, Shard, Slot, Status,
    Timestamp, Window,
};
use mayfly_proto::mayfly::v1::{FollowRequest, FollowResponse, follow_response::Content};
use tonic::{Code, Streaming};

use crate::common::{Served, end, next, served, soon};

fn position(sequence: u64) -> Position {
    Position { shard: Shard(0), sequence: Sequence(sequence) }
}

fn place(slot: u32) -> Place {
    Place { window: Window(7), slot: Slot(slot) }
}

fn delta(from: u64, to: u64, slot: u32) -> Arc<Delta> {
    let changes = vec![Change::Place(place(slot), Status::Revoked)];
    Arc::new(Delta { from: position(from), to: position(to), changes })
}

async fn follow(served: &Served, heartbeat_ms: u32) -> Streaming<FollowResponse> {
    let mut client = served.follower().await;
    let stream =
        soon(client.follow(FollowRequest { heartbeat_ms, ..FollowRequest::default() })).await;
    stream.expect("anybody on the socket may follow").into_inner()
}

fn publish(served: &Served, delta: Arc<Delta>) {
    let mut set = served.desk.set.lock().expect("nobody panicked");
    assert!(set.apply(&delta));
    drop(set);
    let _followers = served.desk.deltas.send(delta);
}

async fn message(stream: &mut Streaming<FollowResponse>) -> Content {
    next(stream).await.content.expect("a message of a known kind")
}

#[tokio::test]
async fn a_follower_hears_a_snapshot_then_deltas_then_heartbeats() {
    let served = served().await;
    let serial = Serial::new(place(9), 1);
    let mut set = RevocationSet::at(position(5));
    set.take(Change::Place(place(3), Status::Suspended));
    set.take(Change::Serial(serial, Timestamp(99)));
    *served.desk.set.lock().expect("nobody panicked") = set;

    let mut stream = follow(&served, 100).await;
    let Content::SnapshotWas(snapshot) = message(&mut stream).await else { panic!("no snapshot") };
    assert_eq!((snapshot.position, snapshot.more), (5, false));
    let window = snapshot.windows.first().expect("one window");
    assert_eq!((window.window, window.statuses.as_ref()), (7, [0x80].as_slice()));
    let single = snapshot.serials.first().expect("one serial");
    assert_eq!((single.serial.as_slice(), single.until_ms), (serial.as_bytes().as_slice(), 99));

    publish(&served, delta(5, 8, 1));
    let Content::DeltaWas(heard) = message(&mut stream).await else { panic!("no delta") };
    assert_eq!((heard.from, heard.to), (5, 8));
    let change = heard.changes.first().expect("one change");
    assert_eq!((change.window, change.slot, change.status), (7, 1, 1));

    let Content::HeartbeatWas(beat) = message(&mut stream).await else { panic!("no heartbeat") };
    assert_eq!(beat.position, 8);
    assert!(beat.at_ms >= 1_800_000_000_000);
}

#[tokio::test]
async fn a_heartbeat_comes_no_faster_than_the_least_and_as_fast_as_asked() {
    let served = served().await;
    let mut stream = follow(&served, 1).await;
    drop(message(&mut stream).await);
    let begun = tokio::time::Instant::now();
    for _ in 0..3 {
        assert!(matches!(message(&mut stream).await, Content::HeartbeatWas(_)));
    }
    let took = begun.elapsed();
    assert!((Duration::from_millis(280)..Duration::from_millis(2_000)).contains(&took), "{took:?}");
}

/// What a follower that applies all it hears arrives at.
async fn catch_up(stream: &mut Streaming<FollowResponse>, goal: u64) -> (RevocationSet, usize) {
    let mut set = RevocationSet::default();
    let mut messages = 0;
    while set.position() != position(goal) {
        messages += 1;
        match message(stream).await {
            Content::SnapshotWas(snapshot) => {
                set = RevocationSet::at(position(snapshot.position));
                for window in snapshot.windows {
                    let bitmap = mayfly_core::Bitmap::from_packed(window.statuses.to_vec());
                    set.insert_window(Window(window.window), bitmap.expect("not too long"));
                }
            }
            Content::DeltaWas(delta) => {
                let changes = delta.changes.iter().map(|change| {
                    let status = u8::try_from(change.status).expect("two bits");
                    Change::Place(place(change.slot), Status::from_bits(status))
                });
                let delta = Delta {
                    from: position(delta.from),
                    to: position(delta.to),
                    changes: changes.collect(),
                };
                assert!(set.apply(&delta), "a hole in the feed");
            }
            Content::HeartbeatWas(beat) => assert_eq!(position(beat.position), set.position()),
            Content::Opening(_) | Content::Snapshot(_) | Content::Batches(_) => {}
        }
    }
    (set, messages)
}

#[tokio::test]
async fn a_follower_that_falls_behind_arrives_at_the_same_set_in_few_messages() {
    let served = served().await;
    let mut stream = follow(&served, 0).await;
    // The channel holds four; nothing lets the server run in between.
    for number in 0..500 {
        publish(&served, delta(number, number + 1, u32::try_from(number).expect("small")));
    }
    let (set, messages) = catch_up(&mut stream, 500).await;
    assert_eq!(set, *served.desk.set.lock().expect("nobody panicked"));
    assert!(messages < 20, "{messages}");
}

#[tokio::test]
async fn a_hole_between_deltas_is_healed_by_a_snapshot() {
    let served = served().await;
    let mut stream = follow(&served, 0).await;
    assert!(matches!(message(&mut stream).await, Content::SnapshotWas(_)));
    let mut set = RevocationSet::at(position(20));
    set.take(Change::Place(place(1), Status::Revoked));
    *served.desk.set.lock().expect("nobody panicked") = set;
    let _followers = served.desk.deltas.send(delta(19, 20, 1));
    let Content::SnapshotWas(snapshot) = message(&mut stream).await else { panic!("no snapshot") };
    assert_eq!(snapshot.position, 20);
}

#[tokio::test]
async fn a_large_snapshot_comes_in_parts_that_clients_accept() {
    let served = served().await;
    let mut set = RevocationSet::at(position(1));
    for window in 0..4 {
        let place = Place { window: Window(window), slot: Slot(5_000_000) };
        set.take(Change::Place(place, Status::Revoked));
    }
    *served.desk.set.lock().expect("nobody panicked") = set;
    let mut stream = follow(&served, 0).await;
    let mut windows = Vec::new();
    loop {
        let Content::SnapshotWas(part) = message(&mut stream).await else { panic!("no snapshot") };
        windows.extend(part.windows.iter().map(|window| window.window));
        if !part.more {
            break;
        }
    }
    assert_eq!(windows, [0, 1, 2, 3]);
}

#[tokio::test]
async fn the_feed_ends_with_unavailable_at_shutdown() {
    let served = served().await;
    let mut stream = follow(&served, 0).await;
    drop(message(&mut stream).await);
    let (status, ()) = tokio::join!(end(&mut stream), soon(served.doors.shut()));
    assert_eq!(status.code(), Code::Unavailable);
}
