//! Cgroups of one's own, where this machine allows them.

use std::{path::Path, time::Duration};

use mayfly_attest::{Cgroup, CgroupError, Collector, Exit, Peer, Seen, Watcher, is_alive};
use mayfly_core::{evidence::Holder, id::TaskId};
use tokio::time::timeout;

use crate::{
    role::{Kid, MUCH_LATER, Part, Stage, skip},
    watching::keeps_exit_codes,
};

const TASK: TaskId = TaskId::from_bytes([1; 16]);

/// A cgroup that is removed when its test fails, too: processes that were started after it are dropped
/// before it.
struct Own(Cgroup);

impl Drop for Own {
    fn drop(&mut self) {
        // A test that succeeds has removed it already, and looked at the answer.
        let _removed = self.0.remove();
    }
}

impl std::ops::Deref for Own {
    type Target = Cgroup;

    fn deref(&self) -> &Cgroup {
        &self.0
    }
}

/// A cgroup for one test, or `None`, said loudly, where it may not be had.
fn cgroup(name: &str) -> Option<Own> {
    match Cgroup::create(&format!("test-{}-{name}", std::process::id())) {
        Ok(cgroup) => Some(Own(cgroup)),
        Err(error @ (CgroupError::NotPermitted(_) | CgroupError::NoHierarchy)) => {
            skip(&error.to_string());
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

fn path_of(pid: i32) -> String {
    let text = std::fs::read(format!("/proc/{pid}/cgroup")).expect("it lives");
    let paths = mayfly_attest::procfs::parse_cgroup(&text).expect("a cgroup file");
    paths.unified.expect("a v2 hierarchy")
}

/// How the cgroup's main process ended, where it had one.
async fn emptied(seen: &mut tokio::sync::mpsc::Receiver<mayfly_attest::Sighting>) -> Option<Exit> {
    let next = timeout(Duration::from_secs(20), seen.recv()).await.expect("seen in time");
    let what = next.expect("the watcher lives").what;
    let Seen::CgroupEmptied { exit } = what else { panic!("{what:?}") };
    exit
}

/// A process leaves its cgroup before it is dead, so the end is heard first and the reason after it.
#[tokio::test]
async fn the_end_of_the_main_process_tells_how_it_ended() {
    let Some(cgroup) = cgroup("main") else { return };
    let (mut watcher, mut seen) = Watcher::new(10, 10);
    for (script, end) in [
        ("read line; exit 3", Exit::Code(3)),
        ("read line; exit 0", Exit::Code(0)),
        ("read line; sleep 0.01; exit 4", Exit::Code(4)),
        ("read line; kill -9 $$", Exit::Signal(9)),
    ] {
        for _ in 0..20 {
            let mut kid = Kid::shell(script);
            cgroup.place(kid.0.id()).expect("it is ours");
            watcher.watch(TASK, Holder::Cgroup(cgroup.path().into()), None).expect("it exists");
            let reaper = std::thread::spawn(move || kid.reap());
            let told = emptied(&mut seen).await;
            reaper.join().expect("it was reaped");
            if told.is_none() && !keeps_exit_codes() {
                return skip("this kernel keeps no exit code after the reap");
            }
            assert_eq!(told, Some(end), "{script}");
        }
    }
    cgroup.remove().expect("it is empty");
}

#[tokio::test]
async fn the_end_of_the_last_process_is_seen() {
    let Some(cgroup) = cgroup("last") else { return };
    let (mut one, mut two) = (Kid::sleeper(), Kid::sleeper());
    for kid in [&one, &two] {
        cgroup.place(kid.0.id()).expect("it is ours");
        assert_eq!(path_of(kid.pid()), cgroup.path());
    }
    let holder = Holder::Cgroup(cgroup.path().into());
    let (mut watcher, mut seen) = Watcher::new(10, 10);
    watcher.watch(TASK, holder.clone(), None).expect("it exists");
    one.kill();
    one.reap();
    assert!(is_alive(&holder).expect("we may look"));
    assert!(matches!(cgroup.remove(), Err(CgroupError::NotEmpty(_))));
    assert!(seen.try_recv().is_err());
    two.kill();
    two.reap();
    assert_eq!(emptied(&mut seen).await, None, "none of two is the main one");
    assert!(!is_alive(&holder).expect("we may look"));
    cgroup.remove().expect("it is empty");
    assert!(!is_alive(&holder).expect("we may look"));
    cgroup.remove().expect("gone is no error");
    watcher.watch(TASK, holder, None).expect("gone is no error");
    emptied(&mut seen).await;
}

#[tokio::test]
async fn killing_a_cgroup_reaches_a_grandchild_whose_parent_died() {
    let Some(cgroup) = cgroup("kill") else { return };
    let mut kid = Kid::shell("read line; sleep 1000 & exit 0");
    cgroup.place(kid.0.id()).expect("it is ours");
    let (mut watcher, mut seen) = Watcher::new(10, 10);
    watcher.watch(TASK, Holder::Cgroup(cgroup.path().into()), None).expect("it exists");
    kid.reap();
    assert!(cgroup.is_populated().expect("we may look"));
    cgroup.kill().expect("this kernel can");
    emptied(&mut seen).await;
    cgroup.remove().expect("it is empty");
}

#[tokio::test]
async fn a_caller_below_the_cgroup_holds_it_and_one_beside_it_does_not() {
    let Some(cgroup) = cgroup("below") else { return };
    let Some(beside) = self::cgroup("below-too") else { return };
    let stage = Stage::new();
    let kid = stage.enter(Part::Stay);
    let peer = Peer::of(&stage.accept()).expect("it lives");
    cgroup.place(kid.0.id()).expect("it is ours");
    let evidence = Collector::default().collect(&peer, Default::default(), MUCH_LATER).await;
    let evidence = evidence.expect("it lives");
    assert_eq!(evidence.caller.cgroup.as_deref(), Some(cgroup.path()));
    assert_eq!(crate::role::values(&evidence, "unix:cgroup"), [cgroup.path()]);
    assert!(evidence.caller.holds(&Holder::Cgroup(cgroup.path().into())));
    assert!(!evidence.caller.holds(&Holder::Cgroup(beside.path().into())));
    drop(kid);
    cgroup.remove().expect("it is empty");
    beside.remove().expect("it is empty");
}

#[test]
fn a_name_or_path_that_leads_elsewhere_is_refused() {
    for name in ["", "..", "a/b", "/a", "a\n", "."] {
        assert!(matches!(Cgroup::create(name), Err(CgroupError::InvalidName(_))), "{name:?}");
    }
    for path in ["", "a", "/../etc", "/a/../..", "/a//b", "/./a"] {
        assert!(is_alive(&Holder::Cgroup(path.into())).is_err(), "{path:?}");
    }
    assert!(!Path::new("/sys/fs/cgroup/a").exists());
}
