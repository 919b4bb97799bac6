//! Who gets an identity, and whose it is: R1, R2, R7, R8, and callers that are met.

use std::path::Path;

use mayfly_proto::{
    mayfly::v1::{self as wire, begin_task_request::Holder, revoke_request::Target},
    spiffe::workload::{self as spiffe, spiffe_workload_api_client::SpiffeWorkloadApiClient},
};
use mayfly_verify::{Endpoint, WorkloadClient};
use tonic::Code;

use crate::{
    actor::{Actor, Casting, No, copy_of, with_header},
    common::{Site, own_uid, task_of, until, within},
    papers,
    stand::{
        AUDIENCE, STRANGER, begin_on, is_valid, live_credentials, skip, stand, stand_with, status,
    },
};

fn is_no_identity(no: &No) -> bool {
    no.code == Code::PermissionDenied as i32 && no.message.contains("no identity issued")
}

/// R1: an identity is proved at run time, and a user without a profile proves nothing.
#[tokio::test]
async fn r1_another_user_is_given_no_identity() {
    if own_uid() != 0 {
        return skip("r1_another_user_is_given_no_identity needs root to become another user");
    }
    let (site, broker, mut operator) = stand().await;
    let program = site.root().join("workload");
    copy_of(&std::env::current_exe().expect("it runs"), &program).await;
    let casting = Casting { program: Some(program), uid: Some(STRANGER), held: false };
    let mut stranger = Actor::cast(&site.socket(), casting).await;
    let no = stranger.x509().await.expect_err("a stranger");
    assert!(is_no_identity(&no), "{no:?}");
    let no = stranger.jwt(AUDIENCE).await.expect_err("a stranger");
    assert!(is_no_identity(&no), "{no:?}");
    assert!(operator.list(true).await.expect("a list").is_empty(), "no task was begun for it");

    // And its operator is told why.
    let pid = stranger.pid.to_string();
    let doctor = site.mayfly(&["doctor", "--pid", &pid, "--output", "json"]).await;
    let said: serde_json::Value = serde_json::from_slice(&doctor.stdout).expect("json");
    let nearest = &said["profiles"][0];
    assert_eq!(nearest["matches"], false, "{said}");
    assert_eq!(nearest["missing"][0], format!("unix:uid:{}", own_uid()), "{said}");
    assert_eq!(nearest["instead"][0], format!("unix:uid:{STRANGER}"), "{said}");
    drop(broker);
}

/// R1: not the program that the profile names.
#[tokio::test]
async fn r1_a_wrong_digest_is_refused_and_the_doctor_names_it() {
    let uid = own_uid();
    let wrong = "0".repeat(64);
    let site = Site::new(&format!(
        r#"[workload]
socket = "workload.sock"

[[profile]]
name = "far"
path = "/far"
selectors = ["unix:uid:4242", "unix:gid:4242", "unix:path:/far"]
owner = "team"

[[profile]]
name = "near"
path = "/near"
selectors = ["unix:uid:{uid}", "unix:sha256:{wrong}"]
owner = "team"
"#
    ));
    let _broker = site.start().await;
    let mut actor = Actor::start(&site.socket()).await;
    let no = actor.x509().await.expect_err("another program");
    assert!(is_no_identity(&no), "{no:?}");
    assert!(!no.message.contains(&wrong), "a stranger does not learn what is asked for");

    let pid = actor.pid.to_string();
    let doctor = site.mayfly(&["doctor", "--pid", &pid]).await;
    let said = String::from_utf8_lossy(&doctor.stdout);
    assert!(said.contains("none matches; the nearest is near"), "{said}");
    assert!(said.contains(&format!("wants unix:sha256:{wrong}")), "{said}");
    assert!(said.contains("has   unix:sha256:"), "{said}");
}

/// R1: a request that does not say that it means to be one.
#[tokio::test]
async fn r1_a_request_without_the_header_is_an_invalid_argument() {
    let (_site, broker, mut operator) = stand().await;
    let mut client = SpiffeWorkloadApiClient::new(broker.endpoint().channel());
    let bare = client.fetch_x509svid(spiffe::X509svidRequest {}).await;
    assert_eq!(bare.expect_err("no header").code(), Code::InvalidArgument);
    for value in ["false", "TRUE", "1", ""] {
        let mut request = tonic::Request::new(spiffe::JwtsvidRequest {
            audience: vec![AUDIENCE.to_owned()],
            spiffe_id: String::new(),
        });
        request.metadata_mut().insert("workload.spiffe.io", value.parse().expect("ascii"));
        let answer = client.fetch_jwtsvid(request).await;
        assert_eq!(answer.expect_err(value).code(), Code::InvalidArgument);
    }
    let mut twice = with_header(spiffe::X509BundlesRequest {});
    twice.metadata_mut().append("workload.spiffe.io", "true".parse().expect("ascii"));
    let answer = client.fetch_x509_bundles(twice).await;
    assert_eq!(answer.expect_err("twice").code(), Code::InvalidArgument);
    assert!(operator.list(true).await.expect("a list").is_empty(), "nobody was met");
}

