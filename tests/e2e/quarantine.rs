//! R19: a quarantine that stops everything, and a release that gives it back.

use mayfly::clock;
use mayfly_proto::mayfly::v1::{self as wire, operator_client::OperatorClient};
use mayfly_verify::{Authorize, Endpoint, Party, Refused};
use tokio::{process::Command, task::JoinSet};
use tonic::Code;

use crate::{
    actor::X509Stream,
    common::{Broker, Operator, Site, until, within},
    dial::free_port,
    hands::below,
    mirrors::{Mirror, claims},
    stand::{STRANGER, stand_with, status},
    verifiers::{AUDIENCE, PROFILES, Side, id, listen, raw_service},
};

/// How often is tried what must not happen.
const ATTEMPTS: usize = 20;

/// A service that all of the profile `client` may talk to, and a broker whose lists are published.
struct Stage {
    site: Site,
    broker: Broker,
    operator: Operator,
    mirror: Mirror,
    service: Side,
    address: String,
    _serving: JoinSet<()>,
}

impl Stage {
    async fn new() -> Self {
        let port = free_port();
        let published = format!(
            "{PROFILES}\n[http]\nlisten = \"{port}\"\ntls = \"spiffe\"\n\
             [status]\npublic_url = \"https://{port}\"\n"
        );
        let (site, broker, mut operator) = stand_with(&published).await;
        let service = Side::begin_as(&mut operator, below("service", "")).await;
        let (listener, address) = listen().await;
        let party = service.party(Authorize::Profile(id("/client")));
        let mut serving = JoinSet::new();
        serving.spawn(async move { raw_service::serve(&party, listener, clock::now).await });
        let mirror = Mirror(port);
        Self { site, broker, operator, mirror, service, address, _serving: serving }
    }

    /// Whether the broker says that a token is good.
    async fn accepts(&self, token: &str) -> bool {
        self.broker.workload().validate_jwt(AUDIENCE, token).await.is_ok()
    }

    async fn connect(&self, party: &Party) -> std::io::Result<raw_service::Called> {
        let connected = async {
            let mut stream = raw_service::connect(party, &self.address, clock::now()).await?;
            raw_service::exchange(&mut stream, b"hello").await?;
            Ok(stream)
        };
        within("an answer", connected).await
    }
}

/// A client with all that it can have.
struct Client {
    side: Side,
    stolen: Party,
    token: String,
    live: raw_service::Called,
    stream: X509Stream,
    status: (String, usize),
}

impl Client {
    async fn begin(stage: &mut Stage, parent: &str) -> Self {
        let side = Side::begin_as(&mut stage.operator, below("client", parent)).await;
        let token = side.token().await;
        let live = stage.connect(&side.party(Authorize::Any)).await.expect("let in");
        let mut stream = X509Stream::open(&side.endpoint);
        within("a message", stream.next()).await.expect("an identity");
        let pointer = claims(&token)["status"]["status_list"].clone();
        let uri = pointer["uri"].as_str().expect("a uri").to_owned();
        let idx = pointer["idx"].as_u64().and_then(|idx| usize::try_from(idx).ok());
        let status = (uri, idx.expect("an index"));
        Self { stolen: side.stolen(), side, token, live, stream, status }
    }

    /// The status of its token in the published list.
    async fn listed(&self, stage: &Stage, wanted: u8) {
        let (uri, idx) = &self.status;
        let is_so = async || (stage.mirror.status(uri, *idx).await == wanted).then_some(());
        until("its status in the list", is_so).await;
    }

    /// Nothing of it goes on: one line for each thing that could.
    async fn assert_contained(&mut self, stage: &Stage) {
        let stolen = self.side.stolen();
        // The streams that were open say why they end.
        let end = within("the stream's end", async {
            loop {
                if let Err(status) = self.stream.next().await {
                    return status;
                }
            }
        });
        let end = end.await;
        assert_eq!(end.code(), Code::PermissionDenied, "streams: {end:?}");
        assert!(end.message().starts_with("task_quarantined"), "streams: {end:?}");
        // The live connection is cut.
        let cut = async { while raw_service::exchange(&mut self.live, b"x").await.is_ok() {} };
        within("live connections: the cut", cut).await;
        for _ in 0..ATTEMPTS {
            // Nothing is issued.
            for refused in [
                self.side.workload.fetch_x509().await.map(drop),
                self.side.workload.fetch_jwt(&["x"], None).await.map(drop),
            ] {
                let refused = status(refused.expect_err("issuing: nothing is issued"));
                assert_eq!(refused.code(), Code::PermissionDenied, "issuing: {refused:?}");
                assert!(refused.message().starts_with("task_quarantined"), "issuing: {refused:?}");
            }
            // Nobody lets it in, whatever it kept.
            for party in [&self.stolen, &stolen] {
                stage.connect(party).await.expect_err("new connections: nobody lets it in");
            }
            let refused = stage.service.offline().verify(&self.token, clock::now()).await.map(drop);
            assert_eq!(refused, Err(Refused::Suspended), "new connections: nor by its token");
            assert!(!stage.accepts(&self.token).await, "nor does the broker");
        }
        self.listed(stage, 2).await;
    }

