//! Rights: what each role covers, whom its subjects name, and that nothing is granted by silence.
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

use mayfly_core::{Act, Denial, Principal, SpiffeId};
use mayfly_policy::rights::{Object, Rights, Role, Rule, Subject, Territory};
use proptest::prelude::*;

const OWNER: u32 = 777;

fn spiffe(id: &str) -> Principal {
    Principal::Spiffe(SpiffeId::parse(id).expect("an id"))
}

fn rule(role: Role, subject: &str, land: Option<(&[&str], &[&str])>) -> Rule {
    let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let territory =
        land.map(|(profiles, paths)| Territory::of(&own(profiles), &own(paths)).expect("land"));
    let subjects = vec![Subject::parse(subject).expect("a subject")];
    Rule { role, subjects, territory }
}

fn profile<'a>(name: &'a str, path: &'a str) -> Object<'a> {
    Object::Profile { name, path }
}

#[test]
fn an_orchestrator_may_begin_and_end_only_its_profiles_and_paths() {
    let land: (&[&str], &[&str]) = (&["job", "tool-*"], &["/shop/", "/lab"]);
    let rights = Rights::new(OWNER).with([rule(Role::Orchestrator, "uid:1000", Some(land))]);
    let who = Principal::User(1000);
    let may = |object| rights.judge(&who, Act::Begin, object).is_ok();
    for (name, path, wanted) in [
        ("job", "/elsewhere", true),
        ("tool-a", "/elsewhere", true),
        ("tools", "/elsewhere", false),
        ("jobs", "/elsewhere", false),
        ("x", "/shop/web", true),
        ("x", "/shopping", false),
        ("x", "/lab", true),
        ("x", "/lab/deep", true),
        ("x", "/labs", false),
        ("mayfly", "/shop/web", false),
    ] {
        assert_eq!(may(profile(name, path)), wanted, "{name} {path}");
    }
    assert!(!may(Object::Everything));
    for act in Act::ALL {
        let orchestrates = matches!(
            act,
            Act::Begin
                | Act::Delegate
                | Act::Amend
                | Act::Heartbeat
                | Act::End
                | Act::Read
                | Act::ReadProfiles
        );
        let granted = rights.judge(&who, act, profile("job", "/a")).is_ok();
        assert_eq!(granted, orchestrates, "{}", act.name());
        assert_eq!(rights.may_somewhere(&who, act), orchestrates);
    }
    assert_eq!(
        rights.judge(&Principal::User(1001), Act::Begin, profile("job", "/a")),
        Err(Denial::NotEntitled)
    );
}

#[test]
fn no_role_covers_everything_and_each_act_is_covered_by_one() {
    for role in Role::ALL {
        assert!(Act::ALL.iter().any(|act| !role.covers(*act)), "{role:?} is an administrator");
    }
    for act in Act::ALL {
        assert!(Role::ALL.iter().any(|role| role.covers(act)), "{} is nobody's", act.name());
    }
    let both = |one, other| Role::ALL.iter().any(|role| role.covers(one) && role.covers(other));
    assert!(!both(Act::Begin, Act::Release) && !both(Act::Begin, Act::Quarantine));
    assert!(!both(Act::Approve, Act::Begin) && !both(Act::Approve, Act::Release));
}

#[test]
fn root_and_the_brokers_own_user_hold_all_but_approval_and_nobody_else_holds_anything() {
    let rights = Rights::new(OWNER);
    for act in Act::ALL {
        for uid in [0, OWNER] {
            let granted = rights.judge(&Principal::User(uid), act, Object::Everything).is_ok();
            assert_eq!(granted, act != Act::Approve, "{uid} {}", act.name());
        }
        for who in [
            Principal::User(1),
            Principal::Nobody,
            spiffe("spiffe://example.org/mayfly/broker"),
            Principal::Oidc { issuer: "uid".into(), subject: "0".into() },
        ] {
            assert!(rights.judge(&who, act, Object::Everything).is_err(), "{who} {}", act.name());
            assert!(!rights.may_somewhere(&who, act));
        }
    }
}

