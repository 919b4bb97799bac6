//! The Task API: what orchestrators declare, and what becomes of it (R9, R10, R13, R15, R45).

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use mayfly::clock;
use mayfly_proto::mayfly::v1::{
    self as wire, holder_wish::Holder, watch_response::What, wish::Wish,
};
use mayfly_verify::{Endpoint, WorkloadClient};
use tonic::Code;

use crate::{
    api::{Api, Outcome, code, names, refused, scoped, wish},
    common::{Broker, Operator, Site, until, within},
    stand::{AUDIENCE, configuration, is_valid, stand_with},
};

const STRICT: &str = r#"
[[profile]]
name = "strict"
path = "/strict"
selectors = []
owner = "team"
binding = "socket"
max_task = "1h"
requires = ["intent", "actions", "resources", "audiences", "tools", "owner", "deadline", "triggers",
            "risk", "approval", "telemetry", "escalation"]
"#;

pub(crate) async fn stage(more: &str) -> (Site, Broker, Operator, Api) {
    let (site, broker, operator) = stand_with(more).await;
    let api = Api::of(&site);
    (site, broker, operator, api)
}

pub(crate) fn socket_of(begun: &wire::BeginResponse) -> WorkloadClient {
    let endpoint = Endpoint::parse(&format!("unix://{}", begun.socket)).expect("a path");
    WorkloadClient::new(&endpoint)
}

pub(crate) async fn token(
    begun: &wire::BeginResponse,
) -> Result<String, mayfly_verify::WorkloadError> {
    let mut tokens = socket_of(begun).fetch_jwt(&[AUDIENCE], None).await?;
    Ok(tokens.pop().expect("never empty").token)
}

fn keyed(key: &str) -> wire::BeginRequest {
    wire::BeginRequest {
        idempotency_key: key.to_owned(),
        lease_ms: 60_000,
        ..wish("errand", Holder::Lease(true))
    }
}

fn complete() -> wire::BeginRequest {
    let scope = wire::Scope {
        actions: names(&["read"]),
        resources: names(&["db/*"]),
        audiences: names(&[AUDIENCE]),
        tools: names(&["search"]),
    };
    wire::BeginRequest {
        owner: "team".to_owned(),
        deadline_ms: clock::now().0 + 60_000,
        declaration: Some(wire::Declaration {
            intent: "count what is there".to_owned(),
            scope: Some(scope),
            risk: "medium".to_owned(),
            triggers: vec!["deadline".to_owned()],
            approval: "none".to_owned(),
            telemetry: "spans".to_owned(),
            escalation: "team on call".to_owned(),
            ..wire::Declaration::default()
        }),
        ..wish("strict", Holder::Socket(true))
    }
}

type Drop = fn(&mut wire::BeginRequest, &mut wire::Declaration, &mut wire::Scope);

#[tokio::test]
async fn r9_what_a_profile_demands_and_a_task_lacks_is_named() {
    let (_site, _broker, _operator, api) = stage(STRICT).await;
    let begun = api.begin(complete()).await.expect("everything is declared");
    let view = api.get(&begun.task).await.expect("it is there");
    assert_eq!((view.risk.as_str(), view.owner.as_str()), ("medium", "team"));
    assert_eq!(view.scope, complete().declaration.and_then(|told| told.scope));
    assert_eq!(view.deadline_ms, begun.deadline_ms);
    let parts: [(&str, Drop); 12] = [
        ("intent", |_, d, _| d.intent.clear()),
        ("actions", |_, _, s| s.actions = None),
        ("resources", |_, _, s| s.resources = None),
        ("audiences", |_, _, s| s.audiences = None),
        ("tools", |_, _, s| s.tools = None),
        ("owner", |r, _, _| r.owner.clear()),
        ("deadline", |r, _, _| r.deadline_ms = 0),
        ("triggers", |_, d, _| d.triggers.clear()),
        ("risk", |_, d, _| d.risk.clear()),
        ("approval", |_, d, _| d.approval = " ".to_owned()),
        ("telemetry", |_, d, _| d.telemetry.clear()),
        ("escalation", |_, d, _| d.escalation.clear()),
    ];
    let without = |drops: &[Drop]| {
        let mut request = complete();
        let mut told = request.declaration.take().expect("told");
        let mut scope = told.scope.take().expect("told");
        drops.iter().for_each(|drop| drop(&mut request, &mut told, &mut scope));
        told.scope = Some(scope);
        wire::BeginRequest { declaration: Some(told), ..request }
    };
    for (part, drop) in parts {
        let (status, denial, detail) = refused(api.begin(without(&[drop])).await);
        assert_eq!((status, denial.as_str()), (Code::InvalidArgument, "declaration_missing"));
        assert_eq!(detail, format!("the profile `strict` demands: {part}"));
    }
    let (_, _, detail) = refused(api.begin(without(&[parts[3].1, parts[6].1])).await);
    assert_eq!(detail, "the profile `strict` demands: audiences, deadline");
}

