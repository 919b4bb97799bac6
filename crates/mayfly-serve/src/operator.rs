//! `mayfly.v1.Operator` on the admin socket: words in, words out. Decisions are the office's.

use std::sync::Arc;

use mayfly_core::{
    Binding, Cause, Credential, Holder, InvalidId, Kind, Record, Sequence, Serial, Span, State,
    Task, TaskId, Timestamp,
};
use mayfly_proto::mayfly::v1::{self as wire, operator_server::Operator};
use tonic::{Request, Response, Status};

use crate::{
    guest::Guest,
    office::{self, BeginWish, HolderWish, Office, Order, Refusal, Target},
    status, story,
};

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
}

#[tonic::async_trait]
impl Operator for OperatorService {
    async fn get_status(
        &self,
        _request: Request<wire::GetStatusRequest>,
    ) -> Result<Response<wire::GetStatusResponse>, Status> {
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
            authorities: report.authorities.into_iter().map(authority).collect(),
            policy_epoch: report.policy_epoch.0,
        }))
    }

    async fn begin_task(
        &self,
        request: Request<wire::BeginTaskRequest>,
    ) -> Result<Response<wire::BeginTaskResponse>, Status> {
        let wish = begin_wish(request.into_inner()).map_err(|e| status::of_field(&e))?;
        let begun = self.office.begin(wish).await.map_err(refused)?;
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
        let request = request.into_inner();
        let task = TaskId::parse(&request.task).map_err(|e| status::of_field(&e))?;
        let order = order(request.order).map_err(|e| status::of_field(&e))?;
        let version = self.office.order(task, order).await.map_err(refused)?;
        Ok(Response::new(wire::OrderTaskResponse { version: version.0 }))
    }

    async fn list_tasks(
        &self,
        request: Request<wire::ListTasksRequest>,
    ) -> Result<Response<wire::ListTasksResponse>, Status> {
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
        let id = TaskId::parse(&request.into_inner().task).map_err(|e| status::of_field(&e))?;
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
        let request = request.into_inner();
        let target = target(request.target).map_err(|e| status::of_field(&e))?;
        let revoked = self.office.revoke(target, request.dry_run).await.map_err(refused)?;
        Ok(Response::new(wire::RevokeResponse {
            tasks: revoked.tasks,
            credentials: revoked.credentials,
        }))
    }

    async fn list_profiles(
        &self,
        _request: Request<wire::ListProfilesRequest>,
    ) -> Result<Response<wire::ListProfilesResponse>, Status> {
        let (epoch, profiles) = self.office.profiles().await.map_err(refused)?;
        let profiles = profiles.into_iter().map(profile).collect();
        Ok(Response::new(wire::ListProfilesResponse { epoch: epoch.0, profiles }))
    }

    async fn apply_profiles(
        &self,
        request: Request<wire::ApplyProfilesRequest>,
    ) -> Result<Response<wire::ApplyProfilesResponse>, Status> {
        let (epoch, gone) = self.office.apply(request.into_inner().text).await.map_err(refused)?;
        Ok(Response::new(wire::ApplyProfilesResponse { epoch: epoch.0, gone }))
    }

    async fn diagnose(
        &self,
        request: Request<wire::DiagnoseRequest>,
    ) -> Result<Response<wire::DiagnoseResponse>, Status> {
        let guest = request.extensions().get::<Arc<Guest>>();
        let peer = guest.and_then(|guest| guest.peer().cloned());
        let peer = peer.ok_or_else(|| status::of(mayfly_core::Denial::AttestationFailed))?;
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

fn refused(refusal: Refusal) -> Status {
    if refusal.detail.is_empty() {
        status::of(refusal.denial)
    } else {
        Status::new(status::code(refusal.denial), format!("{}: {}", refusal.denial, refusal.detail))
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
        intent: request.intent,
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
        Wish::Amend(intent) => Ok(Order::Amend(intent)),
        Wish::Quarantine(_) => Ok(Order::Quarantine),
        Wish::Release(_) => Ok(Order::Release),
    }
}

fn target(target: Option<wire::revoke_request::Target>) -> Result<Target, InvalidId> {
    use wire::revoke_request::Target as Wish;
    match target.ok_or(field("target", "it is missing"))? {
        Wish::Task(task) => Ok(Target::Task(TaskId::parse(&task)?)),
        Wish::Profile(profile) => Ok(Target::Profile(profile)),
        Wish::Serial(serial) => Ok(Target::Serial(Serial::parse(&serial)?)),
    }
}

fn authority(line: office::AuthorityLine) -> wire::Authority {
    wire::Authority {
        kind: line.kind.to_owned(),
        id: line.id,
        state: line.state.to_owned(),
        not_after_ms: line.not_after.0,
    }
}

fn profile(line: office::ProfileLine) -> wire::ProfileView {
    wire::ProfileView {
        name: line.terms.profile,
        path: line.terms.path,
        owner: line.terms.owner,
        binding: line.terms.binding.name().to_owned(),
        selectors: line.selectors.iter().map(ToString::to_string).collect(),
        x509_ttl_ms: line.terms.x509_ttl.0,
        jwt_ttl_ms: line.terms.jwt_ttl.0,
        hint: line.terms.hint,
        stable_identity: line.terms.stable_identity,
    }
}

fn view(task: Task) -> wire::TaskView {
    let (cause, ended_at, exit) = match task.state {
        State::Ended { cause, at, exit } => (cause.code(), at.0, exit),
        State::Active | State::Quarantined { .. } => ("", 0, None),
    };
    let (binding, holder) = match &task.holder {
        Holder::Process(key) => (Binding::Process, format!("pid {}", key.pid)),
        Holder::Lineage(key) => (Binding::Lineage, format!("pid {} and below", key.pid)),
        Holder::Cgroup(path) => (Binding::Cgroup, path.clone()),
        Holder::Unit(unit) => (Binding::Systemd, unit.name.clone()),
        Holder::Container(container) => (Binding::Container, container.id.clone()),
        Holder::Pod(pod) => (Binding::Pod, pod.uid.clone()),
        Holder::Socket => (Binding::Socket, "its own socket".to_owned()),
        Holder::Lease => (Binding::Lease, "its lease".to_owned()),
    };
    wire::TaskView {
        task: task.id.to_string(),
        version: task.version.0,
        state: task.state.name().to_owned(),
        profile: task.terms.profile,
        spiffe_id: task.spiffe_id.to_string(),
        owner: task.terms.owner,
        intent: task.intent,
        binding: binding.name().to_owned(),
        holder,
        parent: task.parent.map(|parent| parent.to_string()).unwrap_or_default(),
        begun_at_ms: task.begun_at.0,
        deadline_ms: task.deadline.map_or(0, |at| at.0),
        lease_until_ms: task.lease_until.map_or(0, |at| at.0),
        cause: cause.to_owned(),
        ended_at_ms: ended_at,
        exit,
        credentials: task.credentials.iter().map(credential).collect(),
    }
}

fn credential(credential: &Credential) -> wire::CredentialView {
    wire::CredentialView {
        serial: credential.serial.to_string(),
        kind: match credential.kind {
            Kind::X509 => "x509",
            Kind::Jwt => "jwt",
        }
        .to_owned(),
        version: credential.version.0,
        not_after_ms: credential.not_after.0,
        revoked_at_ms: credential.revoked_at.map_or(0, |at| at.0),
    }
}

fn entry((sequence, record): &(Sequence, Record)) -> wire::Entry {
    let (what, detail) = story::tell(&record.fact);
    wire::Entry { position: sequence.0, at_ms: record.at.0, what: what.to_owned(), detail }
}
