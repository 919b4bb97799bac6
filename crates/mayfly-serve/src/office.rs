//! The seam to whoever carries out operators' and orchestrators' wishes, as [`crate::desk`] is for
//! workloads.

use std::{path::PathBuf, pin::Pin};

use mayfly_attest::Peer;
use mayfly_core::{
    Act, Amendment, Author, Cause, Credential, Denial, Holder, Kind, Mandate, PolicyEpoch, Record,
    RequestKey, Selector, Sequence, Serial, Span, SpiffeId, State, Task, TaskId, TaskVersion,
    Terms, Timestamp,
};

use crate::asking::{Asker, Bearer, Found, Object, Query, Watching};

/// A No to an operator, who may know more than a stranger.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The stable code.
    pub denial: Denial,
    /// What exactly is wrong; empty where the code says it all.
    pub detail: String,
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Self {
        Self { denial, detail: String::new() }
    }
}

/// An answer that may take a while.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Refusal>> + Send>>;

/// Where operators' wishes go.
pub trait Office: Send + Sync + 'static {
    /// Whom a token is about that somebody shows instead of the user that runs it.
    fn recognise(&self, token: String) -> Answer<Bearer>;
    /// Whether `who` may do `act` to `object`. A No is noted in the log.
    fn entitle(&self, who: Asker, act: Act, object: Object) -> Answer<()>;
    /// One task as it is.
    fn look(&self, task: TaskId) -> Answer<Task>;
    /// At most `most` tasks behind `after` that match and that `who` may read, in the order of their names.
    fn find(&self, who: Asker, query: Query, page: (Option<TaskId>, usize)) -> Answer<Found>;
    /// The tasks that match and that `who` may read, and then every change of one.
    fn watch(&self, who: Asker, query: Query) -> Answer<Watching>;
    /// How the broker is.
    fn report(&self) -> Answer<Report>;
    /// Begins a task by name.
    fn begin(&self, wish: BeginWish, author: Author) -> Answer<Begun>;
    /// Changes one task, and says how it is with that.
    fn order(&self, task: TaskId, order: Order, author: Author) -> Answer<Standing>;
    /// Tasks that are remembered.
    fn list(&self, ended: bool) -> Answer<Vec<Task>>;
    /// One task and its story.
    fn show(&self, task: TaskId) -> Answer<(Task, Vec<(Sequence, Record)>)>;
    /// Revokes, or counts what would be revoked.
    fn revoke(&self, target: Target, dry_run: bool, author: Author) -> Answer<Revoked>;
    /// Who holds what, one page of it.
    fn inventory(&self, wish: InventoryWish) -> Answer<Holdings>;
    /// Changes the authorities of one kind.
    fn change_authority(&self, wish: AuthorityWish, author: Author) -> Answer<AuthorityChange>;
    /// The profiles in force.
    fn profiles(&self) -> Answer<Edition>;
    /// Replaces the profiles by those of a TOML text.
    fn apply(&self, text: String) -> Answer<Applied>;
    /// What is seen of a process, and what that earns. `None` means the peer itself.
    fn diagnose(&self, peer: Peer, pid: Option<i32>) -> Answer<Diagnosis>;
}

/// How the broker is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    /// Its trust domain.
    pub trust_domain: String,
    /// What its machine is called.
    pub node: String,
    /// Since when it serves.
    pub started_at: Timestamp,
    /// Where workloads connect.
    pub workload_socket: PathBuf,
    /// Tasks that are not over.
    pub tasks_live: u64,
    /// Tasks that are over and still remembered.
    pub tasks_ended: u64,
    /// The last record.
    pub position: Sequence,
    /// Whether credentials are issued.
    pub issuing: bool,
    /// What was noticed at the start.
    pub notices: Vec<String>,
    /// Keys.
    pub authorities: Vec<AuthorityLine>,
    /// The edition of the profiles.
    pub policy_epoch: PolicyEpoch,
}

/// One authority, in a report.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuthorityLine {
    /// `x509` or `jwt`.
    pub kind: &'static str,
    /// Its key's id.
    pub id: String,
    /// `prepared`, `active`, `old` or `tainted`.
    pub state: &'static str,
    /// When it expires.
    pub not_after: Timestamp,
}

/// What a task is to be held by, as an orchestrator names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HolderWish {
    /// A process and its descendants.
    Lineage(i32),
    /// Exactly one process.
    Process(i32),
    /// A cgroup.
    Cgroup(String),
    /// What a systemd unit of this name runs at the moment.
    Unit(String),
    /// The container with this id.
    Container(String),
    /// The pod with this UID.
    Pod(String),
    /// A socket of its own.
    Socket,
    /// The lease alone.
    Lease,
    /// Nobody: a job.
    Job,
}

