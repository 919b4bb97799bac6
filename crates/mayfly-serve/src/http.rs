//! The standard mirrors of what Mayfly knows, over HTTP: keys, bundles, revocation lists, status lists
//! and introspection, for verifiers that know nothing of Mayfly.
//!
//! Almost everything here is the same for everybody and changes at most once a second. So it is made
//! and signed elsewhere, published whole as [`Published`], and the router only looks it up: a request
//! costs a map look-up and a clone of a pointer, a stranger can cause no signature, and the code that
//! reads a stranger's request line can reach no key. What has to be asked for each time (whether a
//! token still stands, whether the broker is ready) goes through [`Witness`].
//!
//! This is plain HTTP in the sense of an [`axum::Router`]: who wraps it into TLS decides about
//! certificates. If that somebody has verified a client certificate, it says so by putting a
//! [`Presented`] into the request's extensions; nothing but `/introspect` looks at it, for bundles and
//! lists have to be readable by those who trust nobody yet (SPIFFE Federation §5.1).
//!
//! | path | what |
//! |---|---|
//! | `/.well-known/openid-configuration`, `/keys` | OIDC discovery |
//! | `/bundle` | the SPIFFE bundle endpoint |
//! | `/crl`, `/crl.pem`, `/crl/{authority}.crl`, `/crl/{authority}/{shard}` | revocation lists |
//! | `/status`, `/status/{window}` | token status lists |
//! | `/introspect` | RFC 7662 |
//! | `/healthz`, `/readyz`, `/metrics` | for whoever runs it |
//! | `/v1/ci/tasks` | tasks of pipelines, where [`ci::router`] is merged in |

mod answer;
pub mod ci;
mod form;
mod introspect;
mod problem;
mod published;

use std::{fmt, sync::Arc};

use axum::{
    Router,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, HeaderValue, Method, Uri, header},
    response::{IntoResponse as _, Response},
    routing::{MethodRouter, get, post},
};
use mayfly_core::{Denial, Serial, SpiffeId};
use serde_json::{Map, Value};
use tokio::sync::watch;

use self::problem::Problem;
pub use self::published::{Asset, Media, Published};
use crate::desk::Reply;

/// The client certificate that came with a connection, put into a request's extensions by whoever has
/// verified it: signature, chain, time, and whether it was revoked then.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Presented {
    /// Whom it names.
    pub spiffe_id: SpiffeId,
    /// Its serial, if it is one of ours: a connection outlives a task, so it is looked up again.
    pub serial: Option<Serial>,
}

/// How a caller of `/introspect` says who it is.
#[derive(Clone, Eq, PartialEq)]
pub enum Caller {
    /// By the certificate of its connection.
    Svid(Presented),
    /// By a JWT-SVID of its own, for this broker.
    Bearer(String),
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Svid(presented) => f.debug_tuple("Svid").field(presented).finish(),
            Self::Bearer(_) => f.write_str("Bearer(..)"),
        }
    }
}

/// The seam to whoever knows, for what cannot be made ahead.
pub trait Witness: Send + Sync + 'static {
    /// Who asks. [`Denial::TokenInvalid`] or what befell its task, if it is nobody that stands.
    fn caller(&self, caller: Caller) -> Reply<SpiffeId>;
    /// The claims of `token`, if it is one of ours and still stands. `None` says nothing about why. `who`
    /// was shown it.
    fn introspect(&self, who: SpiffeId, token: String) -> Reply<Option<Map<String, Value>>>;
    /// Whether credentials are issued at this moment; if not, why.
    fn ready(&self) -> Reply<()>;
    /// All measurements, in Prometheus' text format.
    fn metrics(&self) -> Reply<String>;
}

#[derive(Clone)]
struct House {
    published: watch::Receiver<Arc<Published>>,
    witness: Arc<dyn Witness>,
}

/// The router: all paths, any method, no TLS. Clones share everything.
pub fn router(published: watch::Receiver<Arc<Published>>, witness: Arc<dyn Witness>) -> Router {
    Router::new()
        .route("/.well-known/openid-configuration", asset(|p| p.discovery.as_ref()))
        .route("/keys", asset(|p| p.keys.as_ref()))
        .route("/bundle", asset(|p| p.bundle.as_ref()))
        .route("/crl", asset(|p| p.crl.as_ref()))
        .route("/crl.pem", asset(|p| p.crl_pem.as_ref()))
        .route("/crl/{authority}", get(crl_of))
        .route("/crl/{authority}/{shard}", get(shard))
        .route("/status", asset(|p| p.aggregation.as_ref()))
        .route("/status/{window}", get(status_list))
        .route("/introspect", post(introspect::introspect))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .with_state(House { published, witness })
}

impl House {
    /// Answers with what `pick` finds in what is published at this moment.
    fn answer(
        &self,
        headers: &HeaderMap,
        pick: impl FnOnce(&Published) -> Option<&Asset>,
    ) -> Result<Response, Problem> {
        let published = Arc::clone(&self.published.borrow());
        let asset = pick(&published).ok_or_else(Problem::not_published)?;
        Ok(answer::of(asset, headers))
    }
}

fn asset(pick: fn(&Published) -> Option<&Asset>) -> MethodRouter<House> {
    get(move |State(house): State<House>, headers: HeaderMap| async move {
        house.answer(&headers, pick)
    })
}

async fn crl_of(
    State(house): State<House>,
    Path(authority): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let authority = authority.strip_suffix(".crl").unwrap_or(&authority);
    house.answer(&headers, |published| published.crls.get(authority))
}

async fn shard(
    State(house): State<House>,
    Path((authority, shard)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let shard = number(&shard)?;
    house.answer(&headers, |published| published.shards.get(&authority)?.get(&shard))
}

async fn status_list(
    State(house): State<House>,
    Path(window): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let window = number(&window)?;
    let asks_for = |name| form::pairs(query.as_deref().unwrap_or("")).any(|(key, _)| key == name);
    // draft-ietf-oauth-status-list §8.4: what was true at another time is not kept.
    if asks_for("time") {
        return Err(Problem::no_history());
    }
    if !answer::accepts(&headers, Media::StatusList) {
        return Err(Problem::not_acceptable(Media::StatusList));
    }
    house.answer(&headers, |published| published.statuses.get(&window))
}

/// A number in a path, in the one form in which it is published: `07` is not `7`.
fn number(text: &str) -> Result<u32, Problem> {
    let number = text.parse::<u32>().ok().filter(|number| number.to_string() == text);
    number.ok_or_else(Problem::not_published)
}

/// The process answers; nothing else is said.
async fn healthz() -> Response {
    plain("ok\n".to_owned(), "text/plain")
}

async fn readyz(State(house): State<House>) -> Result<Response, Problem> {
    if house.published.borrow().keys.is_none() {
        return Err(Problem::of(Denial::NotServing));
    }
    house.witness.ready().await.map_err(Problem::of)?;
    Ok(plain("ready\n".to_owned(), "text/plain"))
}

async fn metrics(State(house): State<House>) -> Result<Response, Problem> {
    let text = house.witness.metrics().await.map_err(Problem::of)?;
    Ok(plain(text, "text/plain; version=0.0.4"))
}

fn plain(text: String, media: &'static str) -> Response {
    let mut response = text.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn unknown(uri: Uri) -> Problem {
    Problem::no_such_path(uri.path())
}

async fn not_allowed(method: Method) -> Problem {
    Problem::not_allowed(&method)
}
