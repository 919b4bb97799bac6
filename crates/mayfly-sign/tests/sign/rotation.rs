//! R12: twenty credential lives with rotations in them, and nobody is refused.

use mayfly_core::{Denial, Grant, Kind, Serial, Slot, Span, Timestamp, Window, grant::planted};
use mayfly_sign::{
    AuthorityOrder, JwtSvid, KeyRing, LeafKey, OrderError, RotationPolicy, RotationStep, SignError,
    Standing, X509Svid, jwt, x509,
};

use crate::common::{NOW, domain, id, verify, webpki};

const TTL: Span = Span::from_secs(60);
const STEP: Span = Span(7_300);

fn policy() -> RotationPolicy {
    // The shortest lives allowed, and not the same for both kinds.
    RotationPolicy::new(Span(8 * TTL.0), Span(9 * TTL.0), TTL).expect("a sound policy")
}

fn new_ring() -> KeyRing {
    KeyRing::create(domain(), policy(), NOW).expect("a ring")
}

fn grant(kind: Kind, now: Timestamp, step: u32) -> Grant {
    let place = mayfly_core::Place { window: Window::of(now.plus(TTL)), slot: Slot(step) };
    let serial = Serial::new(place, u64::from(step));
    planted::grant(kind, serial, id("/agent"), (now, TTL), vec!["db".to_owned()])
}

/// What the world saw at one instant.
struct Moment {
    at: Timestamp,
    bundle: Vec<Vec<u8>>,
    jwks: Vec<u8>,
    svid: X509Svid,
    token: JwtSvid,
}

/// Lives through twenty credential lives, calling the ring when it wants to be called.
fn live() -> (Vec<Moment>, Vec<RotationStep>) {
    let mut ring = new_ring();
    let (mut moments, mut steps) = (Vec::new(), Vec::new());
    let mut now = NOW;
    for step in 0.. {
        while ring.poll_timeout() <= now {
            let taken = ring.handle_timeout(now).expect("a rotation");
            assert!(!taken.is_empty(), "it wanted to be called");
            steps.extend(taken);
        }
        assert_eq!(ring.handle_timeout(now).expect("nothing"), Vec::new());
        let signer = ring.signer();
        let key = LeafKey::generate().expect("a key");
        moments.push(Moment {
            at: now,
            bundle: ring.x509_bundle(),
            jwks: ring.jwks(),
            svid: x509::issue(grant(Kind::X509, now, step), &signer, key).expect("an svid"),
            token: jwt::issue(grant(Kind::Jwt, now, step), &signer).expect("a token"),
        });
        now = now.plus(STEP);
        if now.since(NOW) > Span(20 * TTL.0) {
            break;
        }
    }
    (moments, steps)
}

/// The bundle that somebody holds at `at` who fetched it `age` ago.
fn held(moments: &[Moment], at: Timestamp, age: Span) -> &Moment {
    let fetched = at.minus(age);
    moments
        .iter()
        .rev()
        .find(|moment| moment.at <= fetched)
        .unwrap_or_else(|| moments.first().expect("a first moment"))
}

/// Every moment at which somebody shows `shown`'s credentials, which are unexpired then.
fn uses<'a>(moments: &'a [Moment], shown: &'a Moment) -> impl Iterator<Item = Timestamp> + 'a {
    let last = shown.svid.not_after;
    let during = move |at: &Timestamp| *at >= shown.at && *at <= last;
    moments.iter().map(|moment| moment.at).chain([last]).filter(during)
}

#[test]
fn r12_every_credential_is_accepted_all_its_life_by_fresh_and_by_older_bundles() {
    let (moments, steps) = live();
    for shown in &moments {
        let wanted = shown.at.plus(TTL).floor_to_second();
        assert_eq!(shown.svid.not_after, wanted, "no leaf is cut short");
        for at in uses(&moments, shown) {
            for age in [Span(0), Span(TTL.0 / 2)] {
                let held = held(&moments, at, age);
                assert_eq!(webpki(&shown.svid.chain_der, &held.bundle, at, None), Ok(()));
                assert!(verify(&shown.token.token, &held.jwks).is_some());
            }
        }
    }
    let activated = |kind| {
        let is = |step: &&RotationStep| matches!(step, RotationStep::Activated(k, _) if *k == kind);
        steps.iter().filter(is).count()
    };
    assert!(activated(Kind::X509) >= 4, "{steps:?}");
    assert!(activated(Kind::Jwt) >= 3, "{steps:?}");
}

