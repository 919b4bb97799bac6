//! Everything that can go wrong below the journal, one by one. The log is never damaged further,
//! nothing acknowledged is lost, and what was noticed is said. What can go wrong with the index alone
//! stands in `crates/mayfly-store/tests/index.rs`.
#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that cannot run should stop, and say so"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
};

use mayfly_audit::LogError;
use mayfly_core::{Fact, Record, Sequence};
use mayfly_store::{
    Committed, Committer, Journal, OpenOptions, Opened, Rejected, Store, StoreError,
};

#[path = "fixtures/journal.rs"]
mod journal;
use journal::{START, Session, expected, files, fill, open, put_back, record, remembered};

fn log_files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    files(&dir.join("store/log"))
}

#[test]
fn any_prefix_of_the_log_that_the_sentinel_allows_is_a_prefix_of_the_records() {
    let dir = tempfile::tempdir().expect("a directory");
    fill(dir.path(), 10);
    // A crash: the log has gone on, sentinel and index have not.
    let behind = fs::read(dir.path().join("sentinel")).expect("read");
    let index = dir.path().join("store/index");
    let old = files(&index);
    fill(dir.path(), 10);
    let log = log_files(dir.path());
    let (path, whole) = log.iter().next().expect("a segment");
    let mut counts = Vec::new();
    for cut in (0..=whole.len()).rev().step_by(17) {
        fs::write(dir.path().join("sentinel"), &behind).expect("write");
        put_back(&index, &old);
        fs::write(path, &whole[..cut]).expect("write");
        match open(dir.path()) {
            Ok(opened) => {
                let count = opened.last.0;
                assert!((10..=20).contains(&count), "cut at {cut}: {count} records");
                let left = fs::metadata(path).expect("size").len();
                assert_eq!(opened.report.torn.is_some(), left < cut as u64, "cut at {cut}");
                assert_eq!(remembered(opened.snapshot), expected(count));
                counts.push(count);
            }
            Err(StoreError::Restored { log, sentinel, .. }) => {
                assert!(log < Sequence(10) && sentinel == Some(Sequence(10)));
                assert_eq!(fs::read(path).expect("read").len(), cut, "a refused log is not cut");
                counts.push(0);
            }
            Err(StoreError::Log(LogError::Corrupt { .. })) if cut < 76 => counts.push(0),
            Err(error) => panic!("cut at {cut}: {error}"),
        }
    }
    counts.dedup();
    assert_eq!(counts, [20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 0]);
}

#[test]
fn a_torn_record_is_cut_off_and_reported() {
    let dir = tempfile::tempdir().expect("a directory");
    fill(dir.path(), 10);
    let log = log_files(dir.path());
    let (path, whole) = log.iter().next().expect("a segment");
    let mut torn = whole.clone();
    torn.extend(&whole[76..116]);
    fs::write(path, torn).expect("write");
    let opened = open(dir.path()).expect("open");
    let report = opened.report.torn.expect("a torn record");
    assert_eq!((report.after, report.bytes), (Sequence(10), 40));
    assert_eq!(&fs::read(path).expect("read"), whole);
}

#[test]
fn a_damaged_log_or_one_of_another_version_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    fill(dir.path(), 10);
    let log = log_files(dir.path());
    let (path, whole) = log.iter().next().expect("a segment");
    for at in [8, 300] {
        let mut bytes = whole.clone();
        bytes[at] ^= 2;
        fs::write(path, &bytes).expect("write");
        let error = open(dir.path()).expect_err("damage is refused");
        let is_version = matches!(&error, StoreError::Log(LogError::WrongVersion { found: 3, .. }));
        let is_damage = matches!(&error, StoreError::Log(LogError::Corrupt { .. }));
        let is_named = if at == 8 { is_version } else { is_damage };
        assert!(is_named, "byte {at}: {error}");
        assert_eq!(fs::read(path).expect("read"), bytes);
    }
}

#[test]
fn a_second_daemon_is_turned_away_and_told_by_whom() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = open(dir.path()).expect("open");
    let error = open(dir.path()).expect_err("the directory is taken");
    assert!(
        matches!(error, StoreError::Locked { holder: Some(pid), .. } if pid == std::process::id())
    );
    assert!(error.to_string().contains("--data-dir"), "{error}");
    let Opened { journal, store, .. } = first;
    drop(journal);
    open(dir.path()).expect_err("a handle still reads there");
    drop(store);
    open(dir.path()).expect("free again");
}

