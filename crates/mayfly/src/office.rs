//! The office of one machine: operators' wishes, carried out through the driver.

use std::{path::PathBuf, sync::Arc};

use mayfly_attest::{Peer, Process};
use mayfly_core::{
    Act, Author, Cause, Denial, Event, Holder, PolicyEpoch, Record, Registrar, Sequence, Task,
    TaskId, TaskVersion, Ticket, Timestamp, TrustDomain,
};
use mayfly_policy::{Profiles, Rights};
use mayfly_serve::{
    Eyes,
    asking::{Asker, Found, Object, Query, Watching},
    office::{
        Answer, AuthorityLine, BeginWish, Begun, Diagnosis, Explained, HolderWish, Office, Order,
        ProfileLine, Refusal, Report, Revoked, Target,
    },
};
use mayfly_sign::{AuthorityView, RotationPolicy, Standing};
use tokio::sync::{RwLock, mpsc, oneshot, watch};

use self::entitled::Notes;
use crate::{
    board::Board,
    clock::Clock,
    config,
    desk::Policy,
    driver::{Inbox, No},
    means::SocketOrder,
    paths::{Paths, write_private},
};

mod begin;
mod entitled;
mod reading;

/// See the module. Cheap to share.
#[derive(Clone)]
pub struct LocalOffice(Arc<Inner>);

struct Inner {
    inbox: Inbox,
    /// Weak, because whoever carries out these orders ends when the driver does.
    sockets: mpsc::WeakSender<SocketOrder>,
    policy: Arc<Policy>,
    rights: Arc<Rights>,
    notes: Notes,
    /// One change of the profiles at a time, or epochs could be told in the wrong order; and none while a
    /// task begins under them.
    applying: RwLock<()>,
    eyes: Arc<dyn Eyes>,
    /// The same eyes that workloads are seen by.
    near: Arc<dyn Eyes>,
    board: Arc<Board>,
    authorities: watch::Receiver<Vec<AuthorityView>>,
    clock: Clock,
    about: About,
}

/// What does not change while the broker runs.
#[derive(Clone, Debug)]
pub struct About {
    /// Whose credentials are issued.
    pub trust_domain: TrustDomain,
    /// Where everything is.
    pub paths: Paths,
    /// Where workloads connect.
    pub workload_socket: PathBuf,
    /// Since when it serves.
    pub started_at: Timestamp,
    /// What was noticed at the start.
    pub notices: Vec<String>,
    /// The life of authorities, which bounds that of credentials.
    pub authority_ttl: mayfly_core::Span,
}

impl std::fmt::Debug for LocalOffice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalOffice").field("about", &self.0.about).finish_non_exhaustive()
    }
}

impl From<No> for Refusal {
    fn from(no: No) -> Self {
        match no {
            No::Denied(denial) => denial.into(),
            No::Reconsider => Denial::TaskVersion.into(),
        }
    }
}

fn refusal(denial: Denial, detail: impl Into<String>) -> Refusal {
    Refusal { denial, detail: detail.into() }
}

impl LocalOffice {
    /// An office in front of the driver behind `inbox`.
    #[must_use]
    pub fn new(
        (inbox, sockets, clock): (Inbox, mpsc::WeakSender<SocketOrder>, Clock),
        (policy, rights): (Arc<Policy>, Arc<Rights>),
        (eyes, near): (Arc<dyn Eyes>, Arc<dyn Eyes>),
        (authorities, board): (watch::Receiver<Vec<AuthorityView>>, Arc<Board>),
        about: About,
    ) -> Self {
        Self(Arc::new(Inner {
            inbox,
            sockets,
            policy,
            rights,
            notes: Notes::default(),
            applying: RwLock::default(),
            eyes,
            near,
            board,
            authorities,
            clock,
            about,
        }))
    }

    /// Waits until everything that was ordered for the tasks' own sockets so far is done.
    pub async fn sockets_settled(&self) {
        let (done, told) = oneshot::channel();
        let Some(orders) = self.0.sockets.upgrade() else { return };
        if orders.send(SocketOrder::Report(done)).await.is_ok() {
            drop(orders);
            // An error means that the broker is stopping, and nobody will need a socket.
            drop(told.await);
        }
    }

