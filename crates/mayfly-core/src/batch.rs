//! A delta's changes as bytes, in one form and no other.
//!
//! What is signed must read one way only, so there is exactly one encoding of a set of facts, and the
//! decoder refuses every other: a number that could be shorter, an order that could be another, a place
//! that no serial can name, a byte too many. Changes are grouped by window and sorted by slot, and each
//! number says how far it lies beyond the one before it, which makes an end in a busy window one byte.
//!
//! ```text
//! changes = windows, window*, serials, serial*
//! window  = gap, places, place*        at least one place
//! place   = gap * 4 + status           status 0 valid, 1 revoked, 2 suspended
//! serial  = 17 octets, until           sorted by their octets; Unix milliseconds
//! ```
//!
//! Every number is a varint, least significant seven bits first, in as few bytes as possible. The first
//! gap of a list is the number itself, each further one the difference to its predecessor less one.

use alloc::{collections::BTreeMap, vec::Vec};
use core::fmt;

use crate::{
    ledger::{Place, Serial, Slot, Window},
    limits,
    revocation::{Change, Status},
    time::Timestamp,
};

/// What a head is signed under: this, then the head. No JWS begins with a lower case `m`, so a signature
/// of one kind is never one of the other.
pub const SEAL_LABEL: &[u8] = b"mayfly.v1.RevocationFeed\0";
/// What a batch is hashed under: this, then the batch.
pub const BATCH_LABEL: &[u8] = b"mayfly.v1 batch\0";
/// What an opening is hashed under: this, then the opening.
pub const OPENING_LABEL: &[u8] = b"mayfly.v1 opening\0";
/// What a snapshot is hashed under: this, then for each part its length (four octets, the highest
/// first) and the part.
pub const SNAPSHOT_LABEL: &[u8] = b"mayfly.v1 snapshot\0";
/// The octets of a hash and of a digest: SHA-256.
pub const HASH_BYTES: usize = 32;

/// Why bytes are not a batch's changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct InvalidBatch(&'static str);

impl fmt::Display for InvalidBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid batch: {}", self.0)
    }
}

impl core::error::Error for InvalidBatch {}

/// Facts on their way to a batch: what a number of changes come to when they are taken in order.
///
/// A place that is named twice has the last status, unless it was revoked in between, because that is
/// what [`RevocationSet::take`](crate::RevocationSet::take) makes of it. So there are never more of
/// them than there are places and serials, however many changes came.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    windows: BTreeMap<Window, BTreeMap<Slot, Status>>,
    serials: BTreeMap<Serial, Timestamp>,
    places: usize,
}

impl Changes {
    /// Learns one more.
    pub fn take(&mut self, change: Change) {
        match change {
            // No serial can name it, and a bitmap would not take it either.
            Change::Place(place, _) if place.slot.0 >= limits::SLOTS_PER_WINDOW_MAX => {}
            Change::Place(place, status) => {
                let slots = self.windows.entry(place.window).or_default();
                let held = slots.entry(place.slot).or_insert_with(|| {
                    self.places += 1;
                    status
                });
                if *held != Status::Revoked {
                    *held = status;
                }
            }
            Change::Serial(serial, until) => {
                self.serials.insert(serial, until);
            }
        }
    }

    /// How many facts there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places + self.serials.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The facts, in the order of the encoding.
    pub fn iter(&self) -> impl Iterator<Item = Change> {
        let places = self.windows.iter().flat_map(|(window, slots)| {
            slots.iter().map(|(slot, status)| {
                Change::Place(Place { window: *window, slot: *slot }, *status)
            })
        });
        places.chain(self.serials.iter().map(|(serial, until)| Change::Serial(*serial, *until)))
    }

    /// Writes them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_number(&mut bytes, self.windows.len() as u64);
        let mut gaps = Gaps::default();
        for (window, slots) in &self.windows {
            write_number(&mut bytes, gaps.close(window.0.into()));
            write_number(&mut bytes, slots.len() as u64);
            let mut gaps = Gaps::default();
            for (slot, status) in slots {
                write_number(&mut bytes, gaps.close(slot.0.into()) << 2 | *status as u64);
            }
        }
        write_number(&mut bytes, self.serials.len() as u64);
        for (serial, until) in &self.serials {
            bytes.extend_from_slice(serial.as_bytes());
            write_number(&mut bytes, until.0);
        }
        bytes
    }
}

