//! Hears what the Workload API says, and keeps the last of it.
//!
//! Three things are asked for: identities, which are pushed; authorities and revocation lists, which
//! are pushed on a stream of their own, because a changed list is no news on the stream of identities
//! (decision 0005); and tokens, which are fetched again at half of their lives. Each has its own task,
//! all of them write into one [`Heard`], and whoever looks sees the latest: nothing queues.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use mayfly_core::{Span, SpiffeId, Timestamp, TrustDomain};
use mayfly_proto::spiffe::workload::{
    self as wire, spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use mayfly_verify::{Bundle, Endpoint, WorkloadClient, WorkloadError, X509Context};
use serde::Deserialize;
use tokio::{sync::watch, task::JoinSet};
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Channel};
use zeroize::Zeroizing;

use crate::clock;

/// First and longest pause before asking again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// The least time between two tokens, whatever their dates say.
const RENEWAL_MIN: Span = Span(500);

/// What was heard last, of everything.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// The caller's identities.
    pub identities: Option<Arc<X509Context>>,
    /// Authorities and revocation lists.
    pub bundles: Option<Arc<Bundles>>,
    /// Tokens by audience.
    pub tokens: BTreeMap<String, Token>,
    /// The broker's *no*, as `code: remedy`.
    pub refused: Option<String>,
    /// The broker says that the question is wrong; asking again would not make it right.
    pub hopeless: Option<String>,
    /// Why there is no connection, or no token.
    pub trouble: Option<String>,
}

/// Authorities by trust domain, and the own domain's revocation lists.
#[derive(Clone, Debug, Default)]
pub struct Bundles {
    /// The own trust domain's among them.
    pub domains: BTreeMap<TrustDomain, Bundle>,
    /// As DER, one per authority.
    pub crls: Vec<Vec<u8>>,
}

/// A token and when it ends.
#[derive(Clone)]
pub struct Token {
    /// In compact serialisation.
    pub text: Zeroizing<String>,
    /// From then on it is refused.
    pub expires_at: Timestamp,
    /// When to fetch the next one.
    pub renew_at: Timestamp,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// The tasks that listen, until this is dropped.
#[derive(Debug)]
pub struct Following {
    heard: watch::Receiver<Heard>,
    _tasks: JoinSet<()>,
}

impl Following {
    /// Begins to listen. To be called within a tokio runtime.
    #[must_use]
    pub fn start(endpoint: &Endpoint, audiences: Vec<String>) -> Self {
        let (sender, heard) = watch::channel(Heard::default());
        let ear = Ear { api: SpiffeWorkloadApiClient::new(endpoint.channel()), heard: sender };
        let mut tasks = JoinSet::new();
        tasks.spawn(ear.clone().identities());
        tasks.spawn(ear.clone().bundles());
        if !audiences.is_empty() {
            tasks.spawn(ear.tokens(WorkloadClient::new(endpoint), audiences));
        }
        Self { heard, _tasks: tasks }
    }

    /// What was heard last.
    #[must_use]
    pub fn heard(&mut self) -> Heard {
        self.heard.borrow_and_update().clone()
    }

