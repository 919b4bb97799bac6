//! Tasks of pipelines elsewhere: a token of a configured issuer begins one, and the task's own token
//! renews and ends it (R5, R57).
//!
//! The order of a beginning is: is the token genuine, in date and meant for us; does a rule let its
//! subject begin this; was it used before; and only then, with the token durably used up, is the task
//! begun. The task is held by a lease, so it ends by itself when the job's machine vanishes, and what it
//! holds is refused from then on like everything else of a task that is over.
//!
//! No secret is made for the job: it renews by a JWT-SVID of its task for the audience
//! `spiffe://<trust domain>/mayfly/broker`, which is as short-lived as the rest and checked like the rest.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use mayfly_core::{
    Ask, Author, Basis, Cause, Denial, Event, Holder, Mandate, Registrar, TaskId, TaskVersion,
    Timestamp, TrustDomain,
};
use mayfly_serve::{
    desk::{Desk as _, JwtSvid, Reply, X509Svid},
    http::ci::{PipelineTask, PipelineWish, Pipelines, Token},
    office::{BeginWish, HolderWish, Office as _},
};
use mayfly_verify::oidc::{Assertion, Unverified};
use tokio::sync::Semaphore;

use crate::{
    clock::{self, Clock},
    desk::{self, LocalDesk, Policy},
    driver::{Inbox, No},
    measures,
    office::LocalOffice,
    oidc::{Issuer, Seen, SeenError},
    signers::Signed,
};

/// Requests in progress at once: each may wait for a fetch, a disk and some signatures.
const IN_PROGRESS_MAX: usize = 256;
/// Editions of the profiles that may come while a credential is being asked for.
const RECONSIDERATIONS_MAX: usize = 8;
/// Longest subject or token name that is written to the log, in characters.
const NOTE_CHARS_MAX: usize = 256;

/// See the module. Cheap to share.
#[derive(Clone)]
pub struct LocalPipelines(Arc<Inner>);

struct Inner {
    office: LocalOffice,
    desk: LocalDesk,
    inbox: Inbox,
    policy: Arc<Policy>,
    issuers: Vec<Arc<Issuer>>,
    /// Tasks of these profiles belong to pipelines.
    profiles: BTreeSet<String>,
    seen: Arc<dyn Seen>,
    clock: Clock,
    /// The latest hour that was seen: a token that has expired once has expired for good.
    latest: AtomicU64,
    own: TrustDomain,
    /// The audience of renewal tokens.
    broker: String,
    seats: Semaphore,
}

impl std::fmt::Debug for LocalPipelines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalPipelines").field("issuers", &self.0.issuers).finish_non_exhaustive()
    }
}

/// A task that was shown to be the caller's own.
struct Held {
    basis: Basis,
    lease_until: Timestamp,
}

impl LocalPipelines {
    /// Pipelines of `issuers`, beside the desk, the office and the driver of this broker.
    #[must_use]
    pub fn new(
        (office, desk): (LocalOffice, LocalDesk),
        (inbox, clock): (Inbox, Clock),
        policy: Arc<Policy>,
        (issuers, seen): (Vec<Arc<Issuer>>, Arc<dyn Seen>),
        own: TrustDomain,
    ) -> Self {
        let rules = issuers.iter().flat_map(|issuer| &issuer.config().rules);
        let profiles = rules.map(|rule| rule.profile.clone()).collect();
        let broker = format!("{}{}", own.uri(), mayfly_policy::own::PATH);
        let (latest, seats) = (AtomicU64::default(), Semaphore::new(IN_PROGRESS_MAX));
        Self(Arc::new(Inner {
            office,
            desk,
            inbox,
            policy,
            issuers,
            profiles,
            seen,
            clock,
            latest,
            own,
            broker,
            seats,
        }))
    }
}

impl Inner {
    fn now(&self) -> Timestamp {
        let now = (self.clock)().0;
        Timestamp(self.latest.fetch_max(now, Ordering::Relaxed).max(now))
    }

    async fn begin(&self, token: Token, wish: PipelineWish) -> Result<PipelineTask, Denial> {
        let _seat = self.seats.try_acquire().map_err(|_full| Denial::Overloaded)?;
        let assertion = self.believed(&token, &wish.profile).await?;
        drop(token);
        let taken = self.seen.take(assertion.key, assertion.forget_after, self.now()).await;
        taken.map_err(|error| self.not_taken(&assertion, &error))?;
        let PipelineWish { profile, intent, audiences, lease, deadline } = wish;
        let begin = BeginWish {
            profile,
            holder: HolderWish::Lease,
            parent: None,
            delegated: false,
            owner: None,
            mandate: Mandate::of_intent(intent),
            key: None,
            deadline: Some((self.clock)().plus(deadline)),
            lease: Some(lease),
        };
        let by = format!("oidc:{}#{}", assertion.issuer, shown(&assertion.subject));
        let author = Author { by, why: String::new() };
        let begun = match self.office.begin(begin, author).await {
            Ok(begun) => begun,
            Err(refusal) => {
                let denial = refusal.denial;
                // Where it is not certain that nothing was begun, the token stays used.
                if !matches!(denial, Denial::NotServing | Denial::JournalFailed) {
                    self.seen.give_back(assertion.key);
                }
                tracing::info!(%denial, detail = refusal.detail, "a pipeline's task is not begun");
                return Err(denial);
            }
        };
        self.note(begun.task, &assertion).await;
        let held = self.held(begun.task, begun.version).await;
        let credentials = match held {
            Ok(held) => self.credentials(held, audiences).await,
            Err(denial) => Err(denial),
        };
        if credentials.is_err() {
            // Nobody will ever hear of it.
            let (task, cause) = (begun.task, Cause::Failed);
            let author = Author::default();
            let ended =
                self.inbox.order(|ticket| Event::EndAsked { ticket, task, cause, author }).await;
            tracing::warn!(%task, ?ended, "a pipeline's task has no credentials and is ended");
        }
        credentials
    }

