//! The Broker API with everything real: an orchestrator that shows its X.509-SVID over a unix socket and
//! acts for workloads that are processes. Points are those of the SPIFFE checklist.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use hyper_util::rt::TokioIo;
use mayfly_core::SpiffeId;
use mayfly_proto::{
    google::rpc,
    mayfly::v1::{TaskReference, begin_task_request::Holder},
    spiffe::broker::{self as wire, WorkloadReference, api_client::ApiClient},
};
use mayfly_verify::{Authorize, Follower, Held, Party, Patience};
use prost::Message as _;
use rustls::version;
use tokio::{
    net::{TcpStream, UnixStream},
    sync::watch,
};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    actor::Actor,
    common::{Broker, Operator, Site, own_uid, task_of, until, within},
    dial::{dial, free_port, gullible, was_torn},
    stand::{AUDIENCE, begin_on, configuration},
};

const OWN: &str = "spiffe://example.org/mayfly/broker";
pub(crate) const ORCHESTRATOR: &str = "spiffe://example.org/orchestrator";

/// This very process is the orchestrator: its first identity has a stable name. It may act for the usual
/// profiles and not for its own.
pub(crate) fn with_broker_api(id: &str, more: &str) -> String {
    let uid = own_uid();
    let profile = format!(
        "[[profile]]\nname = \"orchestrator\"\npath = \"/orchestrator\"\nselectors = [\"unix:uid:{uid}\"]\n\
         owner = \"team\"\nidentity = \"stable\"\n\n[[profile]]"
    );
    let table = format!(
        "\n[broker_api]\n{more}\n[[broker_api.broker]]\nspiffe_id = \"{id}\"\n\
         references = [\"pid\", \"task\"]\nprofiles = [\"met\", \"job\", \"booth\", \"errand\"]\n"
    );
    configuration(&table).replacen("[[profile]]", &profile, 1)
}

async fn stand(id: &str, more: &str) -> (Site, Broker, Operator) {
    let site = Site::new(&with_broker_api(id, more));
    let broker = site.start().await;
    let operator = broker.operator().await;
    (site, broker, operator)
}

pub(crate) fn socket(site: &Site) -> PathBuf {
    site.data().join("broker").join("broker.sock")
}

/// The orchestrator, which keeps what it held at first and goes by its first name.
pub(crate) struct Orchestrator {
    party: Party,
    _follower: Follower,
    _kept: watch::Sender<Held>,
}

impl Orchestrator {
    pub(crate) async fn start(broker: &Broker) -> Self {
        let source = broker.workload().watch_x509();
        source.ready().await.expect("an identity");
        let follower = Follower::connect(&broker.endpoint(), Patience::default());
        follower.ready().await;
        let (kept, held) = watch::channel(source.held().borrow().clone());
        let own = SpiffeId::parse(OWN).expect("an id");
        let party = Party::new(held, Authorize::Id(own), Arc::clone(follower.view()));
        Self { party: party.with_alpn(&[b"h2"]), _follower: follower, _kept: kept }
    }

    pub(crate) async fn unix(&self, path: &Path) -> Result<Client, tonic::transport::Error> {
        let (party, path) = (self.party.clone(), path.to_owned());
        let connect = move |_| {
            let (party, path) = (party.clone(), path.clone());
            async move {
                let stream = UnixStream::connect(path).await?;
                party.connect(stream, mayfly::clock::now()).await.map(TokioIo::new)
            }
        };
        let endpoint = Endpoint::from_static("http://localhost");
        let connecting = endpoint.connect_with_connector(tower::service_fn(connect));
        within("a connection", connecting).await.map(Client)
    }

    async fn tcp(&self, address: SocketAddr) -> Result<Client, tonic::transport::Error> {
        let party = self.party.clone();
        let connect = move |_| {
            let party = party.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                party.connect(stream, mayfly::clock::now()).await.map(TokioIo::new)
            }
        };
        let endpoint = Endpoint::from_static("http://localhost");
        let connecting = endpoint.connect_with_connector(tower::service_fn(connect));
        within("a connection", connecting).await.map(Client)
    }
}

/// A connection of the orchestrator's.
pub(crate) struct Client(Channel);

pub(crate) type Svids = tonic::Streaming<wire::SubscribeToX509svidResponse>;

