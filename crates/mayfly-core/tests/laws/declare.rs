//! What tasks declare, who answers for them, how they change and how they fail (R9, R10, R15, R16).

use std::collections::BTreeMap;

use mayfly_core::{
    Amendment, Ask, Author, Basis, Begin, Binding, Cause, Denial, Event, Extent, Holder, Mandate,
    OnFailure, Part, PolicyEpoch, ProcessKey, Registrar, Scope, Span, State, Status, TaskId,
    TaskVersion, Ticket, Tier, Trigger, scope::Dimension,
};

use crate::bench::{Bench, START, begin, task, terms};

/// A wish that declares every part.
fn complete() -> Begin {
    let only = || Extent::only(["a"]);
    let mandate = Mandate {
        intent: "to show it".into(),
        scope: Scope { actions: only(), resources: only(), audiences: only(), tools: only() },
        tier: Some(Tier::Low),
        triggers: [Trigger::HolderExit].into(),
        approval: "above 100 euros".into(),
        telemetry: "spans".into(),
        escalation: "the owner".into(),
        ..Mandate::default()
    };
    let deadline = Some(START.plus(Span::from_secs(60)));
    Begin { owner: Some("ann".into()), deadline, mandate, ..begin(None) }
}

fn without(part: Part) -> Begin {
    let mut wish = complete();
    let mandate = &mut wish.mandate;
    match part {
        Part::Intent => mandate.intent = " ".into(),
        Part::Scope(Dimension::Actions) => mandate.scope.actions = Extent::Any,
        Part::Scope(Dimension::Resources) => mandate.scope.resources = Extent::Any,
        Part::Scope(Dimension::Audiences) => mandate.scope.audiences = Extent::Any,
        Part::Scope(Dimension::Tools) => mandate.scope.tools = Extent::Any,
        Part::Owner => wish.owner = None,
        Part::Deadline => wish.deadline = None,
        Part::Triggers => mandate.triggers.clear(),
        Part::Risk => mandate.tier = None,
        Part::Approval => mandate.approval = Box::default(),
        Part::Telemetry => mandate.telemetry = Box::default(),
        Part::Escalation => mandate.escalation = Box::default(),
    }
    wish
}

/// R9: each part that a profile demands, and no other.
#[test]
fn r9_each_part_that_a_profile_demands_and_a_task_lacks_refuses_it() {
    for lacks in Part::ALL {
        for demands in Part::ALL {
            let mut bench = Bench::new();
            let mut wish = without(lacks);
            wish.terms.bounds.requires.insert(demands);
            let lacking = wish.terms.bounds.clone();
            let lacking: Vec<_> = lacking
                .lacking(&wish.mandate, (wish.owner.is_some(), wish.deadline.is_some()))
                .collect();
            let refused = bench.refused(task(1), wish);
            let expected = (lacks == demands).then_some(Denial::DeclarationMissing);
            assert_eq!(refused, expected, "{lacks:?} is lacking, {demands:?} is demanded");
            assert_eq!(lacking, Vec::from_iter(expected.map(|_| lacks)), "the refusal names it");
        }
        assert_eq!(Part::parse(lacks.name()), Some(lacks));
    }
}

/// R9: whoever is met declares nothing, so nobody is met under a profile that demands something.
#[test]
fn r9_nobody_is_met_under_a_profile_that_demands_a_declaration() {
    let mut bench = Bench::new();
    let caller = mayfly_core::Caller {
        lineage: vec![ProcessKey { boot: [1; 16], inode: 1, pid: 1 }],
        ..Default::default()
    };
    let mut demanding = terms("p", Binding::Process);
    demanding.bounds.requires.insert(Part::Intent);
    assert!(bench.meet(caller.clone(), vec![demanding]).is_empty());
    assert_eq!(bench.denials, [Denial::NotBound]);
    assert_eq!(bench.meet(caller, vec![terms("p", Binding::Process)]).len(), 1);
}