    /// What the token says, if a rule lets it begin tasks of `profile`.
    async fn believed(&self, token: &Token, profile: &str) -> Result<Assertion, Denial> {
        let refused = |issuer: &str, why: &dyn std::fmt::Display| {
            let issuer: String = issuer.chars().take(NOTE_CHARS_MAX).collect();
            tracing::info!(?issuer, %why, "a pipeline's token is refused");
        };
        let token = Unverified::read(token.as_str()).map_err(|invalid| {
            refused("", &invalid);
            counted(Denial::OidcTokenInvalid)
        })?;
        let claimed = token.issuer();
        let issuer = self.issuers.iter().find(|issuer| issuer.config().issuer == claimed);
        let issuer = issuer.ok_or_else(|| {
            refused(claimed, &"no [[oidc]] entry names this issuer");
            counted(Denial::OidcTokenInvalid)
        })?;
        let assertion = issuer.believe(token, self.now()).await.map_err(|(denial, invalid)| {
            let why = invalid.map_or_else(|| denial.to_string(), |invalid| invalid.to_string());
            refused(&issuer.config().issuer, &why);
            counted(denial)
        })?;
        if issuer.config().permits(&assertion, profile) {
            return Ok(assertion);
        }
        // Not in the journal: of a large issuer anybody has a genuine token, and a disk is finite.
        tracing::info!(
            issuer = assertion.issuer,
            subject = ?shown(&assertion.subject),
            profile = ?shown(profile),
            "no rule lets a pipeline begin this"
        );
        Err(counted(Denial::OidcNotPermitted))
    }

    fn not_taken(&self, assertion: &Assertion, error: &SeenError) -> Denial {
        let (issuer, subject) = (&assertion.issuer, shown(&assertion.subject));
        tracing::warn!(%issuer, ?subject, %error, "a pipeline's token is not taken");
        counted(match error {
            SeenError::Used => Denial::OidcTokenReplayed,
            SeenError::Full => Denial::Overloaded,
            SeenError::Io(_) => Denial::JournalFailed,
        })
    }

    /// Who began the task, for the log: names alone, and nothing that could be shown again.
    async fn note(&self, task: TaskId, assertion: &Assertion) {
        tracing::info!(
            %task,
            issuer = assertion.issuer,
            subject = ?shown(&assertion.subject),
            "a pipeline's task is begun"
        );
        let detail = format!("task {task} {}", told(assertion));
        self.inbox.tell(Event::NoteAsked { what: "pipeline_began".to_owned(), detail }).await;
    }

    /// The task that `token` is about, if it is `task`, stands, and is a pipeline's.
    async fn owned(&self, task: TaskId, token: &Token) -> Result<TaskVersion, Denial> {
        let (audience, token) = (self.broker.clone(), token.as_str().to_owned());
        // By the same way as every other validation, so that a token that is shown after its task has
        // ended is found out and reported (R21).
        let valid = self.desk.validate(Vec::new(), audience, token).await?;
        let (of, version) = task_of(&valid.claims).ok_or(Denial::TokenInvalid)?;
        if of != task || *valid.spiffe_id.trust_domain() != self.own {
            return Err(Denial::TokenInvalid);
        }
        let kind = move |r: &Registrar| {
            r.task(task).map(|task| (task.holder == Holder::Lease, task.terms.profile.clone()))
        };
        let (is_leased, profile) = self.inbox.read(kind).await?.ok_or(Denial::TaskUnknown)?;
        // Other leases are kept by whoever began the task, and not by its workload.
        if is_leased && self.profiles.contains(&profile) {
            Ok(version)
        } else {
            Err(Denial::IdentityNotHeld)
        }
    }

    async fn held(&self, task: TaskId, version: TaskVersion) -> Result<Held, Denial> {
        let until = move |r: &Registrar| r.task(task).and_then(|task| task.lease_until);
        let lease_until = self.inbox.read(until).await?.ok_or(Denial::TaskEnded)?;
        let epoch = self.policy.current().epoch();
        Ok(Held { basis: Basis { task, version, epoch }, lease_until })
    }

