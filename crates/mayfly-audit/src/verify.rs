//! Looking at a log from outside, without a lock and without changing it.

use std::path::Path;

use mayfly_core::{Record, Sequence, Shard, TaskId};

use crate::{
    error::LogError,
    frame::Chain,
    reader::{self, Torn},
};

/// One record of a log, with the link that vouches for it and for all before it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Its place.
    pub sequence: Sequence,
    /// What was decided.
    pub record: Record,
    /// The hash chain up to and with this record.
    pub chain: Chain,
}

/// What a whole log adds up to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verified {
    /// Whose log it is; `None` for an empty directory.
    pub shard: Option<Shard>,
    /// Segment files.
    pub segments: u64,
    /// Records, all of them checked.
    pub records: u64,
    /// The last one.
    pub last: Sequence,
    /// The hash chain up to it. Two logs with the same link are the same log.
    pub chain: Chain,
    /// A write that never finished, at the end. Expected after a crash and while a broker writes.
    pub torn: Option<Torn>,
}

/// Checks every byte of the log in `dir`.
///
/// # Errors
/// [`LogError::Corrupt`] names the first bad place.
pub fn verify(dir: &Path) -> Result<Verified, LogError> {
    read(dir, Sequence(0), |_entry| {})
}

/// Shows the records of the log in `dir` from `from` on, in order.
///
/// # Errors
/// As [`verify`]; records before the bad place have been shown by then.
pub fn read(
    dir: &Path,
    from: Sequence,
    mut visit: impl FnMut(Entry),
) -> Result<Verified, LogError> {
    let walked = reader::walk(dir, None, from, &mut visit)?;
    Ok(Verified {
        shard: walked.shard,
        segments: walked.segments,
        records: walked.records,
        last: walked.end.map_or(Sequence(0), |end| Sequence(end.next.0.saturating_sub(1))),
        chain: walked.end.map_or(Chain::GENESIS, |end| end.chain),
        torn: walked.torn,
    })
}

/// All that the log in `dir` says about `task`. Reads the whole log.
///
/// # Errors
/// As [`verify`].
pub fn timeline(dir: &Path, task: TaskId) -> Result<Vec<(Sequence, Record)>, LogError> {
    let mut lines = Vec::new();
    read(dir, Sequence(0), |entry| {
        if entry.record.fact.task() == Some(task) {
            lines.push((entry.sequence, entry.record));
        }
    })?;
    Ok(lines)
}
