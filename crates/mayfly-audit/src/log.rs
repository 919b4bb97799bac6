//! The writer of a log.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use mayfly_core::{Record, Sequence, Shard};

use crate::{
    codec,
    error::LogError,
    frame::{Chain, Frame, HEADER_BYTES, Header, PAYLOAD_BYTES_MAX},
    reader::{self, Cursor, Torn},
    segment,
    verify::Entry,
};

/// What was found in a log's directory. Nothing has been changed yet.
#[derive(Debug)]
pub struct Recovery {
    dir: PathBuf,
    shard: Shard,
    end: Option<Cursor>,
    torn: Option<Torn>,
}

impl Recovery {
    /// The last good record; 0 if there is none.
    #[must_use]
    pub fn last(&self) -> Sequence {
        self.end.map_or(Sequence(0), |end| Sequence(end.next.0.saturating_sub(1)))
    }

    /// The hash chain up to it.
    #[must_use]
    pub fn chain(&self) -> Chain {
        self.end.map_or(Chain::GENESIS, |end| end.chain)
    }

    /// A write that never finished, which [`Self::open`] will cut off.
    #[must_use]
    pub const fn torn(&self) -> Option<&Torn> {
        self.torn.as_ref()
    }

    /// Opens the log for writing: removes what a crash left behind, and makes the first segment if
    /// there is none. A segment larger than `segment_bytes` is followed by a new one.
    ///
    /// # Errors
    /// [`LogError`], if the file system fails.
    pub fn open(self, segment_bytes: u64) -> Result<Log, LogError> {
        clear_drafts(&self.dir)?;
        match self.end {
            Some(end) => self.reopen(end, segment_bytes),
            None => self.create(Sequence(1), segment_bytes),
        }
    }

    /// Opens the log after an operator has confirmed that records were lost: the next record will be
    /// `first`, beyond all that can have been seen by others, in a segment that says so.
    ///
    /// # Errors
    /// [`LogError`], if the file system fails.
    pub fn resume_at(self, first: Sequence, segment_bytes: u64) -> Result<Log, LogError> {
        clear_drafts(&self.dir)?;
        if self.end.is_none() {
            return self.create(first, segment_bytes);
        }
        if first <= self.last().next() {
            return Err(LogError::OutOfOrder { last: self.last(), found: first });
        }
        let mut log = self.open(segment_bytes)?;
        // A segment without a record would share its name with nothing, but its header would be the
        // only one to say that it follows; it stays, and the new one names it.
        log.begin_segment(first, true)?;
        Ok(log)
    }

    fn reopen(self, end: Cursor, segment_bytes: u64) -> Result<Log, LogError> {
        let path = self.dir.join(segment::name(end.segment));
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|error| LogError::io("open", &path, error))?;
        if self.torn.is_some() {
            file.set_len(end.offset).map_err(|error| LogError::io("cut", &path, error))?;
        }
        // Always, because a killed process may have left written records that are not yet durable,
        // and they are about to be relied on.
        file.sync_all().map_err(|error| LogError::io("sync", &path, error))?;
        Ok(Log {
            last: self.last(),
            durable: self.last(),
            chain: end.chain,
            first: end.segment,
            length: end.offset,
            dir: self.dir,
            shard: self.shard,
            segment_bytes,
            file,
            path,
            buffer: Vec::new(),
            poison: None,
        })
    }

    fn create(self, first: Sequence, segment_bytes: u64) -> Result<Log, LogError> {
        let header = Header {
            shard: self.shard,
            resumed: first != Sequence(1),
            first,
            previous_first: Sequence(0),
            previous_length: 0,
            previous_chain: Chain::GENESIS,
        };
        let (file, path) = make_segment(&self.dir, &header)?;
        let last = Sequence(first.0.saturating_sub(1));
        Ok(Log {
            last,
            durable: last,
            chain: Chain::GENESIS,
            first,
            length: HEADER_BYTES as u64,
            dir: self.dir,
            shard: self.shard,
            segment_bytes,
            file,
            path,
            buffer: Vec::new(),
            poison: None,
        })
    }
}

