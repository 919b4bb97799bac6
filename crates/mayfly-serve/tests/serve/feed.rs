//! The revocation feed: what is told, to whom, when and how often. That a reader believes it, and only
//! it, is shown where the reader lives, in `mayfly-verify`.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mayfly_core::{
    Change, Delta, Place, Position, RevocationSet, Sequence, Serial, Shard, Slot, Status,
    Timestamp, Window, batch, limits::CHANGES_PER_BATCH_MAX,
};
use mayfly_proto::mayfly::v1::{
    self as wire, FollowRequest, FollowResponse, follow_response::Content,
};
use mayfly_serve::{
    Clock,
    desk::{Report, Use},
    feed::{
        chain::Hash,
        hub::{Hub, Means},
    },
    limits,
};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tonic::{Code, Streaming};

use crate::common::{Served, TestSeal, end, next, served, soon};

fn position(sequence: u64) -> Position {
    Position { shard: Shard(0), sequence: Sequence(sequence) }
}

fn place(slot: u32) -> Place {
    // A window that ends after the hour of these tests.
    Place { window: Window(3_000_000), slot: Slot(slot) }
}

fn ended(slots: impl IntoIterator<Item = u32>) -> Vec<Change> {
    slots.into_iter().map(|slot| Change::Place(place(slot), Status::Revoked)).collect()
}

/// Publishes the next record, and has it told.
fn publish(served: &Served, changes: Vec<Change>) {
    let hub = &served.desk.hub;
    let from = hub.read(|set| set.position().sequence.0);
    hub.publish(&Delta { from: position(from), to: position(from + 1), changes });
    hub.tell_pending();
}

fn request() -> FollowRequest {
    FollowRequest { nonce: vec![7; 16], ..FollowRequest::default() }
}

async fn follow(served: &Served, request: FollowRequest) -> Streaming<FollowResponse> {
    let mut client = served.follower().await;
    soon(client.follow(request)).await.expect("anybody on the socket may follow").into_inner()
}

/// The head of a message whose seal is good.
fn head(message: &FollowResponse) -> wire::Head {
    let sealed = message.sealed.as_ref().expect("a seal");
    assert_eq!(sealed.signature.as_ref(), TestSeal::signature(&sealed.kid, &sealed.head));
    wire::Head::decode(sealed.head.as_ref()).expect("a head")
}

fn opening(message: &FollowResponse) -> wire::Opening {
    let Some(Content::Opening(bytes)) = &message.content else { unreachable!("{message:?}") };
    assert_eq!(head(message).digest, hash(&[batch::OPENING_LABEL, bytes]));
    wire::Opening::decode(bytes.as_ref()).expect("an opening")
}

fn hash(pieces: &[&[u8]]) -> Hash {
    let mut hash = Sha256::new();
    pieces.iter().for_each(|piece| hash.update(piece));
    hash.finalize().into()
}

/// Reads the opening and the snapshot, which are to stand at `at`.
async fn begin(stream: &mut Streaming<FollowResponse>, at: u64) -> Vec<wire::SnapshotPart> {
    assert!(!opening(&next(stream).await).resumed);
    let (mut parts, mut digest) = (Vec::new(), Sha256::new());
    digest.update(batch::SNAPSHOT_LABEL);
    loop {
        let message = next(stream).await;
        let Some(Content::Snapshot(bytes)) = &message.content else { unreachable!("{message:?}") };
        let part = wire::SnapshotPart::decode(bytes.as_ref()).expect("a part");
        digest.update(u32::try_from(bytes.len()).expect("a small part").to_be_bytes());
        digest.update(bytes);
        let more = part.more;
        parts.push(part);
        if !more {
            let head = head(&message);
            assert_eq!((head.position, head.digest.as_slice()), (at, digest.finalize().as_slice()));
            return parts;
        }
        assert_eq!(message.sealed, None, "one seal vouches for all parts");
    }
}

