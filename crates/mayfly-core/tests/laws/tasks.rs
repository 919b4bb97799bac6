//! Tasks and their credentials: trees, instances, lifetimes, evidence, bounds.

use std::collections::{BTreeMap, BTreeSet};

use mayfly_core::{
    Ask, Author, Binding, Caller, Cause, Claim, Denial, Event, Fact, Finding, Holder, Place,
    ProcessKey, Registrar, Serial, Showing, Span, State, TaskId, Terms, Timestamp, limits,
    registrar::Ground,
};
use proptest::{collection::vec, prelude::*};

use crate::bench::{Bench, START, begin, charter, task, terms};

/// A tree of `parents.len() + 1` tasks: task 0 is the root, and the parent of task `n` is below `n`.
fn forest(nodes_max: usize) -> impl Strategy<Value = Vec<usize>> {
    vec(any::<prop::sample::Index>(), 1..nodes_max)
        .prop_map(|above| above.iter().enumerate().map(|(at, up)| up.index(at + 1)).collect())
}

/// The task and everything below it, computed the slow way.
fn subtree(parents: &[usize], root: usize) -> BTreeSet<usize> {
    let mut below = BTreeSet::from([root]);
    for (at, parent) in parents.iter().enumerate() {
        if below.contains(parent) {
            below.insert(at + 1);
        }
    }
    below
}

fn grown(parents: &[usize]) -> (Bench, BTreeSet<usize>) {
    let mut bench = Bench::new();
    bench.begin(task(0), begin(None));
    let mut alive = BTreeSet::from([0]);
    for (at, parent) in parents.iter().enumerate() {
        // A tree that is too deep is refused, and what would stand below it has no parent then.
        bench.begin(task(at as u128 + 1), begin(Some(task(*parent as u128))));
        if bench.registrar.task(task(at as u128 + 1)).is_some() {
            alive.insert(at + 1);
        }
    }
    (bench, alive)
}

fn credentials(bench: &mut Bench, alive: &BTreeSet<usize>) -> Vec<(usize, Serial)> {
    let mut held = Vec::new();
    for at in alive {
        let (serial, _) = bench.ask(task(*at as u128), Ask::X509).expect("an active task");
        held.push((*at, serial));
    }
    held
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// R41, on trees of up to 1,000 tasks.
    #[test]
    fn an_end_takes_everything_below_and_nothing_beside(
        parents in forest(1_000),
        chosen: prop::sample::Index,
    ) {
        let (mut bench, alive) = grown(&parents);
        let held = credentials(&mut bench, &alive);
        let alive_list: Vec<_> = alive.iter().copied().collect();
        let root = *chosen.get(&alive_list);
        bench.end(task(root as u128));
        let below = subtree(&parents, root);
        for (at, serial) in held {
            let id = task(at as u128);
            let ended = bench.registrar.task(id).is_some_and(|task| task.state.is_ended());
            prop_assert_eq!(ended, below.contains(&at), "task {} under {}", at, root);
            let stands = bench.registrar.standing(id, &serial).is_ok();
            prop_assert_eq!(stands, !below.contains(&at), "P1");
            let refused = bench.registrar.revocations().status(&serial) != mayfly_core::Status::Valid;
            prop_assert_eq!(refused, below.contains(&at), "P3");
        }
    }

    /// R41, and back again.
    #[test]
    fn a_quarantine_takes_everything_below_and_a_release_gives_it_back(
        parents in forest(300),
        chosen: prop::sample::Index,
    ) {
        let (mut bench, alive) = grown(&parents);
        let alive_list: Vec<_> = alive.iter().copied().collect();
        let root = *chosen.get(&alive_list);
        let below = subtree(&parents, root);
        let ticket = bench.ticket();
        bench.tell(Event::QuarantineAsked { ticket, task: task(root as u128), author: Author::default() });
        for at in &alive {
            let state = bench.registrar.task(task(*at as u128)).map(|task| task.state);
            let expected = if below.contains(at) {
                State::Quarantined { by: task(root as u128) }
            } else {
                State::Active
            };
            prop_assert_eq!(state, Some(expected), "task {} under {}", at, root);
        }
        let ticket = bench.ticket();
        bench.tell(Event::ReleaseAsked { ticket, task: task(root as u128), author: Author::default() });
        prop_assert!(bench.registrar.tasks().all(|task| task.state == State::Active));
    }

    /// A crash may tear a cascade anywhere; afterwards nothing lives below what is over (P1, P6).
    #[test]
    fn a_torn_cascade_is_finished_by_the_replay(
        parents in forest(60),
        chosen: prop::sample::Index,
        torn: prop::sample::Index,
    ) {
        let (mut bench, alive) = grown(&parents);
        let before = bench.journal.len();
        let alive_list: Vec<_> = alive.iter().copied().collect();
        let root = *chosen.get(&alive_list);
        bench.end(task(root as u128));
        let ends = bench.journal.len() - before;
        bench.journal.truncate(before + 1 + torn.index(ends));
        let mut back = bench.replayed();
        let _held = back.reconcile();
        let below = subtree(&parents, root);
        for at in &alive {
            let ended = back.task(task(*at as u128)).is_some_and(|task| task.state.is_ended());
            prop_assert_eq!(ended, below.contains(at), "task {} under {}", at, root);
        }
    }
}

