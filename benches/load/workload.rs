//! The SPIFFE Workload API, of any server, as a client sees it who takes what he is given.
//!
//! What is asked for is decoded and looked at for being there. It is not verified: that would be a
//! verifier's work, on the server's cores.

use std::{path::PathBuf, sync::Arc};

use hyper_util::rt::TokioIo;
use mayfly::clock;
use mayfly_proto::spiffe::workload::{
    JwtsvidRequest, X509svidRequest, spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use tokio::net::UnixStream;
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Uri},
};

use crate::{drive::Call, measure::Fault};

/// Whom tokens are meant for.
const AUDIENCE: &str = "bench";

/// A connection to a unix socket, made at once.
pub(crate) async fn connect(socket: &Arc<PathBuf>) -> Result<Channel, Fault> {
    let socket = Arc::clone(socket);
    let connector = tower::service_fn(move |_: Uri| {
        let socket = Arc::clone(&socket);
        async move { UnixStream::connect(&*socket).await.map(TokioIo::new) }
    });
    Ok(Endpoint::from_static("http://localhost").connect_with_connector(connector).await?)
}

/// A certificate; the identities that came with it.
pub(crate) async fn fetch_x509(channel: Channel) -> Result<Vec<String>, Fault> {
    let mut client = SpiffeWorkloadApiClient::new(channel);
    let mut stream = client.fetch_x509svid(request(X509svidRequest {})).await?.into_inner();
    let message = stream.message().await?.ok_or("the stream ended at once")?;
    let whole = |svid: &mayfly_proto::spiffe::workload::X509svid| {
        !svid.x509_svid.is_empty() && !svid.x509_svid_key.is_empty()
    };
    if message.svids.is_empty() || !message.svids.iter().all(whole) {
        return Err("an answer without a certificate and its key".into());
    }
    Ok(message.svids.into_iter().map(|svid| svid.spiffe_id).collect())
}

/// A token for `audience`.
pub(crate) async fn fetch_token(channel: Channel, audience: &str) -> Result<(), Fault> {
    let mut client = SpiffeWorkloadApiClient::new(channel);
    let wish = JwtsvidRequest { audience: vec![audience.to_owned()], spiffe_id: String::new() };
    let answer = client.fetch_jwtsvid(request(wish)).await?.into_inner();
    if answer.svids.iter().all(|svid| svid.svid.is_empty()) {
        return Err("an answer without a token".into());
    }
    Ok(())
}

/// A request with the header that the Workload API demands.
fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let yes = MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", yes);
    request
}

/// A connection anew, and the first answer of `FetchX509SVID` over it.
pub(crate) struct NewConnection(pub(crate) Vec<Arc<PathBuf>>);

impl Call for NewConnection {
    async fn call(&self, worker: usize, due: u64) -> Result<u64, Fault> {
        let at = worker.checked_rem(self.0.len()).unwrap_or(0);
        let socket = self.0.get(at).ok_or("no socket")?;
        fetch_x509(connect(socket).await?).await?;
        Ok(clock::monotonic_ns() - due)
    }
}

/// The first answer of `FetchX509SVID` over connections that are up.
pub(crate) struct Warm(pub(crate) Connections);

impl Call for Warm {
    async fn call(&self, worker: usize, due: u64) -> Result<u64, Fault> {
        fetch_x509(self.0.of(worker)?).await?;
        Ok(clock::monotonic_ns() - due)
    }
}

/// `FetchJWTSVID` over connections that are up.
pub(crate) struct Token(pub(crate) Connections);

impl Call for Token {
    async fn call(&self, worker: usize, due: u64) -> Result<u64, Fault> {
        fetch_token(self.0.of(worker)?, AUDIENCE).await?;
        Ok(clock::monotonic_ns() - due)
    }
}

/// Connections that are up, shared by turns.
#[derive(Clone)]
pub(crate) struct Connections(Arc<[Channel]>);

impl Connections {
    /// One to each of `sockets`.
    pub(crate) async fn open(sockets: &[Arc<PathBuf>]) -> Result<Self, Fault> {
        let mut all = Vec::with_capacity(sockets.len());
        for socket in sockets {
            let channel = connect(socket).await?;
            fetch_x509(channel.clone()).await?;
            all.push(channel);
        }
        Ok(Self(all.into()))
    }

    fn of(&self, worker: usize) -> Result<Channel, Fault> {
        let at = worker.checked_rem(self.0.len()).unwrap_or(0);
        self.0.get(at).cloned().ok_or_else(|| "no connection".into())
    }
}
