//! The laws of the core, for any input that luck finds: P7–P10 and P12–P14, the algebra of the revocation set, and
//! the requirements that the core alone can keep.
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

#[path = "laws/batch.rs"]
mod batch;
#[path = "laws/bench.rs"]
mod bench;
#[path = "laws/budgets.rs"]
mod budgets;
#[path = "laws/declare.rs"]
mod declare;
#[path = "laws/extents.rs"]
mod extents;
#[path = "laws/herds.rs"]
mod herds;
#[path = "laws/ids.rs"]
mod ids;
#[path = "laws/jobs.rs"]
mod jobs;
#[path = "laws/long.rs"]
mod long;
#[path = "laws/narrow.rs"]
mod narrow;
#[path = "laws/set.rs"]
mod set;
#[path = "laws/tasks.rs"]
mod tasks;
