//! Calls, again and again: as fast as so many in flight allow, or at a rate whether or not the server
//! keeps up.
//!
//! The second kind is what latencies are told from. A closed loop asks less while the server is slow, and so
//! leaves out the waits that its own customers would have had; here a call's wait begins at the instant
//! that it was due, also when nobody came to make it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use mayfly::clock;
use tokio::{sync::mpsc, task::JoinSet};
use tonic::{Code, Status};

use crate::{
    measure::{Fault, ms, quantile},
    meter::{Cost, Meter},
};

/// Calls that may be under way in an open loop. What is due beyond them is left out and counted.
const UNDER_WAY_MAX: usize = 4_096;
/// Failures that are told; a server that refuses everything should not fill the screen.
const FAILURES_MAX: usize = 1_000;

/// One call, made again and again, by worker number so many.
pub(crate) trait Call: Send + Sync + 'static {
    /// Makes it. `due` is when it should have been made, on the machine's monotonic clock; the answer is
    /// the wait in nanoseconds until what was wanted was there.
    fn call(&self, worker: usize, due: u64) -> impl Future<Output = Result<u64, Fault>> + Send;
}

/// What a loop found.
pub(crate) struct Pass {
    /// Calls that were answered with what was wanted.
    pub(crate) done: usize,
    pub(crate) failed: usize,
    /// Calls that the server put off because it had too many.
    pub(crate) put_off: usize,
    /// Calls that were due and not made.
    pub(crate) left_out: usize,
    /// Calls under way when the last was due.
    pub(crate) backlog: usize,
    pub(crate) per_second: f64,
    pub(crate) cost: Cost,
    pub(crate) why: Option<String>,
    waits: Vec<f64>,
}

impl Pass {
    /// The wait below which the share `q` of calls lies, in milliseconds.
    pub(crate) fn wait_ms(&self, q: f64) -> f64 {
        quantile(&self.waits, q)
    }

    /// A pass in which something failed tells nothing of the rest.
    pub(crate) fn check(self) -> Result<Self, Fault> {
        let failed = self.failed + self.put_off;
        match &self.why {
            Some(why) => Err(format!("{failed} calls failed: {why}").into()),
            None if self.done == 0 => Err("no call was made".into()),
            None => Ok(self),
        }
    }
}

#[derive(Default)]
struct Heard {
    waits: Vec<f64>,
    failed: usize,
    put_off: usize,
    why: Option<String>,
}

impl Heard {
    fn take(&mut self, outcome: Result<u64, Fault>) {
        match outcome {
            Ok(wait) => self.waits.push(ms(wait)),
            Err(why) => {
                let place = if is_put_off(&why) { &mut self.put_off } else { &mut self.failed };
                *place += 1;
                self.why.get_or_insert_with(|| why.to_string());
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.waits.extend(other.waits);
        self.failed += other.failed;
        self.put_off += other.put_off;
        self.why = self.why.take().or(other.why);
    }
}

/// What a server with a bound says beyond it (`docs/operations.md`, "admission").
fn is_put_off(why: &Fault) -> bool {
    why.downcast_ref::<Status>().is_some_and(|status| {
        status.code() == Code::Unavailable && status.message().starts_with("overloaded")
    })
}

/// `in_flight` workers, each of which calls again when it was answered, for so long.
pub(crate) async fn closed<C: Call>(
    call: &Arc<C>,
    (in_flight, lasting): (usize, Duration),
    meter: &Meter,
) -> Result<Pass, Fault> {
    let cost = meter.start()?;
    let began = clock::monotonic_ns();
    let until = began + nanos(lasting);
    let mut workers = JoinSet::new();
    for worker in 0..in_flight {
        let call = Arc::clone(call);
        workers.spawn(async move {
            let mut heard = Heard::default();
            while clock::monotonic_ns() < until && heard.failed < FAILURES_MAX {
                heard.take(call.call(worker, clock::monotonic_ns()).await);
            }
            heard
        });
    }
    let mut heard = Heard::default();
    while let Some(one) = workers.join_next().await {
        heard.add(one?);
    }
    Ok(pass(heard, began, (0, 0), meter.stop(cost)?))
}

/// `count` calls, one after the other.
pub(crate) async fn alone<C: Call>(call: &C, count: usize, meter: &Meter) -> Result<Pass, Fault> {
    let cost = meter.start()?;
    let began = clock::monotonic_ns();
    let mut heard = Heard::default();
    for _ in 0..count {
        heard.take(call.call(0, clock::monotonic_ns()).await);
    }
    Ok(pass(heard, began, (0, 0), meter.stop(cost)?))
}

/// `rate` calls a second for so long, due one by one at equal distances.
pub(crate) async fn open<C: Call>(
    call: &Arc<C>,
    (rate, lasting): (f64, Duration),
    meter: &Meter,
) -> Result<Pass, Fault> {
    let cost = meter.start()?;
    let began = clock::monotonic_ns();
    let mut dues = pace(began, rate, lasting)?;
    let under_way = Arc::new(AtomicUsize::new(0));
    let (mut asking, mut heard) = (JoinSet::new(), Heard::default());
    let (mut left_out, mut number) = (0, 0_usize);
    while let Some(due) = dues.recv().await {
        while let Some(done) = asking.try_join_next() {
            heard.take(done?);
        }
        if under_way.load(Ordering::Relaxed) >= UNDER_WAY_MAX || heard.failed >= FAILURES_MAX {
            left_out += 1;
            continue;
        }
        under_way.fetch_add(1, Ordering::Relaxed);
        let (call, under_way) = (Arc::clone(call), Arc::clone(&under_way));
        asking.spawn(async move {
            let outcome = call.call(number, due).await;
            under_way.fetch_sub(1, Ordering::Relaxed);
            outcome
        });
        number += 1;
    }
    let backlog = under_way.load(Ordering::Relaxed);
    while let Some(done) = asking.join_next().await {
        heard.take(done?);
    }
    Ok(pass(heard, began, (left_out, backlog), meter.stop(cost)?))
}

/// Says when calls are due. A thread, because the runtime's timers count whole milliseconds and a thread's
/// sleep is late by some 60 µs; what it is late by is in the call's wait all the same.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "calls of a run of minutes"
)]
fn pace(began: u64, rate: f64, lasting: Duration) -> Result<mpsc::Receiver<u64>, Fault> {
    let count = (rate * lasting.as_secs_f64()) as u64;
    // Room for all that can be due before the reader is scheduled again; the thread waits beyond it, and
    // what it says afterwards was due when it was due.
    let (say, dues) = mpsc::channel(UNDER_WAY_MAX);
    thread::Builder::new().name("pace".into()).spawn(move || {
        for n in 0..count {
            let due = began + (n as f64 / rate * 1e9) as u64;
            let early = due.saturating_sub(clock::monotonic_ns());
            if early > 0 {
                thread::sleep(Duration::from_nanos(early));
            }
            if say.blocking_send(due).is_err() {
                return;
            }
        }
    })?;
    Ok(dues)
}

#[expect(clippy::cast_precision_loss, reason = "a number of calls")]
fn pass(heard: Heard, began: u64, (left_out, backlog): (usize, usize), cost: Cost) -> Pass {
    let seconds = ms(clock::monotonic_ns() - began) / 1e3;
    let done = heard.waits.len();
    Pass {
        done,
        failed: heard.failed,
        put_off: heard.put_off,
        left_out,
        backlog,
        per_second: done as f64 / seconds,
        cost: cost.each(done),
        why: heard.why,
        waits: heard.waits,
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