    async fn report(&self) -> Result<Report, Refusal> {
        let office = &self.0;
        let question = |registrar: &Registrar| {
            let live = registrar.tasks().filter(|task| !task.state.is_ended()).count();
            let ended = registrar.tasks().count() - live;
            let (last, epoch) = (registrar.last_sequence(), registrar.policy_epoch());
            (live, ended, last, registrar.is_halted(), epoch)
        };
        let (live, ended, position, halted, policy_epoch) = office.inbox.read(question).await?;
        let about = &office.about;
        Ok(Report {
            trust_domain: about.trust_domain.to_string(),
            started_at: about.started_at,
            workload_socket: about.workload_socket.clone(),
            tasks_live: live as u64,
            tasks_ended: ended as u64,
            position,
            issuing: !halted,
            notices: about.notices.clone(),
            authorities: office.authorities.borrow().iter().map(authority).collect(),
            policy_epoch,
        })
    }

    async fn order(
        &self,
        task: TaskId,
        order: Order,
        author: Author,
    ) -> Result<TaskVersion, Refusal> {
        let event = move |ticket: Ticket| match order {
            Order::End(cause) => Event::EndAsked { ticket, task, cause, author },
            Order::Heartbeat => Event::HeartbeatHeard { ticket, task },
            Order::Amend(amendment) => Event::AmendAsked { ticket, task, amendment, author },
            Order::Quarantine => Event::QuarantineAsked { ticket, task, author },
            Order::Release => Event::ReleaseAsked { ticket, task, author },
        };
        Ok(self.0.inbox.order(event).await?.1)
    }

    async fn list(&self, ended: bool) -> Result<Vec<Task>, Refusal> {
        let wanted = move |task: &&Task| ended || !task.state.is_ended();
        let question = move |r: &Registrar| r.tasks().filter(wanted).cloned().collect::<Vec<_>>();
        Ok(self.0.inbox.read(question).await?)
    }

    async fn show(&self, id: TaskId) -> Result<(Task, Vec<(Sequence, Record)>), Refusal> {
        let task = self.0.inbox.read(move |registrar| registrar.task(id).cloned()).await?;
        let task = task.ok_or(Denial::TaskUnknown)?;

        let log = self.0.about.paths.log();
        let read = tokio::task::spawn_blocking(move || mayfly_audit::timeline(&log, id));
        let story = read.await.map_err(|_stopping| Denial::NotServing)?;
        let story = story.map_err(|error| refusal(Denial::JournalFailed, error.to_string()))?;
        Ok((task, story))
    }

    async fn revoke(
        &self,
        target: Target,
        dry_run: bool,
        author: Author,
    ) -> Result<Revoked, Refusal> {
        let now = (self.0.clock)();
        let counted = target.clone();
        let question = move |registrar: &Registrar| hit(registrar, &counted, now);
        let (roots, revoked) = self.0.inbox.read(question).await??;
        if dry_run {
            return Ok(revoked);
        }
        if let Target::Serial(serial) = target {
            let author = author.clone();
            let asked = |ticket| Event::RevokeAsked { ticket, serial, author };
            self.0.inbox.order(asked).await?;
        }
        for task in roots {
            let (cause, author) = (Cause::Revoked, author.clone());
            let asked = |ticket| Event::EndAsked { ticket, task, cause, author };
            self.0.inbox.order(asked).await?;
        }
        Ok(revoked)
    }

