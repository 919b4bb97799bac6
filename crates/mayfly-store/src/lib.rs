//! Remembering, so that a crash unsays nothing.
//!
//! ```text
//! <data>/lock                      held while a daemon runs
//! <data>/sentinel                  how far the log was, kept apart from it
//! <data>/store/log/*.seg           the truth: every record, chained
//! <data>/store/index/              sled: the same, folded; may be lost at any time
//! <data>/store/index.fresh/        the index while it is written anew; removed at a start
//! ```
//!
//! Only the log is believed. A [`Journal`] appends to it and makes it durable; the [`Committer`] does
//! so on a thread of its own, one `fdatasync` for all that wait. Everything else follows behind, on
//! the keeper's thread, and never stands in the way of an acknowledgement:
//!
//! * The **index** folds the log's records to those that still matter, so that a start need not read
//!   years. It carries the position that it reached, the chain's link there and a digest of all its
//!   rows. If any of the three is off, or sled cannot make sense of its files, it is thrown away and
//!   built again from the log. Nothing is lost by that but time.
//! * The **sentinel** is the one thing that the log cannot say about itself: how long it once was. A
//!   log that ends before its sentinel, or says something else there, has lost records — usually
//!   because a backup was restored, and with it credentials would be valid again that were revoked
//!   since. [`Store::open`] refuses with [`StoreError::Restored`] until an operator confirms; then the
//!   journal goes on far beyond every position that anybody can have seen.
//!
//! The sentinel follows the log within a second or 256 commits, and exactly on a clean stop. So a
//! backup that is younger than that lag looks like a crash, and is accepted like one. A backup of the
//! whole data directory brings its own sentinel along: keep the sentinel elsewhere
//! ([`OpenOptions::sentinel_dir`]) where that matters.
#![forbid(unsafe_code)]

mod committer;
mod compaction;
mod draft;
mod error;
mod fold;
mod index;
mod journal;
mod keeper;
mod lock;
mod priority;
mod sentinel;
mod store;
mod tally;

pub use committer::{Committed, Committer, Rejected};
pub use error::StoreError;
pub use journal::{Journal, LogJournal};
pub use priority::step_back;
pub use store::{IndexReport, OpenOptions, OpenReport, Opened, Store};
