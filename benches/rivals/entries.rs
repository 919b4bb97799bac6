//! How long an entry of a SPIRE server takes until its certificate is with the workload.
//!
//! The workload is this process. It has one stream of the agent's Workload API open throughout, and so hears of a
//! new identity as soon as the agent has it: no attestation and no attempt too early is in the wait.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mayfly::clock;
use mayfly_proto::spiffe::workload::{
    X509svidRequest, spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::{Request, metadata::MetadataValue};

use crate::{
    drive::Call,
    measure::Fault,
    spire::{SpiffeId, Spire},
    workload::connect,
};

/// How long an entry may take to become a certificate.
const PATIENCE: Duration = Duration::from_secs(60);
/// Until an agent that has ended the stream is asked again.
const BEAT: Duration = Duration::from_millis(20);
/// How often server and agent look by default, in milliseconds, and a step that visits all parts of that span
/// evenly, the golden ratio of it.
const SPAN: u64 = 5_000;
const STEP: u64 = 3_090;

/// An entry is made, waited for, and deleted, over and over. The deletion is paid for and not waited for.
pub(crate) struct Entries {
    spire: Spire,
    parent: SpiffeId,
    uid: u32,
    given: watch::Receiver<Vec<String>>,
    /// Ends with this value.
    _listener: JoinSet<()>,
}

impl Entries {
    /// Entries below `parent`, the agent whose socket it is.
    pub(crate) async fn open(
        spire: &Spire,
        parent: SpiffeId,
        socket: Arc<PathBuf>,
    ) -> Result<Self, Fault> {
        let (tell, mut given) = watch::channel(Vec::new());
        let mut listener = JoinSet::new();
        listener.spawn(listen(socket, tell));
        // An entry that stays keeps the stream open while there is no other.
        let first = timeout(PATIENCE, given.wait_for(|ids| !ids.is_empty())).await.map(|_| ());
        first.map_err(
            |_elapsed| "the agent gives this user nothing; it needs an entry that stays",
        )?;
        let uid = rustix::process::geteuid().as_raw();
        Ok(Self { spire: spire.clone(), parent, uid, given, _listener: listener })
    }
}

impl Call for Entries {
    async fn call(&self, _worker: usize, due: u64) -> Result<u64, Fault> {
        let mut given = self.given.clone();
        let entry = self.spire.register(&self.parent, self.uid).await?;
        let seen = timeout(PATIENCE, given.wait_for(|ids| ids.contains(&entry.id))).await;
        let wait = clock::monotonic_ns() - due;
        // What is lent of the list would keep the next from being told.
        let seen = seen.is_ok_and(|seen| seen.is_ok());
        self.spire.strike(entry).await?;
        if seen { Ok(wait) } else { Err("an entry did not become a certificate".into()) }
    }
}

/// The same at moments that have nothing to do with when the last one came. Without that each entry would be
/// made right after the agent has looked, and wait longest.
pub(crate) struct Spread(Arc<Entries>, AtomicU64);

impl Spread {
    pub(crate) fn new(entries: &Arc<Entries>) -> Self {
        Self(Arc::clone(entries), AtomicU64::new(1))
    }
}

impl Call for Spread {
    async fn call(&self, worker: usize, _due: u64) -> Result<u64, Fault> {
        let n = self.1.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(n * STEP % SPAN)).await;
        self.0.call(worker, clock::monotonic_ns()).await
    }
}

/// Tells of what the agent gives, and of nothing while it gives nothing.
async fn listen(socket: Arc<PathBuf>, tell: watch::Sender<Vec<String>>) {
    loop {
        // A No is an answer that changes.
        drop(follow(&socket, &tell).await);
        tell.send_replace(Vec::new());
        sleep(BEAT).await;
    }
}

async fn follow(socket: &Arc<PathBuf>, tell: &watch::Sender<Vec<String>>) -> Result<(), Fault> {
    let mut client = SpiffeWorkloadApiClient::new(connect(socket).await?);
    let mut request = Request::new(X509svidRequest {});
    let yes = MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", yes);
    let mut stream = client.fetch_x509svid(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        tell.send_replace(message.svids.into_iter().map(|svid| svid.spiffe_id).collect());
    }
    Ok(())
}
