//! A life at a server that has its answers ready: where nothing is attested, decided, signed or ended, what is
//! left are the calls, the connection, two lines on disk, and the wait for the cores.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use mayfly::clock;
use nix::unistd::Pid;
use tokio::process::Child;
use tonic::transport::Channel;

use crate::{
    canned::{self, DURABLE},
    drive::Call,
    measure::Fault,
    workload::{connect, fetch_token, fetch_x509},
};

/// The server and a way to it.
pub(crate) struct Floor {
    server: Child,
    pub(crate) pid: Pid,
    socket: Arc<PathBuf>,
    calls: Channel,
}

impl Floor {
    pub(crate) async fn open(dir: &Path) -> Result<Self, Fault> {
        let socket = Arc::new(dir.join("canned.sock"));
        let (server, pid) = canned::start(&socket).await?;
        let calls = connect(&socket).await?;
        Ok(Self { server, pid, socket, calls })
    }

    /// What [`Lives`](crate::house::Lives) are on a broker.
    pub(crate) fn lives(&self) -> Lives {
        Lives { calls: self.calls.clone(), socket: Arc::clone(&self.socket) }
    }

    pub(crate) async fn close(mut self) -> Result<(), Fault> {
        Ok(self.server.kill().await?)
    }
}

pub(crate) struct Lives {
    calls: Channel,
    socket: Arc<PathBuf>,
}

impl Call for Lives {
    async fn call(&self, _worker: usize, due: u64) -> Result<u64, Fault> {
        fetch_token(self.calls.clone(), DURABLE).await?;
        fetch_x509(connect(&self.socket).await?).await?;
        let wait = clock::monotonic_ns() - due;
        fetch_token(self.calls.clone(), DURABLE).await?;
        Ok(wait)
    }
}
