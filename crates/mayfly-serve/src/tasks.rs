//! `mayfly.v1.Tasks`: what orchestrators ask. Words in, words out; rights and decisions are the office's.
//!
//! A caller that goes away, or whose deadline comes, stops waiting. What it wished is carried out once
//! or not at all, and it learns which by telling the wish again under the same idempotency key.

mod page;
mod wish;

use std::{fmt, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::join_all, stream};
use mayfly_core::{Act, Author, Denial, Span, State, TaskId, limits as core_limits};
use mayfly_proto::mayfly::v1::{self as wire, outcome, tasks_server::Tasks, wish::Wish};
use prost::Message as _;
use tokio::time::sleep;
use tonic::{Request, Response, Status};

use crate::{
    asking::{Asker, Object, Seen, Watching},
    bearer,
    guest::Guest,
    limits,
    office::{BeginWish, HolderWish, Office, Order, Refusal, Standing},
    operator,
    quota::{Quota, Seat},
    status,
    view::view,
    visit::Pulled,
};

/// The service. Clones share everything.
#[derive(Clone)]
pub struct TasksService {
    office: Arc<dyn Office>,
    callers: Arc<Quota>,
}

impl fmt::Debug for TasksService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TasksService").field("callers", &self.callers).finish_non_exhaustive()
    }
}

/// One caller, for as long as its call lasts.
struct Caller {
    guest: Arc<Guest>,
    asker: Asker,
    /// How long its token still counts, if it shows one.
    lasts: Option<Span>,
    _seat: Seat,
}

fn refusal(denial: Denial, detail: impl Into<String>) -> Refusal {
    Refusal { denial, detail: detail.into() }
}

impl TasksService {
    /// Serves `office`.
    #[must_use]
    pub fn new(office: Arc<dyn Office>) -> Self {
        Self { office, callers: Quota::new(limits::CALLS_MAX, limits::CALLS_PER_USER_MAX) }
    }