#[tokio::test]
async fn r10_a_task_has_an_owner_who_is_known() {
    let (_site, _broker, _operator, api) = stage("").await;
    let owned = |owner: &str| wire::BeginRequest {
        owner: owner.to_owned(),
        ..wish("booth", Holder::Socket(true))
    };
    let (status, denial, detail) = refused(api.begin(owned("somebody")).await);
    assert_eq!((status, denial.as_str()), (Code::NotFound, "owner_unknown"));
    assert!(detail.contains("somebody"), "{detail}");
    for owner in ["team", ""] {
        let begun = api.begin(owned(owner)).await.expect("an owner of the profiles");
        assert_eq!(api.get(&begun.task).await.expect("it is there").owner, "team");
    }
}

#[tokio::test]
async fn what_cannot_be_begun_is_named() {
    let (_site, _broker, _operator, api) = stage(STRICT).await;
    let now = clock::now().0;
    let booth = || wish("booth", Holder::Socket(true));
    let nowhere = "0".repeat(32);
    for (request, status, denial, detail) in [
        (wish("nothing", Holder::Socket(true)), Code::NotFound, "profile_unknown", "nothing"),
        (
            wire::BeginRequest { parent: nowhere.clone(), ..booth() },
            Code::NotFound,
            "task_unknown",
            "",
        ),
        (
            wire::BeginRequest { parent: "x".to_owned(), ..booth() },
            Code::InvalidArgument,
            "malformed",
            "parent",
        ),
        (
            wire::BeginRequest { deadline_ms: now - 1, ..booth() },
            Code::InvalidArgument,
            "deadline_passed",
            "",
        ),
        (
            wire::BeginRequest { deadline_ms: now + 7_200_000, ..complete() },
            Code::InvalidArgument,
            "deadline_too_late",
            "`max_task`",
        ),
        (
            wire::BeginRequest { holder: None, ..booth() },
            Code::InvalidArgument,
            "malformed",
            "holder",
        ),
        (wish("booth", Holder::ProcessPid(1)), Code::FailedPrecondition, "holder_unfit", ""),
        (wish("booth", Holder::ProcessPid(-1)), Code::InvalidArgument, "malformed", "pid"),
        (
            wire::BeginRequest { lease_ms: 1, ..wish("errand", Holder::Lease(true)) },
            Code::InvalidArgument,
            "lease_out_of_range",
            "",
        ),
    ] {
        let told = refused(api.begin(request).await);
        assert_eq!((told.0, told.1.as_str()), (status, denial), "{told:?}");
        assert!(told.2.contains(detail), "{told:?}");
    }
    assert_eq!(code(api.delegate(&nowhere, booth()).await), "task_unknown");
    assert!(api.list(wire::Filter::default()).await.is_empty(), "nothing is half done");
}

