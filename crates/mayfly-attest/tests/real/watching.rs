//! Ends are seen, once, and with their reason.

use std::time::Duration;

use mayfly_attest::{Exit, Peer, Process, Seen, Sighting, WatchError, Watcher};
use mayfly_core::{
    evidence::{Holder, ProcessKey},
    id::TaskId,
};
use tokio::{
    sync::mpsc::Receiver,
    time::{Instant, timeout},
};

use crate::role::{Kid, Part, Stage, skip};

const fn task(number: u128) -> TaskId {
    TaskId::from_bytes(number.to_be_bytes())
}

async fn next(seen: &mut Receiver<Sighting>) -> Sighting {
    let next = timeout(Duration::from_secs(20), seen.recv()).await;
    next.expect("something is seen in time").expect("the watcher lives")
}

const fn exited(exit: Option<Exit>) -> Seen {
    Seen::ProcessExited { exit }
}

#[tokio::test]
async fn an_exit_code_and_a_signal_are_told_before_anybody_reaps() {
    let (mut watcher, mut seen) = Watcher::new(10, 10);
    let mut returns = Kid::shell("read line; exit 3");
    let holder = Holder::Process(returns.key());
    watcher.watch(task(1), holder.clone(), None).expect("it lives");
    returns.close_input();
    let what = exited(Some(Exit::Code(3)));
    assert_eq!(next(&mut seen).await, Sighting { task: task(1), holder, what });

    let mut killed = Kid::sleeper();
    watcher.watch(task(2), Holder::Lineage(killed.key()), None).expect("it lives");
    killed.kill();
    assert_eq!(next(&mut seen).await.what, exited(Some(Exit::Signal(9))));
}

#[test]
fn an_exit_code_is_known_after_the_reap() {
    for (script, exit) in
        [("read line; exit 3", Exit::Code(3)), ("read line; kill -9 $$", Exit::Signal(9))]
    {
        let mut kid = Kid::shell(script);
        let process = Process::open(kid.pid()).expect("it was just started");
        assert_eq!(process.exit(), None);
        kid.reap();
        match process.exit() {
            // Linux before 6.15 forgets.
            None => skip("this kernel keeps no exit code after the reap"),
            known => assert_eq!(known, Some(exit)),
        }
    }
}

/// A parent that waits for its child races with us for the body: whoever wins, the code is told.
#[tokio::test]
async fn an_exit_code_is_told_while_the_parent_reaps() {
    const ROUNDS: u128 = 300;
    let (mut watcher, mut seen) = Watcher::new(10, 10);
    for round in 0..ROUNDS {
        let mut kid = Kid::shell("read line; exit 3");
        watcher.watch(task(round), Holder::Process(kid.key()), None).expect("it lives");
        let reaper = std::thread::spawn(move || kid.reap());
        let what = next(&mut seen).await.what;
        reaper.join().expect("it was reaped");
        if what == exited(None) && !keeps_exit_codes() {
            return skip("this kernel keeps no exit code after the reap");
        }
        assert_eq!(what, exited(Some(Exit::Code(3))), "round {round}");
    }
}

/// Whether the kernel knows how a process ended that was reaped (Linux 6.15).
pub(crate) fn keeps_exit_codes() -> bool {
    let mut kid = Kid::shell("exit 0");
    let process = Process::open(kid.pid());
    kid.reap();
    process.is_ok_and(|process| process.exit().is_some())
}

#[tokio::test]
async fn an_end_before_the_watch_is_seen_at_once() {
    let (mut watcher, mut seen) = Watcher::new(10, 10);
    let stage = Stage::new();
    let mut kid = stage.enter(Part::Stay);
    let peer = Peer::of(&stage.accept()).expect("it lives");
    kid.reap();
    watcher.watch(task(1), Holder::Process(peer.key()), None).expect("an end is no error");
    assert_eq!(next(&mut seen).await.what, exited(None));
    // The peer's own descriptor still knows more.
    watcher.watch(task(2), Holder::Process(peer.key()), Some(&peer)).expect("an end is no error");
    let what = next(&mut seen).await.what;
    assert!(matches!(what, Seen::ProcessExited { exit: None | Some(Exit::Code(0)) }), "{what:?}");
}