fn policy(left: &[&str], transfers: &[(&str, &str)]) -> Event {
    Event::PolicyChanged {
        epoch: PolicyEpoch(1),
        gone: Vec::new(),
        left: left.iter().map(|owner| String::from(*owner)).collect(),
        transfers: transfers.iter().map(|(old, new)| ((*old).into(), (*new).into())).collect(),
    }
}

/// R10: no owner, no task; another is told by name.
#[test]
fn r10_a_task_without_an_accountable_owner_is_refused() {
    let mut bench = Bench::new();
    let owned = |owner: &str| Begin { owner: Some(owner.into()), ..begin(None) };
    for bad in ["", " ", &"x".repeat(257)] {
        assert_eq!(bench.refused(task(1), owned(bad)), Some(Denial::Malformed), "{bad:?}");
    }
    assert_eq!(bench.refused(task(1), owned("ann")), None);
    let owner = bench.registrar.task(task(1)).map(|task| task.terms.owner.clone());
    assert_eq!(owner.as_deref(), Some("ann"));
}

/// R10: whoever leaves takes their tasks and all below them along; a transfer keeps them, and their
/// credentials; a restart changes nothing about either.
#[test]
fn r10_an_owner_who_leaves_ends_their_tasks_and_a_transfer_keeps_them() {
    let mut bench = Bench::new();
    let owned = |owner: &str, parent| Begin { owner: Some(owner.into()), ..begin(parent) };
    bench.begin(task(1), owned("ann", None));
    bench.begin(task(2), owned("bob", Some(task(1))));
    bench.begin(task(3), owned("bob", None));
    bench.begin(task(4), owned("eve", Some(task(3))));
    let (of_ann, _) = bench.ask(task(2), Ask::X509).expect("active");
    let (of_bob, _) = bench.ask(task(3), Ask::X509).expect("active");
    bench.tell(policy(&["ann", "bob"], &[("bob", "eve")]));
    assert_eq!(bench.cause(task(1)), Some(Cause::OwnerRemoved));
    assert_eq!(bench.cause(task(2)), Some(Cause::ParentEnded));
    assert_eq!((bench.cause(task(3)), bench.cause(task(4))), (None, None));
    assert_eq!(bench.follower.status(&of_ann), Status::Revoked);
    assert_eq!(bench.follower.status(&of_bob), Status::Valid);
    bench.restart(bench.journal.len());
    let owner = bench.registrar.task(task(3)).map(|task| task.terms.owner.clone());
    assert_eq!(owner.as_deref(), Some("eve"));
    // The shell says it again after each restart, and nothing more comes of it.
    let records = bench.journal.len();
    bench.tell(policy(&["ann", "bob"], &[("bob", "eve")]));
    assert_eq!(bench.journal.len(), records);
    bench.tell(policy(&["eve"], &[]));
    assert_eq!(bench.cause(task(3)), Some(Cause::OwnerRemoved));
}

fn amend(ticket: Ticket, id: TaskId, scope: Scope, if_version: Option<u32>) -> Event {
    let if_version = if_version.map(TaskVersion);
    let amendment = Amendment { intent: None, scope, if_version };
    Event::AmendAsked { ticket, task: id, amendment, author: Author::default() }
}

fn actions(names: &[&str]) -> Scope {
    Scope { actions: Extent::only(names.iter().copied()), ..Scope::default() }
}

/// R15: of a hundred who amend the version that they have read, one wins, and each other is told.
#[test]
fn r15_of_a_hundred_amendments_of_one_version_one_wins() {
    let mut bench = Bench::new();
    bench.begin(task(1), begin(None));
    let before = bench.acknowledged;
    for number in 0..100 {
        let scope = actions(&[&format!("a{number}")]);
        let event = amend(Ticket(1_000 + number), task(1), scope, Some(1));
        bench.registrar.handle(bench.now, event);
    }
    let upto = bench.registrar.last_sequence();
    let _signing = bench.obey();
    bench.tell(Event::Journaled { upto });
    assert_eq!(bench.acknowledged, before + 1);
    assert_eq!(bench.denials, [Denial::VersionConflict; 99]);
    let task = bench.registrar.task(task(1)).expect("live");
    assert_eq!((task.version, &task.mandate.scope), (TaskVersion(2), &actions(&["a0"])));
}