impl<'a> FromIterator<&'a Change> for Changes {
    fn from_iter<I: IntoIterator<Item = &'a Change>>(changes: I) -> Self {
        let mut taken = Self::default();
        changes.into_iter().for_each(|change| taken.take(*change));
        taken
    }
}

/// Writes what `changes` come to when they are taken in order.
#[must_use]
pub fn encode<'a>(changes: impl IntoIterator<Item = &'a Change>) -> Vec<u8> {
    changes.into_iter().collect::<Changes>().encode()
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// [`InvalidBatch`] for anything else, however slightly, and for more than
/// [`CHANGES_PER_BATCH_MAX`](limits::CHANGES_PER_BATCH_MAX) changes.
pub fn decode(bytes: &[u8]) -> Result<Vec<Change>, InvalidBatch> {
    let mut rest = Rest(bytes);
    let mut changes = Vec::new();
    let mut windows = Gaps::default();
    for _ in 0..rest.number()? {
        let window = Window(windows.open_u32(rest.number()?)?);
        let places = rest.count(changes.len())?;
        if places == 0 {
            return Err(InvalidBatch("a window is empty"));
        }
        let mut slots = Gaps::default();
        for _ in 0..places {
            let number = rest.number()?;
            let slot = Slot(slots.open_u32(number >> 2)?);
            if slot.0 >= limits::SLOTS_PER_WINDOW_MAX {
                return Err(InvalidBatch("a slot is out of bounds"));
            }
            changes.push(Change::Place(Place { window, slot }, status(number)?));
        }
    }
    let mut last = None;
    for _ in 0..rest.count(changes.len())? {
        let serial = rest.serial()?;
        if last >= Some(serial) {
            return Err(InvalidBatch("serials are out of order"));
        }
        last = Some(serial);
        changes.push(Change::Serial(serial, Timestamp(rest.number()?)));
    }
    if rest.0.is_empty() { Ok(changes) } else { Err(InvalidBatch("bytes are left over")) }
}

const fn status(number: u64) -> Result<Status, InvalidBatch> {
    match number & 3 {
        0 => Ok(Status::Valid),
        1 => Ok(Status::Revoked),
        2 => Ok(Status::Suspended),
        _ => Err(InvalidBatch("a status is unassigned")),
    }
}

/// Turns rising numbers into gaps and back.
#[derive(Default)]
struct Gaps {
    /// The least number that may come next.
    next: u64,
}

impl Gaps {
    const fn close(&mut self, number: u64) -> u64 {
        let gap = number - self.next;
        self.next = number + 1;
        gap
    }

    fn open_u32(&mut self, gap: u64) -> Result<u32, InvalidBatch> {
        let number = self.next.checked_add(gap).and_then(|number| u32::try_from(number).ok());
        let number = number.ok_or(InvalidBatch("a number is out of bounds"))?;
        self.next = u64::from(number) + 1;
        Ok(number)
    }
}

fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

/// What has not been read yet.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn number(&mut self) -> Result<u64, InvalidBatch> {
        let mut number = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(InvalidBatch("it ends too early"))?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                // The last byte of a number says something, unless the number is zero.
                let shortest = *byte != 0 || shift == 0;
                return if shortest { Ok(number) } else { Err(InvalidBatch("a number is padded")) };
            }
        }
        Err(InvalidBatch("a number is too long"))
    }

    /// Reads how many there are of something, when there are `already` so many changes.
    fn count(&mut self, already: usize) -> Result<u64, InvalidBatch> {
        let count = self.number()?;
        let room = limits::CHANGES_PER_BATCH_MAX.saturating_sub(already) as u64;
        if count <= room { Ok(count) } else { Err(InvalidBatch("there are too many changes")) }
    }

    fn serial(&mut self) -> Result<Serial, InvalidBatch> {
        let (octets, rest) = self
            .0
            .split_first_chunk::<{ Serial::BYTES }>()
            .ok_or(InvalidBatch("it ends too early"))?;
        self.0 = rest;
        Serial::from_bytes(octets).map_err(|_rule| InvalidBatch("a serial is not ours"))
    }
}
