//! One feed for all who follow: what is published is written, hashed and signed once.
//!
//! Nobody has a queue here. The driver hands its deltas over and goes on; one task makes a batch of
//! all that has come while the last one was being signed; followers are woken and read the chain from
//! where they stand. A follower that is slow gets several batches in one message, and one that is too
//! slow starts over with a snapshot that it shares with all others in its place.
//!
//! A heartbeat says that nothing happened up to its instant. So none is made while something has been
//! published and not yet been told, and its instant is read before the chain is looked at.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use mayfly_core::{
    Delta, Denial, Position, RevocationSet, Timestamp,
    batch::{Changes, OPENING_LABEL},
    limits::CHANGES_PER_BATCH_MAX,
};
use mayfly_proto::mayfly::v1 as wire;
use prost::Message as _;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    chain::{Chain, Hash, Next, Told, hash},
    snapshot::Snapshot,
};
use crate::{desk::Clock, limits};

/// A signature, and the name of its key.
#[derive(Clone, Debug)]
pub struct Signature {
    /// The key's name in the trust domain's JWK Set.
    pub kid: String,
    /// ES256: r and s.
    pub bytes: Vec<u8>,
}

/// Whoever holds the keys. This crate cannot name them.
pub trait Seal: Send + Sync + 'static {
    /// The name of the key that signs now.
    fn kid(&self) -> String;
    /// Signs a head under the feed's label; `None` if that failed.
    fn seal(&self, head: &[u8]) -> Option<Signature>;
    /// The trust domain's token keys, a JWK Set.
    fn jwks(&self) -> Bytes;
}

/// What the hub lives by.
#[derive(Clone)]
pub struct Means {
    /// Signs.
    pub seal: Arc<dyn Seal>,
    /// A clock that never steps: what followers count silence by.
    pub steady: Clock,
    /// The hour, for what may be forgotten.
    pub wall: Clock,
}

impl fmt::Debug for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Means").finish_non_exhaustive()
    }
}

/// See the module.
pub struct Hub {
    means: Means,
    pending: Mutex<Pending>,
    wake: Notify,
    chain: RwLock<Chain>,
    news: watch::Sender<Position>,
    beat: Mutex<Option<Beat>>,
    /// Held while a snapshot is being made, so that all who need one wait for the same.
    snapshot: tokio::sync::Mutex<Option<Whole>>,
    eager: AtomicUsize,
}

/// What was published and is not in the chain yet. It is bounded by the places there are, because a
/// place that changes twice is still one.
#[derive(Debug, Default)]
struct Pending {
    changes: Changes,
    to: Position,
    /// A batch is being signed.
    busy: bool,
    /// A delta was lost on the way here. Nothing is said any more, and followers notice.
    broken: bool,
}

/// A heartbeat that others may share.
#[derive(Debug)]
struct Beat {
    position: Position,
    hash: Hash,
    at: Timestamp,
    sealed: wire::Sealed,
}

/// A snapshot and its seal.
#[derive(Clone, Debug)]
struct Whole {
    snapshot: Arc<Snapshot>,
    at: Timestamp,
    sealed: wire::Sealed,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("position", &*self.news.borrow()).finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub whose chain begins with `set`. Somebody has to [`run`](Self::run) it.
    #[must_use]
    pub fn new(set: RevocationSet, means: Means) -> Arc<Self> {
        let position = set.position();
        let chain = Chain::start(set, (means.steady)());
        Arc::new(Self {
            means,
            pending: Mutex::new(Pending { to: position, ..Pending::default() }),
            wake: Notify::new(),
            chain: RwLock::new(chain),
            news: watch::Sender::new(position),
            beat: Mutex::new(None),
            snapshot: tokio::sync::Mutex::new(None),
            eager: AtomicUsize::new(0),
        })
    }

    /// Takes what has become durable. Never waits for a signature or a follower.
    pub fn publish(&self, delta: &Delta) {
        let mut pending = self.pending();
        if delta.to <= pending.to {
            return; // The set that this hub began with holds it.
        }
        if delta.from != pending.to {
            tracing::error!(?delta.from, at = ?pending.to, "a delta was lost; the feed falls silent");
            pending.broken = true;
            return;
        }
        pending.to = delta.to;
        delta.changes.iter().for_each(|change| pending.changes.take(*change));
        drop(pending);
        self.wake.notify_one();
    }

