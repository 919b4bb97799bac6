//! The examples of `mayfly-verify`, with a broker and tasks that end: R3, R4, R18, R20, R21.
//!
//! The services are those of `crates/mayfly-verify/examples`, by the file: what a reader copies is what
//! is tested. Each side has an identity of its own, by the socket of a task.

#[path = "../../crates/mayfly-verify/examples/axum_mtls/service.rs"]
mod axum_service;
#[path = "../../crates/mayfly-verify/examples/raw_tls/service.rs"]
pub(crate) mod raw_service;
#[path = "../../crates/mayfly-verify/examples/tonic_mtls/service.rs"]
mod tonic_service;

use std::sync::Arc;

use http_body_util::BodyExt as _;
use mayfly::clock;
use mayfly_core::{SpiffeId, TrustDomain};
use mayfly_proto::mayfly::v1::{BeginTaskRequest, begin_task_request::Holder};
use mayfly_verify::{
    Authorize, Endpoint, Follower, Held, KeySource, Party, Refused, Reporter, Tiers,
    WorkloadClient, X509Context, X509Source, jwt::Verifier,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;

use crate::{
    common::{Broker, Operator, Site, task_of, until, within},
    stand::stand_with,
};
pub(crate) use axum_service::AUDIENCE;
use http::Method;

pub(crate) const PROFILES: &str = r#"
[[profile]]
name = "service"
path = "/service"
selectors = []
owner = "team"
binding = "socket"

[[profile]]
name = "client"
path = "/client"
selectors = []
owner = "team"
binding = "socket"
"#;

pub(crate) fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://example.org{path}")).expect("an id")
}

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").expect("a name")
}

/// One side with an identity of its own, and what it needs to judge others.
pub(crate) struct Side {
    pub(crate) task: String,
    pub(crate) endpoint: Endpoint,
    pub(crate) workload: WorkloadClient,
    pub(crate) source: X509Source,
    pub(crate) follower: Follower,
    reporter: Reporter,
    keys: KeySource,
}

impl Side {
    async fn begin(operator: &mut Operator, profile: &str) -> Self {
        Self::begin_as(operator, task_of(profile, Holder::Socket(true))).await
    }

    pub(crate) async fn begin_as(operator: &mut Operator, wish: BeginTaskRequest) -> Self {
        let begun = operator.begin(wish).await.expect("a task");
        let endpoint = Endpoint::parse(&format!("unix://{}", begun.socket)).expect("a path");
        let workload = WorkloadClient::new(&endpoint);
        let source = workload.watch_x509();
        let own = within("an identity", source.ready()).await.expect("an identity");
        let follower = Follower::connect(&endpoint, Tiers::default().together());
        within("the feed", follower.ready()).await;
        let keys = workload.watch_jwt_bundles();
        within("the keys", keys.ready()).await;
        let reporter = Reporter::connect(&endpoint, own.svids[0].spiffe_id.as_str());
        Self { task: begun.task, endpoint, workload, source, follower, reporter, keys }
    }

    /// Talks to whom `whom` allows.
    pub(crate) fn party(&self, whom: Authorize) -> Party {
        self.party_with(self.source.held(), whom)
    }

    fn party_with(&self, held: watch::Receiver<Held>, whom: Authorize) -> Party {
        let view = Arc::clone(self.follower.view());
        Party::new(held, whom, view).reporting(self.reporter.clone())
    }

    /// What a thief has who copied everything: it stays when the broker withdraws it.
    pub(crate) fn stolen(&self) -> Party {
        let copy = self.source.held().borrow().clone();
        self.party_with(watch::Sender::new(copy).subscribe(), Authorize::Any)
    }

    pub(crate) async fn token(&self) -> String {
        let tokens = self.workload.fetch_jwt(&[AUDIENCE], None).await.expect("a token");
        tokens[0].token.clone()
    }

    pub(crate) fn offline(&self) -> Verifier {
        Verifier::offline(AUDIENCE, self.keys.keys())
            .with_view(domain(), Arc::clone(self.follower.view()))
            .reporting(self.reporter.clone())
    }
}

/// A broker, a service of each kind, and a client.
pub(crate) struct Stage {
    stand: (Site, Broker, Operator),
    service: Side,
    client: Side,
    serving: JoinSet<()>,
}

impl Stage {
    async fn new() -> Self {
        let mut stand = stand_with(PROFILES).await;
        let service = Side::begin(&mut stand.2, "service").await;
        let client = Side::begin(&mut stand.2, "client").await;
        Self { stand, service, client, serving: JoinSet::new() }
    }

