//! Work that branches: chains of delegation, what a child may not be, profiles that change on the way, and
//! the end of whole trees (R38–R41, R44).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use mayfly::clock;
use mayfly_proto::{
    mayfly::v1::{self as wire, holder_wish::Holder, revoke_request::Target, wish::Wish},
    spiffe::workload::{self as spiffe, spiffe_workload_api_client as workload_api},
};
use mayfly_verify::{Endpoint, WorkloadClient, jwt::Verifier};
use serde_json::Value;
use tonic::Code;

use crate::{
    actor::with_header,
    api::{Api, Outcome, code, names, refused, scoped, wish},
    common::{Broker, Operator, Site, until, within},
    mirrors::claims,
    stand::{AUDIENCE, configuration, is_valid, stand_with, status},
};

const HOPS: &str = r#"
[[profile]]
name = "hop"
path = "/hop"
selectors = []
owner = "team"
binding = "socket"
delegates_to = ["hop", "last"]
max_depth = 4
max_children = 3

[[profile]]
name = "last"
path = "/last"
selectors = []
owner = "team"
binding = "socket"
"#;

async fn stage(more: &str) -> (Site, Broker, Operator, Api) {
    let (site, broker, operator) = stand_with(more).await;
    let api = Api::of(&site);
    (site, broker, operator, api)
}

fn workload(begun: &wire::BeginResponse) -> WorkloadClient {
    let endpoint = Endpoint::parse(&format!("unix://{}", begun.socket)).expect("a path");
    WorkloadClient::new(&endpoint)
}

async fn token(begun: &wire::BeginResponse) -> String {
    let mut tokens = workload(begun).fetch_jwt(&[AUDIENCE], None).await.expect("a token");
    tokens.pop().expect("never empty").token
}

fn tools(told: &[&str]) -> wire::Scope {
    wire::Scope { tools: names(told), ..wire::Scope::default() }
}

/// The subjects of an `act` claim, the nearest first.
fn actors(claims: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut next = claims.get("act");
    while let Some(act) = next {
        found.push(act["sub"].as_str().expect("a subject").to_owned());
        next = act.get("act");
    }
    found
}

/// R38: who acted for whom stands in the token of the last hop, and nobody between can change it.
#[tokio::test]
async fn r38_the_chain_of_three_hops_is_verified_at_the_last_and_cannot_be_changed() {
    let (_site, broker, _operator, api) = stage(HOPS).await;
    let root = api.begin(scoped("hop", tools(&["a", "b", "c"]))).await.expect("begun");
    let middle = api.delegate(&root.task, scoped("hop", tools(&["a", "b"]))).await.expect("hop 2");
    let last = api.delegate(&middle.task, scoped("last", tools(&["a"]))).await.expect("hop 3");
    let token = token(&last).await;

    let source = workload(&last).watch_jwt_bundles();
    within("the keys", source.ready()).await;
    let verifier = Verifier::offline(AUDIENCE, source.keys());
    let domain = mayfly_core::TrustDomain::parse("example.org").expect("a name");
    // By signature and dates alone: what is asked here is what the token says.
    let verifier = verifier.until_expiry(domain);
    let bearer = verifier.verify(&token, clock::now()).await.expect("a good token");
    let told = bearer.claims(clock::now()).expect("it stands");
    assert_eq!(told.id.as_str(), last.spiffe_id);
    let chain = actors(&Value::Object(told.map.clone()));
    assert_eq!(chain, [middle.spiffe_id.clone(), root.spiffe_id.clone()], "the nearest outermost");
    let view = api.get(&last.task).await.expect("it is there");
    assert_eq!((view.parent.as_str(), view.root.as_str()), (&*middle.task, &*root.task));
    assert_eq!((view.depth, view.reach.map(|reach| reach.depth)), (2, Some(2)));

    // Stripped, turned round, and made up: the signature is over all of it.
    type Change = fn(&mut serde_json::Map<String, Value>);
    let changes: [(&str, Change); 4] = [
        ("stripped", |map| drop(map.remove("act"))),
        ("shortened", |map| drop(map["act"].as_object_mut().expect("one").remove("act"))),
        ("turned round", |map| {
            let (near, far) = (map["act"]["sub"].clone(), map["act"]["act"]["sub"].clone());
            map["act"]["sub"] = far;
            map["act"]["act"]["sub"] = near;
        }),
        ("made up", |map| {
            map["act"] = serde_json::json!({ "sub": "spiffe://example.org/mayfly/broker" });
        }),
    ];
    for (what, change) in changes {
        let mut claims = claims(&token);
        change(claims.as_object_mut().expect("an object"));
        let mut parts: Vec<_> = token.split('.').map(str::to_owned).collect();
        parts[1] = BASE64_URL_SAFE_NO_PAD.encode(claims.to_string());
        let changed = parts.join(".");
        assert!(verifier.verify(&changed, clock::now()).await.is_err(), "{what}");
        assert!(!is_valid(&broker, &changed).await, "{what}");
    }
    assert!(is_valid(&broker, &token).await);

    // The end of a hop ends what it delegated, and so does the broker's view of the token.
    api.end(&middle.task, "").await.expect("ended");
    assert!(!is_valid(&broker, &token).await);
    assert_eq!(api.get(&root.task).await.expect("it is there").state, "active");
}

