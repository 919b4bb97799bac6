//! The reader against somebody who has all messages and no key: R18, and each attack by its name.

use std::sync::Arc;

use crate::{
    broker::{House, Key},
    common::{CALM, at, place, serial},
};
use mayfly_core::{
    Change, RevocationSet, Status, Timestamp,
    batch::{OPENING_LABEL, SEAL_LABEL},
};
use mayfly_proto::mayfly::v1::{self as wire, FollowResponse, follow_response::Content};
use mayfly_serve::feed::follower::Follower;
use mayfly_verify::{
    View,
    reader::{Flaw, News, Reader, Vouch},
};
use proptest::{collection::vec, prelude::*};
use prost::Message as _;
use tokio::time::Instant;

const NONCE: [u8; 32] = [7; 32];

fn ended(slot: u32) -> Vec<Change> {
    vec![Change::Place(place(slot), Status::Revoked)]
}

/// A reader, a stream for it, and the keys that it knows.
struct Stream {
    reader: Reader,
    feed: Follower,
    keys: mayfly_verify::JwkSet,
}

impl Stream {
    fn with(house: &Arc<House>, reader: Reader) -> Self {
        let feed = house.hub.follow(reader.request(100, 0)).expect("a good request");
        Self { reader, feed, keys: house.key().set() }
    }

    fn new(house: &Arc<House>) -> Self {
        Self::with(house, Reader::new(NONCE.to_vec(), None))
    }

    async fn message(&mut self) -> FollowResponse {
        self.feed.next().await.expect("the hub speaks")
    }

    fn take(&mut self, message: FollowResponse) -> Result<News, Flaw> {
        self.reader.take(message, Some(&self.keys))
    }

    /// Reads the opening and everything.
    async fn begin(&mut self) -> RevocationSet {
        loop {
            let message = self.message().await;
            match self.take(message).expect("an honest stream") {
                News::Opened { .. } | News::Part => {}
                News::Everything { set, .. } => return set,
                News::Changes { .. } | News::Nothing { .. } => unreachable!("not in a snapshot"),
            }
        }
    }
}

/// A house, and a stream that was read up to its end.
async fn begun() -> (Arc<House>, Stream) {
    let house = House::new();
    house.publish(ended(1));
    let mut stream = Stream::new(&house);
    stream.begin().await;
    (house, stream)
}

fn bodies(message: &FollowResponse) -> Vec<bytes::Bytes> {
    match &message.content {
        Some(Content::Batches(batches)) => batches.bodies.clone(),
        other => unreachable!("{other:?}"),
    }
}

fn with_bodies(message: FollowResponse, bodies: Vec<bytes::Bytes>) -> FollowResponse {
    FollowResponse { content: Some(Content::Batches(wire::Batches { bodies })), ..message }
}

fn head(message: &FollowResponse) -> wire::Head {
    let sealed = message.sealed.clone().expect("a seal");
    wire::Head::decode(sealed.head.as_ref()).expect("a head")
}

fn reseal(message: &mut FollowResponse, head: &wire::Head, key: &Key, label: &[u8]) {
    let sealed = message.sealed.as_mut().expect("a seal");
    sealed.head = head.encode_to_vec().into();
    sealed.signature = key.sign(label, &sealed.head).into();
}

#[tokio::test]
async fn an_honest_stream_is_believed() {
    let (house, mut stream) = begun().await;
    house.publish(ended(2));
    house.publish(ended(3));
    let message = stream.message().await;
    assert_eq!(bodies(&message).len(), 2, "one message, one seal, two batches");
    let News::Changes { deltas, .. } = stream.take(message).unwrap() else { panic!("no changes") };
    assert_eq!(deltas.iter().map(|delta| delta.to).collect::<Vec<_>>(), [at(3), at(4)]);
    let message = stream.message().await;
    assert_eq!(message.content, None, "a heartbeat");
    assert!(
        matches!(stream.take(message), Ok(News::Nothing { position, .. }) if position == at(4))
    );
}

