//! For orchestrators in Rust: begin, renew, delegate, amend and end pieces of work.
//!
//! [`Client`] speaks `mayfly.v1.Tasks`, over the broker's `tasks.sock` or over TLS with our own SVID.
//! [`Begin`] says what a task is for and how far it may go; what comes back is [`Work`], which renews its
//! lease by itself for as long as it is held. To drop it without an end is to crash: the lease lapses,
//! and the task ends with everything below it.
//!
//! A call that was not answered is made again, with growing pauses and the same idempotency key, so a
//! lost answer begins one task and not two. A refusal is not: it carries the stable code and the remedy.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use mayfly::client::{Begin, Client, ClientError, Outcome};
//!
//! # async fn orchestrate() -> Result<(), ClientError> {
//! let client = Client::connect("unix:///run/mayfly/tasks.sock").await?;
//! let begin = Begin::profile("job")
//!     .intent("summarise the sales of May")
//!     .audiences(["warehouse", "mail"])
//!     .lease(Duration::from_secs(30));
//! let work = client.begin(begin).await?;
//!
//! // Whoever reaches this socket holds the task; give it to one sandbox.
//! let endpoint = work.endpoint();
//!
//! // A tool call: no more than it needs, and over with the work at the latest.
//! let tool = Begin::profile("tool").intent("read table sales").audiences(["warehouse"]).socket();
//! let call = work.delegate(tool).await?;
//! call.end(Outcome::Completed).await?;
//!
//! let ended = work.end(Outcome::Completed).await?;
//! assert_eq!(ended.cause, "completed");
//! # drop(endpoint); Ok(())
//! # }
//! ```

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use mayfly_core::SpiffeId;
use mayfly_proto::mayfly::v1::{
    self as wire, operator_client::OperatorClient, tasks_client::TasksClient,
};
use mayfly_verify::{
    Authorize, Endpoint, Follower, InvalidEndpoint, Party, Patience, WorkloadClient, X509Source,
};
use tokio::{
    net::{TcpStream, UnixStream},
    time::Instant,
};
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use crate::clock;

mod begin;
mod error;
mod work;

pub use begin::{Begin, Holder};
pub use error::{ClientError, Refusal};
pub use work::{Amend, Ended, Outcome, Work};

/// How long a call is made again while nobody answers.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pauses between two attempts, which double.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A page of a thousand tasks with all that they hold.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Where a broker keeps its own SVID.
const BROKER_PATH: &str = "/mayfly/broker";

/// The token that comes along with each call, if there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Badge(Option<MetadataValue<Ascii>>);

impl Interceptor for Badge {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// A channel on which a token may be shown.
pub(crate) type Door = InterceptedService<Channel, Badge>;

/// A connection to a broker's Tasks service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    badge: Badge,
    tasks: TasksClient<Door>,
    patience: Duration,
    /// What renews our certificate and hears whether the broker's still stands.
    _own: Option<Arc<Own>>,
}

/// Our side of mutual TLS.
#[derive(Debug)]
struct Own {
    _source: X509Source,
    _follower: Follower,
}

impl Client {
    /// Connects to `unix:///PATH/tasks.sock`, or to `https://HOST:PORT`, a broker's `[broker]` port: there
    /// our SVID is shown, which comes from the Workload API that `SPIFFE_ENDPOINT_SOCKET` names, and the
    /// broker's has to be of the same trust domain.
    ///
    /// # Errors
    /// [`ClientError`] says whether the address is wrong, nobody listens there, or we have no identity.
    pub async fn connect(uri: &str) -> Result<Self, ClientError> {
        let Some(address) = uri.strip_prefix("https://") else {
            return match Endpoint::parse(uri) {
                Ok(Endpoint::Unix(path)) => Self::local(path).await,
                Err(invalid) if uri.starts_with("unix:") => Err(invalid.into()),
                Ok(Endpoint::Tcp(_)) | Err(_) => {
                    let rule = "it has to be `unix:///PATH` or `https://HOST:PORT`";
                    Err(InvalidEndpoint::Uri { uri: uri.to_owned(), rule }.into())
                }
            };
        };
        Self::remote(address.trim_end_matches('/').to_owned()).await
    }