#[tokio::test]
async fn a_wish_that_is_told_twice_is_carried_out_once_also_after_kill_9() {
    let (site, broker, _operator, api) = stage("").await;
    let all = join_all((0..10).map(|_| api.begin(keyed("step-1")))).await;
    let tasks: BTreeSet<_> = all.into_iter().map(|one| one.expect("begun").task).collect();
    assert_eq!(tasks.len(), 1, "one wish, one task");
    let first = tasks.into_iter().next().expect("one");

    let other = wire::BeginRequest { lease_ms: 50_000, ..keyed("step-1") };
    let (status, denial, _) = refused(api.begin(other).await);
    assert_eq!((status, denial.as_str()), (Code::AlreadyExists, "idempotency_conflict"));

    // The answer stays the same when the process that was named is gone.
    let mut child = tokio::process::Command::new("sleep").arg("60").spawn().expect("it starts");
    let pid = i32::try_from(child.id().expect("it runs")).expect("a pid");
    let of_child = || wire::BeginRequest {
        idempotency_key: "child".to_owned(),
        ..wish("job", Holder::LineagePid(pid))
    };
    let begun = api.begin(of_child()).await.expect("begun").task;
    child.kill().await.expect("it is ours");
    let over = async || {
        let view = api.get(&begun).await.expect("it is remembered");
        (view.state == "ended").then_some(())
    };
    until("the end of its task", over).await;
    assert_eq!(api.begin(of_child()).await.expect("the same answer").task, begun);

    broker.kill().await;
    let _broker = site.start().await;
    let api = Api::of(&site);
    assert_eq!(api.begin(keyed("step-1")).await.expect("the same answer").task, first);
    assert_eq!(api.begin(of_child()).await.expect("the same answer").task, begun);
    let other = wire::BeginRequest { lease_ms: 50_000, ..keyed("step-1") };
    assert_eq!(code(api.begin(other).await), "idempotency_conflict");
    assert_eq!(api.list(wire::Filter::default()).await.len(), 1);
}

#[tokio::test]
async fn a_caller_that_waits_no_longer_learns_by_its_key_what_became_of_its_wish() {
    let (_site, _broker, _operator, api) = stage("").await;
    for n in 0..20 {
        let key = format!("hasty-{n}");
        let hasty = api.begin_within(keyed(&key), Duration::from_micros(300 * (n + 1))).await;
        let later = api.begin(keyed(&key)).await.expect("told again");
        if let Ok(hasty) = hasty {
            assert_eq!(hasty.task, later.task);
        }
    }
    let begun = api.list(wire::Filter::default()).await;
    assert_eq!(begun.len(), 20, "each was carried out once");
}

#[tokio::test]
async fn an_end_is_answered_the_same_however_often_it_is_told() {
    let (_site, _broker, _operator, api) = stage("").await;
    let begun = api.begin(keyed("once")).await.expect("begun");
    let beat = api.heartbeat(&begun.task).await.expect("it lives");
    assert!(beat.lease_until_ms >= begun.lease_until_ms && beat.version == 1, "{beat:?}");
    let first = api.end(&begun.task, "superseded").await.expect("ended");
    assert_eq!((first.state.as_str(), first.cause.as_str()), ("ended", "superseded"));
    let again = api.end(&begun.task, "completed").await.expect("the same answer");
    assert_eq!(again, first);
    assert_eq!(code(api.heartbeat(&begun.task).await), "task_ended");
    let amend = wire::AmendRequest { task: begun.task.clone(), ..Default::default() };
    assert_eq!(code(api.amend(amend).await), "task_ended");
    for bad in ["exited", "deadline", "Completed"] {
        assert_eq!(code(api.end(&begun.task, bad).await), "malformed");
    }
    let story = wire::GetRequest { task: begun.task.clone(), timeline: true };
    let story = api.0.clone().get(story).await.expect("a story").into_inner().timeline;
    let words: Vec<_> = story.iter().map(|entry| entry.what.as_str()).collect();
    assert_eq!(words, ["began", "renewed", "ended", "refused", "refused"], "{story:?}");
    assert!(story[2].detail.contains("the test says so"), "{story:?}");
}