/// R15: a change of scope is a new version, credentials of the old one stop, and so do children that
/// reach further; nothing is amended beyond its profile or parent.
#[test]
fn r15_an_amended_scope_is_a_new_version_within_profile_and_parent() {
    let mut bench = Bench::new();
    let mut wish = begin(None);
    wish.terms.bounds.scope = actions(&["read", "write"]);
    bench.begin(task(1), wish);
    bench.begin(task(2), Begin { mandate: scoped(&["write"]), ..begin(Some(task(1))) });
    bench.begin(task(3), Begin { mandate: scoped(&["read"]), ..begin(Some(task(1))) });
    let (old, _) = bench.ask(task(1), Ask::X509).expect("active");
    let (childs, _) = bench.ask(task(3), Ask::X509).expect("active");
    let ticket = bench.ticket();
    bench.tell(amend(ticket, task(1), actions(&["delete"]), None));
    assert_eq!(bench.denials, [Denial::ExceedsProfile]);
    let ticket = bench.ticket();
    bench.tell(amend(ticket, task(1), actions(&["read"]), None));
    assert_eq!(bench.follower.status(&old), Status::Revoked);
    assert_eq!(bench.registrar.standing(task(1), &old).err(), Some(Denial::TaskVersion));
    assert_eq!(bench.cause(task(2)), Some(Cause::ParentNarrowed), "P12");
    assert_eq!(bench.follower.status(&childs), Status::Valid, "what was within stays");
    bench.denials.clear();
    let ticket = bench.ticket();
    bench.tell(amend(ticket, task(3), actions(&["read", "write"]), None));
    assert_eq!(bench.denials, [Denial::ExceedsParent]);
    bench.end(task(3));
    bench.denials.clear();
    let ticket = bench.ticket();
    bench.tell(amend(ticket, task(3), actions(&["read"]), None));
    assert_eq!(bench.denials, [Denial::TaskEnded]);
}

fn scoped(names: &[&str]) -> Mandate {
    Mandate { scope: actions(names), ..Mandate::default() }
}

fn held(on_failure: OnFailure) -> Bench {
    let mut bench = Bench::new();
    let key = ProcessKey { boot: [1; 16], inode: 1, pid: 1 };
    let mut wish = Begin::new(terms("p", Binding::Process), Holder::Process(key));
    wish.terms.bounds.on_failure = on_failure;
    bench.begin(task(1), wish);
    bench.begin(task(2), begin(Some(task(1))));
    bench
}

/// R16: every way to fail, under both policies, with what is below; also across a restart.
#[test]
fn r16_what_failed_ends_or_is_quarantined_as_its_profile_says() {
    let said = |ticket| Event::EndAsked {
        ticket,
        task: task(1),
        cause: Cause::Failed,
        author: Author::default(),
    };
    let ways: [(Cause, Event); 4] = [
        (Cause::Failed, Event::HolderGone { task: task(1), exit: Some(3) }),
        (Cause::Failed, Event::HolderGone { task: task(1), exit: Some(137) }),
        (Cause::WatcherBlind, Event::WatcherBlinded { task: task(1) }),
        (Cause::Failed, said(Ticket(1_000))),
    ];
    for (cause, event) in ways {
        let mut bench = held(OnFailure::End);
        bench.tell(event.clone());
        assert_eq!(bench.cause(task(1)), Some(cause), "{event:?}");
        assert_eq!(bench.cause(task(2)), Some(Cause::ParentEnded));
        let mut bench = held(OnFailure::Quarantine);
        let (serial, _) = bench.ask(task(2), Ask::X509).expect("active");
        bench.tell(event.clone());
        for _ in 0..2 {
            for id in [task(1), task(2)] {
                let state = bench.registrar.task(id).map(|task| task.state);
                assert_eq!(state, Some(State::Quarantined { by: task(1) }), "{event:?}");
                assert!(bench.ask(id, Ask::X509).is_none(), "nothing is issued");
            }
            assert_eq!(bench.follower.status(&serial), Status::Suspended);
            bench.restart(bench.journal.len());
            // Who is dead is found so, and that is no reason to let go of it.
            bench.tell(Event::HolderGone { task: task(1), exit: None });
        }
    }
    for on_failure in [OnFailure::End, OnFailure::Quarantine] {
        let mut bench = held(on_failure);
        bench.tell(Event::HolderGone { task: task(1), exit: Some(0) });
        assert_eq!(
            bench.cause(task(1)),
            Some(Cause::Exited),
            "an exit without an error is no failure"
        );
    }
}

