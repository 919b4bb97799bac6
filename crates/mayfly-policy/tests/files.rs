//! Profile files, good and bad.
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

use mayfly_core::{Binding, PolicyEpoch, Span, TrustDomain};
use mayfly_policy::{InvalidProfiles, Problem, Profiles, limits};

const WHOLE: &str = r#"
[[profile]]
name = "web"
path = "/shop/web"
selectors = ["unix:uid:1000", "unix:path:/usr/bin/web"]
owner = "team:shop"
binding = "cgroup"
identity = "stable"
hint = "internal"
x509_ttl = "1h30m"
jwt_ttl = "30s"
max_task = "8h"
federates_with = ["partner.example", "spiffe://OTHER.example"]

[[profile]]
name = "batch"
path = "/shop/batch"
selectors = ["unix:gid:7"]
owner = "team:shop"

[[profile]]
name = "sandbox"
path = "/sandbox"
owner = "team:ml"
binding = "socket"
"#;

#[test]
fn a_whole_profile_becomes_the_terms_it_says() {
    let profiles = parse(WHOLE).expect("a good file");
    let names: Vec<_> = profiles.names().collect();
    assert_eq!(names, ["web", "batch", "sandbox"]);
    let web = profiles.terms("web").expect("it is there");
    assert_eq!(web.path, "/shop/web");
    assert_eq!(web.owner, "team:shop");
    assert_eq!(web.binding, Binding::Cgroup);
    assert!(web.stable_identity);
    assert_eq!(web.hint, "internal");
    assert_eq!(web.x509_ttl, Span::from_secs(5400));
    assert_eq!(web.jwt_ttl, Span::from_secs(30));
    assert_eq!(web.task_ttl, Some(Span::from_secs(8 * 3600)));
    let foreign: Vec<_> = web.federates_with.iter().map(|td| td.as_str()).collect();
    assert_eq!(foreign, ["partner.example", "other.example"]);
}

#[test]
fn what_a_profile_leaves_out_has_the_safe_default() {
    let profiles = parse(WHOLE).expect("a good file");
    let batch = profiles.terms("batch").expect("it is there");
    assert_eq!(batch.binding, Binding::Process);
    assert!(!batch.stable_identity);
    assert_eq!(batch.hint, "");
    assert_eq!(batch.x509_ttl, mayfly_core::limits::X509_TTL_DEFAULT);
    assert_eq!(batch.jwt_ttl, mayfly_core::limits::JWT_TTL_DEFAULT);
    assert_eq!(batch.task_ttl, None);
    assert!(batch.federates_with.is_empty());
}

#[test]
fn profiles_may_stand_in_a_document_that_holds_other_things() {
    let text = format!("trust_domain = \"example.org\"\n[listen]\nmode = 0o600\n{WHOLE}");
    assert_eq!(parse(&text).expect("a good file").names().len(), 3);
    assert_eq!(parse("").expect("no profiles").names().len(), 0);
}

