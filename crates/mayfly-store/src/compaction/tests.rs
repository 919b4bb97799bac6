//! The index is written anew, and at no instant is it lost.

use std::{collections::BTreeSet, os::unix::fs::MetadataExt as _, sync::Arc, thread};

use mayfly_audit::{Chain, Entry};
use mayfly_core::{
    Author, Cause, Fact, Holder, Mandate, Record, Sequence, Snapshot, Span, TaskId, Timestamp,
};

use self::terms::terms;
use super::*;
use crate::{IndexReport, Journal as _, OpenOptions, Opened, Store};

#[path = "../../../../tests/fixtures/terms.rs"]
mod terms;

const START: Timestamp = Timestamp(1_700_000_000_000);
/// Tasks that begin and end together, a day after the lot before: as many records as the keeper folds in a
/// round. An index alone forgets them by itself when their last credential must have expired.
const LOT: u64 = 2_048;
const DAY: u64 = 86_400_000;

#[test]
fn a_file_that_has_outgrown_what_it_holds_is_written_anew_beside_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path(), 0);
    for lot in 0..12 {
        write(&mut opened, lot, START);
    }
    let grown = size(&dir.path().join("store"));
    for number in 0..12 * LOT {
        opened.store.forget(task(number));
    }
    let last = (12..60).find(|lot| {
        write(&mut opened, *lot, START.plus(Span(lot * DAY)));
        for number in (lot - 1) * LOT..lot * LOT {
            opened.store.forget(task(number));
        }
        size(&dir.path().join("store")) < grown / 2
    });
    let last = last.expect("sled gives nothing back by itself");
    drop(opened);
    let opened = open(dir.path(), u64::MAX);
    assert_eq!(opened.report.index, IndexReport::Used(opened.last));
    let begun = (last * LOT..(last + 1) * LOT).map(task);
    let remembered: BTreeSet<_> =
        opened.snapshot.records.iter().filter_map(|record| record.fact.task()).collect();
    assert!(begun.into_iter().all(|task| remembered.contains(&task)));
    assert!((0..12 * LOT).map(task).all(|task| !remembered.contains(&task)));
}

#[test]
fn a_crash_at_any_step_leaves_a_whole_index() {
    let dir = tempfile::tempdir().unwrap();
    let images = tempfile::tempdir().unwrap();
    let index_dir = filled(dir.path(), 2);
    let image =
        |name: &str| copy_dir(&dir.path().join("store"), &images.path().join(name).join("store"));
    let (index, _) = Index::open(&index_dir).unwrap();
    let compaction = Compaction::new(index_dir.clone(), 0);
    let fresh = beside(&index_dir);
    let mut asked = 0;
    let mut go_on = || {
        asked += 1;
        if asked == 2 {
            image("half written");
        }
        true
    };
    assert_eq!(compaction.write(&index, &fresh, &mut go_on), Ok(true));
    image("written");
    let index = index
        .exchange(&index_dir, || {
            image("closed");
            exchange(&fresh, &index_dir).unwrap();
            image("exchanged");
        })
        .unwrap();
    image("in use");
    drop(index);
    clear(&index_dir);
    image("cleared");
    for name in ["half written", "written", "closed", "exchanged", "in use", "cleared"] {
        let at = images.path().join(name);
        for file in ["lock", "sentinel"] {
            fs::copy(dir.path().join(file), at.join(file)).unwrap();
        }
        let had_fresh = beside(&at.join("store/index")).join("db").exists();
        assert_eq!(had_fresh, name != "cleared", "{name}");
        let opened = open(&at, u64::MAX);
        assert_eq!(opened.report.index, IndexReport::Used(opened.last), "{name}");
        assert!(!beside(&at.join("store/index")).exists(), "{name}");
        let snapshot = opened.snapshot.clone();
        assert_eq!(snapshot, rebuilt(&at, opened), "{name}");
    }
}

#[test]
fn a_crash_where_directories_cannot_be_exchanged_costs_a_rebuild() {
    let dir = tempfile::tempdir().unwrap();
    let index_dir = filled(dir.path(), 1);
    let before = open(dir.path(), u64::MAX).snapshot;
    let used = IndexReport::Used(before.position);
    let fresh = beside(&index_dir);
    assert!(step_aside(&fresh, &index_dir).is_err(), "there is no fresh one");
    let opened = open(dir.path(), u64::MAX);
    assert_eq!(opened.report.index, used, "the old one is back in its place");
    drop(opened);
    copy_dir(&index_dir, &fresh);
    step_aside(&fresh, &index_dir).unwrap();
    let opened = open(dir.path(), u64::MAX);
    assert_eq!(opened.report.index, used);
    assert!(!aside(&index_dir).exists());
    drop(opened);
    fs::rename(&index_dir, aside(&index_dir)).unwrap();
    copy_dir(&aside(&index_dir), &fresh);
    let opened = open(dir.path(), u64::MAX);
    assert!(matches!(opened.report.index, IndexReport::Rebuilt(_)), "{:?}", opened.report.index);
    assert_eq!(rebuilt(dir.path(), opened), before);
    assert!(!aside(&index_dir).exists() && !fresh.exists());
}