#[test]
fn subjects_are_matched_whole_or_by_a_prefix_that_ends_in_a_star() {
    for (subject, who, wanted) in [
        ("uid:7", Principal::User(7), true),
        ("uid:7", Principal::User(70), false),
        ("spiffe://a.b/x", spiffe("spiffe://a.b/x"), true),
        ("spiffe://a.b/x", spiffe("spiffe://a.b/x/y"), false),
        ("spiffe://a.b/x/*", spiffe("spiffe://a.b/x/y"), true),
        ("spiffe://a.b/x/*", spiffe("spiffe://a.b/xx"), false),
        ("spiffe://a.b/*", spiffe("spiffe://a.b.c/x"), false),
        (
            "oidc:https://i#repo:a",
            Principal::Oidc { issuer: "https://i".into(), subject: "repo:a".into() },
            true,
        ),
        (
            "oidc:https://i#repo:*",
            Principal::Oidc { issuer: "https://i".into(), subject: "repo:a".into() },
            true,
        ),
        (
            "oidc:https://i#repo:*",
            Principal::Oidc { issuer: "https://j".into(), subject: "repo:a".into() },
            false,
        ),
        ("oidc:https://i#*", spiffe("spiffe://i/x"), false),
    ] {
        let rights = Rights::new(OWNER).with([rule(Role::Auditor, subject, None)]);
        let granted = rights.judge(&who, Act::Read, Object::Everything).is_ok();
        assert_eq!(granted, wanted, "{subject} {who}");
    }
    for bad in [
        "",
        "root",
        "uid:",
        "uid:-1",
        "uid:+1",
        "uid:x",
        "uid:4294967295",
        "uid:*",
        "spiffe://a.b",
        "spiffe://a.b*",
        "spiffe://*/x",
        "spiffe://a.b/*/x",
        "spiffe://a.b/x/",
        "oidc:https://i",
        "oidc:#x",
        "oidc:https://i#",
        "oidc:https://i#a*b",
        "*",
    ] {
        assert!(Subject::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_territory_that_holds_nothing_or_anything_is_refused() {
    let told = |profiles: &[&str], paths: &[&str]| {
        let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        Territory::of(&own(profiles), &own(paths)).map_err(|(key, _)| key)
    };
    assert_eq!(told(&[], &[]), Err("profiles"));
    assert_eq!(told(&["a*b"], &[]), Err("profiles"));
    assert_eq!(told(&[""], &[]), Err("profiles"));
    for bad in ["", "shop/", "/shop//", "/a/../b", "*"] {
        assert_eq!(told(&[], &[bad]), Err("paths"), "{bad:?}");
    }
    assert!(told(&["*"], &[]).is_ok() && told(&[], &["/"]).is_ok());
}

fn names() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["job", "tool-a", "tool-b", "web"]).prop_map(str::to_owned)
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let subject = prop::sample::select(vec!["uid:1", "uid:2", "spiffe://a.b/x", "spiffe://a.b/*"]);
    let role = prop::sample::select(Role::ALL.to_vec());
    let land = prop::collection::vec(names(), 1..3);
    let rule = (role, subject, land).prop_map(|(role, subject, land)| Rule {
        role,
        subjects: vec![Subject::parse(subject).expect("a subject")],
        territory: (role == Role::Orchestrator)
            .then(|| Territory::of(&land, &[]).expect("some land")),
    });
    prop::collection::vec(rule, 0..6)
}

proptest! {
    /// P8: less is never more. Whatever is granted without a rule is granted with it, and what nobody is
    /// told to hold nobody holds.
    #[test]
    fn p8_a_rule_less_never_grants_more(
        rules in rules(),
        less in any::<prop::sample::Index>(),
        uid in 1_u32..4,
        act in prop::sample::select(Act::ALL.to_vec()),
        name in names(),
    ) {
        let who = Principal::User(uid);
        let object = Object::Profile { name: &name, path: "/p" };
        let mut fewer = rules.clone();
        if !fewer.is_empty() {
            fewer.remove(less.index(rules.len()));
        }
        let granted = |rules: Vec<Rule>| Rights::new(OWNER).with(rules).judge(&who, act, object).is_ok();
        prop_assert!(!granted(Vec::new()));
        prop_assert!(!granted(fewer) || granted(rules.clone()));
        // An orchestrator's grant rests on a profile that its rule names.
        let orchestrated = matches!(act, Act::Begin | Act::Delegate | Act::Amend | Act::Heartbeat);
        if orchestrated && granted(rules.clone()) {
            let wide = |rule: &Rule| rule.role == Role::Orchestrator;
            prop_assert!(rules.iter().any(wide));
            let elsewhere = Object::Profile { name: "elsewhere", path: "/p" };
            prop_assert!(Rights::new(OWNER).with(rules).judge(&who, act, elsewhere).is_err());
        }
    }
}
