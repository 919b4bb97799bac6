//! What a profile demands of its tasks and allows them, and who is accountable.
#![expect(
    clippy::expect_used,
    clippy::unwrap_in_result,
    reason = "a test that cannot run should stop, whatever it would have returned"
)]

use mayfly_core::{Bounds, Budget, Extent, OnFailure, Part, PolicyEpoch, Reach, Tier, TrustDomain};
use mayfly_policy::{InvalidProfiles, Problem, Profiles, limits};

const WHOLE: &str = r#"
owners = ["team:shop", "user:alice"]

[transfers]
"team:gone" = "team:shop"

[[profile]]
name = "web"
path = "/web"
selectors = ["unix:uid:1"]
owner = "team:web"
requires = ["intent", "audiences", "deadline"]
risk = "high"
on_failure = "quarantine"
delegates_to = ["tool-search"]
max_depth = 2
max_children = 5_0
[profile.scope]
actions = ["read", "write:*"]
resources = ["db/orders/*"]
tools = []
[profile.budget]
issuances = 1000
per_minute = 0x3c
attempts = 3

[[profile]]
name = "tool-search"
path = "/tools/search"
selectors = ["unix:uid:1"]
owner = "team:web"
"#;

const GOOD: &str =
    "[[profile]]\nname = \"web\"\npath = \"/web\"\nselectors = [\"unix:uid:1\"]\nowner = \"o\"\n";

fn parse(text: &str) -> Result<Profiles, InvalidProfiles> {
    let domain = TrustDomain::parse("example.org").expect("a good name");
    Profiles::parse(text, &domain, PolicyEpoch(1))
}

fn only_problem(text: &str) -> Problem {
    let invalid = parse(text).expect_err(text);
    assert_eq!(invalid.problems().len(), 1, "{text}\n{invalid}");
    invalid.problems().first().cloned().expect("one problem")
}

#[test]
fn r9_a_profile_says_what_its_tasks_declare_and_how_far_they_go() {
    let profiles = parse(WHOLE).expect("a good file");
    let bounds = &profiles.terms("web").expect("it is there").bounds;
    let named: Vec<_> = bounds.requires.iter().map(|part| part.name()).collect();
    assert_eq!(named, ["intent", "audiences", "deadline"]);
    assert!(bounds.requires.contains(&Part::Deadline));
    assert_eq!((bounds.tier, bounds.on_failure), (Tier::High, OnFailure::Quarantine));
    assert_eq!(bounds.reach, Reach { depth: 2, children: 50 });
    let wanted = Budget { issuances: Some(1000), per_minute: Some(60), attempts: Some(3) };
    assert_eq!(bounds.budget, wanted);
    assert_eq!(bounds.scope.actions, Extent::only(["read", "write:*"]));
    assert_eq!(bounds.scope.resources, Extent::only(["db/orders/*"]));
    assert_eq!(bounds.scope.audiences, Extent::Any, "a dimension left out is not bounded");
    assert_eq!(bounds.scope.tools, Extent::only([""; 0]), "an empty one permits nothing");
    let delegates_to = bounds.delegates_to.as_ref().expect("it is said");
    assert!(delegates_to.contains("tool-search") && delegates_to.len() == 1);
    let silent = &profiles.terms("tool-search").expect("it is there").bounds;
    assert_eq!(*silent, Bounds::default(), "silence demands nothing and bounds nothing");
}

#[test]
fn every_malformed_bound_is_refused_at_its_line_and_key() {
    for (text, field, line) in [
        ("requires = \"intent\"\n", "requires", 6),
        ("requires = [\"scope\"]\n", "requires", 6),
        ("requires = [\"intent\", \"intent\"]\n", "requires", 6),
        ("risk = \"extreme\"\n", "risk", 6),
        ("risk = 3\n", "risk", 6),
        ("on_failure = \"restart\"\n", "on_failure", 6),
        ("delegates_to = [\"nobody\"]\n", "delegates_to", 6),
        ("delegates_to = [\"web\", \"web\"]\n", "delegates_to", 6),
        ("delegates_to = \"web\"\n", "delegates_to", 6),
        ("max_depth = 33\n", "max_depth", 6),
        ("max_depth = -1\n", "max_depth", 6),
        ("max_depth = \"2\"\n", "max_depth", 6),
        ("max_children = 10001\n", "max_children", 6),
        ("max_children = 1.5\n", "max_children", 6),
        ("scope = [\"read\"]\n", "scope", 6),
        ("[profile.scope]\nactions = \"read\"\n", "scope.actions", 7),
        ("[profile.scope]\nactions = [\"\"]\n", "scope.actions", 7),
        ("[profile.scope]\ntools = [\"a*b\"]\n", "scope.tools", 7),
        ("[profile.scope]\ntools = [\"a\\u0007\"]\n", "scope.tools", 7),
        ("[profile.scope]\nresources = [\"a\", \"a\"]\n", "scope.resources", 7),
        ("budget = 7\n", "budget", 6),
        ("[profile.budget]\nissuances = 0\n", "budget.issuances", 7),
        ("[profile.budget]\nper_minute = 99999999999999999999\n", "budget.per_minute", 7),
        ("[profile.budget]\nattempts = true\n", "budget.attempts", 7),
    ] {
        let problem = only_problem(&format!("{GOOD}{text}"));
        assert_eq!(problem.field.as_deref(), Some(field), "{text}: {problem}");
        assert_eq!(problem.line, line, "{text}: {problem}");
        assert_eq!(problem.profile.as_deref(), Some("web"), "{text}: {problem}");
        assert!(!problem.remedy.is_empty(), "{text}");
    }
    let long = vec!["\"x\""; mayfly_core::limits::SCOPE_NAMES_MAX + 1].join(", ");
    let problem = only_problem(&format!("{GOOD}[profile.scope]\nactions = [{long}]\n"));
    assert!(problem.why.contains("too long"), "{problem}");
}

