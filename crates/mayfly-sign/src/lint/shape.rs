//! The skeleton of a leaf: which tags stand in which order, one in the other.

use Tag::{
    BitString, Boolean, Context0, Context0Primitive, Context3, Integer, ObjectIdentifier,
    OctetString, Sequence, Set, Time, Uri, Utf8String,
};

/// The tags of the form (X.680 §8.4; the contexts are those of RFC 5280 appendix A).
#[derive(Clone, Copy, Eq, PartialEq)]
enum Tag {
    Boolean,
    Integer,
    BitString,
    OctetString,
    ObjectIdentifier,
    Utf8String,
    /// `UTCTime` or `GeneralizedTime`.
    Time,
    Sequence,
    Set,
    Context0,
    Context3,
    /// `[0] IMPLICIT OCTET STRING`: a key identifier.
    Context0Primitive,
    /// `[6] IMPLICIT IA5String`: a URI among general names.
    Uri,
}

impl Tag {
    const fn is(self, octet: u8) -> bool {
        match self {
            Boolean => octet == 0x01,
            Integer => octet == 0x02,
            BitString => octet == 0x03,
            OctetString => octet == 0x04,
            ObjectIdentifier => octet == 0x06,
            Utf8String => octet == 0x0c,
            Time => matches!(octet, 0x17 | 0x18),
            Sequence => octet == 0x30,
            Set => octet == 0x31,
            Context0 => octet == 0xa0,
            Context3 => octet == 0xa3,
            Context0Primitive => octet == 0x80,
            Uri => octet == 0x86,
        }
    }
}

/// Depth and tag, in the order of writing. An entry that is followed by a deeper one contains it.
type Shape = [(usize, Tag)];

/// Up to the extensions that come before the distribution point.
const HEAD: &Shape = &[
    (0, Sequence),
    (1, Sequence),
    (2, Context0),
    (3, Integer),
    (2, Integer),
    (2, Sequence),
    (3, ObjectIdentifier),
    // The issuer: organization and common name.
    (2, Sequence),
    (3, Set),
    (4, Sequence),
    (5, ObjectIdentifier),
    (5, Utf8String),
    (3, Set),
    (4, Sequence),
    (5, ObjectIdentifier),
    (5, Utf8String),
    // Validity.
    (2, Sequence),
    (3, Time),
    (3, Time),
    // The subject: organization.
    (2, Sequence),
    (3, Set),
    (4, Sequence),
    (5, ObjectIdentifier),
    (5, Utf8String),
    // The key.
    (2, Sequence),
    (3, Sequence),
    (4, ObjectIdentifier),
    (4, ObjectIdentifier),
    (3, BitString),
    (2, Context3),
    (3, Sequence),
    // The authority's key identifier.
    (4, Sequence),
    (5, ObjectIdentifier),
    (5, OctetString),
    (6, Sequence),
    (7, Context0Primitive),
    // The name.
    (4, Sequence),
    (5, ObjectIdentifier),
    (5, OctetString),
    (6, Sequence),
    (7, Uri),
    // Key usage.
    (4, Sequence),
    (5, ObjectIdentifier),
    (5, Boolean),
    (5, OctetString),
    (6, BitString),
    // Extended key usage.
    (4, Sequence),
    (5, ObjectIdentifier),
    (5, OctetString),
    (6, Sequence),
    (7, ObjectIdentifier),
    (7, ObjectIdentifier),
];

const DISTRIBUTION_POINT: &Shape = &[
    (4, Sequence),
    (5, ObjectIdentifier),
    (5, OctetString),
    (6, Sequence),
    (7, Sequence),
    (8, Context0),
    (9, Context0),
    (10, Uri),
];

