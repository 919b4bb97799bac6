//! Tasks with a socket of their own, through which credentials are asked for.

use std::{path::Path, time::Duration};

use mayfly_proto::mayfly::v1::tasks_client::TasksClient;
use mayfly_proto::mayfly::v1::{holder_wish::Holder, outcome::Outcome as Said, wish::Wish as Of};
use mayfly_verify::{Endpoint, WorkloadClient};
use tonic::transport::Channel;

use crate::{
    broker::{self, batch},
    measure::Fault,
};

/// Whom the tokens are meant for.
const AUDIENCE: &str = "bench";

/// A task and whoever reaches its socket.
pub(crate) struct Guest {
    pub(crate) task: String,
    pub(crate) socket: String,
    client: WorkloadClient,
}

impl Guest {
    /// Begins tasks. `key` tells these wishes from others.
    pub(crate) async fn begin(
        tasks: &TasksClient<Channel>,
        (key, count): (&str, usize),
    ) -> Result<Vec<Self>, Fault> {
        let wish = |of: usize| {
            Of::Begin(broker::begin("guest", Holder::Socket(true), format!("{key}-{of}")))
        };
        let mut guests = Vec::new();
        for said in batch(tasks, (0..count).map(wish).collect()).await? {
            let Said::Begun(begun) = said else {
                return Err("a begin is answered otherwise".into());
            };
            let endpoint = Endpoint::parse(&format!("unix://{}", begun.socket))?;
            appear(Path::new(&begun.socket)).await?;
            let client = WorkloadClient::new(&endpoint);
            guests.push(Self { task: begun.task, socket: begun.socket, client });
        }
        Ok(guests)
    }

    pub(crate) async fn token(&self) -> Result<(), Fault> {
        self.client.fetch_jwt(&[AUDIENCE], None).await?;
        Ok(())
    }

    pub(crate) async fn certificate(&self) -> Result<(), Fault> {
        self.client.fetch_x509().await?;
        Ok(())
    }

    pub(crate) async fn end(&self, tasks: &TasksClient<Channel>) -> Result<(), Fault> {
        tasks.clone().end(broker::end(self.task.clone())).await?;
        Ok(())
    }
}

/// The socket of a task appears a moment after the task was acknowledged.
async fn appear(socket: &Path) -> Result<(), Fault> {
    for _ in 0..5_000 {
        if socket.exists() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Err("the task's socket did not appear".into())
}
