//! R5 and R57: a job elsewhere begins a task of this trust domain by a token of its own issuer. The issuer
//! is another Mayfly, reached by OIDC discovery over TLS as any issuer would be.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use mayfly_proto::spiffe::workload as spiffe;
use mayfly_verify::{Authorize, Follower, Held, Party, Patience, WorkloadClient, X509Context};
use rustls::{
    pki_types::{CertificateDer, pem::PemObject as _},
    version,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    process::Command,
    task::JoinSet,
};

use crate::{
    common::{Broker, Site, own_uid, until, within},
    dial::{dial, free_port, gullible},
    federation::{ask, call, serve},
    papers,
    stand::skip,
};

/// The audience of the issuer's tokens.
pub(crate) const FOR_B: &str = "spiffe://b.example";

/// A trust domain with a document port whose certificate is the web's.
pub(crate) struct Town {
    pub(crate) site: Site,
    pages: SocketAddr,
}

impl Town {
    fn new(domain: &str, more: impl FnOnce(&Site) -> String) -> Self {
        let (site, pages) = (Site::new(""), free_port());
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("papers");
        for (name, pem) in
            [("cert.pem", made.cert.pem()), ("key.pem", made.signing_key.serialize_pem())]
        {
            std::fs::write(site.root().join(name), pem).expect("ours");
        }
        let (uid, more) = (own_uid(), more(&site));
        let text = format!(
            r#"trust_domain = "{domain}"
[workload]
socket = "workload.sock"
[http]
listen = "{pages}"
tls = {{ cert = "cert.pem", key = "key.pem" }}
[status]
public_url = "https://localhost:{}"
{more}
[[profile]]
name = "runner"
path = "/runner"
identity = "stable"
selectors = ["unix:uid:{uid}"]
owner = "team"
"#,
            pages.port()
        );
        std::fs::write(site.config(), text).expect("ours");
        Self { site, pages }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.pages.port())
    }

    fn ca(&self) -> PathBuf {
        self.site.root().join("cert.pem")
    }
}

/// An issuer, and a trust domain that lets it vouch for jobs.
pub(crate) struct Towns {
    pub(crate) a: Town,
    issuer: Broker,
    pub(crate) b: Town,
    broker: Option<Broker>,
}

impl Towns {
    pub(crate) async fn found() -> Self {
        let a = Town::new("a.example", |_| String::new());
        let (url, ca, uid) = (a.url(), a.ca(), own_uid());
        let b = Town::new("b.example", |_| {
            format!(
                r#"
[[oidc]]
issuer = "{url}"
audience = "{FOR_B}"
ca = "{}"
[[oidc.rule]]
subject = "spiffe://a.example/runner"
claims = {{ iss = "{url}" }}
profile = "ci-job"
[[oidc.rule]]
subject = "spiffe://a.example/nobody/*"
profile = "ci-other"
[[profile]]
name = "ci-job"
path = "/ci/job"
selectors = ["unix:uid:{uid}"]
owner = "team"
binding = "lease"
[[profile]]
name = "ci-other"
path = "/ci/other"
selectors = ["unix:uid:{uid}"]
owner = "team"
binding = "lease"
"#,
                ca.display()
            )
        });
        let issuer = a.site.start().await;
        let broker = Some(b.site.start().await);
        Self { a, issuer, b, broker }
    }

    /// The same with another configuration of B.
    pub(crate) async fn with(mut self, change: impl FnOnce(String) -> String) -> Self {
        let stopped = self.broker.take().expect("it was started").stop().await;
        assert_eq!(stopped, Some(0), "it was asked to stop");
        let config = self.b.site.config();
        let text = std::fs::read_to_string(&config).expect("ours");
        std::fs::write(&config, change(text)).expect("ours");
        self.broker = Some(self.b.site.start().await);
        self
    }

    pub(crate) fn broker(&self) -> &Broker {
        self.broker.as_ref().expect("it was started")
    }

    pub(crate) async fn token(&self, audience: &str) -> String {
        token(&self.issuer.workload(), audience).await
    }