    async fn admit<T: Sync>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let no = |denial: Denial| status::of_refusal(&denial.into());
        let guest = request.extensions().get::<Arc<Guest>>();
        let guest = Arc::clone(guest.ok_or_else(|| no(Denial::AttestationFailed))?);
        guest.check().map_err(no)?;
        let seat = self.callers.take(guest.user()).ok_or_else(|| no(Denial::Overloaded))?;
        let shown = bearer::shown(&*self.office, &guest, request.metadata()).await;
        let (asker, lasts) = shown.map_err(|refusal| status::of_refusal(&refusal))?;
        Ok(Caller { asker, guest, lasts, _seat: seat })
    }

    async fn begin_for(
        &self,
        who: &Asker,
        request: wire::BeginRequest,
        below: Option<TaskId>,
    ) -> Result<wire::BeginResponse, Refusal> {
        let by = who.principal.to_string();
        let wish = wish::begin(request, below, &by)?;
        check_holder(who.peer.is_some(), &wish.holder)?;
        let act = if wish.delegated { Act::Delegate } else { Act::Begin };
        let object = object(&wish);
        self.office.entitle(who.clone(), act, object).await?;
        let begun = self.office.begin(wish, Author { by, why: String::new() }).await?;
        Ok(wire::BeginResponse {
            task: begun.task.to_string(),
            version: begun.version.0,
            spiffe_id: begun.spiffe_id.to_string(),
            socket: begun.socket.display().to_string(),
            deadline_ms: begun.deadline.map_or(0, |at| at.0),
            lease_until_ms: begun.lease_until.map_or(0, |at| at.0),
        })
    }

    async fn delegate_for(
        &self,
        who: &Asker,
        request: wire::DelegateRequest,
    ) -> Result<wire::BeginResponse, Refusal> {
        let parent = wish::task("parent", &request.parent)?;
        let child = request.child.ok_or_else(|| wish::wrong("child", "it is missing"))?;
        if !child.parent.is_empty() {
            return Err(wish::wrong("child", "its own `parent` has to be empty"));
        }
        self.begin_for(who, child, Some(parent)).await
    }

    async fn heartbeat_for(
        &self,
        who: &Asker,
        request: wire::HeartbeatRequest,
    ) -> Result<wire::HeartbeatResponse, Refusal> {
        let id = wish::task("task", &request.task)?;
        let task = self.ordered(who, id, (Act::Heartbeat, Order::Heartbeat, "")).await?;
        let lease_until_ms = task.lease_until.map_or(0, |at| at.0);
        Ok(wire::HeartbeatResponse { version: task.version.0, lease_until_ms })
    }

    async fn amend_for(
        &self,
        who: &Asker,
        request: wire::AmendRequest,
    ) -> Result<wire::AmendResponse, Refusal> {
        let id = wish::task("task", &request.task)?;
        let reason = request.reason.clone();
        let order = Order::Amend(wish::amendment(request));
        self.entitled(who, Act::Amend, id).await?;
        let author = author(who, &reason)?;
        let version = self.office.order(id, order, author).await?.version;
        Ok(wire::AmendResponse { version: version.0 })
    }

    async fn end_for(
        &self,
        who: &Asker,
        request: wire::EndRequest,
    ) -> Result<wire::EndResponse, Refusal> {
        let id = wish::task("task", &request.task)?;
        let order = Order::End(wish::cause(&request.cause)?);
        let task = self.ordered(who, id, (Act::End, order, &request.reason)).await?;
        let (cause, ended_at_ms) = match task.state {
            State::Ended { cause, at, .. } => (cause.code(), at.0),
            State::Quarantined { .. } | State::Active => ("failed", 0),
        };
        let (state, cause) = (task.state.name().to_owned(), cause.to_owned());
        Ok(wire::EndResponse { version: task.version.0, state, cause, ended_at_ms })
    }

    async fn entitled(&self, who: &Asker, act: Act, task: TaskId) -> Result<(), Refusal> {
        self.office.entitle(who.clone(), act, Object::Task(task)).await
    }

    async fn ordered(
        &self,
        who: &Asker,
        id: TaskId,
        (act, order, reason): (Act, Order, &str),
    ) -> Result<Standing, Refusal> {
        self.entitled(who, act, id).await?;
        self.office.order(id, order, author(who, reason)?).await
    }

    async fn carry_out(&self, who: &Asker, wish: Option<Wish>) -> wire::Outcome {
        use outcome::Outcome as Done;
        let done = match wish {
            Some(Wish::Begin(begin)) => self.begin_for(who, begin, None).await.map(Done::Begun),
            Some(Wish::Delegate(delegate)) => {
                self.delegate_for(who, delegate).await.map(Done::Begun)
            }
            Some(Wish::Heartbeat(beat)) => self.heartbeat_for(who, beat).await.map(Done::Heartbeat),
            Some(Wish::Amend(amend)) => self.amend_for(who, amend).await.map(Done::Amended),
            Some(Wish::End(end)) => self.end_for(who, end).await.map(Done::Ended),
            None => Err(wish::wrong("wish", "it is missing")),
        };
        let done = done.unwrap_or_else(|refusal| {
            let status = status::of_refusal(&refusal);
            Done::Refused(wire::Refusal {
                status: status.code().into(),
                code: refusal.denial.code().to_owned(),
                message: status.message().to_owned(),
            })
        });
        wire::Outcome { outcome: Some(done) }
    }

    async fn page(
        &self,
        who: Asker,
        request: wire::ListRequest,
    ) -> Result<wire::ListResponse, Refusal> {
        let (query, digest) = page::query(request.filter)?;
        let after = page::after(&request.page_token, digest)?;
        let most = match request.page_size {
            0 => limits::PAGE_DEFAULT,
            size if size <= limits::PAGE_MAX => size,
            _ => return Err(wish::wrong("page_size", "it has to be 1 to 1000")),
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let found = self.office.find(who, query, (after, most)).await?;
        let (mut last, mut more, mut bytes) = (None, found.more, 0);
        let mut tasks = Vec::with_capacity(found.tasks.len());
        for task in found.tasks {
            let id = task.id;
            let view = view(task);
            bytes += view.encoded_len();
            if bytes > limits::PAGE_BYTES_MAX && !tasks.is_empty() {
                more = true;
                break;
            }
            tasks.push(view);
            last = Some(id);
        }
        let next = last.filter(|_| more).map(|last| page::token(digest, last));
        Ok(wire::ListResponse { tasks, next_page_token: next.unwrap_or_default() })
    }
}

#[tonic::async_trait]
impl Tasks for TasksService {
    type WatchStream = Pulled<wire::WatchResponse>;

    async fn begin(
        &self,
        request: Request<wire::BeginRequest>,
    ) -> Result<Response<wire::BeginResponse>, Status> {
        let caller = self.admit(&request).await?;
        answer(self.begin_for(&caller.asker, request.into_inner(), None).await)
    }

    async fn delegate(
        &self,
        request: Request<wire::DelegateRequest>,
    ) -> Result<Response<wire::BeginResponse>, Status> {
        let caller = self.admit(&request).await?;
        answer(self.delegate_for(&caller.asker, request.into_inner()).await)
    }

    async fn get(
        &self,
        request: Request<wire::GetRequest>,
    ) -> Result<Response<wire::GetResponse>, Status> {
        let caller = self.admit(&request).await?;
        let request = request.into_inner();
        let got = async {
            let id = wish::task("task", &request.task)?;
            self.entitled(&caller.asker, Act::Read, id).await?;
            let (task, story) = if request.timeline {
                self.office.show(id).await?
            } else {
                (self.office.look(id).await?, Vec::new())
            };
            let timeline = story.iter().map(operator::entry).collect();
            Ok(wire::GetResponse { task: Some(view(task)), timeline })
        };
        answer(got.await)
    }

