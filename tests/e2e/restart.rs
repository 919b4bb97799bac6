//! Crashes, restarts, and directories that are not what they were.

use std::path::Path;

use mayfly_proto::mayfly::v1::{self as wire, begin_task_request::Holder};
use tonic::Code;

use crate::{
    actor::{Actor, X509Stream, copy_of},
    common::{Broker, Operator, Site, task_of, until, within},
    stand::{AUDIENCE, begin_on, configuration, is_valid, stand},
};

async fn shell(script: &str) {
    let run = tokio::process::Command::new("sh").arg("-ec").arg(script).output().await;
    let run = run.expect("sh starts");
    assert!(run.status.success(), "{script}: {run:?}");
}

async fn copy(from: &Path, to: &Path) {
    shell(&format!("rm -rf '{1}'; cp -a '{0}' '{1}'", from.display(), to.display())).await;
}

fn find(tasks: &[wire::TaskView], task: &str) -> wire::TaskView {
    tasks.iter().find(|one| one.task == task).expect("it is remembered").clone()
}

/// kill -9 of the broker: who died meanwhile is over before anybody is served, who lives goes on.
#[tokio::test]
async fn a_restart_ends_the_tasks_of_the_dead_and_keeps_those_of_the_living() {
    let (site, broker, mut operator) = stand().await;
    let (mut met, mut job) =
        (Actor::start(&site.socket()).await, Actor::start(&site.socket()).await);
    let (mut dead, mut dead_job) =
        (Actor::start(&site.socket()).await, Actor::start(&site.socket()).await);
    let job_task = begin_on(&mut operator, job.pid).await;
    let dead_job_task = begin_on(&mut operator, dead_job.pid).await;
    let (met_svid, job_svid) = (met.watch().await, job.x509().await.expect("its task"));
    let dead_task = dead.x509().await.expect("met").task();
    let lost =
        [dead.jwt(AUDIENCE).await, dead_job.jwt(AUDIENCE).await].map(|t| t.expect("a token"));
    let kept = [met.jwt(AUDIENCE).await, job.jwt(AUDIENCE).await].map(|t| t.expect("a token"));

    broker.kill().await;
    dead.kill().await;
    dead_job.kill().await;
    let end = met.stream_end().await;
    assert_ne!(end.code, Code::PermissionDenied as i32, "a crash is no refusal: {end:?}");
    let broker = site.start().await;

    // Looked at once, not waited for: it was over before the socket was there.
    let mut operator = broker.operator().await;
    let tasks = operator.list(true).await.expect("a list");
    for task in [&dead_task, &dead_job_task] {
        let task = find(&tasks, task);
        assert_eq!((task.state.as_str(), task.cause.as_str()), ("ended", "exited"));
    }
    for token in &lost {
        assert!(!is_valid(&broker, token).await, "its task is over");
    }
    for task in [&met_svid.task(), &job_task] {
        assert_eq!(find(&tasks, task).state, "active");
    }
    for token in &kept {
        assert!(is_valid(&broker, token).await, "its task goes on");
    }
    assert_eq!(met.x509().await.expect("still itself").spiffe_id, met_svid.spiffe_id);
    assert_eq!(job.x509().await.expect("still itself").spiffe_id, job_svid.spiffe_id);
    assert_eq!(job.child_x509().await.expect("and its children").task(), job_task);

    // Those that lived through it are still watched.
    job.kill().await;
    let seen = async || {
        (find(&operator.clone().list(true).await.ok()?, &job_task).state == "ended").then_some(())
    };
    until("the end of one that lived on", seen).await;
}