/// R39: a child that is wider than its parent in any one dimension is refused, by that dimension's name.
#[tokio::test]
async fn r39_a_child_wider_in_any_one_dimension_is_refused_by_its_name() {
    let (_site, _broker, _operator, api) = stage(HOPS).await;
    let now = clock::now().0;
    let scope = |names_of: [&[&str]; 4]| wire::Scope {
        actions: names(names_of[0]),
        resources: names(names_of[1]),
        audiences: names(names_of[2]),
        tools: names(names_of[3]),
    };
    let declared = |scope: wire::Scope| wire::Declaration {
        scope: Some(scope),
        budget: Some(wire::Budget { issuances: Some(10), per_minute: Some(5), attempts: None }),
        reach: Some(wire::Reach { depth: 2, children: 2 }),
        credential_ttl_ms: 60_000,
        ..wire::Declaration::default()
    };
    let with = |declaration, deadline_ms| wire::BeginRequest {
        declaration: Some(declaration),
        deadline_ms,
        ..wish("hop", Holder::Socket(true))
    };
    let deadline = now + 600_000;
    let whole = || scope([&["read", "write"], &["db/*"], &["a", "b"], &["t", "u"]]);
    let parent = api.begin(with(declared(whole()), deadline)).await.expect("begun").task;
    let fewer = || scope([&["read"], &["db/x"], &["a"], &["t"]]);
    let child = || wire::Declaration {
        reach: Some(wire::Reach { depth: 1, children: 2 }),
        ..declared(fewer())
    };
    api.delegate(&parent, with(child(), deadline)).await.expect("narrower in all of them");

    let scopes = [
        ("actions", scope([&["read", "delete"], &["db/x"], &["a"], &["t"]])),
        ("resources", scope([&["read"], &["d*"], &["a"], &["t"]])),
        ("audiences", scope([&["read"], &["db/x"], &["a", "c"], &["t"]])),
        ("tools", scope([&["read"], &["db/x"], &["a"], &["*"]])),
    ];
    let scopes = scopes.map(|(what, scope)| {
        (what, with(wire::Declaration { scope: Some(scope), ..child() }, deadline))
    });
    let budget = |issuances, per_minute| wire::Declaration {
        budget: Some(wire::Budget { issuances, per_minute, attempts: None }),
        ..child()
    };
    let reach = |depth, children| wire::Declaration {
        reach: Some(wire::Reach { depth, children }),
        ..child()
    };
    let longer = wire::Declaration { credential_ttl_ms: 60_001, ..child() };
    let others = [
        ("budget", with(budget(Some(11), Some(5)), deadline)),
        ("budget", with(budget(Some(10), Some(6)), deadline)),
        ("reach", with(reach(2, 2), deadline)),
        ("reach", with(reach(1, 3), deadline)),
        ("credential_ttl", with(longer, deadline)),
        ("deadline", with(child(), deadline + 1)),
    ];
    for (what, request) in scopes.into_iter().chain(others) {
        let (status, denial, detail) = refused(api.delegate(&parent, request).await);
        assert_eq!((status, denial.as_str()), (Code::PermissionDenied, "exceeds_parent"), "{what}");
        assert_eq!(detail, format!("{what}: wider than the parent"));
    }
    let same = wire::Declaration { scope: Some(whole()), ..child() };
    assert_eq!(code(api.delegate(&parent, with(same, deadline)).await), "not_narrower");
    // One child lives; a second is the last that the parent may have at a time.
    api.delegate(&parent, with(child(), deadline)).await.expect("the second");
    assert_eq!(code(api.delegate(&parent, with(child(), deadline)).await), "too_many_children");

    // Amended to less, it takes those along that hold more.
    let less = wire::AmendRequest {
        task: parent.clone(),
        scope: Some(wire::Scope { audiences: names(&["b"]), ..wire::Scope::default() }),
        ..Default::default()
    };
    api.amend(less).await.expect("amended");
    let below = wire::Filter { parent: parent.clone(), ended: true, ..Default::default() };
    let causes: BTreeSet<_> = api.list(below).await.into_iter().map(|task| task.cause).collect();
    assert_eq!(causes, BTreeSet::from(["parent_narrowed".to_owned()]));
}

