//! Compaction: the index written anew when its file has outgrown what it holds.
//!
//! Sled reuses what is free in its file more slowly than short tasks free it, and gives little back. So
//! all rows are copied into a fresh directory beside the index, which then takes its place in one step.
//! A crash at any instant leaves one whole index in that place; whatever lies beside it is removed at
//! the next start.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with, statvfs},
    io::Errno,
};

use crate::index::{Index, IndexError, guarded};

/// Below this a file is left alone, whatever it holds.
pub(crate) const FLOOR_BYTES: u64 = 128 << 20;
/// How much larger than a fresh one a file may become. At two a compaction writes no more than the file has
/// grown by since the last one.
const FACTOR: u64 = 2;
/// What a fresh file takes for what is alive, in hundredths, before one was seen. Sled fills half of each
/// page and keeps what it appended before the page was whole.
const FRESH_PERCENT: u64 = 350;
/// Counted as alive, so that nothing is concluded from a file that holds next to nothing.
const BASE_BYTES: u64 = 1 << 20;

/// When the index is written anew, and where.
#[derive(Debug)]
pub(crate) struct Compaction {
    dir: PathBuf,
    floor: u64,
    /// What a fresh file takes for what is alive, in hundredths: as the last one did.
    fresh_percent: u64,
    /// After a failure: the size at which it is worth another try.
    retry_at: u64,
}

impl Compaction {
    /// For the index in `dir`.
    pub(crate) const fn new(dir: PathBuf, floor: u64) -> Self {
        Self { dir, floor, fresh_percent: FRESH_PERCENT, retry_at: 0 }
    }

    /// Whether the file is much larger than it would be afterwards. Cheap enough to be asked every second.
    pub(crate) fn is_due(&self, index: &Index) -> bool {
        let most = self.fresh(index.live()).saturating_mul(FACTOR).max(self.floor);
        // Whoever cannot say its size has other troubles, which the next fold will tell of.
        index.size().is_ok_and(|size| size > most && size >= self.retry_at)
    }

    /// Writes the index anew, as long as `go_on` says so, which is asked every few milliseconds. Where that
    /// fails, the one that was there stays in use; an error means that none is left open.
    pub(crate) fn run(
        &mut self,
        index: Index,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Index, IndexError> {
        let (live, before) = (index.live(), index.size()?);
        let fresh = beside(&self.dir);
        match self.write(&index, &fresh, go_on) {
            Ok(true) => {}
            Ok(false) => {
                clear(&self.dir);
                return Ok(index);
            }
            Err(error) => {
                self.back_off(before, &error);
                return Ok(index);
            }
        }
        let mut exchanged = Ok(());
        let index = index.exchange(&self.dir, || exchanged = exchange(&fresh, &self.dir))?;
        if let Err(error) = exchanged {
            self.back_off(before, &failed("put it in its place", &error));
            return Ok(index);
        }
        clear(&self.dir);
        let after = index.size()?;
        self.fresh_percent = after.saturating_mul(100) / (live + BASE_BYTES);
        self.retry_at = 0;
        tracing::info!(before, after, live, "the index was written anew");
        Ok(index)
    }

    fn write(
        &self,
        index: &Index,
        fresh: &Path,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool, IndexError> {
        // The log shares the disk: the broker stops where that is full, so a copy must not fill it.
        let disk = statvfs(&self.dir).map_err(|error| failed("look at the disk", &error.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < self.fresh(index.live()).saturating_mul(2) {
            return Err("there is no room on the disk".to_owned().into());
        }
        fs::create_dir(fresh).map_err(|error| failed("create a directory", &error))?;
        let is_whole = guarded(|| index.copy(fresh, go_on))?;
        if is_whole {
            sync_all(fresh).map_err(|error| failed("make it durable", &error))?;
        }
        Ok(is_whole)
    }

    /// What a fresh file would take.
    const fn fresh(&self, live: u64) -> u64 {
        (live.saturating_add(BASE_BYTES) / 100).saturating_mul(self.fresh_percent)
    }

    fn back_off(&mut self, size: u64, error: &IndexError) {
        tracing::warn!(%error, "the index could not be written anew; its file stays large");
        self.retry_at = size.saturating_add(size / 2);
        clear(&self.dir);
    }
}

/// Removes what a compaction has left beside the index in `dir`.
pub(crate) fn clear(dir: &Path) {
    for left in [beside(dir), aside(dir)] {
        match fs::remove_dir_all(&left) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %left.display(), "cannot remove an index that nobody uses");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// Where the fresh one is written, and where the old one is after the exchange.
fn beside(dir: &Path) -> PathBuf {
    dir.with_extension("fresh")
}

/// Where the old one waits if the file system cannot exchange.
fn aside(dir: &Path) -> PathBuf {
    dir.with_extension("old")
}

/// Puts `fresh` in the place of `dir`, and what is there in its.
fn exchange(fresh: &Path, dir: &Path) -> io::Result<()> {
    match renameat_with(CWD, fresh, CWD, dir, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => step_aside(fresh, dir)?,
        exchanged => exchanged?,
    }
    sync_parent(dir)
}

/// The same in two steps. A crash between them leaves no index, and the next start builds one.
fn step_aside(fresh: &Path, dir: &Path) -> io::Result<()> {
    fs::rename(dir, aside(dir))?;
    if let Err(error) = fs::rename(fresh, dir) {
        fs::rename(aside(dir), dir)?;
        return Err(error);
    }
    Ok(())
}

fn sync_all(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_all(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(dir)?.sync_all()
}

fn sync_parent(dir: &Path) -> io::Result<()> {
    dir.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

fn failed(what: &str, error: &io::Error) -> IndexError {
    format!("cannot {what}: {error}").into()
}

#[cfg(test)]
pub(crate) mod tests;
