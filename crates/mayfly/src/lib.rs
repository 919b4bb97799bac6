//! Wires: configuration, clock, driver, roles and the command line.
//!
//! Nothing is decided here. `mayfly-core` decides, and [`driver`] carries out what it orders with the
//! means of the other crates; [`broker`] puts them together for one machine. Read [`driver`] first.
#![forbid(unsafe_code)]

pub mod admin;
pub mod board;
pub mod broker;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod desk;
pub mod driver;
pub mod federation;
pub mod keeper;
pub mod means;
pub mod measures;
pub mod office;
pub mod own;
pub mod paths;
pub mod pem;
pub mod seal;
pub mod sidecar;
pub mod signers;
pub mod stage;
pub mod svids;
pub mod tls;
pub mod witness;
