//! Who is at the other end, and is it still.

use std::os::unix::net::UnixStream;

use mayfly_attest::{AttestError, Collector, Peer, Process, is_alive};
use mayfly_core::evidence::{Holder, ProcessKey};

use crate::role::{Kid, MUCH_LATER, Part, Stage, hear, until_zombie};

#[test]
fn a_peer_is_the_process_that_connected() {
    let stage = Stage::new();
    let kid = stage.enter(Part::Stay);
    let socket = stage.accept();
    let peer = Peer::of(&socket).expect("it lives");
    assert_eq!(peer.key(), kid.key());
    assert_eq!(peer.key().pid, kid.pid());
    peer.still_there().expect("it lives");
}

#[test]
fn two_ends_of_a_pair_are_ourselves() {
    let (one, _other) = UnixStream::pair().expect("a pair");
    let own = Process::open(std::process::id().cast_signed()).expect("we live");
    assert_eq!(Peer::of(&one).expect("we live").key(), own.key());
}

#[test]
fn a_connector_that_ended_before_accept_is_refused_though_its_child_speaks() {
    let stage = Stage::new();
    let mut kid = stage.enter(Part::HandOff);
    kid.reap();
    let socket = stage.accept();
    assert!(matches!(Peer::of(&socket), Err(AttestError::PeerGone)));
}

#[test]
fn a_zombie_connector_is_refused_too() {
    let stage = Stage::new();
    let kid = stage.enter(Part::HandOff);
    until_zombie(kid.pid());
    let socket = stage.accept();
    assert!(matches!(Peer::of(&socket), Err(AttestError::PeerGone)));
}

#[tokio::test]
async fn a_connector_that_ends_after_accept_is_gone_at_the_next_look() {
    let stage = Stage::new();
    let mut kid = stage.enter(Part::Stay);
    let socket = stage.accept();
    let peer = Peer::of(&socket).expect("it lives");
    kid.reap();
    assert!(matches!(peer.still_there(), Err(AttestError::PeerGone)));
    let collected = Collector::default().collect(&peer, Default::default(), MUCH_LATER).await;
    assert!(matches!(collected, Err(AttestError::PeerGone)), "{collected:?}");
}

#[test]
fn something_that_is_no_socket_has_no_peer() {
    let file = tempfile::tempfile().expect("a file");
    assert!(matches!(Peer::of(&file), Err(AttestError::Io { .. })));
}

#[test]
fn a_reused_pid_is_another_process() {
    let kid = Kid::sleeper();
    let key = kid.key();
    let successor = ProcessKey { inode: key.inode + 1, ..key };
    let before_the_boot = ProcessKey { boot: [7; 16], ..key };
    for holder in [Holder::Process, Holder::Lineage] {
        assert!(is_alive(&holder(key)).expect("we may look"));
        assert!(!is_alive(&holder(successor)).expect("we may look"));
        assert!(!is_alive(&holder(before_the_boot)).expect("we may look"));
    }
}

#[test]
fn a_dead_process_is_gone_whether_it_was_reaped_or_not() {
    let mut kid = Kid::shell("read line");
    let key = kid.key();
    kid.close_input();
    until_zombie(kid.pid());
    assert!(!is_alive(&Holder::Process(key)).expect("we may look"));
    kid.reap();
    assert!(!is_alive(&Holder::Process(key)).expect("we may look"));
}

#[test]
fn the_number_of_a_thread_is_not_a_process() {
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        tell.send(nix::unistd::gettid().as_raw()).expect("the test waits");
        stopped.recv().expect("the test says when");
    });
    let tid = told.recv().expect("a thread id");
    let opened = Process::open(tid);
    stop.send(()).expect("the thread waits");
    thread.join().expect("the thread ends");
    assert!(matches!(opened, Err(AttestError::PeerGone)), "{opened:?}");
}

#[tokio::test]
async fn a_forked_child_is_not_the_holder_but_is_of_its_lineage() {
    let stage = Stage::new();
    let parent = stage.enter(Part::Parent);
    let socket = stage.accept();
    hear(&socket);
    let peer = Peer::of(&socket).expect("it lives");
    assert_ne!(peer.key(), parent.key());
    let evidence = Collector::default().collect(&peer, Default::default(), MUCH_LATER).await;
    let caller = evidence.expect("it lives").caller;
    assert!(caller.holds(&Holder::Process(peer.key())));
    assert!(!caller.holds(&Holder::Process(parent.key())));
    assert!(caller.holds(&Holder::Lineage(parent.key())));
    // Its grandparent is this test, and so on upwards, but never the first process of the machine.
    let own = Process::open(std::process::id().cast_signed()).expect("we live").key();
    assert_eq!(caller.lineage.get(..3), Some(&[peer.key(), parent.key(), own][..]));
    assert!(caller.lineage.iter().all(|key| key.pid != 1));
}
