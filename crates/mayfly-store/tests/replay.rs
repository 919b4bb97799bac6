//! What is remembered is what happened: for random histories, a registrar replayed from the store's
//! snapshot is like one that replayed every record (P6).
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot run should stop"
)]
#![expect(clippy::wildcard_enum_match_arm, reason = "a step looks at few of many effects")]

use std::{fs, path::Path, sync::mpsc};

use mayfly_core::{
    Amendment, Ask, Author, Basis, Begin, Binding, Charter, Effect, Event, Fact, Holder,
    PolicyEpoch, ProcessKey, Record, Registrar, Sequence, Serial, Shard, Snapshot, Span, TaskId,
    TaskVersion, Terms, Ticket, Timestamp, TrustDomain, task::Cause,
};
use mayfly_store::{Committed, Committer, IndexReport, OpenOptions, Store};
use proptest::prelude::*;

#[path = "../../../tests/fixtures/terms.rs"]
mod terms;
use terms::terms;

const START: Timestamp = Timestamp(1_700_000_000_000);

fn charter() -> Charter {
    Charter {
        trust_domain: TrustDomain::parse("example.org").expect("a name"),
        shard: Shard(0),
        policy_epoch: PolicyEpoch(1),
        admission: mayfly_core::Admission::default(),
    }
}

/// A registrar at work, and what it ordered.
struct History {
    registrar: Registrar,
    now: Timestamp,
    ticket: u64,
    tasks: Vec<TaskId>,
    serials: Vec<Serial>,
    journal: Vec<(Sequence, Record)>,
    forgotten: Vec<TaskId>,
}

/// One random step: what, about which of the things there are, and how much later.
type Step = (u8, u8, u32);

impl History {
    fn new() -> Self {
        Self {
            registrar: Registrar::new(charter()),
            now: START,
            ticket: 0,
            tasks: Vec::new(),
            serials: Vec::new(),
            journal: Vec::new(),
            forgotten: Vec::new(),
        }
    }

    fn step(&mut self, (what, which, later): Step) {
        self.now = self.now.plus(Span(u64::from(later)));
        self.registrar.handle_timeout(self.now);
        self.settle();
        self.ticket += 1;
        let ticket = Ticket(self.ticket);
        let chosen = self.tasks.get(usize::from(which) % self.tasks.len().max(1)).copied();
        let task = chosen.unwrap_or_else(|| TaskId::from_bytes([0xFF; 16]));
        let author = Author { by: "uid:7".into(), why: String::new() };
        let event = match what % 12 {
            0 | 1 => self.begin(ticket, which, chosen.filter(|_| which.is_multiple_of(3))),
            2..=4 => {
                let version = self.registrar.task(task).map_or(TaskVersion(1), |task| task.version);
                let ask = if which.is_multiple_of(2) {
                    Ask::X509
                } else {
                    Ask::Jwt { audience: ["peer".into()].into() }
                };
                let basis = Basis { task, version, epoch: PolicyEpoch(1) };
                Event::Asked { ticket, basis, ask, luck: self.ticket }
            }
            5 => Event::EndAsked { ticket, task, cause: Cause::Revoked, author },
            6 => Event::HolderGone { task, exit: Some(0) },
            7 => Event::HeartbeatHeard { ticket, task },
            8 => {
                let intent = Some(format!("step {}", self.ticket));
                let amendment = Amendment { intent, ..Amendment::default() };
                Event::AmendAsked { ticket, task, amendment, author }
            }
            9 => Event::QuarantineAsked { ticket, task, author },
            10 => Event::ReleaseAsked { ticket, task, author },
            _ => match self.serials.get(usize::from(which) % self.serials.len().max(1)) {
                Some(serial) => Event::RevokeAsked { ticket, serial: *serial, author },
                None => Event::NoteAsked { what: "idle".into(), detail: String::new() },
            },
        };
        self.registrar.handle(self.now, event);
        self.settle();
    }

