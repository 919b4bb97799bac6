//! Envoy's Secret Discovery Service, version 3, on the same socket as the Workload API.
//!
//! An Envoy asks here for its certificate and for whom to trust, and is told again whenever either
//! changes. Revocation lists travel inside the trust bundles, because that is the only place in which
//! Envoy's SPIFFE validator looks for them; so the end of a task is pushed to every Envoy as soon as the
//! list that says so is signed. An Envoy keeps what it was told last, whatever becomes of the stream:
//! taking a secret back does nothing to it, and it is its peers that refuse an ended task.
//!
//! Each response holds everything that was asked for. It answers a request, or it is news; the client
//! says by its nonce which response it has seen, and a request with another nonce was overtaken.

mod node;
mod secret;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{Stream, stream};
use mayfly_core::{Denial, Timestamp};
use mayfly_proto::envoy::{
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    },
    rpc,
    secret::secret_discovery_service_server::SecretDiscoveryService,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

pub use self::secret::Names;
use self::{
    node::Form,
    secret::{Asked, Caller, Refusal, SECRET, Secret},
};
use crate::{
    desk::{Bundles, Introduced, X509Svid},
    limits, status,
    visit::{Pulled, Visit, Wake},
    wallet::Wallet,
    workload::Workload,
};

/// The service. Clones share everything, and their quota with the Workload API.
#[derive(Clone)]
pub struct Sds {
    workload: Workload,
    names: Arc<Names>,
    versions: Arc<Versions>,
}

impl fmt::Debug for Sds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sds").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Sds {
    /// A service that knows callers as `workload` does.
    #[must_use]
    pub fn new(workload: Workload, names: Names) -> Self {
        Self { workload, names: Arc::new(names), versions: Arc::default() }
    }

    fn talk<T>(&self, request: &Request<T>) -> Result<Talk, Status> {
        let visit = self.workload.visit(request)?;
        Ok(Talk::new(visit, Arc::clone(&self.names), Arc::clone(&self.versions)))
    }
}

/// Versions of what is said, counted over all streams. They begin with the hour, so that they rise from
/// one broker to the next as well.
#[derive(Debug, Default)]
struct Versions(AtomicU64);

impl Versions {
    fn next(&self, now: Timestamp) -> u64 {
        let next = |last: u64| now.0.max(last.saturating_add(1));
        let last =
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
        next(last.unwrap_or_else(|last| last))
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type StreamSecretsStream = Pulled<DiscoveryResponse>;
    type DeltaSecretsStream = Pulled<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let talk = self.talk(&request)?;
        Ok(Response::new(Box::pin(hold(talk, request.into_inner()))))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let mut talk = self.talk(&request)?;
        talk.hear(request.into_inner())?;
        talk.renew().await?;
        // The first answer is always news.
        let answer = talk.news()?.ok_or_else(|| status::of(Denial::NotServing))?;
        Ok(Response::new(answer))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(status::unimplemented_delta())
    }
}

/// Answers `requests` until the first error.
fn hold(
    talk: Talk,
    requests: Streaming<DiscoveryRequest>,
) -> impl Stream<Item = Result<DiscoveryResponse, Status>> + Send {
    stream::unfold(Some((talk, Requests(Some(requests)))), |talk| async move {
        let (mut talk, mut requests) = talk?;
        match talk.next(&mut requests).await {
            Ok(response) => Some((Ok(response), Some((talk, requests)))),
            Err(status) => Some((Err(status), None)),
        }
    })
}

/// Where requests come from; nowhere once the client has said that it will not ask again. It may go on
/// listening.
struct Requests(Option<Streaming<DiscoveryRequest>>);

impl Requests {
    /// The next request, or the word that there will be none; after that it waits for ever.
    async fn next(&mut self) -> Result<Option<DiscoveryRequest>, Status> {
        let Some(requests) = &mut self.0 else { return std::future::pending().await };
        // Whoever cut the connection hears nothing of this; for whoever sent what cannot be read it is
        // as good an end as any.
        let next = requests.message().await.map_err(|_cut| status::of(Denial::NotServing))?;
        if next.is_none() {
            self.0 = None;
        }
        Ok(next)
    }
}

/// One client, and what has been said so far.
struct Talk {
    visit: Visit,
    names: Arc<Names>,
    versions: Arc<Versions>,
    bundles: watch::Receiver<Arc<Bundles>>,
    wallet: Wallet<Option<X509Svid>>,
    /// Kept from the first request: later ones may leave it out.
    form: Option<Form>,
    asked: Option<Asked>,
    said: Option<Vec<(String, Secret)>>,
    /// Names have changed, so that an answer is due even if it says nothing new.
    owes: bool,
    /// The client could not use the last response.
    refused: bool,
    version: u64,
    responses: u64,
}

impl Talk {
    fn new(visit: Visit, names: Arc<Names>, versions: Arc<Versions>) -> Self {
        let bundles = visit.desk().bundles();
        Self {
            visit,
            names,
            versions,
            bundles,
            wallet: Wallet::new(),
            form: None,
            asked: None,
            said: None,
            owes: false,
            refused: false,
            version: 0,
            responses: 0,
        }
    }