    /// Asks B's document port for something.
    async fn post(&self, path: &str, token: Option<&str>, body: &Value) -> (u16, Value) {
        let bearer = token.map(|token| format!("authorization: Bearer {token}\r\n"));
        let (bearer, body) = (bearer.unwrap_or_default(), body.to_string());
        let mut stream = dial(self.b.pages, &gullible(&version::TLS13)).await.expect("a handshake");
        let asked = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{bearer}content-type: \
             application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(asked.as_bytes()).await.expect("it listens");
        let mut answer = Vec::new();
        let _end = within("an answer", stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8(answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.to_lowercase().contains("cache-control: no-store"), "{head}");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("a status"), serde_json::from_str(body).unwrap_or(Value::Null))
    }

    pub(crate) async fn begin(&self, token: &str) -> (u16, Value) {
        self.post("/v1/ci/tasks", Some(token), &wish("ci-job")).await
    }

    /// What a job asks about its own task.
    async fn follow_up(&self, job: &Value, what: &str, body: &Value) -> (u16, Value) {
        let path = format!("/v1/ci/tasks/{}/{what}", text(&job["task"]));
        self.post(&path, Some(text(&job["renewal_token"]["token"])), body).await
    }

    async fn is_good(&self, token: &str) -> bool {
        self.broker().workload().validate_jwt("billing", token).await.is_ok()
    }
}

fn wish(profile: &str) -> Value {
    json!({ "profile": profile, "intent": "deploy", "audiences": ["billing"], "lease_s": 30 })
}

async fn token(client: &WorkloadClient, audience: &str) -> String {
    let tokens = client.fetch_jwt(&[audience], None).await.expect("a token");
    tokens.into_iter().next().expect("one identity").token
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("a text: {value}"))
}

fn ders(pem: &Value) -> Vec<Vec<u8>> {
    let all = CertificateDer::pem_slice_iter(text(pem).as_bytes());
    all.map(|der| der.expect("a certificate").to_vec()).collect()
}

/// The job as a party to mutual TLS, and who tells it what has ended.
async fn party(job: &Value, broker: &Broker, authorize: Authorize) -> (Party, Follower) {
    let key = mayfly::pem::first(mayfly::pem::PRIVATE_KEY, text(&job["x509"]["key"]));
    let message = spiffe::X509svidResponse {
        svids: vec![spiffe::X509svid {
            spiffe_id: text(&job["spiffe_id"]).to_owned(),
            x509_svid: ders(&job["x509"]["certificate"]).concat().into(),
            x509_svid_key: key.expect("a key").into(),
            bundle: ders(&job["x509"]["bundle"]).concat().into(),
            hint: String::new(),
        }],
        ..spiffe::X509svidResponse::default()
    };
    let held = Held::Context(Arc::new(X509Context::parse(message).expect("an svid")));
    let follower = Follower::connect(&broker.endpoint(), Patience::default());
    follower.ready().await;
    // The sender may go: what was sent last stays.
    let held = tokio::sync::watch::channel(held).1;
    (Party::new(held, authorize, Arc::clone(follower.view())), follower)
}