/// What is refused of a task that there is says what about it: the dimension, the field, or the one above
/// that is in the way.
#[tokio::test]
async fn a_refused_order_names_what_stands_against_it() {
    let (_site, _broker, mut operator, api) = stage(HOPS).await;
    let scope =
        |audiences: &[&str]| wire::Scope { audiences: names(audiences), ..Default::default() };
    let parent = api.begin(scoped("hop", scope(&["a", "b"]))).await.expect("begun").task;
    let child = api.delegate(&parent, scoped("hop", scope(&["a"]))).await.expect("narrower").task;
    let amend = async |intent: Option<String>, to: wire::Scope| {
        let (task, scope) = (child.clone(), Some(to));
        refused(api.amend(wire::AmendRequest { task, intent, scope, ..Default::default() }).await)
    };
    let (status, denial, detail) = amend(None, scope(&["a", "c"])).await;
    assert_eq!((status, denial.as_str()), (Code::PermissionDenied, "exceeds_parent"));
    assert_eq!(detail, "audiences: wider than the parent");
    for (intent, to, field) in
        [(Some("x".repeat(100_000)), scope(&["a"]), "intent"), (None, scope(&["a*b"]), "audiences")]
    {
        let (status, denial, detail) = amend(intent, to).await;
        assert_eq!((status, denial.as_str()), (Code::InvalidArgument, "malformed"));
        assert_eq!(detail, format!("invalid {field}"));
    }
    let (_, denial, detail) = refused(api.begin(scoped("hop", scope(&["a*b"]))).await);
    assert_eq!((denial.as_str(), detail.as_str()), ("malformed", "invalid audiences"));

    operator.quarantine(&parent).await.expect("quarantined");
    let refusal = operator.release(&child).await.expect_err("its parent is held");
    let wanted = format!("it is stopped by the quarantine of {parent}: release that");
    assert!(refusal.message().contains(&wanted), "{refusal:?}");
    operator.release(&parent).await.expect("released, with what is below it");
    assert_eq!(api.get(&child).await.expect("it is there").state, "active");
    api.amend(wire::AmendRequest {
        task: child.clone(),
        scope: Some(scope(&[])),
        ..Default::default()
    })
    .await
    .expect("nothing is narrower than something");
    let (_, story) = operator.show(&child).await.expect("it is there");
    let amended = story.iter().find(|entry| entry.what == "amended").expect("it was");
    assert!(amended.detail.starts_with("version 2, audiences []"), "{amended:?}");
}

/// R40: between two hops the profiles are replaced, and the second is judged by those in force.
#[tokio::test]
async fn r40_a_hop_is_judged_by_the_profiles_of_its_own_moment() {
    let (_site, _broker, mut operator, api) = stage(HOPS).await;
    let apply = async |operator: &mut Operator, text: &str| {
        let text = configuration(text).split_once("[[profile]]").map(|(_, rest)| rest.to_owned());
        let text = format!("[[profile]]{}", text.expect("profiles"));
        let request = wire::ApplyProfilesRequest { text };
        operator.0.apply_profiles(request).await.expect("applied").into_inner().gone
    };
    let root = api.begin(scoped("hop", tools(&["a", "b"]))).await.expect("begun").task;
    let hop = async || api.delegate(&root, scoped("last", tools(&["a"]))).await;
    let first = hop().await.expect("as it was").task;

    // Named no more: not denied by the edition under which the parent began, and denied all the same.
    let unnamed = HOPS.replace("\"hop\", \"last\"", "\"hop\"");
    assert!(apply(&mut operator, &unnamed).await.is_empty());
    let (status, denial, detail) = refused(hop().await);
    assert_eq!((status, denial.as_str()), (Code::PermissionDenied, "delegation_not_permitted"));
    assert!(detail.contains("`hop`") && detail.contains("`last`"), "{detail}");
    assert_eq!(api.get(&first).await.expect("it is there").state, "active");

    // Narrowed: what was declared before is more than its profile has.
    let narrowed = HOPS.replacen(
        "max_children = 3\n",
        "max_children = 3\n[profile.scope]\ntools = [\"b\"]\n",
        1,
    );
    assert!(apply(&mut operator, &narrowed).await.is_empty());
    let (_, denial, detail) = refused(hop().await);
    assert_eq!((denial.as_str(), detail.contains("tools")), ("exceeds_profile", true), "{detail}");

    // As it was, and it goes on; removed, and the hop is unknown and its tasks are over.
    apply(&mut operator, HOPS).await;
    hop().await.expect("as it was");
    let without = HOPS.split("\n[[profile]]\nname = \"last\"").next().expect("the first");
    let without = without.replace("\"hop\", \"last\"", "\"hop\"");
    assert_eq!(apply(&mut operator, &without).await, ["last"]);
    assert_eq!(code(hop().await), "profile_unknown");
    assert_eq!(api.get(&first).await.expect("remembered").cause, "policy_change");
    // Its own profile removed, it delegates nothing: it is over.
    assert_eq!(apply(&mut operator, "").await, ["hop"]);
    let below = api.delegate(&root, scoped("booth", tools(&["a"]))).await;
    assert!(["parent_inactive", "delegation_not_permitted"].contains(&code(below).as_str()));
}

