//! Every record that the core can write reads back as it was, and nothing that strangers write
//! makes the codec fall over.

use std::sync::Arc;

use mayfly_audit::{decode, encode};
use mayfly_core::{
    Author, Binding, Bounds, Budget, Cause, CgroupKey, Container, Denial, Extent, Fact, Finding,
    Holder, Kind, Mandate, OnFailure, Part, Place, Pod, ProcessKey, Reach, Record, RequestKey,
    Scope, Serial, Slot, Span, TaskId, TaskVersion, Terms, Tier, Timestamp, Trigger, TrustDomain,
    Unit, Window,
};
use proptest::{option, prelude::*};

fn task() -> impl Strategy<Value = TaskId> {
    any::<[u8; 16]>().prop_map(TaskId::from_bytes)
}

fn serial() -> impl Strategy<Value = Serial> {
    (any::<u32>(), any::<u32>(), any::<u64>()).prop_map(|(window, slot, luck)| {
        Serial::new(Place { window: Window(window), slot: Slot(slot) }, luck)
    })
}

fn finding() -> impl Strategy<Value = Finding> {
    proptest::sample::select(Finding::ALL)
}

fn holder() -> impl Strategy<Value = Holder> {
    let key = (any::<[u8; 16]>(), any::<u64>(), any::<i32>())
        .prop_map(|(boot, inode, pid)| ProcessKey { boot, inode, pid });
    let cgroup = (any::<[u8; 16]>(), any::<u64>(), "/[a-z/]{0,20}")
        .prop_map(|(boot, inode, path)| CgroupKey { boot, inode, path });
    let unit = ("[a-z.]{1,9}", any::<[u8; 16]>(), cgroup.clone());
    let unit = unit.prop_map(|(name, invocation, cgroup)| Unit { name, invocation, cgroup });
    let container = ("[0-9a-f]{64}", cgroup.clone());
    let container = container.prop_map(|(id, cgroup)| Container { id, cgroup });
    let pod = ("[0-9a-f-]{36}", cgroup).prop_map(|(uid, cgroup)| Pod { uid, cgroup });
    prop_oneof![
        unit.prop_map(|unit| Holder::Unit(Box::new(unit))),
        container.prop_map(|container| Holder::Container(Box::new(container))),
        pod.prop_map(|pod| Holder::Pod(Box::new(pod))),
        key.clone().prop_map(Holder::Process),
        key.prop_map(Holder::Lineage),
        "/[a-z/]{0,20}".prop_map(Holder::Cgroup),
        Just(Holder::Socket),
        Just(Holder::Lease),
    ]
}

fn terms() -> impl Strategy<Value = Terms> {
    let words = ("[a-z]{0,8}", "/[a-z]{1,8}", ".{0,8}", "[a-z]{0,8}");
    let bindings = proptest::sample::select(&Binding::ALL[..]);
    let words = (words, bounds());
    let spans = (any::<u64>(), any::<u64>(), option::of(any::<u64>()));
    (words, bindings, any::<bool>(), spans, option::of("[a-z]{1,9}")).prop_map(
        |(
            ((profile, path, owner, hint), bounds),
            binding,
            stable_identity,
            (x509, jwt, ttl),
            domain,
        )| {
            Terms {
                profile,
                path,
                owner,
                binding,
                stable_identity,
                x509_ttl: Span(x509),
                jwt_ttl: Span(jwt),
                task_ttl: ttl.map(Span),
                hint,
                federates_with: domain.iter().flat_map(|name| TrustDomain::parse(name)).collect(),
                bounds,
            }
        },
    )
}

fn began() -> impl Strategy<Value = Fact> {
    let limits = (option::of(any::<u64>()), option::of(any::<u64>()), any::<bool>());
    let key = option::of((any::<[u8; 32]>(), any::<[u8; 32]>()));
    let word = (mandate(), key, author());
    (task(), terms(), holder(), option::of(task()), word, limits).prop_map(
        |(task, terms, holder, parent, (mandate, key, author), (deadline, lease, declared))| {
            Fact::Began {
                task,
                terms: Arc::new(terms),
                holder,
                parent,
                mandate: Arc::new(mandate),
                deadline: deadline.map(Timestamp),
                lease: lease.map(Span),
                declared,
                key: key.map(|(key, body)| RequestKey { key, body }),
                author,
            }
        },
    )
}

fn cause() -> impl Strategy<Value = Cause> {
    proptest::sample::select(&Cause::ALL[..])
}

fn extent() -> impl Strategy<Value = Extent> {
    let names = proptest::collection::btree_set("[a-z/]{1,5}[*]?", 0..3);
    prop_oneof![Just(Extent::Any), names.prop_map(|names| Extent::Only(Arc::new(names)))]
}

fn scope() -> impl Strategy<Value = Scope> {
    (extent(), extent(), extent(), extent()).prop_map(|(actions, resources, audiences, tools)| {
        Scope { actions, resources, audiences, tools }
    })
}