fn lifetimes() -> impl Strategy<Value = (Span, Span, Option<Span>, Option<Span>, Option<Span>)> {
    let span = |most: u64| (1..most).prop_map(Span);
    (
        span(200_000_000),
        span(200_000_000),
        prop::option::of(span(4_000_000)),
        prop::option::of(span(4_000_000)),
        prop::option::of((100..4_000_000_u64).prop_map(Span)),
    )
}

proptest! {
    /// R8 and P7, over random profiles, deadlines and leases of a task and of its parent.
    #[test]
    fn no_credential_outlives_any_of_its_caps(
        (x509_ttl, jwt_ttl, task_ttl, deadline, lease) in lifetimes(),
        (_, _, _, parents_deadline, parents_lease) in lifetimes(),
        waits in 0..5_000_000_u64,
        jwt: bool,
    ) {
        let mut bench = Bench::new();
        let mut above = begin(None);
        above.deadline = parents_deadline.map(|span| START.plus(span));
        above.lease = Some(parents_lease.unwrap_or(limits::LEASE_MAX));
        bench.begin(task(1), above);
        let mut wish = begin(Some(task(1)));
        let wished = Terms { x509_ttl, jwt_ttl, task_ttl, ..terms("p", Binding::Lease) };
        wish.terms = wished;
        wish.deadline = deadline.map(|span| START.plus(span));
        wish.lease = Some(lease.unwrap_or(limits::LEASE_MAX));
        bench.begin(task(2), wish);
        bench.now = START.plus(Span(waits));
        let ask = if jwt { Ask::Jwt { audience: vec!["a".into()] } } else { Ask::X509 };
        let ttl = if jwt { jwt_ttl } else { x509_ttl };
        let Some((_, not_after)) = bench.ask(task(2), ask) else { return Ok(()) };
        let caps = [
            Some(bench.now.plus(ttl)),
            Some(bench.now.plus(limits::CREDENTIAL_TTL_MAX)),
            deadline.map(|span| START.plus(span)),
            lease.map(|span| START.plus(span)),
            task_ttl.map(|span| START.plus(span)),
            parents_deadline.map(|span| START.plus(span)),
            parents_lease.map(|span| START.plus(span)),
        ];
        for cap in caps.into_iter().flatten() {
            prop_assert!(not_after <= cap, "P7: {:?} is after {:?}", not_after, cap);
        }
        prop_assert!(not_after > bench.now, "nobody is given what has expired");
        prop_assert_eq!(not_after.0 % 1000, 0);
    }

    /// P8: whoever earns fewer profiles is told of no more tasks, and of none that it did not earn.
    #[test]
    fn fewer_permits_never_grant_more(all in 0..64_u32, some in 0..64_u32, begun in 0..64_u32) {
        let few = all & some;
        let run = |earned: u32| {
            let mut bench = Bench::new();
            let key = ProcessKey { boot: [0; 16], inode: 1, pid: 1 };
            for at in (0..6).filter(|at| begun & (1 << at) != 0) {
                let mut wish = begin(None);
                wish.terms = terms(&format!("p{at}"), Binding::Process);
                wish.holder = Holder::Process(key);
                bench.begin(task(1_000 + at), wish);
            }
            let permits = (0..6).filter(|at| earned & (1 << at) != 0);
            let permits = permits.map(|at| terms(&format!("p{at}"), Binding::Process)).collect();
            let caller = Caller { lineage: vec![key], ..Caller::default() };
            let tasks = bench.meet(caller, permits);
            let profile = |id: &TaskId| {
                bench.registrar.task(*id).map(|task| task.terms.profile.clone())
            };
            tasks.iter().map(|id| profile(id).expect("a task")).collect::<BTreeSet<_>>()
        };
        let (less, more) = (run(few), run(all));
        prop_assert!(less.is_subset(&more), "P8: {:?} is more than {:?}", less, more);
        prop_assert!(few != 0 || less.is_empty(), "P8: silence is No");
        let earned: BTreeSet<_> =
            (0..6).filter(|at| few & (1 << at) != 0).map(|at| format!("p{at}")).collect();
        prop_assert!(less.is_subset(&earned), "P8: {:?} is more than was earned", less);
    }
}

