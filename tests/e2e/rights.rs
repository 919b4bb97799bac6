//! Who may do what: roles by user and by SVID, what a task's own holder may, and that nothing frees itself
//! (R19, R44, R48).

use std::os::unix::fs::PermissionsExt as _;

use hyper_util::rt::TokioIo;
use mayfly::clock;
use mayfly_core::{Fact, Sequence};
use mayfly_proto::mayfly::v1::{self as wire, begin_task_request, holder_wish::Holder};
use mayfly_verify::Authorize;
use tokio::net::TcpStream;
use tonic::{Code, transport::Endpoint};

use crate::{
    actor::{Actor, Casting, Deed, copy_of},
    api::{Api, refused, wish},
    common::{Broker, Operator, Site, own_uid, task_of, within},
    dial::{free_port, was_torn},
    hands::below,
    stand::{STRANGER, configuration, skip, stand_with},
    verifiers::{Side, id},
};

/// Roles for another user, and an agent of his.
fn roles() -> String {
    format!(
        r#"
[[profile]]
name = "agent"
path = "/agent"
selectors = ["unix:uid:{STRANGER}"]
owner = "team"
delegates_to = ["booth"]

[[profile]]
name = "web"
path = "/shop/web"
selectors = []
owner = "team"
binding = "socket"

[[role]]
role = "orchestrator"
subjects = ["uid:{STRANGER}"]
profiles = ["boo*"]
paths = ["/shop/"]
"#
    )
}

/// An actor of another user, who reaches the sockets in the data directory.
async fn stranger(site: &Site) -> Actor {
    let passable = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(site.data(), passable).expect("it is ours");
    let program = site.root().join("workload");
    copy_of(&std::env::current_exe().expect("it runs"), &program).await;
    let casting = Casting { program: Some(program), uid: Some(STRANGER), held: false };
    Actor::cast(&site.socket(), casting).await
}

async fn stage(more: &str) -> (Site, Broker, Operator, Api) {
    let (site, broker, operator) = stand_with(more).await;
    let api = Api::of(&site);
    (site, broker, operator, api)
}

fn no<T>(code: &str) -> Result<T, String> {
    Err(code.to_owned())
}

#[tokio::test]
async fn an_orchestrator_begins_and_ends_what_is_its_own_and_nothing_else() {
    if own_uid() != 0 {
        return skip("an orchestrator of another user needs root");
    }
    let (site, broker, mut operator, api) = stage(&roles()).await;
    let mut other = stranger(&site).await;
    let begin = |profile: &str| Deed::Begin { profile: profile.to_owned() };
    let booth = other.call(begin("booth")).await.expect("by the profile's name");
    let web = other.call(begin("web")).await.expect("by the profile's path");
    for profile in ["job", "errand", "met", "agent"] {
        assert_eq!(other.call(begin(profile)).await, no("not_entitled"), "{profile}");
    }
    assert_eq!(other.call(begin("nothing")).await, no("profile_unknown"));

    let foreign = wire::BeginRequest { lease_ms: 60_000, ..wish("errand", Holder::Lease(true)) };
    let foreign = api.begin(foreign).await.expect("begun").task;
    let of = |task: &str| task.to_owned();
    assert_eq!(other.call(Deed::Get { task: of(&foreign) }).await, no("not_entitled"));
    assert_eq!(other.call(Deed::End { task: of(&foreign) }).await, no("not_entitled"));
    assert_eq!(other.call(Deed::Heartbeat { task: of(&foreign) }).await, no("not_entitled"));
    assert_eq!(other.call(Deed::Amend { task: of(&foreign) }).await, no("not_entitled"));
    let below = Deed::Delegate { parent: of(&foreign), profile: of("booth") };
    assert_eq!(other.call(below).await, no("not_entitled"), "another's task delegates nothing");
    assert_eq!(other.call(Deed::List).await, Ok("2".to_owned()), "only its own are told");
    // A trade is one trade: whoever begins cannot suspend or release.
    assert_eq!(other.call(Deed::Quarantine { task: of(&booth) }).await, no("not_entitled"));
    assert_eq!(other.call(Deed::Profiles).await, Ok("6".to_owned()));

    let child = Deed::Delegate { parent: of(&web), profile: of("booth") };
    let child = other.call(child).await.expect("both are its own");
    assert_eq!(other.call(Deed::Amend { task: of(&child) }).await, Ok(of(&child)));
    assert_eq!(other.call(Deed::End { task: of(&web) }).await, Ok(of(&web)));
    assert_eq!(api.get(&child).await.expect("remembered").cause, "parent_ended");
    assert_eq!(api.get(&foreign).await.expect("it is there").state, "active");
    let (_, story) = operator.show(&booth).await.expect("a story");
    assert!(story[0].detail.contains(&format!("by uid:{STRANGER}")), "{story:?}");

    // R48: what was refused stands in both logs.
    let said = site.said();
    assert!(said.contains("no role covers it") && said.contains("uid:65534"), "{said}");
    drop((operator, api));
    broker.stop().await;
    let mut noted = 0;
    let log = site.data().join("store").join("log");
    mayfly_audit::read(&log, Sequence(0), |entry| {
        let Fact::Noted { what, .. } = &entry.record.fact else { return };
        noted += usize::from(what == "not_entitled");
    })
    .expect("a log");
    assert!((1..=10).contains(&noted), "bounded: {noted}");
}

