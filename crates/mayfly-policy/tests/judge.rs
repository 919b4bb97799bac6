//! Judging and explaining.
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

use std::collections::BTreeSet;

use mayfly_core::{Caller, Evidence, PolicyEpoch, Selector, TaskId, TrustDomain};
use mayfly_policy::{Difference, Profiles};
use proptest::prelude::*;

const FILE: &str = r#"
[[profile]]
name = "wide"
path = "/wide"
selectors = ["unix:uid:1"]
owner = "o"

[[profile]]
name = "narrow"
path = "/narrow"
selectors = ["unix:uid:1", "unix:gid:1", "unix:path:/bin/a"]
owner = "o"

[[profile]]
name = "other"
path = "/other"
selectors = ["unix:uid:2", "unix:gid:2"]
owner = "o"

[[profile]]
name = "sandbox"
path = "/sandbox"
owner = "o"
binding = "socket"
"#;

#[test]
fn a_profile_matches_only_if_all_its_selectors_are_seen() {
    assert_eq!(permitted(&seen(&["unix:uid:1"])), ["wide"]);
    assert_eq!(permitted(&seen(&["unix:uid:1", "unix:gid:1"])), ["wide"]);
    let all = seen(&["unix:uid:1", "unix:gid:1", "unix:path:/bin/a", "unix:user:x"]);
    assert_eq!(permitted(&all), ["wide", "narrow"], "in the order of the file");
}

#[test]
fn silence_is_no() {
    assert!(permitted(&Evidence::default()).is_empty());
    assert!(permitted(&seen(&["unix:uid:10"])).is_empty(), "a prefix is no match");
}

#[test]
fn a_profile_without_selectors_needs_a_socket_of_the_tasks_own() {
    let mut evidence = seen(&["unix:uid:1"]);
    assert_eq!(permitted(&evidence), ["wide"]);
    evidence.caller.socket = Some(TaskId::from_bytes([1; 16]));
    assert_eq!(permitted(&evidence), ["wide", "sandbox"]);
}

#[test]
fn a_verdict_names_the_edition_it_rests_on() {
    let profiles = profiles().at_epoch(PolicyEpoch(9));
    assert_eq!(profiles.epoch(), PolicyEpoch(9));
    assert_eq!(profiles.judge(&Evidence::default()).epoch, PolicyEpoch(9));
}

#[test]
fn the_nearest_profile_comes_first_and_names_what_was_missing() {
    let evidence = seen(&["unix:uid:1", "unix:gid:1", "unix:path:/bin/b"]);
    let all = profiles().explain(&evidence);
    let order: Vec<_> = all.iter().map(|one| one.profile.as_str()).collect();
    assert_eq!(order, ["wide", "narrow", "sandbox", "other"]);
    assert!(all.first().is_some_and(|wide| wide.matches()));
    let narrow = all.get(1).expect("four profiles");
    assert!(!narrow.matches());
    assert_eq!(narrow.matched.len(), 2);
    let missing = narrow.missing.first().expect("one is missing");
    assert_eq!(missing.wanted.as_str(), "unix:path:/bin/a");
    assert_eq!(missing.had, [selector("unix:path:/bin/b")]);
    assert!(all.get(2).is_some_and(|sandbox| sandbox.needs_socket));
}

#[test]
fn the_built_in_profile_covers_one_user_and_nobody_else() {
    let dev = Profiles::dev(1000);
    assert_eq!(dev.names().collect::<Vec<_>>(), ["dev"]);
    assert_eq!(dev.judge(&seen(&["unix:uid:1000"])).permits.len(), 1);
    assert_eq!(dev.judge(&seen(&["unix:uid:1001"])).permits.len(), 0);
    let terms = dev.terms("dev").expect("it is there");
    assert_eq!((terms.path.as_str(), terms.owner.as_str()), ("/dev", "user:1000"));
    assert_eq!(terms.hint, "");
}

#[test]
fn the_built_in_profile_is_one_that_the_file_would_accept() {
    let text = "[[profile]]\nname = \"dev\"\npath = \"/dev\"\nselectors = [\"unix:uid:7\"]\nowner = \"user:7\"\n";
    assert_eq!(parse(text).at_epoch(PolicyEpoch(0)), Profiles::dev(7));
}

#[test]
fn a_digest_is_needed_only_if_some_profile_asks_for_it() {
    assert!(!profiles().needs_sha256());
    let digest = "ab".repeat(32);
    let text = FILE.replace("unix:gid:2", &format!("unix:sha256:{digest}"));
    assert!(parse(&text).needs_sha256());
}

#[test]
fn names_are_needed_only_if_some_profile_asks_for_them() {
    assert!(!profiles().needs_names());
    for name in ["unix:user:web", "unix:group:web"] {
        assert!(parse(&FILE.replace("unix:gid:2", name)).needs_names(), "{name}");
    }
}

