//! What holds the costs: that the committed counts are whole, and that CI compares with them.
//!
//! The counting itself is `benches/counts.rs`, because it needs valgrind.
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

use std::{fs, path::Path};

use serde_json::Value;

/// The paths that are held, and whether there is a signature in them.
const PATHS: [(&str, bool); 5] = [
    ("admit", false),
    ("jwt_grant", true),
    ("lint", false),
    ("registrar", false),
    ("x509_grant", true),
];

#[test]
fn r32_a_path_that_grows_by_a_tenth_fails_in_ci() {
    let counts: Value = serde_json::from_str(&read("benches/counts.json")).expect("JSON");
    assert_eq!(counts.get("profile").and_then(Value::as_str), Some("dev"), "the build of CI");
    let paths = counts.get("paths").and_then(Value::as_object).expect("paths");
    let held: Vec<&str> = paths.keys().map(String::as_str).collect();
    assert_eq!(held, PATHS.map(|(path, _)| path), "benches/counts.json has other paths");
    for (path, signs) in PATHS {
        let part = |name| paths[path].get(name).and_then(Value::as_u64).expect("a count");
        assert!(part("ours") > 0, "nothing was counted of `{path}`");
        assert_eq!(part("ring") > 0, signs, "`{path}` and its signature");
        let named = format!("\"{path}\" =>");
        assert!(read("benches/counts/paths.rs").contains(&named), "`{path}` is not counted");
    }
    assert!(read("benches/counts/baseline.rs").contains("GROWTH_MAX: f64 = 1.10;"));
}

#[test]
fn r32_ci_runs_the_gate() {
    let ci = read(".ci/run");
    let steps = ci.lines().find(|line| line.starts_with("all=(")).expect("steps");
    assert!(steps.split([' ', '(', ')']).any(|step| step == "counts"), "{steps}");
    let (_, step) = ci.split_once("step_counts() {").expect("the step");
    let (step, _) = step.split_once("\n}").expect("its end");
    assert!(step.contains("--profile dev --bench counts"), "another build: {step}");
    assert!(!step.contains("--bless"), "a gate that forgives everything: {step}");
}

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::read_to_string(root.join(path)).expect(path)
}
