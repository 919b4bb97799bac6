//! R54: who holds what, now, is what verifiers accept, now.

use std::collections::{BTreeMap, BTreeSet};

use mayfly::clock;
use mayfly_core::Serial;
use mayfly_proto::mayfly::v1::{self as wire, revoke_request::Target};
use mayfly_verify::{Follower, Tiers};
use tonic::Code;

use crate::{
    common::{until, within},
    hands::{Held, below},
    mirrors::claims,
    stand::{AUDIENCE, is_valid, stand},
};

/// Random enough, and the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).expect("small")
    }
}

/// Everything that was ever issued, by its serial: tokens with their text.
#[derive(Default)]
struct Issued(BTreeMap<String, Option<String>>);

impl Issued {
    fn certificate(&mut self, serial: &str) {
        self.0.insert(serial.to_owned(), None);
    }

    fn token(&mut self, token: &str) -> String {
        let jti = claims(token)["jti"].as_str().expect("a jti").to_owned();
        self.0.insert(jti.clone(), Some(token.to_owned()));
        jti
    }
}

/// R54: after begins, fetches, amends, quarantines, releases, revocations and ends in any order, for every
/// credential that was ever issued: it is in the inventory if and only if it is accepted.
#[tokio::test]
async fn r54_the_inventory_equals_what_a_verifier_accepts() {
    let (_site, broker, mut operator) = stand().await;
    let follower = Follower::connect(&broker.endpoint(), Tiers::default().together());
    within("the feed", follower.ready()).await;
    let (mut dice, mut issued) = (Dice(0x5eed_5eed_5eed_5eed), Issued::default());
    let mut tasks: Vec<Held> = Vec::new();
    let mut tally = [0; 7];
    for step in 0..170 {
        let parent = match tasks.len() {
            0 => String::new(),
            count if dice.roll(3) == 0 => tasks[dice.roll(count)].task.clone(),
            _ => String::new(),
        };
        // Some to begin with, and some at last who have not met their fate.
        let what = if (10..150).contains(&step) { dice.roll(7) } else { 0 };
        let at = dice.roll(tasks.len().max(1));
        tally[what] += 1;
        if what == 0 {
            // A parent that is over takes nobody on.
            if operator.begin(below("booth", &parent)).await.is_ok() {
                let held = Held::begin(&mut operator, "booth", &parent).await;
                issued.certificate(&held.svid.serial);
                issued.token(&held.token);
                tasks.push(held);
            }
            continue;
        }
        let Held { task, workload, svid, .. } = &tasks[at];
        // What is refused, because the task is over or held, changes nothing.
        match what {
            1 => {
                if let Ok(context) = workload.fetch_x509().await {
                    let serial = context.svids[0].leaf.serial.expect("ours");
                    issued.certificate(&serial.to_string());
                }
                if let Ok(tokens) = workload.fetch_jwt(&[AUDIENCE], None).await {
                    issued.token(&tokens[0].token);
                }
            }
            2 => drop(operator.amend(task, &format!("step {step}")).await),
            3 => drop(operator.quarantine(task).await),
            4 => drop(operator.release(task).await),
            5 => drop(operator.revoke(Target::Serial(svid.serial.clone())).await),
            _ => drop(operator.end(task, "completed").await),
        }
    }
    assert!(tally.iter().all(|count| *count > 5), "a bit of everything: {tally:?}");

    let view = follower.view();
    // The feed may be a moment behind; what it says when it has caught up is what counts.
    let agree = async || {
        let held = operator.clone().inventory(7).await;
        let held: BTreeSet<String> = held.into_iter().map(|one| one.serial).collect();
        let mut wrong = Vec::new();
        for (serial, token) in &issued.0 {
            let accepted = match token {
                None => view.admit(&Serial::parse(serial).expect("ours")).is_ok(),
                Some(token) => is_valid(&broker, token).await,
            };
            if accepted != held.contains(serial) {
                wrong.push((serial.clone(), accepted));
            }
        }
        wrong.is_empty().then_some(held)
    };
    let held = until("the inventory to equal what is accepted", agree).await;
    let (stands, over): (Vec<_>, Vec<_>) = issued.0.keys().partition(|one| held.contains(*one));
    assert!(stands.len() > 10 && over.len() > 10, "{} and {}", stands.len(), over.len());
}

/// Pages of any size are the same list in the same order, filters leave out the others, and a token of one
/// query is not taken by another.
#[tokio::test]
async fn the_inventory_comes_in_pages_and_by_owner_profile_and_tree() {
    let (_site, _broker, mut operator) = stand().await;
    let root = Held::begin(&mut operator, "booth", "").await;
    let child = Held::begin(&mut operator, "booth", &root.task).await;
    for _ in 0..5 {
        root.workload.fetch_jwt(&[AUDIENCE], None).await.expect("a token");
    }
    let beside = Held::begin(&mut operator, "booth", "").await;
    let whole = operator.inventory(1000).await;
    assert_eq!(whole.len(), 11, "two for each of three tasks, and five tokens");
    for size in [1, 2, 3, 10] {
        assert_eq!(operator.inventory(size).await, whole, "in pages of {size}");
    }
    let order: Vec<_> = whole.iter().map(|one| (&one.task, &one.serial)).collect();
    assert!(order.is_sorted(), "by task, then by serial");
    let now = clock::now().0;
    let one = whole.iter().find(|one| one.serial == child.svid.serial).expect("it stands");
    assert_eq!((one.kind.as_str(), one.profile.as_str()), ("x509", "booth"));
    assert_eq!((one.owner.as_str(), one.version), ("team", 1));
    assert!(one.spiffe_id.ends_with(&child.task) && one.not_after_ms > now);

    let of = |tree: &str, owner: &str| wire::InventoryRequest {
        tree: tree.to_owned(),
        owner: owner.to_owned(),
        ..wire::InventoryRequest::default()
    };
    let tree = operator.page(of(&child.task, "")).await.expect("a page").holdings;
    assert_eq!(tree.len(), 9);
    assert!(tree.iter().all(|one| one.task != beside.task));
    assert_eq!(operator.page(of("", "nobody")).await.expect("a page").holdings, []);
    let unknown = operator.page(of(&"0".repeat(32), "")).await.expect_err("no such task");
    assert_eq!(unknown.code(), Code::NotFound);

    let first = operator.page(wire::InventoryRequest { page_size: 2, ..of("", "team") }).await;
    let page_token = first.expect("a page").next_page_token;
    assert!(!page_token.is_empty());
    let refused = operator.page(wire::InventoryRequest { page_token, ..of("", "") }).await;
    let refused = refused.expect_err("another query");
    assert!(refused.message().starts_with("page_invalid"), "{refused:?}");
}
