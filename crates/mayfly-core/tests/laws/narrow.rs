//! P12: authority only narrows down a tree, in every dimension (R38, R39, R41).

use std::collections::BTreeMap;

use mayfly_core::{
    Ask, Begin, Binding, Bounds, Budget, Denial, Extent, Holder, Mandate, Reach, Scope, Serial,
    Span, Status, Task, TaskId, Timestamp, limits, scope::Dimension,
};
use proptest::{collection::vec, option, prelude::*, sample::Index};

use crate::bench::{Bench, START, begin, task, terms};

pub(crate) const NAMES: [&str; 7] = ["a", "ab", "abc", "b", "a*", "ab*", "*"];
/// Words that tell any two extents of these names apart.
pub(crate) const WORDS: [&str; 7] = ["a", "ab", "abc", "abd", "ac", "b", "c"];

pub(crate) fn extents() -> impl Strategy<Value = Extent> {
    option::weighted(0.6, vec(0..NAMES.len(), 0..4)).prop_map(|names| match names {
        None => Extent::Any,
        Some(names) => Extent::only(names.into_iter().filter_map(|at| NAMES.get(at).copied())),
    })
}

/// Whether a name of an extent stands for `word`, said once more and otherwise than the core does.
pub(crate) fn reaches(extent: &Extent, word: &str) -> bool {
    match extent {
        Extent::Any => true,
        Extent::Only(names) => names.iter().any(|name| match name.find('*') {
            Some(at) => {
                word.as_bytes().get(..at).is_some_and(|own| name.as_bytes().starts_with(own))
            }
            None => word == name,
        }),
    }
}

fn scopes() -> impl Strategy<Value = Scope> {
    (extents(), extents(), extents(), extents()).prop_map(
        |(actions, resources, audiences, tools)| Scope { actions, resources, audiences, tools },
    )
}

fn mandates() -> impl Strategy<Value = Mandate> {
    let reach = (0..6_u32, 1..6_u32).prop_map(|(depth, children)| Reach { depth, children });
    let limits = (option::of(1..20_u64), option::of(1..20_u32), option::of(2..100_u64));
    (option::of(scopes()), option::weighted(0.3, reach), limits).prop_map(
        |(scope, reach, (issuances, per_minute, ttl))| Mandate {
            scope: scope.unwrap_or_default(),
            reach,
            budget: Budget { issuances, per_minute, attempts: None },
            ttl: ttl.map(Span::from_secs),
            ..Mandate::default()
        },
    )
}

fn line<'a>(bench: &'a Bench, id: TaskId) -> impl Iterator<Item = &'a Task> {
    let up = |task: &&'a Task| task.parent.and_then(|parent| bench.registrar.task(parent));
    core::iter::successors(bench.registrar.task(id), up)
}

fn no_more<T: PartialOrd>(inner: Option<T>, outer: Option<T>) -> bool {
    outer.is_none_or(|outer| inner.is_some_and(|inner| inner <= outer))
}

