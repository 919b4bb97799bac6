//! One binary for all tests of this crate, so that fixtures are compiled once.
#![expect(
    clippy::expect_used,
    clippy::unwrap_in_result,
    reason = "a test that cannot run should stop, whatever it would have returned"
)]

mod broker;
mod common;

mod bearer;
mod feed;
mod handshake;
mod http2;
mod incoming;
mod layer;
mod leaf;
mod live;
mod oidc;
mod reader;
mod report;
mod source;
mod telemetry;
mod token;
mod traps;
