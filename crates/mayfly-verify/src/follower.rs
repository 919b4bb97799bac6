//! Keeps a [`View`] up to date from `mayfly.v1.RevocationFeed`.
//!
//! Two tasks live as long as the follower: one reads the feed and comes back when it is lost, the other
//! counts the silence and shuts live connections when patience ends. New connections need neither:
//! the view judges the silence by itself.

use std::{sync::Arc, time::Duration};

use mayfly_core::{
    Bitmap, Change, Delta, Place, Position, RevocationSet, Sequence, Serial, Shard, Slot, Status,
    Timestamp, Window,
};
use mayfly_proto::mayfly::v1::{
    self as wire, follow_response::Content, revocation_feed_client::RevocationFeedClient,
};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tonic::{Streaming, transport::Channel};

use crate::{
    backoff::Backoff,
    endpoint::Endpoint,
    patience::{Patience, Sight},
    refused::Refused,
    telemetry,
    view::{Hole, View},
    workload::request,
};

/// Largest message of the feed: a full window and something around it.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Windows in one snapshot. The longest credential life spans 145 of them.
const WINDOWS_MAX: usize = 512;
/// Credentials revoked on their own in one snapshot.
const SERIALS_MAX: usize = 4_000_000;

/// Follows one feed until it is dropped; then its view is dark for good.
#[derive(Debug)]
pub struct Follower {
    view: Arc<View>,
    _tasks: JoinSet<()>,
}

impl Follower {
    /// Begins to follow the feed at `endpoint`. Returns at once; until the first snapshot has come the
    /// view refuses everybody. To be called within a tokio runtime.
    #[must_use]
    pub fn connect(endpoint: &Endpoint, patience: Patience) -> Self {
        let view = View::new(patience);
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(endpoint.channel(), Arc::clone(&view)));
        tasks.spawn(count_silence(Arc::clone(&view)));
        Self { view, _tasks: tasks }
    }

    /// What has been heard, shared with whoever verifies.
    #[must_use]
    pub const fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Waits until there has been a snapshot.
    pub async fn ready(&self) {
        let mut heard = self.view.heard_changes();
        // The sender lives in the view, which `self` holds, so this cannot fail.
        let _snapshot = heard.wait_for(Option::is_some).await.is_ok();
    }

    /// Waits until the view stands at `position` or later.
    pub async fn caught_up(&self, position: Position) {
        let mut at: watch::Receiver<Position> = self.view.position();
        let _reached = at.wait_for(|at| *at >= position).await.is_ok();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.view.abandon();
    }
}

