//! What the transport alone costs: a server of the same kind on the same cores that has its answers ready.
//!
//! It attests nobody, decides nothing, and signs and writes down nothing but what it is asked to; what its
//! calls cost is below what anything behind the same gRPC library can reach.

use std::{path::Path, pin::Pin, process::Stdio};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use mayfly_proto::spiffe::workload::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse,
    ValidateJwtsvidRequest, ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse,
    WitsvidRequest, WitsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid,
    X509svidRequest, X509svidResponse,
    spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
};
use mayfly_verify::{Endpoint, WorkloadClient, WorkloadError};
use nix::unistd::Pid;
use tokio::{net::UnixListener, process::Command};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::{
    durable::Durable,
    house::{appear, process_cpu_ns},
    measure::Fault,
    ratio::{Ratios, Raw},
};

/// The word by which this program is told to be that server, and where.
pub(crate) const SERVE: &str = "--serve-floor";
/// The audience whose tokens are written down and signed for.
const DURABLE: &str = "durable";
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
    // Ended at the latest with this value.
    let mut server = Command::new(std::env::current_exe()?)
        .args([SERVE.as_ref(), socket.as_os_str()])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    appear(socket.clone()).await?;
    let pid = server.id().and_then(|pid| i32::try_from(pid).ok()).ok_or("no server")?;
    let pid = Pid::from_raw(pid);
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

/// Serves on `socket` until it is killed.
pub(crate) fn serve(socket: &Path) -> Result<(), Fault> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = UnixListenerStream::new(UnixListener::bind(socket)?);
        let canned = Canned(Durable::new(&socket.with_extension("log"))?);
        let service = SpiffeWorkloadApiServer::new(canned);
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(listener)
            .await?;
        Ok(())
    })
}

struct Canned(Durable);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// One message, and then silence.
fn once<T: Send + 'static>(message: T) -> Answers<T> {
    Box::pin(stream::iter([Ok(message)]).chain(stream::pending()))
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this server has two answers"))
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Canned {
    type FetchX509SVIDStream = Answers<X509svidResponse>;
    type FetchX509BundlesStream = Answers<X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<JwtBundlesResponse>;
    type FetchWITSVIDStream = Answers<WitsvidResponse>;
    type FetchWITBundlesStream = Answers<WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        _request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let svid = X509svid {
            spiffe_id: "spiffe://example.org/agents/bench".into(),
            x509_svid: Bytes::from_static(&[7; 600]),
            x509_svid_key: Bytes::from_static(&[7; 138]),
            bundle: Bytes::from_static(&[7; 500]),
            ..X509svid::default()
        };
        Ok(Response::new(once(X509svidResponse { svids: vec![svid], ..Default::default() })))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        if request.get_ref().audience.first().is_some_and(|first| first == DURABLE) {
            self.0.sign().await.ok_or_else(|| Status::internal("nothing was written"))?;
        }
        let svid = Jwtsvid {
            spiffe_id: "spiffe://example.org/agents/bench".into(),
            svid: "a".repeat(700),
            ..Jwtsvid::default()
        };
        Ok(Response::new(JwtsvidResponse { svids: vec![svid] }))
    }

    async fn fetch_x509_bundles(
        &self,
        _request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        not_here()
    }

    async fn fetch_jwt_bundles(
        &self,
        _request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        not_here()
    }

    async fn validate_jwtsvid(
        &self,
        _request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        not_here()
    }

    async fn fetch_witsvid(
        &self,
        _request: Request<WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        not_here()
    }

    async fn fetch_wit_bundles(
        &self,
        _request: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        not_here()
    }
}
