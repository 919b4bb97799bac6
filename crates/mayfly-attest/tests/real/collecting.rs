//! What is seen of a peer, and what is left out on purpose.

use std::{io::Write as _, os::unix::net::UnixStream};

use mayfly_attest::{AttestError, CollectOptions, Collector, Peer};
use mayfly_core::{evidence::Evidence, time::Timestamp};
use sha2::{Digest as _, Sha256};

use crate::role::{MUCH_LATER, Part, Stage, copy_of_this_program, hear, skip, values};

async fn collect(peer: &Peer) -> Evidence {
    try_collect(peer).await.expect("it lives and did not change")
}

async fn try_collect(peer: &Peer) -> Result<Evidence, AttestError> {
    Collector::default().collect(peer, CollectOptions::default(), MUCH_LATER).await
}

fn sha256_of_this_program() -> String {
    let program = std::fs::read("/proc/self/exe").expect("we may read ourselves");
    Sha256::digest(program).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_peer_has_its_accounts_its_path_and_its_digest() {
    let (one, _other) = UnixStream::pair().expect("a pair");
    let evidence = collect(&Peer::of(&one).expect("we live")).await;
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    assert_eq!(values(&evidence, "unix:uid"), [uid.as_raw().to_string()]);
    assert_eq!(values(&evidence, "unix:gid"), [gid.as_raw().to_string()]);
    let path = std::env::current_exe().expect("we run");
    assert_eq!(values(&evidence, "unix:path"), [path.to_str().expect("a plain path")]);
    assert_eq!(values(&evidence, "unix:sha256"), [sha256_of_this_program()]);
    if uid.is_root() {
        assert_eq!(values(&evidence, "unix:user"), ["root"]);
        assert_eq!(values(&evidence, "unix:group"), ["root"]);
    }
    let mut groups: Vec<_> = rustix::process::getgroups().expect("groups");
    groups.dedup();
    assert_eq!(values(&evidence, "unix:supplementary_gid").len(), groups.len());
}

#[tokio::test]
async fn what_is_not_asked_for_is_not_collected() {
    let (one, _other) = UnixStream::pair().expect("a pair");
    let peer = Peer::of(&one).expect("we live");
    let least =
        CollectOptions { names: false, sha256: false, lineage: false, ..Default::default() };
    let collector = Collector::default();
    let evidence = collector.collect(&peer, least, MUCH_LATER).await.expect("we live");
    for kind in ["unix:user", "unix:group", "unix:sha256"] {
        assert!(values(&evidence, kind).is_empty(), "{kind}");
    }
    assert_eq!(evidence.caller.lineage, [peer.key()]);
    assert_eq!(values(&evidence, "unix:path").len(), 1);
}

#[tokio::test]
async fn a_binary_replaced_after_start_has_no_path_but_its_own_digest() {
    let (_dir, program) = copy_of_this_program();
    let stage = Stage::new();
    let _kid = stage.enter_as(&program, Part::Stay);
    let peer = Peer::of(&stage.accept()).expect("it lives");
    let before = collect(&peer).await;
    assert_eq!(values(&before, "unix:path"), [program.to_str().expect("a plain path")]);

    let other = program.with_extension("new");
    std::fs::write(&other, "#!/bin/true\n").expect("a file");
    std::fs::rename(&other, &program).expect("a rename");
    let after = collect(&peer).await;
    assert!(values(&after, "unix:path").is_empty(), "{after:?}");
    assert_eq!(values(&after, "unix:sha256"), [sha256_of_this_program()]);
}

#[tokio::test]
async fn a_deleted_binary_has_no_path_even_if_its_marked_name_exists() {
    let (dir, program) = copy_of_this_program();
    let stage = Stage::new();
    let _kid = stage.enter_as(&program, Part::Stay);
    let peer = Peer::of(&stage.accept()).expect("it lives");
    std::fs::remove_file(&program).expect("ours");
    std::fs::write(dir.path().join("program (deleted)"), "a decoy").expect("a file");
    let evidence = collect(&peer).await;
    assert!(values(&evidence, "unix:path").is_empty(), "{evidence:?}");
    assert_eq!(values(&evidence, "unix:sha256"), [sha256_of_this_program()]);
}

#[tokio::test]
async fn a_program_above_the_cap_has_no_digest() {
    let (one, _other) = UnixStream::pair().expect("a pair");
    let peer = Peer::of(&one).expect("we live");
    let options = CollectOptions { sha256_bytes_max: 1000, ..Default::default() };
    let collector = Collector::default();
    let evidence = collector.collect(&peer, options, MUCH_LATER).await.expect("we live");
    assert!(values(&evidence, "unix:sha256").is_empty());
    assert!(collector.hashes().is_empty());
}

#[tokio::test]
async fn a_digest_is_remembered_once_its_file_has_settled() {
    let (one, _other) = UnixStream::pair().expect("a pair");
    let peer = Peer::of(&one).expect("we live");
    let (collector, options) = (Collector::default(), CollectOptions::default());
    let early = collector.collect(&peer, options, Timestamp(0)).await.expect("we live");
    assert!(collector.hashes().is_empty());
    let late = collector.collect(&peer, options, MUCH_LATER).await.expect("we live");
    assert_eq!(collector.hashes().len(), 1);
    let again = collector.collect(&peer, options, MUCH_LATER).await.expect("we live");
    assert_eq!(collector.hashes().len(), 1);
    assert!(early == late && late == again);
}

#[tokio::test]
async fn a_peer_that_executes_another_program_is_seen_as_that_program() {
    let stage = Stage::new();
    let _kid = stage.enter(Part::BecomeCat);
    let mut socket = stage.accept();
    let peer = Peer::of(&socket).expect("it lives");
    socket.write_all(b"?\n").expect("it listens");
    hear(&socket);
    let evidence = collect(&peer).await;
    let path = values(&evidence, "unix:path").concat();
    assert_ne!(path, std::env::current_exe().expect("we run").to_string_lossy());
    assert_ne!(values(&evidence, "unix:sha256"), [sha256_of_this_program()]);
}

#[tokio::test]
async fn a_peer_that_was_just_looked_at_cannot_hide_a_change() {
    let stage = Stage::new();
    let _kid = stage.enter(Part::BecomeCat);
    let mut socket = stage.accept();
    let peer = Peer::of(&socket).expect("it lives");
    let collector = Collector::default();
    let look = || collector.collect(&peer, CollectOptions::default(), MUCH_LATER);
    let (first, again) = (look().await.expect("it lives"), look().await.expect("it lives"));
    assert_eq!(first, again);
    socket.write_all(b"?\n").expect("it listens");
    hear(&socket);
    // At the very same instant, and it is another program.
    let after = look().await.expect("it lives");
    assert_ne!(values(&after, "unix:path"), values(&first, "unix:path"));
    assert_ne!(values(&after, "unix:sha256"), values(&first, "unix:sha256"));
}

#[tokio::test]
async fn a_program_that_loses_its_name_loses_its_path_at_once() {
    let (_dir, program) = copy_of_this_program();
    let stage = Stage::new();
    let _kid = stage.enter_as(&program, Part::Stay);
    let peer = Peer::of(&stage.accept()).expect("it lives");
    let collector = Collector::default();
    let look = || collector.collect(&peer, CollectOptions::default(), MUCH_LATER);
    let before = look().await.expect("it lives");
    assert_eq!(values(&before, "unix:path"), [program.to_str().expect("a plain path")]);
    std::fs::rename(&program, program.with_extension("old")).expect("a rename");
    std::fs::write(&program, "#!/bin/true\n").expect("a decoy");
    let after = look().await.expect("it lives");
    assert_ne!(values(&after, "unix:path"), values(&before, "unix:path"));
}

#[tokio::test]
async fn a_peer_that_became_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can become somebody else");
    }
    let stage = Stage::new();
    let _kid = stage.enter(Part::BecomeNobody);
    let mut socket = stage.accept();
    let peer = Peer::of(&socket).expect("it lives");
    socket.write_all(b"?\n").expect("it listens");
    hear(&socket);
    let collected = try_collect(&peer).await;
    assert!(
        matches!(collected, Err(AttestError::Changed { what: "credentials" })),
        "{collected:?}"
    );
}