    fn begin(&self, ticket: Ticket, which: u8, parent: Option<TaskId>) -> Event {
        let key = ProcessKey { boot: [1; 16], inode: self.ticket, pid: 7 };
        let (binding, holder, lease) = match which % 4 {
            0 => (Binding::Process, Holder::Process(key), None),
            1 => (Binding::Socket, Holder::Socket, None),
            _ => (Binding::Lease, Holder::Lease, Some(Span(60_000 * u64::from(which)))),
        };
        let terms = Terms { binding, ..terms() };
        let mut begin = Begin { parent, lease, ..Begin::new(terms, holder) };
        // Some count their credentials, and stop short.
        begin.mandate.budget.issuances = which.is_multiple_of(5).then_some(3);
        let mut luck = [0; 16];
        luck[..8].copy_from_slice(&self.ticket.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
        Event::BeginAsked { ticket, begin, luck: TaskId::from_bytes(luck), first: None }
    }

    /// Does what the registrar orders, at once and well.
    fn settle(&mut self) {
        while let Some(effect) = self.registrar.poll_effect() {
            match effect {
                Effect::Journal(sequence, record) => {
                    match &record.fact {
                        Fact::Began { task, .. } => self.tasks.push(*task),
                        Fact::Promised { serial, .. } => self.serials.push(*serial),
                        _ => {}
                    }
                    self.journal.push((sequence, record));
                    self.registrar.handle(self.now, Event::Journaled { upto: sequence });
                }
                Effect::Sign { ticket, .. } => {
                    self.registrar.handle(self.now, Event::Signed { ticket });
                }
                Effect::Forget { task } => {
                    self.tasks.retain(|other| *other != task);
                    self.forgotten.push(task);
                }
                _ => {}
            }
        }
    }
}

/// One life of a daemon: opens, compares, commits what is new, forgets, closes.
fn live(dir: &Path, history: &History, upto: usize) -> IndexReport {
    let opened = Store::open(dir, &OpenOptions::new(history.now)).expect("the store opens");
    let known = usize::try_from(opened.last.0).expect("a number");
    assert_said_again(opened.snapshot.clone(), history.now);
    assert_same(opened.snapshot, &history.journal[..known], history.now);
    let (sender, receiver) = mpsc::sync_channel(1 << 16);
    let committer = Committer::start(opened.journal, move |committed| {
        sender.send(committed).expect("somebody listens");
    })
    .expect("a thread");
    for (sequence, record) in &history.journal[known..upto] {
        committer.submit(*sequence, record.clone()).expect("room");
    }
    // As in life: core forgets a task only long after its end was submitted.
    for task in &history.forgotten {
        let is_end = |(_, record): &(Sequence, Record)| matches!(record.fact, Fact::Ended { task: ended, .. } if ended == *task);
        if !history.journal[upto..].iter().any(is_end) {
            opened.store.forget(*task);
        }
    }
    committer.close().expect("a clean close");
    let last = receiver.iter().last();
    if upto > known {
        assert!(matches!(last, Some(Committed::Upto(at)) if at.0 == upto as u64), "{last:?}");
    }
    opened.report.index
}

fn assert_same(snapshot: Snapshot, journal: &[(Sequence, Record)], now: Timestamp) {
    let from_snapshot = Registrar::replay(charter(), Some(snapshot), []);
    let from_all = Registrar::replay(charter(), None, journal.iter().cloned());
    assert_eq!(from_snapshot.memory(now), from_all.memory(now));
}

/// What core had forgotten may be on disk still, if a crash took what it said: it says it again.
fn assert_said_again(snapshot: Snapshot, now: Timestamp) {
    let mut again = History::new();
    let begun = snapshot.records.iter().filter(|record| matches!(record.fact, Fact::Began { .. }));
    let begun = begun.count();
    again.registrar = Registrar::replay(charter(), Some(snapshot), []);
    assert_eq!(again.registrar.tasks().count(), begun, "no row is of a task that it does not know");
    let over = again.registrar.tasks().filter(|task| task.state.is_ended());
    let over: Vec<_> = over.map(|task| task.id).collect();
    // As at a start: what a crash has torn is finished, and of those who are looked for nobody is found.
    for (task, _) in again.registrar.reconcile() {
        again.registrar.handle(now, Event::HolderGone { task, exit: None });
    }
    // Whoever has children is remembered until they are forgotten.
    for days in 1..=2 + over.len() as u64 {
        again.now = now.plus(Span(days * 86_400_000));
        again.registrar.handle_timeout(again.now);
        again.settle();
    }
    assert!(over.iter().all(|task| again.forgotten.contains(task)));
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("create");
    for entry in fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copy");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_snapshot_replays_to_the_same_memory_as_every_record(
        // Mostly small steps, now and then one that lets windows, tasks and credentials expire.
        steps in prop::collection::vec(
            (any::<u8>(), any::<u8>(), prop_oneof![
                8 => 0_u32..5_000, 2 => 0_u32..400_000, 1 => 0_u32..100_000_000
            ]), 1..160),
        cut in 0.0..1.0_f64,
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        let aside = tempfile::tempdir().expect("a directory");
        let index = dir.path().join("store/index");
        let mut history = History::new();
        let half = steps.len() / 2;
        for step in &steps[..half] {
            history.step(*step);
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
            reason = "any part will do")]
        let part = (history.journal.len() as f64 * cut) as usize;
        // What is remembered must hold for every later instant, so `now` of the whole history will do.
        live(dir.path(), &history, part);
        copy_dir(&index, &aside.path().join("old"));
        let all = history.journal.len();
        prop_assert_eq!(live(dir.path(), &history, all), IndexReport::Used(Sequence(part as u64)));
        for step in &steps[half..] {
            history.step(*step);
        }
        let all = history.journal.len();
        live(dir.path(), &history, all);
        live(dir.path(), &history, all);
        // An older copy of the index is good: only a longer tail is folded in.
        fs::remove_dir_all(&index).expect("remove");
        copy_dir(&aside.path().join("old"), &index);
        prop_assert_eq!(live(dir.path(), &history, all), IndexReport::Used(Sequence(part as u64)));
        // And none at all is built again.
        fs::remove_dir_all(&index).expect("remove");
        let report = live(dir.path(), &history, all);
        prop_assert_eq!(matches!(report, IndexReport::Rebuilt(_)), all > 0, "{:?}", report);
        live(dir.path(), &history, all);
    }
}
