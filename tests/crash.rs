//! kill -9 of the broker at random moments under load, again and again in one directory.
//!
//! Workers begin tasks, fetch credentials, end tasks and revoke serials, and write down what was
//! acknowledged to them. After every restart what was acknowledged has to hold, and at the end the
//! log is read as a whole: whatever was handed out stands in it once, and no position is used twice.
//!
//! `MAYFLY_CRASH_ROUNDS` sets the number of rounds, `MAYFLY_CRASH_SEED` repeats an order of wishes.
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot run, or finds something lost, should stop"
)]

#[expect(dead_code, reason = "the tests of the whole use more of it")]
mod common;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    io::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::{Broker, Operator, Site, own_uid, task_of};
use mayfly_core::{Fact, Sequence, Serial, TaskId};
use mayfly_proto::mayfly::v1::{self as wire, begin_task_request::Holder, revoke_request::Target};
use mayfly_verify::{Endpoint, WorkloadClient, WorkloadError};
use tokio::task::JoinSet;

const ROUNDS: u64 = 100;
const WORKERS: u64 = 4;
/// Live tasks beyond which a worker rather ends one than begins one.
const LIVE_MAX: usize = 40;
/// The longest that a broker may live under load.
const LIFE_MAX_MS: u64 = 250;
/// How many tokens are shown to the broker after a restart.
const TOKENS_SHOWN: usize = 24;
const AUDIENCE: &str = "crash";

/// A credential that somebody holds.
#[derive(Clone, Debug, Default)]
struct Held {
    token: Option<String>,
    /// Its revocation was asked for, and may have happened.
    revoking: bool,
    revoked: bool,
}

/// A task that somebody was told of.
#[derive(Clone, Debug, Default)]
struct Known {
    socket: String,
    /// Its end was asked for, and may have happened.
    ending: bool,
    ended_at: Option<u64>,
    held: BTreeMap<String, Held>,
}

/// Everything that was acknowledged.
#[derive(Debug, Default)]
struct Book {
    tasks: BTreeMap<String, Known>,
    begins: u64,
    ends: u64,
    credentials: u64,
    revocations: u64,
}

/// One book for all workers.
#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<Book>>);

impl Shared {
    fn open(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Luck that can be had again.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let bound = u64::try_from(from.len()).expect("a length");
        from.get(usize::try_from(self.below(bound)).expect("below a length"))
    }
}

/// Somebody with wishes.
struct Worker {
    operator: Operator,
    book: Shared,
    dice: Dice,
}