#[tokio::test]
async fn r18_a_forged_batch_is_refused() {
    let (house, mut stream) = begun().await;
    house.publish(ended(2));
    let message = stream.message().await;
    // Nobody ended, says the relay: the same batch without its changes.
    let mut body = wire::Batch::decode(bodies(&message)[0].as_ref()).unwrap();
    body.changes = vec![0, 0].into();
    let forged = with_bodies(message, vec![body.encode_to_vec().into()]);
    assert_eq!(stream.take(forged), Err(Flaw::Fork(at(3))));
}

#[tokio::test]
async fn r18_a_forged_head_is_refused_whoever_signs_it() {
    for (key, label, flaw) in [
        (Key::new("one"), SEAL_LABEL, Flaw::Forged("one".into())),
        // Made by a signer that would sign anything but under our label.
        (Key::new("one"), b"".as_slice(), Flaw::Forged("one".into())),
    ] {
        let (house, mut stream) = begun().await;
        house.publish(ended(2));
        let mut message = stream.message().await;
        let head = wire::Head { position: 4, ..head(&message) };
        reseal(&mut message, &head, &key, label);
        assert_eq!(stream.take(message), Err(flaw));
    }
}

#[tokio::test]
async fn a_signature_of_the_right_key_for_something_else_is_no_seal() {
    let (house, mut stream) = begun().await;
    let mut message = stream.message().await;
    let head = head(&message);
    // What this key signs elsewhere are tokens, and they begin with `ey`.
    reseal(&mut message, &head, &house.key(), b"ey");
    assert_eq!(stream.take(message), Err(Flaw::Forged("one".into())));
}

#[tokio::test]
async fn r18_a_forged_heartbeat_is_refused() {
    let (house, mut stream) = begun().await;
    let mut message = stream.message().await;
    let later = wire::Head { at_ms: head(&message).at_ms + 60_000, ..head(&message) };
    message.sealed.as_mut().unwrap().head = later.encode_to_vec().into();
    assert_eq!(stream.take(message), Err(Flaw::Forged("one".into())));
    drop(house);
}

#[tokio::test]
async fn a_heartbeat_without_a_seal_is_refused() {
    let (_house, mut stream) = begun().await;
    let message = FollowResponse { sealed: None, ..stream.message().await };
    assert_eq!(stream.take(message), Err(Flaw::Unsealed));
}

#[tokio::test]
async fn r18_swapped_batches_are_refused() {
    let (house, mut stream) = begun().await;
    (2..5).for_each(|slot| house.publish(ended(slot)));
    let message = stream.message().await;
    let mut swapped = bodies(&message);
    swapped.swap(0, 1);
    let flaw = Flaw::Gap { at: at(2), from: at(3) };
    assert_eq!(stream.take(with_bodies(message, swapped)), Err(flaw));
}

#[tokio::test]
async fn r18_a_batch_dropped_from_the_middle_is_missed() {
    let (house, mut stream) = begun().await;
    (2..5).for_each(|slot| house.publish(ended(slot)));
    let message = stream.message().await;
    let mut fewer = bodies(&message);
    fewer.remove(1);
    let flaw = Flaw::Gap { at: at(3), from: at(4) };
    assert_eq!(stream.take(with_bodies(message, fewer)), Err(flaw));
}

#[tokio::test]
async fn r18_a_batch_dropped_from_the_end_is_missed() {
    let (house, mut stream) = begun().await;
    (2..5).for_each(|slot| house.publish(ended(slot)));
    let message = stream.message().await;
    let mut fewer = bodies(&message);
    fewer.pop();
    let flaw = Flaw::Elsewhere { at: at(4), said: at(5) };
    assert_eq!(stream.take(with_bodies(message, fewer)), Err(flaw));
}

