//! HPACK's Huffman code (RFC 7541 appendix B), as far as it takes to see where characters end.
//!
//! The code is canonical: codes of one length are consecutive numbers, and the shortest come first. So
//! the number of codes of each length is all that is needed to find the end of every character.

/// How many characters have a code of this many bits.
const COUNTS: [u32; 31] = [
    0, 0, 0, 0, 0, 10, 26, 32, 6, 0, 5, 3, 2, 6, 2, 3, 0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19,
    29, 0, 4,
];

/// Codes that h2 refuses in an authority, with one of the same length that it takes: bits, code, twin.
const TWINS: [(u8, u32, u32); 6] = [
    (6, 0b01_0100, 0b01_0110),              // space → -
    (6, 0b01_0101, 0b01_0110),              // % → -
    (6, 0b01_1000, 0b01_0110),              // / → -
    (10, 0b11_1111_1001, 0b11_1111_1000),   // " → !
    (10, 0b11_1111_1100, 0b11_1111_1000),   // ? → !
    (11, 0b111_1111_1100, 0b111_1111_1011), // | → +
];

/// What h2 takes in place of a plain octet. Control characters stay: they are wrong in any value. What
/// has a meaning in an authority goes only from a value that is a path, which begins with `/`.
pub(super) const fn plain_twin(octet: u8, of_path: bool) -> u8 {
    match octet {
        b':' | b'@' | b'[' | b']' if of_path => b'-',
        b' '
        | b'"'
        | b'#'
        | b'%'
        | b'/'
        | b'<'
        | b'>'
        | b'?'
        | b'\\'
        | b'^'
        | b'`'
        | b'{'
        | b'|'
        | b'}'
        | 0x80.. => b'-',
        other => other,
    }
}

/// A walk over the characters of one string.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Codes {
    /// Bits of the character that has begun.
    code: u32,
    bits: u8,
    /// The first code of the current length, and whether nothing is understood any more.
    first: u32,
    lost: bool,
}

impl Codes {
    /// What follows is elsewhere: a character that has begun is not replaced.
    pub(super) const fn interrupt(&mut self) {
        self.lost |= self.bits > 0;
    }

    /// Whether a character that may be replaced has begun in the last octet and not ended.
    pub(super) const fn is_within_a_twin(&self) -> bool {
        // Twins of ten and eleven bits begin with eight ones, which may be one octet back: see `step`.
        !self.lost && self.bits > 0 && self.bits < 11
    }

    /// Takes the next octet of the string; characters that end in it are replaced in place.
    pub(super) fn step(&mut self, octet: &mut u8, mut before: Option<&mut u8>) {
        let read = *octet;
        for place in (0..8_u8).rev() {
            if self.lost {
                return;
            }
            self.code = (self.code << 1) | u32::from((read >> place) & 1);
            self.bits += 1;
            let count = COUNTS.get(usize::from(self.bits)).copied();
            let Some(count) = count else {
                self.lost = true; // Thirty ones: the end-of-string code, which may not occur.
                return;
            };
            self.first <<= 1;
            if self.code.wrapping_sub(self.first) < count {
                self.replace(place, octet, before.as_deref_mut());
                (self.code, self.bits, self.first) = (0, 0, 0);
            } else {
                self.first += count;
            }
        }
    }

    /// A character has ended at bit `place` of `octet`: writes its twin over it, if it has one.
    fn replace(&self, place: u8, octet: &mut u8, before: Option<&mut u8>) {
        let twin = TWINS.iter().find(|twin| (twin.0, twin.1) == (self.bits, self.code));
        let Some((_, code, twin)) = twin else { return };
        // The bits that differ, where they stand in the two octets.
        let [.., high, low] = ((code ^ twin) << place).to_be_bytes();
        *octet ^= low;
        if let Some(before) = before {
            *before ^= high;
        }
    }
}
