//! Keeps keys, bundles, revocation lists and status lists fresh: the part of the broker that acts by the
//! clock.
//!
//! The loop says when something is done; `mirrors` says what is out of date, `facts` what lists are made
//! of, `pace` when they may be signed and how they are numbered, `files` where they are written, `orders`
//! what operators want of the authorities.

mod facts;
mod files;
mod mirrors;
mod orders;
mod pace;

pub use self::orders::{ORDERS_MAX, Order};

use std::{path::PathBuf, sync::Arc, time::Duration};

use mayfly_core::{Event, Span};
use mayfly_serve::{desk::Bundles, http::Published};
use mayfly_sign::{KeyRing, RotationStep};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::{
    facts::Facts,
    mirrors::{Mirrors, Stamp},
    pace::{Numbers, Pace},
};
use crate::{
    clock::{self, Clock},
    driver::Inbox,
    federation::Federations,
    measures,
    signers::Keys,
    svids::Svids,
};

/// How often the files of foreign bundles are looked at.
const FEDERATION_EVERY: Duration = Duration::from_secs(1);
/// Keys kept ready, and how many are made at a time.
const POOL_TOP_UP: usize = 16;
const POOL_EVERY: Duration = Duration::from_millis(20);
/// How often, and how many times, a start looks whether its record is on disk.
const DISK_LOOK_EVERY: Duration = Duration::from_millis(1);
const DISK_LOOKS_MAX: u32 = 5_000;
/// Less nice than what follows the log: a verifier that reads lists waits for these.
const LISTS_NICE: i32 = 5;
/// The least difference between two dates on paper.
const SECOND: Span = Span::from_secs(1);
/// How far the clock by which files are dated lags behind ours.
const FILE_CLOCK_LAG: Span = Span(10);

/// See the module.
pub struct Keeper {
    /// Authorities and their rotation.
    pub ring: KeyRing,
    /// The keys that the signing threads use.
    pub keys: Arc<Keys>,
    /// Foreign bundles.
    pub federations: Federations,
    /// Where bundles are published.
    pub bundles: watch::Sender<Arc<Bundles>>,
    /// What operators are shown of the authorities.
    pub authorities: watch::Sender<Vec<mayfly_sign::AuthorityView>>,
    /// Says that the list of revoked certificates has changed.
    pub crl: Arc<Notify>,
    /// Where revocation lists are written, one file per authority.
    pub crl_dir: PathBuf,
    /// Where everything that is served to everybody is published.
    pub published: watch::Sender<Arc<Published>>,
    /// What operators order.
    pub orders: mpsc::Receiver<Order>,
    /// The certificates in use.
    pub svids: Arc<Svids>,
    /// The driver.
    pub inbox: Inbox,
    /// The hour.
    pub clock: Clock,
    /// What was signed so far.
    pub signed: Signed,
}

/// What the keeper has signed, and when it may sign again.
#[derive(Debug, Default)]
pub struct Signed {
    pace: Pace,
    numbers: Numbers,
    mirrors: Mirrors,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("crl_dir", &self.crl_dir).finish_non_exhaustive()
    }
}