    /// A client over a channel that is there already.
    #[must_use]
    pub fn over(channel: Channel) -> Self {
        let badge = Badge::default();
        let tasks = tasks(&channel, &badge);
        Self { channel, badge, tasks, patience: PATIENCE, _own: None }
    }

    /// Shows a token of an issuer that the broker knows with each call: who asks is then its subject. On a
    /// unix socket alone; over a port the SVID says who asks.
    ///
    /// # Errors
    /// [`ClientError::Token`] if no header can hold it.
    pub fn with_token(mut self, token: &str) -> Result<Self, ClientError> {
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {}", token.trim()).parse().map_err(|_invalid| ClientError::Token)?;
        value.set_sensitive(true);
        self.badge = Badge(Some(value));
        self.tasks = tasks(&self.channel, &self.badge);
        Ok(self)
    }

    /// How long a call is made again while nobody answers; half a minute if nothing is said.
    #[must_use]
    pub const fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The operator's API behind the same door; it stays open for as long as this client is there.
    pub(crate) fn operator(&self) -> OperatorClient<Door> {
        let operator = OperatorClient::with_interceptor(self.channel.clone(), self.badge.clone());
        operator.max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    async fn local(path: PathBuf) -> Result<Self, ClientError> {
        // Asked once by hand, because a channel does not tell "nobody" from "not you".
        match UnixStream::connect(&path).await {
            Ok(_reachable) => Ok(Self::over(Endpoint::Unix(path).channel())),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                Err(ClientError::NotPermitted { path })
            }
            Err(_nobody) => Err(ClientError::NoBroker { path }),
        }
    }

    async fn remote(address: String) -> Result<Self, ClientError> {
        let endpoint = Endpoint::from_env()?;
        let source = WorkloadClient::new(&endpoint).watch_x509();
        let context = source.ready().await;
        let own = context.as_ref().and_then(|context| context.default_svid());
        let domain = own.map(|own| own.spiffe_id.trust_domain()).ok_or(ClientError::NoIdentity)?;
        let broker = SpiffeId::parse(&format!("spiffe://{domain}{BROKER_PATH}"));
        let broker = broker.map_err(|_never| ClientError::NoIdentity)?;
        let follower = Follower::connect(&endpoint, Patience::default());
        follower.ready().await;
        let party = Party::new(source.held(), Authorize::Id(broker), Arc::clone(follower.view()))
            .with_alpn(&[b"h2"]);
        let address: Arc<str> = address.into();
        let connector = tower::service_fn(move |_| {
            let (party, address) = (party.clone(), Arc::clone(&address));
            async move {
                let stream = TcpStream::connect(&*address).await?;
                stream.set_nodelay(true)?;
                party.connect(stream, clock::now()).await.map(TokioIo::new)
            }
        });
        // The URI only fills `:authority`; whom we mean, the party knows.
        let channel = tonic::transport::Endpoint::from_static("http://mayfly")
            .connect_with_connector_lazy(connector);
        let own = Own { _source: source, _follower: follower };
        Ok(Self { _own: Some(Arc::new(own)), ..Self::over(channel) })
    }

    /// Begins a task, and keeps its lease for as long as the [`Work`] is held.
    ///
    /// # Errors
    /// [`ClientError::Refused`] names what the profile demands and the wish lacks.
    pub async fn begin(&self, begin: Begin) -> Result<Work, ClientError> {
        let request = begin.into_request(clock::now());
        let lease = request.lease_ms;
        let begun = self.begin_once(request).await?;
        Ok(Work::of(self.clone(), begun, lease))
    }

    /// Begins a task and leaves its lease to the caller.
    pub(crate) async fn begin_once(
        &self,
        request: wire::BeginRequest,
    ) -> Result<wire::BeginResponse, ClientError> {
        self.ask(request, |mut tasks, request| async move { tasks.begin(request).await }).await
    }

