//! What the transport alone costs: calls of a server on the same cores that has its answers ready are below
//! what anything behind the same gRPC library can reach.

use std::path::Path;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mayfly_verify::{Endpoint, WorkloadClient, WorkloadError};
use nix::unistd::Pid;

use crate::{
    canned::{self, DURABLE},
    house::process_cpu_ns,
    measure::Fault,
    ratio::{Ratios, Raw},
};

const IN_FLIGHT: usize = 64;
const CALLS_EACH: usize = 64;
const VISITS: usize = 1024;

/// Measures calls on warm connections, and connections with one message.
pub(crate) async fn measure(
    dir: &Path,
    rounds: usize,
    (raw, ratios): (&Raw, &mut Ratios),
) -> Result<(), Fault> {
    let socket = dir.join("floor.sock");
    let (mut server, pid) = canned::start(&socket).await?;
    let endpoint = Endpoint::parse(&format!("unix://{}", socket.display()))?;
    for _ in 0..rounds {
        let clients: Vec<_> = (0..IN_FLIGHT).map(|_| WorkloadClient::new(&endpoint)).collect();
        let warm = clients.iter().map(|client| client.fetch_jwt(&[DURABLE], None));
        stream::iter(warm).buffer_unordered(IN_FLIGHT).try_collect::<Vec<_>>().await?;
        for (audience, figure) in [
            ("canned", ("floor_call", "floor: a canned token over the same transport")),
            (DURABLE, ("floor_token", "floor: the same, with a line on disk and a signature")),
        ] {
            let signature = raw.cost()?;
            let before = process_cpu_ns(pid)?;
            let calls = clients.iter().map(|client| async move {
                for _ in 0..CALLS_EACH {
                    client.fetch_jwt(&[audience], None).await?;
                }
                Ok::<_, Fault>(())
            });
            stream::iter(calls).buffer_unordered(IN_FLIGHT).try_collect::<Vec<_>>().await?;
            let cost = per(process_cpu_ns(pid)? - before, IN_FLIGHT * CALLS_EACH);
            ratios.add(figure, cost / signature);
        }
        drop(clients);
        visits(&endpoint, pid, (raw, &mut *ratios)).await?;
    }
    server.kill().await?;
    Ok(())
}

async fn visits(
    endpoint: &Endpoint,
    pid: Pid,
    (raw, ratios): (&Raw, &mut Ratios),
) -> Result<(), Fault> {
    let signature = raw.cost()?;
    let before = process_cpu_ns(pid)?;
    let visits = (0..VISITS).map(|_| async {
        let client = WorkloadClient::new(endpoint);
        // What was canned is no certificate, which shows that it came.
        match client.fetch_x509().await {
            Err(WorkloadError::Svid(_)) => Ok::<_, Fault>(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err("a canned message was taken for a certificate".into()),
        }
    });
    stream::iter(visits).buffer_unordered(IN_FLIGHT).try_collect::<Vec<_>>().await?;
    let cost = per(process_cpu_ns(pid)? - before, VISITS);
    let what = "floor: a connection and one canned message over it";
    ratios.add(("floor_visit", what), cost / signature);
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a number of calls")]
fn per(cost: f64, count: usize) -> f64 {
    cost / count as f64
}
