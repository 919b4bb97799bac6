//! The broker's own identity: a task like any other.
//!
//! Whoever talks to the broker over a port has to know whom it talks to, so the broker needs an
//! X.509-SVID. It gets one the way everybody does: it is met, its task is begun and logged, a promise is
//! written before anything is signed, the certificate is renewed in time, and when its process dies
//! the next run finds the task without a holder and ends it. Nothing here can sign.
//!
//! What is its own is the judgement: the profile [`mayfly_policy::own`] stands in no edition, so no caller
//! earns it, not even one that is the broker's own process (a test, a bench) and comes through a socket.

use std::{sync::Arc, time::Duration};

use mayfly_attest::{AttestError, Process};
use mayfly_core::{
    Author, Caller, Cause, Closing, Denial, Event, ProcessKey, Span, SpiffeId, TaskId, Terms,
    TrustDomain, Verdict, limits,
};
use mayfly_proto::spiffe::workload as wire;
use mayfly_serve::desk::{Bundles, Desk as _, Introduced, X509Svid};
use mayfly_sign::RotationPolicy;
use mayfly_verify::{Held, X509Context};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{self, Clock},
    desk::{LocalDesk, Policy},
    driver::{Inbox, No},
};

/// Life of the broker's certificate, unless its authorities are too short-lived for that.
const TTL: Span = limits::X509_TTL_DEFAULT;
/// The pause before something that failed is tried again; twice as long each time, up to the second.
const PAUSE: Duration = Duration::from_secs(1);
/// See [`PAUSE`].
const PAUSE_MAX: Duration = Duration::from_secs(32);
/// The longest wait without a look at the clock, which may have been set.
const NAP_MAX: Duration = Duration::from_secs(60);
/// Editions of the profiles that may come while the broker is being met.
const RECONSIDERATIONS_MAX: usize = 8;

/// Why the broker has no identity.
#[derive(Debug, thiserror::Error)]
pub enum OwnError {
    /// Its own process cannot be named.
    #[error("the broker cannot see its own process: {0}")]
    Unseen(#[from] AttestError),
    /// It was refused, as anybody may be.
    #[error("the broker was refused an identity of its own: `{}`", .0.code())]
    Refused(Denial),
    /// What it was given cannot be used.
    #[error("the broker's own certificate is malformed: {0}")]
    Malformed(String),
}

impl From<Denial> for OwnError {
    fn from(denial: Denial) -> Self {
        Self::Refused(denial)
    }
}

/// What the broker meets itself with.
#[derive(Clone)]
pub struct Own {
    inbox: Inbox,
    desk: LocalDesk,
    policy: Arc<Policy>,
    clock: Clock,
    terms: Terms,
    process: ProcessKey,
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Own").field("process", &self.process).finish_non_exhaustive()
    }
}

/// The broker's identity, for as long as somebody renews it.
#[derive(Clone, Debug)]
pub struct OwnIdentity {
    /// Who the broker is.
    pub spiffe_id: SpiffeId,
    /// Its task.
    pub task: TaskId,
    /// What it holds at this moment.
    pub held: watch::Receiver<Held>,
    inbox: Inbox,
    renewing: CancellationToken,
}

impl OwnIdentity {
    /// Ends the task, as whoever is done should: what was signed for it is refused from here on.
    pub async fn end(&self) {
        let task = self.task;
        // Whoever renews is told first: an end that we order ourselves is no news.
        self.renewing.cancel();
        let (cause, author) = (Cause::Completed, Author::default());
        let end = |ticket| Event::EndAsked { ticket, task, cause, author };
        if let Err(no) = self.inbox.order(end).await {
            // The next run ends it, when it finds that its holder is gone.
            tracing::debug!(?no, "the broker's own task was not ended");
        }
    }
}

