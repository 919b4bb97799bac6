//! The lives that tasks of the soak have, from begin to refusal.

use std::{path::Path, sync::Arc, time::Duration};

use mayfly::clock;
use mayfly_proto::mayfly::v1::{
    self as wire, AmendRequest, BeginResponse, GetRequest, HeartbeatRequest, holder_wish::Holder,
};
use mayfly_verify::{Endpoint, WorkloadClient};
use tokio::time::sleep;
use tonic::Code;

use crate::{
    broker,
    measure::Fault,
    shared::{Held, Shared, What},
    worker::{Worker, expiry_and_name},
};

/// Whom tokens are meant for.
pub(crate) const AUDIENCE: &str = "soak";
/// What keeps a lease alive, and how often it is given.
const LEASE_MS: u64 = 4_000;
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often a life fetches anew.
const FETCH: Duration = Duration::from_secs(2);

/// A task as its orchestrator knows it, with every credential that was fetched for it.
struct Task {
    id: String,
    socket: String,
    held: Vec<Held>,
    begun: u64,
}

/// One life: every fourth is a process that is killed, every fourth a lease, the others sockets, half of
/// which are amended.
pub(crate) async fn live(shared: Arc<Shared>, number: usize) {
    let lived = match number % 4 {
        0 => process(&shared, number).await,
        1 => lease(&shared, number).await,
        _ => guest(&shared, number).await,
    };
    if let Err(fault) = lived {
        shared.count(What::Failed, &fault.to_string());
    }
}

/// One to twelve seconds: most see no renewal, some see two.
fn length(number: usize) -> Duration {
    Duration::from_millis(u64::try_from(1_000 + (number * 2_711) % 11_000).unwrap_or(1_000))
}

async fn begin(
    shared: &Shared,
    profile: &str,
    (holder, lease_ms): (Holder, u64),
    number: usize,
) -> Result<Task, Fault> {
    let begun = clock::monotonic_ns();
    let request =
        wire::BeginRequest { lease_ms, ..broker::begin(profile, holder, number.to_string()) };
    let asked = || async { Ok(shared.tasks.clone().begin(request.clone()).await?.into_inner()) };
    let BeginResponse { task: id, socket, .. } = shared.patiently(asked).await?;
    shared.count(What::Begun, "");
    Ok(Task { id, socket, held: Vec::new(), begun })
}

/// A process that holds its task and is killed with it.
async fn process(shared: &Shared, number: usize) -> Result<(), Fault> {
    let mut worker = Worker::start(&shared.socket)?;
    let task = begin(shared, "process", (Holder::ProcessPid(worker.pid()?), 0), number).await;
    let mut task = match task {
        Ok(task) => task,
        Err(fault) => {
            worker.kill().await?;
            return Err(fault);
        }
    };
    worker.go().await?;
    let over = tokio::time::Instant::now() + length(number);
    while let Ok(Some(told)) = tokio::time::timeout_at(over, worker.next()).await {
        let held = told?;
        shared.fetched(&held);
        if task.held.len() == 1 {
            shared.wait("begin_to_credential", task.begun);
        } else if task.held.len() > 1 {
            shared.count(What::Renewed, "");
        }
        task.held.push(held);
    }
    let killed = clock::monotonic_ns();
    // What it had said before it died is its task's too.
    task.held.extend(worker.kill().await?);
    shared.count(What::Killed, "");
    over_and_done(shared, &task, killed).await
}

/// A task with a socket of its own, that is fetched from and at last ended.
async fn guest(shared: &Shared, number: usize) -> Result<(), Fault> {
    let mut task = begin(shared, "guest", (Holder::Socket(true), 0), number).await?;
    let lived = stay(shared, &mut task, number, None).await;
    let ended = end(shared, &task).await;
    lived?;
    over_and_done(shared, &task, ended?).await
}

/// A task that heartbeats keep alive. Half of these lapse.
async fn lease(shared: &Shared, number: usize) -> Result<(), Fault> {
    let mut task = begin(shared, "lease", (Holder::Lease(true), LEASE_MS), number).await?;
    let lived = stay(shared, &mut task, number, Some(HEARTBEAT)).await;
    let lapses = number % 8 == 1;
    if lapses && lived.is_ok() {
        shared.count(What::Lapsed, "");
        sleep(Duration::from_millis(LEASE_MS)).await;
        return over_and_done(shared, &task, 0).await;
    }
    let ended = end(shared, &task).await;
    lived?;
    over_and_done(shared, &task, ended?).await
}

