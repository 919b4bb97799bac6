//! Authorities by an operator's hand: prepared, activated, tainted, revoked.

use std::time::{Duration, SystemTime};

use mayfly::clock;
use mayfly_verify::Authorize;
use tokio::task::JoinSet;
use tonic::Code;

use crate::{
    actor::Svid,
    common::{Operator, until, within},
    hands::{Held, below},
    papers,
    stand::{is_valid, stand, stand_with},
    verifiers::{PROFILES, Side, id, listen, raw_service},
};

/// Tasks with an open stream when the authority is tainted.
const STREAMS: usize = 200;

/// The key ids of one kind that are in `state`.
async fn ids(operator: &mut Operator, kind: &str, state: &str) -> Vec<String> {
    let status = operator.status().await.expect("a status");
    let found = status.authorities.into_iter();
    found.filter(|one| one.kind == kind && one.state == state).map(|one| one.id).collect()
}

/// Every step in its order, both kinds, what is refused, and all of it across a restart.
#[tokio::test]
async fn an_operator_replaces_an_authority_in_four_steps() {
    let (site, mut broker, mut operator) = stand().await;
    for kind in ["x509", "jwt"] {
        let held = Held::begin(&mut operator, "booth", "").await;
        let old = ids(&mut operator, kind, "active").await.pop().expect("one");
        for (order, id, code) in [
            ("activate", "", "authority_not_prepared"),
            ("activate", "nobody", "authority_unknown"),
            ("taint", old.as_str(), "authority_active"),
            ("revoke", old.as_str(), "authority_active"),
            ("revoke", "nobody", "authority_unknown"),
            ("taint", "", "malformed"),
            ("prepare", "x", "malformed"),
            ("burn", "", "malformed"),
        ] {
            let refused = operator.authority(order, (kind, id)).await.expect_err(code);
            assert!(refused.message().starts_with(code), "{order} {id}: {refused:?}");
        }
        let refused = operator.authority("prepare", ("ssh", "")).await.expect_err("no such kind");
        assert_eq!(refused.code(), Code::InvalidArgument);

        let all = operator.authority("prepare", (kind, "")).await.expect("it may").authorities;
        let next = all.iter().find(|one| one.kind == kind && one.state == "prepared");
        let next = next.expect("a successor").id.clone();
        let refused = operator.authority("taint", (kind, &next)).await.expect_err("unused");
        assert!(refused.message().starts_with("authority_not_old"), "{refused:?}");
        operator.authority("activate", (kind, &next)).await.expect("it may");
        assert_eq!(ids(&mut operator, kind, "active").await, [next.as_str()]);
        assert_eq!(ids(&mut operator, kind, "old").await, [old.as_str()]);
        assert!(is_valid(&broker, &held.token).await, "what the old one signed is good still");

        operator.authority("taint", (kind, &old)).await.expect("it may");
        assert_eq!(ids(&mut operator, kind, "tainted").await, [old.as_str()]);
        broker.kill().await;
        broker = site.start().await;
        operator = broker.operator().await;
        assert_eq!(ids(&mut operator, kind, "tainted").await, [old.as_str()], "remembered");
        assert_eq!(ids(&mut operator, kind, "active").await, [next.as_str()]);

        operator.authority("revoke", (kind, &old)).await.expect("it may");
        for state in ["old", "tainted", "prepared"] {
            assert!(ids(&mut operator, kind, state).await.is_empty(), "{state}");
        }
        if kind == "jwt" {
            assert!(!is_valid(&broker, &held.token).await, "what it signed is refused");
        }
        broker.kill().await;
        broker = site.start().await;
        operator = broker.operator().await;
        assert!(ids(&mut operator, kind, "tainted").await.is_empty(), "it does not come back");
    }
}

/// What a revoked authority has signed opens nothing any more, and what the new one signed does.
#[tokio::test]
async fn a_certificate_of_a_revoked_authority_is_refused() {
    let mut stand = stand_with(PROFILES).await;
    let operator = &mut stand.2;
    let service = Side::begin_as(operator, below("service", "")).await;
    let client = Side::begin_as(operator, below("client", "")).await;
    let (listener, address) = listen().await;
    let party = service.party(Authorize::Profile(id("/client")));
    let mut serving = JoinSet::new();
    serving.spawn(async move { raw_service::serve(&party, listener, clock::now).await });
    let knock = async |party| {
        let mut stream = raw_service::connect(&party, &address, clock::now()).await.ok()?;
        raw_service::exchange(&mut stream, b"hello").await.ok()
    };
    let kept = || client.stolen();
    let before = kept();
    within("an answer", knock(before)).await.expect("let in");
    let before = kept();
    let old = ids(operator, "x509", "active").await.pop().expect("one");
    operator.authority("prepare", ("x509", "")).await.expect("it may");
    operator.authority("activate", ("x509", "")).await.expect("it may");
    // Without a taint: a revocation makes anew what it takes away.
    let change = operator.authority("revoke", ("x509", &old)).await.expect("it may");
    assert!(change.tasks >= 2, "{change:?}");
    let fresh = async || knock(client.party(Authorize::Any)).await;
    until("a new certificate that is believed", fresh).await;
    assert_eq!(within("a refusal", knock(before)).await, None, "the old one is not");
}

/// Everything that was pushed is made anew at once, by the new authority, and nobody is left out.
#[tokio::test]
async fn a_taint_reissues_everything_that_was_pushed() {
    let (_site, _broker, mut operator) = stand().await;
    let mut held = Vec::new();
    for _ in 0..STREAMS {
        held.push(Held::begin(&mut operator, "booth", "").await);
    }
    let old_bundle = held[0].svid.bundle();
    let old = ids(&mut operator, "x509", "active").await.pop().expect("one");
    operator.authority("prepare", ("x509", "")).await.expect("it may");
    operator.authority("activate", ("x509", "")).await.expect("it may");
    // One that has been renewed meanwhile has nothing to be made anew.
    let late = Held::begin(&mut operator, "booth", "").await;
    assert!(!papers::is_signed_by(&late.svid.leaf(), &old_bundle), "by the new authority");
    let mut watching = JoinSet::new();
    for mut one in held {
        let old_bundle = old_bundle.clone();
        watching.spawn(async move {
            loop {
                let next = one.stream.next().await.expect("a stream that goes on");
                let next = Svid::of(&next);
                if !papers::is_signed_by(&next.leaf(), &old_bundle) {
                    assert_eq!(next.task(), one.task);
                    assert!(papers::is_signed_by(&next.leaf(), &next.bundle()));
                    return SystemTime::UNIX_EPOCH.elapsed().expect("a clock");
                }
            }
        });
    }
    let before = SystemTime::UNIX_EPOCH.elapsed().expect("a clock");
    let change = operator.authority("taint", ("x509", &old)).await.expect("it may");
    let answered = SystemTime::UNIX_EPOCH.elapsed().expect("a clock") - before;
    let all = within("new certificates for all", watching.join_all()).await;
    let last = all.into_iter().max().expect("some").saturating_sub(before);
    assert_eq!(change.tasks, STREAMS as u64, "the one with a good certificate keeps it");
    let (_, story) = operator.show(&late.task).await.expect("it goes on");
    assert_eq!(story.iter().filter(|one| one.what == "promised").count(), 2, "it was not asked");
    assert!(last < Duration::from_secs(20), "{last:?}");
    use std::io::Write as _;
    writeln!(
        std::io::stderr(),
        "a taint: answered after {} ms, the last of {STREAMS} streams has a new certificate after {} ms",
        answered.as_millis(),
        last.as_millis()
    )
    .expect("it is open");
}