impl Own {
    /// The broker as this process, with certificates that fit authorities of `authority_ttl` and the
    /// bundles of `federates_with`.
    ///
    /// # Errors
    /// [`OwnError::Unseen`] if the kernel does not say who we are.
    pub fn new(
        (inbox, desk): (Inbox, LocalDesk),
        policy: Arc<Policy>,
        clock: Clock,
        (authority_ttl, federates_with): (Span, Vec<TrustDomain>),
    ) -> Result<Self, OwnError> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let process = Process::open(pid)?.key();
        let fits = Span(authority_ttl.0 / RotationPolicy::CREDENTIALS_PER_AUTHORITY);
        let ttl = TTL.min(fits).max(limits::CREDENTIAL_TTL_MIN);
        let terms = mayfly_policy::own::terms(ttl, federates_with);
        Ok(Self { inbox, desk, policy, clock, terms, process })
    }

    /// Takes the first certificate, and gives back who renews it until `stop`.
    ///
    /// # Errors
    /// [`OwnError`], and nobody renews anything.
    pub async fn begin(
        self,
        stop: CancellationToken,
    ) -> Result<(OwnIdentity, impl Future<Output = ()> + Send + 'static), OwnError> {
        let mut bundles = self.desk.bundles();
        let one = self.meet().await?;
        let (svid, context) = self.renew(&one, &mut bundles).await?;
        tracing::info!(
            spiffe_id = %one.identity.spiffe_id,
            task = %one.identity.task,
            serial = %svid.serial,
            "the broker has an identity of its own"
        );
        let (sender, held) = watch::channel(Held::Context(Arc::new(context)));
        let stop = stop.child_token();
        let identity = OwnIdentity {
            renewing: stop.clone(),
            spiffe_id: one.identity.spiffe_id.clone(),
            task: one.identity.task,
            held,
            inbox: self.inbox.clone(),
        };
        let keep = async move {
            let kept = self.keep(one, svid, (bundles, sender));
            let _stopped = stop.run_until_cancelled(kept).await;
        };
        Ok((identity, keep))
    }

    /// Renews until the task is over.
    async fn keep(
        &self,
        mut one: Introduced,
        mut svid: X509Svid,
        (mut bundles, held): (watch::Receiver<Arc<Bundles>>, watch::Sender<Held>),
    ) {
        let (mut at_once, mut pause) = (false, PAUSE);
        loop {
            let news = if at_once { None } else { self.wait(&mut one, &svid, &mut bundles).await };
            let renewed = match news {
                Some(Closing::Ended) => Err(OwnError::Refused(Denial::TaskEnded)),
                Some(Closing::Suspended) => Err(OwnError::Refused(Denial::TaskQuarantined)),
                Some(Closing::Changed) | None => self.again(&mut one, &mut bundles).await,
            };
            at_once = match renewed {
                Ok((renewed, context)) => {
                    if renewed.serial != svid.serial {
                        let serial = renewed.serial;
                        tracing::info!(%serial, "the broker's own certificate is renewed");
                    }
                    svid = renewed;
                    held.send_replace(Held::Context(Arc::new(context)));
                    pause = PAUSE;
                    false
                }
                Err(OwnError::Refused(Denial::TaskEnded | Denial::TaskUnknown)) => {
                    held.send_replace(Held::Withdrawn);
                    tracing::error!("the broker's own task is over: a restart begins another");
                    return;
                }
                Err(OwnError::Refused(Denial::TaskQuarantined)) => {
                    held.send_replace(Held::Withdrawn);
                    tracing::error!("the broker's own task is quarantined until it is released");
                    one.news.changed().await.is_ok()
                }
                Err(error) => {
                    // What is held stays good for as long as its dates say.
                    tracing::error!(%error, "the broker's own certificate is not renewed");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                    true
                }
            };
        }
    }

    /// Waits for a reason to look again: the time of renewal, other bundles, or news of the task.
    async fn wait(
        &self,
        one: &mut Introduced,
        svid: &X509Svid,
        bundles: &mut watch::Receiver<Arc<Bundles>>,
    ) -> Option<Closing> {
        loop {
            let left = clock::until((self.clock)(), svid.renew_at());
            if left.is_zero() {
                return None;
            }
            tokio::select! {
                biased;
                told = one.news.changed() => return Some(match told {
                    Ok(()) => one.news.borrow_and_update().unwrap_or(Closing::Changed),
                    // Forgotten is as over as ended.
                    Err(_forgotten) => Closing::Ended,
                }),
                changed = bundles.changed() => if changed.is_ok() { return None },
                () = tokio::time::sleep(left.min(NAP_MAX)) => {}
            }
        }
    }

    /// Meets itself anew, because the edition of the profiles may be another, and asks.
    async fn again(
        &self,
        one: &mut Introduced,
        bundles: &mut watch::Receiver<Arc<Bundles>>,
    ) -> Result<(X509Svid, X509Context), OwnError> {
        *one = self.meet().await?;
        self.renew(one, bundles).await
    }

    async fn meet(&self) -> Result<Introduced, OwnError> {
        for _ in 0..RECONSIDERATIONS_MAX {
            let epoch = self.policy.current().epoch();
            let verdict = Verdict { epoch, permits: vec![self.terms.clone()] };
            let caller = Caller { lineage: vec![self.process], ..Caller::default() };
            let luck = vec![clock::task_id((self.clock)())];
            let met = move |ticket| Event::Met { ticket, caller, verdict, luck, wish: None };
            match self.inbox.introduce(met).await {
                Ok(found) => {
                    let one = found.into_iter().next().ok_or(Denial::NoIdentity)?;
                    return Ok(Introduced { identity: one.identity, epoch, news: one.news });
                }
                Err(No::Reconsider) => {}
                Err(No::Denied(denial)) => return Err(denial.into()),
            }
        }
        Err(Denial::Overloaded.into())
    }

    async fn renew(
        &self,
        one: &Introduced,
        bundles: &mut watch::Receiver<Arc<Bundles>>,
    ) -> Result<(X509Svid, X509Context), OwnError> {
        let svid = self.desk.x509(one).await?;
        let bundles = Arc::clone(&bundles.borrow_and_update());
        let context = context(one, &svid, &bundles)?;
        Ok((svid, context))
    }
}

/// The identity as a workload would have it from the Workload API, checked in the same way.
fn context(one: &Introduced, svid: &X509Svid, bundles: &Bundles) -> Result<X509Context, OwnError> {
    let bundle = |domain: &TrustDomain| bundles.x509.get(domain).cloned();
    let foreign = one.identity.federates_with.iter();
    let foreign = foreign.filter_map(|domain| Some((domain.uri(), bundle(domain)?)));
    let message = wire::X509svidResponse {
        svids: vec![wire::X509svid {
            spiffe_id: svid.spiffe_id.to_string(),
            x509_svid: svid.chain.clone(),
            x509_svid_key: svid.key.clone(),
            bundle: bundle(svid.spiffe_id.trust_domain()).unwrap_or_default(),
            hint: String::new(),
        }],
        crl: Vec::new(),
        federated_bundles: foreign.collect(),
    };
    X509Context::parse(message).map_err(|invalid| OwnError::Malformed(invalid.to_string()))
}