/// The first dimension in which `inner` has more than `outer`, which is `levels` above it.
fn wider(inner: &Task, outer: &Task, levels: u32) -> Option<&'static str> {
    let scopes = (&inner.mandate.scope, &outer.mandate.scope);
    for dimension in Dimension::ALL {
        let (inner, outer) = (scopes.0.extent(dimension), scopes.1.extent(dimension));
        if WORDS.iter().any(|word| reaches(inner, word) && !reaches(outer, word)) {
            return Some(dimension.name());
        }
    }
    let (own, above) = (&inner.mandate, &outer.mandate);
    let checks = [
        ("deadline", no_more(inner.deadline, outer.deadline)),
        ("depth", inner.reach().depth.saturating_add(levels) <= outer.reach().depth),
        ("fan-out", inner.reach().children <= outer.reach().children),
        ("issuances", no_more(own.budget.issuances, above.budget.issuances)),
        ("rate", no_more(own.budget.per_minute, above.budget.per_minute)),
        ("ttl", no_more(own.ttl, above.ttl)),
    ];
    checks.into_iter().find(|(_, holds)| !holds).map(|(name, _)| name)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// R39, over whole trees: whatever is claimed, what is there is within everything above it.
    #[test]
    fn r39_a_child_is_never_wider_than_its_parent_in_any_random_tree(
        claims in vec((any::<Index>(), mandates(), option::of(1..4_000_u64)), 1..60),
        bounds in (scopes(), option::of(1..10_u64)),
    ) {
        let mut bench = Bench::new();
        let mut there: Vec<TaskId> = Vec::new();
        for (at, (above, mandate, deadline)) in claims.into_iter().enumerate() {
            let id = task(at as u128);
            let mut wish = begin((!there.is_empty()).then(|| *above.get(&there)));
            wish.mandate = mandate;
            wish.deadline = deadline.map(|seconds| START.plus(Span::from_secs(seconds)));
            wish.terms.bounds = Bounds {
                scope: bounds.0.clone(),
                budget: Budget { issuances: bounds.1, ..Budget::default() },
                ..Bounds::default()
            };
            bench.begin(id, wish);
            there.extend(bench.registrar.task(id).map(|task| task.id));
        }
        let mut children: BTreeMap<TaskId, u32> = BTreeMap::new();
        for id in &there {
            let mut line = line(&bench, *id);
            let Some(own) = line.next() else { continue };
            if let Some(parent) = own.parent {
                *children.entry(parent).or_default() += 1;
            }
            for (levels, above) in (1..).zip(line) {
                let wider = wider(own, above, levels);
                prop_assert_eq!(wider, None, "P12: {} below {}", own.id, above.id);
            }
            let scope = (&own.mandate.scope, &bounds.0);
            for dimension in Dimension::ALL {
                let (inner, outer) = (scope.0.extent(dimension), scope.1.extent(dimension));
                let within = WORDS.iter().all(|word| !reaches(inner, word) || reaches(outer, word));
                prop_assert!(within, "P12: {} is wider than its profile", own.id);
            }
        }
        for (parent, count) in children {
            let most = bench.registrar.task(parent).map(|task| task.reach().children);
            prop_assert!(most.is_some_and(|most| count <= most), "P12: fan-out of {}", parent);
        }
    }

    /// R39 and R40: a token names nobody whom any task above would not have named.
    #[test]
    fn r39_a_token_names_only_audiences_of_the_whole_line(
        line in vec(extents(), 1..6),
    ) {
        let mut bench = Bench::new();
        let mut last = None;
        let mut held = Vec::new();
        for (at, audiences) in line.into_iter().enumerate() {
            let mut wish = begin(last);
            wish.mandate.scope.audiences = audiences.clone();
            bench.begin(task(at as u128), wish);
            if bench.registrar.task(task(at as u128)).is_some() {
                last = Some(task(at as u128));
                held.push(audiences);
            }
        }
        let last = last.expect("the first is never refused");
        for word in WORDS {
            let got = bench.ask(last, Ask::Jwt { audience: vec![word.into()] }).is_some();
            let all = held.iter().all(|extent| reaches(extent, word));
            prop_assert_eq!(got, all, "{}", word);
        }
    }
}

fn bounded() -> Mandate {
    Mandate {
        scope: Scope {
            actions: Extent::only(["read", "write"]),
            resources: Extent::only(["db/*"]),
            audiences: Extent::only(["db"]),
            tools: Extent::only(["sql"]),
        },
        budget: Budget { issuances: Some(10), per_minute: Some(5), attempts: None },
        reach: Some(Reach { depth: 3, children: 4 }),
        ttl: Some(Span::from_secs(60)),
        ..Mandate::default()
    }
}

type Widen = fn(&mut Begin);