    /// The axum example. Whoever is of our trust domain gets through the handshake, so that what is
    /// seen to refuse the rest is the rules.
    async fn serve_axum(&mut self, verifier: Verifier) -> String {
        let app = axum_service::router(&id("/client"), verifier);
        let party = self.service.party(Authorize::TrustDomain(domain()));
        let (listener, address) = listen().await;
        self.serving.spawn(async move {
            axum_service::serve(&party, listener, app, clock::now).await;
        });
        address
    }

    async fn end(&mut self, task: &str) {
        self.stand.2.end(task, "completed").await.expect("ended");
    }
}

pub(crate) async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    (listener, address)
}

async fn call(side: &Side, address: &str) -> axum_service::Client {
    let party = side.party(Authorize::Profile(id("/service")));
    let client = axum_service::Client::connect(&party, address, clock::now());
    within("a handshake", client).await.expect("let in")
}

async fn ask(
    client: &mut axum_service::Client,
    method: Method,
    path: &str,
    token: Option<&str>,
) -> (u16, String) {
    let answer = within("an answer", client.ask(&method, path, token)).await.expect("an answer");
    (answer.0.as_u16(), answer.1)
}

/// R3: a peer of our trust domain with a valid certificate, and every action is denied to it; what the
/// rules grant to another, it is granted alone.
#[tokio::test]
async fn r3_a_valid_svid_without_a_rule_opens_nothing() {
    let mut stage = Stage::new().await;
    let verifier = stage.service.offline();
    let address = stage.serve_axum(verifier).await;
    let stranger = Side::begin(&mut stage.stand.2, "booth").await;
    let mut from_stranger = call(&stranger, &address).await;
    let mut from_client = call(&stage.client, &address).await;
    for path in ["/hello", "/ticks", "/notes/x", "/admin", "/", "/nowhere"] {
        let answer = ask(&mut from_stranger, Method::GET, path, None).await;
        assert_eq!(answer, (403, "not_permitted".to_owned()), "{path}");
    }
    let token = stranger.token().await;
    let answer = ask(&mut from_stranger, Method::POST, "/orders", Some(&token)).await;
    assert_eq!(answer, (403, "not_permitted".to_owned()), "nor does a token of its own help");

    let (status, said) = ask(&mut from_client, Method::GET, "/hello", None).await;
    assert_eq!(status, 200);
    assert!(said.contains(&stage.client.task), "{said}");
    let answer = ask(&mut from_client, Method::GET, "/admin", None).await;
    assert_eq!(answer, (403, "not_permitted".to_owned()), "no rule allows it to anybody");
}

/// R4: a token works for its subject and for nobody else who shows it, however it is verified.
#[tokio::test]
async fn r4_a_stolen_token_is_refused_and_both_are_named() {
    let mut stage = Stage::new().await;
    let thief = Side::begin(&mut stage.stand.2, "client").await;
    let verifiers = [
        stage.service.offline(),
        Verifier::online(AUDIENCE, stage.service.workload.clone())
            .reporting(stage.service.reporter.clone()),
    ];
    let token = stage.client.token().await;
    for verifier in verifiers {
        let address = stage.serve_axum(verifier).await;
        let mut from_client = call(&stage.client, &address).await;
        let mut from_thief = call(&thief, &address).await;
        let answer = ask(&mut from_client, Method::POST, "/orders", Some(&token)).await;
        assert_eq!(answer.0, 200, "{answer:?}");
        let answer = ask(&mut from_thief, Method::POST, "/orders", Some(&token)).await;
        assert_eq!(answer, (403, "not_the_subject".to_owned()));
        let answer = ask(&mut from_client, Method::POST, "/orders", None).await;
        assert_eq!(answer, (403, "no_token".to_owned()), "the certificate alone is no order");
    }
    // The broker hears of it, and its log names both: the entry of the one's task names the other.
    let (operator, task) = (&stage.stand.2, &stage.client.task);
    let testified = async || {
        let (_, story) = operator.clone().show(task).await.expect("it goes on");
        story.into_iter().find(|entry| entry.what == "used_by_another")
    };
    let entry = until("an entry in the log", testified).await;
    assert!(entry.detail.contains(&thief.task), "it names the presenter: {entry:?}");
    assert!(entry.detail.contains(&stage.service.task), "and who says so: {entry:?}");
}

