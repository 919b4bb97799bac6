//! What a durable record costs: one `append` and `fdatasync` each, and in group commit with 1 and 64
//! producers that wait for their record. Run it on the disk that is meant:
//! `TMPDIR=/var/tmp cargo run --release -p mayfly-store --example group_commit`.
#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement that cannot run should stop, and reads the clock"
)]

use std::{
    fs::File,
    io::Write as _,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use mayfly_core::{
    Fact, Kind, Place, Record, Sequence, Serial, Slot, Span, TaskId, TaskVersion, Timestamp, Window,
};
use mayfly_store::{Committed, Committer, OpenOptions, Store};

const RUN: Duration = Duration::from_secs(3);

fn main() {
    raw();
    for producers in [1, 64, 1024] {
        grouped(producers);
    }
}

fn record(number: u64) -> Record {
    let at = Timestamp(1_700_000_000_000 + number / 50);
    let not_after = at.plus(Span(300_000));
    let slot = Slot(u32::try_from(number % (1 << 24)).unwrap_or(0));
    let serial = Serial::new(Place { window: Window::of(not_after), slot }, number);
    let task = TaskId::from_bytes([7; 16]);
    let fact = Fact::Promised {
        task,
        version: TaskVersion(1),
        kind: Kind::X509,
        serial,
        not_after,
        count: (0, 0),
    };
    Record { at, fact }
}

/// The floor: the same number of bytes, no log.
fn raw() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut file = File::create(dir.path().join("raw")).expect("a file");
    let bytes = vec![0_u8; 56 + mayfly_audit::encode(&record(1)).len()];
    let (start, mut waits) = (Instant::now(), Vec::new());
    while start.elapsed() < RUN {
        let began = Instant::now();
        file.write_all(&bytes).expect("write");
        file.sync_data().expect("sync");
        waits.push(began.elapsed());
    }
    report("raw append + fdatasync", start.elapsed(), waits);
}

/// `producers` records in flight; each is followed by the next as soon as it is durable.
fn grouped(producers: u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = Store::open(dir.path(), &OpenOptions::new(Timestamp(0))).expect("a store");
    let (sender, committed): (SyncSender<Committed>, Receiver<Committed>) = sync_channel(4096);
    let notify = move |news| sender.send(news).expect("somebody listens");
    let committer = Committer::start(opened.journal, notify).expect("a thread");
    let (start, mut waits, mut began) = (Instant::now(), Vec::new(), Vec::new());
    let mut durable = 0;
    while start.elapsed() < RUN {
        while (began.len() as u64) < durable + producers {
            began.push(Instant::now());
            let next = began.len() as u64;
            committer.submit(Sequence(next), record(next)).expect("room");
        }
        let Ok(Committed::Upto(upto)) = committed.recv() else {
            return println!("the journal failed");
        };
        let done =
            began.iter().skip(waits.len()).take(usize::try_from(upto.0 - durable).unwrap_or(0));
        let done: Vec<_> = done.map(Instant::elapsed).collect();
        waits.extend(done);
        durable = upto.0;
    }
    let elapsed = start.elapsed();
    let lag = durable - opened.store.indexed().map_or(0, |at| at.0);
    committer.close().expect("a clean close");
    report(&format!("group commit, {producers} in flight (index behind by {lag})"), elapsed, waits);
}

fn report(what: &str, elapsed: Duration, mut waits: Vec<Duration>) {
    waits.sort();
    let rate = waits.len() as f64 / elapsed.as_secs_f64();
    let at = |part: usize| waits.get(waits.len() * part / 100).copied().unwrap_or_default();
    println!("{what}: {rate:.0}/s, p50 {:?}, p99 {:?}", at(50), at(99));
}
