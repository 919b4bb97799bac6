//! A feed on a unix socket that says what the test tells it to.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use mayfly_core::{Change, Delta, RevocationSet, Serial, Status, Timestamp};
use mayfly_proto::mayfly::v1::{
    self as wire, FollowRequest, FollowResponse,
    follow_response::Content,
    revocation_feed_server::{RevocationFeed, RevocationFeedServer},
};
use mayfly_verify::Endpoint;
use tokio::{net::UnixListener, runtime::Runtime, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, transport::Server};

use crate::common::{at, delta};

type Answer = Result<FollowResponse, tonic::Status>;

/// The truth, and who listens to it.
pub(crate) struct Broker {
    pub(crate) truth: RevocationSet,
    listeners: Vec<mpsc::Sender<Answer>>,
    pub(crate) snapshots: usize,
}

#[derive(Clone)]
pub(crate) struct Feed(pub(crate) Arc<Mutex<Broker>>);

pub(crate) struct Running {
    pub(crate) feed: Feed,
    pub(crate) endpoint: Endpoint,
    pub(crate) path: PathBuf,
    server: Option<(JoinHandle<()>, Runtime)>,
    _dir: tempfile::TempDir,
}

impl Running {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("feed.sock");
        let feed = Feed(Arc::new(Mutex::new(Broker {
            truth: RevocationSet::at(at(1)),
            listeners: Vec::new(),
            snapshots: 0,
        })));
        let mut running =
            Self { endpoint: Endpoint::Unix(path.clone()), feed, path, server: None, _dir: dir };
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
        let service = RevocationFeedServer::new(self.feed.clone());
        let listener = {
            let _within = runtime.enter();
            UnixListener::bind(&self.path).expect("a socket")
        };
        self.server = Some((
            runtime.spawn(async move {
                let listener = UnixListenerStream::new(listener);
                let server = Server::builder().add_service(service);
                server.serve_with_incoming(listener).await.expect("the server runs");
            }),
            runtime,
        ));
    }

    /// Kills the server and every connection of it.
    pub(crate) fn stop(&mut self) {
        if let Some((_, runtime)) = self.server.take() {
            runtime.shutdown_background();
        }
        self.feed.hang_up();
        std::fs::remove_file(&self.path).expect("the socket was there");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some((_, runtime)) = self.server.take() {
            runtime.shutdown_background();
        }
    }
}

impl Feed {
    fn broker(&self) -> std::sync::MutexGuard<'_, Broker> {
        self.0.lock().expect("not poisoned")
    }

    /// Changes the truth without telling anybody; gives what would be told.
    pub(crate) fn change(&self, changes: &[(u32, Status)]) -> Delta {
        self.change_with(changes, None)
    }

    pub(crate) fn change_with(&self, changes: &[(u32, Status)], serial: Option<Serial>) -> Delta {
        let mut broker = self.broker();
        let from = broker.truth.position().sequence.0;
        let mut delta = delta(from, from + 1, changes);
        delta.changes.extend(serial.map(|serial| Change::Serial(serial, Timestamp(u64::MAX))));
        assert!(broker.truth.apply(&delta), "the truth has no holes");
        delta
    }

    /// Changes the truth and tells everybody.
    pub(crate) fn publish(&self, changes: &[(u32, Status)]) {
        let delta = self.change(changes);
        self.tell(&delta);
    }

    pub(crate) fn tell(&self, delta: &Delta) {
        self.send(&Content::DeltaWas(to_wire(delta)));
    }

    pub(crate) fn beat(&self) {
        let position = self.position();
        self.send(&Content::HeartbeatWas(wire::Heartbeat { shard: 0, position, at_ms: 0 }));
    }

    pub(crate) fn position(&self) -> u64 {
        self.broker().truth.position().sequence.0
    }

    pub(crate) fn snapshots(&self) -> usize {
        self.broker().snapshots
    }

    pub(crate) fn hang_up(&self) {
        self.broker().listeners.clear();
    }

    pub(crate) fn send(&self, message: &Content) {
        let answer = || Ok(FollowResponse { sealed: None, content: Some(message.clone()) });
        self.broker().listeners.retain(|listener| listener.try_send(answer()).is_ok());
    }
}

fn to_wire(delta: &Delta) -> wire::Delta {
    wire::Delta {
        shard: 0,
        from: delta.from.sequence.0,
        to: delta.to.sequence.0,
        changes: delta
            .changes
            .iter()
            .filter_map(|change| match change {
                Change::Place(place, status) => Some(wire::Change {
                    window: place.window.0,
                    slot: place.slot.0,
                    status: *status as u32,
                }),
                Change::Serial(..) => None,
            })
            .collect(),
        serials: delta
            .changes
            .iter()
            .filter_map(|change| match change {
                Change::Serial(serial, until) => Some(revoked(*serial, *until)),
                Change::Place(..) => None,
            })
            .collect(),
    }
}

fn revoked(serial: Serial, until: Timestamp) -> wire::RevokedSerial {
    wire::RevokedSerial { serial: serial.as_bytes().to_vec(), until_ms: until.0 }
}

/// The truth in two parts, as a large one comes.
fn parts(truth: &RevocationSet) -> [wire::Snapshot; 2] {
    let whole = snapshot(truth);
    let (windows, serials) = (whole.windows.clone(), whole.serials.clone());
    [
        wire::Snapshot { windows, serials: Vec::new(), more: true, ..whole.clone() },
        wire::Snapshot { windows: Vec::new(), serials, more: false, ..whole },
    ]
}

fn snapshot(truth: &RevocationSet) -> wire::Snapshot {
    wire::Snapshot {
        shard: 0,
        position: truth.position().sequence.0,
        windows: truth
            .windows()
            .map(|(window, bitmap)| wire::Window {
                window: window.0,
                statuses: bitmap.as_packed().to_vec().into(),
            })
            .collect(),
        serials: truth.serials().map(|(serial, until)| revoked(serial, until)).collect(),
        more: false,
    }
}

#[tonic::async_trait]
impl RevocationFeed for Feed {
    type FollowStream = ReceiverStream<Answer>;

    async fn follow(
        &self,
        _request: Request<FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, tonic::Status> {
        let (sender, receiver) = mpsc::channel(1024);
        let mut broker = self.broker();
        broker.snapshots += 1;
        for part in parts(&broker.truth) {
            let message = Some(Content::SnapshotWas(part));
            sender
                .try_send(Ok(FollowResponse { sealed: None, content: message }))
                .map_err(|_full| tonic::Status::internal("full"))?;
        }
        broker.listeners.push(sender);
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn report(
        &self,
        _request: Request<wire::ReportRequest>,
    ) -> Result<Response<wire::ReportResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("nobody reports here"))
    }
}