#[tokio::test]
async fn pages_hold_everything_once_and_are_for_their_own_query() {
    let (_site, _broker, _operator, api) = stage("").await;
    let begin = |n: u32| Wish::Begin(keyed(&n.to_string()));
    let outcomes = api.batch((0..25).map(begin).collect()).await.expect("a batch");
    let begun = |outcome: &Outcome| match outcome {
        Outcome::Begun(begun) => begun.task.clone(),
        other => panic!("{other:?}"),
    };
    let begun: BTreeSet<_> = outcomes.iter().map(begun).collect();
    let (mut seen, mut token, mut sizes) = (Vec::new(), String::new(), Vec::new());
    loop {
        let page = api.page(wire::Filter::default(), (10, &token)).await.expect("a page");
        sizes.push(page.tasks.len());
        seen.extend(page.tasks.into_iter().map(|task| task.task));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
        let other = wire::Filter { ended: true, ..Default::default() };
        let (status, denial, _) = refused(api.page(other, (10, &token)).await);
        assert_eq!((status, denial.as_str()), (Code::InvalidArgument, "page_invalid"));
    }
    assert_eq!(sizes, [10, 10, 5]);
    assert!(seen.is_sorted(), "in the order of their names");
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), begun);
    assert_eq!(code(api.page(wire::Filter::default(), (10, "AAAA")).await), "page_invalid");
    assert_eq!(code(api.page(wire::Filter::default(), (1001, "")).await), "malformed");
    let odd = wire::Filter { state: "odd".to_owned(), ..Default::default() };
    assert_eq!(code(api.page(odd, (10, "")).await), "malformed");
    for (filter, count) in [
        (wire::Filter { profile: "booth".to_owned(), ..Default::default() }, 0),
        (wire::Filter { owner: "team".to_owned(), ..Default::default() }, 25),
        (wire::Filter { state: "quarantined".to_owned(), ..Default::default() }, 0),
        (
            wire::Filter {
                spiffe_id_prefix: "spiffe://example.org/errand/".to_owned(),
                ..Default::default()
            },
            25,
        ),
    ] {
        assert_eq!(api.list(filter).await.len(), count);
    }
}

#[tokio::test]
async fn a_batch_answers_each_wish_in_its_order_and_one_bad_wish_spoils_nothing() {
    let (_site, _broker, _operator, api) = stage("").await;
    let task = api.begin(keyed("before")).await.expect("begun").task;
    let end =
        |task: &str| Wish::End(wire::EndRequest { task: task.to_owned(), ..Default::default() });
    let beat = Wish::Heartbeat(wire::HeartbeatRequest { task: task.clone() });
    let wishes = vec![
        Wish::Begin(keyed("a")),
        beat,
        Wish::Begin(wish("nothing", Holder::Socket(true))),
        end("odd"),
        Wish::Begin(keyed("b")),
        end(&task),
    ];
    let outcomes = api.batch(wishes).await.expect("a batch");
    let words: Vec<_> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Begun(_) => "begun".to_owned(),
            Outcome::Heartbeat(_) => "beat".to_owned(),
            Outcome::Amended(_) => "amended".to_owned(),
            Outcome::Ended(ended) => ended.state.clone(),
            Outcome::Refused(no) => format!("{} {}", no.status, no.code),
        })
        .collect();
    assert_eq!(words, ["begun", "beat", "5 profile_unknown", "3 malformed", "begun", "ended"]);
    assert_eq!(api.list(wire::Filter::default()).await.len(), 2);
    assert!(api.batch(Vec::new()).await.expect("nothing is fine").is_empty());
    let many = (0..1001).map(|_| end(&task)).collect();
    let (status, denial, _) = refused(api.batch(many).await);
    assert_eq!((status, denial.as_str()), (Code::InvalidArgument, "malformed"));
    let most = (0..1000).map(|n| Wish::Begin(keyed(&format!("many-{n}")))).collect();
    let outcomes = api.batch(most).await.expect("a thousand");
    assert!(outcomes.iter().all(|one| matches!(one, Outcome::Begun(_))));
    assert_eq!(api.list(wire::Filter::default()).await.len(), 1002);
}

