//! The Task API's client, and what its refusals say to programs.

use std::{path::Path, time::Duration};

use hyper_util::rt::TokioIo;
use mayfly_proto::{
    google::rpc,
    mayfly::v1::{
        self as wire, holder_wish::Holder, operator_client::OperatorClient,
        tasks_client::TasksClient,
    },
};
use prost::Message as _;
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint, Uri},
};

use crate::{
    actor::Deed,
    common::{Site, within},
};

/// Where an actor looks for the Task API.
pub(crate) const SOCKET: &str = "MAYFLY_TEST_TASKS";

/// Orchestrators and operators that are somebody else may connect there.
pub(crate) fn socket(site: &Site) -> std::path::PathBuf {
    site.data().join("tasks.sock")
}

pub(crate) fn channel(path: &Path) -> Channel {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

/// One orchestrator.
#[derive(Clone, Debug)]
pub(crate) struct Api(pub(crate) TasksClient<Channel>);

type Answer<T> = Result<T, Status>;

impl Api {
    /// As this very process.
    pub(crate) fn of(site: &Site) -> Self {
        Self::over(channel(&socket(site)))
    }

    pub(crate) fn over(channel: Channel) -> Self {
        Self(TasksClient::new(channel).max_encoding_message_size(16 * 1024 * 1024))
    }

    pub(crate) async fn begin(&self, wish: wire::BeginRequest) -> Answer<wire::BeginResponse> {
        let answer = within("an answer", self.0.clone().begin(wish)).await;
        Ok(answer?.into_inner())
    }

    pub(crate) async fn delegate(
        &self,
        parent: &str,
        child: wire::BeginRequest,
    ) -> Answer<wire::BeginResponse> {
        let request = wire::DelegateRequest { parent: parent.to_owned(), child: Some(child) };
        Ok(within("an answer", self.0.clone().delegate(request)).await?.into_inner())
    }

    pub(crate) async fn get(&self, task: &str) -> Answer<wire::TaskView> {
        let request = wire::GetRequest { task: task.to_owned(), timeline: false };
        let got = within("an answer", self.0.clone().get(request)).await?.into_inner();
        Ok(got.task.unwrap_or_default())
    }

    pub(crate) async fn heartbeat(&self, task: &str) -> Answer<wire::HeartbeatResponse> {
        let request = wire::HeartbeatRequest { task: task.to_owned() };
        Ok(within("an answer", self.0.clone().heartbeat(request)).await?.into_inner())
    }

    pub(crate) async fn amend(&self, request: wire::AmendRequest) -> Answer<u32> {
        Ok(within("an answer", self.0.clone().amend(request)).await?.into_inner().version)
    }

    pub(crate) async fn end(&self, task: &str, cause: &str) -> Answer<wire::EndResponse> {
        let (task, cause) = (task.to_owned(), cause.to_owned());
        let request = wire::EndRequest { task, cause, reason: "the test says so".to_owned() };
        Ok(within("an answer", self.0.clone().end(request)).await?.into_inner())
    }

    pub(crate) async fn batch(&self, wishes: Vec<wire::wish::Wish>) -> Answer<Vec<Outcome>> {
        let wish = |wish| wire::Wish { wish: Some(wish) };
        let request = wire::BatchRequest { wishes: wishes.into_iter().map(wish).collect() };
        let answer = within("an answer", self.0.clone().batch(request)).await?.into_inner();
        let outcome = |one: wire::Outcome| one.outcome.expect("every wish has an outcome");
        Ok(answer.outcomes.into_iter().map(outcome).collect())
    }

    pub(crate) async fn page(
        &self,
        filter: wire::Filter,
        (page_size, page_token): (u32, &str),
    ) -> Answer<wire::ListResponse> {
        let page_token = page_token.to_owned();
        let request = wire::ListRequest { filter: Some(filter), page_size, page_token };
        Ok(within("an answer", self.0.clone().list(request)).await?.into_inner())
    }

    /// Everything that matches.
    pub(crate) async fn list(&self, filter: wire::Filter) -> Vec<wire::TaskView> {
        let (mut all, mut token) = (Vec::new(), String::new());
        loop {
            let page = self.page(filter.clone(), (1000, &token)).await.expect("a page");
            all.extend(page.tasks);
            token = page.next_page_token;
            if token.is_empty() {
                return all;
            }
        }
    }

    pub(crate) async fn watch(
        &self,
        filter: wire::Filter,
    ) -> Answer<tonic::Streaming<wire::WatchResponse>> {
        let request = wire::WatchRequest { filter: Some(filter) };
        Ok(within("an answer", self.0.clone().watch(request)).await?.into_inner())
    }

    /// Begins, and waits no longer than `patience`.
    pub(crate) async fn begin_within(
        &self,
        wish: wire::BeginRequest,
        patience: Duration,
    ) -> Answer<wire::BeginResponse> {
        let mut request = Request::new(wish);
        request.set_timeout(patience);
        Ok(within("an answer", self.0.clone().begin(request)).await?.into_inner())
    }
}

pub(crate) use wire::outcome::Outcome;

/// The operator API on the same socket.
pub(crate) fn operator_at(path: &Path) -> OperatorClient<Channel> {
    OperatorClient::new(channel(path))
}

/// What a task is begun with, where nothing else is said.
pub(crate) fn wish(profile: &str, holder: Holder) -> wire::BeginRequest {
    wire::BeginRequest {
        profile: profile.to_owned(),
        holder: Some(wire::HolderWish { holder: Some(holder) }),
        ..wire::BeginRequest::default()
    }
}

/// The same, with a scope.
pub(crate) fn scoped(profile: &str, scope: wire::Scope) -> wire::BeginRequest {
    let declaration = wire::Declaration { scope: Some(scope), ..wire::Declaration::default() };
    wire::BeginRequest { declaration: Some(declaration), ..wish(profile, Holder::Socket(true)) }
}

#[expect(clippy::unnecessary_wraps, reason = "it is what stands in a scope")]
pub(crate) fn names(names: &[&str]) -> Option<wire::Names> {
    Some(wire::Names { names: names.iter().map(|name| (*name).to_owned()).collect() })
}

/// The code of a refusal and its detail, as programs read them; people are told the same.
pub(crate) fn refused<T: std::fmt::Debug>(answer: Answer<T>) -> (Code, String, String) {
    let status = answer.expect_err("a refusal");
    let details = rpc::Status::decode(status.details()).expect("details");
    let any = details.details.first().expect("one detail");
    assert_eq!(any.type_url, "type.googleapis.com/google.rpc.ErrorInfo");
    let info = rpc::ErrorInfo::decode(any.value.as_slice()).expect("an ErrorInfo");
    let told = |key: &str| info.metadata.get(key).cloned().unwrap_or_default();
    let code = told("code");
    assert_eq!((info.domain.as_str(), info.reason), ("mayfly", code.to_uppercase()));
    assert!(status.message().starts_with(&format!("{code}: ")), "{status:?}");
    assert!(!told("remedy").is_empty(), "{status:?}");
    (status.code(), code, told("detail"))
}

/// The code alone.
pub(crate) fn code<T: std::fmt::Debug>(answer: Answer<T>) -> String {
    refused(answer).1
}

/// One deed of an actor, at the socket that its environment names: the task that it was about, or how many
/// there are.
pub(crate) async fn attempt(deed: &Deed) -> Result<String, Status> {
    let path = std::path::PathBuf::from(std::env::var_os(SOCKET).expect("a socket"));
    let (api, mut operator) = (Api::over(channel(&path)), operator_at(&path));
    let scope = wire::Scope { actions: names(&["read"]), ..wire::Scope::default() };
    let order = |task: &String, order| wire::OrderTaskRequest {
        task: task.clone(),
        order: Some(order),
        reason: String::new(),
    };
    Ok(match deed.clone() {
        Deed::Begin { profile } => api.begin(wish(&profile, Holder::Socket(true))).await?.task,
        Deed::Delegate { parent, profile } => {
            api.delegate(&parent, scoped(&profile, scope)).await?.task
        }
        Deed::Get { task } => api.get(&task).await?.task,
        Deed::Heartbeat { task } => {
            api.heartbeat(&task).await?;
            task
        }
        Deed::Amend { task } => {
            let intent = Some("another".to_owned());
            let request = wire::AmendRequest { task: task.clone(), intent, ..Default::default() };
            api.amend(request).await?;
            task
        }
        Deed::End { task } => {
            api.end(&task, "").await?;
            task
        }
        Deed::List => {
            let page = api.page(wire::Filter::default(), (1000, "")).await?;
            page.tasks.len().to_string()
        }
        Deed::Quarantine { task } => {
            operator
                .order_task(order(&task, wire::order_task_request::Order::Quarantine(true)))
                .await?;
            task
        }
        Deed::Release { task } => {
            operator
                .order_task(order(&task, wire::order_task_request::Order::Release(true)))
                .await?;
            task
        }
        Deed::Profiles => {
            let all = operator.list_profiles(wire::ListProfilesRequest {}).await?.into_inner();
            all.profiles.len().to_string()
        }
    })
}