/// R41: a tree of a thousand, ended at its root.
#[tokio::test]
async fn r41_a_tree_of_a_thousand_is_over_at_once_and_its_siblings_go_on() {
    const FIRST: usize = 9;
    const BELOW: usize = 110;
    /// From the wish to end until every token that was taken of the tree is refused.
    const BOUND: Duration = Duration::from_secs(5);
    let (_site, broker, _operator, api) = stage("").await;
    let root = api.begin(scoped("booth", tools(&["*"]))).await.expect("begun");
    let sibling = api.begin(scoped("booth", tools(&["*"]))).await.expect("begun");
    let beside = api.delegate(&sibling.task, scoped("booth", tools(&["a"]))).await.expect("begun");
    let delegate = |parent: &str, tools_of: &[&str]| {
        let child = Some(scoped("booth", tools(tools_of)));
        Wish::Delegate(wire::DelegateRequest { parent: parent.to_owned(), child })
    };
    let begun = |outcomes: Vec<Outcome>| -> Vec<wire::BeginResponse> {
        let begun = |outcome| match outcome {
            Outcome::Begun(begun) => begun,
            other => panic!("{other:?}"),
        };
        outcomes.into_iter().map(begun).collect()
    };
    let first = api.batch((0..FIRST).map(|_| delegate(&root.task, &["a*"])).collect()).await;
    let first = begun(first.expect("a batch"));
    let second = first.iter().flat_map(|up| (0..BELOW).map(|_| delegate(&up.task, &["ab"])));
    let second = begun(api.batch(second.collect()).await.expect("a batch"));
    let tree = wire::Filter { tree: root.task.clone(), ..Default::default() };
    assert_eq!(api.list(tree.clone()).await.len(), 1 + FIRST + FIRST * BELOW);

    let some: Vec<_> = [&root].into_iter().chain(&first).chain(second.iter().step_by(50)).collect();
    let mut tokens = Vec::new();
    for task in &some {
        tokens.push(token(task).await);
    }
    let others = [token(&sibling).await, token(&beside).await];
    let began = clock::instant();
    let ended = api.end(&root.task, "failed").await.expect("ended");
    assert_eq!((ended.state.as_str(), ended.cause.as_str()), ("ended", "failed"));
    for token in &tokens {
        assert!(!is_valid(&broker, token).await);
    }
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    assert!(api.list(tree.clone()).await.is_empty());
    let all = api.list(wire::Filter { ended: true, ..tree }).await;
    assert_eq!(all.len(), 1 + FIRST + FIRST * BELOW);
    let by_parent = all.iter().filter(|task| task.cause == "parent_ended").count();
    assert_eq!(by_parent, FIRST + FIRST * BELOW);
    for task in some.into_iter().skip(1).take(3) {
        assert!(workload(task).fetch_x509().await.is_err(), "its socket is gone");
    }
    for token in &others {
        assert!(is_valid(&broker, token).await, "a sibling");
    }
    let mut left = api.list(wire::Filter::default()).await;
    // The test itself was met when it asked whether tokens are good.
    left.retain(|task| task.profile != "met");
    assert_eq!(left.len(), 2);
}

