//! Profiles and foreign bundles that change while the broker serves.

use mayfly_proto::spiffe::workload::{self as spiffe, spiffe_workload_api_client as api};
use tonic::Code;

use crate::{
    actor::{Actor, X509Stream, with_header},
    common::{Site, own_uid, within},
    stand::{configuration, stand, stand_with},
};

fn profile(name: &str, more: &str) -> String {
    let uid = own_uid();
    format!(
        "[[profile]]\nname = \"{name}\"\npath = \"/{name}\"\nselectors = [\"unix:uid:{uid}\"]\n\
         owner = \"team\"\n{more}\n"
    )
}

async fn names(site: &Site) -> Vec<String> {
    let list = site.mayfly(&["profile", "list", "--output", "json"]).await;
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).expect("json");
    let list = list.as_array().expect("a list").iter();
    list.map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
}

/// A file with mistakes is refused with all of them, and nothing changes.
#[tokio::test]
async fn a_malformed_file_is_refused_whole_and_the_old_profiles_stay() {
    let (site, _broker, mut operator) = stand().await;
    let mut actor = Actor::start(&site.socket()).await;
    let svid = actor.watch().await;
    let before = names(&site).await;
    let file = site.root().join("next.toml");
    let text = [
        profile("good", ""),
        profile("bad-ttl", "x509_ttl = \"soon\""),
        profile("unknown-key", "bindin = \"process\""),
        "[[profile]]\nname = \"empty\"\npath = \"empty\"\nowner = \"team\"\nselectors = []\n"
            .into(),
    ];
    std::fs::write(&file, text.concat()).expect("a file");
    let path = file.to_str().expect("plain");
    for command in [["profile", "check", path], ["profile", "apply", path]] {
        let refused = site.mayfly(&command).await;
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr);
        for problem in [
            "`bad-ttl`",
            "`x509_ttl`",
            "`bindin`",
            "did you mean `binding`",
            "`selectors`",
            "`path`",
        ] {
            assert!(said.contains(problem), "{command:?} does not name {problem}: {said}");
        }
    }
    assert_eq!(names(&site).await, before);
    assert_eq!(actor.x509().await.expect("untouched").spiffe_id, svid.spiffe_id);
    assert_eq!(operator.show(&svid.task()).await.expect("a task").0.state, "active");
}

/// A profile that is gone takes its tasks along; one that stays keeps them.
#[tokio::test]
async fn a_removed_profile_ends_its_tasks() {
    let (site, _broker, mut operator) = stand_with(&profile("second", "hint = \"b\"")).await;
    let mut actor = Actor::start(&site.socket()).await;
    let svid = actor.watch().await;
    assert!(svid.spiffe_id.contains("/met/"), "the first profile is the default");
    let second = operator.list(false).await.expect("a list");
    let second = second.iter().find(|task| task.profile == "second").expect("met as both");
    let file = site.root().join("next.toml");
    std::fs::write(&file, profile("second", "hint = \"b\"")).expect("a file");
    let applied = site.mayfly(&["profile", "apply", file.to_str().expect("plain")]).await;
    assert!(applied.status.success(), "{applied:?}");
    assert!(
        String::from_utf8_lossy(&applied.stdout).contains("profile met is gone"),
        "{applied:?}"
    );

    let (view, _) = operator.show(&svid.task()).await.expect("a task");
    assert_eq!((view.state.as_str(), view.cause.as_str()), ("ended", "policy_change"));
    assert_eq!(operator.show(&second.task).await.expect("a task").0.state, "active");
    let next = actor.x509().await.expect("the other profile goes on");
    assert_eq!(next.task(), second.task);

    std::fs::write(&file, profile("third", "binding = \"lineage\"")).expect("a file");
    let applied = site.mayfly(&["profile", "apply", file.to_str().expect("plain")]).await;
    assert!(applied.status.success(), "{applied:?}");
    let end = actor.stream_end().await;
    assert_eq!(end.code, Code::PermissionDenied as i32, "{end:?}");
    assert_eq!(names(&site).await, ["third"]);
}

/// Two identities of one workload that it could not tell apart.
#[tokio::test]
async fn two_profiles_with_one_hint_are_refused() {
    let twice = [profile("one", "hint = \"same\""), profile("two", "hint = \"same\"")].concat();
    let site = Site::new(&configuration(&twice));
    let refused = site.try_start(&[]).await.expect_err("a hint comes twice");
    assert_eq!(refused.code, Some(1));
    assert!(refused.said.contains("`one` has the hint `same` already"), "{refused:?}");

    let (site, _broker, _operator) = stand().await;
    let file = site.root().join("next.toml");
    std::fs::write(&file, &twice).expect("a file");
    let applied = site.mayfly(&["profile", "apply", file.to_str().expect("plain")]).await;
    assert_eq!(applied.status.code(), Some(1));
    assert_eq!(names(&site).await, ["met", "job", "booth", "errand"]);
}

/// A foreign bundle is pushed to those who federate with it when its file appears, and when it changes.
#[tokio::test]
async fn a_foreign_bundle_is_pushed_when_its_file_appears_and_changes() {
    // Somebody else's broker, twice: the second time with other keys.
    let mut foreign = Vec::new();
    for _ in 0..2 {
        let other = Site::new(&configuration("").replace("example.org", "other.org"));
        let broker = other.start().await;
        let bundle = other
            .mayfly(&["fetch", "bundle", "--write", other.root().to_str().expect("plain")])
            .await;
        assert!(bundle.status.success(), "{bundle:?}");
        foreign.push(std::fs::read(other.root().join("other.org.pem")).expect("a bundle"));
        drop(broker);
    }
    let more = profile("friend", "federates_with = [\"other.org\"]\nhint = \"friend\"")
        + "\n[[federation]]\ntrust_domain = \"other.org\"\nbundle = \"other.pem\"\n";
    let (site, broker, _operator) = stand_with(&more).await;
    let mut bundles = api::SpiffeWorkloadApiClient::new(broker.endpoint().channel())
        .fetch_x509_bundles(with_header(spiffe::X509BundlesRequest {}))
        .await
        .expect("a stream")
        .into_inner();
    let mut next = async || {
        let message = within("a message", bundles.message()).await.expect("a stream");
        message.expect("no end").bundles
    };
    let (own, other) = ("spiffe://example.org", "spiffe://other.org");
    let first = next().await;
    assert!(first.contains_key(own) && !first.contains_key(other));

    let file = site.root().join("other.pem");
    std::fs::write(&file, &foreign[0]).expect("a file");
    let appeared = next().await;
    assert_eq!(appeared.get(own), first.get(own));
    let one = appeared.get(other).expect("it is there").clone();

    std::fs::write(&file, &foreign[1]).expect("a file");
    let changed = next().await;
    assert_ne!(changed.get(other).expect("it is there"), &one);

    let context = within("a message", X509Stream::open(&broker.endpoint()).next()).await;
    let context = context.expect("an identity");
    let theirs = mayfly_core::TrustDomain::parse("other.org").expect("a name");
    assert!(context.federated.contains_key(&theirs));
}
