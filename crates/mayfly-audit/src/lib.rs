//! The log: everything decided, in order, and provably unaltered.
//!
//! On one machine this log *is* the journal. State is the fold of its records, an effect waits for
//! its record here, and so the log cannot disagree with what was done: it is what was done. Three
//! wishes shaped the format.
//!
//! * **A crash must cost nothing that was acknowledged.** Records are appended to segment files and
//!   made durable with one `fdatasync` per batch. After a crash the end of the last segment may hold
//!   half a batch; that is cut off. Every frame says up to where the log was durable when it was
//!   written, so damage *before* a durable frame is told from a write that never finished.
//! * **Damage must be noticed, not worked around.** Every frame has a checksum and a place in a
//!   SHA-256 chain, every segment names the one before it with its length. What does not fit is
//!   [`LogError::Corrupt`] with the place, and the log is neither opened nor changed.
//! * **A failing disk must not be trusted twice.** After a failed write or `fdatasync` nobody knows
//!   which pages are on disk, and asking again may answer yes. The log is then poisoned: every later
//!   call returns the first error, until a restart reads what is really there.
//!
//! Opening is in two steps because only the first is harmless: [`Log::recover`] reads and
//! judges, [`Recovery::open`] cuts a torn tail and writes. Between the two the store compares what
//! was found with its sentinel and its index. [`verify`](fn@verify), [`read`] and [`timeline`] serve people who look
//! at a log from outside; they only read.
#![forbid(unsafe_code)]

mod codec;
mod error;
mod frame;
mod log;
mod reader;
mod segment;
mod verify;

pub use codec::{InvalidRecord, decode, encode};
pub use error::LogError;
pub use frame::{Chain, PAYLOAD_BYTES_MAX};
pub use log::{Log, Recovery};
pub use reader::{Cursor, Reader, Torn};
pub use verify::{Entry, Verified, read, timeline, verify};
