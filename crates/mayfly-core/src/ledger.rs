//! Serials, and where a credential's task stands in the status bitmaps.
//!
//! A serial carries its place, so that a verifier finds the right two bits without a map. Slots are
//! handed out in order within a window and never twice: a window is named by time, which does not
//! come back, and its next free slot outlives the tasks that used the slots before it.

use alloc::{collections::BTreeMap, string::String};
use core::fmt;

use crate::{
    id::{InvalidId, TaskVersion},
    limits,
    time::Timestamp,
};

/// An expiry window: all instants `t` with `t / WINDOW` equal to this number.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Window(pub u32);

impl Window {
    /// The window in which `not_after` falls.
    #[must_use]
    pub fn of(not_after: Timestamp) -> Self {
        // 2^32 windows of ten minutes last for 81,000 years.
        Self(u32::try_from(not_after.0 / limits::WINDOW.0).unwrap_or(u32::MAX))
    }

    /// The first instant at which nobody needs this window any more.
    #[must_use]
    pub fn forget_at(self) -> Timestamp {
        Timestamp((u64::from(self.0) + 1) * limits::WINDOW.0).plus(limits::FORGET_AFTER)
    }
}

/// An index into a window's bitmap.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Slot(pub u32);

/// Where a task's credentials of one expiry window stand.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// Which bitmap.
    pub window: Window,
    /// Which two bits.
    pub slot: Slot,
}

/// A credential's name: `1 | window | slot | 64 random bits`, 17 octets. The X.509 serial number and,
/// in hexadecimal, the JWT's `jti`.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Serial([u8; Self::BYTES]);

impl Serial {
    /// RFC 5280 allows 20 octets; the leading 1 keeps the number positive and its length fixed.
    pub const BYTES: usize = 17;
    const VERSION: u8 = 1;

    /// Builds a serial from a place and 64 bits of luck.
    #[must_use]
    pub fn new(place: Place, luck: u64) -> Self {
        let mut bytes = [0; Self::BYTES];
        let parts = [Self::VERSION]
            .into_iter()
            .chain(place.window.0.to_be_bytes())
            .chain(place.slot.0.to_be_bytes())
            .chain(luck.to_be_bytes());
        for (to, from) in bytes.iter_mut().zip(parts) {
            *to = from;
        }
        Self(bytes)
    }

    /// Reads the octets of an X.509 serial number.
    ///
    /// # Errors
    /// [`InvalidId`] if the length or the leading octet is not ours.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidId> {
        let rule = |rule| InvalidId { what: "serial", rule };
        let bytes: [u8; Self::BYTES] =
            bytes.try_into().map_err(|_length| rule("it is not 17 octets long"))?;
        if bytes.first() != Some(&Self::VERSION) {
            return Err(rule("it does not start with octet 01"));
        }
        Ok(Self(bytes))
    }

    /// Reads 34 hexadecimal digits; colons between octets are allowed, as `openssl` prints them.
    ///
    /// # Errors
    /// [`InvalidId`] if it is anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let rule = InvalidId { what: "serial", rule: "it is not 34 hexadecimal digits" };
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        if digits.len() != 2 * Self::BYTES {
            return Err(rule);
        }
        let mut bytes = [0; Self::BYTES];
        for (to, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let pair = core::str::from_utf8(pair).map_err(|_not_ascii| rule.clone())?;
            if !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(rule);
            }
            *to = u8::from_str_radix(pair, 16).map_err(|_not_hex| rule.clone())?;
        }
        Self::from_bytes(&bytes)
    }

    /// The octets, for an X.509 serial number.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// Where the credential's task stands.
    #[must_use]
    pub fn place(&self) -> Place {
        let number = |from: usize| {
            self.0.iter().skip(from).take(4).fold(0_u32, |sum, byte| (sum << 8) | u32::from(*byte))
        };
        Place { window: Window(number(1)), slot: Slot(number(5)) }
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What kind of credential a promise is about.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// An X.509-SVID.
    X509,
    /// A JWT-SVID.
    Jwt,
}

/// A promised credential. It may never have been signed; it is remembered as if it had been.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Credential {
    /// Its name.
    pub serial: Serial,
    /// Certificate or token.
    pub kind: Kind,
    /// The task's version when it was promised.
    pub version: TaskVersion,
    /// When it expires by itself.
    pub not_after: Timestamp,
    /// When it was revoked on its own, apart from its task.
    pub revoked_at: Option<Timestamp>,
}

impl Credential {
    /// Whether somebody may still rely on it at `at`, for all that its own end has passed.
    pub(crate) fn outlives(&self, at: Timestamp) -> bool {
        self.not_after.plus(limits::FORGET_AFTER) > at
    }
}

/// The next free slot of each live window.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Slots(BTreeMap<Window, u32>);

impl Slots {
    /// Takes the next slot of `window`; `None` when the window is full.
    #[must_use]
    pub fn take(&mut self, window: Window) -> Option<Place> {
        let next = self.0.entry(window).or_insert(0);
        if *next >= limits::SLOTS_PER_WINDOW_MAX {
            return None;
        }
        let slot = Slot(*next);
        *next += 1;
        Some(Place { window, slot })
    }

    /// Learns that `place` is taken.
    pub fn reserve(&mut self, place: Place) {
        let next = self.0.entry(place.window).or_insert(0);
        *next = (*next).max(place.slot.0.saturating_add(1));
    }

    /// Drops windows that nobody needs at `now`.
    pub fn forget(&mut self, now: Timestamp) {
        self.0.retain(|window, _| window.forget_at() > now);
    }

    /// The windows with their next free slots.
    pub fn iter(&self) -> impl Iterator<Item = (Window, u32)> {
        self.0.iter().map(|(window, next)| (*window, *next))
    }

    #[cfg(feature = "planted")]
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_carries_its_place_and_reads_back() {
        let place = Place { window: Window(0x0102_0304), slot: Slot(0x0506_0708) };
        let serial = Serial::new(place, u64::MAX);
        assert_eq!(serial.place(), place);
        assert_eq!(Serial::parse(&alloc::format!("{serial}")), Ok(serial));
        assert_eq!(Serial::from_bytes(serial.as_bytes()), Ok(serial));
        assert!(Serial::parse("01").is_err());
        assert!(Serial::parse(&"é".repeat(17)).is_err());
    }

    #[test]
    fn a_slot_is_not_handed_out_twice_even_after_replay() {
        let mut slots = Slots::default();
        let first = slots.take(Window(7)).unwrap();
        let mut replayed = Slots::default();
        replayed.reserve(first);
        assert_ne!(replayed.take(Window(7)), Some(first));
    }
}