    /// Tells what is published, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        while stop.run_until_cancelled(self.wake.notified()).await.is_some() {
            self.tell_pending();
        }
    }

    /// Makes one batch of all that was published since the last one.
    pub fn tell_pending(&self) {
        let (changes, to) = {
            let mut pending = self.pending();
            if pending.broken || pending.to == *self.news.borrow() {
                return;
            }
            pending.busy = true;
            (std::mem::take(&mut pending.changes), pending.to)
        };
        self.tell(&changes, to);
        self.pending().busy = false;
        self.news.send_replace(to);
    }

    fn tell(&self, changes: &Changes, to: Position) {
        // Read before anything else: the head must not be younger than what it vouches for.
        let at = (self.means.steady)();
        let sealed = (changes.len() <= CHANGES_PER_BATCH_MAX).then(|| {
            // This task alone moves the chain, so it may sign without holding it.
            let batch = self.chain().draft(to, changes);
            let sealed = self.seal(&head(to, batch.hash, at))?;
            Some(Told { batch, sealed, at })
        });
        let wall = (self.means.wall)();
        let mut chain = self.chain.write().unwrap_or_else(PoisonError::into_inner);
        match sealed.flatten() {
            Some(told) => chain.append(told, changes),
            // Too many changes, or nobody to sign them: whoever follows starts over.
            None => chain.leap(to, changes, at),
        }
        chain.forget_at_times(wall);
    }

    /// Where the chain stands; the receiver is told of every step.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<Position> {
        self.news.subscribe()
    }

    /// Streams that follow.
    #[must_use]
    pub fn followers(&self) -> usize {
        self.news.receiver_count()
    }

    /// What everybody who follows arrives at.
    pub fn read<T>(&self, look: impl FnOnce(&RevocationSet) -> T) -> T {
        look(self.chain().set())
    }

    /// The first message of a stream, and whether batches follow from where `resume` stands.
    pub(super) fn opening(
        &self,
        nonce: Vec<u8>,
        resume: Option<(Position, Hash)>,
    ) -> Result<(wire::FollowResponse, bool), Denial> {
        let at = (self.means.steady)();
        let (position, hash_there, resumed) = {
            let chain = self.chain();
            let resumed = resume.is_some_and(|(position, hash)| chain.remembers(position, &hash));
            (chain.position(), *chain.hash(), resumed)
        };
        let opening = wire::Opening { jwks: self.means.seal.jwks().to_vec(), resumed };
        let opening: Bytes = opening.encode_to_vec().into();
        let digest = hash(&[OPENING_LABEL, &opening]).to_vec();
        let head = wire::Head { nonce, digest, ..head(position, hash_there, at) };
        let sealed = self.seal(&head).ok_or(Denial::SigningFailed)?;
        Ok((message(Some(sealed), wire::follow_response::Content::Opening(opening)), resumed))
    }

    /// What a follower at `position` has to hear, or `None` if it is everything.
    pub(super) fn next(&self, position: Position) -> Next {
        self.chain().next(position)
    }

    /// Several batches as one message, with the seal of the last.
    pub(super) fn batches(&self, told: &[Arc<Told>]) -> Result<wire::FollowResponse, Denial> {
        let last = told.last().ok_or(Denial::NotServing)?;
        let sealed = self.still_known(&last.sealed)?;
        let bodies = told.iter().map(|told| told.batch.body.clone()).collect();
        let content = wire::follow_response::Content::Batches(wire::Batches { bodies });
        Ok(message(Some(sealed), content))
    }

    /// A heartbeat and where it stands; none while there is something to tell.
    pub(super) fn beat(&self) -> Result<Option<(Position, wire::Sealed)>, Denial> {
        let at = (self.means.steady)();
        {
            let pending = self.pending();
            if pending.broken || pending.busy || !pending.changes.is_empty() {
                return Ok(None);
            }
        }
        let (position, hash) = {
            let chain = self.chain();
            (chain.position(), *chain.hash())
        };
        let mut beat = self.beat.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(beat) = &*beat
            && (beat.position, beat.hash) == (position, hash)
            && at.since(beat.at) < limits::BEAT_AGE_MAX
        {
            return Ok(Some((position, beat.sealed.clone())));
        }
        let sealed = self.seal(&head(position, hash, at)).ok_or(Denial::SigningFailed)?;
        *beat = Some(Beat { position, hash, at, sealed: sealed.clone() });
        Ok(Some((position, sealed)))
    }

    /// Everything, as messages, and where it stands. What came since follows as batches.
    pub(super) async fn snapshot(
        &self,
    ) -> Result<(Position, impl Iterator<Item = wire::FollowResponse> + use<>), Denial> {
        let mut held = self.snapshot.lock().await;
        let whole = match held.take().filter(|whole| self.is_cheap(&whole.snapshot)) {
            Some(whole) => self.renewed(whole)?,
            None => self.make_snapshot().await?,
        };
        *held = Some(whole.clone());
        drop(held);
        let Whole { snapshot, sealed, .. } = whole;
        let last = snapshot.parts.len().saturating_sub(1);
        let parts = snapshot.parts.clone().into_iter().enumerate().map(move |(at, part)| {
            let sealed = (at == last).then(|| sealed.clone());
            message(sealed, wire::follow_response::Content::Snapshot(part))
        });
        Ok((snapshot.position, parts))
    }

    /// Whether it costs less to tell `snapshot` and what came since than to make a new one.
    fn is_cheap(&self, snapshot: &Snapshot) -> bool {
        let chain = self.chain();
        chain.remembers(snapshot.position, &snapshot.hash)
            && chain
                .bytes_after(snapshot.position)
                .is_some_and(|bytes| bytes <= snapshot.bytes() + limits::BATCHES_BYTES_MAX)
    }

    async fn make_snapshot(&self) -> Result<Whole, Denial> {
        let wall = (self.means.wall)();
        let at = (self.means.steady)();
        let (set, hash) = {
            let mut chain = self.chain.write().unwrap_or_else(PoisonError::into_inner);
            chain.forget(wall);
            (chain.set().clone(), *chain.hash())
        };
        let made = tokio::task::spawn_blocking(move || Snapshot::of(&set, hash)).await;
        let snapshot = made.map_err(|_stopped| Denial::NotServing)?;
        let sealed = self.seal_whole(&snapshot, at)?;
        Ok(Whole { snapshot: Arc::new(snapshot), at, sealed })
    }

    /// The same snapshot, with a seal that is as fresh as it can truly be: it may say that nothing has
    /// happened since only as long as nothing has.
    fn renewed(&self, mut whole: Whole) -> Result<Whole, Denial> {
        let at = (self.means.steady)();
        let is_newest = {
            let pending = self.pending();
            !pending.busy && pending.changes.is_empty()
        } && self.chain().position() == whole.snapshot.position;
        if is_newest && at.since(whole.at) >= limits::BEAT_AGE_MAX {
            whole.at = at;
            whole.sealed = self.seal_whole(&whole.snapshot, at)?;
        } else {
            whole.sealed = self.still_known(&whole.sealed)?;
        }
        Ok(whole)
    }

    fn seal_whole(&self, snapshot: &Snapshot, at: Timestamp) -> Result<wire::Sealed, Denial> {
        let digest = snapshot.digest.to_vec();
        let head = wire::Head { digest, ..head(snapshot.position, snapshot.hash, at) };
        self.seal(&head).ok_or(Denial::SigningFailed)
    }

    /// The same head, sealed anew if its key may have been retired since.
    fn still_known(&self, sealed: &wire::Sealed) -> Result<wire::Sealed, Denial> {
        if sealed.kid == self.means.seal.kid() {
            return Ok(sealed.clone());
        }
        self.seal_bytes(sealed.head.clone()).ok_or(Denial::SigningFailed)
    }

    fn seal(&self, head: &wire::Head) -> Option<wire::Sealed> {
        self.seal_bytes(head.encode_to_vec().into())
    }

    fn seal_bytes(&self, head: Bytes) -> Option<wire::Sealed> {
        let signature = self.means.seal.seal(&head);
        if signature.is_none() {
            tracing::error!("a head of the feed could not be signed");
        }
        let signature = signature?;
        Some(wire::Sealed { head, kid: signature.kid, signature: signature.bytes.into() })
    }

    /// Counts one more follower that wants every change at once, until it is dropped.
    pub(super) fn eager(self: &Arc<Self>) -> Eager {
        self.eager.fetch_add(1, Ordering::Relaxed);
        Eager(Arc::clone(self))
    }

    fn chain(&self) -> RwLockReadGuard<'_, Chain> {
        self.chain.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A follower that wants every change at once.
#[derive(Debug)]
pub(super) struct Eager(Arc<Hub>);

impl Eager {
    /// The least time between two of its messages. A crowd of followers shares what the broker can
    /// send; the first message after a quiet time never waits.
    pub(super) fn pace(&self) -> Duration {
        let crowd = u32::try_from(self.0.eager.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        let pace = limits::PACE_PER_FOLLOWER.saturating_mul(crowd);
        // Timers know no less.
        if pace < Duration::from_millis(1) { Duration::ZERO } else { pace.min(limits::PACE_MAX) }
    }
}

impl Drop for Eager {
    fn drop(&mut self) {
        self.0.eager.fetch_sub(1, Ordering::Relaxed);
    }
}

fn head(position: Position, hash: Hash, at: Timestamp) -> wire::Head {
    wire::Head {
        shard: position.shard.0.into(),
        position: position.sequence.0,
        hash: hash.to_vec(),
        at_ms: at.0,
        nonce: Vec::new(),
        digest: Vec::new(),
    }
}

const fn message(
    sealed: Option<wire::Sealed>,
    content: wire::follow_response::Content,
) -> wire::FollowResponse {
    wire::FollowResponse { sealed, content: Some(content) }
}
