//! The follower against a relay that loses, repeats, reorders, freezes and comes late.

use std::sync::Arc;

use crate::{
    broker::{Deed, Key, Running, Tally},
    common::{CALM, at, delta, place, serial, view},
};
use mayfly_core::{Change, RevocationSet, Serial, Status, Timestamp, TrustDomain};
use mayfly_verify::{
    FollowOptions, Follower, Hole, JwkSets, Patience, Refused, Sight, Trust, View,
};
use tokio::{
    sync::watch,
    time::{Duration, Instant, sleep, timeout},
};

const LONG: Duration = Duration::from_secs(20);
/// Asks for heartbeats as often as one may.
const HURRIED: Patience = Patience::Closed { after: Duration::from_millis(600) };

fn set(slot: u32, status: Status) -> Change {
    Change::Place(place(slot), status)
}

fn end(running: &Running, slot: u32) {
    running.house.publish(vec![set(slot, Status::Revoked)]);
}

async fn caught_up(follower: &Follower, running: &Running) {
    let position = at(running.house.position());
    timeout(LONG, follower.caught_up(position)).await.expect("the follower catches up");
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let reached = timeout(LONG, async {
        while !done() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(reached.await.is_ok(), "never happened: {what}");
}

fn agrees(view: &Arc<View>, truth: &RevocationSet, slots: u32, seed: u64) {
    for slot in 0..slots {
        let serial = serial(slot);
        assert_eq!(view.status(&serial), truth.status(&serial), "SEED={seed} slot {slot}");
    }
}

async fn following(running: &Running, patience: Patience) -> Follower {
    let follower = Follower::connect(&running.endpoint, patience);
    timeout(LONG, follower.ready()).await.expect("the feed is there");
    follower
}

#[tokio::test]
async fn everything_then_each_change() {
    let running = Running::start();
    end(&running, 1);
    let follower = Follower::connect(&running.endpoint, CALM);
    assert_eq!(follower.view().admit(&serial(9)), Err(Refused::Dark), "not before a snapshot");
    timeout(LONG, follower.ready()).await.unwrap();
    assert_eq!(follower.view().admit(&serial(1)), Err(Refused::Revoked));
    assert_eq!(follower.view().admit(&serial(2)), Ok(()));
    running.house.publish(vec![set(2, Status::Revoked), set(3, Status::Suspended)]);
    caught_up(&follower, &running).await;
    assert_eq!(follower.view().admit(&serial(2)), Err(Refused::Revoked));
    assert_eq!(follower.view().admit(&serial(3)), Err(Refused::Suspended));
    running.house.publish(vec![set(3, Status::Valid)]);
    caught_up(&follower, &running).await;
    assert_eq!(follower.view().admit(&serial(3)), Ok(()));
    assert_eq!(running.relay.tally(), Tally { snapshots: 1, resumed: 0 });
}

#[tokio::test]
async fn a_credential_revoked_on_its_own_is_refused_and_its_siblings_are_not() {
    let running = Running::start();
    let (early, late) = (serial(1), serial(2));
    running.house.publish(vec![Change::Serial(early, Timestamp(u64::MAX))]);
    let follower = following(&running, CALM).await;
    assert_eq!(follower.view().admit(&early), Err(Refused::Revoked), "by snapshot");
    running.house.publish(vec![Change::Serial(late, Timestamp(u64::MAX))]);
    caught_up(&follower, &running).await;
    assert_eq!(follower.view().admit(&late), Err(Refused::Revoked), "by batch");
    let sibling = Serial::new(late.place(), 99);
    assert_eq!(follower.view().admit(&sibling), Ok(()));
}

#[tokio::test]
async fn r18_a_batch_that_was_lost_is_missed_at_the_next() {
    let running = Running::start();
    let follower = following(&running, CALM).await;
    running.relay.next_time(Deed::Lose);
    end(&running, 1);
    timeout(LONG, running.relay.done(1)).await.unwrap();
    end(&running, 2);
    caught_up(&follower, &running).await;
    assert_eq!(follower.view().admit(&serial(1)), Err(Refused::Revoked));
    assert_eq!(follower.view().admit(&serial(2)), Err(Refused::Revoked));
    assert_eq!(running.relay.tally(), Tally { snapshots: 2, resumed: 0 });
}

#[tokio::test]
async fn r18_a_batch_that_was_lost_last_is_missed_at_the_heartbeat() {
    let running = Running::start();
    let follower = following(&running, HURRIED).await;
    running.relay.next_time(Deed::Lose);
    end(&running, 1);
    caught_up(&follower, &running).await;
    assert_eq!(follower.view().admit(&serial(1)), Err(Refused::Revoked));
}

#[tokio::test]
async fn a_follower_that_was_cut_off_goes_on_from_where_it_was() {
    let running = Running::start();
    let follower = following(&running, CALM).await;
    running.relay.hang_up();
    (1..200).for_each(|slot| end(&running, slot));
    caught_up(&follower, &running).await;
    let truth = running.house.truth.lock().unwrap().clone();
    agrees(follower.view(), &truth, 210, 0);
    assert_eq!(running.relay.tally(), Tally { snapshots: 1, resumed: 1 });
}

#[tokio::test]
async fn a_broker_that_restarts_is_found_again_and_the_dark_between_is_seen() {
    let mut running = Running::start();
    let follower = following(&running, HURRIED).await;
    assert_eq!(follower.view().admit(&serial(1)), Ok(()));
    running.stop();
    until("the dark is seen", || follower.view().admit(&serial(1)) == Err(Refused::Dark)).await;
    end(&running, 1);
    running.serve();
    caught_up(&follower, &running).await;
    until("it sees again", || follower.view().sight(Instant::now()) == Sight::Clear).await;
    assert_eq!(follower.view().admit(&serial(1)), Err(Refused::Revoked));
    assert_eq!(follower.view().admit(&serial(2)), Ok(()));
}

#[tokio::test]
async fn a_relay_that_freezes_leaves_nobody_with_what_was_true_once() {
    let running = Running::start();
    let follower = following(&running, HURRIED).await;
    running.relay.freeze(true);
    until("the dark is seen", || follower.view().is_dark(Instant::now())).await;
    end(&running, 1);
    assert_eq!(follower.view().admit(&serial(1)), Err(Refused::Dark), "not told, and refused");
    running.relay.freeze(false);
    caught_up(&follower, &running).await;
    assert_eq!(follower.view().admit(&serial(1)), Err(Refused::Revoked));
}

/// A message comes every 400 ms, and 600 ms of silence are borne. But each was made 400 ms before it
/// came, so half of the time the last word is too old.
#[tokio::test]
async fn a_relay_that_holds_messages_back_gains_nothing_by_it() {
    let running = Running::start();
    let follower = following(&running, HURRIED).await;
    running.relay.be_late(Duration::from_millis(400));
    let begun = Instant::now();
    let mut dark = 0;
    while begun.elapsed() < Duration::from_secs(3) {
        dark += u32::from(follower.view().is_dark(Instant::now()));
        sleep(Duration::from_millis(20)).await;
    }
    assert!(dark > 30, "it was dark {dark} times of 150");
}

fn trusting(keys: &watch::Sender<JwkSets>) -> FollowOptions {
    let domain = TrustDomain::parse("example.org").expect("a trust domain");
    FollowOptions {
        patience: HURRIED,
        trust: Trust::Keys { domain, keys: keys.subscribe() },
        pace: Duration::from_millis(20),
    }
}

fn keys_of(key: &Key) -> JwkSets {
    [(TrustDomain::parse("example.org").expect("a trust domain"), key.set())].into_iter().collect()
}

#[tokio::test]
async fn behind_a_relay_only_known_keys_count_and_news_of_them_is_heard() {
    let running = Running::start();
    let keys = watch::Sender::new(keys_of(&Key::new("one")));
    let follower = Follower::open(running.endpoint.channel(), trusting(&keys));
    let too_early = timeout(Duration::from_millis(300), follower.ready()).await;
    assert!(too_early.is_err(), "another key of the same name was taken for the broker's");
    keys.send_replace(keys_of(&running.house.key()));
    timeout(LONG, follower.ready()).await.unwrap();
    end(&running, 1);
    caught_up(&follower, &running).await;
    assert_eq!(follower.view().admit(&serial(1)), Err(Refused::Revoked));
}

#[tokio::test]
async fn a_key_that_follows_another_is_met_in_a_new_opening() {
    let running = Running::start();
    let follower = following(&running, CALM).await;
    running.house.rotate("two");
    end(&running, 1);
    caught_up(&follower, &running).await;
    assert_eq!(follower.view().admit(&serial(1)), Err(Refused::Revoked));
    assert_eq!(running.relay.tally().snapshots, 2);
}

/// Luck from a seed: the failing seed is the bug report.
struct Luck(u64);

impl Luck {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn status(&mut self) -> Status {
        match self.below(4) {
            0 => Status::Suspended,
            1 => Status::Valid,
            _ => Status::Revoked,
        }
    }
}

#[tokio::test]
async fn a_follower_in_bad_weather_ends_without_a_hole() {
    const SLOTS: u32 = 24;
    for seed in 0..40 {
        let luck = &mut Luck(seed);
        let running = Running::start();
        let follower = following(&running, Patience::default()).await;
        for _ in 0..30 {
            let slot = u32::try_from(luck.below(SLOTS.into())).unwrap();
            match luck.below(12) {
                0 => running.relay.next_time(Deed::Lose),
                1 => running.relay.next_time(Deed::Overtaken),
                2 => running.relay.next_time(Deed::Repeat),
                3 => running.relay.next_time(Deed::HangUp),
                4 => running.relay.hang_up(),
                _ => {}
            }
            running.house.publish(vec![set(slot, luck.status())]);
            if luck.below(3) == 0 {
                tokio::task::yield_now().await;
            }
        }
        caught_up(&follower, &running).await;
        let truth = running.house.truth.lock().unwrap().clone();
        agrees(follower.view(), &truth, SLOTS, seed);
    }
}

/// The same law without sockets, so that many more worlds fit: whatever arrives in whatever order, a
/// view that stands at a position agrees with the truth at that position.
#[tokio::test]
async fn a_view_agrees_with_the_truth_at_its_position_in_any_weather() {
    const SLOTS: u64 = 8;
    for seed in 0..2_000 {
        let luck = &mut Luck(seed);
        let view = view(CALM);
        let mut truths = vec![RevocationSet::at(at(1))];
        let mut deltas = Vec::new();
        for step in 1..20 {
            let slot = u32::try_from(luck.below(SLOTS)).unwrap();
            let delta = delta(step, step + 1, &[(slot, luck.status())]);
            let mut truth = truths.last().expect("one").clone();
            assert!(truth.apply(&delta));
            truths.push(truth);
            deltas.push(delta);
        }
        for _ in 0..60 {
            let which = usize::try_from(luck.below(deltas.len() as u64)).unwrap();
            let now = Instant::now();
            match luck.below(10) {
                // A snapshot of some time, late ones among them.
                0 => {
                    let _late = view.replace(truths[which].clone(), now).is_err();
                }
                1 => {
                    let position = truths[which].position();
                    let standing = *view.position().borrow();
                    let beat = view.beat(position, Timestamp(0), now);
                    assert_eq!(beat.is_ok(), position == standing, "SEED={seed}");
                }
                _ => {
                    let _gap = view.apply(&deltas[which], now).is_err();
                }
            }
            let standing = usize::try_from(view.position().borrow().sequence.0).unwrap();
            agrees(&view, &truths[standing - 1], u32::try_from(SLOTS).unwrap(), seed);
        }
    }
}

#[tokio::test]
async fn nothing_brings_back_what_was_heard_as_ended() {
    let view = view(CALM);
    let now = Instant::now();
    view.apply(&delta(1, 5, &[(1, Status::Revoked), (2, Status::Suspended)]), now).unwrap();
    // A later snapshot that has forgotten, as of a broker that was restored from a backup.
    view.replace(RevocationSet::at(at(6)), now).unwrap();
    assert_eq!(view.status(&serial(1)), Status::Revoked);
    assert_eq!(view.status(&serial(2)), Status::Valid, "quarantine can be lifted");
    // An older one is not even looked at.
    let older = view.replace(RevocationSet::at(at(3)), now);
    assert_eq!(older, Err(Hole::Elsewhere { at: at(6), said: at(3) }));
    // Nor does the broker's clock, unless it has gone far beyond anything a step explains.
    let over = place(1).window.forget_at();
    view.beat(at(6), Timestamp(over.0 + 3_600_000), now).unwrap();
    assert_eq!(view.status(&serial(1)), Status::Revoked);
    view.beat(at(6), Timestamp(over.0 + 3 * 3_600_000), now).unwrap();
    assert_eq!(view.status(&serial(1)), Status::Valid, "long expired, and forgotten");
}

#[tokio::test]
async fn what_was_said_earlier_and_comes_later_makes_no_view_older() {
    let view = view(HURRIED);
    let now = Instant::now();
    let past = now.checked_sub(Duration::from_secs(60)).unwrap();
    view.beat(at(1), Timestamp(0), now).unwrap();
    view.beat(at(1), Timestamp(0), past).unwrap();
    assert_eq!(view.sight(now), Sight::Clear);
}
