//! Many short tasks that come and go with nobody looking after them: R13. How fast is measured by
//! `tests/interop/supervisor` and `benches/churn.rs`; here is what has to hold at any speed.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use mayfly_core::{Fact, Kind, Sequence, Serial, TaskId};
use mayfly_proto::mayfly::v1::{self as wire, begin_task_request::Holder};
use mayfly_verify::{Endpoint, Follower, Patience, Refused, View, WorkloadClient};
use nix::sys::signal::Signal;
use tokio::task::JoinSet;

use crate::{
    actor::{Actor, Casting},
    common::{Operator, PATIENCE, task_of, until},
    stand::{AUDIENCE, begin_on, stand},
};

/// Callers at the same time, and the tasks of each, one after the other.
const CALLERS: usize = 8;
const TASKS: usize = 30;
/// Of those that are held by processes, which cost a start each.
const PROCESSES: usize = 4;

/// What is left of a task when it is over.
struct Left {
    task: String,
    token: String,
    serials: [Serial; 2],
}

/// How the tasks of the callers end, in turn.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Word,
    Lease,
    Revoked,
}

async fn credentials(client: &WorkloadClient) -> ([Serial; 2], String) {
    let context = client.fetch_x509().await.expect("an identity");
    let serial = context.default_svid().and_then(|svid| svid.leaf.serial).expect("one of ours");
    let token = client.fetch_jwt(&[AUDIENCE], None).await.expect("a token").swap_remove(0).token;
    ([serial, jti(&token)], token)
}

fn jti(token: &str) -> Serial {
    let payload = token.split('.').nth(1).expect("three parts");
    let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).expect("base64");
    let claims: serde_json::Value = serde_json::from_slice(&payload).expect("an object");
    Serial::parse(claims["jti"].as_str().expect("a name")).expect("one of ours")
}

async fn refused_by(view: &View, left: &Left) {
    let revoked = |serial| view.admit(serial) == Err(Refused::Revoked);
    until("a follower's no", async || left.serials.iter().all(revoked).then_some(())).await;
}

/// One life of a task that is reached by its own socket.
async fn live(operator: &mut Operator, view: &View, ending: Ending) -> Left {
    let begin = match ending {
        Ending::Word | Ending::Revoked => task_of("booth", Holder::Socket(true)),
        Ending::Lease => {
            let lease = task_of("errand", Holder::LeaseOnly(true));
            wire::BeginTaskRequest { lease_ms: 2_000, ..lease }
        }
    };
    let begun = operator.begin(begin).await.expect("it begins");
    let endpoint = Endpoint::parse(&format!("unix://{}", begun.socket)).expect("a path");
    let (serials, token) = credentials(&WorkloadClient::new(&endpoint)).await;
    if !matches!(ending, Ending::Lease) {
        assert!(serials.iter().all(|serial| view.admit(serial).is_ok()), "accepted while it lives");
    }
    match ending {
        Ending::Word => operator.end(&begun.task, "completed").await.expect("it ends"),
        Ending::Revoked => {
            let target = wire::revoke_request::Target::Task(begun.task.clone());
            operator.revoke(target).await.expect("it ends");
        }
        Ending::Lease => {}
    }
    let left = Left { task: begun.task, token, serials };
    refused_by(view, &left).await;
    left
}

/// One life of a task that is held by a process, which is killed; its child has all and survives.
async fn live_and_be_killed(operator: &mut Operator, socket: &std::path::Path) -> (Actor, Left) {
    let held = Casting { held: true, ..Casting::default() };
    let mut survivor = Actor::cast(socket, held).await;
    let task = begin_on(operator, survivor.pid).await;
    let serial = Serial::parse(&survivor.watch().await.serial).expect("one of ours");
    let token = survivor.jwt(AUDIENCE).await.expect("a token");
    survivor.signal(Signal::SIGKILL);
    let serials = [serial, jti(&token)];
    (survivor, Left { task, token, serials })
}

/// Begins, ends and promises in the log, by task.
fn read_log(data: &std::path::Path) -> BTreeMap<TaskId, [usize; 4]> {
    let mut tasks = BTreeMap::<TaskId, [usize; 4]>::new();
    let read = mayfly_audit::read(&data.join("store").join("log"), Sequence(0), |entry| {
        let at = match entry.record.fact {
            Fact::Began { task, .. } => (task, 0),
            Fact::Ended { task, .. } => (task, 1),
            Fact::Promised { task, kind: Kind::X509, .. } => (task, 2),
            Fact::Promised { task, kind: Kind::Jwt, .. } => (task, 3),
            _ => return,
        };
        tasks.entry(at.0).or_default()[at.1] += 1;
    });
    read.expect("the chain holds");
    tasks
}

/// R13: hundreds of short tasks are begun, given their credentials, ended in four ways, refused and
/// testified. Nobody does anything for it but the orchestrators, and nothing is left.
#[tokio::test]
async fn r13_hundreds_of_short_tasks_come_and_go_and_leave_nothing() {
    let (site, broker, mut operator) = stand().await;
    let follower = Follower::connect(&broker.endpoint(), Patience::Closed { after: PATIENCE });
    follower.ready().await;
    let view = Arc::clone(follower.view());
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (mut operator, view) = (operator.clone(), Arc::clone(&view));
        callers.spawn(async move {
            let mut left = Vec::new();
            for at in 0..TASKS {
                let ending = match at % 15 {
                    0 => Ending::Lease,
                    odd if odd % 2 == 1 => Ending::Revoked,
                    _even => Ending::Word,
                };
                left.push(live(&mut operator, &view, ending).await);
            }
            left
        });
    }
    let mut left = Vec::new();
    let mut survivors = Vec::new();
    for _ in 0..PROCESSES {
        let (survivor, one) = live_and_be_killed(&mut operator, &site.socket()).await;
        refused_by(&view, &one).await;
        survivors.push(survivor);
        left.push(one);
    }
    for more in callers.join_all().await {
        left.extend(more);
    }
    assert_eq!(left.len(), CALLERS * TASKS + PROCESSES);
    // All of them once more, when everything is over: by the follower, and by the broker.
    let mine = broker.workload();
    mine.fetch_jwt_bundles().await.expect("we are met");
    for one in &left {
        refused_by(&view, one).await;
        assert!(mine.validate_jwt(AUDIENCE, &one.token).await.is_err(), "{}", one.task);
    }
    let living = operator.list(false).await.expect("a list");
    let ours: Vec<_> = living.iter().filter(|task| task.profile != "met").collect();
    assert!(ours.is_empty(), "nothing is left: {ours:?}");
    assert!(operator.status().await.expect("it serves").issuing);
    assert_eq!(broker.stop().await, Some(0));
    let log = read_log(&site.data());
    for one in &left {
        let story = log[&TaskId::parse(&one.task).expect("an id")];
        assert_eq!(story[..2], [1, 1], "one begin and one end: {}", one.task);
        assert!(story[2] >= 1 && story[3] >= 1, "both credentials: {}", one.task);
    }
}
