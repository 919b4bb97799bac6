//! Tasks of pipelines that run elsewhere, over HTTPS and with JSON, because that is what every runner of
//! jobs has at hand (R5, R57).
//!
//! | path | as whom | what |
//! |---|---|---|
//! | `POST /v1/ci/tasks` | a token of a configured issuer | begins a task and hands out its credentials |
//! | `POST /v1/ci/tasks/{task}/renew` | the task's own token for the broker | a heartbeat, and fresh credentials |
//! | `POST /v1/ci/tasks/{task}/end` | the same | ends it |
//!
//! Nothing here is a secret that outlives a task: what begins it is good once, and what renews it is a
//! JWT-SVID of the task itself, which is refused like every other when the task is over. Who is asked is
//! behind [`Pipelines`]; this code reads strangers' octets and can neither verify nor sign.

use std::{fmt, sync::Arc};

use axum::{
    Router,
    body::to_bytes,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::post,
};
use bytes::Bytes;
use mayfly_core::{Cause, Denial, Span, SpiffeId, TaskId, TaskVersion, Timestamp};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{Media, introspect, not_allowed, problem::Problem};
use crate::{
    desk::{JwtSvid, Reply, X509Svid},
    limits,
    pem::Pem,
};

/// The token that a caller shows. It is used and not kept.
#[derive(Clone)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// Takes a token.
    #[must_use]
    pub fn new(token: String) -> Self {
        Self(Zeroizing::new(token))
    }

    /// What was shown.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// What a pipeline wants to begin.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PipelineWish {
    /// Under which profile.
    pub profile: String,
    /// What for.
    pub intent: String,
    /// Whom tokens are wanted for, one each.
    pub audiences: Vec<String>,
    /// How long the task lives without a renewal.
    pub lease: Span,
    /// How long it lives at the longest.
    pub deadline: Span,
}

/// A task of a pipeline, with what it holds from here on.
#[derive(Clone, Debug)]
pub struct PipelineTask {
    /// Its name.
    pub task: TaskId,
    /// Its version.
    pub version: TaskVersion,
    /// Whom its credentials name.
    pub spiffe_id: SpiffeId,
    /// When it ends unless it is renewed.
    pub lease_until: Timestamp,
    /// A certificate and its key.
    pub x509: X509Svid,
    /// The authorities of its trust domain, concatenated DER.
    pub bundle: Bytes,
    /// A token for each audience that was asked for.
    pub jwt: Vec<(String, JwtSvid)>,
    /// The token by which the task is renewed and ended.
    pub renewal: JwtSvid,
}

/// The seam to whoever verifies tokens and begins tasks.
pub trait Pipelines: Send + Sync + 'static {
    /// Begins a task for whoever an issuer's `token` is about.
    fn begin(&self, token: Token, wish: PipelineWish) -> Reply<PipelineTask>;
    /// Prolongs the lease of `task`, whose own `token` this is, and gives it fresh credentials.
    fn renew(&self, task: TaskId, token: Token, audiences: Vec<String>) -> Reply<PipelineTask>;
    /// Ends `task`, whose own `token` this is.
    fn end(&self, task: TaskId, token: Token, cause: Cause) -> Reply<()>;
}

type Asked = State<Arc<dyn Pipelines>>;