/// A task with a socket of its own gets it back under the same name, wherever such sockets stand, and it goes
/// with its task. What a run that was killed has left of a task that never came to be goes too.
#[tokio::test]
async fn a_task_socket_is_there_again_after_a_restart() {
    for folder in ["data/tasks", "elsewhere"] {
        let told = format!("socket = \"workload.sock\"\ntask_sockets = \"{folder}\"");
        let site = Site::new(&configuration("").replace("socket = \"workload.sock\"", &told));
        let broker = site.start().await;
        let mut operator = broker.operator().await;
        let begun = operator.begin(task_of("booth", Holder::Socket(true))).await.expect("a task");
        let socket = Path::new(&begun.socket);
        assert!(socket.starts_with(site.root().canonicalize().expect("ours").join(folder)));
        let endpoint = mayfly_verify::Endpoint::parse(&format!("unix://{}", begun.socket));
        let client = mayfly_verify::WorkloadClient::new(&endpoint.expect("a path"));
        let before = client.fetch_x509().await.expect("an identity");
        drop(operator);
        broker.kill().await;
        let place = socket.parent().and_then(Path::parent).expect("where they all are");
        let stillborn = place.join(mayfly_core::TaskId::from_bytes([7; 16]).to_string());
        let notes = place.join("notes");
        for folder in [&stillborn, &notes] {
            std::fs::create_dir(folder).expect("a folder");
            std::fs::write(folder.join("workload.sock"), "").expect("a file");
        }
        let broker = site.start().await;
        assert!(!stillborn.exists() && notes.exists(), "only what is a task's");
        let after = until("the socket", async || client.fetch_x509().await.ok()).await;
        assert_eq!(before.svids[0].spiffe_id, after.svids[0].spiffe_id);
        broker.operator().await.end(&begun.task, "completed").await.expect("ended");
        let folder = socket.parent().expect("its own");
        until("an empty place", async || (!folder.exists()).then_some(())).await;
    }
}

/// What has to survive whatever is done to the index.
struct Memory {
    live: String,
    ended: String,
    token: String,
    spoilt: String,
}

impl Memory {
    async fn make(broker: &Broker, operator: &mut Operator) -> Self {
        let mut booth = async || {
            let begun = operator.begin(task_of("booth", Holder::Socket(true))).await;
            let begun = begun.expect("a task");
            let endpoint = mayfly_verify::Endpoint::parse(&format!("unix://{}", begun.socket));
            let client = mayfly_verify::WorkloadClient::new(&endpoint.expect("a path"));
            let token = client.fetch_jwt(&[AUDIENCE], None).await.expect("a token");
            (begun.task, token[0].token.clone())
        };
        let ((live, token), (ended, spoilt)) = (booth().await, booth().await);
        operator.end(&ended, "completed").await.expect("ended");
        assert!(is_valid(broker, &token).await && !is_valid(broker, &spoilt).await);
        Self { live, ended, token, spoilt }
    }

    async fn assert_kept(&self, broker: &Broker) -> Vec<String> {
        let mut operator = broker.operator().await;
        let tasks = operator.list(true).await.expect("a list");
        assert_eq!(find(&tasks, &self.live).state, "active");
        assert_eq!(find(&tasks, &self.ended).cause, "completed");
        assert!(is_valid(broker, &self.token).await && !is_valid(broker, &self.spoilt).await);
        operator.status().await.expect("a status").notices
    }
}

/// The index may be lost, spoilt or old; the log knows everything.
#[tokio::test]
async fn a_lost_index_is_rebuilt_and_nothing_is_forgotten() {
    let (site, broker, mut operator) = stand().await;
    let (index, older) = (site.data().join("store/index"), site.root().join("older"));
    let early = Memory::make(&broker, &mut operator).await;
    assert_eq!(broker.stop().await, Some(0));
    copy(&index, &older).await;
    let broker = site.start().await;
    let late = Memory::make(&broker, &mut broker.operator().await).await;
    broker.kill().await;

    let spoil = format!(
        "for f in $(find '{}' -type f); do head -c 5000 /dev/urandom > $f; done",
        index.display()
    );
    let (delete, empty) = (
        format!("rm -r '{}'", index.display()),
        format!("find '{}' -type f -exec truncate -s 0 {{}} +", index.display()),
    );
    let replace = format!("rm -r '{0}'; cp -a '{1}' '{0}'", index.display(), older.display());
    // An older index is a good beginning, not a fault: what follows it is read from the log.
    for (what, script, is_noticed) in [
        ("garbage", spoil, true),
        ("deleted", delete, false),
        ("emptied", empty, true),
        ("older", replace, false),
    ] {
        shell(&script).await;
        let broker = site.start().await;
        early.assert_kept(&broker).await;
        let notices = late.assert_kept(&broker).await;
        let rebuilt = notices.iter().any(|notice| notice.contains("rebuilt from the log"));
        assert!(rebuilt || !is_noticed, "{what}: {notices:?}");
        let again = Memory::make(&broker, &mut broker.operator().await).await;
        broker.kill().await;
        let broker = site.start().await;
        again.assert_kept(&broker).await;
        broker.kill().await;
    }
}