fn agent_and_tools() -> String {
    let uid = crate::common::own_uid();
    let mut text = format!(
        "\n[[profile]]\nname = \"agent\"\npath = \"/agent\"\nselectors = [\"unix:uid:{uid}\"]\n\
         owner = \"agents\"\nhint = \"agent\"\ndelegates_to = [\"tool-1\", \"tool-2\", \"tool-3\", \
         \"tool-4\", \"tool-5\"]\n"
    );
    for n in 1..=5 {
        text += &format!(
            "\n[[profile]]\nname = \"tool-{n}\"\npath = \"/tool/{n}\"\n\
             selectors = [\"unix:uid:{uid}\"]\nowner = \"tools-{n}\"\nhint = \"tool-{n}\"\n"
        );
    }
    text
}

/// What one call of the Workload API shows this process: SPIFFE IDs by their hints.
async fn shown(broker: &Broker) -> BTreeMap<String, String> {
    let mut client = workload_api::SpiffeWorkloadApiClient::new(broker.endpoint().channel());
    let stream = client.fetch_x509svid(with_header(spiffe::X509svidRequest {})).await;
    let mut stream = stream.expect("a stream").into_inner();
    let message = within("identities", stream.message()).await.expect("a message");
    let svids = message.expect("identities").svids;
    svids.into_iter().map(|svid| (svid.hint, svid.spiffe_id)).collect()
}

/// R44: one agent, which is this process, with an identity for each of its tools.
#[tokio::test]
async fn r44_one_agent_has_an_identity_for_each_tool_and_each_is_revoked_alone() {
    let (_site, broker, mut operator, api) = stage(&agent_and_tools()).await;
    let pid = i32::try_from(std::process::id()).expect("a pid");
    let agent = api.begin(wish("agent", Holder::ProcessPid(pid))).await.expect("begun");
    let mut wanted = BTreeMap::from([("agent".to_owned(), agent.spiffe_id.clone())]);
    let mut tasks = BTreeMap::new();
    for n in 1..=5 {
        let name = format!("tool-{n}");
        let scope = tools(&[&name]);
        let child = wire::BeginRequest {
            holder: Some(wire::HolderWish { holder: Some(Holder::ProcessPid(pid)) }),
            ..scoped(&name, scope)
        };
        let begun = api.delegate(&agent.task, child).await.expect("a tool");
        wanted.insert(name.clone(), begun.spiffe_id);
        tasks.insert(name, begun.task);
    }
    assert_eq!(shown(&broker).await, wanted, "six, each by its hint");
    let below = wire::Filter { parent: agent.task.clone(), ..Default::default() };
    let listed = api.list(below.clone()).await;
    let owners: BTreeSet<_> = listed.iter().map(|task| task.owner.as_str()).collect();
    assert_eq!(owners.len(), 5, "each with an owner of its own: {owners:?}");
    for task in &listed {
        let own = task.scope.clone().and_then(|scope| scope.tools);
        assert_eq!(own, names(&[&task.profile]), "each with a scope of its own");
        assert_eq!(task.spiffe_id, wanted[&task.profile]);
    }
    let third = broker.workload().fetch_jwt(&[AUDIENCE], None).await.expect("tokens");
    let of = |hint: &str| {
        let found = third.iter().find(|token| token.hint == hint).expect("one per identity");
        found.token.clone()
    };
    assert!(is_valid(&broker, &of("tool-3")).await);

    operator.revoke(Target::Task(tasks["tool-3"].clone())).await.expect("revoked");
    assert!(!is_valid(&broker, &of("tool-3")).await);
    assert!(is_valid(&broker, &of("tool-2")).await && is_valid(&broker, &of("agent")).await);
    wanted.remove("tool-3");
    let now_five = async || (shown(&broker).await == wanted).then_some(());
    until("five identities", now_five).await;
    let listed: BTreeSet<_> = api.list(below).await.into_iter().map(|one| one.profile).collect();
    let truth: BTreeSet<_> = wanted.keys().filter(|hint| *hint != "agent").cloned().collect();
    assert_eq!(listed, truth, "the listing is what can be had");

    api.end(&agent.task, "").await.expect("ended");
    assert!(api.list(wire::Filter::default()).await.is_empty());
    // This process has lost every identity, so somebody else has to be asked about its tokens.
    let judge = api.begin(wish("booth", Holder::Socket(true))).await.expect("begun");
    for hint in ["agent", "tool-1", "tool-5"] {
        let refused = workload(&judge).validate_jwt(AUDIENCE, &of(hint)).await;
        assert_eq!(status(refused.expect_err(hint)).code(), Code::InvalidArgument);
    }
}
