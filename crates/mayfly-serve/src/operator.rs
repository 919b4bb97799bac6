//! `mayfly.v1.Operator` on the admin socket: words in, words out. Decisions are the office's.

use std::sync::Arc;

use mayfly_core::{
    Act, Amendment, Author, Cause, Denial, InvalidId, Mandate, Record, Selector, Sequence, Serial,
    Span, TaskId, Timestamp, limits,
};
use mayfly_proto::mayfly::v1::{self as wire, operator_server::Operator};
use tonic::{Request, Response, Status};

use crate::{
    asking::{Asker, Object},
    bearer,
    guest::Guest,
    office::{self, BeginWish, HolderWish, Office, Order, Refusal, Target},
    status, story, tasks,
    view::view,
};

mod authority;
mod inventory;
mod profile;

/// Serves an [`Office`].
#[derive(Clone)]
pub struct OperatorService {
    office: Arc<dyn Office>,
}

impl std::fmt::Debug for OperatorService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OperatorService")
    }
}

impl OperatorService {
    /// Serves `office`.
    #[must_use]
    pub fn new(office: Arc<dyn Office>) -> Self {
        Self { office }
    }

    /// Lets in who may do `act` to `object`.
    async fn admit<T: Sync>(
        &self,
        request: &Request<T>,
        act: Act,
        object: Object,
    ) -> Result<Asker, Status> {
        let guest = request.extensions().get::<Arc<Guest>>();
        let guest = guest.ok_or_else(|| refused(Denial::AttestationFailed.into()))?;
        guest.check().map_err(|denial| refused(denial.into()))?;
        let shown = bearer::shown(&*self.office, guest, request.metadata()).await;
        let (asker, _lasts) = shown.map_err(refused)?;
        self.office.entitle(asker.clone(), act, object).await.map_err(refused)?;
        Ok(asker)
    }
}

