//! DER to PEM (RFC 7468), for those who read nothing else.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use zeroize::Zeroize as _;

/// What fits into one line of 64 characters.
const LINE_BYTES: usize = 48;
const LINE_CHARS: usize = 64;

/// Writes PEM blocks into memory that was set aside before, so that a key leaves no copy behind in
/// memory that was too small for it.
#[derive(Default)]
pub(crate) struct Pem(Vec<u8>);

impl Pem {
    /// One block.
    pub(crate) fn one(label: &str, der: &[u8]) -> Vec<u8> {
        let mut pem = Self::default();
        pem.add(label, der);
        pem.0
    }

    /// Adds a block.
    pub(crate) fn add(&mut self, label: &str, der: &[u8]) {
        let lines = der.len().div_ceil(LINE_BYTES);
        self.0.reserve_exact(lines * (LINE_CHARS + 1) + 2 * label.len() + 32);
        for part in ["-----BEGIN ", label, "-----\n"] {
            self.0.extend_from_slice(part.as_bytes());
        }
        let mut line = [0; LINE_CHARS];
        for part in der.chunks(LINE_BYTES) {
            // A line of 48 octets is 64 characters, so there is always room.
            let written = BASE64_STANDARD.encode_slice(part, &mut line).unwrap_or(0);
            self.0.extend(line.iter().take(written));
            self.0.push(b'\n');
        }
        line.zeroize();
        for part in ["-----END ", label, "-----\n"] {
            self.0.extend_from_slice(part.as_bytes());
        }
    }

    /// Adds a block for each of several DER values that stand one after the other; `None` if they do
    /// not.
    pub(crate) fn add_all(&mut self, label: &str, concatenated: &[u8]) -> Option<()> {
        let mut rest = concatenated;
        while !rest.is_empty() {
            let (one, after) = rest.split_at_checked(sequence_len(rest)?)?;
            self.add(label, one);
            rest = after;
        }
        Some(())
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// How long the DER SEQUENCE is that `der` begins with, its header included.
fn sequence_len(der: &[u8]) -> Option<usize> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    if *tag != 0x30 {
        return None;
    }
    if *first < 0x80 {
        return Some(2 + usize::from(*first));
    }
    // Certificates and lists of more than 4 GiB are not met.
    let octets = usize::from(*first & 0x7f);
    if !(1..=4).contains(&octets) {
        return None;
    }
    let len = rest.get(..octets)?.iter().fold(0, |len, octet| len << 8 | usize::from(*octet));
    len.checked_add(2 + octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(content: &[u8]) -> Vec<u8> {
        let len = content.len();
        let mut der = match len {
            0..0x80 => vec![0x30, u8::try_from(len).unwrap()],
            _ => {
                vec![0x30, 0x82, u8::try_from(len >> 8).unwrap(), u8::try_from(len & 0xff).unwrap()]
            }
        };
        der.extend_from_slice(content);
        der
    }

    #[test]
    fn a_block_has_lines_of_64_characters_and_keeps_to_what_was_set_aside() {
        for len in [0, 1, 47, 48, 49, 96, 1000] {
            let der = vec![0xa5; len];
            let pem = String::from_utf8(Pem::one("CERTIFICATE", &der)).unwrap();
            let lines: Vec<_> = pem.lines().collect();
            assert_eq!(lines.first(), Some(&"-----BEGIN CERTIFICATE-----"));
            assert_eq!(lines.last(), Some(&"-----END CERTIFICATE-----"));
            assert!(lines.iter().all(|line| line.len() <= 64));
            let body = lines[1..lines.len() - 1].concat();
            assert_eq!(BASE64_STANDARD.decode(body).unwrap(), der);
        }
        let mut pem = Pem::default();
        pem.0.reserve_exact(10_000);
        let before = pem.0.as_ptr();
        pem.add("PRIVATE KEY", &[7; 138]);
        assert_eq!(pem.0.as_ptr(), before, "the key moved and left a copy behind");
    }

    #[test]
    fn values_in_a_row_become_blocks_in_a_row() {
        let row = [sequence(b"a"), sequence(&[b'b'; 300]), sequence(b"")].concat();
        let mut pem = Pem::default();
        assert_eq!(pem.add_all("X509 CRL", &row), Some(()));
        let text = String::from_utf8(pem.finish()).unwrap();
        assert_eq!(text.matches("-----BEGIN X509 CRL-----\n").count(), 3);
        for bad in [&row[..row.len() - 1], &row[1..], &[0x30][..], &[0x30, 0x80], &[0x30, 0x85, 1]]
        {
            assert_eq!(Pem::default().add_all("X509 CRL", bad), None, "{bad:?}");
        }
    }
}
