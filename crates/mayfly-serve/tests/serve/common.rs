//! A desk that says what it is told to, a served socket, and clients.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use mayfly_attest::{CollectOptions, Collector};
use mayfly_core::{
    Closing, Denial, Evidence, Identity, Place, PolicyEpoch, RevocationSet, Serial, SpiffeId,
    TaskId, TaskVersion, Timestamp, TrustDomain, limits::BACKDATE,
};
use mayfly_proto::{
    mayfly::v1::revocation_feed_client::RevocationFeedClient,
    spiffe::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use mayfly_serve::{
    Bundles, Clock, Desk, Doors, Eyes, Introduced, JwtSvid, Listener, LocalEyes, Reply, Services,
    Validated, X509Svid,
    desk::{Named, Reference, Report},
    feed::hub::{Hub, Means, Seal, Signature},
    quota::Quota,
    sds::Names,
};
use tokio::sync::watch;
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

/// Nothing in these tests takes this long; what does has hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What the desk will say.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) who: Result<Vec<Identity>, Denial>,
    pub(crate) x509: Option<Denial>,
    pub(crate) x509_of: BTreeMap<TaskId, Denial>,
    pub(crate) token: Option<Denial>,
    /// While this is true, introductions are held.
    pub(crate) holds: watch::Receiver<bool>,
    pub(crate) ttl_ms: u64,
}

/// The desk, and what it was asked.
#[derive(Debug)]
pub(crate) struct Scripted {
    pub(crate) script: Mutex<Script>,
    pub(crate) bundles: watch::Sender<Arc<Bundles>>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) seal: Arc<TestSeal>,
    pub(crate) reports: Mutex<Vec<Report>>,
    pub(crate) met: Mutex<Vec<Evidence>>,
    pub(crate) referred: Mutex<Vec<Reference>>,
    pub(crate) issued: AtomicU64,
    news: Mutex<BTreeMap<TaskId, watch::Sender<Option<Closing>>>>,
    start: tokio::time::Instant,
}

impl Scripted {
    pub(crate) fn now(&self) -> Timestamp {
        since(self.start)
    }

