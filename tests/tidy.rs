//! The house rules that a compiler does not check: who may depend on whom, and whether the papers
//! agree with the code.
//!
//! Every check is a function from text to complaints, so that each can be shown a planted fault
//! below. Nothing here needs a tool beyond cargo, or the network.
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use mayfly_core::Denial;

/// Which of our crates each of our crates may name. Whoever is not mentioned may name nobody.
const ARROWS: [(&str, &[&str]); 11] = [
    ("mayfly-core", &[]),
    ("mayfly-proto", &[]),
    ("mayfly-policy", &["mayfly-core"]),
    ("mayfly-attest", &["mayfly-core"]),
    ("mayfly-sign", &["mayfly-core"]),
    ("mayfly-audit", &["mayfly-core", "mayfly-proto"]),
    ("mayfly-store", &["mayfly-core", "mayfly-proto", "mayfly-audit"]),
    ("mayfly-serve", &["mayfly-core", "mayfly-proto", "mayfly-attest"]),
    ("mayfly-verify", &["mayfly-core", "mayfly-proto"]),
    (
        "mayfly",
        &[
            "mayfly-core",
            "mayfly-proto",
            "mayfly-policy",
            "mayfly-attest",
            "mayfly-sign",
            "mayfly-store",
            "mayfly-audit",
            "mayfly-serve",
            "mayfly-verify",
        ],
    ),
    ("mayfly-sim", &["mayfly-core"]),
];

/// Third parties that only these of our crates may name themselves. `deny.toml` says the same.
const USERS: [(&str, &[&str]); 8] = [
    ("sled", &["mayfly-store"]),
    ("etcd-client", &["mayfly-store"]),
    ("rcgen", &["mayfly-sign"]),
    // Sign signs with it; verify checks signatures; audit and store hash with it.
    ("ring", &["mayfly-audit", "mayfly-sign", "mayfly-store", "mayfly-verify"]),
    ("x509-parser", &["mayfly-sign", "mayfly-verify"]),
    ("tonic", &["mayfly", "mayfly-proto", "mayfly-serve", "mayfly-verify"]),
    ("rustls", &["mayfly", "mayfly-verify"]),
    ("cedar-policy", &["mayfly-policy"]),
];

/// What must not be linked into a crate by any road. The code that parses strangers' bytes cannot
/// name a key or a database; the code that judges and the code that signs cannot wait or call out.
const OUT_OF_REACH: [(&str, &[&str]); 6] = [
    ("mayfly-policy", &["tokio", "tonic", "sled", "ring", "rcgen"]),
    ("mayfly-attest", &["tonic", "sled", "ring", "rcgen"]),
    ("mayfly-sign", &["tokio", "tonic", "sled"]),
    ("mayfly-audit", &["tokio-rustls", "sled", "rcgen"]),
    ("mayfly-serve", &["ring", "rcgen", "rustls", "sled"]),
    ("mayfly-verify", &["sled", "rcgen"]),
];

/// What a clean clone with Rust and a C compiler could not build.
const NOWHERE: [&str; 6] =
    ["aws-lc-sys", "openssl-sys", "native-tls", "cmake", "protobuf-src", "protoc-bin-vendored"];

const LINES_MAX: usize = 600;