/// From the key's identifier to the end.
const TAIL: &Shape = &[
    (4, Sequence),
    (5, ObjectIdentifier),
    (5, OctetString),
    (6, OctetString),
    // Basic constraints; the sequence is empty.
    (4, Sequence),
    (5, ObjectIdentifier),
    (5, Boolean),
    (5, OctetString),
    (6, Sequence),
    // The signature: two numbers.
    (1, Sequence),
    (2, ObjectIdentifier),
    (1, BitString),
];

/// One more than the greatest depth.
const DEPTHS: usize = 11;

/// Whether `der` has the skeleton of a leaf, in DER and with nothing left over.
pub(super) fn is_leaf(der: &[u8], has_distribution_point: bool) -> bool {
    let point = if has_distribution_point { DISTRIBUTION_POINT } else { &[] };
    let mut shape = HEAD.iter().chain(point).chain(TAIL);
    let mut walk = Walk::new(der);
    shape.try_for_each(|(depth, tag)| walk.step(*depth, *tag)).and_then(|()| walk.end()).is_some()
}

/// Where in the octets we are, having followed the shape so far.
struct Walk<'d> {
    der: &'d [u8],
    /// Where what contains the values of each depth ends.
    ends: [usize; DEPTHS],
    /// The depth of the last value, its tag, where its content begins and ends.
    depth: usize,
    octet: u8,
    content: usize,
    end: usize,
}

impl<'d> Walk<'d> {
    fn new(der: &'d [u8]) -> Self {
        let mut ends = [0; DEPTHS];
        ends[0] = der.len();
        Self { der, ends, depth: 0, octet: 0, content: 0, end: 0 }
    }

    /// Goes on to a value that has this tag and lies this deep; `None` if there is none.
    fn step(&mut self, depth: usize, tag: Tag) -> Option<()> {
        if depth > self.depth {
            *self.ends.get_mut(depth)? = self.end;
            self.end = self.content;
        } else {
            self.close(depth)?;
        }
        let room = self.der.get(self.end..*self.ends.get(depth)?)?;
        let (octet, content, rest) = take(room)?;
        if !tag.is(octet) || !is_canonical(tag, content) {
            return None;
        }
        self.end += room.len() - rest.len();
        self.content = self.end - content.len();
        (self.depth, self.octet) = (depth, octet);
        Some(())
    }

    /// Whatever lies deeper is over, with nothing left in it.
    fn close(&self, depth: usize) -> Option<()> {
        // The last value has nothing in it: had it been opened, it would not be the last.
        let is_empty = self.octet & 0x20 == 0 || self.content == self.end;
        let deeper = self.ends.get(depth + 1..=self.depth)?;
        (is_empty && deeper.iter().all(|end| *end == self.end)).then_some(())
    }

    fn end(&self) -> Option<()> {
        self.close(0).filter(|()| self.end == self.der.len())
    }
}

/// Whether a value is written as DER wants it, where there would be several ways: a true boolean is
/// all ones, and named bits (here the key usage, alone in one octet) end with the last one that is set.
fn is_canonical(tag: Tag, content: &[u8]) -> bool {
    match (tag, content) {
        (Boolean, content) => content == [0xff],
        (BitString, [unused, named]) => u32::from(*unused) == named.trailing_zeros(),
        (BitString, content) => content.first() == Some(&0),
        _ => true,
    }
}

/// Takes one value: its tag, its content, and what follows. Lengths have to be as short as they can.
fn take(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, input) = input.split_first()?;
    let (first, input) = input.split_first()?;
    let (length, input) = match *first {
        short @ ..=0x7f => (usize::from(short), input),
        0x81 => {
            let (length, input) = input.split_first()?;
            (usize::from(*length), input)
        }
        0x82 => {
            let (length, input) = input.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*length)), input)
        }
        _ => return None, // No leaf is that long.
    };
    let is_shortest = match *first {
        0x81 => length > 0x7f,
        0x82 => length > 0xff,
        _ => true,
    };
    let (content, rest) = input.split_at_checked(length)?;
    is_shortest.then_some((*tag, content, rest))
}
