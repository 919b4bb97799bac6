//! Mends the `:authority` of clients that put a socket path there.
//!
//! gRPC's C core (Python, Ruby, C++) sends `:authority: tmp%2Fp.sock` on a unix socket, grpc-java the
//! bare path, and h2 resets every stream whose authority is not one a URL may have. There is no setting
//! for it. So the bytes of a connection pass through here before h2 sees them, and in the value of a
//! literal `:authority` field the octets that h2 refuses become `-`. Nobody reads that value: on a unix
//! socket it says nothing.
//!
//! No length changes, so no frame, no HPACK table size and no later reference into the table changes
//! either. A plain octet is replaced by one octet. In Huffman code `%`, `/`, space and `-` all take six
//! bits, and `"`, `?` and `!` ten, `|` and `+` eleven; other refused characters have no valid twin of
//! their length and stay (a client that percent-encodes never sends them). A plain value that begins
//! with `/` is a path, and loses its colons, brackets and at-signs as well. An empty authority cannot be
//! mended.
//!
//! This reads hostile bytes, so it is a state machine without a buffer: it keeps counters and at most
//! one octet. What it does not understand it lets through untouched, for h2 to judge.

mod field;
mod huffman;

use field::Fields;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER_BYTES: u8 = 9;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: u32 = 5;

/// Where in the connection the next octet stands.
#[derive(Clone, Copy, Debug)]
enum At {
    /// So many octets into the client's preface.
    Preface(usize),
    /// So many octets into a frame's header.
    Header(u8),
    /// In a frame without header fields, or in its padding: so many octets to go.
    Skip(u32),
    /// At the octet that says how much padding ends the frame.
    PadLength,
    /// In the priority octets, so many to go, then the block.
    Priority(u32),
    /// In header fields.
    Block,
    /// Not HTTP/2, or HPACK that no decoder accepts: nothing is touched any more.
    Blind,
}

/// The mending of one connection, without input or output of its own.
#[derive(Debug)]
pub struct Mend {
    at: At,
    kind: u8,
    flags: u8,
    length: u32,
    padding: u32,
    fields: Fields,
    kept: Option<u8>,
}

impl Default for Mend {
    fn default() -> Self {
        Self {
            at: At::Preface(0),
            kind: 0,
            flags: 0,
            length: 0,
            padding: 0,
            fields: Fields::default(),
            kept: None,
        }
    }
}

/// What to pass on after [`Mend::feed`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fed {
    /// An octet kept back earlier, to be passed on before the others.
    pub before: Option<u8>,
    /// How many of the fed octets to pass on: all, or all but the last, which is kept back because a
    /// character that may have to be replaced began in it and did not end.
    pub pass: usize,
}

impl Mend {
    /// Takes the next octets of the connection and mends them in place.
    #[must_use]
    pub fn feed(&mut self, octets: &mut [u8]) -> Fed {
        if octets.is_empty() {
            return Fed { before: None, pass: 0 };
        }
        // The octet before the current one is always at hand: in this chunk or kept from the last.
        let mut last = self.kept.take();
        let mut pass = 0;
        while pass < octets.len() {
            let unread = u32::try_from(octets.len() - pass).unwrap_or(u32::MAX);
            match self.at {
                At::Blind => pass = octets.len(),
                At::Skip(left) if left > unread => {
                    self.at = At::Skip(left - unread);
                    pass += unread as usize;
                }
                At::Skip(left) => {
                    self.at = At::Header(0);
                    pass += left as usize;
                }
                At::Preface(_) | At::Header(_) | At::PadLength | At::Priority(_) | At::Block => {
                    let (done, rest) = octets.split_at_mut(pass);
                    if let Some(octet) = rest.first_mut() {
                        self.step(octet, done.last_mut().or(last.as_mut()));
                    }
                    pass += 1;
                }
            }
        }
        if matches!(self.at, At::Block) && self.fields.is_within_a_character() {
            pass -= 1;
            self.kept = octets.get(pass).copied();
        }
        Fed { before: last, pass }
    }

    /// The connection is over: the octet that was kept back, if any.
    #[must_use]
    pub const fn finish(&mut self) -> Option<u8> {
        self.kept.take()
    }

    /// Whether this connection is let through unread from here on.
    #[must_use]
    pub const fn is_blind(&self) -> bool {
        matches!(self.at, At::Blind)
    }

    fn step(&mut self, octet: &mut u8, previous: Option<&mut u8>) {
        match self.at {
            At::Preface(n) if PREFACE.get(n) == Some(octet) => {
                let n = n + 1;
                self.at = if n == PREFACE.len() { At::Header(0) } else { At::Preface(n) };
            }
            At::Preface(_) => self.at = At::Blind,
            At::Header(n) => self.header(n, *octet),
            At::PadLength => {
                self.padding = u32::from(*octet);
                self.length -= 1;
                self.open_block(self.flags & PRIORITY != 0);
            }
            At::Priority(left) if left > 1 => self.at = At::Priority(left - 1),
            At::Priority(_) => self.open_block(false),
            At::Block => self.block(octet, previous),
            At::Skip(_) | At::Blind => {} // Taken in one stride by `feed`.
        }
    }

    fn header(&mut self, n: u8, octet: u8) {
        match n {
            0 => self.length = u32::from(octet),
            1 | 2 => self.length = (self.length << 8) | u32::from(octet),
            3 => self.kind = octet,
            4 => self.flags = octet,
            _ => {} // The stream's number does not matter.
        }
        if n + 1 < FRAME_HEADER_BYTES {
            self.at = At::Header(n + 1);
            return;
        }
        self.padding = 0;
        match self.kind {
            HEADERS => {
                self.fields = Fields::default();
                if self.flags & PADDED != 0 && self.length > 0 {
                    self.at = At::PadLength;
                } else {
                    self.open_block(self.flags & PRIORITY != 0);
                }
            }
            CONTINUATION => self.open_block(false),
            _ => self.skip(self.length),
        }
    }

    /// Goes on with what is left of the frame once its prefix was read. `length` is what is left.
    fn open_block(&mut self, with_priority: bool) {
        if with_priority {
            match self.length.checked_sub(PRIORITY_BYTES) {
                Some(left) => {
                    self.length = left;
                    self.at = At::Priority(PRIORITY_BYTES);
                }
                None => self.at = At::Blind,
            }
            return;
        }
        match self.length.checked_sub(self.padding) {
            Some(0) => self.skip(self.padding),
            Some(left) => {
                self.length = left;
                self.at = At::Block;
            }
            None => self.at = At::Blind,
        }
    }

    fn block(&mut self, octet: &mut u8, previous: Option<&mut u8>) {
        if self.fields.step(octet, previous).is_err() {
            self.at = At::Blind;
            return;
        }
        self.length -= 1;
        if self.length == 0 {
            // The next octet of the block is not the next octet of the connection.
            self.fields.interrupt();
            self.skip(self.padding);
        }
    }

    fn skip(&mut self, octets: u32) {
        self.at = if octets == 0 { At::Header(0) } else { At::Skip(octets) };
    }
}

#[cfg(test)]
mod tests;