/// A task to begin.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BeginWish {
    /// Under which profile.
    pub profile: String,
    /// What holds it.
    pub holder: HolderWish,
    /// What it is part of.
    pub parent: Option<TaskId>,
    /// Whether it has to be strictly narrower than its parent.
    pub delegated: bool,
    /// Who is accountable, if not the profile's owner.
    pub owner: Option<String>,
    /// What it declares.
    pub mandate: Mandate,
    /// When it ends at the latest.
    pub deadline: Option<Timestamp>,
    /// How long it lives without a heartbeat.
    pub lease: Option<Span>,
    /// The name of this wish, so that telling it twice begins one task.
    pub key: Option<RequestKey>,
}

/// A task that was begun.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Begun {
    /// Its name.
    pub task: TaskId,
    /// Its version.
    pub version: TaskVersion,
    /// Whom its credentials name.
    pub spiffe_id: SpiffeId,
    /// The socket for its workload.
    pub socket: PathBuf,
    /// When it ends at the latest.
    pub deadline: Option<Timestamp>,
    /// Until when it lives without a heartbeat.
    pub lease_until: Option<Timestamp>,
}

/// How a task is after an order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Standing {
    /// Its version.
    pub version: TaskVersion,
    /// Where it stands.
    pub state: State,
    /// Until when it lives without a heartbeat.
    pub lease_until: Option<Timestamp>,
}

/// What is to become of a task.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Order {
    /// It is over.
    End(Cause),
    /// It is still going on.
    Heartbeat,
    /// It has another intent or scope, and so a new version.
    Amend(Amendment),
    /// It is suspended.
    Quarantine,
    /// It may go on.
    Release,
}

/// What is to be revoked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// A task and everything below it.
    Task(TaskId),
    /// The whole tree that a task is in.
    Tree(TaskId),
    /// Every task of a profile.
    Profile(String),
    /// Every task of an owner.
    Owner(String),
    /// Every task that is held on a machine.
    Node(String),
    /// Every task whose profile asks for it, or whose holder shows it now.
    Selector(Selector),
    /// One credential.
    Serial(Serial),
}

/// What was, or would be, revoked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Revoked {
    /// Tasks.
    pub tasks: u64,
    /// Unexpired credentials.
    pub credentials: u64,
}

/// What of the inventory is wanted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct InventoryWish {
    /// Only this owner's.
    pub owner: Option<String>,
    /// Only this profile's.
    pub profile: Option<String>,
    /// Only those of the tree that this task is in.
    pub tree: Option<TaskId>,
    /// The last one of the page before.
    pub after: Option<(TaskId, Serial)>,
    /// How many at most.
    pub count: usize,
}

/// A page of the inventory, in the order of tasks and then of serials.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Holdings {
    /// Credentials that a verifier accepts.
    pub holdings: Vec<Holding>,
    /// Whether there may be more.
    pub has_more: bool,
}

/// One credential that a verifier accepts, and for what it is held.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holding {
    /// The credential.
    pub credential: Credential,
    /// Whom it names.
    pub spiffe_id: SpiffeId,
    /// For which task.
    pub task: TaskId,
    /// Of which profile.
    pub profile: String,
    /// Who is accountable.
    pub owner: String,
    /// What holds it.
    pub holder: Holder,
    /// What for.
    pub intent: String,
}

/// What is to become of an authority.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuthorityWish {
    /// Of certificates or of tokens.
    pub kind: Kind,
    /// What.
    pub order: AuthorityOrder,
}

/// See [`AuthorityWish`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AuthorityOrder {
    /// There is to be a successor.
    Prepare,
    /// The successor signs.
    Activate(Option<String>),
    /// What this key signed is made anew.
    Taint(String),
    /// What this key signed is refused.
    Revoke(String),
}

/// What came of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AuthorityChange {
    /// All that are published now.
    pub authorities: Vec<AuthorityLine>,
    /// Tasks whose certificates are made anew.
    pub tasks: u64,
}

/// The profiles in force.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Edition {
    /// Which edition it is.
    pub epoch: PolicyEpoch,
    /// In the order of the file.
    pub profiles: Vec<ProfileLine>,
    /// Everybody who may be accountable.
    pub owners: Vec<String>,
}

/// What a change of the profiles did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Applied {
    /// The new edition.
    pub epoch: PolicyEpoch,
    /// Profiles whose tasks have ended.
    pub gone: Vec<String>,
    /// Owners whose tasks have ended, unless somebody took them.
    pub left: Vec<String>,
    /// What is different, for people.
    pub differences: Vec<String>,
}

/// One profile, for a listing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProfileLine {
    /// What it grants.
    pub terms: Terms,
    /// What it asks for.
    pub selectors: Vec<Selector>,
}

/// Why a process has the identities that it has, or none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Diagnosis {
    /// Which process.
    pub pid: i32,
    /// What was seen of it.
    pub evidence: Vec<Selector>,
    /// The nearest profile first.
    pub profiles: Vec<Explained>,
}

/// One profile's answer to some evidence.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Explained {
    /// Which profile.
    pub profile: String,
    /// Whether it matches.
    pub matches: bool,
    /// What it asks for and was not seen.
    pub missing: Vec<String>,
    /// What was seen of the same kinds.
    pub instead: Vec<Selector>,
}
