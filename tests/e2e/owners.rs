//! R10 and R16: who is accountable, and what becomes of a task that failed.

use mayfly_proto::mayfly::v1::begin_task_request::Holder;
use nix::sys::signal::Signal;
use tonic::Code;

use crate::{
    actor::{Actor, Casting},
    common::{Operator, Site, own_uid, task_of, until},
    hands::Held,
    stand::{AUDIENCE, configuration, is_valid, stand},
};

/// The usual profiles with another owner for the tasks that have a socket.
fn owned_by(owner: &str, more: &str) -> String {
    let whole = configuration("").replace("socket = \"workload.sock\"", "");
    let booth =
        whole.replace("selectors = []\nowner = \"team\"", "selectors = []\nowner = \"OWNER\"");
    let (_, profiles) = booth.split_once("[[profile]]").expect("profiles");
    format!("{more}\n[[profile]]{}", profiles.replace("OWNER", owner))
}

async fn entry(operator: &Operator, task: &str, what: &str) -> String {
    let told = async || {
        let (_, story) = operator.clone().show(task).await.expect("it is remembered");
        story.into_iter().find(|entry| entry.what == what)
    };
    until("an entry in the log", told).await.detail
}

/// R10: nobody is accountable any more, so nothing of theirs goes on: tokens, streams, children, also when
/// it is a restart that finds it out.
#[tokio::test]
async fn r10_an_owner_who_is_removed_takes_every_credential_along() {
    let (site, broker, mut operator) = stand().await;
    operator.apply(&owned_by("team:old", "")).await.expect("a good file");
    let mut theirs = Held::begin(&mut operator, "booth", "").await;
    let mut child = Held::begin(&mut operator, "booth", &theirs.task).await;
    let errand = mayfly_proto::mayfly::v1::BeginTaskRequest {
        lease_ms: 3_600_000,
        ..task_of("errand", Holder::LeaseOnly(true))
    };
    let others = operator.begin(errand).await.expect("a task of somebody else").task;
    assert!(is_valid(&broker, &theirs.token).await && is_valid(&broker, &child.token).await);

    let applied = operator.apply(&owned_by("team:new", "")).await.expect("a good file");
    assert_eq!(applied.left, ["team:old"]);
    assert!(applied.gone.is_empty(), "the profile stays");
    assert!(applied.differences.contains(&"- owner team:old".to_owned()), "{applied:?}");
    for held in [&mut theirs, &mut child] {
        let end = held.stream_end().await;
        assert_eq!(end.code(), Code::PermissionDenied, "{end:?}");
        assert!(!is_valid(&broker, &held.token).await);
        held.workload.fetch_x509().await.expect_err("nothing more is issued");
    }
    assert_eq!(operator.state(&theirs.task).await, ("ended".into(), "owner_removed".into()));
    let (state, cause) = operator.state(&child.task).await;
    assert_eq!(state, "ended");
    assert!(["owner_removed", "parent_ended"].contains(&cause.as_str()), "{cause}");
    assert_eq!(operator.state(&others).await.0, "active");
    assert!(entry(&operator, &theirs.task, "ended").await.starts_with("owner_removed"));

    // A file that changed while the broker was down is found out before anybody is served.
    let next = Held::begin(&mut operator, "booth", "").await;
    drop(operator);
    broker.kill().await;
    let kept = site.data().join("profiles.toml");
    std::fs::write(&kept, owned_by("team:third", "")).expect("it is ours");
    let broker = site.start().await;
    let mut operator = broker.operator().await;
    assert_eq!(operator.state(&next.task).await, ("ended".into(), "owner_removed".into()));
    assert!(!is_valid(&broker, &next.token).await);
    assert_eq!(operator.state(&others).await.0, "active");
}

