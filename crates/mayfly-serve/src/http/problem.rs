//! Every No over HTTP: `application/problem+json` (RFC 9457) with a stable code.
//!
//! Where the No is a [`Denial`], the code is the denial's, and its remedy is the detail. The others
//! belong to HTTP alone; `docs/mirrors.md` lists them.

use std::borrow::Cow;

use axum::{
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use mayfly_core::Denial;
use serde_json::json;
use tonic::Code;

use super::published::Media;
use crate::status;

/// A No.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: Cow<'static, str>,
}

/// Longest part of a stranger's path that is repeated to it.
const ECHO_MAX: usize = 128;

impl Problem {
    const fn new(status: StatusCode, code: &'static str, title: &'static str) -> Self {
        Self { status, code, title, detail: Cow::Borrowed("") }
    }

    fn because(self, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { detail: detail.into(), ..self }
    }

    /// A denial of the deciding part.
    pub(super) fn of(denial: Denial) -> Self {
        let code = status::code(denial);
        let known = [
            (Code::NotFound, StatusCode::NOT_FOUND),
            (Code::InvalidArgument, StatusCode::BAD_REQUEST),
            (Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE),
        ];
        let known = known.into_iter().find(|(ours, _)| *ours == code);
        let status = known.map_or(StatusCode::FORBIDDEN, |(_, status)| status);
        Self::new(status, denial.code(), "refused").because(denial.remedy())
    }

    /// Who asks is nobody.
    pub(super) fn unauthenticated(denial: Option<Denial>) -> Self {
        let code = denial.map_or("unauthenticated", Denial::code);
        Self::new(StatusCode::UNAUTHORIZED, code, "say who you are").because(
            "come with an X.509-SVID as client certificate, or with `Authorization: Bearer` and a \
             JWT-SVID of your own that names this broker as its audience",
        )
    }

    /// A denial of whoever begins and renews tasks of pipelines: a token that does not count says that
    /// nobody is there.
    pub(super) fn of_pipeline(denial: Denial) -> Self {
        let mut problem = Self::of(denial);
        if matches!(denial, Denial::OidcTokenInvalid | Denial::TokenInvalid) {
            problem.status = StatusCode::UNAUTHORIZED;
        }
        problem
    }

    /// Who wants to begin, renew or end a task of a pipeline shows no token.
    pub(super) fn no_token() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "say who you are").because(
            "come with `Authorization: Bearer` and a token: a configured issuer's to begin a task, the \
             task's own `renewal_token` to renew or end it",
        )
    }

    /// The request's body is of another type.
    pub(super) const fn not_json() -> Self {
        Self {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            code: "not_json",
            title: "the body is not json",
            detail: Cow::Borrowed("send `application/json`"),
        }
    }

    /// The request's body is JSON of another shape, or none.
    pub(super) fn malformed_json(error: &serde_json::Error) -> Self {
        let detail: String = error.to_string().chars().take(ECHO_MAX).collect();
        Self { detail: detail.into(), ..Self::of(Denial::Malformed) }
    }

    /// Nothing is published there at present.
    pub(super) fn not_published() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_published", "nothing is published here").because(
            "the authority, shard or expiry window is unknown, retired, or needs \
             `status.public_url` in the configuration",
        )
    }

    /// No such path.
    pub(super) fn no_such_path(path: &str) -> Self {
        let path: String = path.chars().take(ECHO_MAX).collect();
        Self::new(StatusCode::NOT_FOUND, "no_such_path", "there is no such path").because(format!(
            "`{path}` is not one of /.well-known/openid-configuration, /keys, /bundle, /crl, \
             /crl.pem, /crl/AUTHORITY.crl, /crl/AUTHORITY/SHARD, /status, /status/WINDOW, \
             /introspect, /healthz, /readyz, /metrics"
        ))
    }

    /// The path exists, and does not take this method.
    pub(super) fn not_allowed(method: &Method) -> Self {
        let title = "the method is not allowed here";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", title).because(format!(
            "`{}` is not among what `Allow` names",
            method.as_str().chars().take(ECHO_MAX).collect::<String>()
        ))
    }

    /// The client does not take what there is.
    pub(super) fn not_acceptable(media: Media) -> Self {
        let title = "there is no such form of it";
        Self::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", title)
            .because(format!("it is there as `{}`", media.name()))
    }

    /// Only the present is published.
    pub(super) fn no_history() -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "no_history", "only the present is published")
            .because("ask without `time`")
    }

    /// The request is not a form of the right kind.
    pub(super) fn malformed(detail: &'static str) -> Self {
        Self { detail: detail.into(), ..Self::of(Denial::Malformed) }
    }

    /// The request's body is of another type.
    pub(super) const fn not_a_form() -> Self {
        Self {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            code: "not_a_form",
            title: "the body is not a form",
            detail: Cow::Borrowed("send `application/x-www-form-urlencoded`"),
        }
    }

    /// The request's body is longer than anything honest.
    pub(super) const fn too_long() -> Self {
        Self {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            code: "too_long",
            title: "the body is too long",
            detail: Cow::Borrowed("one token fits easily"),
        }
    }

    /// The request's body does not arrive.
    pub(super) const fn too_slow() -> Self {
        Self {
            status: StatusCode::REQUEST_TIMEOUT,
            code: "too_slow",
            title: "the body did not arrive in time",
            detail: Cow::Borrowed("send it at once"),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({
            "type": format!("urn:mayfly:problem:{}", self.code),
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
        });
        let mut response = (self.status, body.to_string()).into_response();
        let headers = response.headers_mut();
        let media = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, media);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
