//! A server of the same kind on the same cores that has its answers ready.
//!
//! It attests nobody, decides nothing, and signs and writes down nothing but what it is asked to.

mod durable;

use std::{io::Write as _, path::Path, pin::Pin, process::Stdio};

use bytes::Bytes;
use durable::Durable;
use futures_util::{Stream, StreamExt as _, stream};
use mayfly_proto::spiffe::workload::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse,
    ValidateJwtsvidRequest, ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse,
    WitsvidRequest, WitsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid,
    X509svidRequest, X509svidResponse,
    spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
};
use nix::unistd::Pid;
use tokio::{
    io::AsyncReadExt as _,
    net::UnixSocket,
    process::{Child, Command},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::measure::Fault;

/// The word by which a bench is told to be that server, and where.
const SERVE: &str = "--serve-canned";
/// The audience whose tokens are written down, and signed for where the bench signs.
pub(crate) const DURABLE: &str = "durable";

/// Connections that may wait to be taken: as many as a loop can have under way.
const BACKLOG: u32 = 4096;

/// Starts this program as that server and waits until it is there; ended at the latest with the value.
pub(crate) async fn start(socket: &Path) -> Result<(Child, Pid), Fault> {
    let mut server = Command::new(std::env::current_exe()?)
        .args([SERVE.as_ref(), socket.as_os_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let pid = server.id().and_then(|pid| i32::try_from(pid).ok()).ok_or("no server")?;
    let word = server.stdout.as_mut().ok_or("no word of the server")?.read_u8().await;
    word.map_err(|_gone| "the server ended before it was there")?;
    Ok((server, Pid::from_raw(pid)))
}

/// Where this program is to serve, if it is to be that server.
pub(crate) fn wanted() -> Option<String> {
    std::env::args().skip_while(|word| word != SERVE).nth(1)
}

/// Serves on `socket` until it is killed. `sign` is what is done for a token that is written down.
pub(crate) fn serve(
    socket: &str,
    sign: impl Fn() -> Option<()> + Send + Sync + 'static,
) -> Result<(), Fault> {
    let socket = Path::new(socket);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = UnixSocket::new_stream()?;
        listener.bind(socket)?;
        let listener = UnixListenerStream::new(listener.listen(BACKLOG)?);
        let canned = Canned(Durable::new(&socket.with_extension("log"), sign)?);
        let service = SpiffeWorkloadApiServer::new(canned);
        std::io::stdout().write_all(b"!")?;
        std::io::stdout().flush()?;
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
            self.0.write().await.ok_or_else(|| Status::internal("nothing was written"))?;
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
