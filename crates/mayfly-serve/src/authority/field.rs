//! Walks the fields of a header block (HPACK, RFC 7541 §6) far enough to know where values stand.

use super::huffman::{self, Codes};

/// Static table entry 1 is `:authority` without a value.
const AUTHORITY_INDEX: u32 = 1;
const AUTHORITY: &[u8] = b":authority";
/// `:authority` in Huffman code, padded with ones; a test derives it.
pub(super) const AUTHORITY_CODED: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];
/// No honest length or index needs more than 28 bits.
const INTEGER_SHIFT_MAX: u32 = 21;

/// HPACK that no decoder accepts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nonsense;

/// What a number that is being read means.
#[derive(Clone, Copy, Debug)]
enum Meaning {
    /// An index into the tables: the whole field, or a table size.
    Nothing,
    /// The name of a literal field, by index.
    NameIndex,
    /// The length of a name.
    NameLength { coded: bool },
    /// The length of a value.
    ValueLength { coded: bool },
}

#[derive(Clone, Copy, Debug, Default)]
enum At {
    /// At the first octet of a field.
    #[default]
    Field,
    /// In the later octets of a number.
    Number {
        value: u32,
        shift: u32,
        meaning: Meaning,
    },
    /// At the first octet of a string.
    NameLength,
    ValueLength,
    /// In a name: octets to go, how many there were, and whether they spell `:authority` so far.
    Name {
        left: u32,
        seen: usize,
        coded: bool,
        is_authority: bool,
    },
    /// In a value.
    Value {
        left: u32,
        coded: bool,
    },
}

/// One header block, which may come in several frames.
#[derive(Debug, Default)]
pub(super) struct Fields {
    at: At,
    /// Whether the field's name is `:authority`.
    is_authority: bool,
    /// Whether its value, in plain octets, is an absolute path; unknown before the first.
    is_path: Option<bool>,
    codes: Codes,
}

impl Fields {
    /// Whether the last octet may change when the next one is known.
    pub(super) const fn is_within_a_character(&self) -> bool {
        matches!(self.at, At::Value { coded: true, .. })
            && self.is_authority
            && self.codes.is_within_a_twin()
    }

    /// The block goes on in another frame. A character that straddles the two cannot be replaced any
    /// more, because its beginning was passed on.
    pub(super) const fn interrupt(&mut self) {
        self.codes.interrupt();
    }

    /// Takes the next octet of the block, and mends it and the one before it.
    pub(super) fn step(&mut self, octet: &mut u8, before: Option<&mut u8>) -> Result<(), Nonsense> {
        match self.at {
            At::Field => self.field(*octet),
            At::Number { value, shift, meaning } => {
                if shift > INTEGER_SHIFT_MAX {
                    return Err(Nonsense);
                }
                let value = value + (u32::from(*octet & 0x7f) << shift);
                if *octet & 0x80 == 0 {
                    self.number(value, meaning);
                } else {
                    self.at = At::Number { value, shift: shift + 7, meaning };
                }
            }
            At::NameLength => {
                let coded = *octet & 0x80 != 0;
                self.prefix(*octet, 7, Meaning::NameLength { coded });
            }
            At::ValueLength => {
                let coded = *octet & 0x80 != 0;
                self.prefix(*octet, 7, Meaning::ValueLength { coded });
            }
            At::Name { left, seen, coded, is_authority } => {
                let wanted = if coded { AUTHORITY_CODED } else { AUTHORITY };
                let is_authority = is_authority && wanted.get(seen) == Some(octet);
                if left > 1 {
                    self.at = At::Name { left: left - 1, seen: seen + 1, coded, is_authority };
                } else {
                    self.is_authority = is_authority && seen + 1 == wanted.len();
                    self.at = At::ValueLength;
                }
            }
            At::Value { left, coded } => {
                if self.is_authority && coded {
                    self.codes.step(octet, before);
                } else if self.is_authority {
                    let is_path = *self.is_path.get_or_insert(*octet == b'/');
                    *octet = huffman::plain_twin(*octet, is_path);
                }
                self.at = if left > 1 { At::Value { left: left - 1, coded } } else { At::Field };
            }
        }
        Ok(())
    }

    fn field(&mut self, octet: u8) {
        self.is_authority = false;
        match octet {
            0x80.. => self.prefix(octet, 7, Meaning::Nothing), // Indexed.
            0x40.. => self.prefix(octet, 6, Meaning::NameIndex), // Literal, to be indexed.
            0x20.. => self.prefix(octet, 5, Meaning::Nothing), // A new table size.
            _ => self.prefix(octet, 4, Meaning::NameIndex),    // Literal, not to be indexed.
        }
    }

    /// Reads a number's first octet, of which the lowest `bits` belong to it (RFC 7541 §5.1).
    fn prefix(&mut self, octet: u8, bits: u32, meaning: Meaning) {
        let full = (1_u32 << bits) - 1;
        let value = u32::from(octet) & full;
        if value < full {
            self.number(value, meaning);
        } else {
            self.at = At::Number { value, shift: 0, meaning };
        }
    }

    fn number(&mut self, value: u32, meaning: Meaning) {
        self.at = match (meaning, value) {
            (Meaning::Nothing, _) => At::Field,
            (Meaning::NameIndex, 0) => At::NameLength,
            (Meaning::NameIndex, index) => {
                self.is_authority = index == AUTHORITY_INDEX;
                At::ValueLength
            }
            (Meaning::NameLength { .. }, 0) => At::ValueLength,
            (Meaning::NameLength { coded }, left) => {
                At::Name { left, seen: 0, coded, is_authority: true }
            }
            (Meaning::ValueLength { .. }, 0) => At::Field,
            (Meaning::ValueLength { coded }, left) => {
                (self.codes, self.is_path) = (Codes::default(), None);
                At::Value { left, coded }
            }
        };
    }
}
