//! What the log promises, on a real directory.
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use mayfly_audit::{Log, LogError, Reader, read, timeline, verify};
use mayfly_core::{Cause, Fact, Record, Sequence, Shard, TaskId, Timestamp};

const SHARD: Shard = Shard(3);

fn record(number: u64) -> Record {
    let fact = if number.is_multiple_of(3) {
        let mut task = [0; 16];
        task[0] = 7;
        Fact::Ended {
            task: TaskId::from_bytes(task),
            cause: Cause::Exited,
            exit: Some(-1),
            author: mayfly_core::Author::default(),
        }
    } else {
        Fact::Noted { what: "counted".into(), detail: format!("number {number}") }
    };
    Record { at: Timestamp(number * 10), fact }
}

fn batch(from: u64, to: u64) -> Vec<(Sequence, Record)> {
    (from..=to).map(|number| (Sequence(number), record(number))).collect()
}

fn open(dir: &Path, segment_bytes: u64) -> (Log, Vec<(Sequence, Record)>) {
    let mut seen = Vec::new();
    let found = Log::recover(dir, SHARD, Sequence(0), |it| seen.push((it.sequence, it.record)));
    let log = found.and_then(|found| found.open(segment_bytes)).expect("the log opens");
    (log, seen)
}

fn recover(dir: &Path) -> Result<Vec<(Sequence, Record)>, LogError> {
    let mut seen = Vec::new();
    Log::recover(dir, SHARD, Sequence(0), |it| seen.push((it.sequence, it.record)))?;
    Ok(seen)
}

/// Writes `count` records, each durable by itself.
fn fill(dir: &Path, count: u64, segment_bytes: u64) {
    let (mut log, _) = open(dir, segment_bytes);
    for number in 1..=count {
        log.append(&batch(number, number)).expect("append");
        assert_eq!(log.sync().expect("sync"), Sequence(number));
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(dir).expect("list").map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    paths
}

#[test]
fn what_was_appended_is_read_back_across_segments_and_restarts() {
    let dir = tempfile::tempdir().expect("a directory");
    for round in 0..4 {
        let (mut log, seen) = open(dir.path(), 500);
        assert_eq!(seen, batch(1, round * 30));
        for number in 0..3 {
            let from = round * 30 + number * 10 + 1;
            log.append(&batch(from, from + 9)).expect("append");
            log.sync().expect("sync");
        }
    }
    assert!(segments(dir.path()).len() > 3, "small segments roll");
    let verified = verify(dir.path()).expect("a healthy log");
    assert_eq!((verified.last, verified.records, verified.torn), (Sequence(120), 120, None));
    let mut tail = Vec::new();
    read(dir.path(), Sequence(115), |it| tail.push((it.sequence, it.record))).expect("read");
    assert_eq!(tail, batch(115, 120));
    let mut task = [0; 16];
    task[0] = 7;
    let lines = timeline(dir.path(), TaskId::from_bytes(task)).expect("a timeline");
    assert_eq!(lines.len(), 40);
}

#[test]
fn a_reader_follows_the_writer_and_never_sees_what_is_not_durable() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open(dir.path(), 400);
    let mut reader = Reader::new(dir.path(), log.cursor());
    for round in 0..20 {
        let from = round * 5 + 1;
        log.append(&batch(from, from + 4)).expect("append");
        assert_eq!(reader.next(log.durable()).expect("read"), None);
        log.sync().expect("sync");
        for expected in batch(from, from + 4) {
            let entry = reader.next(log.durable()).expect("read").expect("an entry");
            assert_eq!((entry.sequence, entry.record), expected);
        }
    }
    assert!(segments(dir.path()).len() > 3, "the reader crossed segments");
}

#[test]
fn a_write_torn_at_any_byte_costs_only_what_was_not_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    fill(dir.path(), 6, 1 << 20);
    let path = segments(dir.path()).remove(0);
    let whole = fs::read(&path).expect("read");
    let mut ends = Vec::new();
    for cut in (76..=whole.len()).rev() {
        // A crash leaves a short file or, where blocks were allocated, zeros or old bytes.
        for filler in [None, Some(0_u8), Some(0xA5)] {
            let mut bytes = whole[..cut].to_vec();
            if let Some(filler) = filler {
                bytes.resize(whole.len() + 40, filler);
            }
            fs::write(&path, &bytes).expect("write");
            let (mut log, seen) = open(dir.path(), 1 << 20);
            let count = seen.len() as u64;
            assert_eq!(seen, batch(1, count), "a prefix of the records, cut at {cut}");
            log.append(&batch(count + 1, count + 1)).expect("append after a cut");
            log.sync().expect("sync");
            drop(log);
            assert_eq!(recover(dir.path()).expect("reopen"), batch(1, count + 1));
            ends.push(count);
        }
    }
    ends.dedup();
    assert_eq!(ends, [6, 5, 4, 3, 2, 1, 0], "each record is lost exactly when its last byte is");
}

#[test]
fn a_hole_in_a_batch_that_never_finished_is_cut_but_a_hole_in_durable_records_is_damage() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open(dir.path(), 1 << 20);
    log.append(&batch(1, 2)).expect("append");
    log.sync().expect("sync");
    let path = segments(dir.path()).remove(0);
    let durable = fs::read(&path).expect("read").len();
    log.append(&batch(3, 9)).expect("append");
    drop(log);
    let whole = fs::read(&path).expect("read");
    let mut bytes = whole.clone();
    bytes[durable + 10..durable + 90].fill(0);
    fs::write(&path, &bytes).expect("write");
    assert_eq!(recover(dir.path()).expect("half a batch is cut"), batch(1, 2));
    let mut bytes = whole;
    bytes[durable - 5] ^= 1;
    fs::write(&path, &bytes).expect("write");
    let error = recover(dir.path()).expect_err("record 3 proves that record 2 was durable");
    assert!(matches!(error, LogError::Corrupt { at: Sequence(2), .. }), "{error}");
    assert_eq!(fs::read(&path).expect("read"), bytes, "a refused log is not changed");
}