/// R2: two instances of one program are two.
#[tokio::test]
async fn r2_two_instances_hold_different_keys_and_are_revoked_apart() {
    let (site, broker, mut operator) = stand().await;
    let mut one = Actor::start(&site.socket()).await;
    let mut two = Actor::start(&site.socket()).await;
    let (first, second) = (one.watch().await, two.watch().await);
    assert_ne!(first.spiffe_id, second.spiffe_id);
    assert_ne!(first.serial, second.serial);
    assert_ne!(papers::public_key(&first.leaf()), papers::public_key(&second.leaf()));
    let (token, other) = (one.jwt(AUDIENCE).await, two.jwt(AUDIENCE).await);
    let (token, other) = (token.expect("a token"), other.expect("a token"));

    let revoked = operator.revoke(Target::Task(first.task())).await.expect("revoked");
    assert_eq!((revoked.tasks, revoked.credentials), (1, 2));
    let end = one.stream_end().await;
    assert_eq!(end.code, Code::PermissionDenied as i32, "{end:?}");
    assert!(!is_valid(&broker, &token).await);
    let no = one.x509().await.expect_err("it was revoked");
    assert!(no.message.starts_with("task_ended"), "{no:?}");

    assert!(is_valid(&broker, &other).await);
    assert_eq!(two.x509().await.expect("untouched").spiffe_id, second.spiffe_id);
}

/// R2: one credential is revoked on its own, and its task gets another.
#[tokio::test]
async fn r2_a_revoked_serial_is_replaced_and_the_task_goes_on() {
    let (site, broker, mut operator) = stand().await;
    let mut actor = Actor::start(&site.socket()).await;
    let svid = actor.x509().await.expect("met");
    let token = actor.jwt(AUDIENCE).await.expect("a token");
    operator.revoke(Target::Serial(svid.serial.clone())).await.expect("revoked");
    let next = actor.x509().await.expect("the task goes on");
    assert_eq!(next.spiffe_id, svid.spiffe_id);
    assert_ne!(next.serial, svid.serial);
    assert!(is_valid(&broker, &token).await, "the token stands on its own");
    let data = site.data();
    until("the list that names it", async || {
        papers::all_crls_name(&data, &svid.serial).then_some(())
    })
    .await;
}

/// R7: no active task, nothing issued; when the last workload has ended, nothing is left.
#[tokio::test]
async fn r7_without_an_active_task_nothing_is_issued_and_nothing_stays() {
    let (site, _broker, mut operator) = stand().await;
    assert_eq!(live_credentials(&mut operator).await, 0);

    // A profile that needs a task begun by name gives nothing to those who merely match it.
    let uid = own_uid();
    let strict = Site::new(&format!(
        "[workload]\nsocket = \"workload.sock\"\n[[profile]]\nname = \"job\"\npath = \"/job\"\n\
         selectors = [\"unix:uid:{uid}\"]\nowner = \"team\"\nbinding = \"lineage\"\n"
    ));
    let strict_broker = strict.start().await;
    let mut idle = Actor::start(&strict.socket()).await;
    let no = idle.x509().await.expect_err("it has no task");
    assert!(is_no_identity(&no) && no.message.starts_with("not_bound"), "{no:?}");
    let mut other = strict_broker.operator().await;
    assert_eq!(live_credentials(&mut other).await, 0);

    let mut actors = Vec::new();
    for _ in 0..4 {
        let mut actor = Actor::start(&site.socket()).await;
        actor.x509().await.expect("met");
        actor.jwt(AUDIENCE).await.expect("a token");
        actors.push(actor);
    }
    assert_eq!(live_credentials(&mut operator).await, 8);
    for actor in actors {
        actor.kill().await;
    }
    until("no live credential", async || {
        (live_credentials(&mut operator.clone()).await == 0).then_some(())
    })
    .await;
    assert!(operator.list(false).await.expect("a list").is_empty());
    assert_eq!(operator.list(true).await.expect("a list").len(), 4);
}

