//! One segment file: its name, and its frames read in order.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use mayfly_core::Sequence;

use crate::{
    error::LogError,
    frame::{self, BadHeader, Chain, FRAME_BYTES, Frame, HEADER_BYTES, Header, VERSION},
    reader::Cursor,
};

const READ_BYTES: usize = 256 * 1024;

/// The file name of the segment that begins with `first`. It sorts as the numbers do.
pub(crate) fn name(first: Sequence) -> String {
    format!("{:020}.seg", first.0)
}

/// The segments of `dir` in order, by the first record in each.
pub(crate) fn list(dir: &Path) -> Result<Vec<(Sequence, PathBuf)>, LogError> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| LogError::io("list", dir, error))? {
        let path = entry.map_err(|error| LogError::io("list", dir, error))?.path();
        if path.extension().is_none_or(|extension| extension != "seg") {
            continue;
        }
        let first = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .filter(|stem| stem.len() == 20)
            .and_then(|stem| stem.parse().ok())
            .map(Sequence)
            .ok_or_else(|| {
                LogError::corrupt(Sequence(0), &path, "the file is not named like a segment")
            })?;
        segments.push((first, path));
    }
    segments.sort();
    Ok(segments)
}

/// What the next step of a segment is.
#[derive(Debug)]
pub(crate) enum Step {
    /// A good frame; its payload is in [`Segment::payload`].
    Frame(Frame),
    /// The file ends where a frame ends.
    End,
    /// What follows is not the next frame.
    Bad(&'static str),
}

/// A segment that is being read.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    pub(crate) header: Header,
    /// Where the next frame begins.
    pub(crate) offset: u64,
    /// The record that comes next.
    pub(crate) next: Sequence,
    /// The link before it.
    pub(crate) chain: Chain,
    pub(crate) payload: Vec<u8>,
    file: BufReader<File>,
}

impl Segment {
    /// Opens a segment and reads its header.
    pub(crate) fn open(path: &Path, first: Sequence) -> Result<Self, LogError> {
        let failed = |error| LogError::io("read", path, error);
        let mut file = BufReader::with_capacity(READ_BYTES, File::open(path).map_err(failed)?);
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        Read::by_ref(&mut file)
            .take(HEADER_BYTES as u64)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        let header = Header::decode(&bytes).map_err(|bad| match bad {
            BadHeader::Damaged(why) => LogError::corrupt(first, path, why),
            BadHeader::Version(found) => {
                LogError::WrongVersion { segment: path.to_path_buf(), found, expected: VERSION }
            }
        })?;
        if header.first != first {
            let why = "the segment's name and header name different records";
            return Err(LogError::corrupt(first, path, why));
        }
        Ok(Self {
            path: path.to_path_buf(),
            header,
            offset: HEADER_BYTES as u64,
            next: first,
            chain: header.previous_chain,
            payload: Vec::new(),
            file,
        })
    }

    /// Reads and checks the next frame.
    pub(crate) fn step(&mut self) -> Result<Step, LogError> {
        let failed = |error| LogError::io("read", &self.path, error);
        if self.file.fill_buf().map_err(failed)?.is_empty() {
            return Ok(Step::End);
        }
        let mut head = [0; FRAME_BYTES];
        if !fill(&mut self.file, &mut head).map_err(failed)? {
            return Ok(Step::Bad("a frame is cut off"));
        }
        let Some(frame) = Frame::parse(&head) else {
            return Ok(Step::Bad("a frame's length is impossible"));
        };
        self.payload.resize(frame.length, 0);
        if !fill(&mut self.file, &mut self.payload).map_err(failed)? {
            return Ok(Step::Bad("a frame is cut off"));
        }
        if !frame.holds(&self.payload) {
            return Ok(Step::Bad("a frame fails its checksum"));
        }
        // From here on the frame is what somebody wrote. That it is not ours is no torn write.
        if frame.sequence != self.next {
            let why = "a record is missing, repeated or out of order";
            return Err(LogError::corrupt(self.next, &self.path, why));
        }
        let chain = self.chain.link(frame.sequence, &self.payload);
        if chain != frame.chain {
            let why = "the hash chain breaks";
            return Err(LogError::corrupt(self.next, &self.path, why));
        }
        self.chain = chain;
        self.next = self.next.next();
        self.offset += (FRAME_BYTES + frame.length) as u64;
        Ok(Step::Frame(frame))
    }

    /// Continues at a place where another reader or the writer stood.
    pub(crate) fn skip_to(&mut self, at: &Cursor) -> Result<(), LogError> {
        if at.offset <= self.offset {
            return Ok(());
        }
        self.file
            .seek(SeekFrom::Start(at.offset))
            .map_err(|error| LogError::io("read", &self.path, error))?;
        self.offset = at.offset;
        self.next = at.next;
        self.chain = at.chain;
        Ok(())
    }

    /// After [`Step::Bad`]: how many bytes follow the last good frame, if they can be a write that
    /// never finished; an error if they prove that something durable was damaged.
    pub(crate) fn judge_tail(&mut self, why: &'static str) -> Result<u64, LogError> {
        let failed = |error| LogError::io("read", &self.path, error);
        let mut rest = Vec::new();
        self.file
            .seek(SeekFrom::Start(self.offset))
            .and_then(|_at| self.file.read_to_end(&mut rest))
            .map_err(failed)?;
        if frame::proves_durable(&rest, self.next) {
            return Err(LogError::corrupt(self.next, &self.path, why));
        }
        Ok(rest.len() as u64)
    }
}

/// Fills `buffer`; `false` if the file ends before.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
