//! What all lives of the soak share: the ways to the broker, the follower's view, and the counts.

use std::{
    collections::BTreeMap,
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mayfly::clock;
use mayfly_core::{Serial, Timestamp};
use mayfly_proto::mayfly::v1::tasks_client::TasksClient;
use mayfly_verify::View;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Status, transport::Channel};

use crate::{
    broker::Broker,
    measure::{Fault, ms, say},
};

/// How long a call is tried again while the broker starts anew.
const PATIENCE: Duration = Duration::from_secs(60);
const BETWEEN: Duration = Duration::from_millis(50);
/// How long the follower may take to refuse, before that counts as a leak.
const BOUND: Duration = Duration::from_secs(20);
/// Different failures that are told.
const FAILURES_MAX: usize = 20;

/// What is counted.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum What {
    Begun,
    Credential,
    Renewed,
    Amended,
    Killed,
    Lapsed,
    Ended,
    Failed,
    RefusedAlive,
    Leaked,
    Lost,
    Stuck,
}

impl What {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Begun => "tasks begun",
            Self::Credential => "credentials fetched",
            Self::Renewed => "… of which renewals",
            Self::Amended => "tasks amended",
            Self::Killed => "processes killed",
            Self::Lapsed => "leases that lapsed",
            Self::Ended => "ends asked for",
            Self::Failed => "lives that failed",
            Self::RefusedAlive => "credentials refused though their tasks live",
            Self::Leaked => "credentials accepted after the end",
            Self::Lost => "ends that were lost",
            Self::Stuck => "lives that did not come to an end",
        }
    }
}

/// A credential: its name, and when it expires by itself.
pub(crate) type Held = (Serial, Timestamp);

/// See the module.
pub(crate) struct Shared {
    pub(crate) tasks: TasksClient<Channel>,
    pub(crate) socket: PathBuf,
    view: Arc<View>,
    counts: Mutex<BTreeMap<What, usize>>,
    waits: Mutex<BTreeMap<&'static str, Vec<f64>>>,
    failures: Mutex<BTreeMap<String, usize>>,
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) async fn new(broker: &Broker, view: Arc<View>) -> Result<Self, Fault> {
        Ok(Self {
            tasks: broker.tasks().await?,
            socket: broker.socket(),
            view,
            counts: Mutex::default(),
            waits: Mutex::default(),
            failures: Mutex::default(),
        })
    }

    pub(crate) fn count(&self, what: What, why: &str) {
        *locked(&self.counts).entry(what).or_default() += 1;
        if !why.is_empty() {
            let mut failures = locked(&self.failures);
            let short: String = format!("{}: {why}", what.name()).chars().take(160).collect();
            if failures.len() < FAILURES_MAX || failures.contains_key(&short) {
                *failures.entry(short).or_default() += 1;
            }
        }
    }

    pub(crate) fn wait(&self, what: &'static str, since: u64) {
        let took = ms(clock::monotonic_ns().saturating_sub(since));
        locked(&self.waits).entry(what).or_default().push(took);
    }

    pub(crate) fn counts(&self) -> BTreeMap<What, usize> {
        locked(&self.counts).clone()
    }

    pub(crate) fn waits(&self) -> BTreeMap<&'static str, Vec<f64>> {
        locked(&self.waits).clone()
    }

    pub(crate) fn tell_failures(&self) {
        for (why, count) in locked(&self.failures).iter() {
            say(&format!("  {count:>6} times: {why}"));
        }
    }

    /// A credential was fetched; the follower has to accept it while its task lives.
    pub(crate) fn fetched(&self, held: &Held) {
        self.count(What::Credential, "");
        if let Err(refused) = self.view.admit(&held.0) {
            self.count(What::RefusedAlive, &refused.to_string());
        }
    }

    /// Whether the follower refuses everything, or it has expired.
    fn all_refused(&self, held: &[Held]) -> bool {
        let now = clock::now();
        held.iter().all(|(serial, until)| *until <= now || self.view.admit(serial).is_err())
    }

    /// Waits until the follower refuses all of it. `since` is when it ended; 0 where nobody timed it.
    pub(crate) async fn refused(&self, held: &[Held], since: u64) {
        let until = Instant::now() + BOUND;
        let mut news = self.view.position();
        loop {
            news.mark_unchanged();
            if self.all_refused(held) {
                if since > 0 {
                    self.wait("end_to_refused", since);
                }
                return;
            }
            // What has expired meanwhile is no news, so the clock is looked at too.
            let next = Instant::now() + BETWEEN;
            drop(timeout_at(next, news.changed()).await);
            if Instant::now() >= until {
                return self.count(What::Leaked, "the follower still accepts it");
            }
        }
    }

    /// Does something that a start of the broker may interrupt, until it is answered.
    pub(crate) async fn patiently<T, F>(&self, call: impl Fn() -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let until = Instant::now() + PATIENCE;
        loop {
            match call().await {
                Err(fault) if Instant::now() < until && is_passing(&fault) => sleep(BETWEEN).await,
                answer => return answer,
            }
        }
    }
}

/// Whether it is the connection that failed, and not the wish.
fn is_passing(fault: &Fault) -> bool {
    let status = fault.downcast_ref::<Status>().map(Status::code);
    let status = status.or_else(|| match fault.downcast_ref::<mayfly_verify::WorkloadError>() {
        Some(mayfly_verify::WorkloadError::Status(status)) => Some(status.code()),
        Some(_) => Some(Code::Unavailable),
        None => None,
    });
    matches!(status, Some(Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal))
}
