//! A broker, the sidecar whose files every server reads, and the tasks that end.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mayfly::{admin, clock, pem, stage};
use mayfly_proto::mayfly::v1::{
    BeginTaskRequest, OrderTaskRequest, begin_task_request::Holder, order_task_request::Order,
};
use mayfly_verify::{Endpoint, Follower, Patience, WorkloadClient, X509Context, X509Source, jwt};
use tokio::process::{Child, Command};

use crate::measure::{Fault, program};

/// The audience of every token; the verifiers in `tests/interop` know it too.
pub(crate) const AUDIENCE: &str = "verifiers";
/// The profile of tasks whose credentials live for a minute.
pub(crate) const LONG: &str = "long";
/// Of those whose credentials live for five seconds.
pub(crate) const SHORT: &str = "short";

/// What has to be there for anything to be measured.
pub(crate) struct House {
    dir: PathBuf,
    broker: Child,
    sidecar: Child,
    /// Our own identity, with which the verifiers of this process serve and the thief looks.
    pub(crate) source: X509Source,
    pub(crate) follower: Follower,
    pub(crate) client: WorkloadClient,
}

/// What a thief has of a task.
pub(crate) struct Loot {
    task: String,
    pub(crate) context: Arc<X509Context>,
    pub(crate) token: String,
    /// The certificate, as a file.
    pub(crate) file: PathBuf,
    pub(crate) not_after_ms: u64,
    pub(crate) expires_ms: u64,
}

impl House {
    pub(crate) async fn open(dir: &Path) -> Result<Self, Fault> {
        let config = dir.join("mayfly.toml");
        std::fs::write(&config, configuration())?;
        let data = dir.join("data");
        std::fs::create_dir(&data)?;
        std::fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let broker = stage::start_broker(&program(), &data, &config).await?;
        let endpoint = Endpoint::parse(&format!("unix://{}/data/workload.sock", dir.display()))?;
        let client = WorkloadClient::new(&endpoint);
        let source = client.watch_x509();
        source.ready().await.ok_or("the bench has no identity")?;
        let follower = Follower::connect(&endpoint, Patience::default());
        follower.ready().await;
        let sidecar = sidecar(dir).await?;
        Ok(Self { dir: dir.to_owned(), broker, sidecar, source, follower, client })
    }

    /// The files of the sidecar.
    pub(crate) fn keys(&self) -> PathBuf {
        self.dir.join("keys")
    }

    /// The Workload API, as SPIFFE clients want it named.
    pub(crate) fn socket(&self) -> String {
        format!("unix://{}/data/workload.sock", self.dir.display())
    }

    /// From here on the sidecar wakes this process alone after each change.
    pub(crate) fn tell(&self, pid: Option<u32>) -> Result<(), Fault> {
        self.tell_all(pid)
    }

    /// … these processes alone.
    pub(crate) fn tell_all(&self, pids: impl IntoIterator<Item = u32>) -> Result<(), Fault> {
        let pids: Vec<String> = pids.into_iter().map(|pid| pid.to_string()).collect();
        Ok(std::fs::write(self.dir.join("pids"), pids.join(" "))?)
    }

    /// Begins a task, and takes what its workload would have.
    pub(crate) async fn steal(&self, profile: &str) -> Result<Loot, Fault> {
        let mut operator = admin::connect(&self.dir.join("data")).await?;
        let request = BeginTaskRequest {
            profile: profile.to_owned(),
            holder: Some(Holder::Socket(true)),
            ..BeginTaskRequest::default()
        };
        let begun = operator.begin_task(request).await?.into_inner();
        let client = WorkloadClient::new(&Endpoint::parse(&format!("unix://{}", begun.socket))?);
        let context = Arc::new(client.fetch_x509().await?);
        let token = client.fetch_jwt(&[AUDIENCE], None).await?.remove(0).token;
        let keys = self.client.fetch_jwt_bundles().await?;
        let claims = jwt::validate(&token, AUDIENCE, &keys, clock::now())?;
        let svid = context.default_svid().ok_or("no identity")?;
        let file = self.dir.join(format!("{}.pem", begun.task));
        std::fs::write(&file, pem::blocks(pem::CERTIFICATE, &svid.chain))?;
        let not_after_ms = svid.leaf.not_after.0;
        let expires_ms = claims.expires_at.0;
        Ok(Loot { task: begun.task, token, file, not_after_ms, expires_ms, context })
    }

    /// Ends its task; the instant just before that was asked for.
    pub(crate) async fn end(&self, loot: &Loot) -> Result<u64, Fault> {
        let mut operator = admin::connect(&self.dir.join("data")).await?;
        let order = Some(Order::End("completed".to_owned()));
        let request = OrderTaskRequest { task: loot.task.clone(), order, reason: String::new() };
        let asked = clock::monotonic_ns();
        operator.order_task(request).await?;
        Ok(asked)
    }

    pub(crate) async fn close(mut self) -> Result<(), Fault> {
        self.sidecar.kill().await?;
        Ok(self.broker.kill().await?)
    }
}

/// Keeps the files, and wakes whoever is named in `pids`.
async fn sidecar(dir: &Path) -> Result<Child, Fault> {
    let pids = dir.join("pids");
    std::fs::write(&pids, "")?;
    let wake = format!("for pid in $(cat '{}'); do kill -HUP $pid; done", pids.display());
    let child = Command::new(program())
        .args(["sidecar", "--on-renew", &wake, "--dir"])
        .arg(dir.join("keys"))
        .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}/data/workload.sock", dir.display()))
        .stdout(std::fs::File::create(dir.join("sidecar.out"))?)
        .kill_on_drop(true)
        .spawn()?;
    for _ in 0..1_000 {
        if dir.join("keys/svid.pem").exists() {
            return Ok(child);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err("the sidecar writes nothing".into())
}

fn configuration() -> String {
    let uid = rustix::process::geteuid().as_raw();
    format!(
        r#"trust_domain = "example.org"

[[profile]]
name = "verifier"
path = "/verifier"
selectors = ["unix:uid:{uid}"]
owner = "bench"
x509_ttl = "1h"
jwt_ttl = "1h"

[[profile]]
name = "{LONG}"
path = "/long"
selectors = []
owner = "bench"
binding = "socket"
x509_ttl = "1m"
jwt_ttl = "1m"

[[profile]]
name = "{SHORT}"
path = "/short"
selectors = []
owner = "bench"
binding = "socket"
x509_ttl = "5s"
jwt_ttl = "5s"
"#
    )
}