#[tokio::test]
async fn a_successor_with_the_same_pid_is_not_watched_in_its_stead() {
    let (mut watcher, mut seen) = Watcher::new(10, 10);
    let kid = Kid::sleeper();
    let predecessor = ProcessKey { inode: kid.key().inode - 1, ..kid.key() };
    watcher.watch(task(1), Holder::Process(predecessor), None).expect("an end is no error");
    assert_eq!(next(&mut seen).await.what, exited(None));
}

#[tokio::test]
async fn who_is_no_longer_watched_is_not_told() {
    let (mut watcher, mut seen) = Watcher::new(10, 10);
    let (mut one, mut two) = (Kid::sleeper(), Kid::sleeper());
    watcher.watch(task(1), Holder::Process(one.key()), None).expect("it lives");
    watcher.watch(task(2), Holder::Process(two.key()), None).expect("it lives");
    watcher.unwatch(task(1));
    one.kill();
    one.reap();
    two.kill();
    assert_eq!(next(&mut seen).await.task, task(2));
    drop(watcher);
    assert_eq!(seen.recv().await, None);
}

#[tokio::test]
async fn a_watch_replaces_the_one_before() {
    let (mut watcher, mut seen) = Watcher::new(1, 10);
    let (mut one, mut two) = (Kid::sleeper(), Kid::sleeper());
    let second = Holder::Process(two.key());
    watcher.watch(task(1), Holder::Process(one.key()), None).expect("it lives");
    watcher.watch(task(1), second.clone(), None).expect("its place is free");
    one.kill();
    one.reap();
    two.kill();
    assert_eq!(next(&mut seen).await.holder, second);
}

#[tokio::test]
async fn a_full_watcher_says_so_and_has_room_again_after_an_end() {
    let (mut watcher, mut seen) = Watcher::new(1, 10);
    let (mut one, two) = (Kid::sleeper(), Kid::sleeper());
    let holder = Holder::Process(two.key());
    watcher.watch(task(1), Holder::Process(one.key()), None).expect("it lives");
    let full = watcher.watch(task(2), holder.clone(), None);
    assert!(matches!(full, Err(WatchError::Full(1))), "{full:?}");
    watcher.watch(task(3), Holder::Lease, None).expect("needs no eye");
    one.kill();
    next(&mut seen).await;
    // The eye closes right after it told; nothing else can be awaited here.
    for _ in 0..1_000 {
        if watcher.is_empty() {
            break;
        }
        tokio::task::yield_now().await;
    }
    watcher.watch(task(2), holder, None).expect("there is room");
    assert_eq!(watcher.len(), 1);
}

#[tokio::test]
async fn three_hundred_ends_at_once_are_all_seen_through_a_narrow_queue() {
    const KIDS: u32 = 300;
    let (mut watcher, mut seen) = Watcher::new(1_000, 4);
    let mut kids: Vec<_> = (0..KIDS).map(|_| Kid::sleeper()).collect();
    for (number, kid) in (0_u128..).zip(&kids) {
        watcher.watch(task(number), Holder::Process(kid.key()), None).expect("it lives");
    }
    assert_eq!(watcher.len(), kids.len());
    let start = Instant::now();
    kids.iter_mut().for_each(Kid::kill);
    let mut tasks = std::collections::BTreeSet::new();
    for _ in 0..KIDS {
        let sighting = next(&mut seen).await;
        assert_eq!(sighting.what, exited(Some(Exit::Signal(9))));
        assert!(tasks.insert(sighting.task), "told twice");
    }
    eprintln!("{KIDS} ends seen in {:?}", start.elapsed());
    assert!(seen.try_recv().is_err());
}