#[test]
fn a_vanished_log_stops_the_journal_with_a_clear_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut session = Session::open(dir.path());
    session.write_durably(3);
    fs::rename(dir.path().join("store/log"), dir.path().join("elsewhere")).expect("rename");
    let Committed::Failed(error) = session.write() else {
        panic!("a record in a log that cannot be found is not acknowledged");
    };
    assert!(matches!(error, StoreError::Log(LogError::Vanished { .. })), "{error}");
    assert!(session.committed.recv().is_err(), "a failure is the last word");
    assert_eq!(session.committer.submit(Sequence(5), record(5)), Err(Rejected::Closed));
    session.committer.close().expect_err("it had failed");
    drop(session.store);
    let error = open(dir.path()).expect_err("the log is gone, the sentinel is not");
    assert!(matches!(error, StoreError::Restored { .. }), "{error}");
    fs::remove_dir_all(dir.path().join("store/log")).expect("remove");
    fs::rename(dir.path().join("elsewhere"), dir.path().join("store/log")).expect("rename");
    assert!(open(dir.path()).expect("the log is back").last >= Sequence(3));
}

#[test]
fn a_restored_backup_is_refused_until_an_operator_confirms() {
    let dir = tempfile::tempdir().expect("a directory");
    fill(dir.path(), 40);
    let backup = files(&dir.path().join("store"));
    fill(dir.path(), 40);
    put_back(&dir.path().join("store"), &backup);
    let error = open(dir.path()).expect_err("records are missing");
    assert!(
        matches!(
            error,
            StoreError::Restored { log: Sequence(40), sentinel: Some(Sequence(80)), .. }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("--accept-restored"), "{error}");
    let log: BTreeMap<_, _> =
        backup.iter().filter(|(path, _)| path.starts_with(dir.path().join("store/log"))).collect();
    assert_eq!(log_files(dir.path()).iter().collect::<BTreeMap<_, _>>(), log, "left alone");

    let confirmed = OpenOptions { confirm_restored: true, ..OpenOptions::new(START) };
    let opened = Store::open(dir.path(), &confirmed).expect("confirmed");
    assert!(opened.last > Sequence(80 + (1 << 31)), "no position is used twice: {:?}", opened.last);
    assert!(opened.report.restored.is_some());
    let last = opened.last;
    let noted = opened.store.clone();
    let mut session = Session::of(opened);
    session.write_durably(5);
    session.close();
    drop(noted);
    let opened = open(dir.path()).expect("confirmed once is enough");
    assert_eq!(opened.last, Sequence(last.0 + 5));
    let mut found = Vec::new();
    mayfly_audit::read(&dir.path().join("store/log"), last, |entry| found.push(entry.record.fact))
        .expect("read");
    assert!(matches!(&found[0], Fact::Noted { what, .. } if what == "restored"), "{:?}", found[0]);
    drop(opened);
    // Without an index the gap must not be in the way either.
    fs::remove_dir_all(dir.path().join("store/index")).expect("remove");
    assert_eq!(open(dir.path()).expect("open").snapshot.position, Sequence(last.0 + 5));
}

#[test]
fn a_log_with_another_history_or_without_a_sentinel_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    fill(dir.path(), 10);
    let sentinel = fs::read(dir.path().join("sentinel")).expect("read");
    let refused = |what: &str| {
        let error = open(dir.path()).expect_err(what);
        assert!(matches!(error, StoreError::Restored { .. }), "{what}: {error}");
    };
    fs::remove_file(dir.path().join("sentinel")).expect("remove");
    refused("no sentinel");
    fs::write(dir.path().join("sentinel"), "garbage").expect("write");
    refused("a damaged sentinel");
    fs::write(dir.path().join("sentinel"), &sentinel).expect("write");
    drop(open(dir.path()).expect("the right sentinel"));
    // Another store that lived longer: positions fit, history does not.
    let other = tempfile::tempdir().expect("a directory");
    let mut opened = open(other.path()).expect("open");
    for number in 1..=20 {
        let fact = Fact::Noted { what: "other".into(), detail: String::new() };
        opened.journal.append(&[(Sequence(number), Record { at: START, fact })]).expect("append");
        opened.journal.commit().expect("commit");
    }
    drop(opened);
    fs::write(other.path().join("sentinel"), &sentinel).expect("write");
    let error = open(other.path()).expect_err("another history");
    assert!(matches!(error, StoreError::Restored { .. }), "{error}");
}