#[tonic::async_trait]
impl Operator for OperatorService {
    async fn get_status(
        &self,
        request: Request<wire::GetStatusRequest>,
    ) -> Result<Response<wire::GetStatusResponse>, Status> {
        self.admit(&request, Act::Read, Object::Everything).await?;
        let report = self.office.report().await.map_err(refused)?;
        Ok(Response::new(wire::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: report.trust_domain,
            pid: std::process::id(),
            started_at_ms: report.started_at.0,
            workload_socket: report.workload_socket.display().to_string(),
            tasks_live: report.tasks_live,
            tasks_ended: report.tasks_ended,
            journal_position: report.position.0,
            issuing: report.issuing,
            notices: report.notices,
            authorities: report.authorities.into_iter().map(authority::line).collect(),
            policy_epoch: report.policy_epoch.0,
            node: report.node,
        }))
    }

    async fn begin_task(
        &self,
        request: Request<wire::BeginTaskRequest>,
    ) -> Result<Response<wire::BeginTaskResponse>, Status> {
        let wish = begin_wish(request.get_ref().clone()).map_err(|e| malformed(&e))?;
        let who = self.admit(&request, Act::Begin, tasks::object(&wish)).await?;
        tasks::check_holder(who.peer.is_some(), &wish.holder).map_err(refused)?;
        let author = author(&who, "")?;
        let begun = self.office.begin(wish, author).await.map_err(refused)?;
        Ok(Response::new(wire::BeginTaskResponse {
            task: begun.task.to_string(),
            version: begun.version.0,
            spiffe_id: begun.spiffe_id.to_string(),
            socket: begun.socket.display().to_string(),
        }))
    }

    async fn order_task(
        &self,
        request: Request<wire::OrderTaskRequest>,
    ) -> Result<Response<wire::OrderTaskResponse>, Status> {
        let task = TaskId::parse(&request.get_ref().task).map_err(|e| malformed(&e))?;
        let order = order(request.get_ref().order.clone()).map_err(|e| malformed(&e))?;
        let who = self.admit(&request, act(&order), Object::Task(task)).await?;
        let author = author(&who, &request.get_ref().reason)?;
        let version = self.office.order(task, order, author).await.map_err(refused)?.version;
        Ok(Response::new(wire::OrderTaskResponse { version: version.0 }))
    }

    async fn list_tasks(
        &self,
        request: Request<wire::ListTasksRequest>,
    ) -> Result<Response<wire::ListTasksResponse>, Status> {
        self.admit(&request, Act::Read, Object::Everything).await?;
        let request = request.into_inner();
        let mut tasks = self.office.list(request.ended).await.map_err(refused)?;
        if !request.profile.is_empty() {
            tasks.retain(|task| task.terms.profile == request.profile);
        }
        Ok(Response::new(wire::ListTasksResponse { tasks: tasks.into_iter().map(view).collect() }))
    }

    async fn show_task(
        &self,
        request: Request<wire::ShowTaskRequest>,
    ) -> Result<Response<wire::ShowTaskResponse>, Status> {
        self.admit(&request, Act::Read, Object::Everything).await?;
        let id = TaskId::parse(&request.into_inner().task).map_err(|e| malformed(&e))?;
        let (task, timeline) = self.office.show(id).await.map_err(refused)?;
        Ok(Response::new(wire::ShowTaskResponse {
            task: Some(view(task)),
            timeline: timeline.iter().map(entry).collect(),
        }))
    }

    async fn revoke(
        &self,
        request: Request<wire::RevokeRequest>,
    ) -> Result<Response<wire::RevokeResponse>, Status> {
        let who = self.admit(&request, Act::Revoke, Object::Everything).await?;
        let author = author(&who, &request.get_ref().reason)?;
        let request = request.into_inner();
        let target = target(request.target).map_err(|e| malformed(&e))?;
        let revoked = self.office.revoke(target, request.dry_run, author).await.map_err(refused)?;
        Ok(Response::new(wire::RevokeResponse {
            tasks: revoked.tasks,
            credentials: revoked.credentials,
        }))
    }

    async fn inventory(
        &self,
        request: Request<wire::InventoryRequest>,
    ) -> Result<Response<wire::InventoryResponse>, Status> {
        self.admit(&request, Act::Read, Object::Everything).await?;
        let (wish, query) = inventory::wish(request.into_inner())?;
        let found = self.office.inventory(wish).await.map_err(refused)?;
        Ok(Response::new(inventory::page(found, &query)))
    }

    async fn change_authority(
        &self,
        request: Request<wire::ChangeAuthorityRequest>,
    ) -> Result<Response<wire::ChangeAuthorityResponse>, Status> {
        let who = self.admit(&request, Act::ChangeAuthority, Object::Everything).await?;
        let author = author(&who, &request.get_ref().reason)?;
        let wish = authority::wish(request.into_inner()).map_err(|e| malformed(&e))?;
        let change = self.office.change_authority(wish, author).await.map_err(refused)?;
        Ok(Response::new(wire::ChangeAuthorityResponse {
            authorities: change.authorities.into_iter().map(authority::line).collect(),
            tasks: change.tasks,
        }))
    }

    async fn list_profiles(
        &self,
        request: Request<wire::ListProfilesRequest>,
    ) -> Result<Response<wire::ListProfilesResponse>, Status> {
        self.admit(&request, Act::ReadProfiles, Object::Everything).await?;
        let edition = self.office.profiles().await.map_err(refused)?;
        Ok(Response::new(wire::ListProfilesResponse {
            epoch: edition.epoch.0,
            profiles: edition.profiles.into_iter().map(profile::line).collect(),
            owners: edition.owners,
        }))
    }

    async fn apply_profiles(
        &self,
        request: Request<wire::ApplyProfilesRequest>,
    ) -> Result<Response<wire::ApplyProfilesResponse>, Status> {
        self.admit(&request, Act::ApplyProfiles, Object::Everything).await?;
        let applied = self.office.apply(request.into_inner().text).await.map_err(refused)?;
        Ok(Response::new(wire::ApplyProfilesResponse {
            epoch: applied.epoch.0,
            gone: applied.gone,
            left: applied.left,
            differences: applied.differences,
        }))
    }

    async fn diagnose(
        &self,
        request: Request<wire::DiagnoseRequest>,
    ) -> Result<Response<wire::DiagnoseResponse>, Status> {
        self.admit(&request, Act::Diagnose, Object::Everything).await?;
        let guest = request.extensions().get::<Arc<Guest>>();
        let peer = guest.and_then(|guest| guest.peer().cloned());
        let peer = peer.ok_or_else(|| refused(Denial::AttestationFailed.into()))?;
        let pid = request.into_inner().pid;
        let diagnosis =
            self.office.diagnose(peer, (pid != 0).then_some(pid)).await.map_err(refused)?;
        let explained = |one: office::Explained| wire::Explanation {
            profile: one.profile,
            matches: one.matches,
            missing: one.missing,
            instead: one.instead.iter().map(ToString::to_string).collect(),
        };
        Ok(Response::new(wire::DiagnoseResponse {
            pid: diagnosis.pid,
            evidence: diagnosis.evidence.iter().map(ToString::to_string).collect(),
            profiles: diagnosis.profiles.into_iter().map(explained).collect(),
        }))
    }
}

