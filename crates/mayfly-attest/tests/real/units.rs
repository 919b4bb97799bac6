//! Units, containers and pods: real cgroups in the places that engines use, and a real bus.

use std::time::Duration;

use mayfly_attest::{
    CollectOptions, Collector, Engine, Exit, Peer, Seen, Sighting, Systemd, Watcher,
    find_container, find_pod, find_unit, is_alive,
    systemd::{self, Word},
};
use mayfly_core::{
    dwelling::Unit,
    evidence::{Evidence, Holder},
    id::TaskId,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixListener,
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

use crate::{
    den::Den,
    fake_systemd::{Bus, FakeSystemd},
    role::{Kid, MUCH_LATER, Part, Stage, skip, values},
};

const TASK: TaskId = TaskId::from_bytes([1; 16]);
const PATIENCE: Duration = Duration::from_secs(20);
const FIRST: [u8; 16] = [7; 16];
const SECOND: [u8; 16] = [8; 16];

/// A container's id that nobody else on this machine has.
fn id(number: u8) -> String {
    format!("{:08x}{}", std::process::id(), format!("{number:02x}").repeat(28))
}

fn den(path: &str) -> Option<Den> {
    Den::make(path).inspect_err(|why| skip(why)).ok()
}

/// A bus with a systemd on it, and somebody who asks it.
struct Talk {
    bus: Bus,
    manager: FakeSystemd,
    systemd: Systemd,
    _asker: JoinSet<()>,
}

impl Talk {
    async fn begin() -> Option<Self> {
        let bus = Bus::start().await.inspect_err(|why| skip(why)).ok()?;
        let manager = FakeSystemd::start(&bus).await;
        let systemd = Systemd::new(Some(bus.address()));
        let mut asker = JoinSet::new();
        asker.spawn(systemd.clone().run());
        Some(Self { bus, manager, systemd, _asker: asker })
    }

    /// Waits until systemd is heard, and says which run of `name` it is.
    async fn invocation(&self, name: &str) -> [u8; 16] {
        let heard = async {
            loop {
                match self.systemd.invocation(name).await {
                    Some(invocation) => return invocation,
                    None => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        timeout(PATIENCE, heard).await.expect("systemd speaks in time")
    }
}

async fn next(seen: &mut mpsc::Receiver<Sighting>) -> Seen {
    timeout(PATIENCE, seen.recv()).await.expect("seen in time").expect("the watcher lives").what
}

/// An engine that answers each `wait` with this, and what it was asked for.
fn engine(answer: &'static str) -> (TempDir, Engine, mpsc::Receiver<String>, JoinSet<()>) {
    let dir = tempfile::tempdir().expect("a directory");
    let listener = UnixListener::bind(dir.path().join("engine.sock")).expect("ours");
    let (asked, asked_for) = mpsc::channel(8);
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let read = stream.read(&mut head).await.expect("a request");
            let head = String::from_utf8_lossy(head.get(..read).unwrap_or_default()).into_owned();
            let line = head.lines().next().unwrap_or_default().to_owned();
            asked.send(line).await.expect("the test lives");
            if answer.is_empty() {
                std::future::pending::<()>().await;
            }
            let length = answer.len();
            let said = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{answer}");
            stream.write_all(said.as_bytes()).await.expect("it listens");
        }
    });
    let engine = Engine::new(dir.path().join("engine.sock"));
    (dir, engine, asked_for, serving)
}

/// Two processes live in it when the watch begins, so neither speaks for the container: its engine does,
/// and where that says nothing, or nothing that can be understood, the end is told without a reason.
#[tokio::test]
async fn an_engine_tells_how_a_container_ended() {
    let answers = [(r#"{"StatusCode":3}"#, Some(Exit::Code(3))), ("nonsense", None), ("", None)];
    for (number, (answer, exit)) in (40..).zip(answers) {
        let Some(den) = den(&format!("/docker/{}", id(number))) else { return };
        let (_dir, engine, mut asked, _serving) = engine(answer);
        let (mut one, evidence) = caller(&den, &Systemd::new(None)).await;
        let mut two = Kid::sleeper();
        den.place(two.0.id());
        let container = evidence.caller.container.expect("it is in one");
        let (watcher, mut seen) = Watcher::new(10, 10);
        let mut watcher = watcher.with_engine(Some(engine));
        watcher.watch(TASK, Holder::Container(container), None).expect("it lives");
        den.kill();
        one.reap();
        two.reap();
        assert_eq!(next(&mut seen).await, Seen::CgroupEmptied { exit }, "{answer}");
        let line = asked.recv().await.expect("it was asked");
        assert_eq!(line, format!("POST /v1.24/containers/{}/wait HTTP/1.1", id(number)));
    }
}

/// A caller that was placed in the cgroup, and what is seen of it.
async fn caller(den: &Den, systemd: &Systemd) -> (Kid, Evidence) {
    let stage = Stage::new();
    let kid = stage.enter(Part::Stay);
    let peer = Peer::of(&stage.accept()).expect("it lives");
    den.place(kid.0.id());
    let collector = Collector::default().with_systemd(systemd.clone());
    let seen = collector.collect(&peer, CollectOptions::default(), MUCH_LATER).await;
    (kid, seen.expect("it lives"))
}

#[tokio::test]
async fn a_caller_in_a_container_of_a_pod_is_seen_as_both() {
    let pod = "3a5b2a0c-1f6e-4c0b-9d5e-7c1d2e3f4a5b";
    let own = format!("/kubepods/burstable/pod{pod}");
    let Some(den) = den(&format!("{own}/{}/inner", id(1))) else { return };
    let (kid, evidence) = caller(&den, &Systemd::new(None)).await;
    assert_eq!(values(&evidence, "container:id"), [id(1)]);
    assert_eq!(values(&evidence, "container:engine"), [""; 0], "the path does not say");
    assert_eq!(values(&evidence, "k8s:pod-uid"), [pod]);
    let container = evidence.caller.container.expect("it is in one");
    assert_eq!(container.cgroup.path, format!("{own}/{}", id(1)));
    assert_eq!(find_container(&id(1)).await.expect("we may look"), Some(container.clone()));
    let found = evidence.caller.pod.expect("it is in one");
    assert_eq!((found.uid.as_str(), found.cgroup.path.as_str()), (pod, own.as_str()));
    assert_eq!(find_pod(pod).await.expect("we may look"), Some(found.clone()));
    assert_eq!(find_container(&id(99)).await.expect("we may look"), None);

    let (mut watcher, mut seen) = Watcher::new(10, 10);
    let holder = Holder::Pod(found);
    assert!(is_alive(&holder).expect("we may look"));
    watcher.watch(TASK, holder.clone(), None).expect("it lives");
    drop(kid);
    assert!(matches!(next(&mut seen).await, Seen::CgroupEmptied { .. }));
    assert!(!is_alive(&holder).expect("we may look"));
    assert_eq!(find_pod(pod).await.expect("we may look"), None, "nobody lives there");
}

#[tokio::test]
async fn a_container_that_is_started_anew_is_another_holder() {
    let Some(den) = den(&format!("/docker/{}", id(2))) else { return };
    let (kid, evidence) = caller(&den, &Systemd::new(None)).await;
    assert_eq!(values(&evidence, "container:engine"), ["docker"]);
    let first = Holder::Container(evidence.caller.container.expect("it is in one"));
    drop(kid);
    den.renew();
    let (_kid, evidence) = caller(&den, &Systemd::new(None)).await;
    let second = evidence.caller.container.clone().expect("it is in one");
    assert!(!evidence.caller.holds(&first), "the same id and the same path, another life");
    assert!(!is_alive(&first).expect("we may look"), "somebody else lives at its path");
    assert!(is_alive(&Holder::Container(second)).expect("we may look"));
    let (mut watcher, mut seen) = Watcher::new(10, 10);
    watcher.watch(TASK, first, None).expect("it is seen to be gone");
    assert!(matches!(next(&mut seen).await, Seen::CgroupEmptied { .. }));
}

/// A unit with a process in it, on a bus.
async fn running(name: &str) -> Option<(Den, Talk, Kid, Box<Unit>)> {
    let den = den(&format!("/system.slice/{name}"))?;
    let talk = Talk::begin().await?;
    talk.manager.run(name, FIRST).await;
    assert_eq!(talk.invocation(name).await, FIRST);
    let (kid, evidence) = caller(&den, &talk.systemd).await;
    assert_eq!(values(&evidence, "systemd:unit"), [name]);
    let unit = evidence.caller.unit.expect("it is in one");
    assert_eq!((unit.name.as_str(), unit.invocation), (name, FIRST));
    assert_eq!(unit.cgroup.path, den.path());
    let found = find_unit(name, &talk.systemd).await.expect("we may look");
    assert_eq!(found.as_ref(), Some(&unit));
    Some((den, talk, kid, unit))
}

fn watch(unit: &Unit, systemd: &Systemd) -> (Watcher, mpsc::Receiver<Sighting>) {
    let (watcher, seen) = Watcher::new(10, 10);
    let mut watcher = watcher.with_systemd(systemd.clone());
    watcher.watch(TASK, Holder::Unit(Box::new(unit.clone())), None).expect("it lives");
    (watcher, seen)
}

#[tokio::test]
async fn systemd_says_that_a_unit_has_failed_and_how() {
    let name = "mayfly-test-fails.service";
    let Some((_den, talk, _kid, unit)) = running(name).await else { return };
    let (_watcher, mut seen) = watch(&unit, &talk.systemd);
    talk.manager.change(name, ("deactivating", "stop-sigterm"), (0, 0)).await;
    assert_eq!(talk.systemd.ask(&unit).await, Word::Runs);
    talk.manager.change(name, ("failed", "failed"), (1, 3)).await;
    let exit = Some(Exit::Code(3));
    assert_eq!(next(&mut seen).await, Seen::UnitEnded { exit }, "its process still lives");
}

#[tokio::test]
async fn a_unit_that_waits_for_its_restart_is_over() {
    let name = "mayfly-test-waits.service";
    let Some((_den, talk, _kid, unit)) = running(name).await else { return };
    let (_watcher, mut seen) = watch(&unit, &talk.systemd);
    talk.manager.change(name, ("activating", "auto-restart"), (2, 9)).await;
    assert_eq!(next(&mut seen).await, Seen::UnitEnded { exit: Some(Exit::Signal(9)) });
}

#[tokio::test]
async fn a_unit_that_is_started_anew_in_its_cgroup_is_another_run() {
    let name = "mayfly-test-again.service";
    let Some((den, talk, _kid, unit)) = running(name).await else { return };
    let (_watcher, mut seen) = watch(&unit, &talk.systemd);
    talk.manager.rerun(name, SECOND).await;
    assert_eq!(next(&mut seen).await, Seen::UnitEnded { exit: None });
    let (_kid, evidence) = caller(&den, &talk.systemd).await;
    let second = evidence.caller.unit.expect("it is in one");
    assert_eq!((second.invocation, &second.cgroup), (SECOND, &unit.cgroup));
    assert_eq!(talk.systemd.ask(&unit).await, Word::Over(None));
    assert_eq!(talk.systemd.ask(&second).await, Word::Runs);
}

#[tokio::test]
async fn an_empty_unit_goes_on_while_systemd_says_so_and_ends_when_it_is_silent() {
    let name = "mayfly-test-silent.service";
    let Some((den, mut talk, mut kid, unit)) = running(name).await else { return };
    let (_watcher, mut seen) = watch(&unit, &talk.systemd);
    den.kill();
    kid.reap();
    // Like a service that remains after its exit.
    assert_eq!(talk.systemd.ask(&unit).await, Word::Runs);
    assert!(seen.try_recv().is_err());
    talk.bus.kill().await;
    assert!(matches!(next(&mut seen).await, Seen::CgroupEmptied { .. }));
}

#[tokio::test]
async fn an_end_is_not_lost_with_the_bus() {
    let name = "mayfly-test-lost.service";
    let Some((den, mut talk, mut kid, unit)) = running(name).await else { return };
    let (_watcher, mut seen) = watch(&unit, &talk.systemd);
    talk.bus.kill().await;
    assert!(seen.try_recv().is_err(), "a lost bus is no end");
    den.kill();
    kid.reap();
    assert!(matches!(next(&mut seen).await, Seen::CgroupEmptied { .. }));
}

#[tokio::test]
async fn what_happened_while_the_bus_was_away_is_found_out() {
    let name = "mayfly-test-away.service";
    let Some((_den, mut talk, _kid, unit)) = running(name).await else { return };
    let (_watcher, mut seen) = watch(&unit, &talk.systemd);
    talk.bus.kill().await;
    talk.bus.again().await;
    let manager = FakeSystemd::start(&talk.bus).await;
    manager.run(name, SECOND).await;
    assert_eq!(next(&mut seen).await, Seen::UnitEnded { exit: None });
}

#[tokio::test]
async fn without_a_bus_a_unit_cannot_be_named() {
    let Some(den) = den("/system.slice/mayfly-test-alone.service") else { return };
    let nowhere = "unix:path=/nonexistent/bus";
    assert!(systemd::reach(Some(nowhere)).await.is_err());
    let systemd = Systemd::new(Some(nowhere.to_owned()));
    let (mut kid, evidence) = caller(&den, &systemd).await;
    assert_eq!(evidence.caller.unit, None, "nobody says which run it is");
    let path = evidence.caller.cgroup.expect("it has one");
    let found = mayfly_attest::dwelling::dwellings(&path).unit.expect("it is in one");
    assert_eq!(found.name, "mayfly-test-alone.service");
    kid.kill();
    kid.reap();
}