fn budget() -> impl Strategy<Value = Budget> {
    (any::<Option<u64>>(), any::<Option<u32>>(), any::<Option<u32>>())
        .prop_map(|(issuances, per_minute, attempts)| Budget { issuances, per_minute, attempts })
}

fn reach() -> impl Strategy<Value = Reach> {
    (any::<u32>(), any::<u32>()).prop_map(|(depth, children)| Reach { depth, children })
}

fn tier() -> impl Strategy<Value = Tier> {
    proptest::sample::select(&Tier::ALL[..])
}

fn mandate() -> impl Strategy<Value = Mandate> {
    let triggers = proptest::sample::subsequence(Trigger::ALL.to_vec(), 0..3);
    let words = (".{0,9}", ".{0,9}", ".{0,9}", ".{0,9}");
    let bounds = (budget(), option::of(reach()), any::<Option<u64>>());
    (scope(), option::of(tier()), triggers, bounds, words).prop_map(
        |(scope, tier, triggers, (budget, reach, ttl), words)| {
            let (intent, approval, telemetry, escalation) = words;
            let triggers = triggers.into_iter().collect();
            let ttl = ttl.map(Span);
            Mandate {
                intent,
                scope,
                tier,
                triggers,
                budget,
                reach,
                ttl,
                approval: approval.into(),
                telemetry: telemetry.into(),
                escalation: escalation.into(),
            }
        },
    )
}

fn bounds() -> impl Strategy<Value = Bounds> {
    let requires = proptest::sample::subsequence(Part::ALL.to_vec(), 0..4);
    let on_failure = prop_oneof![Just(OnFailure::End), Just(OnFailure::Quarantine)];
    let names = option::of(proptest::collection::btree_set("[a-z]{1,5}", 0..3));
    (requires, scope(), tier(), on_failure, budget(), reach(), names).prop_map(
        |(requires, scope, tier, on_failure, budget, reach, delegates_to)| {
            let requires = requires.into_iter().collect();
            Bounds { requires, scope, tier, on_failure, budget, reach, delegates_to }
        },
    )
}

fn author() -> impl Strategy<Value = Author> {
    (".{0,9}", ".{0,9}").prop_map(|(by, why)| Author { by, why })
}

fn fact() -> impl Strategy<Value = Fact> {
    let kind = prop_oneof![Just(Kind::X509), Just(Kind::Jwt)];
    prop_oneof![
        began(),
        (task(), any::<u32>(), kind, serial(), any::<u64>(), any::<(u64, u32)>()).prop_map(
            |(task, v, kind, serial, t, count)| {
                let (version, not_after) = (TaskVersion(v), Timestamp(t));
                Fact::Promised { task, version, kind, serial, not_after, count }
            }
        ),
        (task(), cause(), option::of(any::<i32>()), author())
            .prop_map(|(task, cause, exit, author)| Fact::Ended { task, cause, exit, author }),
        (task(), task(), option::of(cause()), author())
            .prop_map(|(task, by, cause, author)| Fact::Suspended { task, by, cause, author }),
        (task(), author()).prop_map(|(task, author)| Fact::Resumed { task, author }),
        (task(), ".{0,9}").prop_map(|(task, owner)| Fact::Transferred { task, owner }),
        (task(), any::<u64>())
            .prop_map(|(task, t)| Fact::Renewed { task, lease_until: Timestamp(t) }),
        (task(), any::<u32>(), ".{0,20}", scope(), author()).prop_map(
            |(task, version, intent, scope, author)| {
                let (version, scope) = (TaskVersion(version), Box::new(scope));
                Fact::Amended { task, version, intent, scope, author }
            }
        ),
        (task(), serial(), author()).prop_map(|(task, serial, author)| Fact::CredentialRevoked {
            task,
            serial,
            author
        }),
        (proptest::sample::select(Denial::ALL), option::of(task()), "[a-z]{0,8}")
            .prop_map(|(denial, task, profile)| Fact::Refused { denial, task, profile }),
        (finding(), option::of(serial()), option::of(task()), ".{0,9}", ".{0,9}").prop_map(
            |(finding, serial, task, presenter, verifier)| {
                Fact::Misused { finding, serial, task, presenter, verifier }
            }
        ),
        (".{0,9}", ".{0,9}").prop_map(|(what, detail)| Fact::Noted { what, detail }),
    ]
}

proptest! {
    #[test]
    fn a_record_reads_back_as_it_was(at in any::<u64>(), fact in fact()) {
        let record = Record { at: Timestamp(at), fact };
        prop_assert_eq!(decode(&encode(&record)), Ok(record));
    }

    #[test]
    fn what_is_read_from_garbage_is_an_error_or_a_record_that_reads_back(
        at in any::<u64>(), fact in fact(), place in any::<usize>(), byte in any::<u8>()
    ) {
        let mut bytes = encode(&Record { at: Timestamp(at), fact });
        let place = place % bytes.len();
        if let Some(to) = bytes.get_mut(place) {
            *to = byte;
        }
        if let Ok(record) = decode(&bytes) {
            prop_assert_eq!(decode(&encode(&record)), Ok(record));
        }
    }
}
