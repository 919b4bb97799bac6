//! Ports: who the broker is there, who may come in, and how they open and close. Points are those of the
//! SPIFFE checklist.

use std::{net::SocketAddr, path::Path, sync::Arc};

use mayfly_proto::mayfly::v1::begin_task_request::Holder;
use mayfly_verify::{Authorize, Endpoint, Follower, Party, Patience, WorkloadClient, X509Source};
use rustls::{HandshakeKind, version};
use tokio::net::TcpStream;
use tonic::Code;

use crate::{
    actor::Actor,
    common::{Broker, NoStart, Operator, Site, own_uid, task_of, until, within},
    dial::{dial, free_port, get, gullible, leaf, shown},
    stand::{begin_on, configuration, stand, stand_with},
};

const OWN: &str = "spiffe://example.org/mayfly/broker";

fn http(listen: SocketAddr, tls: &str) -> String {
    format!("\n[http]\nlisten = \"{listen}\"\ntls = {tls}\n")
}

fn feed(listen: SocketAddr) -> String {
    format!("\n[broker]\nlisten = \"{listen}\"\n")
}

/// The broker's own tasks, those that are over included.
async fn own_tasks(operator: &mut Operator) -> Vec<mayfly_proto::mayfly::v1::TaskView> {
    let tasks = operator.list(true).await.expect("a list");
    tasks.into_iter().filter(|task| task.profile == "mayfly").collect()
}

/// A certificate for `name` in two files, made anew.
fn papers(dir: &Path, name: &str) -> (std::path::PathBuf, std::path::PathBuf) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a key");
    std::fs::write(&cert, made.cert.pem()).expect("a certificate");
    (cert, key)
}

async fn refusal(site: &Site) -> NoStart {
    site.try_start(&[]).await.expect_err("it cannot start")
}

#[tokio::test]
async fn the_brokers_own_identity_is_a_task_like_any_other() {
    let port = free_port();
    let (site, broker, mut operator) = stand_with(&http(port, "\"spiffe\"")).await;
    let own = own_tasks(&mut operator).await;
    let [task] = own.as_slice() else { panic!("one task: {own:?}") };
    assert_eq!((task.spiffe_id.as_str(), task.state.as_str()), (OWN, "active"));
    assert!(task.holder.contains(&broker.pid.to_string()), "{}", task.holder);
    let shown = leaf(&dial(port, &gullible(&version::TLS13)).await.expect("a handshake"));
    assert_eq!(shown.id.as_str(), OWN);
    let serial = shown.serial.expect("one of ours").to_string();
    assert_eq!(task.credentials.first().map(|one| one.serial.clone()), Some(serial.clone()));
    let (_, story) = operator.show(&task.task).await.expect("it is in the log");
    assert!(story.len() >= 2, "begun and promised: {story:?}");

    // Killed: the next run ends it, and with it what was signed.
    let before = task.task.clone();
    broker.kill().await;
    let broker = site.start().await;
    let mut operator = broker.operator().await;
    let own = own_tasks(&mut operator).await;
    let old = own.iter().find(|task| task.task == before).expect("it is remembered");
    assert_eq!((old.state.as_str(), old.cause.as_str()), ("ended", "exited"));
    assert!(old.credentials.iter().all(|one| one.revoked_at_ms != 0), "{old:?}");
    assert_eq!(own.iter().filter(|task| task.state == "active").count(), 1);

    // Stopped: it ends its task itself, and does so on the same port once more.
    assert_eq!(broker.stop().await, Some(0));
    let broker = site.start().await;
    let own = own_tasks(&mut broker.operator().await).await;
    let causes: Vec<_> = own.iter().map(|task| task.cause.as_str()).collect();
    assert!(causes.contains(&"completed") && causes.contains(&"exited"), "{causes:?}");
    dial(port, &gullible(&version::TLS13)).await.expect("the port is the same");
}