    /// Waits for something that [`Self::heard`] has not shown yet.
    pub async fn changed(&mut self) {
        if self.heard.changed().await.is_err() {
            // The tasks never end; were they gone, there would be nothing to wait for.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the broker says no.
    pub async fn refused(&self) {
        let mut heard = self.heard.clone();
        if heard.wait_for(|heard| heard.refused.is_some()).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[derive(Clone)]
struct Ear {
    api: SpiffeWorkloadApiClient<Channel>,
    heard: watch::Sender<Heard>,
}

impl Ear {
    /// Only here is a *no* taken for one. The other streams are refused with it, but a moment later,
    /// when this one may have been let in again.
    async fn identities(self) {
        let mut pause = Pause::default();
        loop {
            let status = self.hear_identities(&mut pause).await;
            let words = words(&status);
            self.heard.send_modify(|heard| {
                if status.code() == Code::PermissionDenied {
                    heard.identities = None;
                    heard.tokens.clear();
                    heard.refused = Some(words);
                } else {
                    heard.trouble = Some(words);
                }
            });
            pause.wait_after(&status).await;
        }
    }

    async fn hear_identities(&self, pause: &mut Pause) -> Status {
        let asked = self.api.clone().fetch_x509svid(request(wire::X509svidRequest {})).await;
        let mut stream = match asked {
            Ok(answer) => answer.into_inner(),
            Err(status) => return status,
        };
        loop {
            let message = match stream.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return Status::unavailable("the stream ended"),
                Err(status) => return status,
            };
            match X509Context::parse(message) {
                Ok(identities) => {
                    pause.reset();
                    self.heard.send_modify(|heard| {
                        heard.identities = Some(Arc::new(identities));
                        heard.refused = None;
                        heard.trouble = None;
                    });
                }
                Err(invalid) => return Status::internal(invalid.to_string()),
            }
        }
    }

    async fn bundles(self) {
        let mut pause = Pause::default();
        loop {
            let status = self.hear_bundles(&mut pause).await;
            tracing::debug!(code = ?status.code(), reason = status.message(), "bundles lost");
            pause.wait_after(&status).await;
        }
    }

    async fn hear_bundles(&self, pause: &mut Pause) -> Status {
        let asked = self.api.clone().fetch_x509_bundles(request(wire::X509BundlesRequest {})).await;
        let mut stream = match asked {
            Ok(answer) => answer.into_inner(),
            Err(status) => return status,
        };
        loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    pause.reset();
                    self.heard.send_modify(|heard| {
                        let before = heard.bundles.as_ref();
                        let bundles = bundles(message, before.map(|b| b.crls.as_slice()));
                        heard.bundles = Some(Arc::new(bundles));
                    });
                }
                Ok(None) => return Status::unavailable("the stream ended"),
                Err(status) => return status,
            }
        }
    }

    /// Fetches one token per audience for the default identity: at once, at half of their lives, and
    /// whenever there is a new certificate, since an amended task's old tokens are refused.
    async fn tokens(self, client: WorkloadClient, audiences: Vec<String>) {
        let mut heard = self.heard.subscribe();
        let mut pause = Pause::default();
        loop {
            let Some(identities) = held(&mut heard).await else { return };
            let Some(id) = identities.default_svid().map(|svid| svid.spiffe_id.clone()) else {
                return;
            };
            let is_same = |heard: &Heard| {
                heard.identities.as_ref().is_some_and(|now| Arc::ptr_eq(now, &identities))
            };
            let wait = match fetch(&client, &audiences, &id).await {
                Ok(tokens) => {
                    pause.reset();
                    let renew_at = tokens.values().map(|token| token.renew_at).min();
                    self.heard.send_if_modified(|heard| {
                        let is_same = is_same(heard);
                        if is_same {
                            heard.tokens = tokens;
                        }
                        is_same
                    });
                    clock::until(clock::now(), renew_at.unwrap_or_default())
                }
                Err(error) => {
                    self.complain(&error);
                    pause.next()
                }
            };
            let other = heard.wait_for(|heard| !is_same(heard));
            // Whichever comes first: both lead to a fetch.
            drop(tokio::time::timeout(wait, other).await);
        }
    }

