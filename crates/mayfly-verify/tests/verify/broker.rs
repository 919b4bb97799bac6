//! The broker's own feed with a key of ours, and a relay on a unix socket that passes it on as the test
//! tells it to.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures_util::{Stream, stream};
use mayfly_core::{Change, Delta, RevocationSet, Timestamp};
use mayfly_proto::mayfly::v1::{
    self as wire, FollowRequest, FollowResponse,
    follow_response::Content,
    revocation_feed_server::{RevocationFeed, RevocationFeedServer},
};
use mayfly_serve::feed::hub::{Hub, Means, Seal, Signature};
use mayfly_verify::{Endpoint, JwkSet};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use tokio::{net::UnixListener, runtime::Runtime, sync::watch, time::Instant};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, transport::Server};

use crate::common::at;

/// A token key of a trust domain.
pub(crate) struct Key {
    pair: EcdsaKeyPair,
    kid: String,
}

impl Key {
    pub(crate) fn new(kid: &str) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            .expect("a key is made");
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random);
        Self { pair: pair.expect("a key"), kid: kid.to_owned() }
    }

    pub(crate) fn sign(&self, label: &[u8], message: &[u8]) -> Vec<u8> {
        let message = [label, message].concat();
        let signature = self.pair.sign(&SystemRandom::new(), &message).expect("signed");
        signature.as_ref().to_vec()
    }

    pub(crate) fn jwks(&self) -> Vec<u8> {
        let (_, point) = self.pair.public_key().as_ref().split_at(1);
        let (x, y) = point.split_at(32);
        let [x, y] = [x, y].map(|half| BASE64_URL_SAFE_NO_PAD.encode(half));
        let kid = &self.kid;
        let key = serde_json::json!({"kty": "EC", "kid": kid, "crv": "P-256", "x": x, "y": y});
        serde_json::to_vec(&serde_json::json!({"keys": [key]})).expect("json")
    }

    pub(crate) fn set(&self) -> JwkSet {
        JwkSet::parse(&self.jwks()).expect("a key set")
    }
}

/// The key in use.
struct Sealer(Arc<Mutex<Arc<Key>>>);

impl Sealer {
    fn key(&self) -> Arc<Key> {
        Arc::clone(&self.0.lock().expect("not poisoned"))
    }
}

impl Seal for Sealer {
    fn kid(&self) -> String {
        self.key().kid.clone()
    }

    fn seal(&self, head: &[u8]) -> Option<Signature> {
        let key = self.key();
        let bytes = key.sign(mayfly_core::batch::SEAL_LABEL, head);
        Some(Signature { kid: key.kid.clone(), bytes })
    }

    fn jwks(&self) -> Bytes {
        self.key().jwks().into()
    }
}

/// The broker: what is true, and the feed of it.
pub(crate) struct House {
    pub(crate) hub: Arc<Hub>,
    pub(crate) truth: Mutex<RevocationSet>,
    key: Arc<Mutex<Arc<Key>>>,
    /// How far the steady clock is ahead of this machine's.
    ahead_ms: Arc<AtomicU64>,
}

impl House {
    pub(crate) fn new() -> Arc<Self> {
        Self::of(RevocationSet::at(at(1)))
    }

    pub(crate) fn of(truth: RevocationSet) -> Arc<Self> {
        let key = Arc::new(Mutex::new(Arc::new(Key::new("one"))));
        let ahead_ms = Arc::new(AtomicU64::new(0));
        let (begun, ahead) = (Instant::now(), Arc::clone(&ahead_ms));
        let steady = move || {
            let since = u64::try_from(begun.elapsed().as_millis()).expect("a short test");
            Timestamp(1_800_000_000_000 + since + ahead.load(Ordering::SeqCst))
        };
        let means = Means {
            seal: Arc::new(Sealer(Arc::clone(&key))),
            steady: Arc::new(steady),
            wall: Arc::new(|| Timestamp(1_800_000_000_000)),
        };
        let hub = Hub::new(truth.clone(), means);
        Arc::new(Self { hub, truth: Mutex::new(truth), key, ahead_ms })
    }

