//! R57: what a pipeline may send, through the router alone: what is not a request of its reaches nobody.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Method, Request, header},
};
use mayfly_core::{Cause, Denial, Span, TaskId};
use mayfly_serve::{
    Reply,
    http::ci::{PipelineTask, PipelineWish, Pipelines, Token, router},
};
use serde_json::Value;
use tower::ServiceExt as _;

/// Refuses everybody whom it hears, and counts them.
#[derive(Default)]
struct Deaf(AtomicUsize);

impl Deaf {
    fn refuse<T: Send + 'static>(&self, denial: Denial) -> Reply<T> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move { Err(denial) })
    }
}

impl Pipelines for Deaf {
    fn begin(&self, token: Token, wish: PipelineWish) -> Reply<PipelineTask> {
        assert_eq!((token.as_str(), format!("{token:?}").as_str()), ("t", "Token(..)"));
        assert_eq!((wish.lease, wish.deadline), (Span::from_secs(60), Span::from_secs(3600)));
        self.refuse(Denial::OidcTokenInvalid)
    }

    fn renew(&self, _: TaskId, _: Token, audiences: Vec<String>) -> Reply<PipelineTask> {
        assert_eq!(audiences, ["a"]);
        self.refuse(Denial::TaskEnded)
    }

    fn end(&self, _: TaskId, _: Token, cause: Cause) -> Reply<()> {
        assert_eq!(cause, Cause::Failed);
        self.refuse(Denial::NotServing)
    }
}

async fn ask(
    router: &Router,
    method: Method,
    (path, bearer, media): (&str, &str, &str),
    body: &str,
) -> (u16, String) {
    let request = Request::builder().method(method).uri(path);
    let request = request.header(header::AUTHORIZATION, bearer).header(header::CONTENT_TYPE, media);
    let request = request.body(Body::from(body.to_owned())).expect("a request");
    let answer = router.clone().oneshot(request).await.expect("a router always answers");
    let status = answer.status().as_u16();
    let body = to_bytes(answer.into_body(), 1 << 16).await.expect("a body");
    let said: Value = serde_json::from_slice(&body).expect("a problem");
    (status, said.get("code").and_then(Value::as_str).unwrap_or_default().to_owned())
}

#[tokio::test]
async fn r57_what_is_no_request_of_a_pipeline_reaches_nobody() {
    let deaf = Arc::new(Deaf::default());
    let router = router(Arc::<Deaf>::clone(&deaf));
    let task = TaskId::from_bytes([7; 16]);
    let (begin, json) = ("/v1/ci/tasks", "application/json");
    let (renew, end) = (format!("{begin}/{task}/renew"), format!("{begin}/{task}/end"));
    let long = format!("{{\"profile\":\"{}\"}}", "x".repeat(100_000));
    let many = format!("{{\"profile\":\"p\",\"audiences\":[{}\"a\"]}}", "\"a\",".repeat(32));
    for (method, path, bearer, media, body, status, code) in [
        (Method::GET, begin, "Bearer t", json, "", 405, "method_not_allowed"),
        (Method::POST, begin, "Basic t", json, "{}", 401, "unauthenticated"),
        (Method::POST, begin, "Bearer ", json, "{}", 401, "unauthenticated"),
        (Method::POST, begin, "Bearer t", "text/plain", "{}", 415, "not_json"),
        (Method::POST, begin, "Bearer t", json, "", 400, "malformed"),
        (Method::POST, begin, "Bearer t", json, "{\"profile\":\"p\",\"x\":1}", 400, "malformed"),
        (Method::POST, begin, "Bearer t", json, &long, 413, "too_long"),
        (Method::POST, begin, "Bearer t", json, &many, 400, "audience_invalid"),
        (Method::POST, &renew, "Bearer t", json, "{\"profile\":\"p\"}", 400, "malformed"),
        (Method::POST, &end, "Bearer t", json, "{\"outcome\":\"revoked\"}", 400, "malformed"),
        (Method::POST, "/v1/ci/tasks/x/end", "Bearer t", json, "{}", 404, "task_unknown"),
    ] {
        let told = ask(&router, method, (path, bearer, media), body).await;
        assert_eq!(told, (status, code.to_owned()), "{path} {bearer} {media}");
    }
    assert_eq!(deaf.0.load(Ordering::SeqCst), 0);
    for (path, body, status, code) in [
        (begin, "{\"profile\":\"p\"}", 401, "oidc_token_invalid"),
        (&renew, "{\"audiences\":[\"a\"]}", 403, "task_ended"),
        (&end, "{\"outcome\":\"failed\"}", 503, "not_serving"),
    ] {
        let media = "application/json; charset=utf-8";
        let told = ask(&router, Method::POST, (path, "bearer t", media), body).await;
        assert_eq!(told, (status, code.to_owned()), "{path}");
    }
    assert_eq!(deaf.0.load(Ordering::SeqCst), 3);
}
