//! Writes token status lists (draft-ietf-oauth-status-list-21): the bitmap of one expiry window, signed.
//!
//! The bitmap in core has the draft's own form already: two bits a slot, least significant first, with
//! the draft's numbers for valid, invalid and suspended. So a list is that bitmap, filled up with zeros
//! to a length, compressed, and signed by the key that signs tokens.
//!
//! The length is more than what was handed out, because tokens are signed all the time and lists are
//! not: a verifier has to refuse an index beyond the end, and it may hold a list that is as old as its
//! `ttl`. Zeros cost next to nothing once they are compressed.

use std::io::Write as _;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use flate2::{Compression, write::ZlibEncoder};
use mayfly_core::{Span, Timestamp, limits};
use serde::Serialize;

use crate::{authority::JwtAuthority, error::SignError};

/// The shortest list: 2^18 slots, of which nearly all may be zero, are about a hundred octets.
const SLOTS_MIN: u32 = 1 << 18;
/// Slots of one octet, at two bits each.
const SLOTS_PER_OCTET: u32 = 4;
/// The best of little work: more saves an eighth and costs ten times as much.
const LEVEL: Compression = Compression::new(6);

/// How long the list of a window is in which `next` is the next free slot: at least twice, and at most
/// eight times as long, but never longer than a window can become.
#[must_use]
pub fn slots_for(next: u32) -> u32 {
    let wanted = next.min(limits::SLOTS_PER_WINDOW_MAX).saturating_mul(4);
    wanted.next_power_of_two().clamp(SLOTS_MIN, limits::SLOTS_PER_WINDOW_MAX)
}

/// `lst`: a packed bitmap of `slots` slots, compressed and encoded.
#[must_use]
pub fn encode(packed: &[u8], slots: u32) -> String {
    let octets = (slots / SLOTS_PER_OCTET) as usize;
    let packed = packed.get(..octets).unwrap_or(packed);
    let mut encoder = ZlibEncoder::new(Vec::new(), LEVEL);
    let zeros = vec![0; octets - packed.len()];
    // Octets into memory: there is nothing that could fail.
    let written = encoder.write_all(packed).and_then(|()| encoder.write_all(&zeros));
    let compressed = written.and_then(|()| encoder.finish()).unwrap_or_default();
    URL_SAFE_NO_PAD.encode(compressed)
}

/// What a list says beside the statuses.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// Where it is served: the `uri` of the tokens that point to it, octet by octet.
    pub uri: &'a str,
    /// Where all lists are named.
    pub aggregation: &'a str,
    /// When it is made.
    pub issued_at: Timestamp,
    /// Until when it may be relied on.
    pub expires_at: Timestamp,
    /// How long it may be kept before it is fetched again.
    pub ttl: Span,
    /// What [`encode`] made of the bitmap.
    pub list: &'a str,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
    ttl: u64,
    status_list: StatusList<'a>,
}

#[derive(Serialize)]
struct StatusList<'a> {
    aggregation_uri: &'a str,
    bits: u8,
    lst: &'a str,
}

/// Signs a list: a token of type `statuslist+jwt`.
///
/// # Errors
/// [`SignError`] if there is no randomness.
pub fn issue(authority: &JwtAuthority, contents: &Contents<'_>) -> Result<String, SignError> {
    let claims = Claims {
        sub: contents.uri,
        iat: contents.issued_at.seconds(),
        exp: contents.expires_at.seconds(),
        ttl: contents.ttl.as_millis() / 1000,
        status_list: StatusList {
            aggregation_uri: contents.aggregation,
            bits: 2,
            lst: contents.list,
        },
    };
    let claims = serde_json::to_vec(&claims).map_err(|_io| SignError::Crypto("write claims"))?;
    let kid = authority.key_id();
    let header = format!(r#"{{"alg":"ES256","kid":"{kid}","typ":"statuslist+jwt"}}"#);
    let mut token = URL_SAFE_NO_PAD.encode(header);
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(&claims, &mut token);
    let signature = authority.key().sign(token.as_bytes())?;
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_longer_than_what_was_handed_out_and_has_an_end() {
        for next in [0, 1, SLOTS_MIN, 1_000_000, limits::SLOTS_PER_WINDOW_MAX / 2] {
            assert!(slots_for(next) >= 2 * next, "{next}");
            assert!(slots_for(next) <= SLOTS_MIN.max(8 * next), "{next}");
        }
        assert_eq!(slots_for(0), SLOTS_MIN);
        assert_eq!(slots_for(limits::SLOTS_PER_WINDOW_MAX), limits::SLOTS_PER_WINDOW_MAX);
        assert_eq!(slots_for(u32::MAX), limits::SLOTS_PER_WINDOW_MAX);
    }
}