impl Client {
    fn api(&self) -> ApiClient<Channel> {
        ApiClient::new(self.0.clone())
    }

    /// Opens a stream and waits for its first message.
    pub(crate) async fn watch(
        &self,
        reference: &WorkloadReference,
    ) -> Result<(wire::X509svid, Svids), Status> {
        let request = ask(wire::SubscribeToX509svidRequest { reference: Some(reference.clone()) });
        let answer = within("a stream", self.api().subscribe_to_x509svid(request)).await;
        let mut stream = answer?.into_inner();
        let said = within("a first message", stream.message()).await?.expect("the stream goes on");
        Ok((said.svids.into_iter().next().expect("never empty"), stream))
    }

    async fn token(
        &self,
        reference: &WorkloadReference,
        id: &str,
    ) -> Result<wire::Jwtsvid, Status> {
        let request = ask(wire::FetchJwtsvidRequest {
            reference: Some(reference.clone()),
            audience: vec![AUDIENCE.to_owned()],
            spiffe_id: id.to_owned(),
        });
        let answer = within("a token", self.api().fetch_jwtsvid(request)).await?.into_inner();
        Ok(answer.svids.into_iter().next().expect("never empty"))
    }
}

fn ask<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let yes = tonic::metadata::MetadataValue::from_static("true");
    request.metadata_mut().insert("broker.spiffe.io", yes);
    request
}

fn packed(name: &str, value: Vec<u8>) -> WorkloadReference {
    let type_url = format!("type.googleapis.com/{name}");
    WorkloadReference { reference: Some(prost_types::Any { type_url, value }) }
}

fn by_pid(pid: i32) -> WorkloadReference {
    let value = wire::WorkloadPidReference { pid }.encode_to_vec();
    packed("spiffe.broker.WorkloadPIDReference", value)
}

pub(crate) fn by_task(task: &str, version: u32) -> WorkloadReference {
    let value = TaskReference { id: task.to_owned(), version }.encode_to_vec();
    packed("mayfly.v1.TaskReference", value)
}

fn reason(status: &Status) -> String {
    let details = rpc::Status::decode(status.details()).expect("a status");
    let info = details.details.first().expect("details");
    rpc::ErrorInfo::decode(info.value.as_slice()).expect("an error info").reason
}

fn assert_no(status: &Status, code: Code, wanted: &str) {
    assert_eq!(status.code(), code, "{status:?}");
    assert_eq!(reason(status), wanted, "{status:?}");
}

/// The status with which a stream ends.
async fn end(stream: &mut Svids) -> Status {
    within("the end of a stream", async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a stream never ends well"),
                Err(status) => break status,
            }
        }
    })
    .await
}

const NOT_FOUND: &str = "WORKLOAD_NOT_FOUND";
const NOT_ENTITLED: &str = "WORKLOAD_NOT_ENTITLED";

#[tokio::test]
async fn points_87_and_101_a_broker_gets_over_mutual_tls_what_its_workload_would_get() {
    let (site, broker, mut operator) = stand(ORCHESTRATOR, "").await;
    let orchestrator = Orchestrator::start(&broker).await;
    let client = orchestrator.unix(&socket(&site)).await.expect("it is listed");
    let mut met = Actor::start(&site.socket()).await;
    let mut job = Actor::start(&site.socket()).await;
    let task = begin_on(&mut operator, job.pid).await;
    let begun = job.x509().await.expect("its identity");
    for reference in [by_pid(job.pid), by_task(&task, 0), by_task(&task, 1)] {
        let (svid, _stream) = client.watch(&reference).await.expect("what it would get");
        assert_eq!(svid.spiffe_id, begun.spiffe_id);
        let token = client.token(&reference, "").await.expect("a token");
        assert_eq!(token.spiffe_id, begun.spiffe_id);
        broker.workload().validate_jwt(AUDIENCE, &token.svid).await.expect("it is good");
    }
    // The workload itself has the orchestrator's name too, for which nobody may act.
    let (svid, _stream) = client.watch(&by_pid(met.pid)).await.expect("what it would get");
    assert!(svid.spiffe_id.starts_with("spiffe://example.org/met/task/"), "{}", svid.spiffe_id);
    assert_eq!(met.x509().await.expect("its default").spiffe_id, ORCHESTRATOR);
    let named = client.token(&by_pid(met.pid), &svid.spiffe_id).await.expect("the one it named");
    assert_eq!(named.spiffe_id, svid.spiffe_id);
    let status = client.token(&by_pid(met.pid), ORCHESTRATOR).await.expect_err("not given");
    assert_no(&status, Code::PermissionDenied, NOT_ENTITLED);

    // Without TLS nobody is spoken to, on a unix socket neither.
    let plain = broken_connection(&socket(&site)).await;
    assert!(was_torn(&plain), "no answer, but a torn connection: {plain:?}");
}

