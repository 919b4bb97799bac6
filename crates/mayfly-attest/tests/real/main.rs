//! Real processes, real sockets, the real kernel.
//!
//! Some tests need a process that does something particular with its socket. They start this very
//! test binary again and tell it by an environment variable which part to play.
#![expect(clippy::expect_used, clippy::panic, reason = "a test that cannot run should stop")]

mod cgroups;
mod collecting;
mod cost;
#[path = "../../../../tests/common/den.rs"]
mod den;
mod dwellings;
#[path = "../../../../tests/common/systemd.rs"]
mod fake_systemd;
mod parsers;
mod peers;
mod role;
mod units;
mod watching;