/// P8: a caller of which nothing is known holds nothing.
#[test]
fn a_caller_without_evidence_gets_nothing_whatever_the_verdict() {
    for binding in Binding::ALL {
        let mut bench = Bench::new();
        let found = bench.meet(Caller::default(), vec![terms("p", binding)]);
        assert!(found.is_empty(), "P8: {binding:?}");
    }
}

/// R2: two instances of one profile are told apart, and revoked apart.
#[test]
fn two_instances_have_serials_of_their_own_and_one_can_be_revoked() {
    let mut bench = Bench::new();
    bench.begin(task(1), begin(None));
    bench.begin(task(2), begin(None));
    let (one, _) = bench.ask(task(1), Ask::X509).expect("active");
    let (other, _) = bench.ask(task(2), Ask::X509).expect("active");
    assert_ne!(one.place(), other.place(), "P9: two tasks share a place");
    bench.end(task(1));
    assert_eq!(bench.registrar.standing(task(1), &one).err(), Some(Denial::TaskEnded));
    assert!(bench.registrar.standing(task(2), &other).is_ok());
    let listed: Vec<_> = bench.registrar.revoked_certificates().map(|c| c.serial).collect();
    assert_eq!(listed, [one], "P5: the list holds the one and not the other");
}

/// P5: a quarantine is the one ground that goes away, and it takes nothing along that stays.
#[test]
fn a_quarantined_task_s_certificates_are_on_hold_until_its_release() {
    let mut bench = Bench::new();
    bench.begin(task(1), begin(None));
    let (held, _) = bench.ask(task(1), Ask::X509).expect("active");
    let (alone, _) = bench.ask(task(1), Ask::X509).expect("active");
    bench.ask(task(1), Ask::Jwt { audience: vec!["a".into()] }).expect("active");
    let revoke =
        Event::RevokeAsked { ticket: bench.ticket(), serial: alone, author: Author::default() };
    bench.tell(revoke);
    let grounds = |bench: &Bench| -> BTreeMap<Serial, Ground> {
        let twin = Registrar::replay(charter(), None, bench.journal.clone());
        let listed = bench.registrar.revoked_certificates();
        let listed: BTreeMap<_, _> = listed.map(|entry| (entry.serial, entry.ground)).collect();
        let again = twin.revoked_certificates().map(|entry| (entry.serial, entry.ground));
        assert_eq!(listed, again.collect(), "P6: a replay lists the same");
        listed
    };
    assert_eq!(grounds(&bench), BTreeMap::from([(alone, Ground::Alone)]));
    let quarantine =
        Event::QuarantineAsked { ticket: bench.ticket(), task: task(1), author: Author::default() };
    bench.tell(quarantine.clone());
    let both = BTreeMap::from([(alone, Ground::Alone), (held, Ground::Suspended)]);
    assert_eq!(grounds(&bench), both);
    let release =
        Event::ReleaseAsked { ticket: bench.ticket(), task: task(1), author: Author::default() };
    bench.tell(release);
    assert_eq!(grounds(&bench), BTreeMap::from([(alone, Ground::Alone)]));
    bench.tell(quarantine);
    bench.end(task(1));
    let over = BTreeMap::from([(alone, Ground::Alone), (held, Ground::Ended(Cause::Revoked))]);
    assert_eq!(grounds(&bench), over, "what ends on hold stays on the list");
    let portions: Vec<_> = [None, Some(held.min(alone)), Some(held.max(alone))]
        .map(|last| bench.registrar.revoked_certificates_after(last, 1).count())
        .into();
    assert_eq!(portions, [1, 1, 0]);
}