    async fn apply(&self, text: String) -> Result<(PolicyEpoch, Vec<String>), Refusal> {
        let office = &self.0;
        let _one_at_a_time = office.applying.write().await;
        let old = office.policy.current();
        let epoch = PolicyEpoch(old.epoch().0 + 1);
        let profiles = config::parse_profiles(&text, &office.about.trust_domain, epoch)
            .map_err(|error| refusal(Denial::Malformed, error.to_string()))?;
        self.check_ttls(&profiles)?;
        // Kept before it counts: a profile that was taken away must not come back with a restart.
        let kept = write_private(&office.about.paths.applied_profiles(), text.as_bytes());
        kept.map_err(|error| {
            refusal(Denial::JournalFailed, format!("the profiles could not be kept: {error}"))
        })?;
        let gone = profiles.gone_since(&old);
        let names = profiles.names().collect::<Vec<_>>().join(" ");
        // The registrar hears of the new edition before the first verdict rests on it; verdicts of the
        // old one are reconsidered from then on.
        let (left, transfers) = Default::default();
        let changed = Event::PolicyChanged { epoch, gone: gone.clone(), left, transfers };
        let detail = format!("epoch {} {names}", epoch.0);
        let noted = Event::NoteAsked { what: "profiles_applied".to_owned(), detail };
        if !office.inbox.tell(changed).await || !office.inbox.tell(noted).await {
            return Err(Denial::NotServing.into());
        }
        office.policy.replace(Arc::new(profiles));
        Ok((epoch, gone))
    }

    fn check_ttls(&self, profiles: &Profiles) -> Result<(), Refusal> {
        let max = self.0.about.authority_ttl.0 / RotationPolicy::CREDENTIALS_PER_AUTHORITY;
        let long = profiles.iter().find(|p| p.terms.x509_ttl.0.max(p.terms.jwt_ttl.0) > max);
        match long {
            None => Ok(()),
            Some(profile) => {
                let name = &profile.terms.profile;
                let detail = format!(
                    "profile `{name}`: with these authorities a credential lives for {} at most",
                    mayfly_policy::duration::format(mayfly_core::Span(max))
                );
                Err(refusal(Denial::Malformed, detail))
            }
        }
    }

    async fn diagnose(&self, peer: Peer, pid: Option<i32>) -> Result<Diagnosis, Refusal> {
        let failed =
            |e: mayfly_attest::AttestError| refusal(Denial::AttestationFailed, e.to_string());
        let peer = pid.map_or(Ok(peer), Peer::of_pid).map_err(failed)?;
        let evidence = self.0.eyes.look(&peer).await.map_err(failed)?;
        let explained = self.0.policy.current().explain(&evidence);
        let profiles = explained.into_iter().map(|one| Explained {
            matches: one.matches(),
            missing: one.missing.iter().map(|missing| missing.wanted.to_string()).collect(),
            instead: one.missing.into_iter().flat_map(|missing| missing.had).collect(),
            profile: one.profile,
        });
        Ok(Diagnosis {
            pid: peer.key().pid,
            profiles: profiles.collect(),
            evidence: evidence.selectors.into_iter().collect(),
        })
    }

    fn profiles(&self) -> (PolicyEpoch, Vec<ProfileLine>) {
        let profiles = self.0.policy.current();
        let line = |profile: &mayfly_policy::Profile| ProfileLine {
            terms: profile.terms.clone(),
            selectors: profile.selectors.iter().cloned().collect(),
        };
        (profiles.epoch(), profiles.iter().map(line).collect())
    }
}

impl Office for LocalOffice {
    fn entitle(&self, who: Asker, act: Act, object: Object) -> Answer<()> {
        let office = self.clone();
        Box::pin(async move { Self::entitle(&office, who, act, object).await })
    }

    fn look(&self, task: TaskId) -> Answer<Task> {
        let office = self.clone();
        Box::pin(async move { Self::look(&office, task).await })
    }

    fn find(&self, who: Asker, query: Query, page: (Option<TaskId>, usize)) -> Answer<Found> {
        let office = self.clone();
        Box::pin(async move { Self::find(&office, who, query, page).await })
    }

    fn watch(&self, who: Asker, query: Query) -> Answer<Watching> {
        let office = self.clone();
        Box::pin(async move { Self::watch(&office, who, query).await })
    }

    fn report(&self) -> Answer<Report> {
        let office = self.clone();
        Box::pin(async move { Self::report(&office).await })
    }

    fn begin(&self, wish: BeginWish, author: Author) -> Answer<Begun> {
        let office = self.clone();
        Box::pin(async move { Self::begin(&office, wish, author).await })
    }