/// From a token of another Mayfly to mutual TLS, and to the end of all of it.
#[tokio::test]
async fn r5_a_token_of_another_mayfly_begins_a_task_whose_end_ends_everything() {
    let towns = Towns::found().await;
    let token = towns.token(FOR_B).await;
    let (status, job) = towns.begin(&token).await;
    assert_eq!(status, 201, "{job}");
    let task = text(&job["task"]);
    assert_eq!(text(&job["spiffe_id"]), format!("spiffe://b.example/ci/job/task/{task}"));
    let leaf = ders(&job["x509"]["certificate"]).remove(0);
    assert!(papers::is_signed_by(&leaf, &ders(&job["x509"]["bundle"])));
    assert_eq!(text(&job["jwt"][0]["audience"]), "billing");
    let billing = text(&job["jwt"][0]["token"]);
    assert!(towns.is_good(billing).await);
    assert!(job.get("secret").is_none());
    let ends = [&job["x509"]["not_after"], &job["jwt"][0]["not_after"], &job["lease_until"]];
    let ends: Vec<_> = ends.iter().map(|at| at.as_u64().expect("seconds")).collect();
    assert!(ends[0] <= ends[2] && ends[1] <= ends[2], "nothing outlives the lease: {ends:?}");

    // Who began it stands in the log, and its token does not.
    let mut operator = towns.broker().operator().await;
    let (shown, _) = operator.show(task).await.expect("it is there");
    assert_eq!(shown.intent, "deploy");
    assert!(towns.b.site.said().contains("spiffe://a.example/runner"));

    let (caller, _its_follower) = party(&job, towns.broker(), Authorize::Any).await;
    let (_, other) = towns.begin(&towns.token(FOR_B).await).await;
    let (service, _follower) = party(&other, towns.broker(), Authorize::Any).await;
    let (address, _serving) = serve(service).await;
    let mut live = call(&caller, address).await.expect("both are of one trust domain");

    let (status, renewed) = towns.follow_up(&job, "renew", &json!({})).await;
    assert_eq!(status, 200, "{renewed}");
    assert_ne!(renewed["x509"]["key"], job["x509"]["key"]);
    assert_eq!(renewed["jwt"], json!([]));
    // Of one task to another there is no way.
    let (status, no) = towns
        .post(
            &format!("/v1/ci/tasks/{task}/end"),
            Some(text(&other["renewal_token"]["token"])),
            &json!({ "outcome": "failed" }),
        )
        .await;
    assert_eq!((status, text(&no["code"])), (401, "token_invalid"));

    let end = json!({ "outcome": "completed" });
    assert_eq!(towns.follow_up(&renewed, "end", &end).await.0, 204);
    assert!(!towns.is_good(billing).await);
    for (what, body) in [("renew", json!({})), ("end", end)] {
        let (status, no) = towns.follow_up(&renewed, what, &body).await;
        assert_eq!((status, text(&no["code"])), (403, "task_ended"));
    }
    within("the end of what was live", async { while ask(&mut live).await.is_ok() {} }).await;
    call(&caller, address).await.expect_err("its task has ended");
    assert_eq!(operator.show(task).await.expect("it is remembered").0.state, "ended");
}

/// Each token begins one task, whatever happens in between.
#[tokio::test]
async fn r5_a_token_begins_one_task_also_across_restarts() {
    let mut towns = Towns::found().await;
    let token = towns.token(FOR_B).await;
    let refused = async |towns: &Towns| {
        let (status, no) = towns.begin(&token).await;
        assert_eq!((status, text(&no["code"])), (403, "oidc_token_replayed"));
    };
    let (status, job) = towns.begin(&token).await;
    assert_eq!(status, 201, "{job}");
    refused(&towns).await;
    towns.broker.take().expect("it runs").stop().await;
    towns.broker = Some(towns.b.site.start().await);
    refused(&towns).await;
    towns.broker.take().expect("it runs").kill().await;
    towns.broker = Some(towns.b.site.start().await);
    refused(&towns).await;
    // The job goes on where it was.
    let (status, renewed) = towns.follow_up(&job, "renew", &json!({})).await;
    assert_eq!(status, 200, "{renewed}");
    let (status, no) = towns.follow_up(&renewed, "end", &json!({ "outcome": "failed" })).await;
    assert_eq!(status, 204, "{no}");
    // Nor does the end of its task set it free.
    refused(&towns).await;
}

