//! The services over a real socket, with a real client and a scripted desk behind them. Numbers in
//! names are points of the SPIFFE checklist that the requirements refer to.
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

mod broker_api;
mod ci;
mod common;
mod doors;
mod feed;
mod http;
mod ports;
mod rough;
mod sds;
mod streams;
mod workload;
