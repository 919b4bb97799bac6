//! Sees who is calling, and when that process is gone.
//!
//! A broker that binds credentials to tasks must know two things about a caller that the caller
//! cannot forge: what it is, and whether it still is. Linux answers both, but not by PID: a PID is a
//! number on loan, and every attack on local attestation is a way of making it change hands between
//! two looks. So this crate holds processes by their pidfd from the moment of `accept`:
//!
//! - [`Peer::of`] takes the pidfd that the kernel kept for the socket, before a byte is read.
//! - [`Collector::collect`] reads /proc and then asks the pidfd whether the process still lives. If
//!   it does, the PID was its own all the time, and everything read is about it.
//! - [`Peer::still_there`] is asked again before every answer: a child that inherited the socket of
//!   a dead parent is a stranger.
//! - [`Watcher`] sleeps on pidfds and on cgroups, and tells within a millisecond who has ended.
//! - [`is_alive`] finds, after a restart, who ended while nobody watched. A process is named by boot
//!   and pidfs inode ([`mayfly_core::evidence::ProcessKey`]), so a reused PID is not mistaken for it.
//!
//! What cannot be seen becomes less evidence, and less evidence never grants more. The parsers of
//! the kernel's texts are pure and public in [`procfs`] and [`dwelling`], for the fuzzer.

#[cfg(not(target_os = "linux"))]
compile_error!("mayfly-attest sees processes through pidfds and /proc, which only Linux has");

mod cgroup;
mod collect;
pub mod dwelling;
mod engine;
mod error;
mod exe;
mod find;
mod glance;
mod hash;
mod kernel;
mod members;
mod names;
mod peer;
mod process;
pub mod procfs;
pub mod systemd;
mod watch;

pub use cgroup::{Cgroup, CgroupError, Visit};
pub use collect::{CollectOptions, Collector, LINEAGE_MAX, lineage};
pub use engine::Engine;
pub use error::AttestError;
pub use find::{find_container, find_pod, find_unit};
pub use hash::HashCache;
pub use members::members;
pub use peer::Peer;
pub use process::{Exit, Process};
pub use systemd::Systemd;
pub use watch::{Seen, Sighting, WatchError, Watcher, is_alive};
