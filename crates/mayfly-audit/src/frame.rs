//! The bytes of a segment: one header, then frames. Pure, so that it can be fuzzed.
//!
//! ```text
//! header  magic 8 | version 4 | shard 2 | flags 2 | first 8 | previous first 8 | previous length 8
//!         | previous chain 32 | crc 4
//! frame   length 4 | crc 4 | sequence 8 | durable 8 | chain 32 | payload
//! ```
//! Numbers are little-endian. `chain` of a frame is SHA-256(chain before it ‖ sequence ‖ payload), the
//! chain before the first record is all zeros. `durable` is the last record that was known to be on
//! disk when the frame was written.

use std::fmt;

use mayfly_core::{Sequence, Shard};
use ring::digest;

/// Format version of segments.
pub(crate) const VERSION: u32 = 1;
/// Bytes of a segment's header.
pub(crate) const HEADER_BYTES: usize = 76;
/// Bytes of a frame before its payload.
pub(crate) const FRAME_BYTES: usize = 56;
/// Largest encoded record. Core's own limits keep records far below it.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

const MAGIC: [u8; 8] = *b"MAYFLYLG";
const RESUMED: u16 = 1;

/// A link of the hash chain: it vouches for one record and for all before it.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct Chain([u8; 32]);

impl Chain {
    /// The link before the first record.
    pub const GENESIS: Self = Self([0; 32]);

    /// Wraps a link that was kept elsewhere.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The link for the record that follows this one.
    #[must_use]
    pub fn link(&self, sequence: Sequence, payload: &[u8]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&self.0);
        context.update(&sequence.0.to_le_bytes());
        context.update(payload);
        let mut link = [0; 32];
        for (to, from) in link.iter_mut().zip(context.finish().as_ref()) {
            *to = *from;
        }
        Self(link)
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What a segment says about itself and about the one before it. The latter makes a missing or
/// shortened segment visible without reading all of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Header {
    pub(crate) shard: Shard,
    /// An operator confirmed that records before this segment were lost; its first record does not
    /// follow the last one of the segment before.
    pub(crate) resumed: bool,
    pub(crate) first: Sequence,
    pub(crate) previous_first: Sequence,
    pub(crate) previous_length: u64,
    pub(crate) previous_chain: Chain,
}

/// Why a header cannot be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum BadHeader {
    Damaged(&'static str),
    Version(u32),
}

impl Header {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.shard.0.to_le_bytes());
        bytes.extend((if self.resumed { RESUMED } else { 0 }).to_le_bytes());
        bytes.extend(self.first.0.to_le_bytes());
        bytes.extend(self.previous_first.0.to_le_bytes());
        bytes.extend(self.previous_length.to_le_bytes());
        bytes.extend(self.previous_chain.0);
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        const SHORT: BadHeader = BadHeader::Damaged("the segment's header is short");
        let mut rest = bytes;
        if take::<8>(&mut rest).ok_or(SHORT)? != MAGIC {
            return Err(BadHeader::Damaged("this is not a log segment"));
        }
        // The version comes before the checksum: a later format may have another header.
        let version = u32::from_le_bytes(take(&mut rest).ok_or(SHORT)?);
        if version != VERSION {
            return Err(BadHeader::Version(version));
        }
        let (covered, crc) = bytes.split_at_checked(HEADER_BYTES - 4).ok_or(SHORT)?;
        if crc != crc32fast::hash(covered).to_le_bytes() {
            return Err(BadHeader::Damaged("the segment's header fails its checksum"));
        }
        let shard = Shard(u16::from_le_bytes(take(&mut rest).ok_or(SHORT)?));
        let resumed = u16::from_le_bytes(take(&mut rest).ok_or(SHORT)?) == RESUMED;
        Ok(Self {
            shard,
            resumed,
            first: Sequence(u64::from_le_bytes(take(&mut rest).ok_or(SHORT)?)),
            previous_first: Sequence(u64::from_le_bytes(take(&mut rest).ok_or(SHORT)?)),
            previous_length: u64::from_le_bytes(take(&mut rest).ok_or(SHORT)?),
            previous_chain: Chain(take(&mut rest).ok_or(SHORT)?),
        })
    }
}

/// A frame without its payload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Frame {
    pub(crate) length: usize,
    pub(crate) crc: u32,
    pub(crate) sequence: Sequence,
    pub(crate) durable: Sequence,
    pub(crate) chain: Chain,
}

impl Frame {
    pub(crate) fn new(sequence: Sequence, durable: Sequence, chain: Chain, payload: &[u8]) -> Self {
        let mut frame = Self { length: payload.len(), crc: 0, sequence, durable, chain };
        frame.crc = frame.checksum(payload);
        frame
    }

    /// The checksum covers the length as well: a wrong length must not make a right frame.
    fn checksum(&self, payload: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.length.to_le_bytes());
        hasher.update(&self.sequence.0.to_le_bytes());
        hasher.update(&self.durable.0.to_le_bytes());
        hasher.update(&self.chain.0);
        hasher.update(payload);
        hasher.finalize()
    }

    pub(crate) fn holds(&self, payload: &[u8]) -> bool {
        payload.len() == self.length && self.checksum(payload) == self.crc
    }

    pub(crate) fn write(&self, payload: &[u8], out: &mut Vec<u8>) {
        // The length is bounded by `PAYLOAD_BYTES_MAX`, which `Log::append` has checked.
        out.extend(u32::try_from(self.length).unwrap_or(u32::MAX).to_le_bytes());
        out.extend(self.crc.to_le_bytes());
        out.extend(self.sequence.0.to_le_bytes());
        out.extend(self.durable.0.to_le_bytes());
        out.extend(self.chain.0);
        out.extend(payload);
    }

    /// Reads the part before the payload; `None` if it cannot be one.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let length = usize::try_from(u32::from_le_bytes(take(&mut rest)?)).ok()?;
        // No record encodes to nothing, and a hole in a file reads as zeros.
        if length == 0 || length > PAYLOAD_BYTES_MAX {
            return None;
        }
        Some(Self {
            length,
            crc: u32::from_le_bytes(take(&mut rest)?),
            sequence: Sequence(u64::from_le_bytes(take(&mut rest)?)),
            durable: Sequence(u64::from_le_bytes(take(&mut rest)?)),
            chain: Chain(take(&mut rest)?),
        })
    }
}

/// Whether `rest`, which begins with the unreadable record `bad`, holds a frame that was written
/// after `bad` was durable. If so `bad` was once readable and this is damage; if not, all of it
/// belongs to a write that never finished.
pub(crate) fn proves_durable(rest: &[u8], bad: Sequence) -> bool {
    let frames_max = u64::try_from(rest.len() / FRAME_BYTES).unwrap_or(u64::MAX);
    (1..rest.len()).any(|at| {
        let Some(here) = rest.get(at..) else {
            return false;
        };
        Frame::parse(here).is_some_and(|frame| {
            // The cheap questions first; a checksum is asked for only where a frame is plausible.
            frame.durable >= bad
                && frame.sequence > bad
                && frame.sequence.0 - bad.0 <= frames_max
                && here
                    .get(FRAME_BYTES..FRAME_BYTES + frame.length)
                    .is_some_and(|payload| frame.holds(payload))
        })
    })
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}