/// R10: somebody takes over, and the log says so; a transfer to nobody changes nothing.
#[tokio::test]
async fn r10_a_transfer_keeps_the_tasks_and_is_logged() {
    let (site, broker, mut operator) = stand().await;
    operator.apply(&owned_by("team:old", "")).await.expect("a good file");
    let theirs = Held::begin(&mut operator, "booth", "").await;

    let nobody = owned_by("team:new", "[transfers]\n\"team:old\" = \"team:nobody\"");
    let refused = operator.apply(&nobody).await.expect_err("to nobody");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("`team:nobody` is no owner"), "{refused:?}");
    assert_eq!(operator.state(&theirs.task).await.0, "active");

    let heir = owned_by("team:new", "[transfers]\n\"team:old\" = \"team:new\"");
    operator.apply(&heir).await.expect("a good file");
    let view = operator.show(&theirs.task).await.expect("it goes on").0;
    assert_eq!((view.state.as_str(), view.owner.as_str()), ("active", "team:new"));
    assert_eq!(entry(&operator, &theirs.task, "transferred").await, "to team:new");
    assert!(is_valid(&broker, &theirs.token).await, "its credentials are as they were");
    theirs.workload.fetch_x509().await.expect("and it gets more");

    drop(operator);
    broker.kill().await;
    let broker = site.start().await;
    let mut operator = broker.operator().await;
    let view = operator.show(&theirs.task).await.expect("it goes on").0;
    assert_eq!((view.state.as_str(), view.owner.as_str()), ("active", "team:new"));
    assert!(is_valid(&broker, &theirs.token).await);
}

/// R16: an exit with an error, a kill and an orchestrator's word quarantine what the profile says; an exit
/// without an error ends it. A restart changes nothing about it, and a release ends what nobody holds.
#[tokio::test]
async fn r16_a_task_that_fails_is_quarantined_where_its_profile_says_so() {
    let uid = own_uid();
    let fragile = format!(
        "\n[[profile]]\nname = \"fragile\"\npath = \"/fragile\"\nselectors = [\"unix:uid:{uid}\"]\n\
         owner = \"team\"\nbinding = \"lineage\"\non_failure = \"quarantine\"\n"
    );
    let site = Site::new(&configuration(&fragile));
    let broker = site.start().await;
    let mut operator = broker.operator().await;
    let mut quarantined = Vec::new();
    for (how, cause) in [
        (Some(Signal::SIGUSR1), None),
        (Some(Signal::SIGUSR2), Some("failed")),
        (Some(Signal::SIGKILL), Some("failed")),
        (None, Some("failed")),
    ] {
        let casting = Casting { held: true, ..Casting::default() };
        let mut survivor = Actor::cast(&site.socket(), casting).await;
        let wish = task_of("fragile", Holder::LineagePid(survivor.pid));
        let task = operator.begin(wish).await.expect("a task").task;
        assert_eq!(survivor.watch().await.task(), task);
        let token = survivor.jwt(AUDIENCE).await.expect("a token");
        if let Some(signal) = how {
            survivor.signal(signal);
            survivor.reap().await;
        } else {
            operator.end(&task, "failed").await.expect("it is said");
        }
        let end = survivor.stream_end().await;
        assert_eq!(end.code, Code::PermissionDenied as i32, "{end:?}");
        assert!(!is_valid(&broker, &token).await);
        if let Some(cause) = cause {
            assert!(end.message.starts_with("task_quarantined"), "{end:?}");
            assert_eq!(operator.state(&task).await.0, "quarantined");
            assert!(entry(&operator, &task, "quarantined").await.starts_with(cause));
            quarantined.push((survivor, task, token));
        } else {
            assert_eq!(operator.state(&task).await, ("ended".into(), "exited".into()));
        }
    }
    drop(operator);
    broker.kill().await;
    let broker = site.start().await;
    let mut operator = broker.operator().await;
    for (_, task, token) in &quarantined {
        assert_eq!(operator.state(task).await.0, "quarantined", "a restart releases nobody");
        assert!(!is_valid(&broker, token).await);
    }
    let (mut alive, with_holder, its_token) = quarantined.pop().expect("three of them");
    operator.release(&with_holder).await.expect("an operator may");
    assert_eq!(operator.state(&with_holder).await.0, "active");
    assert!(is_valid(&broker, &its_token).await);
    assert_eq!(alive.x509().await.expect("it goes on").task(), with_holder);
    for (_, task, token) in &quarantined {
        operator.release(task).await.expect("an operator may");
        assert_eq!(
            operator.state(task).await,
            ("ended".into(), "failed".into()),
            "nobody holds it"
        );
        assert!(!is_valid(&broker, token).await);
    }
}