/// What is not genuine, not meant for us or not covered begins nothing; what is malformed costs no token.
#[tokio::test]
async fn r5_what_no_rule_covers_begins_nothing() {
    let towns = Towns::found().await;
    let good = towns.token(FOR_B).await;
    let other = towns.token("spiffe://c.example").await;
    let own = token(&towns.broker().workload(), FOR_B).await;
    let (head, signature) = good.rsplit_once('.').expect("a token");
    let turned: String = signature.chars().rev().collect();
    let forged = format!("{head}.{turned}");
    for (token, profile, status, code) in [
        (Some("rubbish"), "ci-job", 401, "oidc_token_invalid"),
        (Some(other.as_str()), "ci-job", 401, "oidc_token_invalid"),
        (Some(own.as_str()), "ci-job", 401, "oidc_token_invalid"),
        (Some(forged.as_str()), "ci-job", 401, "oidc_token_invalid"),
        (None, "ci-job", 401, "unauthenticated"),
        (Some(good.as_str()), "ci-other", 403, "oidc_not_permitted"),
        (Some(good.as_str()), "runner", 403, "oidc_not_permitted"),
        (Some(good.as_str()), "no-such", 403, "oidc_not_permitted"),
    ] {
        let (got, no) = towns.post("/v1/ci/tasks", token, &wish(profile)).await;
        assert_eq!((got, text(&no["code"])), (status, code), "{profile}: {no}");
    }
    let long = "x".repeat(2000);
    for (body, code) in [
        (json!({ "profile": "ci-job", "secret": 1 }), "malformed"),
        (json!({}), "malformed"),
        (json!([]), "malformed"),
        (json!({ "profile": "ci-job", "lease_s": 0 }), "malformed"),
        (json!({ "profile": "ci-job", "lease_s": u64::MAX }), "malformed"),
        (json!({ "profile": "ci-job", "lease_s": -1 }), "malformed"),
        (json!({ "profile": "ci-job", "deadline_s": 0 }), "malformed"),
        (json!({ "profile": "ci-job", "audiences": [""] }), "audience_invalid"),
        (json!({ "profile": "ci-job", "intent": long }), "malformed"),
    ] {
        let (status, no) = towns.post("/v1/ci/tasks", Some(&good), &body).await;
        assert_eq!((status, text(&no["code"])), (400, code), "{no}");
    }
    let mut operator = towns.broker().operator().await;
    let tasks = operator.list(true).await.expect("a list");
    assert!(tasks.iter().all(|task| task.profile != "ci-job"), "{tasks:?}");
    assert_eq!(towns.begin(&good).await.0, 201, "it was not used up");
    // An operator's word ends a job like any other task.
    let said = towns.b.site.said();
    assert!(!said.contains(&good) && !said.contains(&forged), "a token stands in the log");
}

/// A lease that an orchestrator keeps is not its workload's to prolong.
#[tokio::test]
async fn r5_only_tasks_of_pipelines_renew_themselves() {
    let towns = Towns::found().await;
    let own = token(&towns.broker().workload(), "spiffe://b.example/mayfly/broker").await;
    let mut operator = towns.broker().operator().await;
    let tasks = operator.list(false).await.expect("a list");
    let task = &tasks.iter().find(|task| task.profile == "runner").expect("its task").task;
    let path = format!("/v1/ci/tasks/{task}/renew");
    let (status, no) = towns.post(&path, Some(&own), &json!({})).await;
    assert_eq!((status, text(&no["code"])), (403, "identity_not_held"));
}

/// A machine that vanishes says no goodbye.
#[tokio::test]
async fn r57_a_vanished_job_loses_everything_with_its_lease() {
    let towns = Towns::found().await;
    let token = towns.token(FOR_B).await;
    let body = json!({ "profile": "ci-job", "audiences": ["billing"], "lease_s": 5 });
    let (status, job) = towns.post("/v1/ci/tasks", Some(&token), &body).await;
    assert_eq!(status, 201, "{job}");
    let mut operator = towns.broker().operator().await;
    let ended = async || {
        let (task, _) = operator.clone().show(text(&job["task"])).await.ok()?;
        (task.state == "ended").then_some(task.cause)
    };
    assert_eq!(until("the end of a lease", ended).await, "lease_lapsed");
    assert!(!towns.is_good(text(&job["jwt"][0]["token"])).await);
    let (status, no) = towns.follow_up(&job, "renew", &json!({})).await;
    assert!(matches!(status, 401 | 403), "{no}");
    operator.status().await.expect("it serves");
}

