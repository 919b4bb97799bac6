//! Short stories for people: what is said to the registrar, and what it does.
//!
//! ```text
//! # end_while_signing: the key was already moving when the task ended
//! at 0    begin  T1 uid=1000 lease=60s
//! at 1s   ask    T1 x509                => promised S1
//! at 1s   flush                         => signing S1
//! at 1s   end    T1 exited              => ended T1
//! at 1s   signed S1                     => withheld S1 task_ended
//! ```
//!
//! Tasks are `T1`, `T2`, …, processes `P1`, …; promised credentials are `S1`, `S2`, … in their order.
//! Without `=>` a line says nothing about what follows from it. With `=>` everything that follows has
//! to be named, in any order, apart from what is quiet: `watching`, `closed`, `crl`, `socket`,
//! `no_socket`, `forgot` and `noted` may be named and need not. `=> nothing` is an answer too.
//!
//! A story about a herd begins with `at 0 room signing=1 waiting=2 task=1`, which says how many may ask at
//! once. Whoever has to wait then hears nothing yet.

use std::fmt;

mod parse;
mod stage;
mod tell;

pub use parse::{Line, parse};

/// A story that does not hold, or cannot be read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ScenarioError {
    /// Its line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for ScenarioError {}

/// Plays a story.
///
/// # Errors
/// The first line that cannot be read, or after which something else happened than it says.
pub fn play(text: &str) -> Result<(), ScenarioError> {
    let mut stage = stage::Stage::default();
    for line in parse(text)? {
        let number = line.number;
        let at_line = |what| ScenarioError { line: number, what };
        let happened = stage.play(&line).map_err(at_line)?;
        if let Some(expected) = &line.expected {
            stage::compare(expected, &happened).map_err(at_line)?;
        }
    }
    Ok(())
}