#[tokio::test]
async fn a_broker_without_ports_has_no_identity_of_its_own() {
    let (_site, broker, mut operator) = stand().await;
    assert!(operator.list(true).await.expect("a list").is_empty());
    let sockets = tokio::fs::read_to_string(format!("/proc/{}/net/tcp", broker.pid)).await;
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", broker.pid)).expect("ours");
    let held: Vec<_> = descriptors
        .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .filter_map(|link| {
            let link = link.to_string_lossy().into_owned();
            link.strip_prefix("socket:[").map(|inode| inode.trim_end_matches(']').to_owned())
        })
        .collect();
    let listed = sockets.unwrap_or_default();
    let tcp = listed.lines().filter_map(|line| line.split_whitespace().nth(9));
    assert_eq!(tcp.filter(|inode| held.iter().any(|held| held == inode)).count(), 0);
}

#[tokio::test]
async fn nobody_is_met_as_the_broker_and_nobody_can_begin_its_profile() {
    let site = Site::new(&format!("{}{}", configuration(""), http(free_port(), "\"spiffe\"")));
    let config = mayfly::config::Config::read(&site.config(), &site.data(), None, own_uid());
    let options = mayfly::broker::StartOptions {
        data_dir: site.data(),
        accept_restored: false,
        sentinel_dir: None,
    };
    // The broker is this very process, and so is its caller.
    let clock = mayfly::clock::system();
    let broker = mayfly::broker::Broker::start(config.expect("a good file"), options, clock);
    let broker = broker.await.expect("it starts");
    let socket = format!("unix://{}", broker.workload_socket().display());
    let client = WorkloadClient::new(&Endpoint::parse(&socket).expect("an address"));
    let context = client.fetch_x509().await.expect("the usual identity");
    let names: Vec<_> = context.svids.iter().map(|svid| svid.spiffe_id.to_string()).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    assert!(
        names.iter().all(|name| name.starts_with("spiffe://example.org/met/task/")),
        "{names:?}"
    );
    let mut operator = Operator(mayfly::admin::connect(&site.data()).await.expect("it serves"));
    let pid = i32::try_from(std::process::id()).expect("a pid");
    let begun = operator.begin(task_of("mayfly", Holder::LineagePid(pid))).await;
    let status = begun.expect_err("it is nobody's to begin");
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    broker.stop().await;
}

#[tokio::test]
async fn an_operator_who_ends_the_brokers_own_task_closes_its_ports_at_once() {
    let (pages, streams) = (free_port(), free_port());
    let more = format!("{}{}", http(pages, "\"spiffe\""), feed(streams));
    let (_site, _broker, mut operator) = stand_with(&more).await;
    let own = own_tasks(&mut operator).await.pop().expect("its task");
    operator.end(&own.task, "revoked").await.expect("an operator may");
    let closed = async || {
        let (one, other) = (gullible(&version::TLS13), gullible(&version::TLS12));
        let still = (dial(pages, &one).await.is_ok(), dial(streams, &other).await.is_ok());
        (still == (false, false)).then_some(())
    };
    until("ports that show nothing", closed).await;
}

