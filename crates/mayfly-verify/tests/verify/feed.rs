//! The follower against a feed that loses, repeats and reorders.

use std::sync::Arc;

use crate::{
    broker::Running,
    common::{CALM, at, delta, serial, view},
};
use mayfly_core::{RevocationSet, Serial, Status, Timestamp};
use mayfly_verify::{Follower, Hole, Patience, Refused, View};
use tokio::time::{Duration, Instant, timeout};

const LONG: Duration = Duration::from_secs(20);

async fn settled(follower: &Follower, running: &Running) {
    let position = at(running.feed.position());
    let reached = timeout(LONG, async {
        // A heartbeat shows a follower with a hole that it has one.
        while *follower.view().position().borrow() < position {
            running.feed.beat();
            let one = follower.caught_up(position);
            let _soon = timeout(Duration::from_millis(20), one).await.is_ok();
        }
    });
    reached.await.expect("the follower catches up");
}

fn agrees(view: &Arc<View>, truth: &RevocationSet, slots: u32, seed: u64) {
    for slot in 0..slots {
        let serial = serial(slot);
        assert_eq!(view.status(&serial), truth.status(&serial), "SEED={seed} slot {slot}");
    }
}

#[tokio::test]
async fn snapshot_then_deltas() {
    let running = Running::start();
    running.feed.change(&[(1, Status::Revoked)]);
    let follower = Follower::connect(&running.endpoint, CALM);
    assert_eq!(follower.view().admit(&serial(9)), Err(Refused::Dark), "not before a snapshot");
    timeout(LONG, follower.ready()).await.unwrap();
    assert_eq!(follower.view().admit(&serial(1)), Err(Refused::Revoked));
    assert_eq!(follower.view().admit(&serial(2)), Ok(()));
    running.feed.publish(&[(2, Status::Revoked), (3, Status::Suspended)]);
    timeout(LONG, follower.caught_up(at(3))).await.unwrap();
    assert_eq!(follower.view().admit(&serial(2)), Err(Refused::Revoked));
    assert_eq!(follower.view().admit(&serial(3)), Err(Refused::Suspended));
    running.feed.publish(&[(3, Status::Valid)]);
    timeout(LONG, follower.caught_up(at(4))).await.unwrap();
    assert_eq!(follower.view().admit(&serial(3)), Ok(()));
    assert_eq!(running.feed.snapshots(), 1);
}

#[tokio::test]
async fn a_credential_revoked_on_its_own_is_refused_and_its_siblings_are_not() {
    let running = Running::start();
    let (early, late) = (serial(1), serial(2));
    running.feed.change_with(&[], Some(early));
    let follower = Follower::connect(&running.endpoint, CALM);
    timeout(LONG, follower.ready()).await.unwrap();
    assert_eq!(follower.view().admit(&early), Err(Refused::Revoked), "by snapshot");
    let delta = running.feed.change_with(&[], Some(late));
    running.feed.tell(&delta);
    timeout(LONG, follower.caught_up(at(3))).await.unwrap();
    assert_eq!(follower.view().admit(&late), Err(Refused::Revoked), "by delta");
    let sibling = Serial::new(late.place(), 99);
    assert_eq!(follower.view().admit(&sibling), Ok(()));
}

#[tokio::test]
async fn a_hole_leads_to_a_new_snapshot() {
    let running = Running::start();
    let follower = Follower::connect(&running.endpoint, CALM);
    timeout(LONG, follower.ready()).await.unwrap();
    running.feed.change(&[(1, Status::Revoked)]); // Lost on the way.
    running.feed.publish(&[(2, Status::Revoked)]);
    timeout(LONG, follower.caught_up(at(3))).await.unwrap();
    assert_eq!(follower.view().admit(&serial(1)), Err(Refused::Revoked));
    assert_eq!(follower.view().admit(&serial(2)), Err(Refused::Revoked));
    assert_eq!(running.feed.snapshots(), 2);
}

#[tokio::test]
async fn a_heartbeat_shows_a_delta_that_was_lost_last() {
    let running = Running::start();
    let follower = Follower::connect(&running.endpoint, CALM);
    timeout(LONG, follower.ready()).await.unwrap();
    running.feed.change(&[(1, Status::Revoked)]); // Lost, and nothing follows it.
    running.feed.beat();
    timeout(LONG, follower.caught_up(at(2))).await.unwrap();
    assert_eq!(follower.view().admit(&serial(1)), Err(Refused::Revoked));
}

#[tokio::test]
async fn a_broker_that_restarts_is_found_again_and_the_dark_between_is_seen() {
    let mut running = Running::start();
    let patience = Patience::Closed { after: Duration::from_millis(600) };
    let follower = Follower::connect(&running.endpoint, patience);
    timeout(LONG, follower.ready()).await.unwrap();
    assert_eq!(follower.view().admit(&serial(1)), Ok(()));
    running.stop();
    let heard = Instant::now();
    tokio::time::sleep_until(heard + patience.limit()).await;
    assert_eq!(follower.view().admit(&serial(1)), Err(Refused::Dark));
    running.feed.change(&[(1, Status::Revoked)]);
    running.serve();
    timeout(LONG, follower.caught_up(at(2))).await.unwrap();
    assert_eq!(follower.view().admit(&serial(1)), Err(Refused::Revoked));
    assert_eq!(follower.view().admit(&serial(2)), Ok(()));
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
    const SLOTS: u64 = 24;
    for seed in 0..40 {
        let luck = &mut Luck(seed);
        let running = Running::start();
        let follower = Follower::connect(&running.endpoint, CALM);
        timeout(LONG, follower.ready()).await.unwrap();
        let mut late = Vec::new();
        for _ in 0..30 {
            let slot = u32::try_from(luck.below(SLOTS)).unwrap();
            let delta = running.feed.change(&[(slot, luck.status())]);
            match luck.below(12) {
                0 => {}                // Lost.
                1 => late.push(delta), // Overtaken.
                2 => {
                    running.feed.tell(&delta); // Repeated.
                    running.feed.tell(&delta);
                }
                3 => running.feed.hang_up(),
                _ => running.feed.tell(&delta),
            }
            if luck.below(4) == 0
                && let Some(delta) = late.pop()
            {
                running.feed.tell(&delta);
            }
            if luck.below(5) == 0 {
                running.feed.beat();
            }
            if luck.below(6) == 0 {
                tokio::task::yield_now().await;
            }
        }
        settled(&follower, &running).await;
        let truth = running.feed.0.lock().unwrap().truth.clone();
        agrees(follower.view(), &truth, u32::try_from(SLOTS).unwrap(), seed);
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
    let over = crate::common::place(1).window.forget_at();
    view.beat(at(6), Timestamp(over.0 + 3_600_000), now).unwrap();
    assert_eq!(view.status(&serial(1)), Status::Revoked);
    view.beat(at(6), Timestamp(over.0 + 3 * 3_600_000), now).unwrap();
    assert_eq!(view.status(&serial(1)), Status::Valid, "long expired, and forgotten");
}
