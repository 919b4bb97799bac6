//! P-256 keys of leaves, and a pool of them made in idle moments.
//!
//! Making a key costs two thirds of a signature, so a broker that makes them ahead answers in a bit
//! more than half the time. The pool holds keys that nobody has yet, so a key is never shared.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use mayfly_core::{Span, Timestamp};
use ring::{
    agreement, digest,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use zeroize::Zeroizing;

use crate::{der::P256_SPKI_PREFIX, error::SignError};

/// Octets of an uncompressed P-256 point: `04 | x | y`.
pub const POINT_BYTES: usize = 65;
/// Octets of the PKCS#8 document that `ring` writes for a P-256 key.
const PKCS8_BYTES: usize = 138;

/// A public key: an uncompressed point of P-256, and its identifier, which a certificate needs as soon
/// as it is written and a pool has time to compute.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PublicPoint {
    point: [u8; POINT_BYTES],
    identifier: [u8; 20],
}

impl PublicPoint {
    /// Takes the public key that somebody brought along, as a DER `SubjectPublicKeyInfo`.
    ///
    /// The point is checked to lie on the curve. Whether its owner holds the private key is not, and
    /// cannot be, checked here: whoever carries the key has to prove that on the way.
    ///
    /// # Errors
    /// [`SignError::InvalidPublicKey`] if it is anything but a point of P-256.
    pub fn from_spki(spki: &[u8]) -> Result<Self, SignError> {
        let point: [u8; POINT_BYTES] = spki
            .strip_prefix(P256_SPKI_PREFIX)
            .and_then(|point| point.try_into().ok())
            .ok_or(SignError::InvalidPublicKey("it is not a p-256 subjectpublickeyinfo"))?;
        // ring checks points where it uses them, and agreeing on a secret that is thrown away is
        // the cheapest use.
        let peer = agreement::UnparsedPublicKey::new(&agreement::ECDH_P256, point);
        let ours =
            agreement::EphemeralPrivateKey::generate(&agreement::ECDH_P256, &SystemRandom::new())
                .map_err(|ring::error::Unspecified| SignError::Crypto("make a key"))?;
        agreement::agree_ephemeral(ours, &peer, |_secret| ()).map_err(
            |ring::error::Unspecified| SignError::InvalidPublicKey("the point is not on the curve"),
        )?;
        Ok(Self::new(point))
    }

    /// The octets `04 | x | y`.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; POINT_BYTES] {
        &self.point
    }

    fn new(point: [u8; POINT_BYTES]) -> Self {
        let digest = digest::digest(&digest::SHA256, &point);
        let mut identifier = [0; 20];
        for (to, from) in identifier.iter_mut().zip(digest.as_ref()) {
            *to = *from;
        }
        Self { point, identifier }
    }

    /// The key identifier: the leftmost 160 bits of the point's SHA-256 (RFC 7093 §2, method 1).
    pub(crate) const fn identifier(&self) -> &[u8; 20] {
        &self.identifier
    }

    /// The two coordinates.
    pub(crate) fn coordinates(&self) -> (&[u8], &[u8]) {
        let (_form, rest) = self.point.split_at(1);
        rest.split_at(32)
    }

    /// The public half of a parsed key, which `ring` has checked already.
    pub(crate) fn of(pair: &EcdsaKeyPair) -> Option<Self> {
        pair.public_key().as_ref().try_into().ok().map(Self::new)
    }

    /// The last octets of a version 1 PKCS#8 document as `ring` writes it.
    fn at_the_end_of(pkcs8: &[u8]) -> Option<Self> {
        if pkcs8.len() != PKCS8_BYTES {
            return None;
        }
        let point = pkcs8.last_chunk::<POINT_BYTES>()?;
        (point.first() == Some(&4)).then(|| Self::new(*point))
    }
}

/// The key pair of one leaf, made for one task alone.
pub struct LeafKey {
    pkcs8: Zeroizing<Vec<u8>>,
    public: PublicPoint,
}

impl LeafKey {
    /// Makes a key.
    ///
    /// The public half is read off the document's end. Parsing the document would compute it again,
    /// which costs as much as making the key did.
    ///
    /// # Errors
    /// [`SignError::Crypto`] if there is no randomness.
    pub fn generate() -> Result<Self, SignError> {
        let document =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
                .map_err(|ring::error::Unspecified| SignError::Crypto("make a key"))?;
        let pkcs8 = Zeroizing::new(document.as_ref().to_vec());
        let public = PublicPoint::at_the_end_of(&pkcs8)
            .ok_or(SignError::Crypto("write a key in the known form"))?;
        Ok(Self { pkcs8, public })
    }

    /// The public half.
    #[must_use]
    pub const fn public(&self) -> &PublicPoint {
        &self.public
    }

    /// The private half, as a PKCS#8 document.
    #[must_use]
    pub fn into_pkcs8(self) -> Zeroizing<Vec<u8>> {
        self.pkcs8
    }
}