#[test]
fn every_malformed_value_is_refused_at_its_line_and_key() {
    // The changed line is the fifth of the file, or the profile begins at the first.
    for (key, value) in [
        ("name", "\"\""),
        ("name", "\"Web\""),
        ("name", "\"a b\""),
        ("name", "\"a/b\""),
        ("name", "7"),
        ("path", "\"\""),
        ("owner", "\"\""),
        ("owner", "\"  \""),
        ("owner", "\"a\\nb\""),
        ("owner", "[]"),
        ("binding", "\"vm\""),
        ("binding", "\"Process\""),
        ("binding", "true"),
        ("identity", "\"shared\""),
        ("hint", "\"a\\u0000b\""),
        ("x509_ttl", "300"),
        ("x509_ttl", "\"5 minutes\""),
        ("x509_ttl", "\"1s\""),
        ("x509_ttl", "\"25h\""),
        ("x509_ttl", "\"2s500ms\""),
        ("jwt_ttl", "\"0s\""),
        ("jwt_ttl", "\"-5m\""),
        ("max_task", "\"1s\""),
        ("max_task", "\"367d\""),
        ("max_task", "\"\""),
        ("selectors", "\"unix:uid:1\""),
        ("selectors", "[]"),
        ("selectors", "[1]"),
        ("selectors", "[\"\"]"),
        ("selectors", "[\"uid:1\"]"),
        ("selectors", "[\"unix:uid:\"]"),
        ("selectors", "[\"unix:uid:root\"]"),
        ("selectors", "[\"unix:uid:007\"]"),
        ("selectors", "[\"unix:uid:4294967296\"]"),
        ("selectors", "[\"unix:gid:-1\"]"),
        ("selectors", "[\"unix:path:bin/web\"]"),
        ("selectors", "[\"unix:cgroup:system.slice\"]"),
        ("selectors", "[\"unix:sha256:ABC\"]"),
        ("selectors", "[\"container:id:8f1a2b3c4d5e\"]"),
        ("selectors", "[\"container:engine:lxc\"]"),
        ("selectors", "[\"container:engine:docker\", \"container:engine:podman\"]"),
        ("selectors", "[\"k8s:pod-uid:3a5b2a0c_1f6e_4c0b_9d5e_7c1d2e3f4a5b\"]"),
        ("selectors", "[\"unix:uid:1\", \"unix:uid:1\"]"),
        ("selectors", "[\"unix:uid:1\", \"unix:uid:2\"]"),
        ("selectors", "[\"k8s:ns:default\"]"),
        ("federates_with", "\"partner.example\""),
        ("federates_with", "[\"\"]"),
        ("federates_with", "[\"a/b\"]"),
        ("federates_with", "[\"example.org\"]"),
        ("federates_with", "[\"a.example\", \"A.example\"]"),
    ] {
        let problem = only_problem(&with(key, value));
        assert_eq!(problem.field.as_deref(), Some(key), "{key} = {value}");
        assert_eq!(problem.line, line_of(key), "{key} = {value}: {problem}");
        assert!(!problem.remedy.is_empty(), "{key} = {value}");
    }
}

#[test]
fn every_malformed_spiffe_path_is_refused() {
    let long = format!("/{}", "a".repeat(2048));
    for path in [
        "shop",
        "/",
        "//",
        "/a//b",
        "/a/",
        "/./a",
        "/a/..",
        "/a/../b",
        "/.",
        "/..",
        "/a%41",
        "/a:80",
        "/u@a",
        "/a?q",
        "/a#f",
        "/a b",
        "/a+b",
        "/a~b",
        "/ä",
        "/a\\u0000b",
        "/task",
        "/a/task/b",
        "spiffe://example.org/a",
        &long,
    ] {
        let problem = only_problem(&with("path", &format!("\"{path}\"")));
        assert_eq!(problem.field.as_deref(), Some("path"), "{path}");
    }
}

#[test]
fn every_byte_that_a_spiffe_path_forbids_is_refused() {
    for byte in 0x20..=0x7e_u8 {
        let c = char::from(byte);
        if matches!(c, '"' | '\\' | '/') {
            continue; // The first two belong to TOML, the third makes segments.
        }
        let accepted = parse(&with("path", &format!("\"/a{c}b\""))).is_ok();
        let allowed = c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        assert_eq!(accepted, allowed, "{c:?}");
    }
}

#[test]
fn every_well_formed_spiffe_path_is_accepted() {
    // 2048 bytes in all: scheme and trust domain, this path, and what the broker appends.
    let own = "spiffe://example.org".len() + "/task/".len() + 32;
    let longest = format!("/{}", "a".repeat(2048 - own - 1));
    for path in ["/a", "/.path", "/..path", "/...", "/Up/CASE", "/a-b_c.d/1", "/tasks", &longest] {
        assert!(parse(&with("path", &format!("\"{path}\""))).is_ok(), "{path}");
    }
    let longer = format!("{longest}a");
    assert!(parse(&with("path", &format!("\"{longer}\""))).is_err());
}