#[tokio::test]
async fn r18_a_dropped_message_is_missed_at_the_next_heartbeat() {
    let (house, mut stream) = begun().await;
    house.publish(ended(2));
    drop(stream.message().await);
    let heartbeat = stream.message().await;
    assert_eq!(heartbeat.content, None);
    assert_eq!(stream.take(heartbeat), Err(Flaw::Elsewhere { at: at(2), said: at(3) }));
}

#[tokio::test]
async fn r18_a_heartbeat_stripped_of_its_batches_is_missed() {
    let (house, mut stream) = begun().await;
    house.publish(ended(2));
    let stripped = FollowResponse { content: None, ..stream.message().await };
    assert_eq!(stream.take(stripped), Err(Flaw::Elsewhere { at: at(2), said: at(3) }));
}

#[tokio::test]
async fn a_repeated_batch_is_refused_and_what_was_read_stands() {
    let (house, mut stream) = begun().await;
    house.publish(ended(2));
    let message = stream.message().await;
    assert!(stream.take(message.clone()).is_ok());
    let standing = stream.reader.standing();
    assert_eq!(stream.take(message), Err(Flaw::Gap { at: at(3), from: at(2) }));
    assert_eq!(stream.reader.standing(), standing);
    let next = stream.message().await;
    assert_eq!(stream.take(next), Err(Flaw::GivenUp), "a stream with a flaw is over");
}

/// What a frozen relay still has are messages of before: they are true, and they say when they were.
#[tokio::test]
async fn a_heartbeat_shown_again_says_that_it_is_old() {
    let (house, mut stream) = begun().await;
    let heartbeat = stream.message().await;
    let first = stream.take(heartbeat.clone());
    house.pass(60_000);
    assert_eq!(stream.take(heartbeat), first, "no younger than the first time");
    let fresh = stream.message().await;
    let (Ok(News::Nothing { at: old, .. }), Ok(News::Nothing { at: new, .. })) =
        (first, stream.take(fresh))
    else {
        panic!("no heartbeats")
    };
    assert!(new >= Timestamp(old.0 + 60_000));
}

#[tokio::test]
async fn yesterdays_recording_is_no_answer_to_todays_request() {
    let (house, mut yesterday) = begun().await;
    let mut recording = Stream::new(&house);
    let mut messages = vec![recording.message().await, recording.message().await];
    messages.push(yesterday.message().await);
    house.publish(ended(2));
    let mut today = Reader::new(vec![8; 32], None);
    let keys = house.key().set();
    let played: Vec<_> =
        messages.into_iter().map(|message| today.take(message, Some(&keys))).collect();
    assert_eq!(played, [Err(Flaw::NotOurs), Err(Flaw::GivenUp), Err(Flaw::GivenUp)]);
}

#[tokio::test]
async fn an_opening_cannot_be_made_to_say_something_else() {
    let house = House::new();
    let mut stream = Stream::new(&house);
    let mut message = stream.message().await;
    let theirs = wire::Opening { jwks: Key::new("one").jwks(), resumed: false };
    message.content = Some(Content::Opening(theirs.encode_to_vec().into()));
    assert_eq!(stream.take(message), Err(Flaw::Swapped));
    assert!(OPENING_LABEL.ends_with(&[0]), "a label is never the beginning of another");
}

#[tokio::test]
async fn nothing_comes_before_the_opening_or_instead_of_everything() {
    let (house, mut other) = begun().await;
    let heartbeat = other.message().await;
    let mut stream = Stream::new(&house);
    assert!(matches!(stream.take(heartbeat.clone()), Err(Flaw::OutOfTurn(_))));
    let mut stream = Stream::new(&house);
    let opening = stream.message().await;
    assert!(stream.take(opening).is_ok());
    assert!(matches!(stream.take(heartbeat), Err(Flaw::OutOfTurn(_))));
}

