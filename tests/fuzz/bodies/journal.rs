//! The journal: what is read back was written, and damage to what was durable is never taken for a
//! write that did not finish.

use std::{
    fs,
    path::Path,
    sync::{Arc, OnceLock},
};

use mayfly_audit::{Log, decode, encode, read, verify};
use mayfly_core::{
    Author, Binding, Bounds, Budget, Cause, Denial, Extent, Fact, Holder, Kind, Mandate, OnFailure,
    Part, Place, ProcessKey, Reach, Record, RequestKey, Scope, Sequence, Serial, Shard, Slot, Span,
    TaskId, TaskVersion, Terms, Tier, Timestamp, Trigger, TrustDomain, Window,
};

/// The input is one record; and it is a list of damages to records and to a log, four bytes each.
pub(crate) fn journal(input: &[u8]) {
    spelling(input);
    for record in records() {
        spelling(&damage(&encode(&record), input).bytes);
    }
    let good = good_log();
    let damaged = damage(&good.bytes, input);
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join(&good.name), &damaged.bytes).expect("the log is written");

    let mut seen = Vec::new();
    let outcome = read(folder.path(), Sequence(0), |entry| seen.push(entry.record));
    assert!(good.records.starts_with(&seen), "something was read that was never written");
    assert_eq!(verify(folder.path()).is_ok(), outcome.is_ok(), "two readings disagree");
    if damaged.bytes == good.bytes {
        assert_eq!(seen.len(), good.records.len(), "a good log was not read");
    } else if damaged.before(good.durable_bytes, &good.bytes) {
        assert!(outcome.is_err(), "damage to durable records was cut off as a torn end");
    }
    if outcome.is_ok() {
        reopen(folder.path(), &seen);
    }
}

/// What is understood is spelled so that it is understood again.
fn spelling(bytes: &[u8]) {
    if let Ok(record) = decode(bytes) {
        let spelled = encode(&record);
        assert_eq!(decode(&spelled).as_ref(), Ok(&record), "a record changed on its way to disk");
    }
}

/// What can be read can be continued: cutting the torn end loses nothing that was shown.
fn reopen(folder: &Path, seen: &[Record]) {
    let recovery = Log::recover(folder, Shard(0), Sequence(0), |_entry| {});
    let Ok(recovery) = recovery else { return }; // Another shard's, say.
    assert_eq!(recovery.last(), Sequence(seen.len() as u64));
    let mut log = recovery.open(Log::SEGMENT_BYTES).expect("a recovered log opens");
    let next = Record {
        at: Timestamp(1),
        fact: Fact::Noted { what: "resumed".into(), detail: String::new() },
    };
    log.append(&[(log.last().next(), next)]).expect("it takes a record");
    log.sync().expect("it syncs");
    let verified = verify(folder).expect("a continued log verifies");
    assert_eq!((verified.last, verified.torn), (log.last(), None));
}

struct Good {
    name: String,
    bytes: Vec<u8>,
    records: Vec<Record>,
    /// Bytes before the first frame that testifies that all before it is durable.
    durable_bytes: usize,
}

/// A log of some records, most of them known to be durable.
fn good_log() -> &'static Good {
    static GOOD: OnceLock<Good> = OnceLock::new();
    GOOD.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let recovery = Log::recover(folder.path(), Shard(0), Sequence(0), |_entry| {});
        let mut log = recovery.and_then(|r| r.open(Log::SEGMENT_BYTES)).expect("an empty log");
        let all: Vec<_> = (1..).map(Sequence).zip(records()).collect();
        let (durable, later) = all.split_at(all.len() - 2);
        log.append(durable).expect("it takes records");
        log.sync().expect("it syncs");
        let path = fs::read_dir(folder.path())
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path())
            .find(|path| path.extension().is_some_and(|e| e == "seg"))
            .expect("a segment");
        let durable_bytes = fs::read(&path).expect("a file").len();
        log.append(later).expect("it takes records");
        Good {
            name: path.file_name().expect("a name").to_string_lossy().into_owned(),
            bytes: fs::read(&path).expect("a file"),
            records: records(),
            durable_bytes,
        }
    })
}

struct Damaged {
    bytes: Vec<u8>,
    /// Nothing was cut off or added.
    same_length: bool,
}

impl Damaged {
    /// Whether all that differs stands before `end`.
    fn before(&self, end: usize, good: &[u8]) -> bool {
        self.same_length && self.bytes.get(end..) == good.get(end..)
    }
}