/// Why one stream of the feed came to its end.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("the feed answered `{:?}`: {}", .0.code(), .0.message())]
    Status(#[from] tonic::Status),
    #[error(transparent)]
    Hole(#[from] Hole),
    #[error("the feed ended")]
    Ended,
    #[error("the feed was silent for too long")]
    Silent,
    #[error("the feed sent a message that cannot be read")]
    Malformed,
}

async fn follow(channel: Channel, view: Arc<View>) {
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
    loop {
        if let Err(lost) = follow_once(channel.clone(), &view, &mut backoff).await {
            tracing::warn!(reason = %lost, "feed lost, asking for a snapshot");
        }
        backoff.wait().await;
    }
}

async fn follow_once(channel: Channel, view: &View, backoff: &mut Backoff) -> Result<(), Lost> {
    let mut client =
        RevocationFeedClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let ask = request(wire::FollowRequest {
        heartbeat_ms: view.patience().heartbeat_ms(),
        ..wire::FollowRequest::default()
    });
    // A peer that accepts and says nothing must not hold us: silence is an end like any other.
    let silence = view.patience().after().max(Duration::from_millis(500));
    let mut stream: Streaming<wire::FollowResponse> =
        within(silence, client.follow(ask)).await??.into_inner();
    let mut first = true;
    let mut parts = None;
    loop {
        let message = within(silence, stream.message()).await??.ok_or(Lost::Ended)?;
        let message = message.content.ok_or(Lost::Malformed)?;
        // The stream begins with a snapshot: what was missed between two streams is not guessed.
        if first && !matches!(message, Content::SnapshotWas(_)) {
            return Err(Hole::NoSnapshot.into());
        }
        take(view, &mut parts, message)?;
        if !first && parts.is_none() {
            // A snapshot alone does not prove that the feed works; what follows it does.
            backoff.reset();
        }
        first = false;
    }
}

async fn within<T>(silence: Duration, wait: impl Future<Output = T>) -> Result<T, Lost> {
    tokio::time::timeout(silence, wait).await.map_err(|_elapsed| Lost::Silent)
}

/// Takes one message. A snapshot may come in parts; `parts` holds those that came so far, and nothing
/// may come between them.
fn take(view: &View, parts: &mut Option<RevocationSet>, message: Content) -> Result<(), Lost> {
    let now = Instant::now();
    if parts.is_some() && !matches!(message, Content::SnapshotWas(_)) {
        return Err(Lost::Malformed);
    }
    match message {
        Content::SnapshotWas(message) => {
            let more = message.more;
            let set = collect(parts.take(), message)?;
            if more {
                *parts = Some(set);
                return Ok(());
            }
            tracing::debug!(position = set.position().sequence.0, "snapshot taken");
            view.replace(set, now)?;
        }
        Content::DeltaWas(message) => {
            let places = message.changes.iter().map(change);
            let serials = message.serials.iter().map(revoked_serial);
            let delta = Delta {
                from: position(message.shard, message.from)?,
                to: position(message.shard, message.to)?,
                changes: places.chain(serials).collect::<Result<_, _>>()?,
            };
            view.apply(&delta, now)?;
        }
        Content::HeartbeatWas(message) => {
            let said = position(message.shard, message.position)?;
            view.beat(said, Timestamp(message.at_ms), now)?;
        }
        Content::Opening(_) | Content::Snapshot(_) | Content::Batches(_) => {
            return Err(Lost::Malformed);
        }
    }
    Ok(())
}

/// Adds one part of a snapshot to those before it, which must be of the same position.
fn collect(parts: Option<RevocationSet>, part: wire::Snapshot) -> Result<RevocationSet, Lost> {
    let position = position(part.shard, part.position)?;
    let mut set = parts.unwrap_or_else(|| RevocationSet::at(position));
    if set.position() != position {
        return Err(Lost::Malformed);
    }
    for one in part.windows {
        let bitmap = Bitmap::from_packed(one.statuses.to_vec()).ok_or(Lost::Malformed)?;
        set.insert_window(Window(one.window), bitmap);
    }
    for one in &part.serials {
        set.take(revoked_serial(one)?);
    }
    if set.windows().count() > WINDOWS_MAX || set.serials().count() > SERIALS_MAX {
        return Err(Lost::Malformed);
    }
    Ok(set)
}

fn revoked_serial(message: &wire::RevokedSerial) -> Result<Change, Lost> {
    let serial = Serial::from_bytes(&message.serial).map_err(|_rule| Lost::Malformed)?;
    Ok(Change::Serial(serial, Timestamp(message.until_ms)))
}

fn position(shard: u32, sequence: u64) -> Result<Position, Lost> {
    Ok(Position {
        shard: Shard(u16::try_from(shard).map_err(|_too_large| Lost::Malformed)?),
        sequence: Sequence(sequence),
    })
}

fn change(message: &wire::Change) -> Result<Change, Lost> {
    // A status that is not known is read as revoked, like the two bits in a bitmap.
    let status = u8::try_from(message.status).map_or(Status::Revoked, |bits| {
        if bits > 3 { Status::Revoked } else { Status::from_bits(bits) }
    });
    if message.slot >= mayfly_core::limits::SLOTS_PER_WINDOW_MAX {
        return Err(Lost::Malformed);
    }
    let place = Place { window: Window(message.window), slot: Slot(message.slot) };
    Ok(Change::Place(place, status))
}

/// Says in the log when patience begins to run out, and shuts live connections when it has.
async fn count_silence(view: Arc<View>) {
    let mut heard = view.heard_changes();
    let mut said = Sight::Clear;
    loop {
        let Some(at) = *heard.borrow_and_update() else {
            if heard.changed().await.is_err() {
                return;
            }
            continue;
        };
        let now = Instant::now();
        let sight = view.sight(now);
        tell(sight, said, now.saturating_duration_since(at));
        said = sight;
        let patience = view.patience();
        let more = match sight {
            // Whatever is heard meanwhile, this instant is the first at which it could be missed.
            Sight::Clear => {
                tokio::time::sleep_until(at + patience.after()).await;
                true
            }
            Sight::Grace => heard_until(&mut heard, at + patience.limit()).await,
            Sight::Dark => {
                view.cut_all(&Refused::Dark);
                heard.changed().await.is_ok()
            }
        };
        if !more {
            return;
        }
    }
}

/// Waits until the feed speaks or the instant has come. `false` when the view is gone.
async fn heard_until(heard: &mut watch::Receiver<Option<Instant>>, limit: Instant) -> bool {
    tokio::select! {
        () = tokio::time::sleep_until(limit) => true,
        spoke = heard.changed() => spoke.is_ok(),
    }
}

fn tell(sight: Sight, said: Sight, silence: Duration) {
    telemetry::sight(sight);
    let silence_ms = u64::try_from(silence.as_millis()).unwrap_or(u64::MAX);
    match (sight, said) {
        (Sight::Clear, Sight::Clear)
        | (Sight::Grace, Sight::Grace)
        | (Sight::Dark, Sight::Dark) => {}
        (Sight::Clear, _) => tracing::info!("feed is back"),
        (Sight::Grace, _) => {
            tracing::warn!(silence_ms, "feed is silent, going on with what was known last");
        }
        (Sight::Dark, _) => tracing::error!(silence_ms, "feed is silent, refusing everybody"),
    }
}
