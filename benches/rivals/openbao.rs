//! An OpenBao server in a process of its own, on loopback, and its HTTP API.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};

use crate::{measure::Fault, words::word};

/// How it keeps what it has to remember, as its configuration says it, and in words.
pub(crate) const STORES: [(&str, &str); 2] = [("raft", "raft on disk"), ("inmem", "in memory")];

/// The longest that any step of its start may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The program, where `benches/rivals/prepare` leaves it or the command line says.
pub(crate) fn find() -> Option<PathBuf> {
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/openbao/bao");
    word("--openbao").map_or(usual, PathBuf::from).canonicalize().ok()
}

/// The server and the right to everything in it.
pub(crate) struct OpenBao {
    server: Child,
    pub(crate) pid: Pid,
    pub(crate) address: SocketAddr,
    pub(crate) token: String,
    pub(crate) store: &'static str,
}

impl OpenBao {
    /// Starts one that has its state in `dir`, unseals it and mounts an authority like ours.
    pub(crate) async fn start(
        program: &Path,
        dir: &Path,
        store: &'static str,
    ) -> Result<Self, Fault> {
        let (address, cluster) = (free()?, free()?);
        let config = dir.join("bao.json");
        let kept = dir.join("bao");
        fs::create_dir(&kept)?;
        let storage = if store == "raft" {
            json!({ "raft": { "path": kept, "node_id": "one" } })
        } else {
            json!({ "inmem": {} })
        };
        let settings = json!({
            "disable_mlock": true,
            "storage": storage,
            "listener": { "tcp": { "address": address.to_string(), "tls_disable": true } },
            "api_addr": format!("http://{address}"),
            "cluster_addr": format!("http://{cluster}"),
            "log_level": "error",
        });
        fs::write(&config, settings.to_string())?;
        let log = File::create(dir.join("bao.log"))?;
        let server = Command::new(program)
            .arg("server")
            .arg(format!("-config={}", config.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let pid = server.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = Pid::from_raw(pid.ok_or("OpenBao has no pid")?);
        let mut rival = Self { server, pid, address, token: String::new(), store };
        timeout(PATIENCE, rival.unseal()).await??;
        timeout(PATIENCE, rival.mount()).await??;
        Ok(rival)
    }

    async fn unseal(&mut self) -> Result<(), Fault> {
        while TcpStream::connect(self.address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut line = Line::connect(self).await?;
        let shares = json!({ "secret_shares": 1, "secret_threshold": 1 });
        let first = line.ask(Method::PUT, "sys/init", &shares).await?;
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        self.token = text(first.get("root_token")).ok_or("no root token")?;
        let key = text(first.pointer("/keys/0")).ok_or("no key")?;
        line.ask(Method::PUT, "sys/unseal", &json!({ "key": key })).await?;
        // It leads itself a moment after it was unsealed.
        while line.ask(Method::GET, "sys/health", &Value::Null).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn mount(&self) -> Result<(), Fault> {
        let mut line = Line::connect(self).await?;
        let mount = json!({ "type": "pki", "config": { "max_lease_ttl": "87600h" } });
        line.ask(Method::POST, "sys/mounts/pki", &mount).await?;
        let root = json!({
            "common_name": "bench", "key_type": "ec", "key_bits": 256, "ttl": "8760h",
        });
        line.ask(Method::POST, "pki/root/generate/internal", &root).await?;
        Ok(())
    }

    pub(crate) async fn close(mut self) -> Result<(), Fault> {
        nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGTERM)?;
        timeout(PATIENCE, self.server.wait()).await??;
        Ok(())
    }
}

/// A port of loopback that nobody has at this moment.
fn free() -> Result<SocketAddr, Fault> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// One connection that is kept.
pub(crate) struct Line {
    send: http1::SendRequest<Full<Bytes>>,
    address: SocketAddr,
    token: String,
    /// Ends with this value.
    _carrier: JoinSet<()>,
}

impl Line {
    pub(crate) async fn connect(rival: &OpenBao) -> Result<Self, Fault> {
        Self::to(rival.address, rival.token.clone()).await
    }

    async fn to(address: SocketAddr, token: String) -> Result<Self, Fault> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (send, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut carrier = JoinSet::new();
        carrier.spawn(async move {
            // A broken connection shows to whoever asks next.
            drop(connection.await);
        });
        Ok(Self { send, address, token, _carrier: carrier })
    }

    /// One question and its answer; null if the answer is empty.
    pub(crate) async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<Value, Fault> {
        // Servers hang up on whoever was silent while the other side had its turn.
        if self.send.is_closed() {
            *self = Self::to(self.address, std::mem::take(&mut self.token)).await?;
        }
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::builder()
            .method(method)
            .uri(format!("/v1/{path}"))
            .header("host", self.address.to_string())
            .header("x-vault-token", &self.token)
            .body(Full::new(Bytes::from(body)))?;
        self.send.ready().await?;
        let answer = self.send.send_request(request).await?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        if status != StatusCode::OK && status != StatusCode::NO_CONTENT {
            let said = String::from_utf8_lossy(&bytes);
            return Err(format!("OpenBao answered {status} to `{path}`: {said}").into());
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        Ok(serde_json::from_slice(&bytes)?)
    }
}