#[test]
fn what_was_nearly_right_is_named() {
    for (text, remedy) in [
        ("requires = [\"audience\"]\n", "did you mean \"audiences\"?"),
        ("risk = \"hgih\"\n", "did you mean \"high\"?"),
        ("on_failure = \"quarantin\"\n", "did you mean \"quarantine\"?"),
        ("delegates_to = [\"wed\"]\n", "did you mean `web`?"),
        ("[profile.scope]\naction = []\n", "did you mean `actions`?"),
        ("[profile.budget]\nper-minute = 1\n", "did you mean `per_minute`?"),
        ("[profile.budget]\nretries = 1\n", "the keys are issuances, per_minute, attempts"),
    ] {
        assert_eq!(only_problem(&format!("{GOOD}{text}")).remedy, remedy, "{text}");
    }
    let dashed = GOOD.replace("\"web\"", "\"tool-search\"");
    let problem = only_problem(&format!("{dashed}delegates_to = [\"tool-serch\"]\n"));
    assert_eq!(problem.remedy, "did you mean `tool-search`?");
}

#[test]
fn r8_a_life_beyond_the_tiers_cap_is_refused() {
    for (risk, key, life, good) in [
        ("low", "x509_ttl", "24h", true),
        ("medium", "x509_ttl", "1h", true),
        ("medium", "x509_ttl", "61m", false),
        ("high", "x509_ttl", "5m", true),
        ("high", "x509_ttl", "5m1s", false),
        ("high", "jwt_ttl", "6m", false),
    ] {
        let text = format!("{GOOD}risk = \"{risk}\"\n{key} = \"{life}\"\n");
        if good {
            assert!(parse(&text).is_ok(), "{text}");
            continue;
        }
        let problem = only_problem(&text);
        assert_eq!((problem.field.as_deref(), problem.line), (Some(key), 7), "{problem}");
        assert!(problem.why.contains(risk) && problem.remedy.contains("at most"), "{problem}");
    }
}

#[test]
fn r10_owners_are_those_listed_and_those_of_profiles() {
    let profiles = parse(WHOLE).expect("a good file");
    for (name, known) in [
        ("team:shop", true),
        ("user:alice", true),
        ("team:web", true),
        ("team:gone", false),
        ("", false),
        ("mayfly", false),
    ] {
        assert_eq!(profiles.knows_owner(name), known, "{name}");
    }
    assert_eq!(profiles.transfers().collect::<Vec<_>>(), [("team:gone", "team:shop")]);
    let left = profiles.left_of(["team:gone", "team:web", "user:bob", "user:bob", "mayfly"]);
    assert_eq!(left, ["team:gone", "user:bob"], "the broker's own tasks are nobody else's");
}

#[test]
fn r10_every_mistake_about_owners_is_refused_at_its_line() {
    for (text, field, line) in [
        ("owners = \"team:a\"\n", "owners", 1),
        ("owners = [\"\"]\n", "owners", 1),
        ("owners = [7]\n", "owners", 1),
        ("owners = [\"a\", \"a\"]\n", "owners", 1),
        ("transfers = [\"a\"]\n", "transfers", 1),
        ("[transfers]\n\"old\" = 7\n", "transfers", 2),
        ("[transfers]\n\"old\" = \"nobody\"\n", "transfers", 2),
        ("[transfers]\n\"o\" = \"o\"\n", "transfers", 2),
        ("owners = [\"old\"]\n[transfers]\n\"old\" = \"o\"\n", "transfers", 3),
    ] {
        let problem = only_problem(&format!("{text}{GOOD}"));
        assert_eq!((problem.field.as_deref(), problem.line), (Some(field), line), "{problem}");
        assert_eq!(problem.profile, None, "{problem}");
    }
    assert!(parse(&format!("[transfers]\n\"old\" = \"o\"\n{GOOD}")).is_ok());
    let many: String = (0..=limits::OWNERS_MAX).map(|n| format!("\"o{n}\" = \"o\"\n")).collect();
    let problem = only_problem(&format!("[transfers]\n{many}{GOOD}"));
    assert!(problem.why.contains("too many"), "{problem}");
    // While a profile is not understood, who is an owner is not known either.
    let problem = only_problem(&format!("[transfers]\n\"old\" = \"o\"\n{GOOD}risk = \"x\"\n"));
    assert_eq!(problem.field.as_deref(), Some("risk"));
}

#[test]
fn an_edition_knows_which_bounds_and_owners_have_changed() {
    let old = parse(WHOLE).expect("a good file");
    let text = WHOLE
        .replace("\"high\"", "\"medium\"")
        .replace("\"write:*\"", "\"write\"")
        .replace("issuances = 1000\n", "")
        .replace("delegates_to = [\"tool-search\"]\n", "")
        .replace(", \"user:alice\"", ", \"user:bob\"")
        .replace("\"team:gone\"", "\"user:alice\"");
    let new = parse(&text).expect("a good file");
    let told: Vec<_> = new.diff(&old).iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "~ web: risk: high -> medium",
            "~ web: delegates_to: [tool-search] -> any",
            "~ web: scope.actions: [read, write:*] -> [read, write]",
            "~ web: budget.issuances: 1000 -> none",
            "+ owner user:bob",
            "- owner user:alice, to team:shop",
        ]
    );
    assert!(new.diff(&new).is_empty());
}
