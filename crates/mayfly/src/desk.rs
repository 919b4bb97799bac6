//! The desk of one machine: judges evidence, asks the driver, and words the answer for `serve`.

use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use mayfly_core::{
    Ask, Basis, Claim, Denial, Event, Evidence, PolicyEpoch, Serial, Showing, SpiffeId, TaskId,
};
use mayfly_policy::Profiles;
use mayfly_serve::{
    desk::{Bundles, Desk, Introduced, JwtSvid, Reply, Report, Use, Validated, X509Svid},
    feed::hub::Hub,
};
use mayfly_verify::{JwkSet, JwkSets, jwt};
use serde_json::Value;
use tokio::sync::watch;

use crate::{
    clock::{self, Clock},
    driver::{Inbox, No},
    signers::Signed,
    svids::{InUse, Svids},
};

/// Times a caller is judged again because the profiles moved under it, before it is told to come back.
const RECONSIDERATIONS_MAX: usize = 8;

/// The profiles in force, replaced whole.
#[derive(Debug)]
pub struct Policy(RwLock<Arc<Profiles>>);

impl Policy {
    /// Starts with `profiles`.
    #[must_use]
    pub fn new(profiles: Profiles) -> Self {
        Self(RwLock::new(Arc::new(profiles)))
    }

    /// The profiles in force.
    #[must_use]
    pub fn current(&self) -> Arc<Profiles> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts `profiles` in force.
    pub fn replace(&self, profiles: Arc<Profiles>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = profiles;
    }
}

/// See the module.
#[derive(Clone)]
pub struct LocalDesk {
    inbox: Inbox,
    policy: Arc<Policy>,
    bundles: watch::Receiver<Arc<Bundles>>,
    feed: Arc<Hub>,
    clock: Clock,
    own: mayfly_core::TrustDomain,
    svids: Arc<Svids>,
}

impl std::fmt::Debug for LocalDesk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalDesk").field("own", &self.own).finish_non_exhaustive()
    }
}

impl LocalDesk {
    /// A desk in front of the driver behind `inbox`.
    #[must_use]
    pub fn new(
        (inbox, clock): (Inbox, Clock),
        policy: Arc<Policy>,
        (bundles, feed): (watch::Receiver<Arc<Bundles>>, Arc<Hub>),
        own: mayfly_core::TrustDomain,
        svids: Arc<Svids>,
    ) -> Self {
        Self { inbox, policy, bundles, feed, clock, own, svids }
    }

    async fn meet(&self, evidence: Evidence) -> Result<Vec<Introduced>, Denial> {
        for _ in 0..RECONSIDERATIONS_MAX {
            // INVARIANT P8: silence is a No. Evidence that earns nothing still reaches the registrar,
            // which refuses it and testifies to that.
            let verdict = self.policy.current().judge(&evidence);
            let epoch = verdict.epoch;
            let luck = verdict.permits.iter().map(|_| clock::task_id()).collect();
            let caller = evidence.caller.clone();
            let met = move |ticket| Event::Met { ticket, caller, verdict, luck };
            match self.inbox.introduce(met).await {
                Ok(found) => {
                    let introduced = found.into_iter().map(|found| Introduced {
                        identity: found.identity,
                        epoch,
                        news: found.news,
                    });
                    return Ok(introduced.collect());
                }
                Err(No::Reconsider) => {}
                Err(No::Denied(denial)) => return Err(denial),
            }
        }
        Err(Denial::Overloaded)
    }

    async fn ask(&self, basis: Basis, ask: Ask) -> Result<Signed, Denial> {
        let luck = u64::from_be_bytes(clock::luck());
        let asked = move |ticket| Event::Asked { ticket, basis, ask, luck };
        self.inbox.credential(asked).await.map_err(|no| match no {
            No::Denied(denial) => denial,
            // The caller has to be introduced again; `serve` does so when it hears this.
            No::Reconsider => Denial::TaskVersion,
        })
    }

    /// The certificate in use for `basis`, or a new one.
    async fn shared_x509(&self, basis: Basis) -> Result<X509Svid, Denial> {
        let kept = self.svids.of(basis.task);
        let mut kept = kept.lock().await;
        if let Some(InUse { basis: of, svid, .. }) = &*kept
            && *of == basis
            && (self.clock)() < svid.half_life()
            // It may have been revoked, alone or with its task, since it was made.
            && self.stands(basis.task, svid.serial).await.is_ok()
        {
            return Ok(svid.clone());
        }
        *kept = None;
        let made = self.make_x509(basis).await?;
        let svid = made.svid.clone();
        *kept = Some(made);
        Ok(svid)
    }

    async fn make_x509(&self, basis: Basis) -> Result<InUse, Denial> {
        match self.ask(basis, Ask::X509).await? {
            Signed::X509(svid) => Ok(InUse {
                basis,
                authority: svid.authority,
                svid: X509Svid {
                    spiffe_id: svid.spiffe_id,
                    chain: svid.chain_der.into(),
                    key: Bytes::copy_from_slice(&svid.key_pkcs8),
                    not_before: svid.not_before,
                    not_after: svid.not_after,
                    serial: svid.serial,
                },
            }),
            Signed::Jwt(_) => Err(Denial::SigningFailed),
        }
    }

    async fn stands(&self, task: TaskId, serial: Serial) -> Result<(), Denial> {
        let standing = move |r: &mayfly_core::Registrar| r.standing(task, &serial).map(|_| ());
        self.inbox.read(standing).await?
    }

