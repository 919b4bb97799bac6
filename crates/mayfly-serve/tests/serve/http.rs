//! The HTTP mirrors through the router: no socket, no TLS, a witness that says what it is told to.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    http::{Method, Request, Response, StatusCode, header},
};
use mayfly_core::{Denial, SpiffeId};
use mayfly_serve::{
    Reply,
    http::{Asset, Caller, Media, Presented, Published, Witness, router},
};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tower::ServiceExt as _;

/// Knows one good token, and one caller's.
#[derive(Default)]
struct Told {
    ready: Option<Denial>,
    asked: Mutex<Vec<Caller>>,
}

fn reply<T: Send + 'static>(answer: Result<T, Denial>) -> Reply<T> {
    Box::pin(async move { answer })
}

impl Witness for Told {
    fn caller(&self, caller: Caller) -> Reply<SpiffeId> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(caller.clone());
        reply(match caller {
            Caller::Svid(presented) => Ok(presented.spiffe_id),
            Caller::Bearer(token) if token == "mine" => Ok(id()),
            Caller::Bearer(token) if token == "later" => Err(Denial::NotServing),
            Caller::Bearer(_) => Err(Denial::TaskEnded),
        })
    }

    fn introspect(&self, who: SpiffeId, token: String) -> Reply<Option<Map<String, Value>>> {
        assert_eq!(who, id());
        let claims = json!({ "sub": "spiffe://example.org/w/1", "aud": ["a"], "exp": 7 });
        reply(Ok((token == "good.to.ken").then(|| claims.as_object().cloned()).flatten()))
    }

    fn ready(&self) -> Reply<()> {
        reply(self.ready.map_or(Ok(()), Err))
    }

    fn metrics(&self) -> Reply<String> {
        reply(Ok("mayfly_tasks_live 3\n".to_owned()))
    }
}

fn id() -> SpiffeId {
    SpiffeId::parse("spiffe://example.org/w/1").expect("a spiffe id")
}

fn asset(body: &'static str, media: Media) -> Asset {
    Asset::new(body, media, Duration::from_secs(5))
}

fn published() -> Published {
    let crl = |body| asset(body, Media::Crl);
    Published {
        discovery: Some(asset("{\"issuer\":\"x\"}", Media::Json)),
        keys: Some(asset("{\"keys\":[]}", Media::Json)),
        bundle: Some(asset("{\"keys\":[],\"spiffe_sequence\":1}", Media::Json)),
        crl: Some(crl("full")),
        crl_pem: Some(asset("pem", Media::Pem)),
        crls: BTreeMap::from([("ab".to_owned(), crl("full"))]),
        shards: BTreeMap::from([("ab".to_owned(), BTreeMap::from([(7, crl("seven"))]))]),
        aggregation: Some(asset("{\"status_lists\":[]}", Media::Json)),
        statuses: BTreeMap::from([(9, asset("a.b.c", Media::StatusList))]),
    }
}

struct House {
    router: Router,
    publish: watch::Sender<Arc<Published>>,
    told: Arc<Told>,
}

fn house_of(told: Told) -> House {
    let (publish, seen) = watch::channel(Arc::new(published()));
    let told = Arc::new(told);
    House { router: router(seen, Arc::<Told>::clone(&told)), publish, told }
}

fn house() -> House {
    house_of(Told::default())
}

impl House {
    async fn ask(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.expect("a router always answers")
    }

    async fn call(&self, method: Method, path: &str) -> Response<Body> {
        self.ask(request(method, path).body(Body::empty()).expect("a request")).await
    }

    async fn get(&self, path: &str) -> Response<Body> {
        self.call(Method::GET, path).await
    }
}

fn request(method: Method, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(path)
}

fn question(token: &str) -> http::request::Builder {
    request(Method::POST, "/introspect")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
}

fn field<'a>(response: &'a Response<Body>, name: &header::HeaderName) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().expect("text"))
}

async fn body(response: Response<Body>) -> Bytes {
    to_bytes(response.into_body(), 1 << 20).await.expect("a body")
}

async fn problem(response: Response<Body>) -> (u16, String) {
    assert_eq!(field(&response, &header::CONTENT_TYPE), "application/problem+json");
    let status = response.status().as_u16();
    let problem: Value = serde_json::from_slice(&body(response).await).expect("json");
    let part = |name: &str| problem.get(name).expect("a member").clone();
    assert_eq!(part("status"), status);
    assert!(!part("detail").as_str().expect("a detail").is_empty());
    (status, part("code").as_str().expect("a code").to_owned())
}