/// Two daemons cannot share a directory; the first does not notice the second.
#[tokio::test]
async fn a_second_daemon_is_refused_and_the_first_is_unharmed() {
    let (site, mut broker, _operator) = stand().await;
    let mut stream = X509Stream::open(&broker.endpoint());
    let svid = within("a message", stream.next()).await.expect("an identity");
    let refused = site.try_start(&[]).await.expect_err("it is in use");
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.said.contains(&format!("in use by process {}", broker.pid)), "{refused:?}");
    assert!(refused.said.contains("--data-dir"), "the remedy: {refused:?}");
    assert!(broker.lives());
    let same = broker.workload().fetch_x509().await.expect("it serves as before");
    assert_eq!(same.svids[0].spiffe_id, svid.svids[0].spiffe_id);
    assert_eq!(broker.stop().await, Some(0));
    let end = within("the stream's end", stream.next()).await.expect_err("it stopped");
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
}

/// A restored backup would bring revoked credentials back to life, so it is refused until confirmed.
#[tokio::test]
async fn a_restored_store_is_refused_until_an_operator_confirms() {
    let (site, broker, mut operator) = stand().await;
    let begun = operator.begin(task_of("booth", Holder::Socket(true))).await.expect("a task");
    assert_eq!(broker.stop().await, Some(0));
    let (store, backup) = (site.data().join("store"), site.root().join("backup"));
    copy(&store, &backup).await;

    let broker = site.start().await;
    let mut operator = broker.operator().await;
    operator.end(&begun.task, "revoked").await.expect("ended");
    let position = operator.status().await.expect("a status").journal_position;
    assert_eq!(broker.stop().await, Some(0));
    copy(&backup, &store).await;

    for _ in 0..2 {
        let refused = site.try_start(&[]).await.expect_err("records are missing");
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.said.contains("--accept-restored"), "the remedy: {refused:?}");
        assert!(!site.socket().exists(), "nobody is served");
    }
    let broker = site.try_start(&["--accept-restored"]).await.expect("it was confirmed");
    let mut operator = broker.operator().await;
    let status = operator.status().await.expect("a status");
    assert!(status.journal_position > position, "no position is used twice");
    assert!(!status.notices.is_empty(), "and it is said to whoever asks");
    broker.kill().await;
    let broker = site.start().await;
    assert!(broker.operator().await.status().await.expect("a status").issuing);
}

/// The end of the log is torn off while nobody runs: less than the sentinel has seen is refused.
#[tokio::test]
async fn a_log_that_was_cut_is_refused() {
    let (site, broker, mut operator) = stand().await;
    Memory::make(&broker, &mut operator).await;
    assert_eq!(broker.stop().await, Some(0));
    let log = site.data().join("store/log");
    shell(&format!("f=$(ls '{}'/*.seg | tail -1); truncate -s -700 $f", log.display())).await;
    let refused = site.try_start(&[]).await.expect_err("records are missing");
    assert!(refused.said.contains("--accept-restored"), "{refused:?}");
}

/// SIGTERM: streams are told to come back, and the exit is clean.
#[tokio::test]
async fn a_stopped_broker_sends_everybody_away_politely() {
    let (site, broker, _operator) = stand().await;
    let mut actor = Actor::start(&site.socket()).await;
    let svid = actor.watch().await;
    assert_eq!(broker.stop().await, Some(0));
    let end = actor.stream_end().await;
    assert_eq!(end.code, Code::Unavailable as i32, "{end:?}");
    assert!(!site.socket().exists(), "its socket is gone with it");
    let _broker = site.start().await;
    assert_eq!(actor.x509().await.expect("still itself").spiffe_id, svid.spiffe_id);
}

/// A program file that vanished is no reason to lose the task of the process that runs it.
#[tokio::test]
async fn a_restart_knows_a_process_whose_program_is_gone() {
    let (site, broker, _operator) = stand().await;
    let program = site.root().join("program");
    copy_of(&std::env::current_exe().expect("it runs"), &program).await;
    let casting = crate::actor::Casting { program: Some(program.clone()), ..Default::default() };
    let mut actor = Actor::cast(&site.socket(), casting).await;
    let svid = actor.x509().await.expect("met");
    broker.kill().await;
    std::fs::remove_file(&program).expect("it is ours");
    let _broker = site.start().await;
    assert_eq!(actor.x509().await.expect("still itself").spiffe_id, svid.spiffe_id);
}