/// R16 and R19: a release brings back only what somebody holds, and what failed by itself is released
/// by its own name.
#[test]
fn r16_a_release_brings_back_only_what_is_held() {
    let mut bench = held(OnFailure::Quarantine);
    bench.tell(Event::HolderGone { task: task(1), exit: Some(3) });
    let (ticket, author) = (bench.ticket(), Author::default());
    bench.tell(Event::ReleaseAsked { ticket, task: task(1), author });
    assert_eq!(bench.cause(task(1)), Some(Cause::Failed));
    assert_eq!(bench.cause(task(2)), Some(Cause::ParentEnded));

    let mut bench = Bench::new();
    bench.begin(task(1), begin(None));
    let mut wish = begin(Some(task(1)));
    wish.terms.bounds.on_failure = OnFailure::Quarantine;
    bench.begin(task(2), wish);
    let (ticket, author) = (bench.ticket(), Author::default());
    bench.tell(Event::QuarantineAsked { ticket, task: task(1), author });
    bench.end_as(task(2), Cause::Failed);
    let (ticket, author) = (bench.ticket(), Author::default());
    bench.tell(Event::ReleaseAsked { ticket, task: task(1), author });
    let state = |bench: &Bench, id| bench.registrar.task(id).map(|task| task.state);
    assert_eq!(state(&bench, task(1)), Some(State::Active));
    assert_eq!(state(&bench, task(2)), Some(State::Quarantined { by: task(2) }));
    let basis = Basis { task: task(2), version: TaskVersion(1), epoch: PolicyEpoch(1) };
    let ticket = bench.ticket();
    bench.denials.clear();
    bench.tell(Event::Asked { ticket, basis, ask: Ask::X509, luck: 1 });
    assert_eq!(bench.denials, [Denial::TaskQuarantined]);
}

/// What an amendment has overtaken says when, and so does what went with its task, though nobody marks each
/// token at an end; and what is over with its task is not revoked once more.
#[test]
fn each_credential_tells_when_it_was_over() {
    let mut bench = Bench::new();
    bench.begin(task(1), begin(None));
    let jwt = || Ask::Jwt { audience: vec!["a".into()] };
    let [old_token, old_certificate] =
        [jwt(), Ask::X509].map(|ask| bench.ask(task(1), ask).expect("active").0);
    bench.now = bench.now.plus(Span::from_secs(1));
    let amended = bench.now;
    let event = amend(bench.ticket(), task(1), actions(&["read"]), None);
    bench.tell(event);
    let token = bench.ask(task(1), jwt()).expect("active").0;
    let told = |registrar: &Registrar| -> BTreeMap<_, _> {
        let task = registrar.task(task(1)).expect("remembered");
        task.credentials().map(|one| (one.serial, one.revoked_at)).collect()
    };
    let expected = |of_token| {
        let old = [old_token, old_certificate].map(|serial| (serial, Some(amended)));
        old.into_iter().chain([(token, of_token)]).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(told(&bench.registrar), expected(None));
    bench.now = bench.now.plus(Span::from_secs(1));
    bench.end(task(1));
    for registrar in [&bench.registrar, &bench.replayed()] {
        assert_eq!(told(registrar), expected(Some(bench.now)));
    }
    let (records, acknowledged) = (bench.journal.len(), bench.acknowledged);
    let ticket = bench.ticket();
    bench.tell(Event::RevokeAsked { ticket, serial: token, author: Author::default() });
    assert_eq!((bench.journal.len(), bench.acknowledged), (records, acknowledged + 1));
}