/// A log open for appending. There is one writer; the store's lock sees to that.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    shard: Shard,
    segment_bytes: u64,
    file: File,
    path: PathBuf,
    first: Sequence,
    length: u64,
    last: Sequence,
    durable: Sequence,
    chain: Chain,
    buffer: Vec<u8>,
    poison: Option<LogError>,
}

impl Log {
    /// When a segment is followed by a new one, if nobody says otherwise.
    pub const SEGMENT_BYTES: u64 = 64 << 20;

    /// Reads the log in `dir`, which is created if it is missing, and shows the records from `from`
    /// on. Changes nothing in an existing log.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] for anything but a torn end; [`LogError::WrongVersion`]; or what the
    /// file system says.
    pub fn recover(
        dir: &Path,
        shard: Shard,
        from: Sequence,
        mut visit: impl FnMut(Entry),
    ) -> Result<Recovery, LogError> {
        create_dir(dir)?;
        let walked = reader::walk(dir, Some(shard), from, &mut visit)?;
        Ok(Recovery { dir: dir.to_path_buf(), shard, end: walked.end, torn: walked.torn })
    }

    /// The last record that was appended.
    #[must_use]
    pub const fn last(&self) -> Sequence {
        self.last
    }

    /// The last record that is on disk.
    #[must_use]
    pub const fn durable(&self) -> Sequence {
        self.durable
    }

    /// The hash chain up to the last record that was appended.
    #[must_use]
    pub const fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The place after the last record that was appended.
    #[must_use]
    pub const fn cursor(&self) -> Cursor {
        Cursor {
            segment: self.first,
            offset: self.length,
            next: self.last.next(),
            chain: self.chain,
        }
    }

    /// Appends records, which follow the last one without a gap. They are not durable before
    /// [`Self::sync`].
    ///
    /// # Errors
    /// [`LogError`]. After a failed write every later call fails as well.
    pub fn append(&mut self, batch: &[(Sequence, Record)]) -> Result<(), LogError> {
        self.check()?;
        if self.length >= self.segment_bytes && self.last >= self.first {
            self.roll()?;
        }
        self.buffer.clear();
        let (mut last, mut chain) = (self.last, self.chain);
        for (sequence, record) in batch {
            if *sequence != last.next() {
                return Err(LogError::OutOfOrder { last, found: *sequence });
            }
            let payload = codec::encode(record);
            if payload.len() > PAYLOAD_BYTES_MAX {
                return Err(LogError::TooLarge {
                    sequence: *sequence,
                    bytes: payload.len(),
                    max: PAYLOAD_BYTES_MAX,
                });
            }
            chain = chain.link(*sequence, &payload);
            last = *sequence;
            Frame::new(last, self.durable, chain, &payload).write(&payload, &mut self.buffer);
        }
        if let Err(error) = self.file.write_all(&self.buffer) {
            return self.fail(LogError::io("write", &self.path, error));
        }
        self.length += self.buffer.len() as u64;
        self.last = last;
        self.chain = chain;
        Ok(())
    }

    /// Makes everything appended durable and says up to where that is.
    ///
    /// # Errors
    /// [`LogError`]. After a failure every later call fails as well: the kernel may have dropped the
    /// pages and would say yes the second time.
    pub fn sync(&mut self) -> Result<Sequence, LogError> {
        self.check()?;
        if let Err(error) = self.file.sync_data() {
            return self.fail(LogError::io("sync", &self.path, error));
        }
        // A removed or replaced file can be synced as well as any other, and nobody would find the
        // records in it again.
        if let Err(error) = self.check_place() {
            return self.fail(error);
        }
        self.durable = self.last;
        Ok(self.durable)
    }

    fn check(&self) -> Result<(), LogError> {
        self.poison.clone().map_or(Ok(()), Err)
    }

    fn fail<T>(&mut self, error: LogError) -> Result<T, LogError> {
        self.poison = Some(error.clone());
        Err(error)
    }

    fn check_place(&self) -> Result<(), LogError> {
        let failed = |error| LogError::io("look at", &self.path, error);
        let vanished = || LogError::Vanished { path: self.path.clone() };
        let ours = self.file.metadata().map_err(failed)?;
        match fs::metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => Ok(()),
            Ok(_another) => Err(vanished()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(vanished()),
            Err(error) => Err(failed(error)),
        }
    }

