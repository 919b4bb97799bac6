//! Measurements: counters that the broker keeps as it goes, and a census that is taken when somebody
//! asks.
//!
//! What can be counted when it is asked for is not kept twice: the census is the registrar's own view.
//! Labels are words from closed sets (kinds, causes, denials), never names of tasks or callers: a
//! measurement must not grow with what is measured, and is no secret.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use mayfly_core::{Cause, Kind, Registrar, Sequence, State};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::{clock, driver::No};

const ISSUED: &str = "mayfly_credentials_issued_total";
const WITHHELD: &str = "mayfly_denials_total";
const JOURNAL: &str = "mayfly_journal_commit_seconds";
const SIGNED: &str = "mayfly_lists_signed_total";
const LIST_BYTES: &str = "mayfly_crl_bytes";
const LIST_ENTRIES: &str = "mayfly_crl_entries";

/// The process's one registry. Several brokers in one process, as tests have them, share it.
fn registry() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    let install = || {
        let buckets = [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 1.0];
        let builder = PrometheusBuilder::new().set_buckets(&buckets).ok()?;
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).ok()?;
        describe();
        Some(handle)
    };
    HANDLE.get_or_init(install).as_ref()
}

/// Begins to count; what happens before that is not counted.
pub fn begin() {
    if registry().is_none() {
        tracing::warn!("somebody else counts in this process; `/metrics` has the census alone");
    }
}

fn describe() {
    metrics::describe_counter!(ISSUED, "Credentials that were handed out, by kind");
    metrics::describe_counter!(WITHHELD, "Wishes that were refused, by the denial's code");
    metrics::describe_histogram!(JOURNAL, "From handing a batch of records over to its sync");
    metrics::describe_counter!(
        SIGNED,
        "Times that revocation and status lists were looked at anew"
    );
    metrics::describe_gauge!(LIST_BYTES, "Size of the active authority's full revocation list");
    metrics::describe_gauge!(LIST_ENTRIES, "Certificates on the full revocation list");
}

/// A credential was handed out.
pub fn issued(kind: Kind) {
    let kind = match kind {
        Kind::X509 => "x509",
        Kind::Jwt => "jwt",
    };
    metrics::counter!(ISSUED, "kind" => kind).increment(1);
}

/// A wish was refused. One that is to be judged again has not been, yet.
pub fn withheld(no: No) {
    match no {
        No::Denied(denial) => {
            metrics::counter!(WITHHELD, "code" => denial.code()).increment(1);
        }
        No::Reconsider => {}
    }
}

/// Batches of records on their way to the disk. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct Commits(Arc<Mutex<Handed>>);

#[derive(Debug, Default)]
struct Handed {
    batches: VecDeque<(Sequence, Instant)>,
    /// Samples since they were last put into buckets.
    loose: u32,
}

impl Commits {
    /// Batches that are kept in mind; with more on their way, some are not measured.
    const BATCHES_MAX: usize = 4096;
    /// Samples that the exporter may hold one by one. It would hold them all until somebody scrapes.
    const LOOSE_MAX: u32 = 1024;

    /// Records up to `last` were handed over.
    pub fn handed(&self, last: Sequence) {
        let mut handed = self.handed_over();
        if handed.batches.len() < Self::BATCHES_MAX {
            handed.batches.push_back((last, clock::instant()));
        }
    }

    /// Records up to `upto` are on disk.
    pub fn synced(&self, upto: Sequence) {
        let mut handed = self.handed_over();
        while let Some((_, at)) = handed.batches.pop_front_if(|(last, _)| *last <= upto) {
            metrics::histogram!(JOURNAL).record(at.elapsed().as_secs_f64());
            handed.loose += 1;
        }
        if handed.loose >= Self::LOOSE_MAX
            && let Some(registry) = registry()
        {
            handed.loose = 0;
            registry.run_upkeep();
        }
    }

    fn handed_over(&self) -> MutexGuard<'_, Handed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lists were renewed.
pub fn signed(list_bytes: usize, entries: usize) {
    metrics::counter!(SIGNED).increment(1);
    metrics::gauge!(LIST_BYTES).set(number(list_bytes));
    metrics::gauge!(LIST_ENTRIES).set(number(entries));
}

#[expect(clippy::cast_precision_loss, reason = "a measurement needs no more than 52 bits")]
const fn number(count: usize) -> f64 {
    count as f64
}

/// The registrar's state in numbers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Census {
    active: u64,
    quarantined: u64,
    /// Tasks that are over and still remembered, by cause.
    ended: BTreeMap<&'static str, u64>,
    revoked_certificates: u64,
    asks_waiting: u64,
    position: u64,
    published: u64,
    issuing: bool,
    /// Who follows the feed; not the registrar's to know.
    pub followers: u64,
}

