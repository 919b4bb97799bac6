//! Token Status Lists, for who verifies tokens without following the feed.
//!
//! A list is a picture of one bitmap, signed by the trust domain whose tokens it speaks of
//! (draft-ietf-oauth-status-list). Fetching it is left to whoever has an HTTP client; what may be
//! believed of what was fetched, and for how long, is decided here: a list that is past its `ttl` or
//! `exp` answers nothing, an older one does not take a newer one's place, and an index beyond its end
//! is refused instead of read as valid.

use std::{
    collections::BTreeMap,
    io::Read as _,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use flate2::bufread::ZlibDecoder;
use mayfly_core::{Status, Timestamp, TrustDomain, limits};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::{
    jwk::JwkSets,
    jwt::{InvalidToken, Signed},
    peer::later,
};

/// The media type of a status list token.
pub const STATUS_LIST_TYPE: &str = "application/statuslist+jwt";
/// Longest list token: a full window that does not compress, in base64, twice.
const TOKEN_BYTES_MAX: usize = 16 << 20;
/// Largest list: a full window.
const LIST_BYTES_MAX: u64 = limits::SLOTS_PER_WINDOW_MAX as u64 / 4;
/// Lists held at a time. The longest credential life spans 145 of them.
const LISTS_MAX: usize = 512;

/// Why a status list cannot be used, or does not answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ListError {
    /// It is not signed by the trust domain, or not a token at all.
    #[error("it is no signed status list: {0}")]
    Token(#[from] InvalidToken),
    /// Its claims are not those of a list.
    #[error("its claim `{0}` is missing or malformed")]
    Claim(&'static str),
    /// It speaks of another list than the one that was asked for.
    #[error("it is the list `{0}`")]
    Subject(String),
    /// `lst` is not what the format says, or too long.
    #[error("its list cannot be unpacked, or is too long")]
    Packed,
    /// `exp` has come.
    #[error("it has expired")]
    Expired,
    /// One that is newer is held already.
    #[error("it is older than the one that is held")]
    Older,
    /// Too many lists are held.
    #[error("too many lists are held")]
    Full,
    /// The token does not say where its status stands.
    #[error("the token does not point to a status list")]
    NoReference,
    /// The list is not held.
    #[error("the list `{0}` is not held")]
    Unknown(String),
    /// The list was fetched too long ago for its `ttl`.
    #[error("the list was fetched too long ago")]
    Stale,
    /// The token points beyond the list's end.
    #[error("index `{0}` is beyond the list's end")]
    OutOfRange(u64),
}

/// Where a token's status stands: its `status.status_list` claim.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct StatusReference {
    /// The place in the list.
    pub idx: u64,
    /// The list's address, which is also its `sub`.
    pub uri: String,
}

impl StatusReference {
    /// Reads it from a token's claims.
    ///
    /// # Errors
    /// [`ListError::NoReference`] if there is none, or it is malformed.
    pub fn of(claims: &Map<String, Value>) -> Result<Self, ListError> {
        let reference = claims.get("status").and_then(|status| status.get("status_list"));
        let reference = reference.ok_or(ListError::NoReference)?;
        Self::deserialize(reference).map_err(|_malformed| ListError::NoReference)
    }
}

/// A list that was verified and unpacked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StatusList {
    /// Its address.
    pub uri: String,
    /// When it was made.
    pub issued_at: Timestamp,
    /// After which it is not to be believed.
    pub expires_at: Option<Timestamp>,
    /// For how long after it was fetched it may be used.
    pub ttl: Option<Duration>,
    bits: u8,
    bytes: Vec<u8>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    iat: u64,
    exp: Option<u64>,
    ttl: Option<u64>,
    status_list: Packed,
}

/// The `status_list` claim.
#[derive(Deserialize)]
struct Packed {
    bits: u8,
    lst: String,
}