/// R7: no active task, nothing issued; and when its tasks are over, nothing is left.
#[test]
fn without_an_active_task_nothing_is_issued_and_nothing_is_left() {
    let mut bench = Bench::new();
    assert!(bench.ask(task(1), Ask::X509).is_none(), "no task at all");
    for at in 1..=20 {
        bench.begin(task(at), begin(None));
        assert!(bench.ask(task(at), Ask::X509).is_some());
    }
    let held = bench.released.clone();
    for at in 1..=20 {
        bench.end(task(at));
        assert!(bench.ask(task(at), Ask::X509).is_none(), "an ended task");
    }
    // An idle hour later the registrar does not even remember them.
    bench.now = START.plus(Span::from_secs(3600));
    bench.registrar.handle_timeout(bench.now);
    let live = held.iter().filter(|(_, not_after)| *not_after > bench.now).count();
    assert_eq!(live, 0, "R7: credentials outlive the hour");
    assert_eq!(bench.registrar.tasks().count(), 0);
    assert_eq!(bench.registrar.revoked_certificates().count(), 0);
}

/// R21: whoever reaches the feed can invent serials; that hides no alarm about a task that there is.
#[test]
fn r21_a_flood_of_invented_reports_hides_no_alarm() {
    let mut bench = Bench::new();
    bench.begin(task(1), begin(None));
    let (serial, _) = bench.ask(task(1), Ask::X509).expect("a promise");
    bench.end(task(1));
    let shown = |serial| {
        Event::Shown(Showing {
            serial: Some(serial),
            claim: Claim::NotToBeUsed,
            presenter: String::new(),
            verifier: String::new(),
        })
    };
    for luck in 0..2 * limits::SHOWINGS_REMEMBERED_MAX as u64 {
        bench.tell(shown(Serial::new(Place::default(), luck)));
    }
    bench.tell(shown(serial));
    let found = bench
        .journal
        .iter()
        .any(|(_, record)| matches!(record.fact, Fact::Misused { finding: Finding::AfterEnd, .. }));
    assert!(found, "the alarm about a task that has ended");
}

/// P10: while the disk is slow, repeating a wish does not make the queue longer than its bound, and
/// ends are heard all the same.
#[test]
fn a_slow_disk_fills_a_queue_that_has_an_end() {
    let mut bench = Bench::new();
    bench.begin(task(1), begin(None));
    bench.begin(task(2), begin(None));
    let wishes = limits::RECORDS_IN_FLIGHT_MAX + 10;
    for _ in 0..wishes {
        let ticket = bench.ticket();
        bench.registrar.handle(bench.now, Event::HeartbeatHeard { ticket, task: task(1) });
        bench.obey();
    }
    let refused = bench.denials.iter().filter(|denial| **denial == Denial::Overloaded).count();
    assert_eq!(refused, 10, "P10: a full queue is an answer");
    for _ in 0..5 {
        let ticket = bench.ticket();
        let cause = Cause::Revoked;
        bench.registrar.handle(
            bench.now,
            Event::EndAsked { ticket, task: task(2), cause, author: Author::default() },
        );
        bench.obey();
    }
    assert!(bench.registrar.task(task(2)).is_some_and(|task| task.state.is_ended()));
    let refused = bench.denials.iter().filter(|denial| **denial == Denial::Overloaded).count();
    assert_eq!(refused, 15, "P10: an end takes effect, its answer finds no room");
    let upto = bench.registrar.last_sequence();
    bench.registrar.handle(bench.now, Event::Journaled { upto });
    bench.obey();
    assert_eq!(bench.acknowledged, 2 + limits::RECORDS_IN_FLIGHT_MAX as u64);
}

/// A task that has reached its bound of credentials gets new ones when the old ones have expired.
#[test]
fn the_bound_of_credentials_counts_only_those_that_can_be_used() {
    let mut bench = Bench::new();
    let mut wish = begin(None);
    wish.lease = Some(limits::LEASE_MAX);
    bench.begin(task(1), wish);
    for _ in 0..limits::CREDENTIALS_PER_TASK_MAX {
        assert!(bench.ask(task(1), Ask::X509).is_some());
    }
    assert!(bench.ask(task(1), Ask::X509).is_none(), "P10: one more than the bound");
    assert_eq!(bench.denials, [Denial::Overloaded]);
    bench.now = START.plus(Span::from_secs(3600));
    assert!(bench.ask(task(1), Ask::X509).is_some(), "all of them expired long ago");
}

/// Time that is set back stands still: nothing ended comes back, nothing is older than what was.
#[test]
fn a_clock_that_steps_back_stands_still() {
    let mut bench = Bench::new();
    bench.begin(task(1), begin(None));
    bench.now = START.plus(Span::from_secs(3_600));
    bench.registrar.handle_timeout(bench.now);
    bench.now = Timestamp(0);
    assert!(bench.ask(task(1), Ask::X509).is_none(), "its lease has lapsed");
    assert!(bench.journal.windows(2).all(|two| two[0].1.at <= two[1].1.at), "P9");
}