#[tokio::test]
async fn a_user_without_a_role_does_nothing_at_all() {
    if own_uid() != 0 {
        return skip("a stranger needs root");
    }
    let (site, _broker, _operator, api) = stage("").await;
    let task = api.begin(wish("booth", Holder::Socket(true))).await.expect("begun").task;
    let mut other = stranger(&site).await;
    let of = || task.clone();
    for deed in [
        Deed::Begin { profile: "booth".to_owned() },
        Deed::Begin { profile: "nothing".to_owned() },
        Deed::Delegate { parent: of(), profile: "booth".to_owned() },
        Deed::Get { task: of() },
        Deed::Get { task: "0".repeat(32) },
        Deed::Heartbeat { task: of() },
        Deed::Amend { task: of() },
        Deed::End { task: of() },
        Deed::List,
        Deed::Quarantine { task: of() },
        Deed::Release { task: of() },
        Deed::Profiles,
    ] {
        assert_eq!(other.call(deed.clone()).await, no("not_entitled"), "{deed:?}");
    }
    let view = api.get(&task).await.expect("it is there");
    assert_eq!((view.state.as_str(), view.version, view.children), ("active", 1, 0));
}

/// What a task's own holder may, without any role: its own, and what is below it.
#[tokio::test]
async fn an_agent_delegates_what_its_profile_names_and_rules_only_what_is_below_it() {
    if own_uid() != 0 {
        return skip("an agent of another user needs root");
    }
    let without = roles().split("[[role]]").next().expect("profiles").to_owned();
    let (site, _broker, _operator, api) = stage(&without).await;
    let mut agent = stranger(&site).await;
    let own =
        wire::BeginRequest { lease_ms: 60_000, ..wish("agent", Holder::ProcessPid(agent.pid)) };
    let own = api.begin(own).await.expect("begun").task;
    let beside = api.begin(wish("booth", Holder::Socket(true))).await.expect("begun").task;
    let of = |task: &str| task.to_owned();

    let tool = Deed::Delegate { parent: of(&own), profile: of("booth") };
    let tool = agent.call(tool).await.expect("its profile names it");
    let deeper = Deed::Delegate { parent: of(&tool), profile: of("booth") };
    assert_eq!(agent.call(deeper).await, no("not_narrower"), "the same again is no part");
    let unnamed = Deed::Delegate { parent: of(&own), profile: of("web") };
    assert_eq!(agent.call(unnamed).await, no("delegation_not_permitted"));
    assert_eq!(agent.call(Deed::Begin { profile: of("booth") }).await, no("not_entitled"));
    for deed in [Deed::Get { task: of(&own) }, Deed::Heartbeat { task: of(&own) }] {
        assert_eq!(agent.call(deed).await, Ok(of(&own)));
    }
    assert_eq!(agent.call(Deed::Amend { task: of(&tool) }).await, Ok(of(&tool)));
    assert_eq!(agent.call(Deed::List).await, Ok("2".to_owned()), "its own, and its tool");
    for deed in [
        Deed::Amend { task: of(&own) },
        Deed::End { task: of(&own) },
        Deed::Get { task: of(&beside) },
        Deed::End { task: of(&beside) },
        Deed::Delegate { parent: of(&beside), profile: of("booth") },
        Deed::Quarantine { task: of(&tool) },
    ] {
        assert_eq!(agent.call(deed.clone()).await, no("not_entitled"), "{deed:?}");
    }
    assert_eq!(agent.call(Deed::End { task: of(&tool) }).await, Ok(of(&tool)));
    assert_eq!(api.get(&own).await.expect("it is there").state, "active");

    // Whose task is over stands for nothing.
    api.end(&own, "").await.expect("ended");
    assert_eq!(agent.call(Deed::Get { task: of(&own) }).await, no("not_entitled"));
}

/// R19: whatever its user may do, what stands for a suspended task does not free it.
#[tokio::test]
async fn r19_an_agent_cannot_release_itself_even_as_the_brokers_own_user() {
    let (site, _broker, mut operator) = stand_with("").await;
    let mut agent = Actor::start(&site.socket()).await;
    let holder = begin_task_request::Holder::LineagePid(agent.pid);
    let own = operator.begin(task_of("job", holder)).await.expect("begun").task;
    let child = wire::BeginTaskRequest {
        parent: own.clone(),
        ..task_of("booth", begin_task_request::Holder::Socket(true))
    };
    let child = operator.begin(child).await.expect("begun").task;
    operator.quarantine(&own).await.expect("quarantined");
    for task in [&own, &child] {
        let release = Deed::Release { task: task.clone() };
        assert_eq!(agent.call(release).await, no("not_entitled"));
        assert_eq!(operator.show(task).await.expect("it is there").0.state, "quarantined");
    }
    operator.release(&own).await.expect("from outside");
    assert_eq!(operator.show(&child).await.expect("it is there").0.state, "active");
}