impl Census {
    /// Counts.
    #[must_use]
    pub fn of(registrar: &Registrar) -> Self {
        let mut census = Self {
            ended: Cause::ALL.into_iter().map(|cause| (cause.code(), 0)).collect(),
            revoked_certificates: registrar.revoked_certificates().count() as u64,
            asks_waiting: registrar.asks_waiting() as u64,
            position: registrar.durable_sequence().0,
            published: registrar.revocations().position().sequence.0,
            issuing: !registrar.is_halted(),
            ..Self::default()
        };
        for task in registrar.tasks() {
            match task.state {
                State::Active => census.active += 1,
                State::Quarantined { .. } => census.quarantined += 1,
                State::Ended { cause, .. } => {
                    *census.ended.entry(cause.code()).or_default() += 1;
                }
            }
        }
        census
    }

    fn write(&self, out: &mut String) {
        let mut gauge = |name: &str, help: &str, values: &[(String, u64)]| {
            out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n"));
            for (labels, value) in values {
                out.push_str(&format!("{name}{labels} {value}\n"));
            }
            out.push('\n');
        };
        let one = |value: u64| [(String::new(), value)];
        let label = |name: &str, value: &str| format!("{{{name}=\"{value}\"}}");
        let live = [
            (label("state", "active"), self.active),
            (label("state", "quarantined"), self.quarantined),
        ];
        gauge("mayfly_tasks_live", "Tasks that are not over, by state", &live);
        let ended = self.ended.iter().map(|(cause, count)| (label("cause", cause), *count));
        let ended: Vec<_> = ended.collect();
        let help = "Tasks that are over and still remembered, by cause";
        gauge("mayfly_tasks_ended_remembered", help, &ended);
        let help = "Certificates that are revoked or on hold and have not expired for long";
        gauge("mayfly_revoked_certificates", help, &one(self.revoked_certificates));
        let help = "Callers that wait for their turn to be given a credential";
        gauge("mayfly_asks_waiting", help, &one(self.asks_waiting));
        gauge("mayfly_journal_position", "The last durable record", &one(self.position));
        gauge("mayfly_feed_position", "The last record that was published", &one(self.published));
        gauge("mayfly_feed_followers", "Streams that follow the feed", &one(self.followers));
        let help = "Whether credentials are issued: 0 when the journal has failed";
        gauge("mayfly_issuing", help, &one(u64::from(self.issuing)));
    }
}

/// Everything, in Prometheus' text format.
#[must_use]
pub fn render(census: &Census) -> String {
    let mut text = registry().map(PrometheusHandle::render).unwrap_or_default();
    census.write(&mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What this process has in memory, in KiB.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// All tests of this process have one registry, and those who count in it take turns.
    static TURN: Mutex<()> = Mutex::new(());

    #[test]
    fn what_nobody_asks_for_takes_no_memory() {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        begin();
        let commits = Commits::default();
        let count = 2_000_000;
        let before = resident();
        for sequence in 0..count {
            commits.handed(Sequence(sequence));
            commits.synced(Sequence(sequence));
        }
        // A sample is two words.
        let grown = resident().saturating_sub(before);
        assert!(grown < 16_384, "{count} commits and nobody who scrapes: {grown} KiB");
    }

    #[test]
    fn what_is_counted_is_shown_in_a_form_that_prometheus_reads() {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        begin();
        let measured = |text: &str| {
            let name = "mayfly_journal_commit_seconds_count ";
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map_or(0, |count| count.parse::<u64>().unwrap())
        };
        let before = measured(&render(&Census::default()));
        issued(Kind::Jwt);
        withheld(No::Denied(mayfly_core::Denial::TaskEnded));
        withheld(No::Reconsider);
        let commits = Commits::default();
        commits.handed(Sequence(7));
        commits.handed(Sequence(9));
        commits.synced(Sequence(8));
        signed(512, 3);
        let mut census = Census { active: 2, asks_waiting: 7, issuing: true, ..Census::default() };
        census.ended.insert("exited", 5);
        let text = render(&census);
        for line in [
            "mayfly_credentials_issued_total{kind=\"jwt\"} 1",
            "mayfly_denials_total{code=\"task_ended\"} 1",
            "mayfly_crl_entries 3",
            "mayfly_tasks_live{state=\"active\"} 2",
            "mayfly_asks_waiting 7",
            "mayfly_tasks_ended_remembered{cause=\"exited\"} 5",
            "mayfly_issuing 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert_eq!(measured(&text), before + 1, "of two commits one is on disk:\n{text}");
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
            assert!(value.is_some(), "{line}");
        }
    }
}