    fn complain(&self, error: &WorkloadError) {
        let is_hopeless =
            matches!(error, WorkloadError::Status(s) if s.code() == Code::InvalidArgument);
        self.heard.send_if_modified(|heard| {
            let words = Some(error.to_string());
            let place = if is_hopeless { &mut heard.hopeless } else { &mut heard.trouble };
            std::mem::replace(place, words.clone()) != words
        });
    }
}

/// Waits for identities; `None` if nobody speaks any more.
async fn held(heard: &mut watch::Receiver<Heard>) -> Option<Arc<X509Context>> {
    heard.wait_for(|heard| heard.identities.is_some()).await.ok()?.identities.clone()
}

async fn fetch(
    client: &WorkloadClient,
    audiences: &[String],
    id: &SpiffeId,
) -> Result<BTreeMap<String, Token>, WorkloadError> {
    let mut tokens = BTreeMap::new();
    for audience in audiences {
        let fetched = client.fetch_jwt(&[audience], Some(id)).await?;
        let fetched = fetched.into_iter().next().ok_or(WorkloadError::Empty("token"))?;
        let token = Token::read(fetched.token, clock::now())
            .ok_or(WorkloadError::Empty("token with dates"))?;
        tokens.insert(audience.clone(), token);
    }
    Ok(tokens)
}

impl Token {
    /// Reads when it ends. Whether it is genuine is for others to say: it came from the broker.
    fn read(text: String, now: Timestamp) -> Option<Self> {
        #[derive(Deserialize)]
        struct Dates {
            exp: u64,
        }
        let text = Zeroizing::new(text);
        let payload = BASE64_URL_SAFE_NO_PAD.decode(text.split('.').nth(1)?).ok()?;
        let Dates { exp } = serde_json::from_slice(&payload).ok()?;
        let expires_at = Timestamp(exp.saturating_mul(1000));
        // Half of what remains. Half of the way from `iat` would be in the past already for a short
        // life, because `iat` is set back for clocks that are slow.
        let half = Span(expires_at.since(now).0 / 2).max(RENEWAL_MIN);
        Some(Self { text, expires_at, renew_at: now.plus(half) })
    }
}

/// Reads a message. Lists that are left out (the broker does so when they are too long for a message)
/// keep their predecessors: an old list refuses less than a new one, but no list refuses nobody.
fn bundles(message: wire::X509BundlesResponse, before: Option<&[Vec<u8>]>) -> Bundles {
    let domains = message.bundles.into_iter().filter_map(|(id, der)| {
        let domain = SpiffeId::parse(&id).ok().filter(|id| id.path().is_empty());
        let read = domain.map(|id| id.trust_domain().clone()).zip(Bundle::parse(&der).ok());
        if read.is_none() {
            tracing::warn!(trust_domain = %id, "bundle left out, it is malformed");
        }
        read
    });
    let mut crls: Vec<Vec<u8>> = message.crl.iter().map(|crl| crl.to_vec()).collect();
    if crls.is_empty() {
        crls = before.unwrap_or_default().to_vec();
        if !crls.is_empty() {
            tracing::warn!("the broker sends no revocation lists any more; the last ones stay");
        }
    }
    Bundles { domains: domains.collect(), crls }
}

/// A refusal in the broker's words, which begin with a code; anything else with gRPC's.
fn words(status: &Status) -> String {
    if status.code() == Code::PermissionDenied && !status.message().is_empty() {
        return status.message().to_owned();
    }
    format!("{:?}: {}", status.code(), status.message())
}

/// Every request says that it means to be one (Workload Endpoint §3).
fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

/// Doubles, each time shortened by up to a half at random, so that all sidecars of a machine do not
/// come back in the same instant.
#[derive(Debug)]
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(PAUSE.0)
    }
}

impl Pause {
    const fn reset(&mut self) {
        self.0 = PAUSE.0;
    }

    fn next(&mut self) -> Duration {
        let whole = self.0;
        self.0 = (whole * 2).min(PAUSE.1);
        let [luck] = clock::luck();
        whole - whole.mul_f64(f64::from(luck) / 512.0)
    }

    /// Waits for as long as the broker has asked for, if it has.
    async fn wait_after(&mut self, end: &Status) {
        let wait = mayfly_verify::retry_hint(end).unwrap_or_else(|| self.next());
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_at_half_of_what_remains_and_never_in_a_hot_loop() {
        let now = Timestamp(1_700_000_000_000);
        let token = |claims: &str| format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims));
        let read = |claims: &str| Token::read(token(claims), now);
        // Made ten seconds ago on paper, as all of Mayfly's are.
        let fresh = read(r#"{"iat":1699999990,"exp":1700000004}"#).unwrap();
        assert_eq!(fresh.expires_at, Timestamp(1_700_000_004_000));
        assert_eq!(fresh.renew_at, now.plus(Span::from_secs(2)));
        for claims in [r#"{"exp":1699999999}"#, r#"{"exp":1700000000}"#] {
            assert_eq!(read(claims).unwrap().renew_at, now.plus(RENEWAL_MIN), "{claims}");
        }
        assert!(read(r#"{"exp":18446744073709551615}"#).is_some());
        for claims in ["{}", "", r#"{"exp":"soon"}"#, r#"{"exp":-1}"#] {
            assert!(read(claims).is_none(), "{claims}");
        }
        assert!(Token::read("no.token".to_owned(), now).is_none());
    }
}