/// On whose word: whoever asks, as far as it was proved.
fn author(who: &Asker, why: &str) -> Result<Author, Status> {
    if why.len() > limits::AUTHOR_BYTES_MAX || why.chars().any(char::is_control) {
        let rule = "it has to be at most 1024 bytes long and without control characters";
        return Err(status::of_field(&field("reason", rule)));
    }
    Ok(Author { by: who.principal.to_string(), why: why.to_owned() })
}

fn refused(refusal: Refusal) -> Status {
    status::of_refusal(&refusal)
}

fn malformed(invalid: &InvalidId) -> Status {
    status::of_refusal(&Refusal { denial: Denial::Malformed, detail: invalid.to_string() })
}

const fn act(order: &Order) -> Act {
    match order {
        Order::End(_) => Act::End,
        Order::Heartbeat => Act::Heartbeat,
        Order::Amend(_) => Act::Amend,
        Order::Quarantine => Act::Quarantine,
        Order::Release => Act::Release,
    }
}

const fn field(what: &'static str, rule: &'static str) -> InvalidId {
    InvalidId { what, rule }
}

fn begin_wish(request: wire::BeginTaskRequest) -> Result<BeginWish, InvalidId> {
    use wire::begin_task_request::Holder as Wish;
    let pid = |pid: i32| {
        if pid > 0 { Ok(pid) } else { Err(field("holder", "a pid has to be positive")) }
    };
    let named = |name: String| {
        if name.is_empty() { Err(field("holder", "it has to have a name")) } else { Ok(name) }
    };
    let holder = match request.holder.ok_or(field("holder", "it is missing"))? {
        Wish::LineagePid(number) => HolderWish::Lineage(pid(number)?),
        Wish::ProcessPid(number) => HolderWish::Process(pid(number)?),
        Wish::Cgroup(path) if path.starts_with('/') => HolderWish::Cgroup(path),
        Wish::Cgroup(_) => return Err(field("holder", "a cgroup has to start with '/'")),
        Wish::SystemdUnit(name) => HolderWish::Unit(named(name)?),
        Wish::ContainerId(id) => HolderWish::Container(named(id)?),
        Wish::PodUid(uid) => HolderWish::Pod(named(uid)?),
        Wish::Socket(_) => HolderWish::Socket,
        Wish::LeaseOnly(_) => HolderWish::Lease,
    };
    let parent = Some(request.parent).filter(|parent| !parent.is_empty());
    Ok(BeginWish {
        profile: request.profile,
        holder,
        parent: parent.as_deref().map(TaskId::parse).transpose()?,
        delegated: false,
        owner: None,
        mandate: Mandate::of_intent(request.intent),
        key: None,
        deadline: (request.deadline_ms != 0).then_some(Timestamp(request.deadline_ms)),
        lease: (request.lease_ms != 0).then_some(Span(request.lease_ms)),
    })
}

fn order(order: Option<wire::order_task_request::Order>) -> Result<Order, InvalidId> {
    use wire::order_task_request::Order as Wish;
    match order.ok_or(field("order", "it is missing"))? {
        Wish::End(cause) => {
            let cause = Cause::parse(&cause);
            let by_hand = cause.filter(|cause| {
                matches!(
                    cause,
                    Cause::Completed | Cause::Failed | Cause::Revoked | Cause::Superseded
                )
            });
            let rule = "it has to be completed, failed, revoked or superseded";
            Ok(Order::End(by_hand.ok_or_else(|| field("cause", rule))?))
        }
        Wish::Heartbeat(_) => Ok(Order::Heartbeat),
        Wish::Amend(intent) => {
            Ok(Order::Amend(Amendment { intent: Some(intent), ..Amendment::default() }))
        }
        Wish::Quarantine(_) => Ok(Order::Quarantine),
        Wish::Release(_) => Ok(Order::Release),
    }
}

fn target(target: Option<wire::revoke_request::Target>) -> Result<Target, InvalidId> {
    use wire::revoke_request::Target as Wish;
    match target.ok_or(field("target", "it is missing"))? {
        Wish::Task(task) => Ok(Target::Task(TaskId::parse(&task)?)),
        Wish::Tree(task) => Ok(Target::Tree(TaskId::parse(&task)?)),
        Wish::Profile(profile) => Ok(Target::Profile(profile)),
        Wish::Owner(owner) => Ok(Target::Owner(owner)),
        Wish::Node(node) => Ok(Target::Node(node)),
        Wish::Selector(selector) => Ok(Target::Selector(Selector::parse(&selector)?)),
        Wish::Serial(serial) => Ok(Target::Serial(Serial::parse(&serial)?)),
    }
}

pub(crate) fn entry((sequence, record): &(Sequence, Record)) -> wire::Entry {
    let (what, detail) = story::tell(&record.fact, record.at);
    wire::Entry { position: sequence.0, at_ms: record.at.0, what: what.to_owned(), detail }
}