    pub(crate) fn publish(&self, changes: Vec<Change>) {
        let mut truth = self.truth.lock().expect("not poisoned");
        let from = truth.position().sequence.0;
        let delta = Delta { from: at(from), to: at(from + 1), changes };
        assert!(truth.apply(&delta), "the truth has no holes");
        self.hub.publish(&delta);
        self.hub.tell_pending();
    }

    pub(crate) fn position(&self) -> u64 {
        self.truth.lock().expect("not poisoned").position().sequence.0
    }

    pub(crate) fn key(&self) -> Arc<Key> {
        Arc::clone(&self.key.lock().expect("not poisoned"))
    }

    pub(crate) fn rotate(&self, kid: &str) {
        *self.key.lock().expect("not poisoned") = Arc::new(Key::new(kid));
    }

    pub(crate) fn pass(&self, ms: u64) {
        self.ahead_ms.fetch_add(ms, Ordering::SeqCst);
    }
}

/// What becomes of a message that brings batches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Deed {
    Lose,
    Repeat,
    /// Comes after the next message.
    Overtaken,
    /// Comes, and then the connection breaks.
    HangUp,
}

/// Passes the feed on, and may do what it likes with it.
#[derive(Clone)]
pub(crate) struct Relay(Arc<Inside>);

struct Inside {
    house: Arc<House>,
    tally: Mutex<Tally>,
    deeds: Mutex<VecDeque<Deed>>,
    /// Counts the times at which everybody was sent away.
    cuts: watch::Sender<usize>,
    /// Deeds done.
    done: watch::Sender<usize>,
    frozen: watch::Sender<bool>,
    /// By how much every message is late.
    late: watch::Sender<std::time::Duration>,
}

/// Streams that began, by what they began with.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Tally {
    pub(crate) snapshots: usize,
    pub(crate) resumed: usize,
}

/// One stream on its way through the relay.
struct Passing {
    relay: Relay,
    feed: mayfly_serve::feed::follower::Follower,
    cuts: watch::Receiver<usize>,
    ready: VecDeque<FollowResponse>,
    overtaken: Option<FollowResponse>,
    ends: bool,
}

impl Relay {
    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().expect("not poisoned")
    }

    pub(crate) fn tally(&self) -> Tally {
        *Self::lock(&self.0.tally)
    }

    /// What to do with the next message that brings batches.
    pub(crate) fn next_time(&self, deed: Deed) {
        Self::lock(&self.0.deeds).push_back(deed);
    }

    /// Waits until so many deeds were done.
    pub(crate) async fn done(&self, count: usize) {
        let mut done = self.0.done.subscribe();
        done.wait_for(|done| *done >= count).await.expect("the relay is there");
    }

    pub(crate) fn hang_up(&self) {
        self.0.cuts.send_modify(|cuts| *cuts += 1);
    }

    pub(crate) fn freeze(&self, frozen: bool) {
        self.0.frozen.send_replace(frozen);
    }

    pub(crate) fn be_late(&self, by: std::time::Duration) {
        self.0.late.send_replace(by);
    }

    fn pass(&self, feed: mayfly_serve::feed::follower::Follower) -> Messages {
        let passing = Passing {
            relay: self.clone(),
            feed,
            cuts: self.0.cuts.subscribe(),
            ready: VecDeque::new(),
            overtaken: None,
            ends: false,
        };
        Box::pin(stream::unfold(passing, |mut passing| async move {
            let message = passing.next().await?;
            Some((message, passing))
        }))
    }
}

type Messages = std::pin::Pin<Box<dyn Stream<Item = Result<FollowResponse, tonic::Status>> + Send>>;