#[tokio::test]
async fn of_100_amends_one_wins_by_version_and_without_it_each_makes_one() {
    let (_site, _broker, _operator, api) = stage("").await;
    let task = api.begin(keyed("amended")).await.expect("begun").task;
    let amend = |n: u32, if_version: u32| {
        let intent = Some(format!("intent {n}"));
        api.amend(wire::AmendRequest {
            task: task.clone(),
            intent,
            if_version,
            ..Default::default()
        })
    };
    let answers = join_all((0..100).map(|n| amend(n, 1))).await;
    let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 99));
    assert!(lost.into_iter().all(|answer| code(answer) == "version_conflict"));
    let answers = join_all((0..100).map(|n| amend(n, 0))).await;
    let versions: BTreeSet<_> = answers.into_iter().map(|one| one.expect("amended")).collect();
    assert_eq!(versions, (3..=102).collect());
    assert_eq!(api.get(&task).await.expect("it is there").version, 102);
}

#[tokio::test]
async fn r15_a_token_of_the_scope_before_is_refused_as_an_older_version() {
    let (_site, broker, _operator, api) = stage("").await;
    let scope = |tools: &[&str]| wire::Scope {
        audiences: names(&[AUDIENCE]),
        tools: names(tools),
        ..wire::Scope::default()
    };
    let begun = api.begin(scoped("booth", scope(&["search", "write"]))).await.expect("begun");
    let old = token(&begun).await.expect("a token");
    let certificate = socket_of(&begun).fetch_x509().await.expect("an identity");
    assert!(is_valid(&broker, &old).await);
    let narrower = wire::AmendRequest {
        task: begun.task.clone(),
        scope: Some(wire::Scope { tools: names(&["search"]), ..wire::Scope::default() }),
        reason: "it writes no more".to_owned(),
        ..Default::default()
    };
    assert_eq!(api.amend(narrower).await.expect("amended"), 2);
    assert!(!is_valid(&broker, &old).await, "the token of version 1");
    let new = token(&begun).await.expect("a token of version 2");
    assert!(is_valid(&broker, &new).await);
    let view = api.get(&begun.task).await.expect("it is there");
    assert_eq!(view.scope.clone().and_then(|scope| scope.tools), names(&["search"]));
    assert_eq!(view.scope.and_then(|scope| scope.audiences), names(&[AUDIENCE]), "as it was");
    let later = socket_of(&begun).fetch_x509().await.expect("an identity");
    let serial = |context: &mayfly_verify::X509Context| context.svids[0].leaf.serial;
    assert_ne!(serial(&later), serial(&certificate));
    let versions: BTreeSet<_> = view.credentials.iter().map(|one| one.version).collect();
    assert_eq!(versions, BTreeSet::from([1, 2]));
    // Another audience than the scope's is nobody's to have.
    let other = socket_of(&begun).fetch_jwt(&["elsewhere"], None).await.expect_err("out of scope");
    assert!(other.to_string().contains("audience_out_of_scope"), "{other}");
}