    pub(crate) async fn delegate_once(
        &self,
        parent: String,
        child: wire::BeginRequest,
    ) -> Result<wire::BeginResponse, ClientError> {
        let request = wire::DelegateRequest { parent, child: Some(child) };
        self.ask(request, |mut tasks, request| async move { tasks.delegate(request).await }).await
    }

    /// One task as it is now.
    ///
    /// # Errors
    /// `task_unknown` if it is not remembered, or is none of ours.
    pub async fn get(&self, task: &str) -> Result<wire::TaskView, ClientError> {
        Ok(self.show(task, false).await?.task.unwrap_or_default())
    }

    pub(crate) async fn show(
        &self,
        task: &str,
        timeline: bool,
    ) -> Result<wire::GetResponse, ClientError> {
        let request = wire::GetRequest { task: task.to_owned(), timeline };
        self.ask(request, |mut tasks, request| async move { tasks.get(request).await }).await
    }

    /// One page of the tasks that match, and the token of the next one; empty: there are no more.
    ///
    /// # Errors
    /// `page_invalid` for a token of another question.
    pub async fn list(
        &self,
        filter: wire::Filter,
        page_size: u32,
        page_token: String,
    ) -> Result<(Vec<wire::TaskView>, String), ClientError> {
        let request = wire::ListRequest { filter: Some(filter), page_size, page_token };
        let answer = self
            .ask(request, |mut tasks, request| async move { tasks.list(request).await })
            .await?;
        Ok((answer.tasks, answer.next_page_token))
    }

    /// The tasks that match, then every change of one that does.
    ///
    /// # Errors
    /// As every call.
    pub async fn watch(
        &self,
        filter: wire::Filter,
    ) -> Result<tonic::Streaming<wire::WatchResponse>, ClientError> {
        let request = wire::WatchRequest { filter: Some(filter) };
        self.ask(request, |mut tasks, request| async move { tasks.watch(request).await }).await
    }

    /// Renews the lease of a task. [`Work`] does so by itself.
    ///
    /// # Errors
    /// `task_ended` once it is over.
    pub async fn heartbeat(&self, task: &str) -> Result<wire::HeartbeatResponse, ClientError> {
        let request = wire::HeartbeatRequest { task: task.to_owned() };
        self.ask(request, |mut tasks, request| async move { tasks.heartbeat(request).await }).await
    }

    pub(crate) async fn amend_once(
        &self,
        request: wire::AmendRequest,
    ) -> Result<wire::AmendResponse, ClientError> {
        // A second amendment would be a second version, so a lost answer is for the caller to look into.
        let answer = self.tasks.clone().amend(request).await;
        answer.map(Response::into_inner).map_err(ClientError::of)
    }

    pub(crate) async fn end_once(
        &self,
        request: wire::EndRequest,
    ) -> Result<wire::EndResponse, ClientError> {
        self.ask(request, |mut tasks, request| async move { tasks.end(request).await }).await
    }

    /// Calls until there is an answer or patience ends.
    async fn ask<Q, A, F>(
        &self,
        request: Q,
        call: impl Fn(TasksClient<Door>, Q) -> F,
    ) -> Result<A, ClientError>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let until = Instant::now() + self.patience;
        let mut pause = PAUSE_MIN;
        loop {
            let answer = call(self.tasks.clone(), request.clone());
            let status = match tokio::time::timeout_at(until, answer).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_elapsed) => return Err(ClientError::Silent { patience: self.patience }),
            };
            let wait = mayfly_verify::retry_hint(&status).unwrap_or(pause);
            if !is_passing(&status) || Instant::now() + wait >= until {
                return Err(ClientError::of(status));
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

fn tasks(channel: &Channel, badge: &Badge) -> TasksClient<Door> {
    let tasks = TasksClient::with_interceptor(channel.clone(), badge.clone());
    tasks.max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// Whether the same call may be answered differently in a moment: the broker says so, or none was heard.
fn is_passing(status: &Status) -> bool {
    status.code() == Code::Unavailable || error::is_unheard(status)
}