/// R18: requests, an open stream and a new connection, after the end of the client's task.
#[tokio::test]
async fn r18_nothing_of_an_ended_task_goes_on_over_http2() {
    let mut stage = Stage::new().await;
    let verifier = stage.service.offline();
    let address = stage.serve_axum(verifier).await;
    let mut client = call(&stage.client, &address).await;
    let (token, stolen) = (stage.client.token().await, stage.client.stolen());
    assert_eq!(ask(&mut client, Method::POST, "/orders", Some(&token)).await.0, 200);
    let answer = within("a stream", client.open(&Method::GET, "/ticks", None)).await;
    let mut ticks = answer.expect("it may listen").into_body();
    within("a tick", ticks.frame()).await.expect("a frame").expect("a tick");

    let task = stage.client.task.clone();
    stage.end(&task).await;
    let cut = async { while let Some(Ok(_)) = ticks.frame().await {} };
    within("the stream's end", cut).await;
    let late = within("an answer", client.ask(&Method::GET, "/hello", None)).await;
    late.expect_err("the connection is gone, and every request with it");

    // New connections, by a thief who kept everything.
    let knock = async || {
        let client = axum_service::Client::connect(&stolen, &address, clock::now()).await;
        let mut client = client.ok()?;
        client.ask(&Method::GET, "/hello", None).await.ok()
    };
    assert_eq!(within("a refusal", knock()).await, None);
    let verifier = stage.service.offline();
    let refused = verifier.verify(&token, clock::now()).await.map(drop);
    assert_eq!(refused, Err(Refused::Revoked), "its token, whoever shows it");
}

/// R18, R20: the same over gRPC, where the rules stand by the method.
#[tokio::test]
async fn r18_nothing_of_an_ended_task_goes_on_over_grpc() {
    let mut stage = Stage::new().await;
    let (listener, address) = listen().await;
    let party = stage.service.party(Authorize::TrustDomain(domain()));
    stage.serving.spawn(async move {
        let served = tonic_service::serve(&party, listener, &id("/client"), clock::now).await;
        served.expect("it serves");
    });
    let whom = || Authorize::Profile(id("/service"));
    let stranger = Side::begin(&mut stage.stand.2, "booth").await;
    let mut from_stranger = tonic_service::client(&stranger.party(whom()), &address, clock::now);
    let denied = from_stranger.check(HealthCheckRequest::default()).await.expect_err("R3");
    assert_eq!((denied.code(), denied.message()), (Code::PermissionDenied, "not_permitted"));

    let mut client = tonic_service::client(&stage.client.party(whom()), &address, clock::now);
    client.check(HealthCheckRequest::default()).await.expect("it may");
    let watching = client.watch(HealthCheckRequest::default()).await.expect("it may");
    let mut watching = watching.into_inner();
    watching.message().await.expect("a message").expect("a first one");
    let task = stage.client.task.clone();
    stage.end(&task).await;
    within("the stream's end", watching.message()).await.expect_err("cut");
    let mut stolen = tonic_service::client(&stage.client.stolen(), &address, clock::now);
    for client in [&mut client, &mut stolen] {
        let late = within("an answer", client.check(HealthCheckRequest::default())).await;
        late.expect_err("refused");
    }
}

/// R18: and over a bare stream.
#[tokio::test]
async fn r18_nothing_of_an_ended_task_goes_on_over_a_bare_stream() {
    let mut stage = Stage::new().await;
    let (listener, address) = listen().await;
    let party = stage.service.party(Authorize::Profile(id("/client")));
    stage.serving.spawn(async move {
        raw_service::serve(&party, listener, clock::now).await;
    });
    let stolen = stage.client.stolen();
    let mut stream = raw_service::connect(&stolen, &address, clock::now()).await.expect("let in");
    raw_service::exchange(&mut stream, b"hello").await.expect("an echo");
    let task = stage.client.task.clone();
    stage.end(&task).await;
    let cut = async { while raw_service::exchange(&mut stream, b"hello").await.is_ok() {} };
    within("the stream's end", cut).await;
    let again = async {
        let mut stream = raw_service::connect(&stolen, &address, clock::now()).await?;
        raw_service::exchange(&mut stream, b"hello").await
    };
    within("a refusal", again).await.expect_err("refused");
    // Who is not of the profile does not even get through the handshake.
    let stranger = Side::begin(&mut stage.stand.2, "booth").await;
    let again = async {
        let party = stranger.party(Authorize::Any);
        let mut stream = raw_service::connect(&party, &address, clock::now()).await?;
        raw_service::exchange(&mut stream, b"hello").await
    };
    within("a refusal", again).await.expect_err("refused");
}

