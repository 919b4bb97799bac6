//! The stories of `tests/scenarios`, each told to the registrar that is shipped.
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

use std::{fs, path::Path};

use mayfly_sim::scenario::{parse, play};

fn stories() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios");
    let files = fs::read_dir(folder).expect("tests/scenarios is there");
    let paths = files.map(|file| file.expect("a readable folder").path());
    let mut stories: Vec<_> = paths
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).expect("a readable story"))
        })
        .collect();
    stories.sort();
    stories
}

#[test]
fn every_story_holds() {
    let mut broken = Vec::new();
    for (name, text) in stories() {
        if let Err(why) = play(&text) {
            broken.push(format!("tests/scenarios/{name}.txt, {why}"));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_story_has_a_moral_and_says_what_follows() {
    let stories = stories();
    assert!(stories.len() >= 15, "only {} stories", stories.len());
    for (name, text) in stories {
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with(&format!("# {name}: ")), "{name} begins without its moral");
        let lines = parse(&text).expect("every_story_holds reads it too");
        assert!(lines.iter().any(|line| line.expected.is_some()), "{name} claims nothing");
    }
}

/// A story that expects the wrong thing must fail: each outcome of each story is replaced in turn.
#[test]
fn a_story_that_expects_something_else_fails() {
    for (name, text) in stories() {
        for (number, line) in text.lines().enumerate() {
            let Some((said, _)) = line.split_once("=>") else { continue };
            let wrong = format!("{said}=> released S99");
            let replaced = text.lines().enumerate();
            let replaced = replaced.map(|(at, line)| if at == number { &wrong } else { line });
            let changed = replaced.collect::<Vec<_>>().join("\n");
            let why = play(&changed).expect_err("a wrong expectation").line;
            assert_eq!(why, number + 1, "{name} fails in the wrong place");
        }
    }
}

#[test]
fn what_cannot_be_read_is_named_by_line() {
    for (text, what) in [
        ("begin T1", "it does not begin with `at`"),
        ("at soon begin T1", "`soon` is not a time such as `250ms` or `3s`"),
        ("at 5 begin T1", "`5` is not a time such as `250ms` or `3s`"),
        ("at 0", "nothing is done"),
        ("at 0 dance T1", "`dance` is nothing that can be done"),
        ("at 0 begin X1 lease=1s", "`X1` is not a name such as `T1`"),
        ("at 0 begin", "`begin` needs 1 words"),
        ("at 0 signed S1", "`S1` was not promised"),
        ("at 0 end T1 bored", "`bored` is no cause"),
        ("at 0 crash\nat 0 ask T1 x509", "the broker is down"),
        ("at 0 tick => ended T1", "`ended T1` did not happen; this did: nothing"),
        ("at 0 begin T1 lease=1s => nothing", "`began T1` happened besides"),
    ] {
        let error = play(text).expect_err(text);
        assert_eq!(error.what, what, "{text}");
        assert_eq!(error.line, text.lines().count(), "{text}");
    }
}
