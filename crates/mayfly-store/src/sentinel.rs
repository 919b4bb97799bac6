//! The sentinel: how far the log was, kept in a place that is not restored along with it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use mayfly_audit::Chain;
use mayfly_core::{Sequence, Shard};
use ring::digest;

use crate::error::StoreError;

const TITLE: &str = "mayfly sentinel 1";

/// A position that was durable in the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Sentinel {
    pub(crate) shard: Shard,
    pub(crate) sequence: Sequence,
    pub(crate) chain: Chain,
}

/// What stands in the sentinel's file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Found {
    Nothing,
    Damaged,
    Sentinel(Sentinel),
}

/// The file.
#[derive(Clone, Debug)]
pub(crate) struct SentinelFile {
    dir: PathBuf,
}

impl SentinelFile {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("sentinel")
    }

    pub(crate) fn read(&self) -> Result<Found, StoreError> {
        let path = self.path();
        match fs::read(&path) {
            Ok(bytes) => Ok(String::from_utf8(bytes)
                .ok()
                .and_then(|text| Sentinel::parse(&text))
                .map_or(Found::Damaged, Found::Sentinel)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
            Err(error) => Err(StoreError::io("read", &path, error)),
        }
    }

    /// Puts `sentinel` in place of the one before, whole or not at all. Only for a position that is
    /// durable already: a sentinel ahead of its log would accuse a healthy one.
    pub(crate) fn write(&self, sentinel: &Sentinel) -> Result<(), StoreError> {
        let path = self.path();
        let draft = self.dir.join("sentinel.draft");
        let failed = |error| StoreError::io("write", &path, error);
        let mut file = File::create(&draft).map_err(failed)?;
        file.write_all(sentinel.print().as_bytes()).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        fs::rename(&draft, &path).map_err(failed)?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed)
    }
}

impl Sentinel {
    /// Text, because somebody will look at it when a start is refused.
    fn print(&self) -> String {
        let body = format!(
            "{TITLE}\nshard {}\nsequence {}\nchain {}\n",
            self.shard.0, self.sequence.0, self.chain
        );
        let check = hex(digest::digest(&digest::SHA256, body.as_bytes()).as_ref());
        format!("{body}check {check}\n")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().skip(1).filter_map(|line| line.split_once(' '));
        let mut field = |name| lines.next().filter(|(key, _)| *key == name).map(|(_, value)| value);
        let sentinel = Self {
            shard: Shard(field("shard")?.parse().ok()?),
            sequence: Sequence(field("sequence")?.parse().ok()?),
            chain: Chain::from_bytes(unhex(field("chain")?)?),
        };
        // Printing it again checks the title, the checksum and every blank at once.
        (sentinel.print() == text).then_some(sentinel)
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (to, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *to = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentinel_reads_back_and_any_other_byte_makes_it_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let file = SentinelFile::new(dir.path());
        assert_eq!(file.read().unwrap(), Found::Nothing);
        let chain = Chain::from_bytes([0xAB; 32]);
        let sentinel = Sentinel { shard: Shard(3), sequence: Sequence(4711), chain };
        file.write(&sentinel).unwrap();
        assert_eq!(file.read().unwrap(), Found::Sentinel(sentinel));
        let text = fs::read(dir.path().join("sentinel")).unwrap();
        for at in 0..text.len() {
            let mut bytes = text.clone();
            bytes[at] ^= 1;
            fs::write(dir.path().join("sentinel"), &bytes).unwrap();
            assert_eq!(file.read().unwrap(), Found::Damaged, "byte {at}");
        }
    }
}