/// The batches of a message, which join on to each other and end at its head.
fn batches(message: &FollowResponse) -> Vec<wire::Batch> {
    let Some(Content::Batches(batches)) = &message.content else { unreachable!("{message:?}") };
    let read = |body: &bytes::Bytes| wire::Batch::decode(body.as_ref()).expect("a batch");
    let read: Vec<_> = batches.bodies.iter().map(read).collect();
    for (pair, body) in read.windows(2).zip(&batches.bodies) {
        if let [one, other] = pair {
            assert_eq!(one.to, other.from);
            assert_eq!(other.prev_hash, hash(&[batch::BATCH_LABEL, body]).as_slice());
        }
    }
    let (head, last) = (head(message), batches.bodies.last().expect("not empty"));
    assert_eq!(head.hash, hash(&[batch::BATCH_LABEL, last]));
    assert_eq!(Some(head.position), read.last().map(|batch| batch.to));
    read
}

#[tokio::test]
async fn a_follower_hears_everything_then_each_change_then_heartbeats() {
    let served = served().await;
    let serial = Serial::new(place(9), 1);
    let single = Change::Serial(serial, Timestamp(u64::MAX));
    publish(&served, vec![Change::Place(place(3), Status::Suspended), single]);
    let request = FollowRequest { heartbeat_ms: 100, ..request() };
    let mut stream = follow(&served, request).await;
    let parts = begin(&mut stream, 1).await;
    let part = parts.first().expect("one part");
    let window = part.windows.first().expect("one window");
    assert_eq!(window.window, 3_000_000);
    // zlib's own words for the one byte 0x80.
    assert_eq!(window.statuses.first_chunk(), Some(&[0x78, 0x9c]));
    let single = part.serials.first().expect("one serial");
    assert_eq!((single.serial.as_slice(), single.until_ms), (&serial.as_bytes()[..], u64::MAX));

    publish(&served, ended([1]));
    let message = next(&mut stream).await;
    let told = batches(&message);
    assert_eq!((told[0].from, told[0].to), (1, 2));
    assert_eq!(batch::decode(&told[0].changes), Ok(ended([1])));

    let heartbeat = next(&mut stream).await;
    assert_eq!(heartbeat.content, None);
    let (beat, batch) = (head(&heartbeat), head(&message));
    assert_eq!((beat.position, &beat.hash), (2, &batch.hash));
    assert!(beat.at_ms >= 1_800_000_000_000 && beat.digest.is_empty() && beat.nonce.is_empty());
}