/// The routes, to be merged into those of [`super::router`].
pub fn router(pipelines: Arc<dyn Pipelines>) -> Router {
    Router::new()
        .route("/v1/ci/tasks", post(begin))
        .route("/v1/ci/tasks/{task}/renew", post(renew))
        .route("/v1/ci/tasks/{task}/end", post(end))
        .method_not_allowed_fallback(not_allowed)
        .with_state(pipelines)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBegin {
    profile: String,
    #[serde(default)]
    intent: String,
    #[serde(default)]
    audiences: Vec<String>,
    lease_s: Option<u64>,
    deadline_s: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawRenew {
    audiences: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEnd {
    outcome: String,
}

impl RawBegin {
    fn read(self) -> Result<PipelineWish, Problem> {
        let lease = self.lease_s.map_or(limits::PIPELINE_LEASE_DEFAULT, seconds);
        if !(limits::PIPELINE_LEASE_MIN..=mayfly_core::limits::LEASE_MAX).contains(&lease) {
            return Err(Problem::malformed("`lease_s` has to be 5 to 86400"));
        }
        let deadline = self.deadline_s.map_or(limits::PIPELINE_DEADLINE_DEFAULT, seconds);
        if !(Span::from_secs(1)..=limits::PIPELINE_DEADLINE_MAX).contains(&deadline) {
            return Err(Problem::malformed("`deadline_s` has to be 1 to 86400"));
        }
        check_audiences(&self.audiences)?;
        let Self { profile, intent, audiences, .. } = self;
        Ok(PipelineWish { profile, intent, audiences, lease, deadline })
    }
}

const fn seconds(count: u64) -> Span {
    Span(count.saturating_mul(1000))
}

/// Before a token is used up for it: the deciding part would refuse the same, and later.
fn check_audiences(audiences: &[String]) -> Result<(), Problem> {
    use mayfly_core::limits::{AUDIENCE_BYTES_MAX, AUDIENCES_MAX};
    let fits = |one: &String| (1..=AUDIENCE_BYTES_MAX).contains(&one.len());
    if audiences.len() <= AUDIENCES_MAX && audiences.iter().all(fits) {
        return Ok(());
    }
    Err(Problem::of(Denial::AudienceInvalid))
}

async fn begin(State(pipelines): Asked, request: Request) -> Result<Response, Problem> {
    let token = token(request.headers())?;
    let wish = json_of::<RawBegin>(request).await?.read()?;
    let task = pipelines.begin(token, wish).await.map_err(Problem::of_pipeline)?;
    let mut response = answer(StatusCode::CREATED, &task)?;
    if let Ok(place) = HeaderValue::try_from(format!("/v1/ci/tasks/{}", task.task)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

async fn renew(
    State(pipelines): Asked,
    Path(task): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let token = token(request.headers())?;
    let task = id(&task)?;
    let RawRenew { audiences } = json_of(request).await?;
    check_audiences(&audiences)?;
    let task = pipelines.renew(task, token, audiences).await.map_err(Problem::of_pipeline)?;
    answer(StatusCode::OK, &task)
}

async fn end(
    State(pipelines): Asked,
    Path(task): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let token = token(request.headers())?;
    let task = id(&task)?;
    let cause = match json_of::<RawEnd>(request).await?.outcome.as_str() {
        "completed" => Cause::Completed,
        "failed" => Cause::Failed,
        _ => return Err(Problem::malformed("`outcome` has to be \"completed\" or \"failed\"")),
    };
    pipelines.end(task, token, cause).await.map_err(Problem::of_pipeline)?;
    Ok(private(StatusCode::NO_CONTENT.into_response()))
}

fn token(headers: &HeaderMap) -> Result<Token, Problem> {
    introspect::bearer(headers).map(Token::new).ok_or_else(Problem::no_token)
}

fn id(task: &str) -> Result<TaskId, Problem> {
    TaskId::parse(task).map_err(|_malformed| Problem::of(Denial::TaskUnknown))
}

async fn json_of<T: DeserializeOwned>(request: Request) -> Result<T, Problem> {
    let media = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media = media.map(|value| value.split(';').next().unwrap_or_default().trim());
    // Also what keeps a browser from being sent here by another site: it would have to ask first.
    if !media.is_some_and(|media| media.eq_ignore_ascii_case("application/json")) {
        return Err(Problem::not_json());
    }
    let body = to_bytes(request.into_body(), limits::PIPELINE_REQUEST_BYTES_MAX);
    let body = tokio::time::timeout(limits::SILENCE_MAX, body).await;
    let body = body.map_err(|_elapsed| Problem::too_slow())?;
    let body = body.map_err(|_too_long| Problem::too_long())?;
    serde_json::from_slice(&body).map_err(|error| Problem::malformed_json(&error))
}

fn answer(status: StatusCode, task: &PipelineTask) -> Result<Response, Problem> {
    let body = Zeroizing::new(document(task)?.to_string());
    let mut response = (status, body.as_bytes().to_vec()).into_response();
    let media = HeaderValue::from_static(Media::Json.name());
    response.headers_mut().insert(header::CONTENT_TYPE, media);
    Ok(private(response))
}

fn document(task: &PipelineTask) -> Result<Value, Problem> {
    // What we have signed ourselves is DER.
    let broken = || Problem::of(Denial::SigningFailed);
    let blocks = |der: &[u8]| {
        let mut pem = Pem::default();
        pem.add_all("CERTIFICATE", der).ok_or_else(broken)?;
        String::from_utf8(pem.finish()).map_err(|_not_text| broken())
    };
    let key = Pem::one("PRIVATE KEY", &task.x509.key);
    let key = Zeroizing::new(String::from_utf8(key).map_err(|_not_text| broken())?);
    let jwt = task.jwt.iter().map(|(audience, svid)| {
        json!({ "audience": audience, "token": svid.token, "not_after": svid.not_after.seconds() })
    });
    Ok(json!({
        "task": task.task.to_string(),
        "version": task.version.0,
        "spiffe_id": task.spiffe_id.as_str(),
        "lease_until": task.lease_until.seconds(),
        "x509": {
            "certificate": blocks(&task.x509.chain)?,
            "key": key.as_str(),
            "bundle": blocks(&task.bundle)?,
            "not_after": task.x509.not_after.seconds(),
        },
        "jwt": jwt.collect::<Vec<_>>(),
        "renewal_token": {
            "token": task.renewal.token,
            "not_after": task.renewal.not_after.seconds(),
        },
    }))
}

/// For the caller alone.
fn private(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