/// R13: begun, used and ended without a hand, many at a time, and nothing is left over.
#[tokio::test]
async fn r13_tasks_come_and_go_without_a_manual_step() {
    const ROUNDS: usize = 4;
    const AT_ONCE: usize = 50;
    let (_site, broker, _operator, api) = stage("").await;
    for round in 0..ROUNDS {
        let live = async |n: usize| {
            let wish = wire::BeginRequest {
                idempotency_key: format!("churn-{round}-{n}"),
                ..wish("booth", Holder::Socket(true))
            };
            let begun = api.begin(wish).await.expect("begun");
            let workload = socket_of(&begun);
            workload.fetch_x509().await.expect("an X.509-SVID");
            let token = token(&begun).await.expect("a JWT-SVID");
            api.end(&begun.task, "").await.expect("ended");
            token
        };
        let tokens = join_all((0..AT_ONCE).map(live)).await;
        for token in tokens.iter().step_by(10) {
            assert!(!is_valid(&broker, token).await, "its task is over");
        }
    }
    let booths = wire::Filter { profile: "booth".to_owned(), ..Default::default() };
    assert!(api.list(booths.clone()).await.is_empty());
    let all = api.list(wire::Filter { ended: true, ..booths }).await;
    assert_eq!(all.len(), ROUNDS * AT_ONCE);
    assert!(all.iter().all(|task| task.cause == "completed"), "each by its own end");
}

/// R45: one budget, however many ask at once.
#[tokio::test]
async fn r45_of_64_callers_at_once_exactly_as_many_are_served_as_the_budget_has() {
    let (_site, _broker, _operator, api) = stage("").await;
    let budget = wire::Budget { issuances: Some(10), ..wire::Budget::default() };
    let declaration = Some(wire::Declaration { budget: Some(budget), ..Default::default() });
    let wish = wire::BeginRequest { declaration, ..wish("booth", Holder::Socket(true)) };
    let begun = api.begin(wish).await.expect("begun");
    let answers = join_all((0..64).map(|_| token(&begun))).await;
    let (served, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((served.len(), refused.len()), (10, 54));
    for no in refused {
        let no = no.expect_err("refused").to_string();
        assert!(no.contains("budget_spent"), "{no}");
    }
    assert_eq!(api.get(&begun.task).await.expect("it is there").issued, 10);
}

#[tokio::test]
async fn an_orchestrator_that_vanishes_loses_its_leases_and_nothing_else() {
    let (site, _broker, _operator, api) = stage("").await;
    let leased = |key: &str| wire::BeginRequest { lease_ms: 1_500, ..keyed(key) };
    let vanishing = Api::of(&site);
    let lost = vanishing.begin(leased("lost")).await.expect("begun").task;
    let kept = api.begin(leased("kept")).await.expect("begun").task;
    let unbound = vanishing.begin(wish("booth", Holder::Socket(true))).await.expect("begun").task;
    let held = wish("job", Holder::LineagePid(i32::try_from(std::process::id()).expect("a pid")));
    let held = vanishing.begin(held).await.expect("begun").task;
    drop(vanishing);
    let lapsed = async || {
        api.heartbeat(&kept).await.expect("its orchestrator lives");
        let view = api.get(&lost).await.expect("it is remembered");
        (view.state == "ended").then_some(view)
    };
    let view = until("the end of the lease", lapsed).await;
    assert_eq!(view.cause, "lease_lapsed");
    assert!(view.ended_at_ms >= view.lease_until_ms, "not before: {view:?}");
    for task in [kept, unbound, held] {
        assert_eq!(api.get(&task).await.expect("it is there").state, "active");
    }
}

#[tokio::test]
async fn a_watch_tells_what_there_is_and_then_every_change_in_order() {
    let (_site, broker, mut operator, api) = stage("").await;
    let before = api.begin(keyed("before")).await.expect("begun").task;
    let filter = wire::Filter { profile: "errand".to_owned(), ..Default::default() };
    let mut stream = api.watch(filter).await.expect("a stream");
    let first = within("a task", stream.message()).await.expect("a message").expect("a task");
    let task_of = |response: &wire::WatchResponse| match &response.what {
        Some(What::Task(task)) => task.clone(),
        other => panic!("{other:?} is no task"),
    };
    assert_eq!((task_of(&first).task, first.change.as_str()), (before.clone(), ""));
    let synced = within("synced", stream.message()).await.expect("a message").expect("synced");
    assert_eq!(synced.what, Some(What::Synced(true)));

    api.begin(wish("booth", Holder::Socket(true))).await.expect("begun, and none of its business");
    let after = api.begin(keyed("after")).await.expect("begun").task;
    operator.quarantine(&after).await.expect("quarantined");
    operator.release(&after).await.expect("released");
    api.end(&after, "failed").await.expect("ended");
    api.heartbeat(&before).await.expect("it lives");
    let (mut heard, mut positions) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let change = within("a change", stream.message()).await.expect("a message");
        let change = change.expect("a change");
        let task = task_of(&change);
        heard.push((task.task, change.change, task.state));
        positions.push(change.position);
    }
    let wanted = [
        (&after, "began", "active"),
        (&after, "quarantined", "quarantined"),
        (&after, "released", "active"),
        (&after, "ended", "ended"),
        (&before, "renewed", "active"),
    ];
    let wanted =
        wanted.map(|(task, change, state)| (task.clone(), change.to_owned(), state.to_owned()));
    assert_eq!(heard, wanted);
    assert!(positions.is_sorted() && positions[0] > 0, "{positions:?}");

    // It never ends well: a client takes a good end for the end of its work.
    let end = async {
        loop {
            match within("the end of the stream", stream.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended well"),
                Err(status) => break status,
            }
        }
    };
    let (status, stopped) = tokio::join!(end, broker.stop());
    assert_eq!((status.code(), stopped), (Code::Unavailable, Some(0)), "{status:?}");
}

