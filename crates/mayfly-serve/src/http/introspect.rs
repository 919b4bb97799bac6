//! RFC 7662: whether a token still stands, for verifiers that would rather ask than follow.
//!
//! Only callers who have an identity of their own are answered (§2.1: or strangers could try tokens).
//! Of a token that does not stand nothing at all is said, not even whether there ever was one (§2.2).

use axum::{
    body::to_bytes,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use mayfly_core::Denial;
use serde_json::{Value, json};
use tonic::Code;

use super::{Caller, House, Media, Presented, form, problem::Problem};
use crate::{limits, status};

pub(super) async fn introspect(
    State(house): State<House>,
    request: Request,
) -> Result<Response, Problem> {
    let caller = caller(&request).ok_or_else(|| Problem::unauthenticated(None))?;
    let who = house.witness.caller(caller).await.map_err(refused_caller)?;
    let token = token(request).await?;
    let claims = house.witness.introspect(who, token).await.map_err(Problem::of)?;
    let answer = match claims {
        Some(mut claims) => {
            claims.insert("active".to_owned(), Value::Bool(true));
            Value::Object(claims)
        }
        None => json!({ "active": false }),
    };
    let mut response = answer.to_string().into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(Media::Json.name()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// A certificate counts before a token: it proves possession.
fn caller(request: &Request) -> Option<Caller> {
    if let Some(presented) = request.extensions().get::<Presented>() {
        return Some(Caller::Svid(presented.clone()));
    }
    bearer(request.headers()).map(Caller::Bearer)
}

pub(super) fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
}

/// Nobody is told why its token does not count; only that the broker cannot say now is its business.
fn refused_caller(denial: Denial) -> Problem {
    if status::code(denial) == Code::Unavailable {
        return Problem::of(denial);
    }
    Problem::unauthenticated(Some(Denial::TokenInvalid))
}

async fn token(request: Request) -> Result<String, Problem> {
    let media = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media = media.map(|value| value.split(';').next().unwrap_or_default().trim());
    if !media.is_some_and(|media| media.eq_ignore_ascii_case("application/x-www-form-urlencoded")) {
        return Err(Problem::not_a_form());
    }
    let body = to_bytes(request.into_body(), limits::REQUEST_BYTES_MAX);
    let body = tokio::time::timeout(limits::SILENCE_MAX, body).await;
    let body = body.map_err(|_elapsed| Problem::too_slow())?;
    let body = body.map_err(|_too_long| Problem::too_long())?;
    let body = std::str::from_utf8(&body);
    let body = body.map_err(|_not_text| Problem::malformed("the form is not text"))?;
    let mut tokens = form::pairs(body).filter(|(name, _)| name == "token").map(|(_, value)| value);
    match (tokens.next(), tokens.next()) {
        (Some(token), None) if !token.is_empty() => Ok(token),
        _ => Err(Problem::malformed("send exactly one `token`")),
    }
}