/// One step too far in each dimension. Only the last three are not said by a profile's bounds.
const WIDER: [(&str, Widen); 13] = [
    ("actions", |wish| wish.mandate.scope.actions = Extent::only(["read", "delete"])),
    ("resources", |wish| wish.mandate.scope.resources = Extent::only(["db/1", "d*"])),
    ("audiences", |wish| wish.mandate.scope.audiences = Extent::only(["*"])),
    ("tools", |wish| wish.mandate.scope.tools = Extent::only(["sql", "shell"])),
    ("issuances", |wish| wish.mandate.budget.issuances = Some(11)),
    ("rate", |wish| wish.mandate.budget.per_minute = Some(6)),
    ("depth", |wish| wish.mandate.reach = Some(Reach { depth: 4, children: 4 })),
    ("fan-out", |wish| wish.mandate.reach = Some(Reach { depth: 2, children: 5 })),
    ("everything", |wish| wish.mandate.scope.actions = Extent::only(["*"])),
    ("prefix", |wish| wish.mandate.scope.resources = Extent::only(["db*"])),
    ("ttl", |wish| wish.mandate.ttl = Some(Span::from_secs(61))),
    ("deadline", |wish| wish.deadline = Some(START.plus(Span::from_secs(601)))),
    ("depth below", |wish| wish.mandate.reach = Some(Reach { depth: 3, children: 4 })),
];

/// R39: in any single dimension, and nothing is left of the attempt.
#[test]
fn r39_wider_in_any_single_dimension_is_refused() {
    let mut bench = Bench::new();
    let above = Begin {
        mandate: bounded(),
        deadline: Some(START.plus(Span::from_secs(600))),
        ..begin(None)
    };
    bench.begin(task(1), above);
    for (what, widen) in WIDER {
        let mut wish = begin(Some(task(1)));
        widen(&mut wish);
        bench.denials.clear();
        bench.begin(task(2), wish);
        assert_eq!(bench.denials, [Denial::ExceedsParent], "P12: {what}");
        assert!(bench.registrar.task(task(2)).is_none(), "P12: {what}");
    }
    bench.begin(task(2), begin(Some(task(1))));
    let child = bench.registrar.task(task(2)).expect("whoever claims nothing inherits");
    assert_eq!(child.mandate.scope, bounded().scope);
    assert_eq!(child.mandate.budget, bounded().budget);
    assert_eq!(child.mandate.ttl, bounded().ttl);
    assert_eq!(child.deadline, Some(START.plus(Span::from_secs(600))));
    assert_eq!(child.mandate.reach, Some(Reach { depth: 2, children: 4 }));
}

/// R39: the profile is a bound like a parent.
#[test]
fn r39_wider_than_the_profile_in_any_single_dimension_is_refused() {
    let Mandate { scope, budget, reach, .. } = bounded();
    let bounds = Bounds { scope, budget, reach: reach.expect("told"), ..Bounds::default() };
    for (what, widen) in WIDER.iter().take(WIDER.len() - 3) {
        let mut bench = Bench::new();
        let mut wish = begin(None);
        wish.terms.bounds = bounds.clone();
        widen(&mut wish);
        bench.begin(task(1), wish);
        assert_eq!(bench.denials, [Denial::ExceedsProfile], "P12: {what}");
    }
    let mut bench = Bench::new();
    let mut wish = begin(None);
    wish.terms.task_ttl = Some(Span::from_secs(600));
    wish.deadline = Some(START.plus(Span::from_secs(601)));
    bench.begin(task(1), wish);
    assert_eq!(bench.denials, [Denial::DeadlineTooLate], "refused, not capped");
}

/// R38 and R39: a delegation leaves something out, reaches no deeper and no wider than it may, and
/// goes to nobody whom the profile does not name.
#[test]
fn r39_a_delegation_is_strictly_narrower_and_has_its_limits() {
    let mut bench = Bench::new();
    let mut above = begin(None);
    above.mandate = bounded();
    above.mandate.reach = Some(Reach { depth: 1, children: 2 });
    above.terms.bounds.delegates_to = Some(["p".into()].into());
    bench.begin(task(1), above);
    let mut refused = |id: u128, parent: u128, edit: Widen| {
        let mut wish = Begin { delegated: true, ..begin(Some(task(parent))) };
        wish.mandate.scope.actions = Extent::only(["read"]);
        edit(&mut wish);
        bench.denials.clear();
        bench.begin(task(id), wish);
        bench.denials.first().copied()
    };
    let same: Widen = |wish| wish.mandate.scope.actions = Extent::only(["write", "read"]);
    assert_eq!(refused(2, 1, same), Some(Denial::NotNarrower));
    let empty: Widen = |wish| wish.mandate.scope = Scope::default();
    assert_eq!(refused(2, 1, empty), Some(Denial::NotNarrower));
    let other: Widen = |wish| wish.terms.profile = "q".into();
    assert_eq!(refused(2, 1, other), Some(Denial::DelegationNotPermitted));
    assert_eq!(refused(2, 1, |_| {}), None);
    assert_eq!(refused(3, 2, |wish| wish.delegated = false), Some(Denial::TooDeep));
    assert_eq!(refused(3, 1, |_| {}), None);
    assert_eq!(refused(4, 1, |_| {}), Some(Denial::TooManyChildren));
    bench.end(task(3));
    let mut wish = begin(Some(task(1)));
    wish.terms = terms("p", Binding::Lease);
    bench.begin(task(4), wish);
    assert!(bench.registrar.task(task(4)).is_some(), "an ended child makes room");
}

