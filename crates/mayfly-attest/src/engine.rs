//! A container engine's word about how a container ended, where the configuration names its socket.
//!
//! The end itself is the kernel's to tell: a cgroup that is empty holds nothing, whatever an engine says.
//! An engine is asked one thing alone, by the call that Docker and Podman have in common.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::UnixStream, time::timeout};

use crate::process::Exit;

/// How long an end waits for the engine's word. Longer would keep credentials of a dead container alive.
const PATIENCE: Duration = Duration::from_millis(200);
/// An answer has some dozen bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The API of a container engine, behind a unix socket. Clones share nothing but its name.
#[derive(Clone)]
pub struct Engine {
    socket: Arc<Path>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Engine").field(&self.socket).finish()
    }
}

/// Why an engine has said nothing.
#[derive(Debug, thiserror::Error)]
enum Unsaid {
    #[error("cannot connect: {0}")]
    Connect(#[from] io::Error),
    #[error("http: {0}")]
    Http(#[from] hyper::Error),
    #[error("the request: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("its answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("its answer: {0}")]
    Json(#[from] serde_json::Error),
}

/// What `wait` answers (Docker Engine API 1.24, `ContainerWait`).
#[derive(Deserialize)]
struct Waited {
    #[serde(rename = "StatusCode")]
    status_code: i32,
}

impl Engine {
    /// The engine that listens at `socket`.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket: socket.into() }
    }

    /// How the container `id` ended, if the engine knows and says so soon.
    pub(crate) async fn exit(&self, id: &str) -> Option<Exit> {
        match timeout(PATIENCE, self.wait(id)).await {
            Ok(Ok(exit)) => Some(exit),
            Ok(Err(why)) => {
                tracing::debug!(container = id, %why, "the engine tells no exit");
                None
            }
            Err(_elapsed) => {
                tracing::debug!(container = id, "the engine tells no exit in time");
                None
            }
        }
    }

    async fn wait(&self, id: &str) -> Result<Exit, Unsaid> {
        let stream = TokioIo::new(UnixStream::connect(&self.socket).await?);
        let (mut sender, connection) = http1::handshake(stream).await?;
        let asked = Request::post(format!("/v1.24/containers/{id}/wait"))
            .header(HOST, "engine")
            .body(Empty::<Bytes>::new())?;
        let answer = async move {
            let answer = sender.send_request(asked).await?;
            if answer.status() != StatusCode::OK {
                return Err(Unsaid::Status(answer.status()));
            }
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let waited: Waited = serde_json::from_slice(&body.map_err(Unsaid::Body)?.to_bytes())?;
            Ok(Exit::Code(waited.status_code))
        };
        // The connection carries the answer, and is over when nobody has anything left to send on it; what
        // may be wrong with it, the answer says.
        let (answer, _over) = tokio::join!(answer, connection);
        answer
    }
}
