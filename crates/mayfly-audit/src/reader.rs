//! Walking over a whole log, and following one that is being written.

use std::path::{Path, PathBuf};

use mayfly_core::{Sequence, Shard};

use crate::{
    codec,
    error::LogError,
    frame::Chain,
    segment::{self, Segment, Step},
    verify::Entry,
};

/// A write that never finished, at the end of the last segment. Nothing in it was acknowledged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Torn {
    /// In which file.
    pub segment: PathBuf,
    /// The last good record.
    pub after: Sequence,
    /// How much follows it.
    pub bytes: u64,
    /// What is wrong with what follows.
    pub why: &'static str,
}

/// A place between two records.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cursor {
    /// The segment that holds, or will hold, the next record.
    pub(crate) segment: Sequence,
    /// Where in that file.
    pub(crate) offset: u64,
    /// The next record.
    pub(crate) next: Sequence,
    /// The link before it.
    pub(crate) chain: Chain,
}

impl Cursor {
    /// The record that would be read next.
    #[must_use]
    pub const fn next(&self) -> Sequence {
        self.next
    }
}

/// Where a walk ended.
#[derive(Clone, Debug)]
pub(crate) struct Walked {
    pub(crate) shard: Option<Shard>,
    /// Place after the last good record; `None` where there is no segment at all.
    pub(crate) end: Option<Cursor>,
    pub(crate) torn: Option<Torn>,
    pub(crate) segments: u64,
    pub(crate) records: u64,
}

/// Reads the log in `dir` and shows the records from `from` on. Every segment's header is checked
/// against the segment before it; frames are read from the segment that holds `from`.
pub(crate) fn walk(
    dir: &Path,
    shard: Option<Shard>,
    from: Sequence,
    visit: &mut dyn FnMut(Entry),
) -> Result<Walked, LogError> {
    let segments = segment::list(dir)?;
    let mut walked =
        Walked { shard, end: None, torn: None, segments: segments.len() as u64, records: 0 };
    let start = segments.iter().rposition(|(first, _)| *first <= from).unwrap_or(0);
    let mut before: Option<(Sequence, u64)> = None;
    for (index, (first, path)) in segments.iter().enumerate() {
        let mut segment = Segment::open(path, *first)?;
        check_header(&segment, &mut walked.shard, before)?;
        let length =
            std::fs::metadata(path).map_err(|error| LogError::io("read", path, error))?.len();
        before = Some((*first, length));
        if index < start {
            continue;
        }
        if let Some(end) = walked.end.filter(|end| !follows(end, &segment)) {
            let why = "the segment does not continue the one before it";
            return Err(LogError::corrupt(end.next, path, why));
        }
        let is_last = index + 1 == segments.len();
        walked.torn = read_frames(&mut segment, is_last, from, &mut |entry| {
            walked.records += 1;
            visit(entry);
        })?;
        walked.end = Some(Cursor {
            segment: *first,
            offset: segment.offset,
            next: segment.next,
            chain: segment.chain,
        });
    }
    Ok(walked)
}

fn check_header(
    segment: &Segment,
    shard: &mut Option<Shard>,
    before: Option<(Sequence, u64)>,
) -> Result<(), LogError> {
    let header = &segment.header;
    let corrupt = |why| Err(LogError::corrupt(header.first, &segment.path, why));
    if *shard.get_or_insert(header.shard) != header.shard {
        return corrupt("the segment belongs to another shard");
    }
    match before {
        None if header.previous_first != Sequence(0) || header.previous_length != 0 => {
            corrupt("the first segments are missing")
        }
        None if header.first != Sequence(1) && !header.resumed => {
            corrupt("the first segments are missing")
        }
        Some((first, _)) if first != header.previous_first => {
            corrupt("the segment before this one is missing")
        }
        Some((_, length)) if length != header.previous_length => {
            corrupt("the segment before this one has changed its length")
        }
        None | Some(_) => Ok(()),
    }
}

fn follows(end: &Cursor, segment: &Segment) -> bool {
    let header = &segment.header;
    let in_order = if header.resumed { header.first > end.next } else { header.first == end.next };
    in_order && header.previous_chain == end.chain
}

fn read_frames(
    segment: &mut Segment,
    is_last: bool,
    from: Sequence,
    visit: &mut dyn FnMut(Entry),
) -> Result<Option<Torn>, LogError> {
    loop {
        match segment.step()? {
            Step::End => return Ok(None),
            Step::Frame(frame) if frame.sequence < from => {}
            Step::Frame(frame) => visit(entry(segment, frame.sequence)?),
            // A segment is synced before the next one is made, so only the last one can be torn.
            Step::Bad(why) if !is_last => {
                return Err(LogError::corrupt(segment.next, &segment.path, why));
            }
            Step::Bad(why) => {
                let bytes = segment.judge_tail(why)?;
                return Ok(Some(Torn {
                    segment: segment.path.clone(),
                    after: Sequence(segment.next.0.saturating_sub(1)),
                    bytes,
                    why,
                }));
            }
        }
    }
}

fn entry(segment: &Segment, sequence: Sequence) -> Result<Entry, LogError> {
    let record = codec::decode(&segment.payload).map_err(|_invalid| {
        let why = "a record is whole but says something this build does not understand";
        LogError::corrupt(sequence, &segment.path, why)
    })?;
    Ok(Entry { sequence, record, chain: segment.chain })
}

/// Follows a log while it is written, for whoever wants to read records after they are durable
/// without standing in the way of the writer.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    segment: Option<Segment>,
    at: Cursor,
}

impl Reader {
    /// Starts at `at`, which comes from [`crate::Recovery`] or [`crate::Log`].
    #[must_use]
    pub fn new(dir: &Path, at: Cursor) -> Self {
        Self { dir: dir.to_path_buf(), segment: None, at }
    }

    /// Where it stands.
    #[must_use]
    pub const fn cursor(&self) -> &Cursor {
        &self.at
    }

    /// The next record, if it is not beyond `upto`, the last record known to be durable.
    ///
    /// # Errors
    /// [`LogError`], if what was written does not read back.
    pub fn next(&mut self, upto: Sequence) -> Result<Option<Entry>, LogError> {
        while self.at.next <= upto {
            let mut segment = match self.segment.take() {
                Some(segment) => segment,
                None => self.reopen()?,
            };
            match segment.step()? {
                Step::Frame(frame) => {
                    let entry = entry(&segment, frame.sequence)?;
                    self.at.offset = segment.offset;
                    self.at.next = segment.next;
                    self.at.chain = segment.chain;
                    self.segment = Some(segment);
                    return Ok(Some(entry));
                }
                // The next record is durable and not here, so it begins the next segment.
                Step::End if self.at.segment != self.at.next => {
                    self.at.segment = self.at.next;
                    self.at.offset = 0;
                }
                Step::End => {
                    let why = "a durable record is missing";
                    return Err(LogError::corrupt(self.at.next, &segment.path, why));
                }
                Step::Bad(why) => {
                    return Err(LogError::corrupt(self.at.next, &segment.path, why));
                }
            }
        }
        Ok(None)
    }

    fn reopen(&self) -> Result<Segment, LogError> {
        let path = self.dir.join(segment::name(self.at.segment));
        let mut segment = Segment::open(&path, self.at.segment)?;
        segment.skip_to(&self.at)?;
        Ok(segment)
    }
}
