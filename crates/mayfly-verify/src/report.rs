//! Tells the broker that a credential was used as it may not be (R21).
//!
//! Nobody waits for a report: a handshake or a request hands it over and goes on. The queue has a
//! bound, and each credential is reported once for each kind of misuse, so that somebody who knocks a
//! thousand times a second makes one report. What is lost is counted.
//!
//! In a handshake the certificate is judged before its key is proven, so a report says that a
//! certificate was *shown*; whoever overheard it could show it too. A report of a request or of a token
//! comes from a live connection whose peer had the key.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mayfly_core::{Serial, SpiffeId, Timestamp};
use mayfly_proto::mayfly::v1::{self as wire, revocation_feed_client::RevocationFeedClient};
use tokio::{sync::mpsc, task::JoinSet};
use tonic::{Code, transport::Channel};

use crate::{
    backoff::Backoff, endpoint::Endpoint, peer::Peer, refused::Refused, telemetry,
    workload::request,
};

/// Reports that wait for the broker.
const QUEUE_MAX: usize = 256;
/// Misuses that are remembered as told. The oldest is forgotten first, and may then be told again.
const TOLD_MAX: usize = 4096;
/// How long the broker may take to hear one report.
const CALL_MAX: Duration = Duration::from_secs(2);
/// How often one report is tried.
const TRIES: u32 = 5;

/// How a credential was misused.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Use {
    /// After its task's end, or after it was revoked.
    AfterEnd,
    /// While its task is in quarantine.
    WhileSuspended,
    /// A token, by a peer that is not its subject.
    ByAnother,
    /// It is of our trust domain, but its serial has no place: no task of the broker ever had it.
    Unknown,
}

impl Use {
    /// The misuse that a refusal stands for. Most are none: who is not authorised, or comes when the
    /// feed is silent, has done nothing.
    #[must_use]
    pub const fn of(refused: &Refused) -> Option<Self> {
        match refused {
            Refused::Revoked => Some(Self::AfterEnd),
            Refused::Suspended => Some(Self::WhileSuspended),
            Refused::NotTheSubject { .. } => Some(Self::ByAnother),
            Refused::ForeignSerial(_) => Some(Self::Unknown),
            Refused::NotAnSvid(_)
            | Refused::NoIdentity
            | Refused::Untrusted(_)
            | Refused::Chain(_)
            | Refused::OutOfDate
            | Refused::Unauthorized(_)
            | Refused::Dark
            | Refused::NoPeer
            | Refused::NotPermitted { .. }
            | Refused::NoToken
            | Refused::Token(_)
            | Refused::NotConfirmed(_)
            | Refused::NoStatus(_)
            | Refused::List(_)
            | Refused::Stale => None,
        }
    }

    const fn wire(self) -> wire::Use {
        match self {
            Self::AfterEnd => wire::Use::AfterEnd,
            Self::WhileSuspended => wire::Use::WhileSuspended,
            Self::ByAnother => wire::Use::ByAnother,
            Self::Unknown => wire::Use::Unknown,
        }
    }
}

/// One misuse of one credential.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Misuse {
    /// How.
    pub kind: Use,
    /// The credential's, if it has one of Mayfly's.
    pub serial: Option<Serial>,
    /// Whom it names.
    pub spiffe_id: SpiffeId,
    /// Who showed it: itself, unless a peer is known to be another.
    pub presenter: SpiffeId,
    /// When, by our clock.
    pub at: Timestamp,
}

/// Hands reports over to the broker. Cheap to clone; the last clone takes what waits with it.
#[derive(Clone, Debug)]
pub struct Reporter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    queue: mpsc::Sender<Misuse>,
    told: Mutex<Told>,
    _task: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Told {
    known: BTreeSet<Key>,
    order: VecDeque<Key>,
}

/// A credential without a serial is known by its name.
type Key = (Use, Option<Serial>, SpiffeId, SpiffeId);

impl Told {
    /// Whether this is the first time.
    fn first(&mut self, key: &Key) -> bool {
        if !self.known.insert(key.clone()) {
            return false;
        }
        self.order.push_back(key.clone());
        if self.order.len() > TOLD_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }

    /// It was not told after all.
    fn take_back(&mut self, key: &Key) {
        self.known.remove(key);
        self.order.retain(|one| one != key);
    }
}

impl Reporter {
    /// Reports to the broker at `endpoint`; `verifier` is the name under which we do, for example our
    /// SPIFFE ID. To be called within a tokio runtime.
    #[must_use]
    pub fn connect(endpoint: &Endpoint, verifier: &str) -> Self {
        Self::over(endpoint.channel(), verifier)
    }

    /// The same over a channel that is there, such as one to the broker's TLS port.
    #[must_use]
    pub fn over(channel: Channel, verifier: &str) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let mut task = JoinSet::new();
        task.spawn(send(channel, verifier.to_owned(), waiting));
        Self(Arc::new(Inner { queue, told: Mutex::default(), _task: task }))
    }

    /// Hands a report over, unless the same was before. Never waits.
    pub fn report(&self, misuse: Misuse) {
        let key = (misuse.kind, misuse.serial, misuse.spiffe_id.clone(), misuse.presenter.clone());
        // The set is changed by two insertions; a thread that died between them cost one report.
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.first(&key) {
            return;
        }
        if self.0.queue.try_send(misuse).is_err() {
            // Forgotten, so that the next time it is tried again.
            told.take_back(&key);
            telemetry::reported("dropped");
        }
    }

    pub(crate) fn report_peer(&self, kind: Use, peer: &Peer, at: Timestamp) {
        let id = peer.leaf.id.clone();
        let (serial, presenter) = (peer.leaf.serial, id.clone());
        self.report(Misuse { kind, serial, spiffe_id: id, presenter, at });
    }
}

async fn send(channel: Channel, verifier: String, mut waiting: mpsc::Receiver<Misuse>) {
    while let Some(misuse) = waiting.recv().await {
        let report = wire::ReportRequest {
            serial: misuse.serial.map(|serial| serial.as_bytes().to_vec()).unwrap_or_default(),
            spiffe_id: misuse.spiffe_id.to_string(),
            r#use: misuse.kind.wire().into(),
            presenter: misuse.presenter.to_string(),
            at_ms: misuse.at.0,
            verifier: verifier.clone(),
        };
        let heard = tell(&channel, report).await;
        telemetry::reported(if heard { "heard" } else { "lost" });
        tracing::warn!(
            kind = ?misuse.kind, subject = %misuse.spiffe_id, presenter = %misuse.presenter, heard,
            "a credential was misused"
        );
    }
}

/// Tries until the broker has heard it, or says that it will not, or for long enough.
async fn tell(channel: &Channel, report: wire::ReportRequest) -> bool {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    for _ in 0..TRIES {
        let mut client = RevocationFeedClient::new(channel.clone());
        let call = client.report(request(report.clone()));
        match tokio::time::timeout(CALL_MAX, call).await {
            Ok(Ok(_)) => return true,
            Ok(Err(status)) if is_final(status.code()) => {
                tracing::warn!(code = ?status.code(), "the broker does not take a report");
                return false;
            }
            Ok(Err(status)) => backoff.wait_after(&status).await,
            Err(_elapsed) => backoff.wait().await,
        }
    }
    false
}

/// Whether asking again would bring the same answer.
fn is_final(code: Code) -> bool {
    matches!(code, Code::Unimplemented | Code::InvalidArgument | Code::PermissionDenied)
}
