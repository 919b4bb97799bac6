//! One binary for all tests of this crate, so that fixtures are compiled once.
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

mod broker;
mod common;

mod feed;
mod handshake;
mod leaf;
mod live;
mod source;
mod token;
