//! What was counted in one step of the climb.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use crate::measure::{quantile, say};

/// What happened to a task that was due.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum What {
    /// Its begin was acknowledged.
    Begun,
    /// It was due while too many were under way.
    NotBegun,
    /// A call failed.
    Failed,
    /// It had both credentials before half of its life.
    InTime,
    /// It had them later.
    Late,
    /// A follower refuses both after its end.
    Refused,
    /// A follower accepts one of them after its end and the time allowed.
    Leaked,
    /// A follower refused one while it lived.
    RefusedAlive,
}

/// Counts and latencies, from many at once.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    counts: BTreeMap<What, usize>,
    waits: BTreeMap<&'static str, Vec<f64>>,
    fault: Option<String>,
}

impl Tally {
    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn count(&self, what: What) {
        self.with(|inner| *inner.counts.entry(what).or_default() += 1);
    }

    pub(crate) fn wait(&self, what: &'static str, ms: f64) {
        self.with(|inner| inner.waits.entry(what).or_default().push(ms));
    }

    /// Counts a call that failed, and keeps the words of the first.
    pub(crate) fn fail(&self, why: &dyn std::fmt::Display) {
        self.count(What::Failed);
        self.with(|inner| inner.fault.get_or_insert_with(|| why.to_string()).truncate(400));
    }

    pub(crate) fn of(&self, what: What) -> usize {
        self.with(|inner| inner.counts.get(&what).copied().unwrap_or(0))
    }
}

/// One step, told.
pub(crate) struct Told {
    pub(crate) wanted: usize,
    /// From the first that was due to the last that had begun.
    pub(crate) seconds: f64,
    pub(crate) tally: Tally,
    pub(crate) cpu_s: f64,
    pub(crate) parts_s: Vec<(&'static str, f64)>,
    /// This process: all holders, the orchestrator and the follower.
    pub(crate) own_s: f64,
    pub(crate) most_alive: usize,
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run of seconds")]
impl Told {
    pub(crate) fn rate(&self) -> f64 {
        self.tally.of(What::Begun) as f64 / self.seconds
    }

    /// Whether everybody who was due got what it should, in time.
    pub(crate) fn is_held(&self) -> bool {
        let tally = &self.tally;
        let lost = tally.of(What::NotBegun) + tally.of(What::Failed) + tally.of(What::Late);
        lost == 0 && self.rate() > 0.95 * self.wanted as f64
    }

    /// What must not happen at any rate.
    pub(crate) fn broken(&self) -> Option<String> {
        let leaked = self.tally.of(What::Leaked);
        (leaked > 0).then(|| format!("{leaked} credentials were accepted after the end"))
    }

    pub(crate) fn tell(&self, figures: &mut Vec<(String, f64)>) {
        let of = |what| self.tally.of(what);
        say(&format!(
            "{} a second wanted, {:.0} held: {} begun, {} not begun, {} failed; {} in time, {} late; \
             {} refused after the end, {} leaked, {} refused alive; up to {} alive",
            self.wanted,
            self.rate(),
            of(What::Begun),
            of(What::NotBegun),
            of(What::Failed),
            of(What::InTime),
            of(What::Late),
            of(What::Refused),
            of(What::Leaked),
            of(What::RefusedAlive),
            self.most_alive
        ));
        let each = |seconds: f64| 1e3 * seconds / of(What::Begun).max(1) as f64;
        say(&format!(
            "  processor time a task: broker {:.2} ms, clients {:.2} ms; {:.0} tasks a second for each \
             core of the broker",
            each(self.cpu_s),
            each(self.own_s),
            1e3 / each(self.cpu_s)
        ));
        let parts = self.parts_s.iter().map(|(what, s)| format!("{what} {:.2}", each(*s)));
        say(&format!("  of the broker's: {} ms", parts.collect::<Vec<_>>().join(", ")));
        let key = |name: &str| format!("at_{}_{name}", self.wanted);
        figures.push((key("held"), self.rate()));
        figures.push((key("broker_ms"), each(self.cpu_s)));
        self.tally.with(|inner| {
            for (what, waits) in &inner.waits {
                let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|q| quantile(waits, q));
                say(&format!(
                    "  {what:<28} p50 {p50:>8.2}  p99 {p99:>8.2}  p99.9 {p999:>8.2} ms  ({})",
                    waits.len()
                ));
                figures.push((key(&format!("{}_ms_p50", what.replace(' ', "_"))), p50));
                figures.push((key(&format!("{}_ms_p99", what.replace(' ', "_"))), p99));
            }
            if let Some(fault) = &inner.fault {
                say(&format!("  the first that failed: {fault}"));
            }
        });
    }
}