/// A house with so much in it that its snapshot has parts.
fn large() -> Arc<House> {
    let mut set = RevocationSet::at(at(1));
    for number in 0..120_000 {
        let serial = mayfly_core::Serial::new(place(number % 1000), number.into());
        set.take(Change::Serial(serial, Timestamp(u64::MAX)));
    }
    House::of(set)
}

#[tokio::test]
async fn r18_a_truncated_snapshot_is_refused() {
    let house = large();
    let mut stream = Stream::new(&house);
    let opening = stream.message().await;
    assert!(stream.take(opening).is_ok());
    let first = stream.message().await;
    assert_eq!(first.sealed, None, "more than one part");
    let second = stream.message().await;
    assert!(second.sealed.is_some());
    // The last part with its seal, and without the one before it.
    assert_eq!(stream.take(second), Err(Flaw::Swapped));
}

#[tokio::test]
async fn a_snapshot_that_breaks_off_is_none() {
    let house = large();
    let mut stream = Stream::new(&house);
    let opening = stream.message().await;
    assert!(stream.take(opening).is_ok());
    let first = stream.message().await;
    assert_eq!(stream.take(first), Ok(News::Part));
    assert_eq!(stream.reader.standing(), None);
    let (_house, mut other) = begun().await;
    let heartbeat = other.message().await;
    assert!(matches!(stream.take(heartbeat), Err(Flaw::OutOfTurn(_))));
}

#[tokio::test]
async fn r18_a_flipped_bit_anywhere_in_a_snapshot_is_refused() {
    let house = House::new();
    (0..40).for_each(|slot| house.publish(ended(slot * 3)));
    let mut stream = Stream::new(&house);
    let opening = stream.message().await;
    let snapshot = stream.message().await;
    let Some(Content::Snapshot(part)) = snapshot.content.clone() else { panic!("no snapshot") };
    for at in 0..part.len() {
        let mut flipped = part.to_vec();
        flipped[at] ^= 1;
        let mut reader = Reader::new(NONCE.to_vec(), None);
        reader.take(opening.clone(), Some(&stream.keys)).unwrap();
        let content = Some(Content::Snapshot(flipped.into()));
        let taken = reader.take(FollowResponse { content, ..snapshot.clone() }, Some(&stream.keys));
        assert_eq!(taken, Err(Flaw::Swapped), "byte {at}");
        assert_eq!(reader.standing(), None);
    }
}

#[tokio::test]
async fn a_key_that_is_not_known_is_named() {
    let (house, mut stream) = begun().await;
    house.rotate("two");
    house.publish(ended(2));
    let message = stream.message().await;
    assert_eq!(stream.take(message), Err(Flaw::UnknownKey("two".into())));
    // Whoever has been there before and knows the new key goes on, with batches that the old one
    // sealed: they are sealed anew when they are told.
    house.publish(ended(3));
    let reader = Reader::new(vec![9; 32], stream.reader.standing());
    let mut again = Stream::with(&house, reader);
    let opening = again.message().await;
    assert!(matches!(again.take(opening), Ok(News::Opened { resumed: true, .. })));
    let message = again.message().await;
    assert!(matches!(again.take(message), Ok(News::Changes { deltas, .. }) if deltas.len() == 2));
}

#[tokio::test]
async fn a_follower_whose_past_the_broker_remembers_is_told_what_it_missed_and_no_more() {
    let (house, mut stream) = begun().await;
    (2..50).for_each(|slot| house.publish(ended(slot)));
    let reader = Reader::new(vec![9; 32], stream.reader.standing());
    let mut again = Stream::with(&house, reader);
    let opening = again.message().await;
    assert!(matches!(again.take(opening), Ok(News::Opened { resumed: true, .. })));
    let message = again.message().await;
    let News::Changes { deltas, .. } = again.take(message).unwrap() else { panic!("no changes") };
    assert_eq!((deltas[0].from, deltas[47].to), (at(2), at(50)));
    assert!(stream.message().await.content.is_some());
}