#[tokio::test]
async fn an_opening_brings_the_keys_and_answers_the_nonce() {
    let served = served().await;
    let mut stream = follow(&served, FollowRequest { nonce: vec![9; 64], ..request() }).await;
    let message = next(&mut stream).await;
    assert_eq!(opening(&message).jwks, b"keys");
    assert_eq!(head(&message).nonce, [9; 64]);
    for bad in [0, 15, 65] {
        let request = FollowRequest { nonce: vec![9; bad], ..request() };
        let refused = served.follower().await.follow(request).await.expect_err("a bad nonce");
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_heartbeat_comes_no_faster_than_the_least_and_as_fast_as_asked() {
    let served = served().await;
    let mut stream = follow(&served, FollowRequest { heartbeat_ms: 1, ..request() }).await;
    begin(&mut stream, 0).await;
    let begun = tokio::time::Instant::now();
    let mut clock = 0;
    for _ in 0..3 {
        let message = next(&mut stream).await;
        assert_eq!(message.content, None);
        let at = head(&message).at_ms;
        assert!(at > clock, "each says how late it is");
        clock = at;
    }
    let took = begun.elapsed();
    assert!((Duration::from_millis(280)..Duration::from_millis(2_000)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_heartbeat_is_never_made_while_there_is_something_to_tell() {
    let served = served().await;
    let request = FollowRequest { heartbeat_ms: 100, ..request() };
    let mut stream = follow(&served, request).await;
    begin(&mut stream, 0).await;
    // Published, and whoever tells it is late.
    let changes = ended([1]);
    served.desk.hub.publish(&Delta { from: position(0), to: position(1), changes });
    let early = tokio::time::timeout(Duration::from_millis(400), stream.message()).await;
    assert!(early.is_err(), "a heartbeat said that nothing happened: {early:?}");
    served.desk.hub.tell_pending();
    assert_eq!(batches(&next(&mut stream).await).len(), 1);
}

#[tokio::test]
async fn what_comes_while_a_batch_is_signed_is_one_batch() {
    let served = served().await;
    let mut stream = follow(&served, request()).await;
    begin(&mut stream, 0).await;
    for number in 0..500 {
        let changes = ended([u32::try_from(number % 7).expect("small")]);
        let delta = Delta { from: position(number), to: position(number + 1), changes };
        served.desk.hub.publish(&delta);
    }
    served.desk.hub.tell_pending();
    let told = batches(&next(&mut stream).await);
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].from, told[0].to), (0, 500));
    assert_eq!(batch::decode(&told[0].changes), Ok(ended(0..7)));
}

#[tokio::test]
async fn a_slow_follower_hears_many_batches_in_one_message() {
    let served = served().await;
    let mut stream = follow(&served, request()).await;
    begin(&mut stream, 0).await;
    // Nothing lets the server run in between.
    (0..500).for_each(|slot| publish(&served, ended([slot])));
    let (mut reached, mut messages) = (0, 0);
    while reached < 500 {
        let told = batches(&next(&mut stream).await);
        assert_eq!(told.first().map(|batch| batch.from), Some(reached));
        reached = told.last().map_or(0, |batch| batch.to);
        messages += 1;
    }
    assert!(messages < 5, "{messages}");
}

#[tokio::test]
async fn a_paced_follower_is_told_at_once_after_a_quiet_time_and_no_oftener_than_it_asked() {
    let served = served().await;
    let paced = FollowRequest { pace_ms: 400, ..request() };
    let mut stream = follow(&served, paced).await;
    begin(&mut stream, 0).await;
    let begun = tokio::time::Instant::now();
    publish(&served, ended([1]));
    assert_eq!(batches(&next(&mut stream).await).len(), 1);
    assert!(begun.elapsed() < Duration::from_millis(300), "{:?}", begun.elapsed());
    publish(&served, ended([2]));
    publish(&served, ended([3]));
    assert_eq!(batches(&next(&mut stream).await).len(), 2);
    assert!(begun.elapsed() >= Duration::from_millis(390), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_follower_that_was_here_before_goes_on_from_there() {
    let served = served().await;
    publish(&served, ended([1]));
    let mut stream = follow(&served, request()).await;
    begin(&mut stream, 1).await;
    publish(&served, ended([2]));
    let message = next(&mut stream).await;
    let standing = head(&message);
    drop(stream);
    publish(&served, ended([3]));
    publish(&served, ended([4]));
    let resume = wire::Resume { shard: 0, position: 2, hash: standing.hash.clone() };
    let mut stream = follow(&served, FollowRequest { resume: Some(resume), ..request() }).await;
    assert!(opening(&next(&mut stream).await).resumed);
    let told = batches(&next(&mut stream).await);
    assert_eq!(told.len(), 2);
    assert_eq!(told[0].prev_hash, standing.hash);
}

#[tokio::test]
async fn whoever_was_somewhere_else_starts_over() {
    let served = served().await;
    publish(&served, ended([1]));
    publish(&served, ended([2]));
    for (shard, position, hash) in [
        (0, 1, vec![1; 32]),
        (0, 9, vec![1; 32]),
        (7, 1, vec![1; 32]),
        (70_000, 1, vec![]),
        (0, 2, vec![]),
    ] {
        let resume = Some(wire::Resume { shard, position, hash });
        let mut stream = follow(&served, FollowRequest { resume, ..request() }).await;
        begin(&mut stream, 2).await;
    }
}

#[tokio::test]
async fn whoever_is_too_far_behind_starts_over_and_so_does_everybody_after_a_flood() {
    let served = served().await;
    let mut slow = follow(&served, request()).await;
    begin(&mut slow, 0).await;
    let flood = 0..u32::try_from(CHANGES_PER_BATCH_MAX + 1).expect("it fits");
    publish(&served, ended(flood.clone()));
    let message = next(&mut slow).await;
    assert!(matches!(message.content, Some(Content::Snapshot(_))), "too many to be told singly");
    assert_eq!(head(&message).position, 1);
    // And goes on from there.
    publish(&served, ended([flood.end]));
    assert_eq!(batches(&next(&mut slow).await).len(), 1);
}

#[tokio::test]
async fn the_history_has_a_bound_and_what_falls_out_of_it_is_told_by_a_snapshot() {
    let served = served().await;
    let mut stream = follow(&served, request()).await;
    begin(&mut stream, 0).await;
    publish(&served, ended([1]));
    let standing = head(&next(&mut stream).await);
    drop(stream);
    // Serials are what takes most room.
    let all = u64::try_from(CHANGES_PER_BATCH_MAX).expect("it fits");
    let one_batch = CHANGES_PER_BATCH_MAX * 18;
    let rounds = u64::try_from(limits::HISTORY_BYTES_MAX / one_batch + 2).expect("a few");
    for round in 0..rounds {
        let serials = (0..all).map(|n| Serial::new(place(0), round * all + n));
        publish(&served, serials.map(|serial| Change::Serial(serial, Timestamp(1))).collect());
    }
    let resume = Some(wire::Resume { shard: 0, position: 1, hash: standing.hash });
    let mut stream = follow(&served, FollowRequest { resume, ..request() }).await;
    assert!(!opening(&next(&mut stream).await).resumed);
}

/// A hub, and the instant that its clocks show.
fn at_an_instant() -> (Arc<Hub>, Arc<AtomicU64>) {
    let now = Arc::new(AtomicU64::new(1_790_000_000_000));
    let shown = Arc::clone(&now);
    let clock: Clock = Arc::new(move || Timestamp(shown.load(Ordering::Relaxed)));
    let seal = Arc::new(TestSeal(Mutex::new("one")));
    let means = Means { seal, steady: Arc::clone(&clock), wall: clock };
    (Hub::new(RevocationSet::default(), means), now)
}

/// For months nobody new may come to follow: then nothing but the end of a task moves the feed.
#[test]
fn windows_that_are_over_go_also_where_nobody_comes_to_follow() {
    let (hub, now) = at_an_instant();
    for sequence in 0..200 {
        let at = Timestamp(now.fetch_add(60_000, Ordering::Relaxed));
        let place = Place { window: Window::of(at), slot: Slot(1) };
        let changes = vec![Change::Place(place, Status::Revoked)];
        hub.publish(&Delta { from: position(sequence), to: position(sequence + 1), changes });
        hub.tell_pending();
    }
    let windows = hub.read(|set| set.windows().count());
    assert!((1..=3).contains(&windows), "{windows} of ten minutes each, after 200 minutes");
}

#[tokio::test]
async fn a_snapshot_is_made_once_for_many_and_what_came_since_follows() {
    let served = served().await;
    publish(&served, ended([1]));
    let mut one = follow(&served, request()).await;
    let first = begin(&mut one, 1).await;
    publish(&served, ended([2]));
    let mut other = follow(&served, request()).await;
    assert_eq!(begin(&mut other, 1).await, first);
    assert_eq!(batches(&next(&mut other).await).len(), 1);
}

#[tokio::test]
async fn a_large_snapshot_comes_in_parts_that_clients_accept() {
    let served = served().await;
    for round in 0..2 {
        let all = u64::try_from(CHANGES_PER_BATCH_MAX).expect("it fits");
        let serials = (0..all).map(|n| Serial::new(place(0), round * all + n));
        let until = Timestamp(u64::MAX);
        publish(&served, serials.map(|serial| Change::Serial(serial, until)).collect());
    }
    let mut stream = follow(&served, request()).await;
    let parts = begin(&mut stream, 2).await;
    assert!(parts.len() > 1);
    assert_eq!(
        parts.iter().map(|part| part.serials.len()).sum::<usize>(),
        2 * CHANGES_PER_BATCH_MAX
    );
    assert!(parts.iter().all(|part| part.encoded_len() < limits::RESPONSE_BYTES_MAX));
}

#[tokio::test]
async fn what_an_older_key_sealed_is_sealed_anew_when_it_is_told() {
    let served = served().await;
    publish(&served, ended([1]));
    let mut stream = follow(&served, request()).await;
    begin(&mut stream, 1).await;
    publish(&served, ended([2]));
    *served.desk.seal.0.lock().expect("nobody panicked") = "two";
    let message = next(&mut stream).await;
    assert_eq!(batches(&message).len(), 1);
    assert_eq!(message.sealed.expect("a seal").kid, "two");
}

#[tokio::test]
async fn nothing_is_told_without_a_seal() {
    let served = served().await;
    let mut stream = follow(&served, FollowRequest { heartbeat_ms: 100, ..request() }).await;
    begin(&mut stream, 0).await;
    *served.desk.seal.0.lock().expect("nobody panicked") = "none";
    publish(&served, ended([1]));
    assert_eq!(end(&mut stream).await.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_delta_that_was_lost_on_the_way_silences_the_feed() {
    let served = served().await;
    let mut stream = follow(&served, FollowRequest { heartbeat_ms: 100, ..request() }).await;
    begin(&mut stream, 0).await;
    served.desk.hub.publish(&Delta { from: position(5), to: position(6), changes: ended([1]) });
    served.desk.hub.tell_pending();
    let said = tokio::time::timeout(Duration::from_millis(500), stream.message()).await;
    assert!(said.is_err(), "{said:?}");
}

#[tokio::test]
async fn the_feed_ends_with_unavailable_at_shutdown() {
    let served = served().await;
    let mut stream = follow(&served, request()).await;
    begin(&mut stream, 0).await;
    let (status, ()) = tokio::join!(end(&mut stream), soon(served.doors.shut()));
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn r21_a_report_reaches_the_desk_and_a_bad_one_does_not() {
    let served = served().await;
    let serial = Serial::new(place(9), 1);
    let good = wire::ReportRequest {
        serial: serial.as_bytes().to_vec(),
        spiffe_id: "spiffe://example.org/w/1".to_owned(),
        r#use: wire::Use::AfterEnd.into(),
        presenter: "10.0.0.7:443".to_owned(),
        at_ms: 1_800_000_000_000,
        verifier: "payments".to_owned(),
    };
    let mut client = served.follower().await;
    soon(client.report(good.clone())).await.expect("a good report");
    for bad in [
        wire::ReportRequest { serial: vec![1; 16], ..good.clone() },
        wire::ReportRequest { spiffe_id: "example.org".to_owned(), ..good.clone() },
        wire::ReportRequest { r#use: 0, ..good.clone() },
        wire::ReportRequest { r#use: 77, ..good.clone() },
        wire::ReportRequest { presenter: "x".repeat(2049), ..good.clone() },
    ] {
        let refused = soon(client.report(bad.clone())).await.expect_err("a bad report");
        assert_eq!(refused.code(), Code::InvalidArgument, "{bad:?}");
    }
    let reports = std::mem::take(&mut *served.desk.reports.lock().expect("nobody panicked"));
    let [Report { serial: heard, usage, verifier, sender, user, .. }] = &reports[..] else {
        panic!("{reports:?}")
    };
    assert_eq!((heard, *usage, verifier.as_str()), (&Some(serial), Use::AfterEnd, "payments"));
    assert_eq!((sender, *user), (&None, rustix_uid()));
}

/// Who we are, as the kernel tells the other side.
fn rustix_uid() -> u32 {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").expect("procfs"))
}

/// What each stream costs must not grow with what is told on it.
#[test]
fn a_follower_holds_a_place_and_nothing_of_what_is_said() {
    assert!(size_of::<mayfly_serve::feed::follower::Follower>() < 512);
    assert!(size_of::<Arc<Hub>>() == size_of::<usize>());
}