#[test]
fn a_missing_key_is_named_at_the_line_of_its_profile() {
    for key in ["name", "path", "owner", "selectors"] {
        let problem = only_problem(&without(key));
        assert_eq!(problem.field.as_deref(), Some(key));
        assert_eq!(problem.line, 1, "{problem}");
    }
}

#[test]
fn an_unknown_key_is_named_with_the_one_that_was_meant() {
    for (typed, meant) in [
        ("x509-ttl", Some("x509_ttl")),
        ("selector", Some("selectors")),
        ("idenitty", Some("identity")),
        ("Hint", Some("hint")),
        ("delegate_to", Some("delegates_to")),
        ("on-failure", Some("on_failure")),
        ("colour", None),
    ] {
        let problem = only_problem(&format!("{GOOD}{typed} = \"x\"\n"));
        assert_eq!(problem.line, 6);
        assert!(problem.why.contains(typed), "{problem}");
        match meant {
            Some(meant) => assert_eq!(problem.remedy, format!("did you mean `{meant}`?")),
            None => assert!(problem.remedy.starts_with("the keys are"), "{problem}"),
        }
    }
}

#[test]
fn two_profiles_with_one_name_are_refused() {
    let problem = only_problem(&format!("{GOOD}{GOOD}"));
    assert_eq!((problem.line, problem.field.as_deref()), (7, Some("name")));
    assert!(problem.why.contains("line 2"), "{problem}");
}

#[test]
fn the_brokers_own_name_and_path_are_refused_and_what_only_looks_like_them_is_not() {
    let problem = only_problem(&with("name", "\"mayfly\""));
    assert_eq!(problem.field.as_deref(), Some("name"));
    assert!(problem.why.contains("the broker's own profile"), "{problem}");
    for path in ["/mayfly/broker", "/mayfly/broker/sub"] {
        let problem = only_problem(&with("path", &format!("\"{path}\"")));
        assert_eq!(problem.field.as_deref(), Some("path"));
        assert!(problem.why.contains("belongs to the broker itself"), "{problem}");
    }
    for (key, value) in [
        ("name", "\"mayfly-web\""),
        ("path", "\"/mayfly\""),
        ("path", "\"/mayfly/brokers\""),
        ("path", "\"/a/mayfly/broker\""),
    ] {
        assert!(parse(&with(key, value)).is_ok(), "{key} = {value}");
    }
}

#[test]
fn two_profiles_with_one_hint_are_refused_and_both_named() {
    let other = GOOD.replace("\"web\"", "\"api\"");
    let text = format!("{GOOD}hint = \"x\"\n{other}hint = \"x\"\n");
    let problem = only_problem(&text);
    assert_eq!(problem.profile.as_deref(), Some("api"));
    assert!(problem.why.contains("`web`"), "{problem}");
    let empty = format!("{GOOD}hint = \"\"\n{other}hint = \"\"\n");
    assert!(parse(&empty).is_ok(), "an empty hint is none");
}

#[test]
fn a_hint_has_at_most_1024_bytes() {
    let with_hint = |len| with("hint", &format!("\"{}\"", "h".repeat(len)));
    assert!(parse(&with_hint(1024)).is_ok());
    assert_eq!(only_problem(&with_hint(1025)).field.as_deref(), Some("hint"));
}

#[test]
fn only_a_socket_of_its_own_needs_no_selectors() {
    for binding in ["process", "cgroup", "lineage", "systemd", "container", "pod"] {
        let text = without("selectors") + &format!("binding = \"{binding}\"\n");
        assert_eq!(only_problem(&text).field.as_deref(), Some("selectors"));
    }
    for binding in ["socket", "lease"] {
        let text = without("selectors") + &format!("binding = \"{binding}\"\n");
        assert!(parse(&text).is_ok(), "{binding}");
    }
}