const DAMAGED_BYTES_MAX: usize = 1 << 16;

fn damage(good: &[u8], input: &[u8]) -> Damaged {
    let mut bytes = good.to_vec();
    for edit in input.chunks_exact(4).take(64) {
        let &[high, low, value, what] = edit else { continue };
        let at = usize::from(u16::from_be_bytes([high, low])) % good.len();
        match what {
            // Doubling has an end, or the test runs out of memory before the log does.
            1 | 2 if bytes.len() > DAMAGED_BYTES_MAX => {}
            0 => bytes.truncate(at),
            1 => bytes.extend(vec![value; at % 256]),
            2 => bytes.extend_from_within(at.min(bytes.len())..),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= value;
                }
            }
        }
    }
    Damaged { same_length: bytes.len() == good.len(), bytes }
}

fn records() -> Vec<Record> {
    let task = TaskId::from_bytes([7; 16]);
    let place = Place { window: Window(3), slot: Slot(4) };
    let serial = Serial::new(place, 5);
    let version = TaskVersion(1);
    let not_after = Timestamp(1_800_000_000_000);
    [
        Fact::Noted { what: "started".into(), detail: String::new() },
        began(task),
        Fact::Promised { task, version, kind: Kind::X509, serial, not_after, count: (2, 1) },
        Fact::Amended {
            task,
            version: TaskVersion(2),
            intent: "tidy up".into(),
            scope: Box::default(),
            author: author(),
        },
        Fact::Transferred { task, owner: "team:b".into() },
        Fact::Renewed { task, lease_until: not_after },
        Fact::Suspended { task, by: task, cause: Some(Cause::Failed), author: author() },
        Fact::Resumed { task, author: author() },
        Fact::CredentialRevoked { task, serial, author: author() },
        Fact::Refused { denial: Denial::TaskEnded, task: Some(task), profile: "p".into() },
        Fact::Ended { task, cause: Cause::Exited, exit: Some(137), author: author() },
    ]
    .into_iter()
    .zip(1_000..)
    .map(|(fact, at)| Record { at: Timestamp(at), fact })
    .collect()
}

fn began(task: TaskId) -> Fact {
    let process = ProcessKey { boot: [9; 16], inode: 10, pid: 11 };
    Fact::Began {
        task,
        terms: Arc::new(Terms {
            profile: "web".into(),
            path: "/web".into(),
            owner: "team:shop".into(),
            binding: Binding::Process,
            stable_identity: true,
            x509_ttl: Span::from_secs(300),
            jwt_ttl: Span::from_secs(120),
            task_ttl: Some(Span::from_secs(3600)),
            hint: "internal".into(),
            federates_with: TrustDomain::parse("partner.example").into_iter().collect(),
            bounds: Bounds {
                requires: [Part::Intent].into(),
                tier: Tier::Medium,
                on_failure: OnFailure::Quarantine,
                delegates_to: Some(["tool".into()].into()),
                ..Bounds::default()
            },
        }),
        holder: Holder::Process(process),
        parent: Some(task),
        mandate: Arc::new(mandate()),
        deadline: Some(Timestamp(1_800_000_000_000)),
        lease: Some(Span(1_000)),
        declared: true,
        key: Some(RequestKey { key: [3; 32], body: [4; 32] }),
        author: author(),
    }
}

fn author() -> Author {
    Author { by: "uid:1000".into(), why: "it is time".into() }
}

fn mandate() -> Mandate {
    Mandate {
        intent: "answer".into(),
        scope: Scope { audiences: Extent::only(["billing", "db/*"]), ..Scope::default() },
        tier: Some(Tier::High),
        triggers: [Trigger::Budget].into(),
        budget: Budget { issuances: Some(9), per_minute: Some(2), attempts: Some(3) },
        reach: Some(Reach { depth: 2, children: 5 }),
        ttl: Some(Span(30_000)),
        approval: "two".into(),
        telemetry: "calls".into(),
        escalation: "the owner".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_of_the_log_is_understood() {
        for record in records() {
            assert_eq!(decode(&encode(&record)), Ok(record));
        }
    }

    #[test]
    fn damage_that_does_nothing_leaves_the_log_whole() {
        let log = b"a log of some bytes";
        let twice = [0, 3, 0x55, 3, 0, 3, 0x55, 3];
        assert_eq!(damage(log, &twice).bytes, log);
        assert!(!damage(log, &[0, 3, 0, 0]).same_length);
    }
}
