//! The fuzz targets' corpus, replayed without libFuzzer: what was once found stays found.
#![expect(
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot run should stop"
)]

use std::{fs, path::Path};

#[path = "fuzz/bodies/mod.rs"]
mod bodies;

#[test]
fn every_input_of_the_corpus_keeps_its_promise() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus");
    for (target, body) in bodies::TARGETS {
        let folder = fs::read_dir(corpus.join(target));
        assert!(folder.is_ok(), "tests/corpus/{target} is missing");
        let mut replayed = 0;
        for entry in folder.expect("a folder") {
            let path = entry.expect("an entry").path();
            eprintln!("{}", path.display()); // Names the culprit, if it is the next to speak.
            body(&fs::read(&path).expect("a file"));
            replayed += 1;
        }
        assert!(replayed > 0, "tests/corpus/{target} is empty");
    }
}

#[test]
fn every_folder_of_the_corpus_has_a_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus");
    for entry in fs::read_dir(corpus).expect("the corpus is there") {
        let name = entry.expect("an entry").file_name();
        assert!(bodies::TARGETS.iter().any(|(target, _)| *target == name), "{name:?}");
    }
}

#[test]
fn no_input_is_too_small_to_be_taken() {
    for (_, body) in bodies::TARGETS {
        body(b"");
        body(&[0]);
        body(&[0xff; 64]);
    }
}