    async fn next(&mut self, requests: &mut Requests) -> Result<DiscoveryResponse, Status> {
        loop {
            if self.asked.is_none() {
                self.first(requests).await?;
                continue;
            }
            if self.wallet.is_empty() {
                self.renew().await?;
            }
            if let Some(response) = self.news()? {
                return Ok(response);
            }
            let Self { visit, bundles, wallet, .. } = self;
            let wake = tokio::select! {
                biased;
                wake = wallet.wait(visit, bundles) => wake.map_err(status::of)?,
                request = requests.next() => {
                    if let Some(request) = request? {
                        self.hear(request)?;
                    }
                    continue;
                }
            };
            match wake {
                Wake::Due => self.renew_in_time().await?,
                Wake::News(_) => self.renew().await?,
                Wake::Bundles => {}
            }
        }
    }

    async fn first(&mut self, requests: &mut Requests) -> Result<(), Status> {
        let next = self.visit.unless_gone(async { Ok(requests.next().await) }).await;
        match next.map_err(status::of)?? {
            Some(request) => self.hear(request),
            None => Err(status::of(Denial::Malformed)),
        }
    }

    /// Takes a request, unless it was overtaken by a response that its sender had not seen.
    fn hear(&mut self, request: DiscoveryRequest) -> Result<(), Status> {
        if !request.type_url.is_empty() && request.type_url != SECRET {
            return Err(status::of_secret_type());
        }
        if self.responses > 0 && request.response_nonce != self.nonce() {
            tracing::debug!("a request was overtaken by a response");
            return Ok(());
        }
        // Once for each response, or a client could fill the log.
        if let Some(error) = request.error_detail.as_ref().filter(|_| !self.refused) {
            self.refused = true;
            log_refusal(&request, error);
        }
        let form = request.node.as_ref().map_or_else(Form::default, Form::of);
        self.form.get_or_insert(form);
        let asked = Asked::read(&self.names, request.resource_names);
        let asked = asked.ok_or_else(status::of_secret_name)?;
        if self.asked.as_ref() != Some(&asked) {
            self.asked = Some(asked);
            self.owes = true;
            // Certificates may be wanted that were not before. The desk keeps those in use, so this
            // costs a look and no signature.
            self.wallet = Wallet::new();
        }
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), Status> {
        let Self { visit, wallet, asked, .. } = self;
        let asked = asked.as_ref();
        wallet.renew(visit, |one| certificate(visit, asked, one)).await.map_err(status::of)
    }

    async fn renew_in_time(&mut self) -> Result<(), Status> {
        let Self { visit, wallet, asked, .. } = self;
        let asked = asked.as_ref();
        let ask = |one: &Introduced| certificate(visit, asked, one);
        wallet.renew_in_time(visit, ask).await.map_err(status::of)
    }

    /// What is to be said, if anything.
    fn news(&mut self) -> Result<Option<DiscoveryResponse>, Status> {
        let bundles = Arc::clone(&self.bundles.borrow_and_update());
        let form = self.form.unwrap_or_default();
        let Some(asked) = &self.asked else { return Ok(None) };
        let caller = Caller::new(self.wallet.kept(), &bundles, form).map_err(status::of)?;
        let secrets = caller.secrets(asked).map_err(|refusal| self.refuse(refusal))?;
        if !self.owes && self.said.as_ref() == Some(&secrets) {
            return Ok(None);
        }
        self.visit.check().map_err(status::of)?;
        let mut response = DiscoveryResponse::default();
        for (name, secret) in &secrets {
            response.resources.push(secret.pack(name).map_err(status::of)?);
        }
        self.said = Some(secrets);
        (self.owes, self.refused) = (false, false);
        self.version = self.versions.next(self.visit.now());
        self.responses += 1;
        response.version_info = self.version.to_string();
        SECRET.clone_into(&mut response.type_url);
        response.nonce = self.nonce();
        check_size(&response)?;
        Ok(Some(response))
    }

    /// Of this stream and of this response.
    fn nonce(&self) -> String {
        format!("{}-{}", self.version, self.responses)
    }

    /// A name that the caller has no right to is a wrong question. One that it had a right to before is
    /// the right question, and the answer has become no.
    fn refuse(&self, refusal: Refusal) -> Status {
        match refusal {
            Refusal::Denied(denial) => status::of(denial),
            Refusal::Name(name) => {
                let mut said = self.said.iter().flatten();
                if said.any(|(known, _)| *known == name) {
                    return status::of(Denial::IdentityNotHeld);
                }
                tracing::info!(name, "a secret of that name is not the caller's");
                status::of_secret_name()
            }
        }
    }
}

/// A certificate for `one`, where it is wanted.
fn certificate(
    visit: &Visit,
    asked: Option<&Asked>,
    one: &Introduced,
) -> crate::Reply<Option<X509Svid>> {
    if !asked.is_some_and(|asked| asked.wants(one)) {
        return Box::pin(std::future::ready(Ok(None)));
    }
    let svid = visit.desk().x509(one);
    Box::pin(async move { svid.await.map(Some) })
}

/// A client that could not use a response goes on with the one before; all that can be done is to say so.
fn log_refusal(request: &DiscoveryRequest, error: &rpc::Status) {
    let node = request.node.as_ref().map_or("", |node| node.id.as_str());
    let why: String = error.message.chars().take(limits::CLIENT_TEXT_CHARS_MAX).collect();
    let still = &request.version_info;
    tracing::warn!(node, still, code = error.code, ?why, "an envoy refused its secrets");
}

fn check_size(response: &DiscoveryResponse) -> Result<(), Status> {
    let bytes = prost::Message::encoded_len(response);
    if bytes <= limits::SECRETS_BYTES_MAX {
        return Ok(());
    }
    tracing::error!(bytes, "secrets are too long to be sent");
    Err(status::of(Denial::Overloaded))
}