/// R20: a live credential is good for its own task's things, and for no other's.
#[tokio::test]
async fn r20_a_live_credential_does_not_reach_another_tasks_things() {
    let mut stage = Stage::new().await;
    let verifier = stage.service.offline();
    let address = stage.serve_axum(verifier).await;
    let other = Side::begin(&mut stage.stand.2, "client").await;
    let notes = |side: &Side| format!("/notes/{}", side.task);
    let (own, others) = (notes(&stage.client), notes(&other));
    for (side, good, bad) in [(&stage.client, &own, &others), (&other, &others, &own)] {
        let mut client = call(side, &address).await;
        assert_eq!(ask(&mut client, Method::GET, good, None).await.0, 200);
        let answer = ask(&mut client, Method::GET, bad, None).await;
        assert_eq!(answer, (403, "not_permitted".to_owned()));
    }
}

/// R18: whatever a renewal brings home that races with the end, it is refused.
#[tokio::test]
async fn r18_a_renewal_that_races_with_the_end_wins_nothing() {
    let mut stage = Stage::new().await;
    let (workload, task) = (stage.client.workload.clone(), stage.client.task.clone());
    let mut fetching = JoinSet::new();
    let (won, mut rounds) = mpsc::channel(64);
    for _ in 0..4 {
        let (workload, won) = (workload.clone(), won.clone());
        fetching.spawn(async move {
            let mut loot: Vec<X509Context> = Vec::new();
            let mut tokens = Vec::new();
            loop {
                let (x509, jwt) =
                    tokio::join!(workload.fetch_x509(), workload.fetch_jwt(&[AUDIENCE], None));
                match (x509, jwt) {
                    (Err(_), Err(_)) => return (loot, tokens),
                    (x509, jwt) => {
                        loot.extend(x509);
                        tokens.extend(jwt.into_iter().flatten());
                        // Whoever counts has counted enough when there is no room.
                        let _counted = won.try_send(());
                    }
                }
            }
        });
    }
    // Some of it is there before the end, so that the end comes in the middle.
    for _ in 0..8 {
        within("a round", rounds.recv()).await.expect("they go on");
    }
    stage.end(&task).await;
    let all = within("the last renewal", fetching.join_all()).await;
    let verifier = stage.service.offline();
    let view = Arc::clone(stage.service.follower.view());
    let mut seen = 0;
    for (contexts, tokens) in all {
        for context in contexts {
            let serial = context.svids[0].leaf.serial.expect("ours");
            until("its refusal", async || {
                (view.admit(&serial) == Err(Refused::Revoked)).then_some(())
            })
            .await;
            seen += 1;
        }
        for token in tokens {
            let outcome = verifier.verify(&token.token, clock::now()).await.map(drop);
            assert_eq!(outcome, Err(Refused::Revoked));
            seen += 1;
        }
    }
    assert!(seen > 4, "there was a race: {seen}");
}

/// R21: use after the end comes back to the broker, which testifies to it.
#[tokio::test]
async fn r21_use_after_the_end_is_reported_back_to_the_broker() {
    let mut stage = Stage::new().await;
    let (listener, address) = listen().await;
    let party = stage.service.party(Authorize::Profile(id("/client")));
    stage.serving.spawn(async move {
        raw_service::serve(&party, listener, clock::now).await;
    });
    let (task, stolen) = (stage.client.task.clone(), stage.client.stolen());
    let knock = async || {
        let mut stream = raw_service::connect(&stolen, &address, clock::now()).await.ok()?;
        raw_service::exchange(&mut stream, b"hello").await.ok()
    };
    within("an echo", knock()).await.expect("let in");
    stage.end(&task).await;
    until("a refusal", async || knock().await.is_none().then_some(())).await;
    // The broker does not take a verifier's word: it looks the serial up, and testifies to what it finds.
    let operator = &stage.stand.2;
    let testified = async || {
        let (_, story) = operator.clone().show(&task).await.expect("it is remembered");
        story.into_iter().find(|entry| entry.what == "used_after_end")
    };
    let entry = until("an entry in the log", testified).await;
    assert!(entry.detail.contains(&stage.service.task), "it names the verifier: {entry:?}");
}
