//! The laws of the core, for any input that luck finds: P7–P10, the algebra of the revocation set, and
//! the requirements R2, R7, R8 and R41.
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

#[path = "laws/batch.rs"]
mod batch;
#[path = "laws/bench.rs"]
mod bench;
#[path = "laws/ids.rs"]
mod ids;
#[path = "laws/set.rs"]
mod set;
#[path = "laws/tasks.rs"]
mod tasks;