/// A call without a handshake.
async fn broken_connection(path: &Path) -> Status {
    let path = path.to_owned();
    let connect = move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    };
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector_lazy(tower::service_fn(connect));
    let client = Client(channel);
    client.watch(&by_pid(1)).await.map(|(svid, _)| svid.spiffe_id).expect_err("no handshake")
}

#[tokio::test]
async fn point_89_who_is_not_listed_or_has_ended_is_not_spoken_to() {
    let (site, broker, _operator) = stand("spiffe://example.org/another", "").await;
    let stranger = Orchestrator::start(&broker).await;
    let client = stranger.unix(&socket(&site)).await;
    // In TLS 1.3 a client hears of it only when it reads.
    if let Ok(client) = client {
        let status = client.watch(&by_pid(1)).await.map(|(svid, _)| svid.spiffe_id);
        let status = status.expect_err("it is not listed");
        assert!(was_torn(&status), "no answer, but a torn connection: {status:?}");
    }

    let (site, broker, mut operator) = stand(ORCHESTRATOR, "").await;
    let orchestrator = Orchestrator::start(&broker).await;
    let client = orchestrator.unix(&socket(&site)).await.expect("it is listed");
    let job = Actor::start(&site.socket()).await;
    begin_on(&mut operator, job.pid).await;
    let (_svid, mut stream) = client.watch(&by_pid(job.pid)).await.expect("it goes on");
    let tasks = operator.list(false).await.expect("a list");
    let own = tasks.iter().find(|task| task.spiffe_id == ORCHESTRATOR).expect("its task");
    operator.end(&own.task, "revoked").await.expect("an operator may");
    // Its connection is cut, and what it keeps opens no other.
    let status = end(&mut stream).await;
    assert!(was_torn(&status), "{status:?}");
    let refused = async || {
        let Ok(client) = orchestrator.unix(&socket(&site)).await else { return Some(()) };
        client.watch(&by_pid(job.pid)).await.is_err().then_some(())
    };
    until("a broker that is refused", refused).await;
}

#[tokio::test]
async fn point_90_the_socket_stands_in_a_folder_of_its_own_and_only_where_it_is_asked_for() {
    let (site, _broker, _operator) = stand(ORCHESTRATOR, "").await;
    let folder = socket(&site).parent().expect("a folder").to_owned();
    let mode = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode();
    assert_eq!(mode(&folder) & 0o777, 0o770);
    assert_eq!(mode(&socket(&site)) & 0o777, 0o660);
    let (site, _broker, _operator) = crate::stand::stand().await;
    assert!(!socket(&site).exists(), "nobody asked for it");
}

