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
#[derive(Clone, Debug, Default)]
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

/// What was acknowledged and does not hold in the broker's own words.
fn lost_in_views(book: &Book, views: &[wire::TaskView]) -> Vec<String> {
    let views: BTreeMap<&str, &wire::TaskView> =
        views.iter().map(|view| (view.task.as_str(), view)).collect();
    let now = mayfly::clock::now().0;
    let mut lost = Vec::new();
    for (id, known) in &book.tasks {
        match views.get(id.as_str()) {
            Some(view) => lost.extend(lost_in_view(known, view)),
            None if may_be_forgotten(known, now) => {}
            None => lost.push(format!("task {id}: {known:?}")),
        }
    }
    lost
}

fn lost_in_view(known: &Known, view: &wire::TaskView) -> Vec<String> {
    let id = &view.task;
    let mut lost = Vec::new();
    if known.ended_at.is_some() && (view.state != "ended" || view.cause != "completed") {
        lost.push(format!("the end of {id}: {view:?}"));
    } else if !known.ending && view.state != "active" {
        lost.push(format!("{id}, which nobody ended: {view:?}"));
    }
    let credentials: BTreeMap<&str, &wire::CredentialView> =
        view.credentials.iter().map(|one| (one.serial.as_str(), one)).collect();
    for (serial, held) in &known.held {
        let may_be = held.revoking || known.ending;
        match credentials.get(serial.as_str()) {
            None => lost.push(format!("serial {serial} of {id}")),
            Some(one) if one.revoked_at_ms == 0 && held.revoked => {
                lost.push(format!("the revocation of {serial}"));
            }
            Some(one) if one.revoked_at_ms != 0 && !may_be => {
                lost.push(format!("serial {serial}, which nobody revoked: {view:?}"));
            }
            Some(_) => {}
        }
    }
    lost
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

/// What the log says as a whole.
struct Testimony {
    began: BTreeSet<TaskId>,
    ended: BTreeSet<TaskId>,
    promised: BTreeMap<Serial, TaskId>,
    revoked: BTreeSet<Serial>,
    verified: mayfly_audit::Verified,
}

/// Reads the log. Nothing may stand there twice, and no position may be used twice.
fn testimony(site: &Site) -> Testimony {
    let log = site.data().join("store/log");
    let (mut began, mut ended, mut revoked) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut promised: BTreeMap<Serial, TaskId> = BTreeMap::new();
    let mut places = BTreeMap::new();
    let mut last = Sequence(0);
    let verified = mayfly_audit::read(&log, Sequence(0), |entry| {
        assert!(entry.sequence > last, "position {} does not rise", entry.sequence.0);
        last = entry.sequence;
        match entry.record.fact {
            Fact::Began { task, .. } => assert!(began.insert(task), "{task} began twice"),
            Fact::Ended { task, .. } => assert!(ended.insert(task), "{task} ended twice"),
            Fact::CredentialRevoked { serial, .. } => drop(revoked.insert(serial)),
            Fact::Promised { task, serial, .. } => {
                let is_live = began.contains(&task) && !ended.contains(&task);
                assert!(is_live, "{serial} has no live task");
                assert!(promised.insert(serial, task).is_none(), "serial {serial} is used twice");
                let other = places.insert(serial.place(), task);
                assert!(other.is_none_or(|other| other == task), "{serial} shares its position");
            }
            Fact::Suspended { .. }
            | Fact::Resumed { .. }
            | Fact::Renewed { .. }
            | Fact::Amended { .. }
            | Fact::Transferred { .. }
            | Fact::Refused { .. }
            | Fact::Misused { .. }
            | Fact::Noted { .. } => {}
        }
    });
    let verified = verified.expect("every byte of the log is good");
    Testimony { began, ended, promised, revoked, verified }
}

/// What was acknowledged and does not stand in the log.
fn lost_in_log(book: &Book, testimony: &Testimony) -> Vec<String> {
    let mut lost = Vec::new();
    for (id, known) in &book.tasks {
        let task = TaskId::parse(id).expect("a task's name");
        if !testimony.began.contains(&task) {
            lost.push(format!("task {id}"));
        }
        if known.ended_at.is_some() && !testimony.ended.contains(&task) {
            lost.push(format!("the end of {id}"));
        }
        for (serial, held) in &known.held {
            let name = Serial::parse(serial).expect("a serial");
            if testimony.promised.get(&name) != Some(&task) {
                lost.push(format!("serial {serial} of {id}"));
            }
            // The revocation of what fell with its task needs no record beside the end.
            let fell = testimony.ended.contains(&task);
            if held.revoked && !fell && !testimony.revoked.contains(&name) {
                lost.push(format!("the revocation of {serial}"));
            }
        }
    }
    lost
}

/// The checks see a loss when there is one: each kind is planted into a book that is right.
fn check_the_checks(book: &Book, views: &[wire::TaskView], testimony: &Testimony) {
    type Plant = fn(&mut Known);
    // What is revoked in truth is no loss that could be planted.
    let is_plain = |(_, known): &(&String, &Known)| {
        !known.ending && known.held.values().any(|held| !held.revoking)
    };
    let (task, _) = book.tasks.iter().find(is_plain).expect("a live task with a live credential");
    let plants: [(&str, Plant); 3] = [
        ("the end of", |known| known.ended_at = Some(u64::MAX)),
        ("serial", |known| drop(known.held.insert(format!("01{:032}", 0), Held::default()))),
        ("the revocation of", |known| {
            known.held.values_mut().for_each(|held| (held.revoking, held.revoked) = (true, true));
        }),
    ];
    for (kind, plant) in plants {
        let mut planted = book.clone();
        plant(planted.tasks.get_mut(task).expect("just found"));
        for lost in [lost_in_views(&planted, views), lost_in_log(&planted, testimony)] {
            assert!(lost.iter().any(|one| one.starts_with(kind)), "not seen: {kind}");
        }
    }
    let mut planted = book.clone();
    planted.tasks.insert("0".repeat(32), Known::default());
    assert!(!lost_in_views(&planted, views).is_empty(), "a lost task is not seen");
    assert!(!lost_in_log(&planted, testimony).is_empty(), "a lost task is not seen");
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

/// Everything that was acknowledged holds in a broker that has just started.
async fn check(book: &Shared, broker: &Broker, dice: &mut Dice) -> Vec<wire::TaskView> {
    let views = broker.operator().await.list(true).await.expect("a list");
    let lost = lost_in_views(&book.open(), &views);
    assert!(lost.is_empty(), "LOST: {lost:#?}");
    check_tokens(book, broker, dice).await;
    views
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
    let views = check(&book, &broker, &mut dice).await;
    assert_eq!(broker.stop().await, Some(0), "and a clean end is still possible");

    let book = book.open();
    let testimony = testimony(&site);
    let lost = lost_in_log(&book, &testimony);
    assert!(lost.is_empty(), "LOST: {lost:#?}");
    check_the_checks(&book, &views, &testimony);
    let verified = &testimony.verified;
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
