//! Public keys of trust domains, for tokens: RFC 7517 key sets, one per trust domain, never pooled.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use mayfly_core::TrustDomain;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;

/// Keys in one set. A trust domain that rotates hourly and keeps a day's keys has a tenth of it.
pub(crate) const KEYS_MAX: usize = 256;

/// The token keys of several trust domains.
///
/// A key counts only for its own trust domain, whatever its identifier: two domains may well use the
/// same one.
#[derive(Clone, Debug, Default)]
pub struct JwkSets(BTreeMap<TrustDomain, JwkSet>);

impl JwkSets {
    /// Puts a trust domain's keys in place of what was there.
    pub fn insert(&mut self, domain: TrustDomain, keys: JwkSet) {
        self.0.insert(domain, keys);
    }

    /// A trust domain's keys.
    #[must_use]
    pub fn of(&self, domain: &TrustDomain) -> Option<&JwkSet> {
        self.0.get(domain)
    }

    /// The trust domains with their keys, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &JwkSet)> {
        self.0.iter()
    }
}

impl FromIterator<(TrustDomain, JwkSet)> for JwkSets {
    fn from_iter<I: IntoIterator<Item = (TrustDomain, JwkSet)>>(sets: I) -> Self {
        Self(sets.into_iter().collect())
    }
}

/// The token keys of one trust domain, by identifier.
#[derive(Clone, Debug, Default)]
pub struct JwkSet(BTreeMap<String, Jwk>);

/// Why a key set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidJwks {
    /// It is no JSON object with a list of `keys`.
    #[error("it is not a JWK set")]
    Json(#[from] serde_json::Error),
    /// More than 256 keys.
    #[error("it holds more than 256 keys")]
    TooMany,
    /// Two keys have the same identifier, so a token does not say which one it means.
    #[error("two keys have the identifier `{0}`")]
    Twice(String),
}

impl JwkSet {
    /// Reads a JWK set. Elements of another type or use, or without an identifier, are passed over
    /// (bundle §4.2); they cannot verify a JWT-SVID.
    ///
    /// # Errors
    /// [`InvalidJwks`] if the set as a whole is unusable.
    pub fn parse(json: &[u8]) -> Result<Self, InvalidJwks> {
        #[derive(Deserialize)]
        struct Raw {
            keys: Vec<serde_json::Value>,
        }
        let raw: Raw = serde_json::from_slice(json)?;
        if raw.keys.len() > KEYS_MAX {
            return Err(InvalidJwks::TooMany);
        }
        let mut keys = BTreeMap::new();
        for (kid, key) in raw.keys.into_iter().filter_map(Jwk::read) {
            if keys.insert(kid.clone(), key).is_some() {
                return Err(InvalidJwks::Twice(kid));
            }
        }
        Ok(Self(keys))
    }

    /// The key with this identifier.
    #[must_use]
    pub(crate) fn key(&self, kid: &str) -> Option<&Jwk> {
        self.0.get(kid)
    }

    /// How many keys can verify tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none: every token of the trust domain is refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The algorithms that can be verified here. SPIFFE also allows ES512, which ring does not know.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize)]
pub(crate) enum Algorithm {
    ES256,
    ES384,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
}

#[derive(Clone, Debug)]
pub(crate) struct Jwk {
    algorithm: Option<Algorithm>,
    material: Material,
}

#[derive(Clone, Debug)]
enum Material {
    P256(Vec<u8>),
    P384(Vec<u8>),
    Rsa { n: Vec<u8>, e: Vec<u8> },
}

#[derive(Deserialize)]
struct RawKey {
    kty: String,
    kid: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    alg: Option<Algorithm>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

impl Jwk {
    fn read(value: serde_json::Value) -> Option<(String, Self)> {
        let raw: RawKey = serde_json::from_value(value).ok()?;
        if !matches!(raw.purpose.as_deref(), None | Some("jwt-svid" | "sig")) || raw.kid.is_empty()
        {
            return None;
        }
        let material = match (raw.kty.as_str(), raw.crv.as_deref()) {
            ("EC", Some("P-256")) => Material::P256(point(&raw, 32)?),
            ("EC", Some("P-384")) => Material::P384(point(&raw, 48)?),
            ("RSA", _) => {
                Material::Rsa { n: decode(raw.n.as_deref())?, e: decode(raw.e.as_deref())? }
            }
            _ => return None,
        };
        let key = Self { algorithm: raw.alg, material };
        Some((raw.kid, key))
    }

    /// Whether `signature` over `message` is this key's. An algorithm that is not the key's own is a
    /// wrong signature, not a hint how to read the key.
    pub(crate) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        if self.algorithm.is_some_and(|own| own != algorithm) {
            return false;
        }
        let outcome = match (&self.material, algorithm) {
            (Material::P256(point), Algorithm::ES256) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                    .verify(message, signature)
            }
            (Material::P384(point), Algorithm::ES384) => {
                UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point)
                    .verify(message, signature)
            }
            (Material::Rsa { n, e }, rsa) => match rsa_parameters(rsa) {
                Some(parameters) => {
                    RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
                }
                None => return false,
            },
            (Material::P256(_) | Material::P384(_), _) => return false,
        };
        outcome.is_ok()
    }
}

/// ring refuses moduli below 2048 bits by itself.
fn rsa_parameters(algorithm: Algorithm) -> Option<&'static signature::RsaParameters> {
    match algorithm {
        Algorithm::RS256 => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::PS256 => Some(&signature::RSA_PSS_2048_8192_SHA256),
        Algorithm::PS384 => Some(&signature::RSA_PSS_2048_8192_SHA384),
        Algorithm::PS512 => Some(&signature::RSA_PSS_2048_8192_SHA512),
        Algorithm::ES256 | Algorithm::ES384 => None,
    }
}

fn point(raw: &RawKey, bytes: usize) -> Option<Vec<u8>> {
    let (x, y) = (decode(raw.x.as_deref())?, decode(raw.y.as_deref())?);
    if x.len() != bytes || y.len() != bytes {
        return None;
    }
    Some([&[4], x.as_slice(), y.as_slice()].concat())
}

fn decode(text: Option<&str>) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(text?).ok()
}