#[test]
fn every_problem_of_a_file_is_told_in_its_order() {
    let text = r#"[[profile]]
name = "Web"
path = "web"
selectors = ["unix:uid:x", "unix:gid:1", "nonsense"]
colour = "red"

[[profile]]
name = "api"
path = "/api"
selectors = ["unix:uid:1"]
jwt_ttl = "soon"
"#;
    let invalid = parse(text).expect_err("a bad file");
    let told: Vec<_> =
        invalid.problems().iter().map(|problem| (problem.line, problem.field.as_deref())).collect();
    assert_eq!(
        told,
        [
            (1, Some("owner")),
            (2, Some("name")),
            (3, Some("path")),
            (4, Some("selectors")),
            (4, Some("selectors")),
            (5, None),
            (7, Some("owner")),
            (11, Some("jwt_ttl")),
        ]
    );
    assert_eq!(invalid.to_string().lines().count(), 8);
}

#[test]
fn a_problem_reads_as_a_sentence_with_its_remedy() {
    let invalid = parse(&with("x509_ttl", "\"5 minutes\"")).expect_err("a bad file");
    assert_eq!(
        invalid.to_string(),
        "line 6: profile `web`: `x509_ttl`: `5 minutes` is not a duration; write it like \"5m\", \
         \"30s\" or \"1h30m\""
    );
}

#[test]
fn a_message_never_carries_control_characters_of_the_file() {
    let text = with("name", "\"\\u001b[2J\\nroot\"");
    let shown = parse(&text).expect_err("a bad file").to_string();
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
}

#[test]
fn a_document_that_is_not_toml_is_refused_at_its_line() {
    for text in ["x = 1\n[[profile]\n", "x = 1\nname = \"a\n", "a = 1\na = 2\n"] {
        let invalid = parse(text).expect_err("not TOML");
        assert_eq!(invalid.problems().first().map(|p| p.line), Some(2), "{invalid}");
    }
}

#[test]
fn profiles_in_the_wrong_shape_are_refused() {
    for text in ["profile = 1", "[profile]\nname = \"a\"", "profile = [1]", "[[profiles]]"] {
        assert!(parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_file_that_is_too_large_is_refused_without_being_read() {
    let text = " ".repeat(limits::FILE_BYTES_MAX + 1);
    assert!(only_problem(&text).why.contains("too long"));
}

#[test]
fn a_thousand_mistakes_are_counted_rather_than_printed() {
    let invalid = parse(&"[[profile]]\n".repeat(1000)).expect_err("a bad file");
    assert_eq!(invalid.problems().len(), limits::PROBLEMS_MAX);
    assert_eq!(invalid.untold(), 4 * 1000 - limits::PROBLEMS_MAX);
    assert!(invalid.to_string().ends_with("and 3900 more"));
}

const GOOD: &str =
    "[[profile]]\nname = \"web\"\npath = \"/web\"\nselectors = [\"unix:uid:1\"]\nowner = \"o\"\n";

/// The good profile with `key` set to `value`, in place or as line 6.
fn with(key: &str, value: &str) -> String {
    let mut found = false;
    let mut text: String = GOOD
        .lines()
        .map(|line| {
            if line.starts_with(&format!("{key} =")) {
                found = true;
                format!("{key} = {value}\n")
            } else {
                format!("{line}\n")
            }
        })
        .collect();
    if !found {
        text += &format!("{key} = {value}\n");
    }
    text
}

fn without(key: &str) -> String {
    GOOD.lines().filter(|line| !line.starts_with(key)).map(|line| format!("{line}\n")).collect()
}

fn line_of(key: &str) -> usize {
    GOOD.lines().position(|line| line.starts_with(&format!("{key} ="))).map_or(6, |at| at + 1)
}

fn parse(text: &str) -> Result<Profiles, InvalidProfiles> {
    Profiles::parse(text, &our_domain(), PolicyEpoch(1))
}

fn our_domain() -> TrustDomain {
    TrustDomain::parse("example.org").expect("a good name")
}

fn only_problem(text: &str) -> Problem {
    let invalid = parse(text).expect_err(text);
    assert_eq!(invalid.problems().len(), 1, "{text}\n{invalid}");
    invalid.problems().first().cloned().expect("one problem")
}