#[tokio::test]
async fn point_91_the_broker_socket_shows_the_svid_of_this_moment_and_resumes_no_session() {
    let short = "\n[authority]\nca_ttl = \"16s\"\njwt_key_ttl = \"16s\"\n";
    let text =
        with_broker_api(ORCHESTRATOR, "").replace("\n[workload]", &format!("{short}[workload]"));
    let text =
        text.replace("owner = \"team\"", "owner = \"team\"\nx509_ttl = \"2s\"\njwt_ttl = \"2s\"");
    let site = Site::new(&text);
    let broker = site.start().await;
    let source = broker.workload().watch_x509();
    source.ready().await.expect("an identity");
    let follower = Follower::connect(&broker.endpoint(), Patience::default());
    follower.ready().await;
    let own = SpiffeId::parse(OWN).expect("an id");
    let party = Party::new(source.held(), Authorize::Id(own), Arc::clone(follower.view()));
    let mut seen = BTreeSet::new();
    let more = async || {
        let stream = UnixStream::connect(socket(&site)).await.expect("a socket");
        let stream = party.connect(stream, mayfly::clock::now()).await.ok()?;
        let kind = stream.get_ref().get_ref().1.handshake_kind();
        assert_eq!(kind, Some(rustls::HandshakeKind::Full));
        stream.peer().leaf.serial
    };
    while seen.len() < 3 {
        seen.insert(until("another certificate", more).await);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn point_95_what_is_not_there_is_not_found_and_what_has_no_identity_is_denied() {
    let (site, broker, mut operator) = stand(ORCHESTRATOR, "").await;
    let orchestrator = Orchestrator::start(&broker).await;
    let client = orchestrator.unix(&socket(&site)).await.expect("it is listed");
    let no =
        async |reference| client.watch(&reference).await.map(|(svid, _)| svid).expect_err("no");
    for pid in [0, -1] {
        assert_no(&no(by_pid(pid)).await, Code::InvalidArgument, "WORKLOAD_REFERENCE_INVALID");
    }
    assert_no(&no(by_pid(i32::MAX)).await, Code::NotFound, NOT_FOUND);
    assert_no(&no(by_task(&"0".repeat(32), 0)).await, Code::NotFound, NOT_FOUND);
    // A task for which this broker may not act, and a process that earns nothing.
    let own = operator.list(false).await.expect("a list");
    let own = own.iter().find(|task| task.spiffe_id == ORCHESTRATOR).expect("its task");
    assert_no(&no(by_task(&own.task, 0)).await, Code::PermissionDenied, NOT_ENTITLED);
    if own_uid() == 0 {
        let mut sleeper = tokio::process::Command::new("sleep");
        let mut stranger = sleeper
            .arg("600")
            .uid(crate::stand::STRANGER)
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let pid = i32::try_from(stranger.id().expect("it runs")).expect("a pid");
        assert_no(&no(by_pid(pid)).await, Code::PermissionDenied, NOT_ENTITLED);
        stranger.kill().await.expect("it is ours");
        assert_no(&no(by_pid(pid)).await, Code::NotFound, NOT_FOUND);
    } else {
        assert_no(&no(by_pid(1)).await, Code::PermissionDenied, NOT_ENTITLED);
    }
}

#[tokio::test]
async fn points_97_and_100_over_tcp_a_task_is_meant_and_a_pid_is_not() {
    let port = free_port();
    let (site, broker, mut operator) = stand(ORCHESTRATOR, &format!("listen = \"{port}\"")).await;
    let orchestrator = Orchestrator::start(&broker).await;
    let mut nobody = dial(port, &gullible(&version::TLS13)).await.expect("half a handshake");
    use tokio::io::AsyncReadExt as _;
    assert!(nobody.read_u8().await.is_err(), "no certificate, no handshake");
    let client = orchestrator.tcp(port).await.expect("it is listed");
    let job = Actor::start(&site.socket()).await;
    let task = begin_on(&mut operator, job.pid).await;
    let denied = client.watch(&by_pid(job.pid)).await.map(|(svid, _)| svid);
    assert_no(
        &denied.expect_err("a number means nothing there"),
        Code::PermissionDenied,
        NOT_ENTITLED,
    );
    let (_svid, mut first) = client.watch(&by_task(&task, 1)).await.expect("its task");
    let (before, mut any) = client.watch(&by_task(&task, 0)).await.expect("its task");
    assert_eq!(operator.amend(&task, "another thing").await.expect("an operator may"), 2);
    assert_no(&end(&mut first).await, Code::NotFound, NOT_FOUND);
    let after =
        within("a new version", any.message()).await.expect("it goes on").expect("a message");
    let after = after.svids.into_iter().next().expect("never empty");
    assert!(after.spiffe_id == before.spiffe_id && after.x509_svid != before.x509_svid);
    let old = client.watch(&by_task(&task, 1)).await.map(|(svid, _)| svid);
    assert_no(&old.expect_err("it has another version"), Code::NotFound, NOT_FOUND);
    client.watch(&by_task(&task, 2)).await.expect("the version that it has");
}

#[tokio::test]
async fn points_104_and_105_a_killed_workload_ends_its_streams_within_milliseconds_and_no_others() {
    let (site, broker, mut operator) = stand(ORCHESTRATOR, "").await;
    let orchestrator = Orchestrator::start(&broker).await;
    let client = orchestrator.unix(&socket(&site)).await.expect("it is listed");
    let other = Actor::start(&site.socket()).await;
    let task = begin_on(&mut operator, other.pid).await;
    let (_svid, mut staying) = client.watch(&by_task(&task, 0)).await.expect("its identity");
    let mut took = Vec::new();
    for _ in 0..5 {
        let job = Actor::start(&site.socket()).await;
        let (pid, task) = (job.pid, begin_on(&mut operator, job.pid).await);
        let (_svid, mut by_its_pid) = client.watch(&by_pid(pid)).await.expect("its identity");
        let (_svid, mut by_its_task) =
            client.watch(&by_task(&task, 0)).await.expect("its identity");
        let started = clock();
        job.signal(nix::sys::signal::Signal::SIGKILL);
        let (one, two) = tokio::join!(end(&mut by_its_pid), end(&mut by_its_task));
        took.push(started.elapsed().as_millis());
        assert_no(&one, Code::NotFound, NOT_FOUND);
        assert_no(&two, Code::NotFound, NOT_FOUND);
        for reference in [by_pid(pid), by_task(&task, 0)] {
            let later = client.watch(&reference).await.map(|(svid, _)| svid);
            assert_no(&later.expect_err("it is gone"), Code::NotFound, NOT_FOUND);
        }
    }
    took.sort_unstable();
    // The median, because the machine may be busy; an idle one takes a millisecond or two.
    assert!(took[took.len() / 2] < 500, "milliseconds from kill -9 to the ends: {took:?}");
    let silence = std::time::Duration::from_millis(50);
    assert!(tokio::time::timeout(silence, staying.message()).await.is_err(), "nothing to tell");
    client.token(&by_pid(other.pid), "").await.expect("the connection still serves");
}

#[expect(clippy::disallowed_methods, reason = "a test measures real time")]
fn clock() -> Instant {
    Instant::now()
}

#[tokio::test]
async fn point_108_finished_is_not_found_stopped_is_denied_and_a_restart_is_unavailable() {
    let (site, broker, mut operator) = stand(ORCHESTRATOR, "").await;
    let orchestrator = Orchestrator::start(&broker).await;
    let client = orchestrator.unix(&socket(&site)).await.expect("it is listed");
    for (cause, code, wanted) in [
        ("completed", Code::NotFound, NOT_FOUND),
        ("revoked", Code::PermissionDenied, NOT_ENTITLED),
    ] {
        let job = Actor::start(&site.socket()).await;
        let task = begin_on(&mut operator, job.pid).await;
        for reference in [by_pid(job.pid), by_task(&task, 0)] {
            let (_svid, mut stream) = client.watch(&reference).await.expect("its identity");
            if reference == by_task(&task, 0) {
                operator.end(&task, cause).await.expect("an operator may");
            } else {
                operator.quarantine(&task).await.expect("an operator may");
                assert_no(&end(&mut stream).await, Code::PermissionDenied, NOT_ENTITLED);
                operator.release(&task).await.expect("an operator may");
                client.watch(&reference).await.expect("it may go on");
                continue;
            }
            assert_no(&end(&mut stream).await, code, wanted);
            // It lives, and hears the same by either name for as long as it does.
            for reference in [by_pid(job.pid), by_task(&task, 0)] {
                let later = client.watch(&reference).await.map(|(svid, _)| svid);
                assert_no(&later.expect_err("it is over"), code, wanted);
            }
        }
        let (pid, task) = (job.pid, task);
        job.kill().await;
        let gone = async || {
            let status = client.watch(&by_task(&task, 0)).await.map(|(svid, _)| svid);
            let status = status.expect_err("it is over");
            (status.code() == Code::NotFound).then_some(())
        };
        until("a task that is not found", gone).await;
        let status = client.watch(&by_pid(pid)).await.map(|(svid, _)| svid);
        assert_no(&status.expect_err("it is gone"), Code::NotFound, NOT_FOUND);
    }
    let begun = operator.begin(task_of("booth", Holder::Socket(true))).await.expect("it begins");
    let (_svid, mut stream) = client.watch(&by_task(&begun.task, 0)).await.expect("its identity");
    let (status, code) = tokio::join!(end(&mut stream), within("an end in order", broker.stop()));
    assert_eq!((status.code(), code), (Code::Unavailable, Some(0)), "{status:?}");
}