#[test]
fn a_sentinel_elsewhere_notices_that_the_whole_data_directory_was_restored() {
    let dir = tempfile::tempdir().expect("a directory");
    let elsewhere = tempfile::tempdir().expect("a directory");
    let options = OpenOptions {
        sentinel_dir: Some(elsewhere.path().to_path_buf()),
        ..OpenOptions::new(START)
    };
    let opened = Store::open(dir.path(), &options).expect("open");
    let mut session = Session::of(opened);
    session.write_durably(5);
    session.close();
    let backup = files(dir.path());
    let mut session = Session::of(Store::open(dir.path(), &options).expect("open"));
    session.write_durably(5);
    session.close();
    put_back(dir.path(), &backup);
    let error = Store::open(dir.path(), &options).expect_err("records are missing");
    assert!(matches!(error, StoreError::Restored { log: Sequence(5), .. }), "{error}");
}

/// A journal that takes everything and cannot sync.
struct Unsynced(u32);

impl Journal for Unsynced {
    fn append(&mut self, _batch: &[(Sequence, Record)]) -> Result<(), StoreError> {
        Ok(())
    }

    fn commit(&mut self) -> Result<Sequence, StoreError> {
        self.0 += 1;
        assert!(self.0 <= 2, "a journal that failed is not asked again");
        if self.0 == 1 { Ok(Sequence(1)) } else { Err(StoreError::Stopped) }
    }
}

#[test]
fn a_failed_sync_is_said_once_and_nothing_is_taken_after_it() {
    let (sender, committed) = mpsc::sync_channel(16);
    let committer = Committer::start(Unsynced(0), move |news| {
        sender.send(news).expect("somebody listens");
    });
    let committer = committer.expect("a thread");
    committer.submit(Sequence(1), record(1)).expect("room");
    assert!(matches!(committed.recv(), Ok(Committed::Upto(Sequence(1)))));
    committer.submit(Sequence(2), record(2)).expect("room");
    assert!(matches!(committed.recv(), Ok(Committed::Failed(_))));
    assert!(committed.recv().is_err(), "nothing after the failure");
    assert_eq!(committer.submit(Sequence(3), record(3)), Err(Rejected::Closed));
    committer.close().expect_err("it had failed");
}

/// A small file system of our own, unmounted at the end.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn tmpfs(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "mayfly-test"])
            .arg(dir.path())
            .output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(dir))
    }

    fn resize(&self, bytes: u64) {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,size={bytes}")]).arg(self.0.path());
        assert!(mount.status().expect("mount runs").success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "the test's tmpfs stays mounted");
    }
}

#[test]
fn a_full_disk_stops_the_journal_and_loses_nothing_acknowledged() {
    let Some(disk) = Mounted::tmpfs(6 << 20) else {
        println!("SKIPPED a_full_disk_…: mounting a tmpfs needs root");
        return;
    };
    let data = disk.0.path().join("data");
    let mut session = Session::open(&data);
    let (mut acknowledged, mut failure) = (0, None);
    while failure.is_none() {
        match session.write() {
            Committed::Upto(at) => acknowledged = at.0,
            Committed::Failed(error) => failure = Some(error),
        }
        assert!(acknowledged < 1 << 20, "a disk of 6 MiB never filled");
    }
    let error = failure.expect("the disk is full");
    assert!(matches!(error, StoreError::Log(LogError::Full { .. })), "{error}");
    assert_eq!(session.committer.submit(Sequence(1 << 30), record(0)), Err(Rejected::Closed));
    session.committer.close().expect_err("it had failed");
    drop(session.store);
    disk.resize(64 << 20);
    let opened = open(&data).expect("with space it goes on");
    assert!(opened.last.0 >= acknowledged, "acknowledged {acknowledged}, found {:?}", opened.last);
    assert_eq!(remembered(opened.snapshot.clone()), expected(opened.last.0));
    let mut session = Session::of(opened);
    session.write_durably(5);
    session.close();
}