#[test]
fn no_crate_names_one_that_it_may_not() {
    let complaints = forbidden_arrows(&direct_dependencies());
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn a_planted_arrow_is_seen() {
    let planted = |from: &str, to: &str| BTreeMap::from([(from.into(), set(&[to]))]);
    for (from, to, complaint) in [
        ("mayfly-core", "mayfly-store", "mayfly-core may not depend on mayfly-store"),
        ("mayfly-core", "serde", "mayfly-core may not depend on serde"),
        ("mayfly-store", "mayfly-sim", "mayfly-store may not depend on mayfly-sim"),
        ("mayfly-new", "serde", "mayfly-new is not in the table of arrows"),
        ("mayfly-audit", "sled", "sled may be named only by mayfly-store, not by mayfly-audit"),
    ] {
        assert_eq!(forbidden_arrows(&planted(from, to)), [complaint]);
    }
}

#[test]
fn nothing_out_of_reach_is_linked_by_a_detour() {
    let complaints = detours(&direct_dependencies(), &locked_dependencies());
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn a_planted_detour_is_seen() {
    let direct = BTreeMap::from([("mayfly-serve".to_owned(), set(&["nice"]))]);
    let locked = BTreeMap::from([
        ("nice".to_owned(), set(&["nicer"])),
        ("nicer".to_owned(), set(&["nice", "ring"])),
        ("ring".to_owned(), set(&[])),
    ]);
    assert_eq!(detours(&direct, &locked), ["mayfly-serve reaches ring"]);
}

#[test]
fn the_build_needs_nothing_but_rust_and_a_c_compiler() {
    let locked = locked_dependencies();
    let found: Vec<_> = NOWHERE.iter().filter(|name| locked.contains_key(**name)).collect();
    assert!(found.is_empty(), "Cargo.lock holds {found:?}");
}

#[test]
fn deny_toml_says_the_same_about_third_parties() {
    let (direct, locked) = (direct_dependencies(), locked_dependencies());
    let deny = read("deny.toml");
    for (name, _) in USERS.iter().filter(|(name, _)| locked.contains_key(*name)) {
        let mut wrappers: Vec<&str> = locked
            .iter()
            .map(|(from, to)| (from, direct.get(from).unwrap_or(to)))
            .filter(|(_, to)| to.contains(*name))
            .map(|(from, _)| from.as_str())
            .collect();
        wrappers.sort_unstable();
        let line = format!("{{ crate = \"{name}\", wrappers = {wrappers:?} }}");
        assert!(deny.contains(&line), "deny.toml lacks the line\n{line}");
    }
    for name in NOWHERE {
        assert!(deny.contains(&format!("{{ crate = \"{name}\" }}")), "deny.toml allows {name}");
    }
}

#[test]
fn the_core_has_no_std_outside_its_tests() {
    let root = read("crates/mayfly-core/src/lib.rs");
    assert!(root.contains("#![no_std]"), "mayfly-core is not `no_std`");
    for (path, text) in sources("crates/mayfly-core/src") {
        assert!(!links_std(&text), "{} has `extern crate std` outside tests", path.display());
    }
    assert!(links_std("extern crate std;") && !links_std("#[cfg(test)]\nextern crate std;"));
}

#[test]
fn every_property_is_upheld_in_the_core_and_shown_by_a_test() {
    let listed = properties(&read("docs/invariants.md"));
    let gapless: BTreeSet<u32> = (1..).take(listed.len()).collect();
    assert!(!listed.is_empty(), "docs/invariants.md names no property P<n>");
    assert_eq!(listed, gapless, "docs/invariants.md skips a property");
    let core: String = sources("crates/mayfly-core/src").into_values().map(before_tests).collect();
    let tests: String =
        all_sources().into_iter().filter_map(|(path, text)| test_part(&path, text)).collect();
    for property in listed {
        assert!(properties(&core).contains(&property), "P{property} is not named in mayfly-core");
        assert!(properties(&tests).contains(&property), "P{property} is not named in any test");
    }
    assert_eq!(properties("P1, **P10** and not UP2, P3x or SP4"), BTreeSet::from([1, 10]));
}

#[test]
fn every_requirement_that_is_done_names_a_test_that_exists() {
    let text = read("docs/requirements.md");
    let complaints = unproven(&text, &functions());
    assert!(text.lines().any(is_done), "docs/requirements.md says of nothing that it is done");
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn a_requirement_without_a_test_is_seen() {
    let known = set(&["a_task_ends", "test_end"]);
    for good in [
        "| R1 | it ends | done | `a_task_ends` |",
        "| R1 | it ends | Done: `tests/e2e.rs::a_task_ends`, `test_end` |",
        "| R2 | later | open | |",
        "| R2 | some of it | partly | no command yet |",
        "prose about what is done",
    ] {
        assert_eq!(unproven(good, &known), Vec::<String>::new(), "{good}");
    }
    for bad in [
        "| R1 | it ends | done | |",
        "| R1 | it ends | done | `no_such_test` |",
        "- R1 done: `a_task_ends`, `gone_test`",
        "| R2 | some of it | partly | `gone_test` |",
    ] {
        assert_eq!(unproven(bad, &known).len(), 1, "{bad}");
    }
}

#[test]
fn every_denial_is_listed_with_its_code() {
    let text = read("docs/denials.md");
    let codes: BTreeSet<&str> = Denial::ALL.iter().map(|denial| denial.code()).collect();
    assert_eq!(codes.len(), Denial::ALL.len(), "two denials share a code");
    for code in &codes {
        assert!(text.contains(&format!("`{code}`")), "docs/denials.md does not list `{code}`");
    }
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    for row in rows {
        assert!(codes.contains(row), "docs/denials.md lists `{row}`, which is no denial");
    }
}

#[test]
fn decisions_are_numbered_without_a_gap() {
    let folder = root().join("docs/decisions");
    let mut names: Vec<String> = fs::read_dir(&folder)
        .expect("docs/decisions is there")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".md"))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "docs/decisions holds no decision");
    for (n, name) in (1..).zip(&names) {
        assert!(name.starts_with(&format!("{n:04}-")), "decision {n:04} is missing before {name}");
    }
}