#[test]
fn a_bundle_older_than_the_notice_misses_the_successor() {
    // Without this the test above would also pass if nothing ever rotated.
    let (moments, _) = live();
    let refused = moments.iter().any(|shown| {
        let stale = held(&moments, shown.at, Span(4 * TTL.0));
        webpki(&shown.svid.chain_der, &stale.bundle, shown.at, None).is_err()
    });
    assert!(refused);
}

#[test]
fn an_authority_is_prepared_then_active_then_old_then_gone() {
    let (_, steps) = live();
    for kind in [Kind::X509, Kind::Jwt] {
        let mut prepared = Vec::new();
        let mut activated = Vec::new();
        let mut retired = 0;
        for step in &steps {
            match step {
                RotationStep::Prepared(of, key) if *of == kind => prepared.push(key),
                RotationStep::Activated(of, key) if *of == kind => {
                    assert_eq!(prepared.last(), Some(&key));
                    activated.push(key);
                }
                RotationStep::Retired(of, _) if *of == kind => retired += 1,
                RotationStep::Prepared(..)
                | RotationStep::Activated(..)
                | RotationStep::Retired(..)
                | RotationStep::Tainted(..)
                | RotationStep::Revoked(..) => {}
            }
        }
        assert!(prepared.len() - activated.len() <= 1);
        assert!(activated.len() - retired <= 1, "old ones go");
    }
}

#[test]
fn a_ring_that_overslept_signs_full_lives_at_once() {
    for slept in [Span(7 * TTL.0), Span(15 * TTL.0 / 2), Span(100 * TTL.0)] {
        let mut ring = new_ring();
        let now = NOW.plus(slept);
        ring.handle_timeout(now).expect("a rotation");
        let key = LeafKey::generate().expect("a key");
        let svid = x509::issue(grant(Kind::X509, now, 1), &ring.signer(), key).expect("an svid");
        assert_eq!(svid.not_after, now.plus(TTL).floor_to_second(), "after {slept}");
        assert_eq!(webpki(&svid.chain_der, &ring.x509_bundle(), now, None), Ok(()));
        assert!(ring.poll_timeout() > now);
    }
}

#[test]
fn the_bundle_lists_the_active_authority_first() {
    let mut ring = new_ring();
    let active = ring.signer().x509().certificate_der().to_vec();
    ring.handle_timeout(ring.poll_timeout()).expect("a successor");
    let bundle = ring.x509_bundle();
    assert_eq!((bundle.len(), bundle.first()), (2, Some(&active)));
    let standings: Vec<_> = ring.authorities().iter().map(|one| (one.kind, one.standing)).collect();
    assert_eq!(
        standings,
        [
            (Kind::X509, Standing::Active),
            (Kind::X509, Standing::Prepared),
            (Kind::Jwt, Standing::Active),
        ]
    );
}

/// The key ids of one kind, by standing.
fn ids(ring: &KeyRing, kind: Kind) -> Vec<(String, &'static str)> {
    let all = ring.authorities().into_iter().filter(|one| one.kind == kind);
    all.map(|one| {
        let standing = match one.standing {
            Standing::Active => "active",
            Standing::Prepared => "prepared",
            Standing::Old(_) => "old",
            Standing::Tainted(_) => "tainted",
        };
        (one.key_id, standing)
    })
    .collect()
}

/// Whichever was refused; `None` if it was not.
fn denied(outcome: Result<Option<RotationStep>, OrderError>) -> Option<Denial> {
    match outcome {
        Err(OrderError::Denied(denial)) => Some(denial),
        Err(OrderError::Failed(_)) | Ok(_) => None,
    }
}

