//! A service that verifies its callers, as anyone would write it with `mayfly-verify`.

use std::{net::SocketAddr, path::Path, sync::Arc};

use mayfly_proto::mayfly::v1 as wire;
use mayfly_verify::{Authorize, Endpoint, Follower, Party, Patience, WorkloadClient, X509Source};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

use super::{PATIENCE, StageError, begin_as, io};
use crate::clock;

/// A service in Rust that verifies its callers with `mayfly-verify`.
#[derive(Debug)]
pub(super) struct Service {
    address: SocketAddr,
    client: WorkloadClient,
    cuts: mpsc::Receiver<u64>,
    _source: X509Source,
    _follower: Follower,
    _serving: JoinSet<()>,
}

impl Service {
    /// Where it listens.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its own client of the Workload API.
    pub(super) const fn client(&self) -> &WorkloadClient {
        &self.client
    }

    pub(super) async fn start(dir: &Path) -> Result<Self, StageError> {
        let socket = wire::begin_task_request::Holder::Socket(true);
        let begun = begin_as(dir, "service", socket).await?;
        let endpoint = Endpoint::parse(&format!("unix://{}", begun.socket))?;
        let client = WorkloadClient::new(&endpoint);
        let source = client.watch_x509();
        source.ready().await.ok_or(StageError::Missing("the service has no identity"))?;
        let follower = Follower::connect(&endpoint, Patience::default());
        follower.ready().await;
        let party = Party::new(source.held(), Authorize::Any, Arc::clone(follower.view()));
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(io("cannot listen"))?;
        let address = listener.local_addr().map_err(io("cannot listen"))?;
        let (cut, cuts) = mpsc::channel(64);
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, party, cut));
        let (_source, _follower, _serving) = (source, follower, serving);
        Ok(Self { address, client, cuts, _source, _follower, _serving })
    }

    pub(super) fn forget_news(&mut self) {
        while self.cuts.try_recv().is_ok() {}
    }

    /// The instant at which the service cut a live connection.
    pub(super) async fn cut(&mut self) -> Result<u64, StageError> {
        let cut = timeout(PATIENCE, self.cuts.recv()).await;
        cut.ok().flatten().ok_or(StageError::Missing("the live connection goes on"))
    }
}

async fn serve(listener: TcpListener, party: Party, cut: mpsc::Sender<u64>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(echo(stream, party.clone(), cut.clone()));
    }
}

/// Answers each byte with itself until the peer leaves or is cut off.
async fn echo(stream: TcpStream, party: Party, cut: mpsc::Sender<u64>) {
    let Ok(mut stream) = party.accept(stream, clock::now()).await else { return };
    let mut byte = [0];
    while stream.read_exact(&mut byte).await.is_ok() && stream.write_all(&byte).await.is_ok() {}
    if stream.refused().is_some() {
        let _nobody_listens_between_rounds = cut.try_send(clock::monotonic_ns());
    }
}