/// Fetches for as long as the life lasts, and amends in the middle of some.
async fn stay(
    shared: &Shared,
    task: &mut Task,
    number: usize,
    heartbeat: Option<Duration>,
) -> Result<(), Fault> {
    let client = WorkloadClient::new(&Endpoint::parse(&format!("unix://{}", task.socket))?);
    fetch(shared, task, &client).await?;
    shared.wait("begin_to_credential", task.begun);
    let over = tokio::time::Instant::now() + length(number);
    let (mut fetch_at, mut amends) = (tokio::time::Instant::now() + FETCH, number % 4 == 2);
    while tokio::time::Instant::now() < over {
        sleep(heartbeat.unwrap_or(FETCH).min(over - tokio::time::Instant::now())).await;
        if heartbeat.is_some() && !beat(shared, task).await? {
            // The broker was away for longer than the lease: the task has lapsed in order.
            shared.count(What::Lapsed, "");
            return Ok(());
        }
        if amends {
            amends = false;
            amend(shared, task).await?;
        }
        if tokio::time::Instant::now() >= fetch_at {
            fetch(shared, task, &client).await?;
            shared.count(What::Renewed, "");
            fetch_at = tokio::time::Instant::now() + FETCH;
        }
    }
    Ok(())
}

async fn fetch(shared: &Shared, task: &mut Task, client: &WorkloadClient) -> Result<(), Fault> {
    let asked = || async {
        let context = client.fetch_x509().await?;
        let tokens = client.fetch_jwt(&[AUDIENCE], None).await?;
        let leaf = context.default_svid().map(|svid| &svid.leaf).ok_or("no certificate")?;
        let token = tokens.first().ok_or("no token")?;
        Ok([(leaf.serial.ok_or("no serial")?, leaf.not_after), expiry_and_name(&token.token)?])
    };
    let held = match shared.patiently(asked).await {
        Ok(held) => held,
        // A lease can lapse between two heartbeats while the broker starts anew.
        Err(fault) if task_is_over(&fault) => return Ok(()),
        Err(fault) => return Err(fault),
    };
    for one in held {
        // A certificate is the task's for half of its life, so it may come twice.
        if !task.held.contains(&one) {
            shared.fetched(&one);
            task.held.push(one);
        }
    }
    Ok(())
}

/// A heartbeat; `false` if the task is over.
async fn beat(shared: &Shared, task: &Task) -> Result<bool, Fault> {
    let request = HeartbeatRequest { task: task.id.clone() };
    let asked = || async { Ok(shared.tasks.clone().heartbeat(request.clone()).await?) };
    match shared.patiently(asked).await {
        Ok(_) => Ok(true),
        Err(fault) if task_is_over(&fault) => Ok(false),
        Err(fault) => Err(fault),
    }
}

fn task_is_over(fault: &Fault) -> bool {
    fault.to_string().contains("task_ended")
}

/// Another version: what was issued before has to be refused, though the task lives on.
async fn amend(shared: &Shared, task: &mut Task) -> Result<(), Fault> {
    let intent = Some("something else".to_owned());
    let request = AmendRequest { task: task.id.clone(), intent, ..AmendRequest::default() };
    let asked = || async { Ok(shared.tasks.clone().amend(request.clone()).await?) };
    shared.patiently(asked).await?;
    shared.count(What::Amended, "");
    shared.refused(&std::mem::take(&mut task.held), 0).await;
    Ok(())
}

/// Ends a task; the instant at which that was wished.
async fn end(shared: &Shared, task: &Task) -> Result<u64, Fault> {
    let asked_at = clock::monotonic_ns();
    let asked = || async { Ok(shared.tasks.clone().end(broker::end(task.id.clone())).await?) };
    match shared.patiently(asked).await {
        Ok(_) => {
            shared.count(What::Ended, "");
            Ok(asked_at)
        }
        Err(fault) if task_is_over(&fault) => Ok(asked_at),
        Err(fault) => Err(fault),
    }
}

/// Nothing of it is accepted any more, and the broker says that it is over.
async fn over_and_done(shared: &Shared, task: &Task, since: u64) -> Result<(), Fault> {
    shared.refused(&task.held, since).await;
    let request = GetRequest { task: task.id.clone(), ..GetRequest::default() };
    let asked = || async { Ok(shared.tasks.clone().get(request.clone()).await?.into_inner()) };
    match shared.patiently(asked).await {
        Ok(answer) => {
            let state = answer.task.map(|view| view.state).unwrap_or_default();
            if state != "ended" {
                shared.count(What::Lost, &format!("the broker says `{state}`"));
            }
            Ok(())
        }
        // It was over for so long that it is forgotten.
        Err(fault) if is_unknown(&fault) => Ok(()),
        Err(fault) => Err(fault),
    }
}

fn is_unknown(fault: &Fault) -> bool {
    fault.downcast_ref::<tonic::Status>().is_some_and(|status| status.code() == Code::NotFound)
}

/// Where workers ask.
pub(crate) fn endpoint(socket: &Path) -> Result<Endpoint, Fault> {
    Ok(Endpoint::parse(&format!("unix://{}", socket.display()))?)
}