#[test]
fn an_edition_knows_what_is_gone_and_what_has_changed() {
    let old = profiles();
    let new = parse(&FILE.replace("\"other\"", "\"another\"").replace("\"unix:uid:1\", ", ""));
    assert_eq!(new.gone_since(&old), ["other"]);
    assert_eq!(old.gone_since(&new), ["another"]);
    let shown: Vec<_> = new.diff(&old).iter().map(Difference::to_string).collect();
    assert_eq!(
        shown,
        [
            "~ narrow: selectors: [unix:gid:1, unix:path:/bin/a, unix:uid:1] -> \
             [unix:gid:1, unix:path:/bin/a]",
            "+ another",
            "- other",
        ]
    );
    assert!(old.diff(&old).is_empty());
}

/// Few values, so that profiles and evidence meet often.
fn any_selector() -> impl Strategy<Value = String> {
    (prop::sample::select(vec!["unix:uid", "unix:gid", "unix:supplementary_gid"]), 0..3_u8)
        .prop_map(|(kind, value)| format!("{kind}:{value}"))
}

fn any_profiles() -> impl Strategy<Value = Profiles> {
    let one = (prop::collection::btree_set(any_selector(), 0..4), any::<bool>());
    prop::collection::vec(one, 0..8).prop_map(|all| {
        let text: String = all
            .into_iter()
            .enumerate()
            .map(|(n, (mut selectors, socket))| {
                // One value of each kind of which a caller has one; `socket` decides about none.
                let mut kinds = BTreeSet::new();
                selectors.retain(|s| {
                    s.contains("supplementary")
                        || kinds.insert(s.split(':').nth(1).map(str::to_owned))
                });
                if selectors.is_empty() && !socket {
                    selectors.insert("unix:uid:1".into());
                }
                let binding = if socket { "socket" } else { "process" };
                format!(
                    "[[profile]]\nname = \"p{n}\"\npath = \"/p{n}\"\nowner = \"o\"\n\
                     binding = \"{binding}\"\nselectors = {selectors:?}\n"
                )
            })
            .collect();
        parse(&text.replace('{', "[").replace('}', "]"))
    })
}

proptest! {
    /// P8: silence is No, and less evidence never grants more.
    #[test]
    fn less_evidence_never_grants_more(
        profiles in any_profiles(),
        facts in prop::collection::vec((any_selector(), any::<bool>()), 0..10),
        socket: bool,
        keep_socket: bool,
    ) {
        let socket = socket.then(|| TaskId::from_bytes([7; 16]));
        let with = |facts: Vec<&str>, socket| Evidence {
            caller: Caller { socket, ..Caller::default() },
            ..seen(&facts)
        };
        let more = with(facts.iter().map(|(s, _)| s.as_str()).collect(), socket);
        let kept = facts.iter().filter(|(_, keep)| *keep).map(|(s, _)| s.as_str());
        let less = with(kept.collect(), socket.filter(|_| keep_socket));
        let granted = profiles.judge(&more).permits;
        for permit in profiles.judge(&less).permits {
            prop_assert!(granted.contains(&permit), "{} came from nothing", permit.profile);
        }
        prop_assert!(profiles.judge(&Evidence::default()).permits.is_empty());
    }

    #[test]
    fn the_order_of_the_evidence_does_not_matter(
        profiles in any_profiles(),
        facts in prop::collection::vec(any_selector(), 0..10),
    ) {
        let forth: Vec<_> = facts.iter().map(String::as_str).collect();
        let back: Vec<_> = facts.iter().rev().chain(&facts).map(String::as_str).collect();
        prop_assert_eq!(profiles.judge(&seen(&forth)), profiles.judge(&seen(&back)));
    }

    #[test]
    fn an_explanation_agrees_with_the_verdict(
        profiles in any_profiles(),
        facts in prop::collection::vec(any_selector(), 0..10),
        socket: bool,
    ) {
        let facts: Vec<_> = facts.iter().map(String::as_str).collect();
        let mut evidence = seen(&facts);
        evidence.caller.socket = socket.then(|| TaskId::from_bytes([7; 16]));
        let permits = profiles.judge(&evidence).permits;
        let explained = profiles.explain(&evidence);
        prop_assert_eq!(explained.len(), profiles.names().len());
        for one in explained {
            let permitted = permits.iter().any(|terms| terms.profile == one.profile);
            prop_assert_eq!(one.matches(), permitted);
        }
    }
}

fn profiles() -> Profiles {
    parse(FILE)
}

fn parse(text: &str) -> Profiles {
    let domain = TrustDomain::parse("example.org").expect("a good name");
    Profiles::parse(text, &domain, PolicyEpoch(1)).expect(text)
}

fn permitted(evidence: &Evidence) -> Vec<String> {
    let permits = profiles().judge(evidence).permits;
    permits.into_iter().map(|terms| terms.profile).collect()
}

fn selector(text: &str) -> Selector {
    Selector::parse(text).expect(text)
}

fn seen(facts: &[&str]) -> Evidence {
    Evidence {
        selectors: facts.iter().map(|text| selector(text)).collect(),
        caller: Caller::default(),
    }
}