#[tokio::test]
async fn a_follower_whose_past_the_broker_does_not_remember_is_told_everything() {
    let (_old, stream) = begun().await;
    // Another run of the broker: the same position, another chain.
    let house = House::new();
    (5..8).for_each(|slot| house.publish(ended(slot)));
    let reader = Reader::new(vec![9; 32], stream.reader.standing());
    let mut again = Stream::with(&house, reader);
    let opening = again.message().await;
    assert!(matches!(again.take(opening), Ok(News::Opened { resumed: false, .. })));
    let message = again.message().await;
    assert!(matches!(again.take(message), Ok(News::Everything { .. })));
}

/// The broker shares a snapshot among many, so it may be older than what this follower knows.
#[tokio::test]
async fn what_is_told_anew_is_shown_once_it_is_no_older_than_what_was_shown() {
    let (house, mut stream) = begun().await;
    (2..5).for_each(|slot| house.publish(ended(slot)));
    let message = stream.message().await;
    assert!(stream.take(message).is_ok());
    let reader = Reader::new(vec![9; 32], stream.reader.standing()).starting_over();
    let mut again = Stream::with(&house, reader);
    let opening = again.message().await;
    assert!(matches!(again.take(opening), Ok(News::Opened { resumed: false, .. })));
    let snapshot = again.message().await;
    assert_eq!(head(&snapshot).position, 2, "the one that was made before");
    assert_eq!(again.take(snapshot), Ok(News::Part));
    let message = again.message().await;
    let News::Everything { set, .. } = again.take(message).unwrap() else { panic!("no set") };
    assert_eq!(set, *house.truth.lock().unwrap());
}

#[tokio::test]
async fn p9_a_feed_that_stands_behind_what_was_read_is_refused() {
    let (_old, stream) = begun().await;
    let restored = House::new();
    let reader = Reader::new(vec![9; 32], stream.reader.standing());
    let mut again = Stream::with(&restored, reader);
    let opening = again.message().await;
    assert_eq!(again.take(opening), Err(Flaw::Elsewhere { at: at(2), said: at(1) }));
}

#[tokio::test]
async fn a_resumption_that_was_not_asked_for_is_refused() {
    let (house, _) = begun().await;
    let mut stream = Stream::new(&house);
    let mut message = stream.message().await;
    let Some(Content::Opening(opening)) = &message.content else { panic!("no opening") };
    let mut opening = wire::Opening::decode(opening.as_ref()).unwrap();
    opening.resumed = true;
    let bytes = opening.encode_to_vec();
    let digest =
        ring::digest::digest(&ring::digest::SHA256, &[OPENING_LABEL, bytes.as_slice()].concat());
    let head = wire::Head { digest: digest.as_ref().to_vec(), ..head(&message) };
    message.content = Some(Content::Opening(bytes.into()));
    reseal(&mut message, &head, &house.key(), SEAL_LABEL);
    // Not even the broker itself may say so.
    assert!(matches!(stream.take(message), Err(Flaw::OutOfTurn(_))));
}

#[tokio::test]
async fn a_slow_follower_gets_many_batches_in_one_message() {
    let (house, mut stream) = begun().await;
    (0..5_000).for_each(|slot| house.publish(ended(slot)));
    let mut messages = 0;
    while stream.reader.standing().map(|standing| standing.position) != Some(at(5_002)) {
        let message = stream.message().await;
        assert!(stream.take(message).is_ok());
        messages += 1;
    }
    assert!(messages <= 2, "{messages} messages");
}

/// What happens to a message on its way.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Comes,
    Lost,
    Twice,
    Overtaken,
    /// The connection breaks instead.
    Breaks,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Comes),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Twice),
        1 => Just(Fate::Overtaken),
        1 => Just(Fate::Breaks),
    ]
}

fn change() -> impl Strategy<Value = Vec<Change>> {
    let one = (0..12_u32, 0..3_u8)
        .prop_map(|(slot, bits)| Change::Place(place(slot), Status::from_bits(bits)));
    vec(one, 0..4)
}

