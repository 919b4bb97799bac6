//! The whole of Mayfly on one machine: a broker process, real sockets, real workload processes, real
//! signals. Each test has a broker of its own and is named after what it claims; numbers such as R14
//! are those of `docs/requirements.md`.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot run, or hears something else, should stop"
)]

mod actor;
mod api;
mod authorities;
mod bad_input;
mod booth;
mod broker_api;
mod chaos;
mod churn;
mod ci;
mod cli;
#[path = "../common/mod.rs"]
mod common;
#[expect(dead_code, reason = "its path is asked for by the tests of the eyes")]
#[path = "../common/den.rs"]
mod den;
mod dial;
mod ends;
mod eyes;
#[path = "../common/systemd.rs"]
mod fake_systemd;
mod federation;
mod hands;
mod herd;
mod identity;
mod inventory;
mod mirrors;
mod owners;
mod papers;
mod ports;
mod profiles;
mod quarantine;
mod restart;
mod revoke;
mod rights;
mod rotation;
mod run;
mod sidecar;
mod stand;
mod subjects;
mod tasks;
mod trees;
mod verifiers;
