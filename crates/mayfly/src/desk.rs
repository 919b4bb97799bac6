//! The desk of one machine: judges evidence, asks the driver, and words the answer for `serve`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use mayfly_core::{
    Ask, Basis, Claim, Denial, Event, Evidence, PolicyEpoch, Registrar, Serial, Showing, SpiffeId,
    TaskId, TaskVersion, Ticket, Wish,
};
use mayfly_policy::Profiles;
use mayfly_serve::{
    desk::{
        AtOnce, Bundles, Desk, Introduced, JwtSvid, Named, Reference, Reply, Report, TokenWish,
        Use, Validated, Within, X509Svid,
    },
    feed::hub::Hub,
};
use mayfly_verify::{JwkSet, JwkSets, jwt};
use serde_json::Value;
use tokio::sync::watch;

use crate::{
    clock::{self, Clock},
    driver::{Inbox, Introduction, Met, No},
    signers::Signed,
    svids::{InUse, Svids},
};

/// Times a caller is judged again because the profiles moved under it, before it is told to come back.
const RECONSIDERATIONS_MAX: usize = 8;
/// How long an edition that the registrar knows may take until it is judged by.
const EDITION_MAX: Duration = Duration::from_secs(1);

/// The profiles in force, replaced whole.
#[derive(Debug)]
pub struct Policy(watch::Sender<Arc<Profiles>>);

impl Policy {
    /// Starts with `profiles`.
    #[must_use]
    pub fn new(profiles: Profiles) -> Self {
        Self(watch::Sender::new(Arc::new(profiles)))
    }

    /// The profiles in force.
    #[must_use]
    pub fn current(&self) -> Arc<Profiles> {
        Arc::clone(&self.0.borrow())
    }

    /// Puts `profiles` in force.
    pub fn replace(&self, profiles: Arc<Profiles>) {
        self.0.send_replace(profiles);
    }