impl Passing {
    async fn next(&mut self) -> Option<Result<FollowResponse, tonic::Status>> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                let late = *self.relay.0.late.borrow();
                tokio::time::sleep(late).await;
                return Some(Ok(ready));
            }
            if self.ends {
                return Some(Err(tonic::Status::unavailable("sent away")));
            }
            let mut frozen = self.relay.0.frozen.subscribe();
            tokio::select! {
                _ = self.cuts.changed() => self.ends = true,
                message = async {
                    frozen.wait_for(|frozen| !frozen).await.expect("the relay is there");
                    self.feed.next().await
                } => match message {
                    Ok(message) => self.treat(message),
                    Err(denial) => return Some(Err(mayfly_serve::status::of(denial))),
                },
            }
        }
    }

    fn treat(&mut self, message: FollowResponse) {
        let is_batches = matches!(message.content, Some(Content::Batches(_)));
        let deed = is_batches.then(|| Relay::lock(&self.relay.0.deeds).pop_front()).flatten();
        match deed {
            None => self.ready.push_back(message),
            Some(Deed::Lose) => {}
            Some(Deed::Repeat) => self.ready.extend([message.clone(), message]),
            Some(Deed::Overtaken) => {
                self.overtaken = Some(message);
                self.relay.0.done.send_modify(|done| *done += 1);
                return;
            }
            Some(Deed::HangUp) => {
                self.ready.push_back(message);
                self.ends = true;
            }
        }
        self.ready.extend(self.overtaken.take());
        if deed.is_some() {
            self.relay.0.done.send_modify(|done| *done += 1);
        }
    }
}

#[tonic::async_trait]
impl RevocationFeed for Relay {
    type FollowStream = Messages;

    async fn follow(
        &self,
        request: Request<FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, tonic::Status> {
        let mut feed =
            self.0.house.hub.follow(request.into_inner()).map_err(mayfly_serve::status::of)?;
        // Looked into, and passed on as it is.
        let first = feed.next().await.map_err(mayfly_serve::status::of)?;
        let resumed = match &first.content {
            Some(Content::Opening(opening)) => {
                let opening: wire::Opening = prost::Message::decode(opening.as_ref())
                    .map_err(|_garbled| tonic::Status::internal("no opening"))?;
                opening.resumed
            }
            _ => false,
        };
        {
            let mut tally = Self::lock(&self.0.tally);
            if resumed { tally.resumed += 1 } else { tally.snapshots += 1 }
        }
        let rest = self.pass(feed);
        let messages = stream::StreamExt::chain(stream::iter([Ok(first)]), rest);
        Ok(Response::new(Box::pin(messages)))
    }

    async fn report(
        &self,
        _request: Request<wire::ReportRequest>,
    ) -> Result<Response<wire::ReportResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("nobody reports here"))
    }
}

/// A relay on a socket.
pub(crate) struct Running {
    pub(crate) house: Arc<House>,
    pub(crate) relay: Relay,
    pub(crate) endpoint: Endpoint,
    path: PathBuf,
    server: Option<Runtime>,
    _dir: tempfile::TempDir,
}

impl Running {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("feed.sock");
        let house = House::new();
        let relay = Relay(Arc::new(Inside {
            house: Arc::clone(&house),
            tally: Mutex::default(),
            deeds: Mutex::default(),
            cuts: watch::Sender::default(),
            done: watch::Sender::default(),
            frozen: watch::Sender::default(),
            late: watch::Sender::default(),
        }));
        let endpoint = Endpoint::Unix(path.clone());
        let mut running = Self { house, relay, endpoint, path, server: None, _dir: dir };
        running.serve();
        running
    }

    /// In a runtime of its own, because that is what takes its connections down with it.
    pub(crate) fn serve(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let service = RevocationFeedServer::new(self.relay.clone());
        let listener = {
            let _within = runtime.enter();
            UnixListener::bind(&self.path).expect("a socket")
        };
        runtime.spawn(async move {
            let listener = UnixListenerStream::new(listener);
            let server = Server::builder().add_service(service);
            server.serve_with_incoming(listener).await.expect("the server runs");
        });
        self.server = Some(runtime);
    }

    /// Kills the server and every connection of it.
    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.server.take() {
            runtime.shutdown_background();
        }
        std::fs::remove_file(&self.path).expect("the socket was there");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.server.take() {
            runtime.shutdown_background();
        }
    }
}