/// One follower in one world: however messages come, what the view says is what was true at its
/// position, and it gets to the end.
async fn live_through(steps: Vec<(Vec<Change>, Fate)>) {
    let house = House::new();
    let view = View::new(CALM);
    let mut stream = Stream::new(&house);
    let mut truths = vec![house.truth.lock().expect("not poisoned").clone()];
    let calm = (0..6).map(|_| (Vec::new(), Fate::Comes));
    let mut nonce = 0_u64;
    let mut waiting = std::collections::VecDeque::new();
    for (changes, fate) in steps.into_iter().chain(calm) {
        house.publish(changes);
        truths.push(house.truth.lock().expect("not poisoned").clone());
        let message = stream.message().await;
        match fate {
            Fate::Comes => waiting.push_back(message),
            Fate::Lost | Fate::Breaks => {}
            Fate::Twice => waiting.extend([message.clone(), message]),
            Fate::Overtaken => {
                let next = stream.message().await;
                waiting.extend([next, message]);
            }
        }
        let mut good = !matches!(fate, Fate::Breaks);
        while let Some(message) = waiting.pop_front().filter(|_| good) {
            good = stream.take(message).is_ok_and(|news| show(&view, news));
            let at = view.position().borrow().sequence.0;
            let Ok(at) = usize::try_from(at.max(1)) else { continue };
            agree(&view, truths.get(at - 1).expect("it was true once"));
        }
        if !good {
            nonce += 1;
            let standing = stream.reader.standing();
            let reader = Reader::new(nonce.to_be_bytes().repeat(4), standing);
            // What broke off is resumed; after a flaw everything is told anew.
            let breaks = matches!(fate, Fate::Breaks);
            stream = Stream::with(&house, if breaks { reader } else { reader.starting_over() });
            waiting.clear();
        }
    }
    while stream.reader.standing().map(|standing| standing.position.sequence.0)
        != Some(house.position())
    {
        let message = stream.message().await;
        let news = stream.take(message).expect("the weather has cleared");
        assert!(show(&view, news));
    }
    agree(&view, &house.truth.lock().expect("not poisoned"));
}

fn show(view: &View, news: News) -> bool {
    let now = Instant::now();
    match news {
        News::Opened { .. } | News::Part => true,
        News::Everything { set, .. } => view.replace(set, now).is_ok(),
        News::Changes { deltas, .. } => view.apply_all(&deltas, now).is_ok(),
        News::Nothing { position, at } => view.beat(position, at, now).is_ok(),
    }
}

fn agree(view: &View, truth: &RevocationSet) {
    for slot in 0..12 {
        assert_eq!(view.status(&serial(slot)), truth.status(&serial(slot)), "slot {slot}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn r18_a_follower_in_any_weather_has_no_hole(
        steps in vec((change(), fate()), 1..25),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(live_through(steps));
    }

    #[test]
    fn no_bytes_make_a_reader_fall_over(
        junk in vec(any::<u8>(), 0..200),
        part in 0..4_u8,
    ) {
        let sealed = wire::Sealed { head: junk.clone().into(), ..wire::Sealed::default() };
        let content = match part {
            0 => Some(Content::Opening(junk.into())),
            1 => Some(Content::Snapshot(junk.into())),
            2 => Some(Content::Batches(wire::Batches { bodies: vec![junk.into()] })),
            _ => None,
        };
        let mut reader = Reader::new(NONCE.to_vec(), None);
        let message = FollowResponse { sealed: Some(sealed), content };
        prop_assert!(reader.take(message, Some(&Anybody)).is_err());
    }
}

/// A key that vouches for everything.
struct Anybody;

impl Vouch for Anybody {
    fn knows(&self, _kid: &str) -> bool {
        true
    }

    fn vouches(&self, _kid: &str, _message: &[u8], _signature: &[u8]) -> bool {
        true
    }
}