    async fn renew(
        &self,
        task: TaskId,
        token: Token,
        audiences: Vec<String>,
    ) -> Result<PipelineTask, Denial> {
        let _seat = self.seats.try_acquire().map_err(|_full| Denial::Overloaded)?;
        let version = self.owned(task, &token).await?;
        drop(token);
        self.inbox.order(|ticket| Event::HeartbeatHeard { ticket, task }).await.map_err(denial)?;
        let held = self.held(task, version).await?;
        self.credentials(held, audiences).await
    }

    async fn end(&self, task: TaskId, token: Token, cause: Cause) -> Result<(), Denial> {
        let _seat = self.seats.try_acquire().map_err(|_full| Denial::Overloaded)?;
        self.owned(task, &token).await?;
        drop(token);
        // By its own token.
        let author = Author { by: format!("task:{task}"), why: String::new() };
        self.inbox
            .order(|ticket| Event::EndAsked { ticket, task, cause, author })
            .await
            .map_err(denial)?;
        Ok(())
    }

    async fn credentials(
        &self,
        Held { basis, lease_until }: Held,
        audiences: Vec<String>,
    ) -> Result<PipelineTask, Denial> {
        // A key of its own each time: nothing of it stays here.
        let x509 = self.certificate(basis).await?;
        let renewal = self.token(basis, self.broker.clone()).await?;
        let mut jwt = Vec::with_capacity(audiences.len());
        for audience in audiences {
            let svid = self.token(basis, audience.clone()).await?;
            jwt.push((audience, svid));
        }
        let bundle = self.desk.bundles().borrow().x509.get(&self.own).cloned();
        Ok(PipelineTask {
            task: basis.task,
            version: basis.version,
            spiffe_id: x509.spiffe_id.clone(),
            lease_until,
            x509,
            bundle: bundle.ok_or(Denial::NotServing)?,
            jwt,
            renewal,
        })
    }

    async fn certificate(&self, basis: Basis) -> Result<X509Svid, Denial> {
        match self.ask(basis, &Ask::X509).await? {
            Signed::X509(svid) => Ok(desk::handed_out(svid)),
            Signed::Jwt(_) => Err(Denial::SigningFailed),
        }
    }

    async fn token(&self, basis: Basis, audience: String) -> Result<JwtSvid, Denial> {
        match self.ask(basis, &Ask::Jwt { audience: vec![audience] }).await? {
            Signed::Jwt(svid) => {
                Ok(JwtSvid { spiffe_id: svid.spiffe_id, token: svid.token, not_after: svid.exp })
            }
            Signed::X509(_) => Err(Denial::SigningFailed),
        }
    }

    async fn ask(&self, mut basis: Basis, ask: &Ask) -> Result<Signed, Denial> {
        for _ in 0..RECONSIDERATIONS_MAX {
            let luck = u64::from_be_bytes(clock::luck());
            let asked = |ticket| Event::Asked { ticket, basis, ask: ask.clone(), luck };
            match self.inbox.credential(asked).await {
                Ok(signed) => return Ok(signed),
                Err(No::Denied(denial)) => return Err(denial),
                Err(No::Reconsider) => {
                    let epoch = self.policy.current().epoch();
                    // Then it is the task that has a new version, and credentials of the old one stop.
                    if epoch == basis.epoch {
                        return Err(Denial::TokenInvalid);
                    }
                    basis.epoch = epoch;
                }
            }
        }
        Err(Denial::Overloaded)
    }
}

impl Pipelines for LocalPipelines {
    fn begin(&self, token: Token, wish: PipelineWish) -> Reply<PipelineTask> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.begin(token, wish).await })
    }

    fn renew(&self, task: TaskId, token: Token, audiences: Vec<String>) -> Reply<PipelineTask> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.renew(task, token, audiences).await })
    }

    fn end(&self, task: TaskId, token: Token, cause: Cause) -> Reply<()> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.end(task, token, cause).await })
    }
}

/// Counts a refusal that the driver does not hear of.
fn counted(denial: Denial) -> Denial {
    measures::withheld(No::Denied(denial));
    denial
}

const fn denial(no: No) -> Denial {
    match no {
        No::Denied(denial) => denial,
        No::Reconsider => Denial::TaskVersion,
    }
}

fn told(assertion: &Assertion) -> String {
    let id = assertion.id.as_deref().map_or_else(|| "none".to_owned(), shown);
    format!("issuer {} subject {} jti {id}", shown(&assertion.issuer), shown(&assertion.subject))
}

/// A stranger's text, short and without control characters.
fn shown(text: &str) -> String {
    text.chars().take(NOTE_CHARS_MAX).flat_map(char::escape_debug).collect()
}

/// A token of ours names its task.
fn task_of(claims: &serde_json::Map<String, serde_json::Value>) -> Option<(TaskId, TaskVersion)> {
    let task = claims.get("mayfly:task")?;
    let id = TaskId::parse(task.get("id")?.as_str()?).ok()?;
    let version = u32::try_from(task.get("version")?.as_u64()?).ok()?;
    Some((id, TaskVersion(version)))
}