/// R38: the line of actors stands in every credential, the nearest first.
#[test]
fn r38_the_line_of_actors_is_the_line_of_parents() {
    let mut bench = Bench::new();
    bench.begin(task(0), begin(None));
    for at in 1..=u128::from(limits::DEPTH_MAX) {
        bench.begin(task(at), begin(Some(task(at - 1))));
        let own = bench.registrar.task(task(at)).expect("within the bound");
        let above: Vec<_> = line(&bench, task(at)).skip(1).map(Task::spiffe_id).collect();
        let actors: Vec<_> = bench.registrar.actors_of(task(at)).collect();
        assert_eq!(actors, above);
        assert_eq!((own.root, u128::from(own.depth)), (task(0), at));
    }
    let deepest = u128::from(limits::DEPTH_MAX);
    bench.begin(task(deepest + 1), begin(Some(task(deepest))));
    assert_eq!(bench.denials, [Denial::TooDeep]);
}

/// R41: each of a thousand is refused by the registrar and by a follower, in one delta; the tree beside
/// it goes on.
#[test]
fn r41_a_tree_of_a_thousand_ends_with_its_root() {
    let mut bench = Bench::new();
    let (tree, beside) = (0..1_000_u128, 1_000..1_100_u128);
    bench.begin(task(0), begin(None));
    bench.begin(task(1_000), begin(None));
    let mut luck = 7_u128;
    let mut held: Vec<(TaskId, Serial)> = Vec::new();
    for at in tree.clone().skip(1).chain(beside.clone().skip(1)) {
        luck = luck.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1) % (1 << 61);
        let first = if at < 1_000 { 0 } else { 1_000 };
        bench.begin(task(at), begin(Some(task(first + (luck >> 20) % (at - first)))));
    }
    for at in tree.chain(beside) {
        let (serial, _) = bench.ask(task(at), Ask::X509).expect("an active task");
        held.push((task(at), serial));
    }
    let heard = bench.deltas;
    bench.end(task(0));
    assert_eq!(bench.deltas, heard + 1, "all of it is told at once");
    for (at, (id, serial)) in held.iter().enumerate() {
        let over = at < 1_000;
        assert_eq!(bench.registrar.standing(*id, serial).is_err(), over, "task {at}");
        let status = if over { Status::Revoked } else { Status::Valid };
        assert_eq!(bench.follower.status(serial), status, "task {at}");
        assert_eq!(bench.ask(*id, Ask::X509).is_none(), over, "task {at}");
    }
    assert_eq!(bench.registrar.revoked_certificates().count(), 1_000);
}

/// R39 and R43: an attempt has no more than its job, and no longer.
#[test]
fn r39_a_job_s_attempts_are_within_the_job() {
    let mut bench = Bench::new();
    let mut job = Begin::new(terms("p", Binding::Lease), Holder::Job);
    job.mandate = bounded();
    job.deadline = Some(START.plus(Span::from_secs(600)));
    bench.begin(task(1), job);
    for (what, widen) in WIDER {
        let mut wish = begin(Some(task(1)));
        widen(&mut wish);
        bench.begin(task(2), wish);
        assert!(bench.registrar.task(task(2)).is_none(), "P12: {what}");
    }
    bench.begin(task(2), begin(Some(task(1))));
    let until = bench.registrar.task(task(2)).and_then(|task| task.deadline);
    assert_eq!(until, Some(Timestamp(START.0 + 600_000)), "within its window");
}