    pub(crate) fn tell(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn close(&self, task: TaskId, why: Closing) {
        let news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        news.get(&task).expect("the task was introduced").send_replace(Some(why));
    }

    pub(crate) fn issued(&self) -> u64 {
        self.issued.load(Ordering::SeqCst)
    }

    pub(crate) fn met(&self) -> Vec<Evidence> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn introduced(&self) -> Result<Vec<Introduced>, Denial> {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let mut introduce = |identity: Identity| {
            let sender = news.entry(identity.task).or_insert_with(|| watch::channel(None).0);
            Introduced { news: sender.subscribe(), identity, epoch: PolicyEpoch(1) }
        };
        Ok(self.script().who?.into_iter().map(&mut introduce).collect())
    }

    fn script(&self) -> Script {
        self.script.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn reply<T: Send + 'static>(answer: Result<T, Denial>) -> Reply<T> {
    Box::pin(std::future::ready(answer))
}

fn since(start: tokio::time::Instant) -> Timestamp {
    let since = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    Timestamp(1_800_000_000_000 + since)
}

/// The scripted desk behind the trait.
#[derive(Clone, Debug)]
pub(crate) struct TestDesk(pub(crate) Arc<Scripted>);

impl Desk for TestDesk {
    fn introduce(&self, evidence: Evidence) -> Reply<Vec<Introduced>> {
        self.0.met.lock().unwrap_or_else(PoisonError::into_inner).push(evidence);
        let desk = Arc::clone(&self.0);
        Box::pin(async move {
            let mut holds = desk.script().holds;
            let _released = holds.wait_for(|holds| !holds).await.map(|holds| *holds);
            desk.introduced()
        })
    }

    fn refer(&self, reference: Reference) -> Reply<Vec<Introduced>> {
        self.0.referred.lock().unwrap_or_else(PoisonError::into_inner).push(reference.clone());
        match reference.named {
            Named::Process(evidence) => self.introduce(evidence),
            Named::Task(..) => reply(self.0.introduced()),
        }
    }

    fn x509(&self, who: &Introduced) -> Reply<X509Svid> {
        let script = self.0.script();
        if let Some(denial) =
            script.x509.or_else(|| script.x509_of.get(&who.identity.task).copied())
        {
            return reply(Err(denial));
        }
        let number = self.0.issued.fetch_add(1, Ordering::SeqCst);
        let now = self.0.now();
        reply(Ok(X509Svid {
            spiffe_id: who.identity.spiffe_id.clone(),
            chain: der(&format!("chain {number}")),
            key: Bytes::from(format!("key {number}")),
            not_before: now.minus(BACKDATE),
            not_after: Timestamp(now.0 + script.ttl_ms),
            serial: Serial::new(Place::default(), number),
        }))
    }

    fn jwt(&self, who: &Introduced, audience: Vec<String>) -> Reply<JwtSvid> {
        reply(Ok(JwtSvid {
            spiffe_id: who.identity.spiffe_id.clone(),
            token: format!("token for {}", audience.join(" ")),
            not_after: self.0.now(),
        }))
    }

    fn validate(&self, who: Vec<Introduced>, audience: String, _token: String) -> Reply<Validated> {
        if let Some(denial) = self.0.script().token {
            return reply(Err(denial));
        }
        let id = who.first().expect("somebody asks").identity.spiffe_id.clone();
        let claims = serde_json::json!({
            "sub": id.as_str(), "aud": [audience], "exp": 1_800_000_000, "deep": {"list": [true, null]},
        });
        let claims = claims.as_object().expect("an object").clone();
        reply(Ok(Validated { spiffe_id: id, claims }))
    }

    fn bundles(&self) -> watch::Receiver<Arc<Bundles>> {
        self.0.bundles.subscribe()
    }

    fn feed(&self) -> Arc<Hub> {
        Arc::clone(&self.0.hub)
    }

    fn report(&self, report: Report) -> Reply<()> {
        self.0.reports.lock().unwrap_or_else(PoisonError::into_inner).push(report);
        reply(Ok(()))
    }
}

/// Seals with a digest, which whoever looks at it can make again.
#[derive(Debug)]
pub(crate) struct TestSeal(pub(crate) Mutex<&'static str>);

impl TestSeal {
    pub(crate) fn kid_now(&self) -> &'static str {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn signature(kid: &str, head: &[u8]) -> Vec<u8> {
        let mut digest = std::hash::DefaultHasher::new();
        std::hash::Hash::hash(&(kid, head), &mut digest);
        std::hash::Hasher::finish(&digest).to_be_bytes().to_vec()
    }
}

impl Seal for TestSeal {
    fn kid(&self) -> String {
        self.kid_now().to_owned()
    }

    fn seal(&self, head: &[u8]) -> Option<Signature> {
        let kid = self.kid_now();
        (kid != "none").then(|| Signature { kid: kid.into(), bytes: Self::signature(kid, head) })
    }

    fn jwks(&self) -> Bytes {
        Bytes::from_static(b"keys")
    }
}

/// What has the shape of DER and says something else.
pub(crate) fn der(text: &str) -> Bytes {
    let len = u8::try_from(text.len()).expect("a short text");
    [&[0x30, len], text.as_bytes()].concat().into()
}

pub(crate) fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).expect("a trust domain")
}

pub(crate) fn task(number: u8) -> TaskId {
    TaskId::from_bytes([number; 16])
}

pub(crate) fn identity(number: u8, hint: &str, federates_with: &[&str]) -> Identity {
    let uri = format!("spiffe://example.org/w/{number}");
    Identity {
        task: task(number),
        version: TaskVersion(1),
        spiffe_id: SpiffeId::parse(&uri).expect("a spiffe id"),
        hint: hint.to_owned(),
        federates_with: federates_with.iter().map(|name| domain(name)).collect(),
    }
}