impl StatusList {
    /// Reads a list token of `domain`, which was fetched from `uri`.
    ///
    /// # Errors
    /// [`ListError`] names the first rule that is broken.
    pub fn parse(
        token: &str,
        uri: &str,
        domain: &TrustDomain,
        keys: &JwkSets,
        now: Timestamp,
    ) -> Result<Self, ListError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(InvalidToken::TooLong.into());
        }
        let signed = Signed::read(token, TOKEN_BYTES_MAX)?;
        if signed.kind() != Some("statuslist+jwt") {
            return Err(InvalidToken::Type.into());
        }
        signed.verify(domain, keys)?;
        let claims: Claims = serde_json::from_slice(signed.payload())
            .map_err(|_malformed| ListError::Claim("status_list"))?;
        if claims.sub != uri {
            return Err(ListError::Subject(claims.sub));
        }
        let instant = |seconds: u64| Timestamp(seconds.saturating_mul(1000));
        let list = Self {
            uri: claims.sub,
            issued_at: instant(claims.iat),
            expires_at: claims.exp.map(instant),
            ttl: claims.ttl.map(Duration::from_secs),
            bits: claims.status_list.bits,
            bytes: claims.status_list.unpack()?,
        };
        list.check_date(now)?;
        Ok(list)
    }

    /// The status at `idx`. A value that is not known is read as revoked.
    ///
    /// # Errors
    /// [`ListError::OutOfRange`] beyond the end.
    pub fn status(&self, idx: u64) -> Result<Status, ListError> {
        let out = || ListError::OutOfRange(idx);
        let per_byte = u64::from(8 / self.bits);
        let at = usize::try_from(idx / per_byte).map_err(|_too_far| out())?;
        let byte = *self.bytes.get(at).ok_or_else(out)?;
        let shift = (idx % per_byte) * u64::from(self.bits);
        let mask = u8::MAX >> (8 - self.bits);
        Ok(match (byte >> shift) & mask {
            0 => Status::Valid,
            2 => Status::Suspended,
            _ => Status::Revoked,
        })
    }

    fn check_date(&self, now: Timestamp) -> Result<(), ListError> {
        if self.expires_at.is_some_and(|expires| expires <= now) {
            return Err(ListError::Expired);
        }
        Ok(())
    }
}

impl Packed {
    fn unpack(&self) -> Result<Vec<u8>, ListError> {
        if !matches!(self.bits, 1 | 2 | 4 | 8) {
            return Err(ListError::Claim("bits"));
        }
        let packed = BASE64_URL_SAFE_NO_PAD.decode(&self.lst).map_err(|_text| ListError::Packed)?;
        inflate(&packed).ok_or(ListError::Packed)
    }
}

