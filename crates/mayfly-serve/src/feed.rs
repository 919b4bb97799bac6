//! The revocation feed: a snapshot, then every change, and a heartbeat in silence.
//!
//! Whoever reaches the socket may follow. What is revoked is no secret, and a verifier that is not told
//! accepts what it should not.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use mayfly_core::{Delta, Denial, Position};
use mayfly_proto::mayfly::v1::{
    FollowRequest, FollowResponse, Heartbeat, ReportRequest, ReportResponse, Snapshot,
    follow_response::Content, revocation_feed_server::RevocationFeed,
};
use tokio::sync::broadcast::{
    Receiver,
    error::{RecvError, TryRecvError},
};
use tonic::{Request, Response, Status};

use crate::{
    desk::{Clock, Desk},
    guest::Guest,
    limits,
    quota::{Quota, Seat},
    status,
    visit::{Pulled, Speaker, pull},
    wire,
};

/// The service. Clones share everything.
#[derive(Clone)]
pub struct Feed {
    desk: Arc<dyn Desk>,
    clock: Clock,
    followers: Arc<Quota>,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("followers", &self.followers).finish_non_exhaustive()
    }
}

impl Feed {
    /// A feed of what `desk` publishes.
    #[must_use]
    pub fn new(desk: Arc<dyn Desk>, clock: Clock) -> Self {
        let followers = Quota::new(limits::CALLS_MAX, limits::CALLS_PER_USER_MAX);
        Self { desk, clock, followers }
    }
}

#[tonic::async_trait]
impl RevocationFeed for Feed {
    type FollowStream = Pulled<FollowResponse>;

    async fn follow(
        &self,
        request: Request<FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let guest = request.extensions().get::<Arc<Guest>>();
        let guest = Arc::clone(guest.ok_or_else(|| status::of(Denial::AttestationFailed))?);
        guest.check().map_err(status::of)?;
        let seat = self.followers.take(guest.user());
        let follower = Follower {
            feed: self.clone(),
            guest,
            _seat: seat.ok_or_else(|| status::of(Denial::Overloaded))?,
            heartbeat: heartbeat(request.into_inner().heartbeat_ms),
            parts: VecDeque::new(),
            deltas: None,
            position: Position::default(),
            spare: None,
        };
        Ok(Response::new(pull(follower)))
    }

    async fn report(
        &self,
        _request: Request<ReportRequest>,
    ) -> Result<Response<ReportResponse>, Status> {
        Err(status::of(Denial::NotServing))
    }
}

fn heartbeat(asked_ms: u32) -> Duration {
    match asked_ms {
        0 => limits::HEARTBEAT_DEFAULT,
        ms => Duration::from_millis(ms.into()).clamp(limits::HEARTBEAT_MIN, limits::HEARTBEAT_MAX),
    }
}

/// One follower.
struct Follower {
    feed: Feed,
    guest: Arc<Guest>,
    _seat: Seat,
    heartbeat: Duration,
    /// What is left of a snapshot.
    parts: VecDeque<Snapshot>,
    /// What comes after it; none before the first and after a loss.
    deltas: Option<Receiver<Arc<Delta>>>,
    /// How far the follower is once it has read all that it was told.
    position: Position,
    /// A delta that no longer fitted into the message before.
    spare: Option<Arc<Delta>>,
}

impl Speaker for Follower {
    type Message = FollowResponse;

    async fn next(&mut self) -> Result<FollowResponse, Denial> {
        let guest = Arc::clone(&self.guest);
        tokio::select! {
            biased;
            denial = guest.gone() => Err(denial),
            message = self.speak() => Ok(FollowResponse { sealed: None, content: Some(message?) }),
        }
    }
}

impl Follower {
    async fn speak(&mut self) -> Result<Content, Denial> {
        loop {
            if let Some(part) = self.parts.pop_front() {
                return Ok(Content::SnapshotWas(part));
            }
            let Some(deltas) = &mut self.deltas else {
                self.start_over().await?;
                continue;
            };
            let first = match self.spare.take() {
                Some(delta) => Ok(delta),
                None => match tokio::time::timeout(self.heartbeat, deltas.recv()).await {
                    Ok(received) => received,
                    Err(_silence) => return Ok(Content::HeartbeatWas(self.beat())),
                },
            };
            match first {
                Ok(delta) if delta.to <= self.position => {} // The snapshot holds it.
                Ok(delta) if delta.from == self.position => {
                    return Ok(Content::DeltaWas(wire::delta(&self.gather(&delta))));
                }
                Ok(_) | Err(RecvError::Lagged(_)) => self.deltas = None,
                Err(RecvError::Closed) => return Err(Denial::NotServing),
            }
        }
    }

    async fn start_over(&mut self) -> Result<(), Denial> {
        let (set, deltas) = self.feed.desk.follow().await?;
        self.position = set.position();
        self.parts = wire::snapshot(&set).into();
        self.deltas = Some(deltas);
        Ok(())
    }

    /// Adds to `first` what has been published since, so that a slow follower catches up in few
    /// messages.
    fn gather(&mut self, first: &Delta) -> Delta {
        let mut all = first.clone();
        while let Some(deltas) = &mut self.deltas {
            match deltas.try_recv() {
                Ok(delta) if delta.to <= all.to => {}
                Ok(delta) if delta.from == all.to => {
                    if all.changes.len() + delta.changes.len() > limits::CHANGES_PER_DELTA_MAX {
                        self.spare = Some(delta);
                        break;
                    }
                    all.changes.extend_from_slice(&delta.changes);
                    all.to = delta.to;
                }
                Ok(_) | Err(TryRecvError::Lagged(_)) => self.deltas = None,
                // Closed is heard by the next `recv`.
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        self.position = all.to;
        all
    }

    fn beat(&self) -> Heartbeat {
        Heartbeat {
            shard: u32::from(self.position.shard.0),
            position: self.position.sequence.0,
            at_ms: (self.feed.clock)().0,
        }
    }
}