/// SPIFFE points 80 and 81: GET, exact content type, no client authentication; the clouds compare the
/// type as a whole too.
#[tokio::test]
async fn point_80_everything_published_is_given_to_everybody_with_its_exact_type() {
    let house = house();
    for (path, media, wanted) in [
        ("/.well-known/openid-configuration", "application/json", "{\"issuer\":\"x\"}"),
        ("/keys", "application/json", "{\"keys\":[]}"),
        ("/bundle", "application/json", "{\"keys\":[],\"spiffe_sequence\":1}"),
        ("/crl", "application/pkix-crl", "full"),
        ("/crl.pem", "application/x-pem-file", "pem"),
        ("/crl/ab.crl", "application/pkix-crl", "full"),
        ("/crl/ab", "application/pkix-crl", "full"),
        ("/crl/ab/7", "application/pkix-crl", "seven"),
        ("/status", "application/json", "{\"status_lists\":[]}"),
        ("/status/9", "application/statuslist+jwt", "a.b.c"),
    ] {
        let response = house.get(path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(field(&response, &header::CONTENT_TYPE), media, "{path}");
        let cache = field(&response, &header::CACHE_CONTROL);
        assert_eq!(cache, "public, max-age=5, must-revalidate", "{path}");
        let etag = field(&response, &header::ETAG).to_owned();
        assert_eq!(body(response).await, wanted, "{path}");

        let again = request(Method::GET, path).header(header::IF_NONE_MATCH, &etag);
        let again = house.ask(again.body(Body::empty()).expect("a request")).await;
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{path}");
        assert_eq!(field(&again, &header::ETAG), etag, "{path}");
        assert!(body(again).await.is_empty(), "{path}");

        let head = house.call(Method::HEAD, path).await;
        assert_eq!((head.status(), field(&head, &header::ETAG)), (StatusCode::OK, etag.as_str()));
        let length = field(&head, &header::CONTENT_LENGTH);
        assert_eq!(length, wanted.len().to_string(), "{path}");
        assert!(body(head).await.is_empty(), "{path}");

        for method in [Method::POST, Method::PUT, Method::DELETE] {
            let refused = house.call(method, path).await;
            assert!(field(&refused, &header::ALLOW).contains("GET"), "{path}");
            assert_eq!(problem(refused).await, (405, "method_not_allowed".to_owned()), "{path}");
        }
    }
}

#[tokio::test]
async fn what_is_published_anew_has_a_new_tag_and_what_is_retired_is_gone() {
    let house = house();
    let old = field(&house.get("/status/9").await, &header::ETAG).to_owned();
    let mut next = published();
    next.statuses.insert(9, asset("d.e.f", Media::StatusList));
    house.publish.send_replace(Arc::new(next));
    let again = request(Method::GET, "/status/9").header(header::IF_NONE_MATCH, &old);
    let fresh = house.ask(again.body(Body::empty()).expect("a request")).await;
    assert_eq!(fresh.status(), StatusCode::OK);
    assert_ne!(field(&fresh, &header::ETAG), old);
    assert_eq!(body(fresh).await, "d.e.f");
    house.publish.send_replace(Arc::default());
    for path in ["/status/9", "/crl", "/crl/ab", "/crl/ab/7", "/keys", "/bundle"] {
        let gone = problem(house.get(path).await).await;
        assert_eq!(gone, (404, "not_published".to_owned()), "{path}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_said_so_in_a_way_that_helps() {
    let house = house();
    for path in ["/crl/cd", "/crl/ab/64", "/crl/ab/07", "/crl/ab/x", "/status/8", "/status/09"] {
        let missing = problem(house.get(path).await).await;
        assert_eq!(missing, (404, "not_published".to_owned()), "{path}");
    }
    for path in ["/", "/crls", "/status/9/x", "/../etc/passwd", "/%00"] {
        let missing = problem(house.get(path).await).await;
        assert_eq!(missing, (404, "no_such_path".to_owned()), "{path}");
    }
}

#[tokio::test]
async fn a_status_list_is_of_the_present_and_in_one_form() {
    let house = house();
    let past = house.get("/status/9?time=1686920170").await;
    assert_eq!(problem(past).await, (501, "no_history".to_owned()));
    assert_eq!(house.get("/status/9?other=1").await.status(), StatusCode::OK);
    for (accept, status) in [
        ("application/statuslist+jwt", 200),
        ("*/*", 200),
        ("application/statuslist+cwt", 406),
        ("application/json", 406),
    ] {
        let asked = request(Method::GET, "/status/9").header(header::ACCEPT, accept);
        let answer = house.ask(asked.body(Body::empty()).expect("a request")).await;
        assert_eq!(answer.status().as_u16(), status, "{accept}");
    }
}

#[tokio::test]
async fn a_token_is_introspected_for_those_who_are_somebody() {
    let house = house();
    let active = question("mine").body(Body::from("token=good.to.ken")).expect("a request");
    let active = house.ask(active).await;
    assert_eq!(active.status(), StatusCode::OK);
    assert_eq!(field(&active, &header::CONTENT_TYPE), "application/json");
    assert_eq!(field(&active, &header::CACHE_CONTROL), "no-store");
    let claims: Value = serde_json::from_slice(&body(active).await).expect("json");
    let wanted =
        json!({ "active": true, "sub": "spiffe://example.org/w/1", "aud": ["a"], "exp": 7 });
    assert_eq!(claims, wanted);

    let hint = "token_type_hint=access_token&token=no%2Esuch.thing";
    let inactive = question("mine").body(Body::from(hint)).expect("a request");
    let inactive = house.ask(inactive).await;
    assert_eq!(inactive.status(), StatusCode::OK);
    assert_eq!(body(inactive).await, "{\"active\":false}", "and nothing else");

    let presented = Presented { spiffe_id: id(), serial: None };
    let mut by_certificate = request(Method::POST, "/introspect")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8")
        .body(Body::from("token=good.to.ken"))
        .expect("a request");
    by_certificate.extensions_mut().insert(presented.clone());
    assert_eq!(house.ask(by_certificate).await.status(), StatusCode::OK);
    let asked = house.told.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert_eq!(asked.last(), Some(&Caller::Svid(presented)));
    assert!(!format!("{asked:?}").contains("mine"), "a token is a secret");
}

#[tokio::test]
async fn nobody_introspects_as_nobody() {
    let house = house();
    let form = || Body::from("token=good.to.ken");
    let anonymous = request(Method::POST, "/introspect")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(form())
        .expect("a request");
    let anonymous = house.ask(anonymous).await;
    assert_eq!(field(&anonymous, &header::WWW_AUTHENTICATE), "Bearer");
    assert_eq!(problem(anonymous).await, (401, "unauthenticated".to_owned()));
    let ended = house.ask(question("ended").body(form()).expect("a request")).await;
    assert_eq!(problem(ended).await, (401, "token_invalid".to_owned()), "no word about why");
    let later = house.ask(question("later").body(form()).expect("a request")).await;
    assert_eq!(problem(later).await, (503, "not_serving".to_owned()));
    let read = house.get("/introspect").await;
    assert_eq!(problem(read).await, (405, "method_not_allowed".to_owned()));
}

#[tokio::test]
async fn a_question_that_is_none_is_refused() {
    let house = house();
    for bad in ["", "token=", "tok=x", "token=a&token=b"] {
        let asked = question("mine").body(Body::from(bad)).expect("a request");
        assert_eq!(problem(house.ask(asked).await).await, (400, "malformed".to_owned()), "{bad}");
    }
    let not_text = question("mine").body(Body::from(vec![0xff, 0xfe])).expect("a request");
    assert_eq!(problem(house.ask(not_text).await).await, (400, "malformed".to_owned()));
    let long = question("mine").body(Body::from(vec![b'a'; 300 * 1024])).expect("a request");
    assert_eq!(problem(house.ask(long).await).await, (413, "too_long".to_owned()));
    let json = request(Method::POST, "/introspect")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::AUTHORIZATION, "bearer mine")
        .body(Body::from("{\"token\":\"x\"}"))
        .expect("a request");
    assert_eq!(problem(house.ask(json).await).await, (415, "not_a_form".to_owned()));
}

#[tokio::test]
async fn a_question_that_never_comes_is_not_waited_for() {
    let house = house();
    let never = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
    let asked = question("mine").body(Body::from_stream(never)).expect("a request");
    assert_eq!(problem(house.ask(asked).await).await, (408, "too_slow".to_owned()));
}

#[tokio::test]
async fn health_is_not_readiness() {
    let halted = house_of(Told { ready: Some(Denial::JournalFailed), ..Told::default() });
    assert_eq!(halted.get("/healthz").await.status(), StatusCode::OK);
    let ready = problem(halted.get("/readyz").await).await;
    assert_eq!(ready, (503, "journal_failed".to_owned()));
    let house = house();
    assert_eq!(house.get("/readyz").await.status(), StatusCode::OK);
    house.publish.send_replace(Arc::default());
    let ready = problem(house.get("/readyz").await).await;
    assert_eq!(ready, (503, "not_serving".to_owned()), "before the keys are published");
    let metrics = house.get("/metrics").await;
    assert_eq!(field(&metrics, &header::CONTENT_TYPE), "text/plain; version=0.0.4");
    assert_eq!(body(metrics).await, "mayfly_tasks_live 3\n");
}