    async fn list(
        &self,
        request: Request<wire::ListRequest>,
    ) -> Result<Response<wire::ListResponse>, Status> {
        let caller = self.admit(&request).await?;
        answer(self.page(caller.asker.clone(), request.into_inner()).await)
    }

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = self.admit(&request).await?;
        let watching = async {
            let (query, _) = page::query(request.into_inner().filter)?;
            self.office.watch(caller.asker.clone(), query).await
        };
        let watching = watching.await.map_err(|refusal| status::of_refusal(&refusal))?;
        Ok(Response::new(told(watching, caller)))
    }

    async fn heartbeat(
        &self,
        request: Request<wire::HeartbeatRequest>,
    ) -> Result<Response<wire::HeartbeatResponse>, Status> {
        let caller = self.admit(&request).await?;
        answer(self.heartbeat_for(&caller.asker, request.into_inner()).await)
    }

    async fn amend(
        &self,
        request: Request<wire::AmendRequest>,
    ) -> Result<Response<wire::AmendResponse>, Status> {
        let caller = self.admit(&request).await?;
        answer(self.amend_for(&caller.asker, request.into_inner()).await)
    }

    async fn end(
        &self,
        request: Request<wire::EndRequest>,
    ) -> Result<Response<wire::EndResponse>, Status> {
        let caller = self.admit(&request).await?;
        answer(self.end_for(&caller.asker, request.into_inner()).await)
    }

    async fn batch(
        &self,
        request: Request<wire::BatchRequest>,
    ) -> Result<Response<wire::BatchResponse>, Status> {
        let caller = self.admit(&request).await?;
        let wishes = request.into_inner().wishes;
        if wishes.len() > limits::WISHES_MAX {
            return answer(Err(wish::wrong("wishes", "there may be 1000 at once")));
        }
        // All at once, so that one write serves them.
        let all = wishes.into_iter().map(|wish| self.carry_out(&caller.asker, wish.wish));
        Ok(Response::new(wire::BatchResponse { outcomes: join_all(all).await }))
    }
}

fn answer<T>(done: Result<T, Refusal>) -> Result<Response<T>, Status> {
    done.map(Response::new).map_err(|refusal| status::of_refusal(&refusal))
}

/// What a watch says, for as long as its caller is there. It never ends well: a client that reads an end
/// without an error takes the work to be done.
fn told(watching: Watching, caller: Caller) -> Pulled<wire::WatchResponse> {
    let expired = Box::pin(expiry(caller.lasts));
    Box::pin(stream::unfold(Some((watching, caller, expired)), |state| async move {
        let (mut watching, caller, mut expired) = state?;
        let seen = tokio::select! {
            biased;
            denial = caller.guest.gone() => Err(denial),
            () = &mut expired => Err(Denial::OidcTokenInvalid),
            seen = watching.next() => seen.unwrap_or(Err(Denial::NotServing)),
        };
        match seen {
            Ok(seen) => Some((Ok(response(seen)), Some((watching, caller, expired)))),
            Err(denial) => Some((Err(status::of_refusal(&denial.into())), None)),
        }
    }))
}

/// Over when a token has expired that lasts this long; never, where none was shown.
async fn expiry(lasts: Option<Span>) {
    match lasts {
        Some(lasts) => sleep(Duration::from_millis(lasts.as_millis())).await,
        None => std::future::pending().await,
    }
}

fn response(seen: Seen) -> wire::WatchResponse {
    use wire::watch_response::What;
    match seen {
        Seen::Synced => {
            wire::WatchResponse { what: Some(What::Synced(true)), ..Default::default() }
        }
        Seen::Task { task, change } => {
            let (change, position) = change.map_or(("", 0), |(word, at)| (word, at.0));
            let what = Some(What::Task(view(*task)));
            wire::WatchResponse { what, change: change.to_owned(), position }
        }
    }
}

fn author(who: &Asker, reason: &str) -> Result<Author, Refusal> {
    if reason.len() > core_limits::AUTHOR_BYTES_MAX {
        return Err(wish::wrong("reason", "it may have 1024 bytes"));
    }
    Ok(Author { by: who.principal.to_string(), why: reason.to_owned() })
}

/// What a wish to begin is about.
pub(crate) fn object(wish: &BeginWish) -> Object {
    let profile = wish.profile.clone();
    match wish.parent {
        Some(parent) => Object::Child { parent, profile },
        None => Object::Profile(profile),
    }
}

/// Whether a caller who is here, or is not, may name this holder: a number or a path of one machine means
/// nothing on another, or something else.
pub(crate) fn check_holder(is_here: bool, holder: &HolderWish) -> Result<(), Refusal> {
    let is_anywhere = match holder {
        HolderWish::Lineage(_)
        | HolderWish::Process(_)
        | HolderWish::Cgroup(_)
        | HolderWish::Unit(_)
        | HolderWish::Container(_)
        | HolderWish::Pod(_) => false,
        HolderWish::Socket | HolderWish::Lease | HolderWish::Job => true,
    };
    if is_here || is_anywhere {
        return Ok(());
    }
    let why = "a number or a path of this machine means nothing on another";
    Err(refusal(Denial::HolderUnfit, why))
}
