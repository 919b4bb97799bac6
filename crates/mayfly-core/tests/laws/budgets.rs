//! P13: what a task uses is counted, and ends where it was told to (R45).

use std::collections::BTreeMap;

use mayfly_core::{
    Ask, Basis, Begin, Binding, Budget, Cause, Denial, Event, Fact, PolicyEpoch, Reach, Span,
    TaskVersion, Ticket, Trigger,
};
use proptest::{collection::vec, prelude::*};

use crate::bench::{Bench, START, begin, task, terms};

fn counted(issuances: Option<u64>, per_minute: Option<u32>) -> Begin {
    let mut wish = begin(None);
    wish.mandate.budget = Budget { issuances, per_minute, attempts: None };
    wish
}

/// R45: a loop that never stops asking, delegating or retrying stops where its budget does.
#[test]
fn r45_a_runaway_loop_stops_at_its_cap() {
    let mut bench = Bench::new();
    let mut wish = counted(Some(100), None);
    wish.mandate.reach = Some(Reach { depth: 2, children: 5 });
    wish.deadline = Some(START.plus(Span::from_secs(60)));
    bench.begin(task(1), wish);
    for _ in 0..1_000 {
        let _got = bench.ask(task(1), Ask::X509);
    }
    assert_eq!(bench.released.len(), 100, "P13");
    assert_eq!(bench.denials.len(), 900);
    assert!(bench.denials.iter().all(|denial| *denial == Denial::BudgetSpent));
    // A restart in the middle of it forgets nothing.
    bench.restart(bench.journal.len());
    assert!(bench.ask(task(1), Ask::X509).is_none(), "P13 across a restart");
    // Children: as many as it may have, as deep as it may go, and none with more than it has.
    let mut next = 10;
    for parent in [1, 10, 15] {
        for _ in 0..50 {
            bench.begin(task(next), begin(Some(task(parent))));
            next += u128::from(bench.registrar.task(task(next)).is_some());
        }
    }
    assert_eq!(next, 20, "five below the root, five below the first of them, nothing below those");
    // Duration: its time is up, and the loop is over with all below it.
    bench.now = START.plus(Span::from_secs(60));
    bench.denials.clear();
    assert!(bench.ask(task(1), Ask::X509).is_none());
    assert_eq!(bench.denials, [Denial::TaskEnded]);
    assert!(bench.registrar.tasks().all(|task| task.state.is_ended()));
}

/// R45: callers that come together cannot pass each other, however slow the disk is.
#[test]
fn r45_a_budget_is_kept_by_callers_that_come_together() {
    let mut bench = Bench::new();
    bench.begin(task(1), counted(Some(7), None));
    for number in 0..500 {
        let basis = Basis { task: task(1), version: TaskVersion(1), epoch: PolicyEpoch(1) };
        let event =
            Event::Asked { ticket: Ticket(1_000 + number), basis, ask: Ask::X509, luck: number };
        bench.registrar.handle(bench.now, event);
    }
    let promised = bench.registrar.task(task(1)).map(|task| task.credentials().count());
    assert_eq!(promised, Some(7), "P13");
    bench.tell(Event::JournalFailed);
    assert!(bench.released.is_empty());
}

/// R45: spent ends the task only where it said so.
#[test]
fn r45_a_spent_budget_ends_whoever_named_it_as_a_trigger() {
    for names_it in [false, true] {
        let mut bench = Bench::new();
        let mut wish = counted(Some(1), None);
        wish.mandate.triggers.extend(names_it.then_some(Trigger::Budget));
        bench.begin(task(1), wish);
        assert!(bench.ask(task(1), Ask::X509).is_some());
        assert!(bench.ask(task(1), Ask::X509).is_none());
        assert_eq!(bench.cause(task(1)), names_it.then_some(Cause::BudgetSpent));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// R45 and P13: whatever the pauses and crashes between them, no minute has more than it may.
    #[test]
    fn r45_a_rate_is_kept_in_every_minute(
        pauses in vec((0..25_000_u64, prop::bool::weighted(0.05)), 1..150),
        most in 1..6_u32,
    ) {
        let mut bench = Bench::new();
        bench.begin(task(1), counted(None, Some(most)));
        let mut refused = 0;
        for (pause, crashes) in pauses {
            bench.now = bench.now.plus(Span(pause));
            if crashes {
                bench.restart(bench.journal.len());
            }
            if bench.ask(task(1), Ask::X509).is_none() {
                refused += 1;
            }
        }
        let mut minutes: BTreeMap<u64, u32> = BTreeMap::new();
        for (_, record) in &bench.journal {
            if matches!(record.fact, Fact::Promised { .. }) {
                *minutes.entry(record.at.0 / 60_000).or_default() += 1;
            }
        }
        prop_assert!(minutes.values().all(|count| *count <= most), "P13: {:?}", minutes);
        prop_assert_eq!(bench.denials.len(), refused);
        let rate = bench.denials.iter().all(|denial| {
            // The hour's lease may lapse first.
            matches!(denial, Denial::RateExceeded | Denial::TaskEnded | Denial::LeaseTooShort)
        });
        prop_assert!(rate, "{:?}", bench.denials);
    }
}

/// R8: in every tier, however long the profile and the task say that it may be.
#[test]
fn r8_a_credential_lives_no_longer_than_its_tier_allows() {
    use mayfly_core::Tier;
    let caps = [(Tier::Low, 24 * 3600), (Tier::Medium, 3600), (Tier::High, 300)];
    for (declared, declared_cap) in caps {
        for (least, least_cap) in caps {
            for ttl in [None, Some(60)] {
                let mut bench = Bench::new();
                let mut wish = begin(None);
                wish.terms = terms("p", Binding::Lease);
                wish.terms.x509_ttl = Span::from_secs(24 * 3600);
                wish.terms.jwt_ttl = Span::from_secs(24 * 3600);
                wish.terms.bounds.tier = least;
                wish.mandate.tier = Some(declared);
                wish.mandate.ttl = ttl.map(Span::from_secs);
                wish.lease = Some(Span::from_secs(24 * 3600));
                bench.begin(task(1), wish);
                let cap = ttl.unwrap_or(u64::MAX).min(declared_cap).min(least_cap);
                for ask in [Ask::X509, Ask::Jwt { audience: vec!["a".into()] }] {
                    let (_, until) = bench.ask(task(1), ask).expect("an active task");
                    assert_eq!(until, START.plus(Span::from_secs(cap)), "{declared:?} {least:?}");
                }
            }
        }
    }
}
