//! The office of one machine: operators' wishes, carried out through the driver.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use mayfly_attest::{Peer, Systemd};
use mayfly_core::{
    Act, Author, Denial, Record, Registrar, Sequence, Task, TaskId, Timestamp, TrustDomain,
};
use mayfly_policy::Rights;
use mayfly_serve::{
    Eyes,
    asking::{Asker, Bearer, Found, Object, Query, Watching},
    office::{
        Answer, Applied, AuthorityChange, AuthorityWish, BeginWish, Begun, Diagnosis, Edition,
        Holdings, InventoryWish, Office, Order, Refusal, Report, Revoked, Standing, Target,
    },
};
use mayfly_sign::AuthorityView;
use tokio::sync::{RwLock, mpsc, watch};

use self::entitled::Notes;
use crate::{
    board::Board,
    clock::Clock,
    desk::Policy,
    driver::{Inbox, No},
    keeper,
    means::Settled,
    oidc::Issuer,
    paths::Paths,
};

mod authority;
mod begin;
mod entitled;
mod explain;
mod holder;
mod inventory;
pub(crate) mod policy;
mod reading;
mod revoke;
mod subject;

/// See the module. Cheap to share.
#[derive(Clone)]
pub struct LocalOffice(Arc<Inner>);

struct Inner {
    inbox: Inbox,
    /// Weak, because whoever carries out these orders ends when the driver does.
    sockets: Settled,
    policy: Arc<Policy>,
    rights: Arc<Rights>,
    notes: Notes,
    /// One change of the profiles at a time, or epochs could be told in the wrong order.
    applying: RwLock<()>,
    eyes: Arc<dyn Eyes>,
    /// The same eyes that workloads are seen by.
    near: Arc<dyn Eyes>,
    board: Arc<Board>,
    systemd: Systemd,
    /// Who vouches for subjects that have roles.
    issuers: OnceLock<Vec<Arc<Issuer>>>,
    authorities: watch::Receiver<Vec<AuthorityView>>,
    /// What is ordered of them.
    orders: mpsc::Sender<keeper::Order>,
    clock: Clock,
    about: About,
}

/// What does not change while the broker runs.
#[derive(Clone, Debug)]
pub struct About {
    /// Whose credentials are issued.
    pub trust_domain: TrustDomain,
    /// What this machine is called.
    pub node: String,
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

/// The keys' standing, what is ordered of them, and the board of what is durable.
pub type Keys = (watch::Receiver<Vec<AuthorityView>>, mpsc::Sender<keeper::Order>, Arc<Board>);

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
        (inbox, sockets, clock): (Inbox, Settled, Clock),
        (policy, rights): (Arc<Policy>, Arc<Rights>),
        (eyes, near, systemd): (Arc<dyn Eyes>, Arc<dyn Eyes>, Systemd),
        (authorities, orders, board): Keys,
        about: About,
    ) -> Self {
        Self(Arc::new(Inner {
            inbox,
            sockets,
            policy,
            applying: RwLock::default(),
            rights,
            notes: Notes::default(),
            eyes,
            near,
            board,
            systemd,
            issuers: OnceLock::new(),
            authorities,
            orders,
            clock,
            about,
        }))
    }

    /// Lets these issuers say who asks, where a token is shown. To be told once.
    pub fn recognise_by(&self, issuers: Vec<Arc<Issuer>>) {
        // There is one start, which knows all of them.
        let _first = self.0.issuers.set(issuers);
    }

    /// Waits until everything that was ordered for the tasks' own sockets so far is done.
    pub async fn sockets_settled(&self) {
        self.0.sockets.settled().await;
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
            node: about.node.clone(),
            started_at: about.started_at,
            workload_socket: about.workload_socket.clone(),
            tasks_live: live as u64,
            tasks_ended: ended as u64,
            position,
            issuing: !halted,
            notices: about.notices.clone(),
            authorities: self.authorities(),
            policy_epoch,
        })
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
}

impl Office for LocalOffice {
    fn recognise(&self, token: String) -> Answer<Bearer> {
        let office = self.clone();
        Box::pin(async move { Self::recognise(&office, &token).await })
    }

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

    fn order(&self, task: TaskId, order: Order, author: Author) -> Answer<Standing> {
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

    fn inventory(&self, wish: InventoryWish) -> Answer<Holdings> {
        let office = self.clone();
        Box::pin(async move { Self::inventory(&office, wish).await })
    }

    fn change_authority(&self, wish: AuthorityWish, author: Author) -> Answer<AuthorityChange> {
        let office = self.clone();
        Box::pin(async move { Self::change_authority(&office, wish, author).await })
    }

    fn profiles(&self) -> Answer<Edition> {
        let office = self.clone();
        Box::pin(async move { Ok(Self::profiles(&office)) })
    }

    fn apply(&self, text: String) -> Answer<Applied> {
        let office = self.clone();
        Box::pin(async move { Self::apply(&office, text).await })
    }

    fn diagnose(&self, peer: Peer, pid: Option<i32>) -> Answer<Diagnosis> {
        let office = self.clone();
        Box::pin(async move { Self::diagnose(&office, peer, pid).await })
    }
}
