//! Identities that renew themselves: the Workload API's stream, followed for as long as someone needs it.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinSet};
use tonic::{Code, Status};

use crate::{backoff::Backoff, jwk::JwkSets, svid::X509Context, workload::WorkloadClient};

/// What is held at this moment.
#[derive(Clone, Debug, Default)]
pub enum Held {
    /// Nothing has come yet.
    #[default]
    Waiting,
    /// These identities.
    Context(Arc<X509Context>),
    /// They were taken away: the task has ended, is quarantined, or never was.
    Withdrawn,
}

impl Held {
    /// The identities, if any.
    #[must_use]
    pub const fn context(&self) -> Option<&Arc<X509Context>> {
        match self {
            Self::Context(context) => Some(context),
            Self::Waiting | Self::Withdrawn => None,
        }
    }
}

/// The caller's identities, kept fresh in the background until this is dropped.
#[derive(Debug)]
pub struct X509Source {
    held: watch::Receiver<Held>,
    _task: JoinSet<()>,
}

impl X509Source {
    pub(crate) fn follow(client: WorkloadClient) -> Self {
        let (sender, held) = watch::channel(Held::default());
        let mut task = JoinSet::new();
        task.spawn(run(client, sender));
        Self { held, _task: task }
    }

    /// What is held, with news of every change.
    #[must_use]
    pub fn held(&self) -> watch::Receiver<Held> {
        self.held.clone()
    }

    /// Waits for the first identities.
    ///
    /// `None` if they were refused instead; the source goes on asking.
    pub async fn ready(&self) -> Option<Arc<X509Context>> {
        let mut held = self.held.clone();
        let held = held.wait_for(|held| !matches!(held, Held::Waiting)).await.ok()?;
        held.context().cloned()
    }
}

async fn run(client: WorkloadClient, held: watch::Sender<Held>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    loop {
        let end = stream(&client, &held, &mut backoff).await;
        // Anything else than a clear No may be a restart or a lost connection, and what was held
        // stays good for as long as its dates say.
        if end.code() == Code::PermissionDenied {
            tracing::warn!(reason = end.message(), "identities withdrawn");
            held.send_replace(Held::Withdrawn);
        } else {
            tracing::info!(code = ?end.code(), reason = end.message(), "workload api lost, trying again");
        }
        backoff.wait_after(&end).await;
    }
}

async fn stream(
    client: &WorkloadClient,
    held: &watch::Sender<Held>,
    backoff: &mut Backoff,
) -> Status {
    let mut stream = match client.stream_x509().await {
        Ok(stream) => stream,
        Err(status) => return status,
    };
    loop {
        match stream.message().await {
            Ok(Some(message)) => match X509Context::parse(message) {
                Ok(context) => {
                    backoff.reset();
                    held.send_replace(Held::Context(Arc::new(context)));
                }
                Err(invalid) => return Status::internal(invalid.to_string()),
            },
            Ok(None) => return Status::unavailable("the stream ended"),
            Err(status) => return status,
        }
    }
}

/// The token keys of the caller's own and its federated trust domains, kept fresh in the background
/// until this is dropped.
#[derive(Debug)]
pub struct KeySource {
    keys: watch::Receiver<JwkSets>,
    _task: JoinSet<()>,
}

impl KeySource {
    pub(crate) fn follow(client: WorkloadClient) -> Self {
        let (sender, keys) = watch::channel(JwkSets::default());
        let mut task = JoinSet::new();
        task.spawn(run_keys(client, sender));
        Self { keys, _task: task }
    }

    /// The keys at this moment, with news of every change. Before the first there are none, and every
    /// token is refused.
    #[must_use]
    pub fn keys(&self) -> watch::Receiver<JwkSets> {
        self.keys.clone()
    }

    /// Waits for the first keys.
    pub async fn ready(&self) {
        let mut keys = self.keys.clone();
        // Ends with an error only if the task has, and then there is nothing to wait for.
        let _keys = keys.wait_for(|keys| keys.iter().next().is_some()).await.is_ok();
    }
}

async fn run_keys(client: WorkloadClient, keys: watch::Sender<JwkSets>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    loop {
        let end = stream_keys(&client, &keys, &mut backoff).await;
        if end.code() == Code::PermissionDenied {
            tracing::warn!(reason = end.message(), "token keys withdrawn");
            keys.send_replace(JwkSets::default());
        } else {
            tracing::info!(code = ?end.code(), reason = end.message(), "workload api lost, trying again");
        }
        backoff.wait_after(&end).await;
    }
}

async fn stream_keys(
    client: &WorkloadClient,
    keys: &watch::Sender<JwkSets>,
    backoff: &mut Backoff,
) -> Status {
    let mut stream = match client.stream_jwt_bundles().await {
        Ok(stream) => stream,
        Err(status) => return status,
    };
    loop {
        match stream.message().await {
            Ok(Some(message)) => {
                backoff.reset();
                keys.send_replace(crate::workload::key_sets(&message));
            }
            Ok(None) => return Status::unavailable("the stream ended"),
            Err(status) => return status,
        }
    }
}
