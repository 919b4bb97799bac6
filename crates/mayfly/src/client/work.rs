//! A task that this process has begun and answers for.

use std::time::Duration;

use mayfly_proto::mayfly::v1 as wire;
use tokio::{sync::watch, task::JoinSet};

use super::{Begin, Client, ClientError, Refusal};
use crate::clock;

/// A task that was begun, and is kept alive for as long as this is held.
///
/// Dropped without an [`end`](Self::end), it is not renewed any more and its lease lapses; one without a
/// lease goes on until its holder, its deadline or somebody else ends it.
#[derive(Debug)]
#[must_use = "a task whose `Work` is dropped is not renewed any more"]
pub struct Work {
    client: Client,
    begun: wire::BeginResponse,
    lost: watch::Receiver<Option<Refusal>>,
    _heart: JoinSet<()>,
}

/// How work came out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It is done.
    Completed,
    /// It came to nothing. Its profile may want it quarantined rather than ended.
    Failed,
    /// Other work has taken its place.
    Superseded,
    /// It must not go on.
    Revoked,
}

impl Outcome {
    /// The word of the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Superseded => "superseded",
            Self::Revoked => "revoked",
        }
    }
}

/// How a task stands after its end was told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ended {
    /// `ended`, or `quarantined` where the profile wants that of what has failed.
    pub state: String,
    /// The cause of the first end, which may have been somebody else's.
    pub cause: String,
}

/// What changes about a task. What is not named stays as it was.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Amend {
    /// What it is for.
    pub intent: Option<String>,
    /// What it may do from here on: never more than before.
    pub scope: Option<wire::Scope>,
    /// Why, for the log.
    pub reason: String,
}

impl Work {
    pub(super) fn of(client: Client, begun: wire::BeginResponse, lease_ms: u64) -> Self {
        let (tell, lost) = watch::channel(None);
        let mut heart = JoinSet::new();
        if lease_ms != 0 {
            // Twice a heartbeat may be lost before the lease is.
            let pace = Duration::from_millis(lease_ms / 3).max(Duration::from_millis(1));
            let client = client.clone().with_patience(pace);
            heart.spawn(beat(client, begun.task.clone(), pace, tell));
        }
        Self { client, begun, lost, _heart: heart }
    }

    /// The task's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.begun.task
    }

    /// The SPIFFE ID of whoever holds it.
    #[must_use]
    pub fn spiffe_id(&self) -> &str {
        &self.begun.spiffe_id
    }

    /// The `SPIFFE_ENDPOINT_SOCKET` of whoever holds it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.begun.socket)
    }

    /// The version that was begun, or that we have made last.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.begun.version
    }

    /// Waits until a heartbeat is refused: somebody else has ended the task, and the work has to stop.
    /// Never for a task without a lease, of which nothing is heard.
    pub async fn lost(&self) -> Refusal {
        let mut lost = self.lost.clone();
        // An error means that nobody will ever tell: there is no heart.
        let told = lost.wait_for(Option::is_some).await.ok().and_then(|told| told.clone());
        match told {
            Some(refusal) => refusal,
            None => std::future::pending().await,
        }
    }

    /// Begins a task below this one: strictly narrower, no longer, and ended with it.
    ///
    /// # Errors
    /// `exceeds_parent`, `not_narrower` and others name what is too wide.
    pub async fn delegate(&self, child: Begin) -> Result<Self, ClientError> {
        let request = child.into_request(clock::now());
        let lease = request.lease_ms;
        let begun = self.client.delegate_once(self.begun.task.clone(), request).await?;
        Ok(Self::of(self.client.clone(), begun, lease))
    }

    /// Begins an attempt of this job.
    ///
    /// # Errors
    /// `attempt_running`, `attempts_spent`.
    pub async fn attempt(&self, attempt: Begin) -> Result<Self, ClientError> {
        self.client.begin(attempt.under(self.begun.task.clone())).await
    }

    /// Makes a new version, if nobody else has; credentials of older ones are refused from then on. It is
    /// not tried again when the answer is lost, because it may have been heard.
    ///
    /// # Errors
    /// `version_conflict` if somebody else has amended it.
    pub async fn amend(&mut self, amend: Amend) -> Result<u32, ClientError> {
        let request = wire::AmendRequest {
            task: self.begun.task.clone(),
            intent: amend.intent,
            scope: amend.scope,
            if_version: self.begun.version,
            reason: amend.reason,
        };
        let version = self.client.amend_once(request).await?.version;
        self.begun.version = version;
        Ok(version)
    }

    /// Ends it, and everything below it.
    ///
    /// # Errors
    /// As every call; the lease lapses then.
    pub async fn end(self, outcome: Outcome) -> Result<Ended, ClientError> {
        self.end_because(outcome, "").await
    }

    /// Ends it with a reason for the log.
    ///
    /// # Errors
    /// As [`end`](Self::end).
    pub async fn end_because(self, outcome: Outcome, reason: &str) -> Result<Ended, ClientError> {
        let (task, cause) = (self.begun.task.clone(), outcome.as_str().to_owned());
        let request = wire::EndRequest { task, cause, reason: reason.to_owned() };
        let ended = self.client.end_once(request).await?;
        Ok(Ended { state: ended.state, cause: ended.cause })
    }
}

/// Renews a lease until that is refused.
async fn beat(client: Client, task: String, pace: Duration, lost: watch::Sender<Option<Refusal>>) {
    loop {
        tokio::time::sleep(pace).await;
        let Err(error) = client.heartbeat(&task).await else { continue };
        // Unheard is not lost: the broker may be back before the lease has lapsed.
        let said = error.refusal().filter(|refusal| refusal.status != tonic::Code::Unavailable);
        if let Some(refusal) = said {
            lost.send_replace(Some(refusal.clone()));
            return;
        }
    }
}
