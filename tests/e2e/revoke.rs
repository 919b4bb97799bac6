//! Revoking by everything that a task can be known by.

use std::io::Write as _;

use mayfly_proto::mayfly::v1::{self as wire, begin_task_request::Holder, revoke_request::Target};
use tonic::Code;

use crate::{
    actor::Actor,
    common::{own_uid, task_of},
    hands::{Held, below},
    stand::{begin_on, is_valid, stand},
};

fn leased(parent: &str) -> wire::BeginTaskRequest {
    let (lease_ms, parent) = (3_600_000, parent.to_owned());
    wire::BeginTaskRequest { lease_ms, parent, ..task_of("errand", Holder::LeaseOnly(true)) }
}

/// Every target counts first and then ends what it counted, and nothing beside; why stands in the log.
#[tokio::test]
async fn revoking_hits_what_a_dry_run_counts_and_says_why() {
    let (site, broker, mut operator) = stand().await;
    let root = Held::begin(&mut operator, "booth", "").await;
    let child = Held::begin(&mut operator, "booth", &root.task).await;
    let grandchild = Held::begin(&mut operator, "booth", &child.task).await;
    let beside = Held::begin(&mut operator, "booth", "").await;
    // By the middle of a tree its root is meant, too.
    let tree = || Target::Tree(child.task.clone());
    let counted = operator.revoke_for(tree(), (true, "")).await.expect("counted");
    assert_eq!(counted, (3, 6), "a certificate and a token each");
    assert!(is_valid(&broker, &root.token).await, "counting ends nothing");
    let revoked = operator.revoke_for(tree(), (false, "it leaked")).await.expect("revoked");
    assert_eq!(revoked, counted);
    for held in [&root, &child, &grandchild] {
        assert!(!is_valid(&broker, &held.token).await);
    }
    assert!(is_valid(&broker, &beside.token).await);
    let (_, story) = operator.show(&root.task).await.expect("it is remembered");
    let end = story.iter().find(|entry| entry.what == "ended").expect("it ended");
    assert_eq!(end.detail, format!("revoked, by uid:{}: it leaked", own_uid()));
    assert_eq!(operator.state(&grandchild.task).await.1, "parent_ended");

    // A holder that shows a selector now, and a profile that asks for one.
    let mut actor = Actor::start(&site.socket()).await;
    let own = std::env::current_exe().expect("it runs");
    let held = begin_on(&mut operator, actor.pid).await;
    actor.watch().await;
    let shown = Target::Selector(format!("unix:path:{}", own.display()));
    let counted = operator.revoke_for(shown.clone(), (true, "")).await.expect("counted");
    // The test itself was met when it asked whether tokens are good, and is that program too.
    assert_eq!(counted.0, 2, "no profile asks for it, but two holders are this program");
    operator.revoke_for(shown, (false, "")).await.expect("revoked");
    assert_eq!(operator.state(&held).await.1, "revoked");
    assert_eq!(operator.state(&beside.task).await.0, "active");
    let asked = Target::Selector(format!("unix:uid:{}", own_uid()));
    let errand = operator.begin(leased("")).await.expect("a task").task;
    operator.revoke_for(asked, (false, "")).await.expect("revoked");
    assert_eq!(operator.state(&errand).await.1, "revoked", "its profile asks for that user");
    assert_eq!(operator.state(&beside.task).await.0, "active", "its profile asks for nobody");

    let team = operator.revoke_for(Target::Owner("team".to_owned()), (false, "")).await;
    assert_eq!(team.expect("revoked"), (1, 2));
    assert_eq!(operator.state(&beside.task).await.1, "revoked");
}

/// All that is held here ends, and the broker's own task does not: who hears of it otherwise?
#[tokio::test]
async fn revoking_a_node_ends_all_that_is_held_on_it() {
    let (_site, broker, mut operator) = stand().await;
    let node = operator.status().await.expect("a status").node;
    let one = Held::begin(&mut operator, "booth", "").await;
    let errand = operator.begin(leased("")).await.expect("a task").task;
    let elsewhere = Target::Node("elsewhere".to_owned());
    let refused = operator.revoke_for(elsewhere, (false, "")).await.expect_err("not ours");
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().starts_with("node_unknown"), "{refused:?}");
    assert!(refused.message().contains(&format!("`{node}`")), "it names ours: {refused:?}");
    let revoked = operator.revoke_for(Target::Node(node), (false, "stolen")).await;
    assert_eq!(revoked.expect("revoked").0, 2);
    assert!(!is_valid(&broker, &one.token).await);
    assert_eq!(operator.state(&errand).await.1, "revoked");
}

/// A mistyped target is told from one that has nothing to revoke.
#[tokio::test]
async fn a_target_that_is_not_there_is_named() {
    let (_site, _broker, mut operator) = stand().await;
    let nobody = "0".repeat(32);
    for (target, code) in [
        (Target::Profile("bouth".to_owned()), "profile_unknown"),
        (Target::Owner("teem".to_owned()), "owner_unknown"),
        (Target::Tree(nobody.clone()), "task_unknown"),
        (Target::Task(nobody), "task_unknown"),
        (Target::Task("x".to_owned()), "malformed"),
        (Target::Selector("uid".to_owned()), "malformed"),
        (Target::Serial("x".to_owned()), "malformed"),
    ] {
        let refused = operator.revoke_for(target, (false, "")).await.expect_err(code);
        assert!(refused.message().starts_with(code), "{code}: {refused:?}");
    }
    let nothing = operator.revoke_for(Target::Profile("booth".to_owned()), (false, "")).await;
    assert_eq!(nothing.expect("it is there, and has no task"), (0, 0));
    let long = "x".repeat(2000);
    let target = Target::Profile("booth".to_owned());
    let refused = operator.revoke_for(target, (false, &long)).await.expect_err("too long a reason");
    assert!(refused.message().starts_with("malformed"), "{refused:?}");
}

/// Thousands end in one go: few commits and few deltas, however many they are.
#[tokio::test]
async fn thousands_are_revoked_in_one_go() {
    const TASKS: usize = 3000;
    let (_site, _broker, mut operator) = stand().await;
    let mut beginning = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let mut operator = operator.clone();
        beginning.spawn(async move { operator.begin(leased("")).await.expect("a task").task });
    }
    let tasks = beginning.join_all().await;
    let beside = operator.begin(below("booth", "")).await.expect("a task").task;
    let before = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock");
    let target = Target::Profile("errand".to_owned());
    let revoked = operator.revoke_for(target, (false, "enough")).await.expect("revoked");
    let took = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock") - before;
    assert_eq!(revoked.0, TASKS as u64);
    for task in [tasks.first(), tasks.last()] {
        assert_eq!(operator.state(task.expect("some")).await.1, "revoked");
    }
    assert_eq!(operator.state(&beside).await.0, "active");
    writeln!(std::io::stderr(), "{TASKS} tasks were revoked in {took:?}").expect("it is open");
}
