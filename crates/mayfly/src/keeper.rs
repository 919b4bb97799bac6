//! Keeps keys, bundles and revocation lists fresh: the part of the broker that acts by the clock.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use mayfly_core::{Event, Serial, Span, Timestamp};
use mayfly_serve::desk::Bundles;
use mayfly_sign::{
    KeyRing, RotationStep, SignError,
    crl::{Contents, Reason},
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{self, Clock},
    driver::Inbox,
    federation::Federations,
    signers::Keys,
};

/// How often the files of foreign bundles are looked at.
const FEDERATION_EVERY: Duration = Duration::from_secs(1);
/// The least time between two revocation lists: OpenSSL tells lists apart by the second.
const CRL_PACE: Duration = Duration::from_secs(1);
/// How long a revocation list may be relied on. Verifiers refuse everyone after that, so it outlives an
/// outage in which SVIDs expire anyway.
const CRL_LIFE: Span = Span::from_secs(3600);
/// When an unchanged list is signed anew.
const CRL_RENEWAL: Duration = Duration::from_secs(900);
/// Keys kept ready, and how many are made at a time.
const POOL_TOP_UP: usize = 16;
const POOL_EVERY: Duration = Duration::from_millis(20);

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
    /// The driver.
    pub inbox: Inbox,
    /// The hour.
    pub clock: Clock,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("crl_dir", &self.crl_dir).finish_non_exhaustive()
    }
}

impl Keeper {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut numbers = CrlNumbers::default();
        let mut federation = tokio::time::interval(FEDERATION_EVERY);
        let mut pool = tokio::time::interval(POOL_EVERY);
        pool.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let crl = Arc::clone(&self.crl);
        let mut paced = tokio::time::interval(CRL_PACE);
        let mut dirty = false;
        loop {
            let due = clock::until((self.clock)(), self.ring.poll_timeout());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(due) => self.rotate(&mut numbers).await,
                () = crl.notified() => dirty = true,
                _ = paced.tick() => {
                    if std::mem::take(&mut dirty) || numbers.is_due((self.clock)()) {
                        self.renew_crls(&mut numbers).await;
                    }
                }
                _ = federation.tick() => if self.federations.reload() { self.publish(None) },
                _ = pool.tick() => self.keys.top_up(POOL_TOP_UP),
            }
        }
    }

    /// Publishes what there is, before anybody is served.
    pub async fn prepare(&mut self) {
        self.federations.reload();
        self.renew_crls(&mut CrlNumbers::default()).await;
        self.authorities.send_replace(self.ring.authorities());
    }

    async fn rotate(&mut self, numbers: &mut CrlNumbers) {
        match self.ring.handle_timeout((self.clock)()) {
            Ok(steps) => {
                self.keys.replace(self.ring.signer());
                self.authorities.send_replace(self.ring.authorities());
                // A new authority needs a list of its own before anything is signed by it.
                self.renew_crls(numbers).await;
                for step in steps {
                    let (what, detail) = note(&step);
                    tracing::info!(what, detail, "authority");
                    self.inbox.tell(Event::NoteAsked { what: what.to_owned(), detail }).await;
                }
            }
            Err(error) => tracing::error!(%error, "the authorities could not be rotated"),
        }
    }

    async fn renew_crls(&self, numbers: &mut CrlNumbers) {
        let question = |registrar: &mayfly_core::Registrar| {
            let revoked = registrar.revoked_certificates();
            let revoked: Vec<_> =
                revoked.map(|c| (c.serial, c.revoked_at, Reason::CessationOfOperation)).collect();
            (revoked, registrar.last_sequence())
        };
        let Ok((revoked, sequence)) = self.inbox.read(question).await else { return };
        let now = (self.clock)();
        let number = numbers.next(sequence.0, now);
        match self.sign_crls(number, now, &revoked) {
            Ok(crls) => {
                if let Err(error) = write_all(&self.crl_dir, &crls) {
                    tracing::error!(%error, "revocation lists could not be written");
                }
                self.publish(Some(crls.into_iter().map(|(_, der)| der.into()).collect()));
            }
            Err(error) => tracing::error!(%error, "revocation lists could not be signed"),
        }
    }

    fn sign_crls(
        &self,
        number: u64,
        now: Timestamp,
        revoked: &[(Serial, Timestamp, Reason)],
    ) -> Result<Vec<(String, Vec<u8>)>, SignError> {
        let contents =
            Contents { number, this_update: now, next_update: now.plus(CRL_LIFE), revoked };
        self.ring.crls(&contents)
    }

    /// Publishes bundles; `crls` of `None` keeps the lists that were there.
    fn publish(&self, crls: Option<Vec<Bytes>>) {
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
        self.bundles.send_if_modified(|current| {
            next.crls = crls.unwrap_or_else(|| current.crls.clone());
            let changed = **current != next;
            if changed {
                *current = Arc::new(next);
            }
            changed
        });
    }
}

/// Revocation list numbers. They have to rise across restarts and clock steps, so they are derived
/// from the journal's position, which does.
#[derive(Debug, Default)]
struct CrlNumbers {
    last: u64,
    signed_at: Timestamp,
}

impl CrlNumbers {
    /// Lists that may be signed without a record between them. A restart writes a record.
    const PER_POSITION: u64 = 1 << 16;

    fn next(&mut self, sequence: u64, now: Timestamp) -> u64 {
        self.signed_at = now;
        self.last = (self.last + 1).max(sequence.saturating_mul(Self::PER_POSITION));
        self.last
    }

    fn is_due(&self, now: Timestamp) -> bool {
        clock::until(self.signed_at, now) >= CRL_RENEWAL
    }
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
    }
}

/// Writes one file per authority, each replaced whole, and removes those of retired authorities.
fn write_all(dir: &Path, crls: &[(String, Vec<u8>)]) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for (id, der) in crls {
        let temporary = dir.join(format!(".{id}.tmp"));
        std::fs::write(&temporary, der)?;
        std::fs::rename(&temporary, dir.join(format!("{id}.crl")))?;
    }
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        let retired = name.strip_suffix(".crl").is_some_and(|id| crls.iter().all(|(k, _)| k != id));
        if retired {
            std::fs::remove_file(dir.join(&*name))?;
        }
    }
    Ok(())
}