impl Keeper {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut federation = tokio::time::interval(FEDERATION_EVERY);
        let mut pool = tokio::time::interval(POOL_EVERY);
        pool.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let changed = Arc::clone(&self.crl);
        let mut dirty = false;
        loop {
            let now = (self.clock)();
            let rotation = clock::until(now, self.ring.poll_timeout());
            let renewal = clock::until(now, self.signed.mirrors.due_at());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(rotation) => dirty |= !self.rotate().await,
                Some(order) = self.orders.recv() => dirty |= !self.obey(order).await,
                () = changed.notified() => dirty = true,
                () = tokio::time::sleep(renewal), if !dirty => dirty = true,
                () = self.signed.pace.ready(), if dirty => dirty = !self.renew_lists().await,
                _ = federation.tick() => if self.federations.reload() { self.publish() },
                _ = pool.tick() => self.keys.top_up(POOL_TOP_UP),
            }
        }
    }

    /// Publishes what there is, before anybody is served.
    pub async fn prepare(&mut self) {
        self.federations.reload();
        self.wait_for_the_disk().await;
        self.wait_for_the_second().await;
        self.renew_lists().await;
        self.authorities.send_replace(self.ring.authorities());
    }

    /// Numbers follow the durable position, and a start is a record: once that is on disk, every number
    /// is higher than those of the run before.
    async fn wait_for_the_disk(&self) {
        let Ok(last) = self.inbox.read(mayfly_core::Registrar::last_sequence).await else { return };
        for _ in 0..DISK_LOOKS_MAX {
            let is_durable =
                move |r: &mayfly_core::Registrar| r.durable_sequence() >= last || r.is_halted();
            if self.inbox.read(is_durable).await.unwrap_or(true) {
                return;
            }
            tokio::time::sleep(DISK_LOOK_EVERY).await;
        }
        tracing::warn!("the disk is slow; revocation lists may repeat numbers of the last run");
    }

    /// Dates count seconds, and no two lists share one: a second in which the run before has signed is
    /// waited out.
    async fn wait_for_the_second(&self) {
        let Some(last) = files::newest(&self.crl_dir) else { return };
        let next = last.plus(FILE_CLOCK_LAG).floor_to_second().plus(SECOND);
        let left = clock::until((self.clock)(), next);
        tokio::time::sleep(left.min(Duration::from_secs(1))).await;
    }

    /// Takes the steps that are due; `true` if lists are as new as the authorities.
    async fn rotate(&mut self) -> bool {
        match self.ring.handle_timeout((self.clock)()) {
            Ok(steps) => {
                self.publish();
                self.keys.replace(self.ring.signer());
                self.authorities.send_replace(self.ring.authorities());
                // A new authority needs a list of its own before anything is signed by it.
                self.signed.pace.ready().await;
                let renewed = self.renew_lists().await;
                for step in steps {
                    let (what, detail) = note(&step);
                    tracing::info!(what, detail, "authority");
                    self.inbox.tell(Event::NoteAsked { what: what.to_owned(), detail }).await;
                }
                renewed
            }
            Err(error) => {
                tracing::error!(%error, "the authorities could not be rotated");
                true
            }
        }
    }

    /// Signs the lists that are out of date and publishes them; `false` if it has to be tried again.
    async fn renew_lists(&mut self) -> bool {
        self.signed.pace.spend();
        let Ok(facts) = Facts::read(&self.inbox).await else { return false };
        let (number, date) = self.signed.numbers.next(facts.durable, (self.clock)());
        let stamp = Stamp { number, date };
        let (publisher, hint) = (self.ring.publisher(), self.ring.refresh_hint());
        let mut mirrors = std::mem::take(&mut self.signed.mirrors);
        let dir = self.crl_dir.clone();
        let signing = aside(move || {
            let outcome = mirrors.renew(&publisher, facts, stamp, hint);
            if let Err(error) = files::write_all(&dir, mirrors.lists()) {
                tracing::error!(%error, "revocation lists could not be written");
            }
            (mirrors, outcome)
        });
        let Some((mirrors, outcome)) = signing.await else { return false };
        self.signed.mirrors = mirrors;
        let (bytes, entries) = self.signed.mirrors.size();
        measures::signed(bytes, entries);
        if let Err(error) = outcome {
            tracing::error!(%error, "revocation lists could not be signed");
            return false;
        }
        self.publish();
        true
    }

    /// Publishes bundles, and all lists as they are.
    fn publish(&self) {
        let own = self.ring.trust_domain().clone();
        let mut next = Bundles::default();
        next.x509.insert(own.clone(), self.ring.x509_bundle().concat().into());
        next.jwt.insert(own, self.ring.jwks().into());
        for (domain, bundle) in self.federations.bundles() {
            // An empty entry would make the Python client stop watching; an absent one is a withdrawal.
            if !bundle.x509.is_empty() {
                next.x509.insert(domain.clone(), bundle.x509.clone().into());
            }
            if !bundle.jwks.is_empty() {
                next.jwt.insert(domain.clone(), bundle.jwks.clone().into());
            }
        }
        let lists = self.signed.mirrors.lists().iter();
        next.crls = lists.map(|(_, list)| list.body().clone()).collect();
        replace(&self.bundles, Arc::new(next));
        replace(&self.published, self.signed.mirrors.published());
    }
}

/// Does on a thread of its own what takes long and may take longer: a list of a hundred thousand entries is 40 ms
/// of a core, and no caller should wait for that core. `None` if it came to no end.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = oneshot::channel();
    let thread = std::thread::Builder::new().name("lists".to_owned()).spawn(move || {
        mayfly_store::step_back(LISTS_NICE);
        // Nobody listens any more where the broker stops.
        let _stopped = tell.send(work());
    });
    if let Err(error) = &thread {
        tracing::error!(%error, "no thread for revocation lists");
    }
    told.await.ok()
}

/// Wakes those who watch only if there is something new to see.
fn replace<T: PartialEq>(watched: &watch::Sender<Arc<T>>, next: Arc<T>) {
    watched.send_if_modified(|current| {
        let changed = !Arc::ptr_eq(current, &next) && **current != *next;
        if changed {
            *current = next;
        }
        changed
    });
}

fn note(step: &RotationStep) -> (&'static str, String) {
    let of = |kind: &mayfly_core::Kind, id: &str| match kind {
        mayfly_core::Kind::X509 => format!("x509 {id}"),
        mayfly_core::Kind::Jwt => format!("jwt {id}"),
    };
    match step {
        RotationStep::Prepared(kind, id) => ("authority_prepared", of(kind, id)),
        RotationStep::Activated(kind, id) => ("authority_activated", of(kind, id)),
        RotationStep::Retired(kind, id) => ("authority_retired", of(kind, id)),
        RotationStep::Tainted(kind, id) => ("authority_tainted", of(kind, id)),
        RotationStep::Revoked(kind, id) => ("authority_revoked", of(kind, id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_done_aside_has_stepped_back_and_may_fail() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        assert_eq!(aside(nice).await, Some(before.max(LISTS_NICE)));
        assert_eq!(nice(), before, "others are as they were");
        assert_eq!(aside(|| -> () { panic!("a planted fault") }).await, None);
    }
}