/// R8: no credential outlives its profile's cap, its task's deadline or its lease.
#[tokio::test]
async fn r8_expiry_is_bounded_by_profile_deadline_and_lease() {
    let ttls = [("2s", 2), ("7s", 7), ("90s", 90), ("10m", 600)];
    let profile = |(text, seconds): &(&str, u64)| {
        format!(
            "[[profile]]\nname = \"p{seconds}\"\npath = \"/p{seconds}\"\nselectors = []\n\
             owner = \"team\"\nbinding = \"socket\"\nx509_ttl = \"{text}\"\njwt_ttl = \"{text}\"\n\
             max_task = \"2m\"\n"
        )
    };
    let (_site, _broker, mut operator) =
        stand_with(&ttls.iter().map(profile).collect::<String>()).await;
    for (_, ttl) in ttls {
        // Seconds until the deadline and of the lease; none where it is 0.
        for (deadline, lease) in [(0, 0), (5, 0), (40, 0), (0, 6), (0, 60), (30, 9), (100, 3600)] {
            let asked = mayfly::clock::now().0;
            let after = |seconds: u64| if seconds == 0 { 0 } else { asked + seconds * 1000 };
            let mut request = task_of(&format!("p{ttl}"), Holder::Socket(true));
            request.deadline_ms = after(deadline);
            request.lease_ms = lease * 1000;
            let begun = operator.begin(request).await.expect("a task");
            let bounds = Bounds { ttl, deadline_ms: after(deadline), asked };
            bounds.hold(&mut operator, &begun).await;
        }
    }
}

struct Bounds {
    ttl: u64,
    deadline_ms: u64,
    asked: u64,
}

impl Bounds {
    async fn hold(&self, operator: &mut crate::common::Operator, begun: &wire::BeginTaskResponse) {
        let endpoint = Endpoint::parse(&format!("unix://{}", begun.socket)).expect("a path");
        let client = WorkloadClient::new(&endpoint);
        let (svid, tokens) = within("credentials", async {
            (client.fetch_x509().await, client.fetch_jwt(&[AUDIENCE], None).await)
        })
        .await;
        let not_after = svid.expect("a certificate").svids[0].leaf.not_after.0;
        let exp = expiry(&tokens.expect("a token")[0].token);
        let answered = mayfly::clock::now().0;
        let (task, _) = operator.show(&begun.task).await.expect("it is there");
        assert_ne!(task.deadline_ms, 0, "the profile caps every task");
        assert!(task.deadline_ms <= answered + 120_000, "two minutes at most");
        for expires in [not_after, exp] {
            assert!(expires > self.asked, "it is good for something");
            assert!(expires <= answered + self.ttl * 1000, "the profile's cap");
            assert!(expires <= task.deadline_ms, "the task's deadline");
            assert!(self.deadline_ms == 0 || expires <= self.deadline_ms, "the caller's wish");
            let lease = task.lease_until_ms;
            assert!(lease == 0 || expires <= lease, "the lease");
        }
        let recorded: Vec<_> = task.credentials.iter().map(|one| one.not_after_ms).collect();
        assert!(
            recorded.contains(&not_after) && recorded.contains(&exp),
            "the ledger says the same"
        );
    }
}

fn expiry(token: &str) -> u64 {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    let payload = token.split('.').nth(1).expect("a payload");
    let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).expect("base64");
    let claims: serde_json::Value = serde_json::from_slice(&payload).expect("json");
    claims["exp"].as_u64().expect("an expiry") * 1000
}

/// A caller whose task is being opened is held, not refused: its first call succeeds.
#[tokio::test]
async fn the_first_call_of_a_new_process_succeeds() {
    let (site, _broker, mut operator) = stand().await;
    let mut one = Actor::start(&site.socket()).await;
    let svid = one.x509().await.expect("at once");
    let (task, story) = operator.show(&svid.task()).await.expect("a task");
    assert_eq!((task.state.as_str(), task.profile.as_str()), ("active", "met"));
    assert_eq!(task.holder, format!("pid {}", one.pid));
    assert_eq!(story.first().map(|entry| entry.what.as_str()), Some("began"));
    let mut two = Actor::start(&site.socket()).await;
    two.jwt(AUDIENCE).await.expect("a token at once, too");

    // Two calls at once are met once.
    let client = WorkloadClient::new(
        &Endpoint::parse(&format!("unix://{}", site.socket().display())).expect("a path"),
    );
    let (first, second) = tokio::join!(client.fetch_x509(), client.fetch_jwt(&[AUDIENCE], None));
    let (first, second) = (first.expect("a certificate"), second.expect("a token"));
    assert_eq!(first.svids[0].spiffe_id, second[0].spiffe_id);
}