pub(crate) fn bundles(own: &str) -> Bundles {
    let map = |kind: &str| {
        let entry = |name: &str, bundle: String| (domain(name), Bytes::from(bundle));
        BTreeMap::from([
            entry("example.org", format!("{kind} {own}")),
            entry("friend.org", format!("{kind} of a friend")),
            entry("stranger.org", format!("{kind} of a stranger")),
            entry("empty.org", String::new()),
        ])
    };
    Bundles { x509: map("x509"), jwt: map("jwt"), crls: vec![Bytes::from_static(b"crl 1")] }
}

/// A served socket with everything behind it.
pub(crate) struct Served {
    pub(crate) desk: Arc<Scripted>,
    pub(crate) doors: Arc<Doors>,
    pub(crate) services: Services,
    pub(crate) connections: Arc<Quota>,
    pub(crate) path: PathBuf,
    pub(crate) folder: tempfile::TempDir,
}

/// Serves one identity, `spiffe://example.org/w/1`, to whoever comes.
pub(crate) async fn served() -> Served {
    served_with(|desk| {
        let clock = clock_of(desk);
        let options = CollectOptions { sha256: false, names: false, ..CollectOptions::default() };
        Arc::new(LocalEyes::new(Arc::new(Collector::default()), Arc::new(move || options), clock))
    })
    .await
}

pub(crate) fn clock_of(desk: &Arc<Scripted>) -> Clock {
    let desk = Arc::clone(desk);
    Arc::new(move || desk.now())
}

pub(crate) async fn served_with(eyes: impl FnOnce(&Arc<Scripted>) -> Arc<dyn Eyes>) -> Served {
    let start = tokio::time::Instant::now();
    let seal = Arc::new(TestSeal(Mutex::new("one")));
    let clock: Clock = Arc::new(move || since(start));
    let means = Means { seal: seal.clone(), steady: Arc::clone(&clock), wall: clock };
    let desk = Arc::new(Scripted {
        script: Mutex::new(Script {
            who: Ok(vec![identity(1, "", &[])]),
            x509: None,
            x509_of: BTreeMap::new(),
            token: None,
            holds: watch::channel(false).1,
            ttl_ms: 3_600_000,
        }),
        bundles: watch::channel(Arc::new(bundles("1"))).0,
        hub: Hub::new(RevocationSet::default(), means),
        seal,
        reports: Mutex::default(),
        met: Mutex::default(),
        referred: Mutex::default(),
        issued: AtomicU64::new(0),
        news: Mutex::default(),
        start,
    });
    let services = Services::new(
        Arc::new(TestDesk(Arc::clone(&desk))),
        eyes(&desk),
        clock_of(&desk),
        Names::default(),
    );
    let services = services.await.expect("the descriptors are whole");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("w.sock");
    let connections = Quota::new(16_000, 15_000);
    let doors = Arc::new(Doors::new(Arc::clone(&connections)));
    let listener = Listener::bind(&path, 0o600).expect("the path is free");
    doors.open(None, listener, services.routes());
    Served { desk, doors, services, connections, path, folder }
}

pub(crate) async fn channel(path: &std::path::Path) -> Channel {
    let path = path.to_owned();
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .expect("somebody listens")
}

pub(crate) type Client = SpiffeWorkloadApiClient<Channel>;

impl Served {
    pub(crate) async fn client(&self) -> Client {
        SpiffeWorkloadApiClient::new(channel(&self.path).await)
    }

    pub(crate) async fn follower(&self) -> RevocationFeedClient<Channel> {
        RevocationFeedClient::new(channel(&self.path).await)
    }
}

/// A request with the header of the standard.
pub(crate) fn ask<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = tonic::metadata::MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", value);
    request
}

/// Waits for `work`, but not for ever.
pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("this should not take long")
}

/// The next message of a stream that goes on.
pub(crate) async fn next<T>(stream: &mut tonic::Streaming<T>) -> T {
    soon(stream.message())
        .await
        .expect("the stream goes on")
        .expect("the stream has a next message")
}

/// The status with which a stream ends after any number of messages.
pub(crate) async fn end<T>(stream: &mut tonic::Streaming<T>) -> Status {
    soon(async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => break Status::ok("the stream ended without a word"),
                Err(status) => break status,
            }
        }
    })
    .await
}

/// Waits until `done` says so.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(done(), "never happened: {what}");
}