#[test]
fn an_operators_orders_go_in_their_order_and_no_other() {
    for kind in [Kind::X509, Kind::Jwt] {
        let mut ring = new_ring();
        let first = ids(&ring, kind)[0].0.clone();
        let mut order = |order: AuthorityOrder| (ring.order(kind, &order, NOW), ids(&ring, kind));
        let name = |id: &str| id.to_owned();

        assert_eq!(
            denied(order(AuthorityOrder::Activate(None)).0),
            Some(Denial::AuthorityNotPrepared)
        );
        for refused in [AuthorityOrder::Taint(name(&first)), AuthorityOrder::Revoke(name(&first))] {
            assert_eq!(denied(order(refused).0), Some(Denial::AuthorityActive));
        }
        let (step, after) = order(AuthorityOrder::Prepare);
        let second = after[1].0.clone();
        assert_eq!(step.expect("made"), Some(RotationStep::Prepared(kind, second.clone())));
        assert_eq!(order(AuthorityOrder::Prepare).0.expect("there is one"), None);
        for refused in [AuthorityOrder::Taint(name(&second)), AuthorityOrder::Revoke(name(&second))]
        {
            assert_eq!(denied(order(refused).0), Some(Denial::AuthorityNotOld));
        }
        let unknown = order(AuthorityOrder::Activate(Some("nobody".to_owned()))).0;
        assert_eq!(denied(unknown), Some(Denial::AuthorityUnknown));
        let (step, after) = order(AuthorityOrder::Activate(Some(second.clone())));
        assert_eq!(step.expect("it may"), Some(RotationStep::Activated(kind, second.clone())));
        assert_eq!(after, [(second.clone(), "active"), (first.clone(), "old")]);
        let again = order(AuthorityOrder::Activate(Some(second.clone()))).0;
        assert_eq!(again.expect("it signs already"), None);
        let old = order(AuthorityOrder::Activate(Some(first.clone()))).0;
        assert_eq!(denied(old), Some(Denial::AuthorityNotPrepared));

        let (step, after) = order(AuthorityOrder::Taint(first.clone()));
        assert_eq!(step.expect("it may"), Some(RotationStep::Tainted(kind, first.clone())));
        assert_eq!(after, [(second.clone(), "active"), (first.clone(), "tainted")]);
        assert_eq!(order(AuthorityOrder::Taint(first.clone())).0.expect("it is"), None);
        let (step, after) = order(AuthorityOrder::Revoke(first.clone()));
        assert_eq!(step.expect("it may"), Some(RotationStep::Revoked(kind, first.clone())));
        assert_eq!(after, [(second, "active")], "it is published no more");
        let again = order(AuthorityOrder::Revoke(first)).0;
        assert_eq!(denied(again), Some(Denial::AuthorityUnknown));
    }
}

#[test]
fn a_tainted_authority_is_withdrawn_when_its_time_comes_and_the_clock_goes_on() {
    let mut ring = new_ring();
    ring.order(Kind::X509, &AuthorityOrder::Prepare, NOW).expect("a successor");
    ring.order(Kind::X509, &AuthorityOrder::Activate(None), NOW).expect("it signs");
    let old = ids(&ring, Kind::X509)[1].0.clone();
    ring.order(Kind::X509, &AuthorityOrder::Taint(old.clone()), NOW).expect("tainted");
    let steps = ring.handle_timeout(NOW.plus(Span(2 * TTL.0 + 1))).expect("steps");
    assert_eq!(steps, [RotationStep::Retired(Kind::X509, old)]);
}

#[test]
fn a_policy_whose_lives_do_not_fit_is_refused() {
    let (long, short) = (Span(8 * TTL.0), Span(8 * TTL.0 - 1));
    for (ca, jwt, credential) in [(short, long, TTL), (long, short, TTL), (long, long, Span(1))] {
        assert!(matches!(RotationPolicy::new(ca, jwt, credential), Err(SignError::Policy(_))));
    }
}
