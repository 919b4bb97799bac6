//! The revocation set: which credentials are over, as far as the reader of this set has heard.
//!
//! The broker and every verifier hold the same type and feed it the same deltas, so there is one
//! definition of "ended" and no translation between them. An entry is two bits per task and expiry
//! window, not a certificate: a task with ten thousand credentials costs a slot or two, and its end
//! costs one delta.
//!
//! A window is forgotten whole once everything in it has expired and a margin has passed. Forgetting
//! earlier would bring the dead back; forgetting later only costs memory.

use alloc::{collections::BTreeMap, vec::Vec};

use crate::{
    id::Position,
    ledger::{Place, Serial, Slot, Window},
    limits,
    time::Timestamp,
};

/// What two bits say. The numbers are those of the Token Status List.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Status {
    /// Nothing is known against it.
    #[default]
    Valid = 0,
    /// Over, for ever.
    Revoked = 1,
    /// Not now: its task is quarantined.
    Suspended = 2,
}

impl Status {
    /// Reads two bits. The unassigned value 3 is read as revoked, because what is not understood must
    /// not be accepted.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Valid,
            2 => Self::Suspended,
            _ => Self::Revoked,
        }
    }
}

/// One window's statuses, two bits a slot, least significant first.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Bitmap(Vec<u8>);

impl Bitmap {
    /// Wraps packed bits as they came over the wire. Too long a bitmap is refused.
    #[must_use]
    pub fn from_packed(bytes: Vec<u8>) -> Option<Self> {
        (bytes.len() <= limits::SLOTS_PER_WINDOW_MAX as usize / 4).then_some(Self(bytes))
    }

    /// The packed bits, without trailing zero bytes.
    #[must_use]
    pub fn as_packed(&self) -> &[u8] {
        &self.0
    }

    /// The status of `slot`; a slot beyond the end is valid.
    #[must_use]
    pub fn get(&self, slot: Slot) -> Status {
        let byte = self.0.get(slot.0 as usize / 4).copied().unwrap_or(0);
        Status::from_bits(byte >> (slot.0 % 4 * 2))
    }

    /// Sets the status of `slot`. A slot beyond the bound is ignored: no serial can name it.
    pub fn set(&mut self, slot: Slot, status: Status) {
        if slot.0 >= limits::SLOTS_PER_WINDOW_MAX {
            return;
        }
        let at = slot.0 as usize / 4;
        if at >= self.0.len() {
            self.0.resize(at + 1, 0);
        }
        let shift = slot.0 % 4 * 2;
        if let Some(byte) = self.0.get_mut(at) {
            *byte = (*byte & !(3 << shift)) | ((status as u8) << shift);
        }
    }
}

/// One fact of a delta.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// A task's place has a new status.
    Place(Place, Status),
    /// One credential is revoked on its own; to be remembered until the instant given.
    Serial(Serial, Timestamp),
}

/// Changes between two positions. It applies to a set that stands exactly at `from`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Delta {
    /// The position before.
    pub from: Position,
    /// The position after: that of the last record in it.
    pub to: Position,
    /// What changed.
    pub changes: Vec<Change>,
}

/// Statuses of all live windows, at one position.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RevocationSet {
    position: Position,
    windows: BTreeMap<Window, Bitmap>,
    serials: BTreeMap<Serial, Timestamp>,
}

impl RevocationSet {
    /// An empty set that stands at `position`.
    #[must_use]
    pub const fn at(position: Position) -> Self {
        Self { position, windows: BTreeMap::new(), serials: BTreeMap::new() }
    }

    /// How far this set has heard.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.position
    }

    /// Takes `delta` if it is the next one.
    ///
    /// `false` means that something between was lost. The caller asks for a snapshot and must not
    /// guess: a set with a hole looks exactly like a healthy set in which nobody ended.
    #[must_use]
    pub fn apply(&mut self, delta: &Delta) -> bool {
        if delta.to.shard != self.position.shard || delta.from.shard != self.position.shard {
            return false;
        }
        if delta.to <= self.position {
            return true; // An echo. The feed may repeat itself after a reconnect.
        }
        // INVARIANT P3: a reader that skipped a delta would accept an ended task for ever.
        if delta.from != self.position {
            return false;
        }
        // INVARIANT P9: positions only rise, because they are places in the journal.
        self.position = delta.to;
        for change in &delta.changes {
            self.take(*change);
        }
        true
    }

    /// Learns one fact without moving the position: for building a set from a snapshot or a replay.
    pub fn take(&mut self, change: Change) {
        match change {
            Change::Place(place, status) => {
                let bitmap = self.windows.entry(place.window).or_default();
                // What is revoked stays revoked, whatever order facts arrive in.
                if bitmap.get(place.slot) != Status::Revoked {
                    bitmap.set(place.slot, status);
                }
            }
            Change::Serial(serial, until) => {
                self.serials.insert(serial, until);
            }
        }
    }

    /// Puts a whole window in place, as a snapshot brings it.
    pub fn insert_window(&mut self, window: Window, bitmap: Bitmap) {
        self.windows.insert(window, bitmap);
    }

    /// What is known of a credential: two array look-ups, whatever the number of ended tasks.
    #[must_use]
    pub fn status(&self, serial: &Serial) -> Status {
        if !self.serials.is_empty() && self.serials.contains_key(serial) {
            return Status::Revoked;
        }
        let place = serial.place();
        self.windows.get(&place.window).map_or(Status::Valid, |bitmap| bitmap.get(place.slot))
    }

    /// The windows, oldest first.
    pub fn windows(&self) -> impl Iterator<Item = (Window, &Bitmap)> {
        self.windows.iter().map(|(window, bitmap)| (*window, bitmap))
    }

    /// Credentials revoked on their own, with the instant until which that is remembered.
    pub fn serials(&self) -> impl Iterator<Item = (Serial, Timestamp)> {
        self.serials.iter().map(|(serial, until)| (*serial, *until))
    }

    /// Drops what nobody can present any more at `now`.
    pub fn forget(&mut self, now: Timestamp) {
        self.windows.retain(|window, _| window.forget_at() > now);
        self.serials.retain(|_, until| *until > now);
    }
}