impl fmt::Debug for LeafKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeafKey(..)")
    }
}

/// Keys made ahead, at most so many and none older than so long.
pub struct KeyPool {
    bound: usize,
    age_max: Span,
    keys: Mutex<VecDeque<(Timestamp, LeafKey)>>,
}

impl KeyPool {
    /// An empty pool. A key waits in memory until it is used, so its age is bounded too.
    #[must_use]
    pub const fn new(bound: usize, age_max: Span) -> Self {
        Self { bound, age_max, keys: Mutex::new(VecDeque::new()) }
    }

    /// Drops keys that are too old and makes up to `n` new ones; returns how many it made. Zero
    /// means that the pool is full.
    ///
    /// # Errors
    /// [`SignError::Crypto`] if there is no randomness.
    pub fn fill(&self, n: usize, now: Timestamp) -> Result<usize, SignError> {
        self.forget(now);
        for made in 0..n {
            if self.len() >= self.bound {
                return Ok(made);
            }
            // The lock is not held while a key is made: whoever takes one does not wait for it.
            let key = LeafKey::generate()?;
            let mut keys = self.lock();
            if keys.len() < self.bound {
                keys.push_back((now, key));
            }
        }
        Ok(n)
    }

    /// Takes the oldest key that is young enough, or makes one.
    ///
    /// # Errors
    /// [`SignError::Crypto`] if there is no randomness.
    pub fn take(&self, now: Timestamp) -> Result<LeafKey, SignError> {
        self.forget(now);
        let pooled = self.lock().pop_front();
        pooled.map_or_else(LeafKey::generate, |(_made, key)| Ok(key))
    }

    /// How many keys are ready.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether the next [`take`](Self::take) has to make its key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn forget(&self, now: Timestamp) {
        let mut keys = self.lock();
        while keys.front().is_some_and(|(made, _)| now.since(*made) > self.age_max) {
            keys.pop_front();
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Timestamp, LeafKey)>> {
        // Each push and pop leaves the queue whole, so a panic elsewhere does not spoil it.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for KeyPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPool({} of {})", self.len(), self.bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_key_stands_at_the_end_of_the_document() {
        for _ in 0..500 {
            let key = LeafKey::generate().unwrap();
            let parsed = EcdsaKeyPair::from_pkcs8(
                &ECDSA_P256_SHA256_ASN1_SIGNING,
                &key.pkcs8,
                &SystemRandom::new(),
            )
            .unwrap();
            assert_eq!(parsed.public_key().as_ref(), key.public().as_bytes());
        }
    }

    #[test]
    fn a_key_brought_along_is_taken_only_if_it_is_a_point_of_the_curve() {
        let key = LeafKey::generate().unwrap();
        let spki = [P256_SPKI_PREFIX, key.public().as_bytes()].concat();
        assert_eq!(PublicPoint::from_spki(&spki).unwrap(), *key.public());
        let mut off_curve = spki.clone();
        off_curve[90] ^= 1;
        let refused = |spki: &[u8]| {
            matches!(PublicPoint::from_spki(spki), Err(SignError::InvalidPublicKey(_)))
        };
        assert!(refused(&off_curve));
        assert!(refused(&spki[..90]));
        assert!(refused(&[spki.as_slice(), &[0]].concat()));
        assert!(refused(&[]));
        let mut p384 = spki.clone();
        p384[22] = 0x22;
        assert!(refused(&p384));
        let mut compressed_marker = spki;
        compressed_marker[26] = 2;
        assert!(refused(&compressed_marker));
    }

    #[test]
    fn the_pool_keeps_its_bound_and_gives_each_key_once() {
        let pool = KeyPool::new(3, Span::from_secs(60));
        let now = Timestamp(1_000_000);
        assert_eq!(pool.fill(2, now).unwrap(), 2);
        assert_eq!(pool.fill(9, now).unwrap(), 1);
        assert_eq!(pool.fill(9, now).unwrap(), 0);
        let mut seen: Vec<_> = (0..5).map(|_| pool.take(now).unwrap().public.point).collect();
        assert!(pool.is_empty());
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 5);
    }

    #[test]
    fn a_key_that_waited_too_long_is_not_given_out() {
        let pool = KeyPool::new(3, Span::from_secs(60));
        let now = Timestamp(1_000_000);
        pool.fill(3, now).unwrap();
        let stale = pool.lock().front().map(|(_, key)| key.public.point).unwrap();
        let later = now.plus(Span::from_secs(61));
        assert_ne!(pool.take(later).unwrap().public.point, stale);
        assert_eq!(pool.len(), 0);
    }

    #[test]
    fn printing_a_key_shows_nothing() {
        let key = LeafKey::generate().unwrap();
        assert_eq!(format!("{key:?}"), "LeafKey(..)");
        let pool = KeyPool::new(1, Span::from_secs(1));
        assert_eq!(format!("{pool:?}"), "KeyPool(0 of 1)");
    }
}
