//! The operator API's client, as the command line uses it.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use mayfly_proto::mayfly::v1::operator_client::OperatorClient;
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};

/// Why an operator's command came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody listens.
    #[error(
        "no broker at `{path}`: start one with `mayfly up`, or name its directory with \
         `--data-dir` or MAYFLY_DATA_DIR"
    )]
    NoBroker {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// It is somebody else's.
    #[error("the broker at `{path}` belongs to another user: run this as that user or as root")]
    NotPermitted {
        /// Where.
        path: PathBuf,
    },
    /// It refused.
    #[error("{}", .0.message())]
    Refused(#[from] Status),
}

/// Where the operator API listens in a data directory.
#[must_use]
pub fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.sock")
}

/// Connects to the broker of `data_dir`.
///
/// # Errors
/// [`AdminError`] says whether there is none or it is somebody else's.
pub async fn connect(data_dir: &Path) -> Result<OperatorClient<Channel>, AdminError> {
    Ok(OperatorClient::new(channel(data_dir).await?))
}

pub(crate) async fn channel(data_dir: &Path) -> Result<Channel, AdminError> {
    let path = socket(data_dir);
    match UnixStream::connect(&path).await {
        Ok(_reachable) => {}
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(AdminError::NotPermitted { path });
        }
        Err(_nobody) => return Err(AdminError::NoBroker { path }),
    }
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Ok(Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector))
}
