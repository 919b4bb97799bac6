//! Pretends: a seeded world around the production core, an oracle, and scenarios.
//!
//! A test that somebody thought of finds the bugs that somebody thought of. Here a seed makes a whole
//! machine: a disk that loses its tail, a signer that finishes in any order, a feed that loses, repeats
//! and reorders, clocks that are set, processes that die while the broker is dead. In the middle stands
//! the [`mayfly_core::Registrar`] that is shipped, unchanged; beside it an oracle that shares no
//! code with it and asks of everything it does whether the laws P1–P14 of `docs/invariants.md` hold.
//!
//! The same seed always makes the same world, so a seed is a bug report: it goes into
//! `tests/seeds.txt` and stays there. [`scenario`] reads the short stories of `tests/scenarios`, which
//! are for people.
#![forbid(unsafe_code)]

mod actors;
mod charge;
mod disk;
mod network;
mod oracle;
mod rng;
pub mod scenario;
mod trace;
mod weather;
mod world;

pub use charge::Charge;
pub use mayfly_core::registrar::Planted;
pub use network::Post;
pub use oracle::Violation;
pub use rng::Rng;
pub use trace::Trace;
pub use weather::{Move, Weather};
pub use world::{Outcome, World};

/// Lives through the world of `seed`. A failed assertion of the core is a violation like any other.
#[must_use]
pub fn run(seed: u64, planted: Option<Planted>) -> Outcome {
    run_with(seed, planted, Trace::default())
}

/// [`run`], with a line for everything that happened.
#[must_use]
pub fn run_in_words(seed: u64, planted: Option<Planted>) -> Outcome {
    run_with(seed, planted, Trace::in_words())
}

/// [`run`], with another feed between the broker and its followers.
#[must_use]
pub fn run_with_post(seed: u64, post: impl FnOnce(usize) -> Box<dyn Post>) -> Outcome {
    live(World::with_post(seed, None, Trace::default(), post))
}

fn run_with(seed: u64, planted: Option<Planted>, trace: Trace) -> Outcome {
    live(World::new(seed, planted, trace))
}

fn live(world: World) -> Outcome {
    // Nobody looks at a world that has come to its end by a panic.
    let world = std::panic::AssertUnwindSafe(world);
    std::panic::catch_unwind(move || { world }.0.run()).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<&str>().map(|text| String::from(*text));
        let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
        let what = said.unwrap_or_else(|| "a panic without words".into());
        Outcome { trace: Trace::default(), violation: Some(Violation { law: "core", what }) }
    })
}