    /// Everything goes on as before, with what it kept and with what it gets anew.
    async fn assert_restored(&mut self, stage: &Stage) {
        self.side.workload.fetch_x509().await.expect("issuing: certificates");
        let token = self.side.token().await;
        self.stream = X509Stream::open(&self.side.endpoint);
        within("a message", self.stream.next()).await.expect("streams: an identity");
        let kept = async || stage.connect(&self.stolen).await.ok();
        self.live = until("new connections: with what it kept", kept).await;
        raw_service::exchange(&mut self.live, b"x").await.expect("live connections");
        for token in [&token, &self.token] {
            let verifier = stage.service.offline();
            let good = async || verifier.verify(token, clock::now()).await.ok();
            until("new connections: by its token", good).await;
            assert!(stage.accepts(token).await);
        }
        self.listed(stage, 0).await;
    }
}

/// R19: issuing, open streams, new connections and live connections: none goes on under a quarantine, of
/// the task and of all below it, and all go on after the release. Nobody beside it notices.
#[tokio::test]
async fn r19_quarantine_stops_everything_and_release_restores_it() {
    let mut stage = Stage::new().await;
    let mut client = Client::begin(&mut stage, "").await;
    let task = client.side.task.clone();
    let mut child = Client::begin(&mut stage, &task).await;
    let mut beside = Client::begin(&mut stage, "").await;
    client.listed(&stage, 0).await;

    stage.operator.quarantine(&task).await.expect("an operator may");
    client.assert_contained(&stage).await;
    child.assert_contained(&stage).await;
    assert_eq!(stage.operator.state(&child.side.task).await.0, "quarantined");
    raw_service::exchange(&mut beside.live, b"x").await.expect("nobody beside it is cut off");
    beside.assert_restored(&stage).await;

    assert_nobody_releases_itself(&stage, &client, &child).await;
    let above = stage.operator.release(&child.side.task).await.expect_err("its parent is held");
    assert!(above.message().starts_with("parent_inactive"), "{above:?}");
    client.assert_contained_still(&stage).await;

    stage.operator.release(&task).await.expect("an operator may");
    client.assert_restored(&stage).await;
    child.assert_restored(&stage).await;
    let (_, story) = stage.operator.show(&task).await.expect("it goes on");
    let told = |what: &str| story.iter().filter(|entry| entry.what == what).count();
    assert_eq!((told("quarantined"), told("released")), (1, 1), "and the log has both");
}

impl Client {
    /// The same as a moment ago, without what can end only once.
    async fn assert_contained_still(&self, stage: &Stage) {
        self.side.workload.fetch_x509().await.expect_err("issuing");
        stage.connect(&self.stolen).await.expect_err("new connections");
        assert!(!stage.accepts(&self.token).await);
    }
}

/// Whoever is held cannot let itself go: its own socket has no such service, the one for everybody
/// neither, and the operators' is not for other users.
async fn assert_nobody_releases_itself(stage: &Stage, client: &Client, child: &Client) {
    let own = [&client.side.endpoint, &child.side.endpoint].map(Endpoint::channel);
    for channel in own.into_iter().chain([stage.broker.endpoint().channel()]) {
        let request = wire::OrderTaskRequest {
            task: client.side.task.clone(),
            order: Some(wire::order_task_request::Order::Release(true)),
            reason: String::new(),
        };
        let refused = OperatorClient::new(channel).order_task(request).await;
        assert_eq!(refused.expect_err("not there").code(), Code::Unimplemented);
    }
    let admin = stage.site.data().join("admin.sock");
    let mut knock = Command::new("/bin/sh");
    // A shell that may write there could connect; connecting asks for the same right.
    knock.args(["-c", "[ -w \"$0\" ]"]).arg(&admin).uid(STRANGER).gid(STRANGER);
    let outcome = within("a shell", knock.status()).await.expect("it starts");
    assert!(!outcome.success(), "another user may not even reach the operators' socket");
    let mut operator = stage.operator.clone();
    assert_eq!(operator.state(&client.side.task).await.0, "quarantined");
}
