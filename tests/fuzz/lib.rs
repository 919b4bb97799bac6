//! The bodies of the fuzz targets. `tests/corpus.rs` replays the corpus through the same functions,
//! without libFuzzer.

mod bodies;

/// Feeds one input to a target.
pub fn feed(target: &str, input: &[u8]) {
    let body = bodies::TARGETS.iter().find(|(name, _)| *name == target);
    body.expect("the target is in the table").1(input);
}
