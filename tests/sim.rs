//! Thousands of worlds, each the shipped registrar in a machine made of luck.
//!
//! Fixed seeds show that nothing has come back, fresh ones search. `MAYFLY_SEED=n` chooses where the
//! fresh ones begin; a failing seed is told as a story by `cargo run -p mayfly-sim -- SEED`.
//! This test has a `main` of its own, because its figures are worth reading when it passes.
#![expect(clippy::print_stdout, reason = "the seed and the figures have to be seen")]
#![expect(clippy::panic, reason = "a broken law stops the run and names its seed")]
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

#[path = "sim/library.rs"]
mod library;

use mayfly_sim::{Planted, World, run, run_with_post};
use rustix::time::{ClockId, clock_gettime};

const FIXED: u64 = 2_000;
const FRESH: u64 = 2_000;
/// Worlds in which a planted bug has to show.
const PLANTED_MAX: u64 = 2_000;
/// Worlds a minute that one core has to reach, where nothing else slows the build down.
const WORLDS_PER_MINUTE_MIN: u64 = 100_000;

fn main() {
    // Printed before the first step: whatever happens later, the search can be repeated.
    let base = fresh_base();
    println!("MAYFLY_SEED={base} (fresh seeds begin here)");
    one_seed_is_one_world();
    planted_bugs_are_found();
    let start = processor_time();
    let mut worlds = 0;
    worlds += no_law_breaks("tests/seeds.txt", remembered_seeds());
    worlds += no_law_breaks("fixed", 0..FIXED);
    worlds += no_law_breaks("fresh", (0..FRESH).map(|n| base.wrapping_add(n)));
    let took = processor_time().saturating_sub(start);
    the_shipped_library_has_no_hole(base);
    let rate = worlds * 60_000 / u64::try_from(took.as_millis()).expect("a short test").max(1);
    assert!(rate >= WORLDS_PER_MINUTE_MIN, "only {rate} worlds/minute");
    println!("{rate} worlds/minute on one core ({worlds} worlds in {took:?} of processor time)");
}

fn no_law_breaks(what: &str, seeds: impl Iterator<Item = u64>) -> u64 {
    let mut worlds = 0;
    for seed in seeds {
        if let Some(violation) = run(seed, None).violation {
            println!("SEED {seed} {}", World::new(seed, None, Default::default()).weather());
            panic!("SEED {seed} breaks {violation}; `cargo run -p mayfly-sim -- {seed}` tells how");
        }
        worlds += 1;
    }
    println!("ok: no law breaks in {worlds} {what} worlds");
    worlds
}

fn one_seed_is_one_world() {
    for seed in 0..200 {
        let (once, again) = (run(seed, None), run(seed, None));
        assert_eq!(once.trace.hash(), again.trace.hash(), "SEED {seed} has two worlds");
    }
    let other = run(1, None).trace.hash();
    assert_ne!(run(0, None).trace.hash(), other, "two seeds have one world");
    // The dice, the weather and the core decide this number together. It changes with any of them, and
    // then tests/seeds.txt stands for other worlds than it did: say so in the commit.
    println!(
        "ok: one seed is one world (the hash of seed 0 is {:016x})",
        run(0, None).trace.hash()
    );
}

/// INVARIANT P3 for the code that ships: the feed's own chain writes, and the library's reader and view
/// judge. What the weather does to messages it does to sealed ones.
fn the_shipped_library_has_no_hole(base: u64) {
    let (mut worlds, mut tally) = (0, library::Tally::default());
    for seed in
        remembered_seeds().chain(0..FIXED / 2).chain((0..FRESH / 2).map(|n| base.wrapping_add(n)))
    {
        let seen = std::rc::Rc::new(std::cell::RefCell::new(library::Tally::default()));
        let post = library::Library::new(std::rc::Rc::clone(&seen));
        if let Some(violation) = run_with_post(seed, |followers| post.of(followers)).violation {
            panic!("SEED {seed} breaks {violation} with the shipped library");
        }
        tally.add(&seen.borrow());
        worlds += 1;
    }
    // A test in which nothing went wrong would show nothing.
    assert!(tally.flaws > 20 && tally.resumed > 40 && tally.snapshots > 1_000, "{tally:?}");
    println!("ok: the shipped feed and library have no hole in {worlds} worlds ({tally:?})");
}

/// The simulator's own test: it finds bugs that are known to be there.
fn planted_bugs_are_found() {
    // An assertion of the core that catches a bug is a find too, and no news.
    std::panic::set_hook(Box::new(|_| {}));
    let found: Vec<_> = [
        (Planted::ReleaseAfterEnd, "P1"),
        (Planted::PublishBeforeJournal, "P"),
        (Planted::ForgetPromises, "P"),
        (Planted::ReuseSlots, "P"),
        (Planted::IgnoreParentScope, "P12"),
        (Planted::KeepWiderChildren, "P12"),
        (Planted::ForgetCounts, "P13"),
        (Planted::ServeByArrival, "P14"),
    ]
    .into_iter()
    .map(|(bug, law)| (bug, law, find(bug)))
    .collect();
    drop(std::panic::take_hook());
    for (bug, law, found) in found {
        let (seed, violation) = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
        assert!(violation.law.starts_with(law), "{bug:?} was taken for {violation}");
        println!("ok: {bug:?} is found by seed {seed}: {}", violation.law);
    }
}

fn find(bug: Planted) -> Option<(u64, mayfly_sim::Violation)> {
    (0..PLANTED_MAX).find_map(|seed| Some((seed, run(seed, Some(bug)).violation?)))
}

fn remembered_seeds() -> impl Iterator<Item = u64> {
    let lines = include_str!("seeds.txt").lines().filter(|line| !line.starts_with('#'));
    let numbers = lines.filter_map(|line| line.split_whitespace().next());
    numbers.map(|number| number.parse().expect("a line of tests/seeds.txt begins with a number"))
}

fn fresh_base() -> u64 {
    match std::env::var("MAYFLY_SEED") {
        Ok(base) => base.parse().expect("MAYFLY_SEED is a number"),
        Err(_) => RandomState::new().hash_one("fresh") >> 16,
    }
}

/// Time that this thread has computed: other work on the machine does not count.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).expect("time is positive");
    Duration::new(seconds, u32::try_from(time.tv_nsec).expect("below a second"))
}