impl Worker {
    /// Wishes until it is stopped. What fails was not acknowledged, and nothing follows from it.
    async fn work(mut self) {
        loop {
            let live: Vec<String> = {
                let book = self.book.open();
                let live = book.tasks.iter().filter(|(_, task)| !task.ending);
                live.map(|(id, _)| id.clone()).collect()
            };
            let wish = self.dice.below(100);
            let task = self.dice.pick(&live).cloned();
            let done = match (wish, task) {
                (0..30, _) if live.len() < LIVE_MAX => self.begin().await,
                (30..50, Some(task)) => self.x509(&task).await,
                (50..75, Some(task)) => self.jwt(&task).await,
                (75..80, Some(task)) => self.revoke(&task).await,
                (_, Some(task)) => self.end(&task).await,
                (_, None) => self.begin().await,
            };
            if done.is_none() {
                // The broker is dead or the task's socket is not there yet.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    async fn begin(&mut self) -> Option<()> {
        let wish = if self.dice.below(4) == 0 {
            wire::BeginTaskRequest {
                lease_ms: 3_600_000,
                ..task_of("errand", Holder::LeaseOnly(true))
            }
        } else {
            task_of("booth", Holder::Socket(true))
        };
        let begun = self.operator.begin(wish).await.ok()?;
        let mut book = self.book.open();
        book.begins += 1;
        let known = Known { socket: begun.socket, ..Known::default() };
        let before = book.tasks.insert(begun.task, known);
        assert!(before.is_none(), "a task's name was given twice");
        Some(())
    }

    fn client(&self, task: &str) -> Option<WorkloadClient> {
        let socket = self.book.open().tasks.get(task)?.socket.clone();
        // An errand is told the common socket, where this process is somebody else.
        socket.contains("/tasks/").then(|| {
            let endpoint = Endpoint::parse(&format!("unix://{socket}")).expect("a path");
            WorkloadClient::new(&endpoint)
        })
    }

    fn hold(&self, task: &str, serial: String, token: Option<String>) {
        let mut book = self.book.open();
        let known = book.tasks.get_mut(task).expect("it was begun");
        // The same certificate is given again while it is young, and may be known already.
        if let Entry::Vacant(vacant) = known.held.entry(serial) {
            vacant.insert(Held { token, ..Held::default() });
            book.credentials += 1;
        }
    }

    async fn x509(&self, task: &str) -> Option<()> {
        let context = self.client(task)?.fetch_x509().await.ok()?;
        let leaf = &context.default_svid()?.leaf;
        assert!(leaf.id.as_str().ends_with(task), "a certificate of another task");
        let serial = leaf.serial.expect("one of ours").to_string();
        self.hold(task, serial, None);
        Some(())
    }

    async fn jwt(&self, task: &str) -> Option<()> {
        let tokens = self.client(task)?.fetch_jwt(&[AUDIENCE], None).await.ok()?;
        let token = tokens.into_iter().next()?;
        assert!(token.spiffe_id.as_str().ends_with(task), "a token of another task");
        self.hold(task, jti(&token.token), Some(token.token));
        Some(())
    }

    async fn end(&mut self, task: &str) -> Option<()> {
        self.book.open().tasks.get_mut(task)?.ending = true;
        self.operator.end(task, "completed").await.ok()?;
        let mut book = self.book.open();
        let known = book.tasks.get_mut(task)?;
        if known.ended_at.replace(mayfly::clock::now().0).is_none() {
            book.ends += 1;
        }
        Some(())
    }

    async fn revoke(&mut self, task: &str) -> Option<()> {
        let serial = {
            let mut book = self.book.open();
            let (serial, held) = book.tasks.get_mut(task)?.held.iter_mut().next()?;
            held.revoking = true;
            serial.clone()
        };
        self.operator.revoke(Target::Serial(serial.clone())).await.ok()?;
        let mut book = self.book.open();
        let held = book.tasks.get_mut(task)?.held.get_mut(&serial)?;
        if !std::mem::replace(&mut held.revoked, true) {
            book.revocations += 1;
        }
        Some(())
    }
}

fn jti(token: &str) -> String {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    let payload = token.split('.').nth(1).expect("a payload");
    let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).expect("base64");
    let claims: serde_json::Value = serde_json::from_slice(&payload).expect("json");
    claims.get("jti").and_then(serde_json::Value::as_str).expect("a name").to_owned()
}

/// An ended task without credentials may be forgotten after two minutes; the log still has it.
fn may_be_forgotten(known: &Known, now: u64) -> bool {
    known.ending && known.ended_at.is_none_or(|at| at + 100_000 < now)
}

/// What was acknowledged holds in the broker's own words.
fn check_views(book: &Book, views: &[wire::TaskView]) {
    let views: BTreeMap<&str, &wire::TaskView> =
        views.iter().map(|view| (view.task.as_str(), view)).collect();
    let now = mayfly::clock::now().0;
    for (id, known) in &book.tasks {
        let Some(view) = views.get(id.as_str()) else {
            assert!(may_be_forgotten(known, now), "LOST: task {id}, {known:?}");
            continue;
        };
        if known.ended_at.is_some() {
            assert_eq!(
                (view.state.as_str(), view.cause.as_str()),
                ("ended", "completed"),
                "LOST: the end of {id}"
            );
        } else if !known.ending {
            assert_eq!(view.state, "active", "{id} ended although nobody asked: {view:?}");
        }
        let credentials: BTreeMap<&str, &wire::CredentialView> =
            view.credentials.iter().map(|one| (one.serial.as_str(), one)).collect();
        for (serial, held) in &known.held {
            let one = credentials.get(serial.as_str());
            let one = one.unwrap_or_else(|| panic!("LOST: serial {serial} of {id}"));
            assert!(one.revoked_at_ms != 0 || !held.revoked, "LOST: the revocation of {serial}");
            let may_be = held.revoking || known.ending;
            assert!(one.revoked_at_ms == 0 || may_be, "{serial} revoked itself: {view:?}");
        }
    }
}

/// What was acknowledged holds for those who show a token.
async fn check_tokens(book: &Shared, broker: &Broker, dice: &mut Dice) {
    let mut tokens: Vec<(String, Option<bool>)> = Vec::new();
    for known in book.open().tasks.values() {
        for held in known.held.values() {
            let is_over = known.ended_at.is_some() || held.revoked;
            let is_open = !known.ending && !held.revoking;
            let expected = if is_over { Some(false) } else { is_open.then_some(true) };
            tokens.extend(held.token.clone().map(|token| (token, expected)));
        }
    }
    let client = broker.workload();
    for _ in 0..TOKENS_SHOWN.min(tokens.len()) {
        let Some((token, Some(expected))) = dice.pick(&tokens) else { continue };
        let is_valid = match client.validate_jwt(AUDIENCE, token).await {
            Ok(_) => true,
            Err(WorkloadError::Status(status)) => {
                assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
                false
            }
            Err(other) => panic!("{other}"),
        };
        assert_eq!(is_valid, *expected, "LOST: the standing of {}", jti(token));
    }
}

/// The log as a whole: everything that was acknowledged is there, and nothing is there twice.
fn check_log(book: &Book, site: &Site) -> mayfly_audit::Verified {
    let log = site.data().join("store/log");
    let (mut began, mut ended) = (BTreeSet::new(), BTreeSet::new());
    let mut promised: BTreeMap<Serial, TaskId> = BTreeMap::new();
    let mut places = BTreeMap::new();
    let mut last = Sequence(0);
    let verified = mayfly_audit::read(&log, Sequence(0), |entry| {
        assert!(entry.sequence > last, "position {} does not rise", entry.sequence.0);
        last = entry.sequence;
        match entry.record.fact {
            Fact::Began { task, .. } => assert!(began.insert(task), "{task} began twice"),
            Fact::Ended { task, .. } => assert!(ended.insert(task), "{task} ended twice"),
            Fact::Promised { task, serial, .. } => {
                assert!(
                    began.contains(&task) && !ended.contains(&task),
                    "{serial} has no live task"
                );
                assert!(promised.insert(serial, task).is_none(), "serial {serial} is used twice");
                let other = places.insert(serial.place(), task);
                assert!(other.is_none_or(|other| other == task), "{serial} shares its position");
            }
            Fact::Suspended { .. }
            | Fact::Resumed { .. }
            | Fact::Renewed { .. }
            | Fact::Amended { .. }
            | Fact::CredentialRevoked { .. }
            | Fact::Refused { .. }
            | Fact::Noted { .. } => {}
        }
    });
    for (id, known) in &book.tasks {
        let task = TaskId::parse(id).expect("a task's name");
        assert!(began.contains(&task), "LOST: task {id}");
        assert!(known.ended_at.is_none() || ended.contains(&task), "LOST: the end of {id}");
        for serial in known.held.keys() {
            let serial = Serial::parse(serial).expect("a serial");
            assert_eq!(promised.get(&serial), Some(&task), "LOST: serial {serial}");
        }
    }
    verified.expect("every byte of the log is good")
}

fn configuration() -> String {
    let uid = own_uid();
    format!(
        r#"[workload]
socket = "workload.sock"

[[profile]]
name = "met"
path = "/met"
selectors = ["unix:uid:{uid}"]
owner = "crash"

[[profile]]
name = "booth"
path = "/booth"
selectors = []
owner = "crash"
binding = "socket"
x509_ttl = "2h"
jwt_ttl = "2h"

[[profile]]
name = "errand"
path = "/errand"
selectors = ["unix:uid:{uid}"]
owner = "crash"
binding = "lease"
"#
    )
}

/// One life of the broker: it starts, everything is there, work is done, and it is killed.
async fn round(site: &Site, book: &Shared, dice: &mut Dice) {
    if dice.below(8) == 0 {
        // Some die while they remember.
        let mut early = site.spawn(&[]);
        tokio::time::sleep(Duration::from_millis(dice.below(80))).await;
        early.kill().await.expect("it is ours");
    }
    let broker = site.start().await;
    check(book, &broker, dice).await;
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let dice = Dice(dice.below(u64::MAX));
        let worker = Worker { operator: broker.operator().await, book: book.clone(), dice };
        workers.spawn(worker.work());
    }
    // Not a wait for something: the moment of the crash, which is to be any.
    let life = Duration::from_millis(5 + dice.below(LIFE_MAX_MS));
    let died = tokio::time::timeout(life, workers.join_next()).await;
    assert!(died.is_err(), "a worker found something wrong: {died:?}");
    broker.kill().await;
    workers.abort_all();
    while let Some(ended) = workers.join_next().await {
        assert!(ended.is_err_and(|error| error.is_cancelled()), "a worker found something wrong");
    }
}