#[tokio::test]
async fn a_watch_of_a_state_tells_who_enters_it_and_who_leaves() {
    let (_site, _broker, mut operator, api) = stage("").await;
    let [one, other] = [keyed("one"), keyed("other")];
    let one = api.begin(one).await.expect("begun").task;
    let other = api.begin(other).await.expect("begun").task;
    operator.quarantine(&one).await.expect("quarantined");
    let filter = wire::Filter { state: "quarantined".to_owned(), ..Default::default() };
    let mut stream = api.watch(filter).await.expect("a stream");
    let mut next = async || {
        let message = within("a message", stream.message()).await.expect("a message");
        match message.expect("a message").what {
            Some(What::Task(task)) => (task.task, task.state),
            Some(What::Synced(_)) | None => ("synced".to_owned(), String::new()),
        }
    };
    assert_eq!(next().await, (one.clone(), "quarantined".to_owned()));
    assert_eq!(next().await.0, "synced");
    api.heartbeat(&other).await.expect("nothing to tell");
    operator.quarantine(&other).await.expect("quarantined");
    assert_eq!(next().await, (other.clone(), "quarantined".to_owned()));
    api.end(&one, "").await.expect("ended");
    assert_eq!(next().await, (one, "ended".to_owned()));
    operator.release(&other).await.expect("released");
    assert_eq!(next().await, (other, "active".to_owned()));
}

#[tokio::test]
async fn the_task_api_and_the_operators_stand_on_every_socket_and_are_described() {
    let site = Site::new(&configuration("[tasks]\nsocket = \"public.sock\"\nmode = \"0660\"\n"));
    let _broker = site.start().await;
    use std::os::unix::fs::PermissionsExt as _;
    let public = site.socket().with_file_name("public.sock");
    for (path, mode) in [
        (site.data().join("tasks.sock"), 0o666),
        (site.data().join("admin.sock"), 0o600),
        (public, 0o660),
    ] {
        let name = path.display();
        let meta = std::fs::metadata(&path).expect("it is there");
        assert_eq!(meta.permissions().mode() & 0o777, mode, "{name}");
        let api = Api::over(crate::api::channel(&path));
        assert!(api.list(wire::Filter::default()).await.is_empty());
        let mut operator = Operator(crate::api::operator_at(&path));
        operator.status().await.expect("an operator");
    }
}