#[test]
fn no_source_file_is_longer_than_its_bound() {
    for (path, text) in all_sources() {
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines; split it by noun", path.display());
    }
}

#[test]
fn what_is_left_to_do_has_an_issue() {
    for (path, text) in all_sources() {
        for (n, line) in (1..).zip(text.lines()) {
            assert!(!is_loose_end(line), "{}:{n}: name the issue: {line}", path.display());
        }
    }
    let word = concat!("TO", "DO");
    for (line, loose) in [
        (format!("// {word}: later"), true),
        (format!("// {word}(me): later"), true),
        (format!("// {word}(#): later"), true),
        (format!("// {word}(#12): later"), false),
        (format!("let MY{word}S = 1;"), false),
    ] {
        assert_eq!(is_loose_end(&line), loose, "{line}");
    }
}

#[test]
fn every_crate_opens_with_an_essay() {
    for (name, _) in ARROWS {
        let text = read(&format!("crates/{name}/src/lib.rs"));
        let essay = text.lines().take_while(|line| line.starts_with("//!")).count();
        assert!(essay >= 4, "crates/{name}/src/lib.rs opens with {essay} lines of essay");
    }
}

// ---- checks ----

type Graph = BTreeMap<String, BTreeSet<String>>;

fn forbidden_arrows(direct: &Graph) -> Vec<String> {
    let mut complaints = Vec::new();
    for (from, targets) in direct {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| name == from) else {
            complaints.push(format!("{from} is not in the table of arrows"));
            continue;
        };
        for to in targets {
            let ours = to == "mayfly" || to.starts_with("mayfly-");
            // The core depends on nothing at all, and so neither on third parties.
            if (ours || from == "mayfly-core") && !allowed.contains(&to.as_str()) {
                complaints.push(format!("{from} may not depend on {to}"));
            }
            let users = USERS.iter().find(|(name, _)| name == to);
            if let Some((_, users)) = users.filter(|(_, users)| !users.contains(&from.as_str())) {
                let users = users.join(", ");
                complaints.push(format!("{to} may be named only by {users}, not by {from}"));
            }
        }
    }
    complaints
}

fn detours(direct: &Graph, locked: &Graph) -> Vec<String> {
    let mut complaints = Vec::new();
    for (from, forbidden) in OUT_OF_REACH {
        let mut reached = BTreeSet::new();
        let mut next: Vec<&str> = vec![from];
        while let Some(name) = next.pop() {
            // Of our own crates the lock file mixes in what only their tests need.
            let targets = direct.get(name).or_else(|| locked.get(name));
            for to in targets.into_iter().flatten() {
                if reached.insert(to.as_str()) {
                    next.push(to);
                }
            }
        }
        let found = forbidden.iter().filter(|name| reached.contains(**name));
        complaints.extend(found.map(|name| format!("{from} reaches {name}")));
    }
    complaints
}

fn links_std(text: &str) -> bool {
    let mut before = "";
    for line in text.lines() {
        if line.trim() == "extern crate std;" && before.trim() != "#[cfg(test)]" {
            return true;
        }
        before = line;
    }
    false
}

/// Every `P<n>` that stands alone.
fn properties(text: &str) -> BTreeSet<u32> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter_map(|word| word.strip_prefix('P'))
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// Whether this line is about a requirement and says that it is done.
fn is_done(line: &str) -> bool {
    says(line, "done")
}

/// Whether this line is about a requirement and holds `word`.
fn says(line: &str, wanted: &str) -> bool {
    let words = || line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '`');
    let is_number = |rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit());
    let names = words().any(|word| word.strip_prefix('R').is_some_and(is_number));
    names && words().any(|word| word.eq_ignore_ascii_case(wanted))
}

/// Complains about a line that names a test that is not there, or that says done and names none.
fn unproven(text: &str, functions: &BTreeSet<String>) -> Vec<String> {
    let mut complaints = Vec::new();
    for line in text.lines().filter(|line| says(line, "done") || says(line, "partly")) {
        let tests: Vec<&str> = line
            .split('`')
            .skip(1)
            .step_by(2)
            .map(|quoted| quoted.rsplit("::").next().unwrap_or(quoted))
            .filter(|name| is_test_name(name))
            .collect();
        let missing: Vec<_> = tests.iter().filter(|name| !functions.contains(**name)).collect();
        if (tests.is_empty() && is_done(line)) || !missing.is_empty() {
            complaints.push(format!("no test {missing:?} for: {line}"));
        }
    }
    complaints
}