async fn check(book: &Shared, broker: &Broker, dice: &mut Dice) {
    let mut operator = broker.operator().await;
    let views = operator.list(true).await.expect("a list");
    check_views(&book.open(), &views);
    check_tokens(book, broker, dice).await;
}

#[tokio::main]
async fn main() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let rounds = number("MAYFLY_CRASH_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("MAYFLY_CRASH_SEED").unwrap_or_else(|| mayfly::clock::now().0);
    let mut out = std::io::stdout();
    writeln!(out, "crash: seed {seed}").expect("somebody listens");
    let (site, book, mut dice) = (Site::new(&configuration()), Shared::default(), Dice(seed));
    for _ in 0..rounds {
        round(&site, &book, &mut dice).await;
    }
    let broker = site.start().await;
    check(&book, &broker, &mut dice).await;
    assert_eq!(broker.stop().await, Some(0), "and a clean end is still possible");

    let book = book.open();
    let verified = check_log(&book, &site);
    assert!(verified.torn.is_none(), "nothing is torn after a clean end");
    assert!(!site.said().contains("panicked"), "{}", site.said());
    let Book { begins, ends, credentials, revocations, .. } = *book;
    assert!(
        begins > rounds && ends > 0 && credentials > rounds,
        "too little was done to mean much"
    );
    let (records, segments) = (verified.records, verified.segments);
    writeln!(
        out,
        "crash: {records} records in {segments} segments verified, {revocations} revocations"
    )
    .and_then(|()| {
        writeln!(
            out,
            "crash: {rounds} rounds, {begins} acknowledged begins, {ends} ends, \
                 {credentials} credentials, 0 lost"
        )
    })
    .expect("somebody listens");
}