/// Point 91, and what a resumed session would skip.
#[tokio::test]
async fn point_91_a_port_shows_the_svid_of_this_moment_and_resumes_no_session() {
    let port = free_port();
    let uid = own_uid();
    let config = format!(
        r#"trust_domain = "example.org"
[workload]
socket = "workload.sock"
[authority]
ca_ttl = "16s"
jwt_key_ttl = "16s"
[[profile]]
name = "met"
path = "/met"
selectors = ["unix:uid:{uid}"]
owner = "team"
x509_ttl = "2s"
jwt_ttl = "2s"
{}"#,
        http(port, "\"spiffe\"")
    );
    let site = Site::new(&config);
    let _broker = site.start().await;
    for version in [&version::TLS12, &version::TLS13] {
        let config = gullible(version);
        let mut seen = std::collections::BTreeSet::new();
        let more = async || {
            let mut stream = dial(port, &config).await.expect("always a certificate");
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
            let leaf = leaf(&stream);
            assert!(leaf.not_after > mayfly::clock::now(), "it is good when it is shown");
            // A ticket would come with the first answer.
            get(&mut stream, "/healthz").await.expect("an answer");
            Some(leaf.serial)
        };
        while seen.len() < 3 {
            seen.insert(until("another certificate", more).await);
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn a_port_that_is_taken_or_a_certificate_that_is_broken_is_a_clear_no() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address");
    for more in [http(port, "\"spiffe\""), feed(port)] {
        let site = Site::new(&configuration(&more));
        let told = refusal(&site).await;
        assert_eq!(told.code, Some(1));
        let wanted = format!("another process is listening on `{port}`");
        assert!(told.said.contains(&wanted), "{told:?}");
    }
    let files = "{ cert = \"cert.pem\", key = \"key.pem\" }";
    let site = Site::new(&configuration(&http(free_port(), files)));
    assert!(refusal(&site).await.said.contains("cannot read `"), "no such file");
    let (cert, key) = papers(site.root(), "localhost");
    std::fs::write(&cert, "rubbish").expect("ours");
    assert!(refusal(&site).await.said.contains("cert.pem` holds no certificate in pem"));
    papers(site.root(), "localhost");
    std::fs::write(&key, "rubbish").expect("ours");
    assert!(refusal(&site).await.said.contains("key.pem` holds no private key in pem"));
    papers(site.root(), "localhost");
    let other = rcgen::KeyPair::generate().expect("a key");
    std::fs::write(&key, other.serialize_pem()).expect("ours");
    assert!(refusal(&site).await.said.contains("cannot be used"), "a key of another certificate");
    papers(site.root(), "localhost");
    site.start().await;
}

#[tokio::test]
async fn a_certificate_in_files_is_read_again_and_a_broken_one_changes_nothing() {
    let port = free_port();
    let site = Site::new(&configuration(&http(port, "{ cert = \"cert.pem\", key = \"key.pem\" }")));
    let (cert, _key) = papers(site.root(), "localhost");
    let broker = site.start().await;
    assert!(own_tasks(&mut broker.operator().await).await.is_empty(), "it needs to be nobody");
    let now = async || shown(&dial(port, &gullible(&version::TLS13)).await.expect("a handshake"));
    let first = now().await;
    std::fs::write(&cert, "rubbish").expect("ours");
    let said = async || site.said().contains("the certificate before stays in use").then_some(());
    until("a complaint", said).await;
    assert_eq!(now().await, first);
    papers(site.root(), "localhost");
    until("another certificate", async || (now().await != first).then_some(())).await;
}

#[tokio::test]
async fn sigterm_says_goodbye_to_those_who_are_there_and_the_ports_come_back() {
    let (pages, streams) = (free_port(), free_port());
    let more = format!("{}{}", http(pages, "\"spiffe\""), feed(streams));
    let (site, broker, _operator) = stand_with(&more).await;
    let verifier = Verifier::start(&broker).await;
    let lingering = dial(pages, &gullible(&version::TLS13)).await.expect("a handshake");
    let following = verifier.dial(streams).await.expect("it may come in");
    assert_eq!(within("an end in order", broker.stop()).await, Some(0));
    assert!(get(lingering, "/healthz").await.is_err(), "it was cut off in the end");
    drop(following);
    let _broker = site.start().await;
    dial(pages, &gullible(&version::TLS13)).await.expect("the same port");
}

/// A verifier: this process, with an identity and the news of who has ended.
struct Verifier {
    source: X509Source,
    follower: Follower,
}

impl Verifier {
    async fn start(broker: &Broker) -> Self {
        let source = broker.workload().watch_x509();
        source.ready().await.expect("an identity");
        let follower = Follower::connect(&broker.endpoint(), Patience::default());
        follower.ready().await;
        Self { source, follower }
    }

    async fn dial(
        &self,
        address: SocketAddr,
    ) -> std::io::Result<mayfly_verify::Guarded<tokio_rustls::client::TlsStream<TcpStream>>> {
        let own = mayfly_core::SpiffeId::parse(OWN).expect("an id");
        let view = Arc::clone(self.follower.view());
        let party = Party::new(self.source.held(), Authorize::Id(own), view);
        let stream = TcpStream::connect(address).await?;
        within("a handshake", party.connect(stream, mayfly::clock::now())).await
    }
}

/// Points 89 and 91: the feed's port asks who comes, each time, and for as long as they stay.
#[tokio::test]
async fn point_89_the_feeds_port_lets_in_workloads_that_go_on_and_cuts_those_that_end() {
    use tokio::io::AsyncReadExt as _;
    let port = free_port();
    let (_site, broker, mut operator) = stand_with(&feed(port)).await;
    // Nobody at all. In TLS 1.3 a client hears of it only when it reads.
    assert!(dial(port, &gullible(&version::TLS12)).await.is_err(), "no certificate, no handshake");
    let mut nobody = dial(port, &gullible(&version::TLS13)).await.expect("half a handshake");
    assert!(nobody.read_u8().await.is_err());

    let verifier = Verifier::start(&broker).await;
    let task = verifier.source.held().borrow().context().and_then(|held| {
        held.default_svid().map(|svid| svid.spiffe_id.path().rsplit('/').next().map(str::to_owned))
    });
    // A thief keeps what it has, so the end of its connection can only be the broker's doing.
    let (_kept, stolen) = tokio::sync::watch::channel(verifier.source.held().borrow().clone());
    let thief = Party::new(stolen, Authorize::Any, Arc::clone(verifier.follower.view()));
    let call = async || {
        let stream = TcpStream::connect(port).await.expect("a port");
        let mut stream = thief.connect(stream, mayfly::clock::now()).await?;
        // A server speaks first in HTTP/2: settings.
        within("a first word", stream.read_u8()).await.map(|_| stream)
    };
    let mut live = call().await.expect("it may come in");
    operator.end(&task.flatten().expect("a task"), "revoked").await.expect("an operator may");
    let mut rest = Vec::new();
    let cut = within("the end of a live connection", live.read_to_end(&mut rest)).await;
    drop(cut);
    let refused = call().await.is_err();
    assert!(refused, "what was signed for an ended task opens nothing");
}

/// Whoever is too slow, or one too many, costs others nothing.
#[tokio::test]
async fn a_caller_that_says_nothing_is_sent_away() {
    use tokio::io::AsyncReadExt as _;
    let port = free_port();
    let (_site, _broker, _operator) = stand_with(&http(port, "\"spiffe\"")).await;
    let mut silent = TcpStream::connect(port).await.expect("a port");
    dial(port, &gullible(&version::TLS13)).await.expect("others are served meanwhile");
    let mut rest = Vec::new();
    let _cut = within("the end of patience", silent.read_to_end(&mut rest)).await.is_ok();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_public_url_that_nobody_serves_is_noticed_and_one_that_is_served_is_not() {
    const URL: &str = "\n[status]\npublic_url = \"https://mayfly.example.org\"\n";
    let noticed = async |more: &str| {
        let (_site, _broker, mut operator) = stand_with(more).await;
        let notices = operator.status().await.expect("a status").notices;
        notices.iter().any(|notice| notice.contains("`status.public_url` is set"))
    };
    assert!(noticed(URL).await);
    assert!(!noticed(&format!("{URL}{}", http(free_port(), "\"spiffe\""))).await);
}

#[tokio::test]
async fn a_workloads_own_end_is_not_the_brokers() {
    let port = free_port();
    let (site, _broker, mut operator) = stand_with(&http(port, "\"spiffe\"")).await;
    let mut job = Actor::start(&site.socket()).await;
    let task = begin_on(&mut operator, job.pid).await;
    job.x509().await.expect("its identity");
    operator.end(&task, "completed").await.expect("it ends");
    dial(port, &gullible(&version::TLS13)).await.expect("the broker goes on");
}