/// A process task is held by exactly that process: a child of it is somebody else.
#[tokio::test]
async fn a_child_of_a_process_holder_is_a_stranger() {
    let (site, _broker, mut operator) = stand().await;
    let mut actor = Actor::start(&site.socket()).await;
    let own = actor.x509().await.expect("met");
    let child = actor.child_x509().await.expect("met on its own");
    assert_ne!(child.task(), own.task());
    let (task, _) = operator.show(&child.task()).await.expect("a task");
    assert_ne!(task.holder, format!("pid {}", actor.pid));
    assert_eq!(task.parent, "");
}

/// A declared task is shared by what descends from its holder, and so is its end.
#[tokio::test]
async fn descendants_share_a_declared_task_and_its_end() {
    let (site, _broker, mut operator) = stand().await;
    let mut actor = Actor::start(&site.socket()).await;
    let task = begin_on(&mut operator, actor.pid).await;
    let own = actor.x509().await.expect("its task");
    let child = actor.child_x509().await.expect("its parent's task");
    assert_eq!((own.task(), child.task()), (task.clone(), task.clone()));
    assert_eq!(own.spiffe_id, child.spiffe_id);

    operator.end(&task, "completed").await.expect("ended");
    for no in [actor.x509().await, actor.child_x509().await] {
        // Not met anew under another profile: the end of a task is not the beginning of another.
        let no = no.expect_err("it has ended");
        assert_eq!(no.code, Code::PermissionDenied as i32);
        assert!(no.message.starts_with("task_ended"), "{no:?}");
    }
    assert_eq!(operator.list(true).await.expect("a list").len(), 1);
}

/// A program that was replaced after its start is judged by what it runs, not by what lies there.
#[tokio::test]
async fn a_replaced_program_is_judged_by_what_runs() {
    let here = tempfile::tempdir().expect("a directory");
    let program = here.path().join("program");
    copy_of(&std::env::current_exe().expect("it runs"), &program).await;
    let digest = sha256(&program).await;
    let profile = |name: &str, selector: &str| {
        format!(
            "[[profile]]\nname = \"{name}\"\npath = \"/{name}\"\nselectors = [\"{selector}\"]\n\
             owner = \"team\"\n"
        )
    };
    let by_path = profile("by-path", &format!("unix:path:{}", program.display()));
    let by_digest = profile("by-digest", &format!("unix:sha256:{digest}"));
    let site = Site::new(&format!("[workload]\nsocket = \"workload.sock\"\n{by_digest}{by_path}"));
    let _broker = site.start().await;
    let address = format!("unix://{}", site.socket().display());
    let cast = async || {
        let casting = Casting { program: Some(program.clone()), ..Casting::default() };
        Actor::cast(&site.socket(), casting).await
    };
    let mut genuine = cast().await;
    let svid = genuine.x509().await.expect("both match");
    assert!(svid.spiffe_id.contains("/by-digest/"), "{}", svid.spiffe_id);

    // Another program takes its place: same path, other bytes, while the first one runs on.
    let other = here.path().join("other");
    copy_of(&program, &other).await;
    let appended = tokio::process::Command::new("sh")
        .arg("-c")
        .arg(format!("echo something >> {0} && mv {0} {1}", other.display(), program.display()))
        .status();
    assert!(appended.await.expect("sh starts").success());

    let svid = genuine.x509().await.expect("it runs what it ran");
    assert!(svid.spiffe_id.contains("/by-digest/"), "{}", svid.spiffe_id);
    let mut impostor = cast().await;
    let svid = impostor.x509().await.expect("the path matches");
    assert!(svid.spiffe_id.contains("/by-path/"), "{}", svid.spiffe_id);
    let another = site.command(&["fetch", "x509", "--socket"]).arg(&address).output().await;
    let another = another.expect("it starts");
    assert!(!another.status.success(), "neither matches: {another:?}");
}

async fn sha256(file: &Path) -> String {
    let output = tokio::process::Command::new("sha256sum").arg(file).output().await;
    let output = output.expect("sha256sum starts").stdout;
    String::from_utf8_lossy(&output).split_whitespace().next().expect("a digest").to_owned()
}

/// A malformed question is told apart from a refused one, and neither tells anything.
#[tokio::test]
async fn an_identity_of_somebody_else_is_not_given() {
    let (site, broker, _operator) = stand().await;
    let mut other = Actor::start(&site.socket()).await;
    let theirs = other.x509().await.expect("met").spiffe_id;
    let theirs = mayfly_core::SpiffeId::parse(&theirs).expect("an id");
    let answer = broker.workload().fetch_jwt(&[AUDIENCE], Some(&theirs)).await;
    let refused = status(answer.expect_err("not ours"));
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    let none = broker.workload().fetch_jwt(&[], None).await;
    assert_eq!(status(none.expect_err("no audience")).code(), Code::InvalidArgument);
}