/// The steps of the example workflow, in its order.
fn steps(workflow: &str) -> Vec<String> {
    let mut steps = Vec::new();
    let mut lines = workflow.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(at) = line.find("run: |") else { continue };
        let mut step = String::new();
        while let Some(line) =
            lines.next_if(|line| line.get(..at + 1).is_some_and(|s| s.trim().is_empty()))
        {
            step.push_str(line.trim_start());
            step.push('\n');
        }
        steps.push(step);
    }
    steps
}

/// What a runner of GitHub's kind has for its jobs: an address where a token can be had for an audience.
async fn runner(client: WorkloadClient, secret: &str, copy: PathBuf) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/token?api-version=2.0", listener.local_addr().expect("ours"));
    let bearer = format!("authorization: bearer {secret}");
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                request.push(byte);
            }
            let request = String::from_utf8_lossy(&request).to_lowercase();
            assert!(request.contains(&bearer), "{request}");
            assert!(request.contains("&audience=spiffe%3a%2f%2fb.example "), "{request}");
            let token = token(&client, FOR_B).await;
            std::fs::write(&copy, &token).expect("ours");
            let body = json!({ "value": token }).to_string();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _left = stream.write_all(answer.as_bytes()).await;
        }
    });
    (url, serving)
}

/// Every file below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        // Sockets cannot be read, and hold nothing.
        match path.symlink_metadata().expect("it is there").file_type() {
            kind if kind.is_dir() => found.extend(files(&path)),
            kind if kind.is_file() => found.push(path),
            _ => {}
        }
    }
    found
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// The example job, step by step with `sh` and curl as its runner would, and everything it could have
/// left anywhere.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a job's story from its first step to its last")]
async fn r57_a_job_leaves_nothing_behind() {
    if let Some(missing) = ["sh", "curl", "jq", "grep"].into_iter().find(|name| !is_there(name)) {
        return skip(&format!("r57_a_job_leaves_nothing_behind needs {missing}"));
    }
    let towns = Towns::found().await;
    let place = tempfile::tempdir().expect("a directory");
    let [repository, memory, outside] = ["repository", "memory", "outside"].map(|name| {
        let dir = place.path().join(name);
        std::fs::create_dir(&dir).expect("ours");
        dir
    });
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples/ci");
    std::fs::copy(examples.join("mayfly-job"), repository.join("mayfly-job")).expect("it is there");
    let workflow = std::fs::read_to_string(examples.join("workflow.yml")).expect("it is there");
    std::fs::write(repository.join("workflow.yml"), &workflow).expect("ours");
    // The job uses what it has, waits for a renewal, makes an artifact and talks; a thief copies all of it.
    let deploy = "#!/bin/sh\nset -eu\ntest -z \"${ACTIONS_ID_TOKEN_REQUEST_TOKEN:-}\"\n\
        cp \"$MAYFLY_KEY\" \"$OUTSIDE/first.pem\"\n\
        while cmp -s \"$MAYFLY_KEY\" \"$OUTSIDE/first.pem\"; do sleep 0.1; done\n\
        cp \"$MAYFLY_KEY\" \"$MAYFLY_CERT\" \"$MAYFLY_BUNDLE\" \"$OUTSIDE\"\n\
        cp \"$MAYFLY_TOKENS/0\" \"$OUTSIDE/billing\"\ncp \"$MAYFLY_TOKENS/../renewal\" \"$OUTSIDE\"\n\
        mkdir artifacts\necho built > artifacts/result\necho deployed\n";
    std::fs::write(repository.join("deploy"), deploy).expect("ours");
    for program in ["mayfly-job", "deploy"] {
        use std::os::unix::fs::PermissionsExt as _;
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(repository.join(program), open).expect("ours");
    }
    const RUNNERS: &str = "the-runners-own-word";
    let (url, _serving) = runner(towns.issuer.workload(), RUNNERS, outside.join("oidc")).await;
    let environment = BTreeMap::from([
        ("ACTIONS_ID_TOKEN_REQUEST_URL", url),
        ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", RUNNERS.to_owned()),
        ("MAYFLY_URL", towns.b.url()),
        ("MAYFLY_AUDIENCE", FOR_B.to_owned()),
        ("MAYFLY_PROFILE", "ci-job".to_owned()),
        ("MAYFLY_AUDIENCES", "billing".to_owned()),
        ("MAYFLY_CA", towns.b.ca().display().to_string()),
        ("MAYFLY_LEASE_S", "6".to_owned()),
        ("MAYFLY_MEMORY", memory.display().to_string()),
        ("OUTSIDE", outside.display().to_string()),
    ]);
    let steps = steps(&workflow);
    assert_eq!(steps.len(), 2, "{steps:?}");
    let mut output = Vec::new();
    for step in steps {
        let mut shell = Command::new("sh");
        shell.args(["-ec", &step]).current_dir(&repository).envs(&environment);
        let done = shell.stdin(Stdio::null()).kill_on_drop(true).output();
        let done = within("a step", done).await.expect("a shell");
        let said = [done.stdout, done.stderr].concat();
        assert!(done.status.success(), "{step}: {}", String::from_utf8_lossy(&said));
        output.extend(said);
    }
    assert!(String::from_utf8_lossy(&output).contains("deployed"));

    // What the thief has, line by line, stands nowhere else.
    let stolen: Vec<String> = ["first.pem", "key.pem", "billing", "renewal", "oidc"]
        .iter()
        .flat_map(|name| {
            let text = std::fs::read_to_string(outside.join(name)).expect("it was copied");
            let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with("-----"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    assert!(stolen.len() >= 9, "two keys of three lines and three tokens");
    let holds = |bytes: &[u8], one: &str| bytes.windows(one.len()).any(|w| w == one.as_bytes());
    let read = |path: PathBuf| (path.clone(), std::fs::read(path).unwrap_or_default());
    let loot: Vec<_> = files(&outside).into_iter().map(read).collect();
    let is_found = |one: &String| loot.iter().any(|(_, bytes)| holds(bytes, one));
    assert!(stolen.iter().all(is_found), "the search finds what is there");
    let mut searched = vec![("output".into(), output)];
    for root in [&repository, &memory, &towns.b.site.root().into(), &towns.a.site.root().into()] {
        searched.extend(files(root).into_iter().map(read));
    }
    assert!(
        searched.len() > 5
            && searched.iter().any(|(path, _): &(PathBuf, _)| path.ends_with("artifacts/result"))
    );
    for (path, bytes) in &searched {
        let found = stolen.iter().filter(|one| holds(bytes, one)).count();
        assert_eq!(found, 0, "{} lines of secrets in {}", found, path.display());
    }
    assert!(files(&memory).is_empty(), "files are left in memory");

    // And what the thief has is worth nothing.
    let mut operator = towns.broker().operator().await;
    let tasks = operator.list(true).await.expect("a list");
    let jobs: Vec<_> = tasks.iter().filter(|task| task.profile == "ci-job").collect();
    assert_eq!(jobs.len(), 1);
    assert_eq!((jobs[0].state.as_str(), jobs[0].cause.as_str()), ("ended", "completed"));
    let billing = std::fs::read_to_string(outside.join("billing")).expect("it was copied");
    assert!(!towns.is_good(billing.trim()).await);
    let renewal = std::fs::read_to_string(outside.join("renewal")).expect("it was copied");
    let oidc = std::fs::read_to_string(outside.join("oidc")).expect("it was copied");
    assert_eq!(text(&towns.begin(&oidc).await.1["code"]), "oidc_token_replayed");
    let path = format!("/v1/ci/tasks/{}/renew", jobs[0].task);
    let (status, no) = towns.post(&path, Some(renewal.trim()), &json!({})).await;
    assert_eq!((status, text(&no["code"])), (403, "task_ended"));
}
