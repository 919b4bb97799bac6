//! A DER writer, as small as certificates and revocation lists need it.

use std::{array, iter::Skip};

use mayfly_core::Timestamp;
use time::OffsetDateTime;

use crate::error::SignError;

pub(crate) const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const SEQUENCE: u8 = 0x30;
/// `[0]` with values in it.
pub(crate) const CONTEXT_0: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// `AlgorithmIdentifier { ecdsa-with-SHA256 }`, without parameters (RFC 5758 §3.2).
pub(crate) const ECDSA_WITH_SHA256: &[u8] =
    &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

/// A P-256 `SubjectPublicKeyInfo` up to its point (RFC 5480 §2).
pub(crate) const P256_SPKI_PREFIX: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Writes a value whose length is known only once its content stands. What is long is moved for it, so
/// this is for what is short, and for what is written once.
pub(crate) fn nest(out: &mut Vec<u8>, tag: u8, content: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    out.push(0);
    let start = out.len();
    content(out);
    let length = out.len() - start;
    let (first, long) = length_octets(length);
    if long.len() > 0 {
        out.splice(start..start, long);
    }
    if let Some(place) = out.get_mut(start - 1) {
        *place = first;
    }
}

/// Writes a value whose content stands already.
pub(crate) fn put(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    put_header(out, tag, content.len());
    out.extend_from_slice(content);
}

/// Writes whole octets as a string of bits: a signature.
pub(crate) fn put_bits(out: &mut Vec<u8>, octets: &[u8]) {
    put_header(out, BIT_STRING, 1 + octets.len());
    out.push(0); // No unused bits.
    out.extend_from_slice(octets);
}

/// Writes a number.
pub(crate) fn put_unsigned(out: &mut Vec<u8>, number: u64) {
    let octets = number.to_be_bytes();
    let leading = usize::try_from(number.leading_zeros() / 8).unwrap_or_default();
    let octets = octets.get(leading.min(octets.len() - 1)..).unwrap_or_default();
    // The first bit is the sign.
    let sign: &[u8] = if octets.first().is_some_and(|first| *first > 0x7f) { &[0] } else { &[] };
    put_header(out, INTEGER, sign.len() + octets.len());
    out.extend_from_slice(sign);
    out.extend_from_slice(octets);
}

/// Writes an extension of a certificate or a list. `oid` is a whole value, and what says that the
/// extension is critical, if it is.
pub(crate) fn put_extension(out: &mut Vec<u8>, oid: &[u8], value: impl FnOnce(&mut Vec<u8>)) {
    nest(out, SEQUENCE, |out| {
        out.extend_from_slice(oid);
        nest(out, OCTET_STRING, value);
    });
}

/// Writes what stands before a content of `length` octets.
pub(crate) fn put_header(out: &mut Vec<u8>, tag: u8, length: usize) {
    let (first, long) = length_octets(length);
    out.push(tag);
    out.push(first);
    out.extend(long);
}

/// Octets of a value whose content has `length` octets.
pub(crate) fn value_bytes(length: usize) -> usize {
    2 + length_octets(length).1.len() + length
}

/// A length in its shortest form: its first octet, and those that follow it (X.690 §8.1.3).
fn length_octets(length: usize) -> (u8, Skip<array::IntoIter<u8, { size_of::<usize>() }>>) {
    let octets = length.to_be_bytes();
    let zeros = octets.iter().take_while(|octet| **octet == 0).count();
    match u8::try_from(length) {
        Ok(short @ ..=0x7f) => (short, octets.into_iter().skip(octets.len())),
        _ => {
            // A usize has fewer than 128 octets.
            let count = u8::try_from(octets.len() - zeros).unwrap_or_default();
            (0x80 | count, octets.into_iter().skip(zeros))
        }
    }
}

/// A `Time`: two digits for the year until 2049, four from 2050 on (RFC 5280 §4.1.2.5).
pub(crate) fn put_time(out: &mut Vec<u8>, at: Timestamp) -> Result<(), SignError> {
    let date = calendar(at)?;
    let year = date.year();
    let (century, short) = (year / 100, year % 100);
    let tag = if (1950..2050).contains(&year) { UTC_TIME } else { GENERALIZED_TIME };
    nest(out, tag, |out| {
        if tag == GENERALIZED_TIME {
            put_two_digits(out, century);
        }
        put_two_digits(out, short);
        let rest = [u8::from(date.month()), date.day(), date.hour(), date.minute(), date.second()];
        for part in rest {
            put_two_digits(out, i32::from(part));
        }
        out.push(b'Z');
    });
    Ok(())
}

/// The calendar's view of an instant, up to the year 9999: later ones cannot be written.
pub(crate) fn calendar(at: Timestamp) -> Result<OffsetDateTime, SignError> {
    i64::try_from(at.seconds())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(SignError::TimeOutOfRange(at.0))
}

fn put_two_digits(out: &mut Vec<u8>, number: i32) {
    for digit in [number / 10 % 10, number % 10] {
        out.push(b'0' + u8::try_from(digit).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_the_shortest_form() {
        for (length, header) in [
            (0, vec![4, 0]),
            (127, vec![4, 127]),
            (128, vec![4, 0x81, 128]),
            (255, vec![4, 0x81, 255]),
            (256, vec![4, 0x82, 1, 0]),
            (65_536, vec![4, 0x83, 1, 0, 0]),
        ] {
            let mut out = Vec::new();
            put(&mut out, OCTET_STRING, &vec![7; length]);
            assert_eq!(out[..header.len()], header, "of {length}");
            assert_eq!(out.len(), header.len() + length);
        }
    }

    #[test]
    fn times_change_their_form_at_2050_and_end_with_9999() {
        let written = |seconds: u64| {
            let mut out = Vec::new();
            put_time(&mut out, Timestamp(seconds * 1000)).map(|()| {
                let text = String::from_utf8(out.split_off(2)).unwrap();
                (out[0], text)
            })
        };
        assert_eq!(written(0).unwrap(), (UTC_TIME, "700101000000Z".to_owned()));
        assert_eq!(written(2_524_607_999).unwrap(), (UTC_TIME, "491231235959Z".to_owned()));
        assert_eq!(
            written(2_524_608_000).unwrap(),
            (GENERALIZED_TIME, "20500101000000Z".to_owned())
        );
        assert_eq!(
            written(253_402_300_799).unwrap(),
            (GENERALIZED_TIME, "99991231235959Z".to_owned())
        );
        assert!(matches!(written(253_402_300_800), Err(SignError::TimeOutOfRange(_))));
    }
}