#[test]
fn every_flipped_byte_before_the_last_record_is_named_and_nothing_is_changed() {
    let dir = tempfile::tempdir().expect("a directory");
    fill(dir.path(), 5, 1 << 20);
    let path = segments(dir.path()).remove(0);
    let whole = fs::read(&path).expect("read");
    let last = whole.len() - (whole.len() - 76) / 5 - 20;
    for at in 0..last {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, &bytes).expect("write");
        let error = recover(dir.path()).expect_err("damage is refused");
        assert!(
            matches!(error, LogError::Corrupt { .. } | LogError::WrongVersion { .. }),
            "byte {at}: {error}"
        );
        assert!(verify(dir.path()).is_err(), "the verifier agrees at byte {at}");
        assert_eq!(fs::read(&path).expect("read"), bytes);
    }
}

#[test]
fn a_missing_shortened_or_foreign_segment_is_refused_even_if_only_the_end_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    fill(dir.path(), 40, 400);
    let paths = segments(dir.path());
    assert!(paths.len() > 4);
    let refused = |what: &str| {
        let error = Log::recover(dir.path(), SHARD, Sequence(39), |_| {}).expect_err(what);
        assert!(matches!(error, LogError::Corrupt { .. }), "{what}: {error}");
    };
    for path in &paths[..paths.len() - 1] {
        let bytes = fs::read(path).expect("read");
        fs::remove_file(path).expect("remove");
        refused("missing");
        fs::write(path, &bytes[..bytes.len() - 1]).expect("write");
        refused("shortened");
        fs::write(path, &bytes).expect("write");
    }
    let error = Log::recover(dir.path(), Shard(4), Sequence(0), |_| {}).expect_err("a shard");
    assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
    let copy = fs::read(&paths[1]).expect("read");
    fs::write(&paths[2], copy).expect("write");
    refused("a copy under another name");
}

#[test]
fn another_format_version_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    fill(dir.path(), 2, 1 << 20);
    let path = segments(dir.path()).remove(0);
    let mut bytes = fs::read(&path).expect("read");
    bytes[8] = 9;
    fs::write(&path, &bytes).expect("write");
    let error = recover(dir.path()).expect_err("another version");
    assert!(matches!(error, LogError::WrongVersion { found: 9, expected: 1, .. }), "{error}");
}

#[test]
fn a_vanished_or_replaced_file_stops_the_log_for_good() {
    for replace in [false, true] {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut log, _) = open(dir.path(), 1 << 20);
        log.append(&batch(1, 1)).expect("append");
        log.sync().expect("sync");
        let path = segments(dir.path()).remove(0);
        let bytes = fs::read(&path).expect("read");
        fs::remove_file(&path).expect("remove");
        if replace {
            fs::write(&path, bytes).expect("write");
        }
        log.append(&batch(2, 2)).expect("the file is still open");
        assert!(matches!(log.sync(), Err(LogError::Vanished { .. })));
        assert!(matches!(log.append(&batch(3, 3)), Err(LogError::Vanished { .. })));
        assert_eq!(log.durable(), Sequence(1), "what cannot be found again is not durable");
    }
}

#[test]
fn records_that_do_not_follow_or_are_too_large_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open(dir.path(), 1 << 20);
    let error = log.append(&batch(2, 2)).expect_err("a gap");
    assert!(matches!(error, LogError::OutOfOrder { .. }), "{error}");
    let fact = Fact::Noted { what: String::new(), detail: "x".repeat(2 << 20) };
    let large = [(Sequence(1), Record { at: Timestamp(0), fact })];
    let error = log.append(&large).expect_err("too large");
    assert!(matches!(error, LogError::TooLarge { .. }), "{error}");
    log.append(&batch(1, 1)).expect("the log is unharmed");
    log.sync().expect("sync");
    assert_eq!(recover(dir.path()).expect("reopen"), batch(1, 1));
}

#[test]
fn after_a_confirmed_loss_the_log_goes_on_beyond_everything_that_was_seen() {
    let dir = tempfile::tempdir().expect("a directory");
    fill(dir.path(), 3, 1 << 20);
    let found = Log::recover(dir.path(), SHARD, Sequence(0), |_| {}).expect("recover");
    let mut log = found.resume_at(Sequence(100), 1 << 20).expect("resume");
    log.append(&batch(100, 101)).expect("append");
    log.sync().expect("sync");
    let expected: Vec<_> = batch(1, 3).into_iter().chain(batch(100, 101)).collect();
    assert_eq!(recover(dir.path()).expect("reopen"), expected);
    let empty = tempfile::tempdir().expect("a directory");
    let found = Log::recover(empty.path(), SHARD, Sequence(0), |_| {}).expect("recover");
    let mut log = found.resume_at(Sequence(50), 1 << 20).expect("resume");
    log.append(&batch(50, 50)).expect("append");
    log.sync().expect("sync");
    assert_eq!(recover(empty.path()).expect("reopen"), batch(50, 50));
}
