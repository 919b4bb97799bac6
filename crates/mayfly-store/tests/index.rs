//! The index may be lost, cut, replaced or filled with garbage at any time, and nothing is lost.
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

use std::{fs, path::Path};

use mayfly_core::{Fact, Record, Sequence};
use mayfly_store::{IndexReport, Journal as _};
use proptest::prelude::*;

#[path = "../../../tests/fixtures/journal.rs"]
mod journal;
use journal::{START, Session, expected, files, fill, open, put_back, remembered};

/// Does something to the index, opens, and checks that nothing is lost.
fn after_harm(harm: impl Fn(&Path)) -> IndexReport {
    let dir = tempfile::tempdir().expect("a directory");
    fill(dir.path(), 100);
    harm(&dir.path().join("store/index"));
    let opened = open(dir.path()).expect("the log is the truth");
    assert_eq!(opened.last, Sequence(100));
    let report = opened.report.index.clone();
    assert_eq!(remembered(opened.snapshot.clone()), expected(100));
    let mut session = Session::of(opened);
    session.write_durably(20);
    session.close();
    let opened = open(dir.path()).expect("and once more");
    assert_eq!(opened.report.index, IndexReport::Used(Sequence(120)));
    assert_eq!(remembered(opened.snapshot), expected(120));
    report
}

#[test]
fn an_index_that_is_deleted_is_built_again() {
    let report = after_harm(|index| fs::remove_dir_all(index).expect("remove"));
    assert_eq!(report, IndexReport::Rebuilt("there was none".into()));
}

#[test]
fn an_index_that_is_emptied_is_noticed() {
    let report = after_harm(|index| {
        fs::remove_dir_all(index).expect("remove");
        fs::create_dir(index).expect("create");
    });
    assert_eq!(report, IndexReport::Rebuilt("it is empty".into()));
    let report = after_harm(|index| {
        for path in files(index).into_keys() {
            fs::write(path, []).expect("write");
        }
    });
    assert!(matches!(report, IndexReport::Rebuilt(_)), "{report:?}");
    let report = after_harm(|index| {
        let db = sled_of(index);
        db.clear().expect("clear");
        db.flush().expect("flush");
    });
    assert_eq!(report, IndexReport::Rebuilt("it is empty".into()));
}

#[test]
fn an_index_with_a_row_too_few_too_many_or_changed_is_noticed() {
    let harms: [fn(&sled::Db); 3] = [
        |db| {
            let (key, _) = db.scan_prefix(b"t").nth(7).expect("a row").expect("readable");
            db.remove(key).expect("remove");
        },
        |db| {
            db.insert(b"w\0\0\0\0", &[0, 0, 0, 0]).expect("insert");
        },
        |db| {
            let (key, value) = db.scan_prefix(b"p").nth(7).expect("a row").expect("readable");
            let mut value = value.to_vec();
            *value.last_mut().expect("a byte") ^= 1;
            db.insert(key, value).expect("insert");
        },
    ];
    for harm in harms {
        let report = after_harm(|index| {
            let db = sled_of(index);
            harm(&db);
            db.flush().expect("flush");
        });
        let why = "its rows do not add up to its digest";
        assert_eq!(report, IndexReport::Rebuilt(why.into()));
    }
}

fn sled_of(index: &Path) -> sled::Db {
    sled::Config::new().path(index).open().expect("sled opens its own files")
}

#[test]
fn an_index_that_is_truncated_or_full_of_garbage_is_noticed_or_still_right() {
    for keep in [0, 1, 100, 4096, 200_000] {
        after_harm(|index| {
            for (path, bytes) in files(index) {
                fs::write(path, &bytes[..bytes.len().min(keep)]).expect("write");
            }
        });
    }
    let report = after_harm(|index| {
        for (path, bytes) in files(index) {
            let garbage: Vec<u8> =
                (0..bytes.len()).map(|at| u8::try_from(at * 31 % 251).unwrap_or(0)).collect();
            fs::write(path, garbage).expect("write");
        }
    });
    assert!(matches!(report, IndexReport::Rebuilt(_)), "{report:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn flipped_bytes_in_the_index_never_change_what_is_remembered(
        places in prop::collection::vec((any::<usize>(), 0_usize..1 << 16, 1_u8..=255), 1..8)
    ) {
        after_harm(|index| {
            let mut found: Vec<_> = files(index).into_iter().collect();
            for (which, at, flip) in &places {
                let count = found.len();
                let (_, bytes) = &mut found[which % count];
                if !bytes.is_empty() {
                    // The front of a file is where its contents are; sled fills the rest with zeros.
                    let at = at % bytes.len();
                    bytes[at] ^= flip;
                }
            }
            for (path, bytes) in found {
                fs::write(path, bytes).expect("write");
            }
        });
    }
}

#[test]
fn an_older_copy_of_the_index_is_used_and_brought_up_to_date() {
    let dir = tempfile::tempdir().expect("a directory");
    fill(dir.path(), 50);
    let index = dir.path().join("store/index");
    let old = files(&index);
    fill(dir.path(), 50);
    put_back(&index, &old);
    let opened = open(dir.path()).expect("open");
    assert_eq!(opened.report.index, IndexReport::Used(Sequence(50)));
    assert_eq!(remembered(opened.snapshot), expected(100));
}

#[test]
fn an_index_of_another_log_is_thrown_away() {
    let other = tempfile::tempdir().expect("a directory");
    let mut opened = open(other.path()).expect("open");
    let fact = Fact::Noted { what: "other".into(), detail: String::new() };
    opened.journal.append(&[(Sequence(1), Record { at: START, fact })]).expect("append");
    opened.journal.commit().expect("commit");
    drop(opened);
    let theirs = files(&other.path().join("store/index"));
    let report = after_harm(|index| {
        fs::remove_dir_all(index).expect("remove");
        fs::create_dir(index).expect("create");
        for (path, bytes) in &theirs {
            let name = path.strip_prefix(other.path().join("store/index")).expect("a file there");
            fs::create_dir_all(index.join(name).parent().expect("a parent")).expect("create");
            fs::write(index.join(name), bytes).expect("write");
        }
    });
    let why = "it stands on records that are not in the log";
    assert_eq!(report, IndexReport::Rebuilt(why.into()));
}

#[test]
fn a_start_that_did_not_survive_the_index_does_not_try_it_again() {
    let report = after_harm(|index| fs::write(index.with_extension("opening"), []).expect("write"));
    let why = "the last start did not survive opening it";
    assert_eq!(report, IndexReport::Rebuilt(why.into()));
}