fn is_test_name(word: &str) -> bool {
    let fits = |b| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_');
    word.contains('_') && word.bytes().all(fits)
}

fn is_loose_end(line: &str) -> bool {
    let word = concat!("TO", "DO");
    line.match_indices(word).any(|(at, _)| {
        let (before, rest) = line.split_at(at);
        let rest = rest.trim_start_matches(word);
        let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let alone = !inside(before.chars().next_back()) && !inside(rest.chars().next());
        let issue = rest.strip_prefix("(#").and_then(|rest| rest.split_once(')'));
        alone && issue.is_none_or(|(n, _)| n.parse::<u32>().is_err())
    })
}

// ---- what is there ----

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    let text = fs::read_to_string(root().join(path));
    assert!(text.is_ok(), "{path} is missing or cannot be read: {text:?}");
    text.expect("it was read")
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// What each of our crates names for other than its tests.
fn direct_dependencies() -> Graph {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo speaks JSON");
    let text = |value: &serde_json::Value, key| {
        value.get(key).and_then(serde_json::Value::as_str).expect(key).to_owned()
    };
    let list = |value: &serde_json::Value, key| {
        value.get(key).and_then(serde_json::Value::as_array).expect(key).clone()
    };
    list(&metadata, "packages")
        .iter()
        .map(|package| {
            let normal = list(package, "dependencies")
                .iter()
                .filter(|dependency| dependency.get("kind").is_none_or(|kind| kind != "dev"))
                .map(|dependency| text(dependency, "name"))
                .collect();
            (text(package, "name"), normal)
        })
        .collect()
}

/// Cargo.lock as a graph of names; versions of one name are taken together.
fn locked_dependencies() -> Graph {
    let mut graph = Graph::new();
    for package in read("Cargo.lock").split("[[package]]").skip(1) {
        let quoted = |line: &str| line.split('"').nth(1).unwrap_or_default().to_owned();
        let name = package.lines().find(|line| line.starts_with("name = ")).map(quoted);
        let dependencies = package
            .lines()
            .skip_while(|line| !line.starts_with("dependencies = ["))
            .skip(1)
            .take_while(|line| *line != "]")
            .map(|line| quoted(line).split(' ').next().unwrap_or_default().to_owned());
        graph.entry(name.expect("a package has a name")).or_default().extend(dependencies);
    }
    graph
}

/// Every file below `folder` that people write as code, generated and foreign ones left out.
fn sources(folder: &str) -> BTreeMap<PathBuf, String> {
    const KINDS: [&str; 8] = ["rs", "py", "go", "java", "js", "mjs", "sh", "proto"];
    const LEFT_OUT: [&str; 5] = ["target", "node_modules", "gen", ".venv", "__pycache__"];
    let mut found = BTreeMap::new();
    let mut next = vec![root().join(folder)];
    while let Some(folder) = next.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.expect("an entry").path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !LEFT_OUT.contains(&name.as_str()) {
                next.push(path);
            } else if path.extension().is_some_and(|e| KINDS.contains(&&*e.to_string_lossy())) {
                let text = fs::read_to_string(&path).expect("source is text");
                found.insert(path, text);
            }
        }
    }
    found
}

fn all_sources() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for folder in ["crates", "tests", "benches", "proto", "deploy"] {
        found.append(&mut sources(folder));
    }
    assert!(found.len() > 50, "the tree was not found");
    found
}

fn before_tests(text: String) -> String {
    text.split("#[cfg(test)]\nmod ").next().unwrap_or_default().to_owned()
}

/// What of a file is test: all of `tests/` and of the simulator, and the test modules elsewhere.
/// This file is none: it only talks about properties.
fn test_part(path: &Path, text: String) -> Option<String> {
    let shown = path.to_string_lossy();
    if shown.ends_with("tests/tidy.rs") {
        None
    } else if shown.contains("/tests/") || shown.contains("/mayfly-sim/") {
        Some(text)
    } else {
        text.split_once("#[cfg(test)]\nmod ").map(|(_, tests)| tests.to_owned())
    }
}

/// Every function in the tree that could be a test.
fn functions() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, text) in all_sources() {
        for keyword in ["fn ", "def ", "func ", "void "] {
            for rest in text.split(keyword).skip(1) {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
                names.insert(rest.split_at(end.unwrap_or(rest.len())).0.to_owned());
            }
        }
    }
    names
}