    fn roll(&mut self) -> Result<(), LogError> {
        // Only the last segment may end in a torn write.
        self.sync()?;
        let first = self.last.next();
        match self.begin_segment(first, false) {
            Ok(()) => Ok(()),
            Err(error) => self.fail(error),
        }
    }

    fn begin_segment(&mut self, first: Sequence, resumed: bool) -> Result<(), LogError> {
        let header = Header {
            shard: self.shard,
            resumed,
            first,
            previous_first: self.first,
            previous_length: self.length,
            previous_chain: self.chain,
        };
        let (file, path) = make_segment(&self.dir, &header)?;
        self.file = file;
        self.path = path;
        self.first = first;
        self.length = HEADER_BYTES as u64;
        self.last = Sequence(first.0.saturating_sub(1));
        self.durable = self.last;
        Ok(())
    }
}

/// Makes a segment under a draft's name first, so that one with half a header is never seen.
fn make_segment(dir: &Path, header: &Header) -> Result<(File, PathBuf), LogError> {
    let path = dir.join(segment::name(header.first));
    let draft = path.with_extension("draft");
    let failed = |error| LogError::io("create", &path, error);
    let mut file = OpenOptions::new().append(true).create_new(true).open(&draft).map_err(failed)?;
    file.write_all(&header.encode()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&draft, &path).map_err(failed)?;
    sync_dir(dir)?;
    Ok((file, path))
}

fn clear_drafts(dir: &Path) -> Result<(), LogError> {
    let failed = |error| LogError::io("list", dir, error);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "draft") {
            fs::remove_file(&path).map_err(|error| LogError::io("remove", &path, error))?;
        }
    }
    Ok(())
}

fn create_dir(dir: &Path) -> Result<(), LogError> {
    match fs::create_dir(dir) {
        Ok(()) => dir.parent().map_or(Ok(()), sync_dir),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(LogError::io("create", dir, error)),
    }
}

/// A new name is durable only once its directory is.
fn sync_dir(dir: &Path) -> Result<(), LogError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| LogError::io("sync", dir, error))
}

#[cfg(test)]
mod tests {
    use mayfly_core::{Fact, Timestamp};

    use super::*;

    fn one(number: u64) -> [(Sequence, Record); 1] {
        let fact = Fact::Noted { what: "counted".into(), detail: String::new() };
        [(Sequence(number), Record { at: Timestamp(number), fact })]
    }

    fn healthy(dir: &Path) -> Log {
        let found = Log::recover(dir, Shard(0), Sequence(0), |_| {}).unwrap();
        let mut log = found.open(Log::SEGMENT_BYTES).unwrap();
        log.append(&one(1)).unwrap();
        log.sync().unwrap();
        log
    }

    #[test]
    fn a_full_disk_poisons_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = healthy(dir.path());
        let good = std::mem::replace(
            &mut log.file,
            File::options().write(true).open("/dev/full").unwrap(),
        );
        assert!(matches!(log.append(&one(2)), Err(LogError::Full { .. })));
        // Space is back, but what the failed write left behind is unknown until a restart reads it.
        log.file = good;
        assert!(matches!(log.append(&one(2)), Err(LogError::Full { .. })));
        assert!(matches!(log.sync(), Err(LogError::Full { .. })));
        assert_eq!(log.durable(), Sequence(1));
    }

    #[test]
    fn a_failed_sync_poisons_the_log_even_if_the_next_would_succeed() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = healthy(dir.path());
        // A pipe takes a write and refuses a sync.
        let (_reader, writer) = io::pipe().unwrap();
        let good = std::mem::replace(&mut log.file, File::from(std::os::fd::OwnedFd::from(writer)));
        log.append(&one(2)).unwrap();
        assert!(matches!(log.sync(), Err(LogError::Io { doing: "sync", .. })));
        log.file = good;
        assert!(matches!(log.sync(), Err(LogError::Io { doing: "sync", .. })));
        assert!(matches!(log.append(&one(3)), Err(LogError::Io { doing: "sync", .. })));
        assert_eq!(log.durable(), Sequence(1));
    }
}
