//! What one follower is told, and when.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use mayfly_core::{Denial, Position, Sequence, Shard};
use mayfly_proto::mayfly::v1::{FollowRequest, FollowResponse, Resume};
use tokio::{sync::watch, time::Instant};

use super::{
    chain::{Hash, Next},
    hub::{Eager, Hub},
};
use crate::limits;

fn heartbeat(asked_ms: u32) -> Duration {
    match asked_ms {
        0 => limits::HEARTBEAT_DEFAULT,
        ms => Duration::from_millis(ms.into()).clamp(limits::HEARTBEAT_MIN, limits::HEARTBEAT_MAX),
    }
}

/// Where a follower says that it stands. What cannot be read was never a place in our chain.
fn standing(resume: &Resume) -> Option<(Position, Hash)> {
    let shard = Shard(u16::try_from(resume.shard).ok()?);
    let position = Position { shard, sequence: Sequence(resume.position) };
    Some((position, resume.hash.as_slice().try_into().ok()?))
}

/// How often a follower wants to be told.
enum Pace {
    Own(Duration),
    /// At once, as far as the crowd allows.
    Crowd(Eager),
}

impl Pace {
    fn least(&self) -> Duration {
        match self {
            Self::Own(pace) => *pace,
            Self::Crowd(eager) => eager.pace(),
        }
    }
}

/// How far a stream has come.
enum Stage {
    Beginning {
        nonce: Vec<u8>,
        resume: Option<(Position, Hash)>,
    },
    /// What is left of a snapshot.
    Parts(VecDeque<FollowResponse>),
    Following,
}

/// One follower. It holds a place in the chain and nothing of what is said there.
pub struct Follower {
    hub: Arc<Hub>,
    heartbeat: Duration,
    pace: Pace,
    stage: Stage,
    news: watch::Receiver<Position>,
    /// Where it stands once it has read all that it was told.
    position: Position,
    /// When it last heard anything.
    spoke: Instant,
    /// When it was last told a change.
    told: Option<Instant>,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("position", &self.position).finish_non_exhaustive()
    }
}

impl Hub {
    /// Begins to follow.
    ///
    /// # Errors
    /// [`Denial::Malformed`] for a nonce that is too short or too long.
    pub fn follow(self: &Arc<Self>, request: FollowRequest) -> Result<Follower, Denial> {
        if !(limits::NONCE_BYTES_MIN..=limits::NONCE_BYTES_MAX).contains(&request.nonce.len()) {
            return Err(Denial::Malformed);
        }
        Ok(Follower {
            heartbeat: heartbeat(request.heartbeat_ms),
            pace: match request.pace_ms {
                0 => Pace::Crowd(self.eager()),
                ms => Pace::Own(Duration::from_millis(ms.into()).min(limits::PACE_MAX)),
            },
            stage: Stage::Beginning {
                resume: request.resume.as_ref().and_then(standing),
                nonce: request.nonce,
            },
            news: self.news(),
            hub: Arc::clone(self),
            position: Position::default(),
            spoke: Instant::now(),
            told: None,
        })
    }
}

impl Follower {
    /// Waits for the next message.
    ///
    /// # Errors
    /// [`Denial`] when nothing more can be said.
    pub async fn next(&mut self) -> Result<FollowResponse, Denial> {
        let message = self.speak().await?;
        self.spoke = Instant::now();
        Ok(message)
    }

    async fn speak(&mut self) -> Result<FollowResponse, Denial> {
        loop {
            match &mut self.stage {
                Stage::Beginning { nonce, resume } => {
                    let (nonce, resume) = (std::mem::take(nonce), *resume);
                    let (opening, resumed) = self.hub.opening(nonce, resume)?;
                    self.stage = match resume {
                        Some((position, _)) if resumed => {
                            self.position = position;
                            Stage::Following
                        }
                        _ => self.start_over().await?,
                    };
                    return Ok(opening);
                }
                Stage::Parts(parts) => match parts.pop_front() {
                    Some(part) => return Ok(part),
                    None => self.stage = Stage::Following,
                },
                Stage::Following => {
                    if let Some(message) = self.follow().await? {
                        return Ok(message);
                    }
                }
            }
        }
    }

    async fn start_over(&mut self) -> Result<Stage, Denial> {
        let (position, parts) = self.hub.snapshot().await?;
        self.position = position;
        Ok(Stage::Parts(parts.collect()))
    }

    /// Waits for something to say; `None` to look again.
    async fn follow(&mut self) -> Result<Option<FollowResponse>, Denial> {
        // Marked as seen before the look, so that what happens after it wakes us.
        self.news.borrow_and_update();
        match self.hub.next(self.position) {
            Next::Everything => self.stage = self.start_over().await?,
            Next::Batches(batches) => {
                let due = self.told.map(|told| told + self.pace.least());
                if let Some(due) = due.filter(|due| *due > Instant::now()) {
                    tokio::time::sleep_until(due).await;
                    return Ok(None);
                }
                let message = self.hub.batches(&batches)?;
                self.told = Some(Instant::now());
                self.position = batches.last().map_or(self.position, |told| told.batch.to);
                return Ok(Some(message));
            }
            Next::Nothing => {
                let due = self.spoke + self.heartbeat;
                tokio::select! {
                    biased;
                    news = self.news.changed() => news.map_err(|_hub_gone| Denial::NotServing)?,
                    () = tokio::time::sleep_until(due) => return self.beat().await,
                }
            }
        }
        Ok(None)
    }

    async fn beat(&mut self) -> Result<Option<FollowResponse>, Denial> {
        match self.hub.beat()? {
            Some((position, sealed)) if position == self.position => {
                Ok(Some(FollowResponse { sealed: Some(sealed), content: None }))
            }
            Some(_) => Ok(None),
            None => {
                // Something is about to be told, and then this wakes; or it cannot be, and then a
                // heartbeat would be a lie.
                let told = tokio::time::timeout(limits::HEARTBEAT_MIN, self.news.changed()).await;
                if matches!(told, Ok(Err(_hub_gone))) { Err(Denial::NotServing) } else { Ok(None) }
            }
        }
    }
}