/// Unpacks zlib up to the bound; nothing may follow.
fn inflate(packed: &[u8]) -> Option<Vec<u8>> {
    let mut decoder = ZlibDecoder::new(packed);
    let mut bytes = Vec::new();
    // One more than allowed, so that what is too long is seen to be.
    decoder.by_ref().take(LIST_BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
    let whole = decoder.get_ref().is_empty();
    (whole && bytes.len() as u64 <= LIST_BYTES_MAX).then_some(bytes)
}

#[derive(Debug)]
struct HeldList {
    list: StatusList,
    stale_at: Option<Instant>,
}

/// The lists that were fetched, by trust domain and address: a trust domain speaks of its own tokens
/// only, whatever address it gives.
#[derive(Debug, Default)]
pub struct StatusLists(RwLock<BTreeMap<(TrustDomain, String), HeldList>>);

impl StatusLists {
    /// None yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Takes what was just fetched from `uri` for the tokens of `domain`.
    ///
    /// # Errors
    /// [`ListError`] says why it is not taken; what was held stays.
    pub fn insert(
        &self,
        token: &str,
        uri: &str,
        domain: &TrustDomain,
        (keys, now): (&JwkSets, Timestamp),
    ) -> Result<(), ListError> {
        let list = StatusList::parse(token, uri, domain, keys, now)?;
        let stale_at = list.ttl.map(|ttl| later(Instant::now(), ttl));
        let key = (domain.clone(), uri.to_owned());
        // One assignment: a thread that died with the lock left nothing half done.
        let mut lists = self.0.write().unwrap_or_else(PoisonError::into_inner);
        lists.retain(|_, held| held.list.check_date(now).is_ok());
        if lists.get(&key).is_some_and(|held| held.list.issued_at > list.issued_at) {
            return Err(ListError::Older);
        }
        if lists.len() >= LISTS_MAX && !lists.contains_key(&key) {
            return Err(ListError::Full);
        }
        lists.insert(key, HeldList { list, stale_at });
        Ok(())
    }

    /// What is known of a token of `domain` whose status stands at `reference`.
    ///
    /// # Errors
    /// [`ListError`] if the list is not held, not to be believed any more, or too short.
    pub fn status(
        &self,
        domain: &TrustDomain,
        reference: &StatusReference,
        now: Timestamp,
    ) -> Result<Status, ListError> {
        let lists = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let held = lists
            .get(&(domain.clone(), reference.uri.clone()))
            .ok_or_else(|| ListError::Unknown(reference.uri.clone()))?;
        held.list.check_date(now)?;
        if held.stale_at.is_some_and(|stale| stale <= Instant::now()) {
            return Err(ListError::Stale);
        }
        held.list.status(reference.idx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(bits: u8, packed: &[u8]) -> Result<StatusList, ListError> {
        let bytes = Packed { bits, lst: BASE64_URL_SAFE_NO_PAD.encode(packed) }.unpack()?;
        let uri = String::new();
        Ok(StatusList { uri, issued_at: Timestamp(0), expires_at: None, ttl: None, bits, bytes })
    }

    /// The specification's: statuses b9 a3, one bit each, lowest first.
    #[test]
    fn the_test_vector_unpacks() {
        let packed = [0x78, 0xda, 0xdb, 0xb9, 0x18, 0x00, 0x02, 0x17, 0x01, 0x5d];
        let list = list(1, &packed).unwrap();
        assert_eq!(list.bytes, [0xb9, 0xa3]);
        let revoked: Vec<u64> =
            (0..16).filter(|idx| list.status(*idx) == Ok(Status::Revoked)).collect();
        assert_eq!(revoked, [0, 3, 4, 5, 7, 8, 9, 13, 15]);
        assert_eq!(list.status(16), Err(ListError::OutOfRange(16)));
        assert_eq!(list.status(u64::MAX), Err(ListError::OutOfRange(u64::MAX)));
    }

    #[test]
    fn two_bits_tell_revoked_from_suspended() {
        // b9 a3 read two bits at a time: 1 2 3 2, 3 0 2 2.
        let packed = [0x78, 0xda, 0xdb, 0xb9, 0x18, 0x00, 0x02, 0x17, 0x01, 0x5d];
        let list = list(2, &packed).unwrap();
        let read: Vec<Status> = (0..8).map(|idx| list.status(idx).unwrap()).collect();
        use Status::{Revoked as R, Suspended as S, Valid as V};
        assert_eq!(read, [R, S, R, S, R, V, S, S], "3 is not assigned, and reads as revoked");
    }

    #[test]
    fn what_is_cut_short_too_long_or_followed_by_more_is_refused() {
        let packed = [0x78, 0xda, 0xdb, 0xb9, 0x18, 0x00, 0x02, 0x17, 0x01, 0x5d];
        for length in 0..packed.len() {
            assert_eq!(list(1, &packed[..length]), Err(ListError::Packed), "{length} bytes");
        }
        assert_eq!(list(1, &[&packed[..], &[0]].concat()), Err(ListError::Packed));
        assert_eq!(list(3, &packed), Err(ListError::Claim("bits")));
        assert_eq!(list(0, &packed), Err(ListError::Claim("bits")));
        let bomb = vec![0; usize::try_from(LIST_BYTES_MAX).unwrap() + 1];
        let mut encoder =
            flate2::read::ZlibEncoder::new(bomb.as_slice(), flate2::Compression::fast());
        let mut packed = Vec::new();
        encoder.read_to_end(&mut packed).unwrap();
        assert_eq!(list(1, &packed), Err(ListError::Packed));
    }
}
