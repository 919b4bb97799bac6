//! The relying party of the supervisor's test, in the lines of `README.md`; with `log DIR` its auditor.
//!
//! It follows the revocation feed, and says of a certificate and a token whether it would accept them:
//! the certificate by path, dates and the feed; the token offline by the feed, and online by
//! `ValidateJWTSVID`. It is a workload as any other, so that it has bundles to judge by.

use std::{collections::BTreeMap, error::Error, path::Path, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use mayfly::clock;
use mayfly_core::{Fact, Kind, Sequence, SpiffeId, TaskId, TrustDomain};
use mayfly_verify::{
    Endpoint, Follower, Held, KeySource, Patience, View, WorkloadClient, X509Source, jwt,
    x509::Leaf,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

const AUDIENCE: &str = "supervisor";
/// How long an answer is waited for to turn.
const BOUND: Duration = Duration::from_secs(10);
/// How often the broker is asked about a token that is to be refused.
const AGAIN: Duration = Duration::from_millis(5);

type Fault = Box<dyn Error + Send + Sync>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Fault> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [word, dir] = words.as_slice()
        && word == "log"
    {
        return audit(Path::new(dir));
    }
    let endpoint = Endpoint::from_env()?;
    let judge = Arc::new(Judge::open(&endpoint).await?);
    say(&json!({ "ready": true }));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut asked = JoinSet::new();
    while let Some(line) = lines.next_line().await? {
        while asked.try_join_next().is_some() {}
        let question: Value = serde_json::from_str(&line)?;
        let judge = Arc::clone(&judge);
        asked.spawn(async move { say(&judge.answer(&question).await) });
    }
    while asked.join_next().await.is_some() {}
    Ok(())
}

/// What the log says of each task of the workloads, a line each. Fails where its chain does not hold.
fn audit(dir: &Path) -> Result<(), Fault> {
    let mut tasks: BTreeMap<TaskId, [u32; 4]> = BTreeMap::new();
    mayfly_audit::read(dir, Sequence(0), |entry| {
        let (task, at) = match entry.record.fact {
            // The verifier's own task is met and not begun; a workload that were met would be counted.
            Fact::Began { task, terms, .. } if terms.profile != "verifier" => {
                tasks.insert(task, [0; 4]);
                (task, 0)
            }
            Fact::Ended { task, .. } => (task, 1),
            Fact::Promised { task, kind: Kind::X509, .. } => (task, 2),
            Fact::Promised { task, kind: Kind::Jwt, .. } => (task, 3),
            Fact::Began { .. }
            | Fact::Suspended { .. }
            | Fact::Resumed { .. }
            | Fact::Renewed { .. }
            | Fact::Amended { .. }
            | Fact::Transferred { .. }
            | Fact::CredentialRevoked { .. }
            | Fact::Refused { .. }
            | Fact::Misused { .. }
            | Fact::Noted { .. } => return,
        };
        if let Some(count) = tasks.get_mut(&task).and_then(|counts| counts.get_mut(at)) {
            *count += 1;
        }
    })?;
    for (task, [began, ended, x509, jwt]) in tasks {
        let task = task.to_string();
        say(&json!({ "task": task, "began": began, "ended": ended, "x509": x509, "jwt": jwt }));
    }
    Ok(())
}

struct Judge {
    held: watch::Receiver<Held>,
    view: Arc<View>,
    offline: jwt::Verifier,
    online: WorkloadClient,
    /// What keeps the others fresh for as long as it lives.
    _renewed: (X509Source, KeySource, Follower),
}

/// What stands of one task's two credentials at one moment; `None` where it would be accepted.
struct Verdict {
    x509: Option<String>,
    jwt: Option<String>,
    online: Option<String>,
}

impl Judge {
    async fn open(endpoint: &Endpoint) -> Result<Self, Fault> {
        let online = WorkloadClient::new(endpoint);
        let source = online.watch_x509();
        let own = source.ready().await.ok_or("the verifier has no identity")?;
        let own = own.default_svid().ok_or("the verifier has no identity")?;
        let domain: TrustDomain = own.spiffe_id.trust_domain().clone();
        let follower = Follower::connect(endpoint, Patience::default());
        follower.ready().await;
        let keys = online.watch_jwt_bundles();
        keys.ready().await;
        let view = Arc::clone(follower.view());
        let offline =
            jwt::Verifier::offline(AUDIENCE, keys.keys()).with_view(domain, Arc::clone(&view));
        let held = source.held();
        Ok(Self { held, view, offline, online, _renewed: (source, keys, follower) })
    }

    /// `now`: once. `gone`: when all has been refused, or the bound is over.
    async fn answer(&self, question: &Value) -> Value {
        let text = |key: &str| question.get(key).and_then(Value::as_str).unwrap_or_default();
        let leaf = BASE64_STANDARD.decode(text("leaf")).unwrap_or_default();
        let (leaf, token) = (CertificateDer::from(leaf), text("token"));
        let since = question.get("since").and_then(Value::as_u64);
        let (verdict, waited) = match since {
            None => (self.judge(&leaf, token).await, [None; 3]),
            Some(since) => self.wait(&leaf, token, since).await,
        };
        let [x509_ms, jwt_ms, online_ms] = waited;
        let serial = Leaf::parse(&leaf).ok().and_then(|leaf| leaf.serial);
        json!({
            "id": question.get("id"),
            "serial": serial.map(|serial| serial.to_string()),
            "x509": verdict.x509, "jwt": verdict.jwt, "online": verdict.online,
            "x509_ms": x509_ms, "jwt_ms": jwt_ms, "online_ms": online_ms,
        })
    }

    /// Waits for feed and broker side by side, so that neither is measured by the other.
    async fn wait(
        &self,
        leaf: &CertificateDer<'_>,
        token: &str,
        since: u64,
    ) -> (Verdict, [Option<f64>; 3]) {
        let passed = || ms(clock::monotonic_ns().saturating_sub(since));
        let feed = async {
            let mut waited = [None; 2];
            let mut news = self.view.position();
            loop {
                news.mark_unchanged();
                let x509 = self.judge_leaf(leaf).is_err();
                let jwt = self.offline.verify(token, clock::now()).await.is_err();
                for (waited, refused) in waited.iter_mut().zip([x509, jwt]) {
                    if refused && waited.is_none() {
                        *waited = Some(passed());
                    }
                }
                // An error means that nobody follows, and then everything is refused.
                if (x509 && jwt) || news.changed().await.is_err() {
                    return waited;
                }
            }
        };
        let broker = async {
            while self.online.validate_jwt(AUDIENCE, token).await.is_ok() {
                tokio::time::sleep(AGAIN).await;
            }
            passed()
        };
        let (feed, broker) = tokio::join!(timeout(BOUND, feed), timeout(BOUND, broker));
        let [x509, jwt] = feed.unwrap_or_default();
        (self.judge(leaf, token).await, [x509, jwt, broker.ok()])
    }

    async fn judge(&self, leaf: &CertificateDer<'_>, token: &str) -> Verdict {
        let x509 = self.judge_leaf(leaf).err().map(|why| why.to_string());
        let jwt = self.offline.verify(token, clock::now()).await.err();
        let online = self.online.validate_jwt(AUDIENCE, token).await.err();
        Verdict {
            x509,
            jwt: jwt.map(|refused| refused.code().to_owned()),
            online: online.map(|refused| refused.to_string()),
        }
    }

    /// As a handshake would, but for the proof of the key.
    fn judge_leaf(&self, leaf: &CertificateDer<'_>) -> Result<SpiffeId, Fault> {
        let read = Leaf::parse(leaf)?;
        let held = self.held.borrow().clone();
        let context = held.context().ok_or("no_identity")?;
        let bundle = context.bundle(read.id.trust_domain()).ok_or("untrusted")?;
        let anchors = bundle.authorities.iter().map(webpki::anchor_from_trusted_cert);
        let anchors = anchors.collect::<Result<Vec<_>, _>>()?;
        let now = UnixTime::since_unix_epoch(Duration::from_millis(clock::now().0));
        webpki::EndEntityCert::try_from(leaf)?.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &[],
            now,
            webpki::KeyUsage::client_auth(),
            None,
            None,
        )?;
        let serial = read.serial.ok_or("foreign_serial")?;
        self.view.admit(&serial).map_err(|refused| refused.code())?;
        Ok(read.id)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a duration of less than a day")]
const fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

#[expect(clippy::print_stdout, reason = "it answers on standard output")]
fn say(line: &Value) {
    println!("{line}");
}