    async fn check(
        &self,
        who: Vec<Introduced>,
        audience: String,
        token: String,
    ) -> Result<Validated, Denial> {
        let keys = self.keys_for(&who);
        let now = (self.clock)();
        let claims = jwt::validate(&token, &audience, &keys, now).map_err(|invalid| {
            tracing::debug!(%invalid, "a token was refused");
            Denial::TokenInvalid
        })?;
        if *claims.id.trust_domain() == self.own {
            let (task, serial) = task_and_serial(&claims).ok_or(Denial::TokenInvalid)?;
            if let Err(denial) = self.stands(task, serial).await {
                self.report_use(&who, serial).await;
                // What is out of date about a token does not become current when it is shown again.
                let is_old = denial == Denial::TaskVersion;
                return Err(if is_old { Denial::TokenInvalid } else { denial });
            }
        }
        Ok(Validated { spiffe_id: claims.id, claims: as_list(claims.map) })
    }

    /// Passes a verifier's word on to whoever knows better.
    async fn hear_report(&self, report: Report) -> Result<(), Denial> {
        let is_foreign = |id: &SpiffeId| *id.trust_domain() != self.own;
        if report.spiffe_id.as_ref().is_some_and(is_foreign) {
            // Two trust domains use the same places for different tasks: in our ledger it would be
            // somebody else's. Its own broker follows its own verifiers.
            tracing::info!(spiffe_id = ?report.spiffe_id, "a report about a foreign credential");
            return Ok(());
        }
        let claim = match report.usage {
            Use::AfterEnd | Use::WhileSuspended | Use::Unknown => Claim::NotToBeUsed,
            Use::ByAnother => Claim::ByAnother,
        };
        let sender = report.sender.as_ref().map(SpiffeId::to_string);
        let showing = Showing {
            serial: report.serial,
            claim,
            presenter: report.presenter,
            // Who proved to be somebody is not asked for a name.
            verifier: sender.unwrap_or(report.verifier),
        };
        let told = self.inbox.tell(Event::Shown(showing)).await;
        told.then_some(()).ok_or(Denial::NotServing)
    }

    /// A token that is genuine and in date, and over: whoever asks about it was shown it by somebody.
    async fn report_use(&self, who: &[Introduced], serial: Serial) {
        let verifier = who.first().map(|one| one.identity.spiffe_id.to_string());
        let showing = Showing {
            serial: Some(serial),
            claim: Claim::NotToBeUsed,
            presenter: String::new(),
            verifier: verifier.unwrap_or_default(),
        };
        self.inbox.tell(Event::Shown(showing)).await;
    }

    /// The keys that the callers may rely on: their own domain's, and their federated ones.
    fn keys_for(&self, who: &[Introduced]) -> JwkSets {
        let bundles = self.bundles.borrow();
        let foreign = who.iter().flat_map(|one| &one.identity.federates_with);
        let mut keys = JwkSets::default();
        for domain in foreign.chain([&self.own]) {
            if let Some(set) = bundles.jwt.get(domain).and_then(|json| JwkSet::parse(json).ok()) {
                keys.insert(domain.clone(), set);
            }
        }
        keys
    }
}

impl Desk for LocalDesk {
    fn introduce(&self, evidence: Evidence) -> Reply<Vec<Introduced>> {
        let desk = self.clone();
        Box::pin(async move { desk.meet(evidence).await })
    }

    fn x509(&self, who: &Introduced) -> Reply<X509Svid> {
        let (desk, basis) = (self.clone(), basis(who));
        Box::pin(async move { desk.shared_x509(basis).await })
    }

    fn jwt(&self, who: &Introduced, audience: Vec<String>) -> Reply<JwtSvid> {
        let (desk, basis) = (self.clone(), basis(who));
        Box::pin(async move {
            match desk.ask(basis, Ask::Jwt { audience }).await? {
                Signed::Jwt(svid) => Ok(JwtSvid {
                    spiffe_id: svid.spiffe_id,
                    token: svid.token,
                    not_after: svid.exp,
                }),
                Signed::X509(_) => Err(Denial::SigningFailed),
            }
        })
    }

    fn validate(&self, who: Vec<Introduced>, audience: String, token: String) -> Reply<Validated> {
        let desk = self.clone();
        Box::pin(async move { desk.check(who, audience, token).await })
    }

    fn bundles(&self) -> watch::Receiver<Arc<Bundles>> {
        self.bundles.clone()
    }

    fn feed(&self) -> Arc<Hub> {
        Arc::clone(&self.feed)
    }

    fn report(&self, report: Report) -> Reply<()> {
        let desk = self.clone();
        Box::pin(async move { desk.hear_report(report).await })
    }
}

fn basis(who: &Introduced) -> Basis {
    let epoch: PolicyEpoch = who.epoch;
    Basis { task: who.identity.task, version: who.identity.version, epoch }
}

/// A token of ours names its task, so its standing is found without a search.
pub(crate) fn task_and_serial(claims: &jwt::Claims) -> Option<(TaskId, Serial)> {
    let task = claims.map.get("mayfly:task")?.get("id")?.as_str()?;
    Some((TaskId::parse(task).ok()?, claims.serial?))
}

/// Claims with `aud` as a list, as SPIRE answers and clients expect.
fn as_list(mut claims: serde_json::Map<String, Value>) -> serde_json::Map<String, Value> {
    if let Some(audience) = claims.get_mut("aud").filter(|audience| audience.is_string()) {
        *audience = Value::Array([audience.take()].into());
    }
    claims
}

/// The SPIFFE ID of an introduction, for logs.
#[must_use]
pub const fn name(who: &Introduced) -> &SpiffeId {
    &who.identity.spiffe_id
}