#[test]
fn an_index_that_cannot_be_written_anew_stays_in_use() {
    let (_dir, index, mut compaction) = grown();
    let place = |compaction: &Compaction| fs::metadata(&compaction.dir).unwrap().ino();
    let (before, snapshot) = (place(&compaction), index.snapshot().unwrap());
    let fresh = beside(&compaction.dir);
    fs::write(&fresh, "in the way").unwrap();
    let mut index = compaction.run(index, &mut || true).unwrap();
    assert_eq!(index.snapshot().unwrap(), snapshot);
    assert!(!compaction.is_due(&index), "it is not tried again at once");
    assert_eq!(place(&compaction), before);
    assert_eq!(fs::read(&fresh).unwrap(), b"in the way");
    let next = index.position().0 / (2 * LOT);
    index.apply_alone(entries(next)).unwrap();
    fs::remove_file(&fresh).unwrap();
    compaction.retry_at = index.size().unwrap();
    assert!(compaction.is_due(&index), "it is when the file has grown on");
    let mut index = compaction.run(index, &mut || true).unwrap();
    assert_ne!(place(&compaction), before, "this time it was");
    index.apply_alone(entries(next + 1)).unwrap();
    let (live, snapshot) = (index.live(), index.snapshot().unwrap());
    drop(index);
    let (index, after) = Index::open(&compaction.dir).unwrap();
    assert_eq!((index.live(), after), (live, snapshot));
}

#[test]
fn whoever_stops_does_not_wait_for_it() {
    let (_dir, index, mut compaction) = grown();
    let snapshot = index.snapshot().unwrap();
    let mut asked = 0;
    let mut go_on = || {
        asked += 1;
        asked < 2
    };
    let index = compaction.run(index, &mut go_on).unwrap();
    assert_eq!(asked, 2);
    assert!(!beside(&compaction.dir).exists());
    assert_eq!(index.snapshot().unwrap(), snapshot);
    assert!(compaction.is_due(&index), "it has not failed");
}

#[test]
fn what_a_fresh_file_takes_is_learned() {
    let (_dir, index, mut compaction) = grown();
    compaction.fresh_percent = 1;
    let index = compaction.run(index, &mut || true).unwrap();
    assert!(!compaction.is_due(&index), "it would be written anew for ever");
    let percent = compaction.fresh(index.live()) * 100 / index.size().unwrap();
    assert!((95..=100).contains(&percent), "{percent}");
}

fn open(dir: &Path, floor: u64) -> Opened {
    let options = OpenOptions { index_floor_bytes: floor, ..OpenOptions::new(START) };
    Store::open(dir, &options).unwrap()
}

/// Writes one lot, and waits for the index.
fn write(opened: &mut Opened, lot: u64, at: Timestamp) {
    let records: Vec<_> = entries(lot)
        .into_iter()
        .map(|entry| (entry.sequence, Record { at, ..entry.record }))
        .collect();
    opened.journal.append(&records).unwrap();
    let last = opened.journal.commit().unwrap();
    while opened.store.indexed().unwrap() < last {
        thread::yield_now();
    }
}

/// A store with some lots in it, closed. Where its index is.
fn filled(dir: &Path, lots: u64) -> PathBuf {
    let mut opened = open(dir, u64::MAX);
    for lot in 0..lots {
        write(&mut opened, lot, START.plus(Span(lot * DAY)));
    }
    dir.join("store/index")
}

/// What an index built from the log holds, after `opened` is closed.
fn rebuilt(dir: &Path, opened: Opened) -> Snapshot {
    drop(opened);
    fs::remove_dir_all(dir.join("store/index")).unwrap();
    drop(open(dir, u64::MAX));
    // What it was built from came from the log; this comes from its rows.
    let opened = open(dir, u64::MAX);
    assert_eq!(opened.report.index, IndexReport::Used(opened.last));
    opened.snapshot
}

/// An index that has seen much more than it holds.
pub(crate) fn grown() -> (tempfile::TempDir, Index, Compaction) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let (mut index, _) = Index::open(&path).unwrap();
    // As if a fresh file took next to nothing.
    let compaction = Compaction { fresh_percent: 10, ..Compaction::new(path, 0) };
    for lot in 0..8 {
        index.apply_alone(entries(lot)).unwrap();
    }
    assert!(compaction.is_due(&index));
    (dir, index, compaction)
}

fn entries(lot: u64) -> Vec<Entry> {
    let first = lot * LOT * 2 + 1;
    let records = (0..LOT * 2).map(|of| {
        let task = task(lot * LOT + of % LOT);
        let fact = if of < LOT { began(task) } else { ended(task) };
        Record { at: START.plus(Span(lot * DAY)), fact }
    });
    let sequences = (first..).map(Sequence);
    let entries = sequences.zip(records);
    entries.map(|(sequence, record)| Entry { sequence, record, chain: Chain::GENESIS }).collect()
}

/// Spread evenly, as they are in life.
fn task(number: u64) -> TaskId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
    TaskId::from_bytes(id)
}

pub(crate) fn began(task: TaskId) -> Fact {
    Fact::Began {
        task,
        terms: terms().into(),
        holder: Holder::Lease,
        parent: None,
        mandate: Arc::new(Mandate::of_intent("to be compacted")),
        deadline: None,
        lease: Some(Span(60_000)),
        declared: true,
        key: None,
        author: Author::default(),
    }
}

fn ended(task: TaskId) -> Fact {
    Fact::Ended { task, cause: Cause::Completed, exit: None, author: Author::default() }
}

/// What all files below `dir/index` and beside it take.
fn size(dir: &Path) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let name = entry.file_name();
        // Sled and a compaction remove files meanwhile.
        let held = entry.metadata().map_or(0, |held| if held.is_dir() { 0 } else { held.len() });
        bytes += if entry.path().is_dir() && name != "log" { size(&entry.path()) } else { held };
    }
    bytes
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