    fn order(&self, task: TaskId, order: Order, author: Author) -> Answer<TaskVersion> {
        let office = self.clone();
        Box::pin(async move { Self::order(&office, task, order, author).await })
    }

    fn list(&self, ended: bool) -> Answer<Vec<Task>> {
        let office = self.clone();
        Box::pin(async move { Self::list(&office, ended).await })
    }

    fn show(&self, task: TaskId) -> Answer<(Task, Vec<(Sequence, Record)>)> {
        let office = self.clone();
        Box::pin(async move { Self::show(&office, task).await })
    }

    fn revoke(&self, target: Target, dry_run: bool, author: Author) -> Answer<Revoked> {
        let office = self.clone();
        Box::pin(async move { Self::revoke(&office, target, dry_run, author).await })
    }

    fn profiles(&self) -> Answer<(PolicyEpoch, Vec<ProfileLine>)> {
        let office = self.clone();
        Box::pin(async move { Ok(Self::profiles(&office)) })
    }

    fn apply(&self, text: String) -> Answer<(PolicyEpoch, Vec<String>)> {
        let office = self.clone();
        Box::pin(async move { Self::apply(&office, text).await })
    }

    fn diagnose(&self, peer: Peer, pid: Option<i32>) -> Answer<Diagnosis> {
        let office = self.clone();
        Box::pin(async move { Self::diagnose(&office, peer, pid).await })
    }
}

fn holder(wish: HolderWish) -> Result<Holder, Refusal> {
    let key = |pid| {
        let process = Process::open(pid);
        let process =
            process.map_err(|e| refusal(Denial::HolderUnfit, format!("process {pid}: {e}")));
        process.map(|process| process.key())
    };
    Ok(match wish {
        HolderWish::Lineage(pid) => Holder::Lineage(key(pid)?),
        HolderWish::Process(pid) => Holder::Process(key(pid)?),
        HolderWish::Cgroup(path) => Holder::Cgroup(path),
        HolderWish::Socket => Holder::Socket,
        HolderWish::Lease => Holder::Lease,
        HolderWish::Job => Holder::Job,
    })
}

/// The tasks to end, and how much that is. A task brings everything below it along.
fn hit(
    registrar: &Registrar,
    target: &Target,
    now: Timestamp,
) -> Result<(Vec<TaskId>, Revoked), Denial> {
    let roots: Vec<TaskId> = match target {
        Target::Serial(serial) => {
            let mut all = registrar.tasks().flat_map(|task| &task.credentials);
            let found = all.find(|c| c.serial == *serial).ok_or(Denial::SerialUnknown)?;
            let credentials = u64::from(found.revoked_at.is_none());
            return Ok((Vec::new(), Revoked { tasks: 0, credentials }));
        }
        Target::Task(task) => [registrar.task(*task).ok_or(Denial::TaskUnknown)?.id].into(),
        Target::Profile(name) => {
            let of = registrar.tasks().filter(|task| task.terms.profile == *name);
            of.filter(|task| !task.state.is_ended()).map(|task| task.id).collect()
        }
    };
    let mut revoked = Revoked::default();
    let mut seen = std::collections::BTreeSet::new();
    let mut next = roots.clone();
    while let Some(task) = next.pop().and_then(|id| registrar.task(id)) {
        if !seen.insert(task.id) || task.state.is_ended() {
            continue;
        }
        next.extend(&task.children);
        revoked.tasks += 1;
        let stands = |c: &&mayfly_core::Credential| c.revoked_at.is_none() && c.not_after > now;
        revoked.credentials += task.credentials.iter().filter(stands).count() as u64;
    }
    Ok((roots, revoked))
}

fn authority(view: &AuthorityView) -> AuthorityLine {
    AuthorityLine {
        kind: match view.kind {
            mayfly_core::Kind::X509 => "x509",
            mayfly_core::Kind::Jwt => "jwt",
        },
        id: view.key_id.clone(),
        state: match view.standing {
            Standing::Active => "active",
            Standing::Prepared => "prepared",
            Standing::Old(_) => "old",
        },
        not_after: view.expires,
    }
}