const SUPERVISOR: &str = r#"
[[profile]]
name = "supervisor"
path = "/supervisor"
selectors = []
owner = "team"
binding = "socket"
identity = "stable"

[[profile]]
name = "agent"
path = "/agent"
selectors = []
owner = "team"
binding = "socket"
delegates_to = ["booth"]

[[role]]
role = "orchestrator"
subjects = ["spiffe://example.org/supervisor"]
profiles = ["booth", "job"]
"#;

/// The Task API over mutual TLS, as `side`.
fn over_tls(side: &Side, address: std::net::SocketAddr) -> Api {
    let party = side.party(Authorize::Profile(id("/mayfly/broker")));
    let party = std::sync::Arc::new(party);
    let connector = tower::service_fn(move |_| {
        let party = std::sync::Arc::clone(&party);
        async move {
            let stream = TcpStream::connect(address).await?;
            party.connect(stream, clock::now()).await.map(TokioIo::new)
        }
    });
    Api::over(Endpoint::from_static("http://broker").connect_with_connector_lazy(connector))
}

#[tokio::test]
async fn over_mutual_tls_an_svid_is_who_asks() {
    let port = free_port();
    let more = format!("{SUPERVISOR}\n[broker]\nlisten = \"{port}\"\n");
    let (_site, _broker, mut operator, api) = stage(&more).await;
    let supervisor = Side::begin_as(&mut operator, below("supervisor", "")).await;
    let agent = Side::begin_as(&mut operator, below("agent", "")).await;
    let (theirs, agents) = (over_tls(&supervisor, port), over_tls(&agent, port));

    let begun = theirs.begin(wish("booth", Holder::Socket(true))).await.expect("its role").task;
    let (_, story) = operator.show(&begun).await.expect("a story");
    assert!(story[0].detail.contains("by spiffe://example.org/supervisor"), "{story:?}");
    let (status, denial, _) = refused(theirs.begin(wish("agent", Holder::Socket(true))).await);
    assert_eq!((status, denial.as_str()), (Code::PermissionDenied, "not_entitled"));
    for holder in [
        Holder::LineagePid(1),
        Holder::ProcessPid(1),
        Holder::Cgroup("/x".to_owned()),
        Holder::SystemdUnit("x.service".to_owned()),
        Holder::ContainerId("0".repeat(64)),
        Holder::PodUid("x".to_owned()),
    ] {
        let (status, denial, _) = refused(theirs.begin(wish("job", holder)).await);
        assert_eq!((status, denial.as_str()), (Code::FailedPrecondition, "holder_unfit"));
    }
    theirs.end(&begun, "").await.expect("its own");

    // The agent has no role, and its own task by its name.
    let scope = wire::Scope { actions: crate::api::names(&["read"]), ..wire::Scope::default() };
    let child = agents.delegate(&agent.task, crate::api::scoped("booth", scope.clone())).await;
    let child = child.expect("named by its profile").task;
    assert_eq!(api.get(&child).await.expect("it is there").parent, agent.task);
    agents.get(&agent.task).await.expect("its own");
    assert_eq!(crate::api::code(agents.end(&agent.task, "").await), "not_entitled");
    assert_eq!(crate::api::code(agents.get(&supervisor.task).await), "not_entitled");
    let below = agents.delegate(&supervisor.task, crate::api::scoped("booth", scope)).await;
    assert_eq!(crate::api::code(below), "not_entitled");
    // A name that several tasks share says of none that it is this one.
    assert_eq!(crate::api::code(theirs.get(&supervisor.task).await), "not_entitled");

    // Whose task is over is not let in, and cut off where it is in.
    api.end(&agent.task, "").await.expect("ended");
    let gone = async || agents.get(&child).await.err();
    let gone = within("a refusal", gone()).await.expect("refused");
    // Its connection is torn, or it has no identity left to make another with.
    assert!(was_torn(&gone) || gone.code() == Code::PermissionDenied, "{gone:?}");
}

#[tokio::test]
async fn a_role_that_makes_no_sense_stops_the_start() {
    for (role, wanted) in [
        ("role = \"admin\"\nsubjects = [\"uid:1\"]", "role.role"),
        ("role = \"operator\"\nsubjects = []", "role.subjects"),
        ("role = \"orchestrator\"\nsubjects = [\"uid:1\"]", "role.profiles"),
    ] {
        let site = Site::new(&configuration(&format!("\n[[role]]\n{role}\n")));
        let refused = site.try_start(&[]).await.expect_err("it cannot start");
        assert!(refused.said.contains(wanted), "{}", refused.said);
    }
}