    /// Waits until there is another edition than `epoch`: the registrar hears of one first, and whoever
    /// asks in between would be sent round in a circle.
    pub async fn after(&self, epoch: PolicyEpoch) {
        let mut editions = self.0.subscribe();
        let newer = editions.wait_for(|profiles| profiles.epoch() != epoch);
        // It is there in a moment, or never: then the caller hears that it should try again.
        let _patience = tokio::time::timeout(EDITION_MAX, newer).await.is_ok();
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

    /// Meets a caller, as far as it may be `within` some profiles.
    async fn meet(&self, evidence: &Evidence, within: &Within) -> Result<Vec<Introduced>, Denial> {
        self.introduced(|| self.met(evidence, within, None)).await
    }

    fn met(
        &self,
        evidence: &Evidence,
        within: &Within,
        wish: Option<Wish>,
    ) -> (PolicyEpoch, impl FnOnce(Ticket) -> Event + use<>) {
        // INVARIANT P8: silence is a No. Evidence that earns nothing still reaches the registrar,
        // which refuses it and testifies to that.
        let mut verdict = self.policy.current().judge(evidence);
        verdict.permits.retain(|terms| is_within(within, &terms.profile));
        let epoch = verdict.epoch;
        let now = (self.clock)();
        let luck = verdict.permits.iter().map(|_| clock::task_id(now)).collect();
        let caller = evidence.caller.clone();
        (epoch, move |ticket| Event::Met { ticket, caller, verdict, luck, wish })
    }

    async fn jwt_served(
        &self,
        evidence: &Evidence,
        wish: TokenWish,
    ) -> Result<AtOnce<JwtSvid>, Denial> {
        let TokenWish { spiffe_id, audience } = wish;
        let wish = || Wish {
            ask: Ask::Jwt { audience: audience.clone() },
            spiffe_id: spiffe_id.clone(),
            luck: u64::from_be_bytes(clock::luck()),
        };
        match self.serve_at_once(evidence, wish).await? {
            AtOnce::Served(held) => match *held {
                (who, Signed::Jwt(svid)) => Ok(AtOnce::Served(Box::new((who, handed_over(svid))))),
                (_, Signed::X509(_)) => Err(Denial::SigningFailed),
            },
            AtOnce::Introduced(found) => Ok(AtOnce::Introduced(found)),
            AtOnce::Later => Ok(AtOnce::Later),
        }
    }

    /// The first certificate of a task with a socket of its own. Who else asks for it meanwhile waits, as in
    /// [`Self::shared_x509`].
    async fn first_x509(&self, evidence: &Evidence) -> Result<AtOnce<X509Svid>, Denial> {
        let Some(task) = evidence.caller.socket else { return Ok(AtOnce::Later) };
        let shared = self.svids.of(task);
        let refusals = shared.refusals();
        let mut kept = shared.lock().await;
        if kept.is_some() || shared.refusals() != refusals {
            return Ok(AtOnce::Later);
        }
        let wish =
            || Wish { ask: Ask::X509, spiffe_id: None, luck: u64::from_be_bytes(clock::luck()) };
        let served = self.serve_at_once(evidence, wish).await.inspect_err(|denial| {
            if *denial == Denial::Overloaded {
                shared.turned_away();
            }
        });
        match served? {
            AtOnce::Served(held) => match *held {
                (who, Signed::X509(svid)) => {
                    let made = in_use(basis(&who), svid);
                    let svid = made.svid.clone();
                    *kept = Some(made);
                    Ok(AtOnce::Served(Box::new((who, svid))))
                }
                (_, Signed::Jwt(_)) => Err(Denial::SigningFailed),
            },
            AtOnce::Introduced(found) => Ok(AtOnce::Introduced(found)),
            AtOnce::Later => Ok(AtOnce::Later),
        }
    }

    async fn serve_at_once(
        &self,
        evidence: &Evidence,
        wish: impl Fn() -> Wish,
    ) -> Result<AtOnce<Signed>, Denial> {
        for _ in 0..RECONSIDERATIONS_MAX {
            let (epoch, event) = self.met(evidence, &None, Some(wish()));
            match self.inbox.meet(event).await {
                Ok(Met::Served(who, signed)) => {
                    return Ok(AtOnce::Served(Box::new((introduced(*who, epoch), signed))));
                }
                Ok(Met::Introduced(found)) => {
                    let found = found.into_iter().map(|one| introduced(one, epoch));
                    return Ok(AtOnce::Introduced(found.collect()));
                }
                Err(No::Reconsider) => self.policy.after(epoch).await,
                Err(No::Denied(denial)) => return Err(denial),
            }
        }
        Err(Denial::Overloaded)
    }

    /// Finds the task that somebody acts for.
    async fn find(
        &self,
        (task, version): (TaskId, Option<TaskVersion>),
        within: &Within,
    ) -> Result<Vec<Introduced>, Denial> {
        // A task keeps its profile for life, so it cannot be another by the time it is named.
        let profile = move |r: &Registrar| r.task(task).map(|task| task.terms.profile.clone());
        if let Some(profile) = self.inbox.read(profile).await?
            && !is_within(within, &profile)
        {
            return Err(Denial::NoIdentity);
        }
        self.introduced(|| {
            let epoch = self.policy.current().epoch();
            (epoch, move |ticket| Event::TaskNamed { ticket, task, version, epoch })
        })
        .await
    }

    async fn introduced<E: FnOnce(Ticket) -> Event>(
        &self,
        event: impl Fn() -> (PolicyEpoch, E),
    ) -> Result<Vec<Introduced>, Denial> {
        for _ in 0..RECONSIDERATIONS_MAX {
            let (epoch, event) = event();
            match self.inbox.introduce(event).await {
                Ok(found) => {
                    return Ok(found.into_iter().map(|one| introduced(one, epoch)).collect());
                }
                Err(No::Reconsider) => self.policy.after(epoch).await,
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
        let shared = self.svids.of(basis.task);
        let refusals = shared.refusals();
        let mut kept = shared.lock().await;
        if let Some(InUse { basis: of, svid, .. }) = &*kept
            && *of == basis
            && (self.clock)() < svid.renew_at()
            // It may have been revoked, alone or with its task, since it was made.
            && self.stands(basis.task, svid.serial).await.is_ok()
        {
            return Ok(svid.clone());
        }
        if shared.refusals() != refusals {
            return Err(Denial::Overloaded);
        }
        *kept = None;
        let made = self.make_x509(basis).await.inspect_err(|denial| {
            if *denial == Denial::Overloaded {
                shared.turned_away();
            }
        })?;
        let svid = made.svid.clone();
        *kept = Some(made);
        Ok(svid)
    }

    async fn make_x509(&self, basis: Basis) -> Result<InUse, Denial> {
        match self.ask(basis, Ask::X509).await? {
            Signed::X509(svid) => Ok(in_use(basis, svid)),
            Signed::Jwt(_) => Err(Denial::SigningFailed),
        }
    }

    async fn stands(&self, task: TaskId, serial: Serial) -> Result<(), Denial> {
        let standing = move |r: &Registrar| r.standing(task, &serial).map(|_| ());
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
        Box::pin(async move { desk.meet(&evidence, &None).await })
    }

    fn refer(&self, Reference { named, within }: Reference) -> Reply<Vec<Introduced>> {
        let desk = self.clone();
        Box::pin(async move {
            let evidence = match named {
                Named::Process(evidence) => evidence,
                Named::Task(task, version) => return desk.find((task, version), &within).await,
            };
            match desk.meet(&evidence, &within).await {
                Err(Denial::TaskEnded) => {
                    let caller = evidence.caller;
                    Err(desk.inbox.read(move |r: &Registrar| r.why_over(&caller)).await?)
                }
                answer => answer,
            }
        })
    }

    fn x509(&self, who: &Introduced) -> Reply<X509Svid> {
        let (desk, basis) = (self.clone(), basis(who));
        Box::pin(async move { desk.shared_x509(basis).await })
    }

    fn jwt_at_once(&self, evidence: Evidence, wish: TokenWish) -> Reply<AtOnce<JwtSvid>> {
        let desk = self.clone();
        Box::pin(async move { desk.jwt_served(&evidence, wish).await })
    }

    fn x509_at_once(&self, evidence: Evidence) -> Reply<AtOnce<X509Svid>> {
        let desk = self.clone();
        Box::pin(async move { desk.first_x509(&evidence).await })
    }

    fn jwt(&self, who: &Introduced, audience: Vec<String>) -> Reply<JwtSvid> {
        let (desk, basis) = (self.clone(), basis(who));
        Box::pin(async move {
            match desk.ask(basis, Ask::Jwt { audience }).await? {
                Signed::Jwt(svid) => Ok(handed_over(svid)),
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

fn introduced(one: Introduction, epoch: PolicyEpoch) -> Introduced {
    Introduced { identity: one.identity, epoch, news: one.news }
}

fn in_use(basis: Basis, svid: mayfly_sign::X509Svid) -> InUse {
    InUse { basis, authority: svid.authority.clone(), svid: handed_out(svid) }
}

fn handed_over(svid: mayfly_sign::JwtSvid) -> JwtSvid {
    JwtSvid { spiffe_id: svid.spiffe_id, token: svid.token, not_after: svid.exp }
}

fn is_within(within: &Within, profile: &str) -> bool {
    within.as_ref().is_none_or(|names| names.contains(profile))
}

/// A certificate in the form in which it leaves.
pub(crate) fn handed_out(svid: mayfly_sign::X509Svid) -> X509Svid {
    X509Svid {
        spiffe_id: svid.spiffe_id,
        chain: svid.chain_der.into(),
        key: Bytes::copy_from_slice(&svid.key_pkcs8),
        not_before: svid.not_before,
        not_after: svid.not_after,
        serial: svid.serial,
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
