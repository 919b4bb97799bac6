//! JWT-SVIDs, validated offline and strictly (JWT-SVID §2–4).
//!
//! What is lenient elsewhere is closed here: one serialisation, a closed list of header keys, an
//! algorithm that belongs to the key, and a key that belongs to the token's own trust domain. A token
//! that passes is genuine and in date; whether its task is still going on is a second question, which
//! [`Verifier`] asks as well.

mod verifier;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use mayfly_core::{InvalidId, Serial, SpiffeId, Timestamp, TrustDomain};
use serde::Deserialize;
use serde_json::{Map, Value};

pub use verifier::{Bearer, Verifier, bearer};

use crate::jwk::{Algorithm, JwkSets};

/// Longest segment of a token, in bytes.
pub const SEGMENT_BYTES_MAX: usize = 64 * 1024;

/// Why a token is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidToken {
    /// Not three base64url segments.
    #[error("it is not a JWS in compact serialisation")]
    Serialisation,
    /// A segment is longer than [`SEGMENT_BYTES_MAX`].
    #[error("a segment is longer than 64 KiB")]
    TooLong,
    /// The header is not an object of `alg`, `kid` and `typ` alone.
    #[error("its header is not one of `alg`, `kid` and `typ`, with an algorithm allowed for SVIDs")]
    Header,
    /// `typ` is neither `JWT` nor `JOSE`.
    #[error("its `typ` is neither `JWT` nor `JOSE`")]
    Type,
    /// The payload is not a JSON object.
    #[error("its claims are not a JSON object")]
    Claims,
    /// A claim that must be there is absent or of the wrong type.
    #[error("its claim `{0}` is missing or malformed")]
    Claim(&'static str),
    /// `sub` is not a SPIFFE ID.
    #[error("its subject is not a SPIFFE ID: {0}")]
    Subject(#[from] InvalidId),
    /// `sub` names a trust domain, which is no workload.
    #[error("its subject has no path")]
    RootPath,
    /// No keys of that trust domain are known.
    #[error("there are no keys for trust domain `{0}`")]
    Untrusted(TrustDomain),
    /// The trust domain has no such key.
    #[error("its key `{0}` is not one of its trust domain's")]
    UnknownKey(String),
    /// The signature does not verify.
    #[error("its signature is wrong")]
    Signature,
    /// `exp` has come.
    #[error("it has expired")]
    Expired,
    /// `nbf` has not come yet.
    #[error("it is not valid yet")]
    NotYet,
    /// It is meant for somebody else.
    #[error("it is not meant for `{0}`")]
    Audience(String),
}

/// What a genuine token says.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    /// Who it is about.
    pub id: SpiffeId,
    /// Whom it is meant for.
    pub audience: Vec<String>,
    /// When it ceases to be valid.
    pub expires_at: Timestamp,
    /// Its `jti`, if it is one of Mayfly's serials.
    pub serial: Option<Serial>,
    /// All claims, as they were signed.
    pub map: Map<String, Value>,
}

/// An unknown key, `crit` among them, fails; so does a key that occurs twice.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: Algorithm,
    kid: String,
    typ: Option<String>,
}

/// A token whose parts were read and not yet believed.
pub(crate) struct Signed<'a> {
    header: Header,
    message: &'a str,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl<'a> Signed<'a> {
    /// Cuts a compact serialisation.
    pub(crate) fn read(token: &'a str, segment_bytes_max: usize) -> Result<Self, InvalidToken> {
        let (message, signature) = token.rsplit_once('.').ok_or(InvalidToken::Serialisation)?;
        let (header, payload) = message.split_once('.').ok_or(InvalidToken::Serialisation)?;
        let decode = |segment| decode(segment, segment_bytes_max);
        let (header, payload, signature) = (decode(header)?, decode(payload)?, decode(signature)?);
        let header: Header =
            serde_json::from_slice(&header).map_err(|_malformed| InvalidToken::Header)?;
        Ok(Self { header, message, payload, signature })
    }

    /// The same for a token that is to be a JWT-SVID.
    pub(crate) fn read_svid(token: &'a str) -> Result<Self, InvalidToken> {
        let signed = Self::read(token, SEGMENT_BYTES_MAX)?;
        if !matches!(signed.kind(), None | Some("JWT" | "JOSE")) {
            return Err(InvalidToken::Type);
        }
        Ok(signed)
    }

    /// The `typ`.
    pub(crate) fn kind(&self) -> Option<&str> {
        self.header.typ.as_deref()
    }

    /// The key that it names.
    pub(crate) fn kid(&self) -> &str {
        &self.header.kid
    }

    /// The claims, encoded.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Checks the signature with the keys of `domain`, and no other's.
    pub(crate) fn verify(&self, domain: &TrustDomain, keys: &JwkSets) -> Result<(), InvalidToken> {
        let key = keys
            .of(domain)
            .ok_or_else(|| InvalidToken::Untrusted(domain.clone()))?
            .key(self.kid())
            .ok_or_else(|| InvalidToken::UnknownKey(self.kid().to_owned()))?;
        if !key.verifies(self.header.alg, self.message.as_bytes(), &self.signature) {
            return Err(InvalidToken::Signature);
        }
        Ok(())
    }
}

/// Checks `token` for `audience` at `now`, without leeway.
///
/// # Errors
/// [`InvalidToken`] names the first rule that is broken.
pub fn validate(
    token: &str,
    audience: &str,
    keys: &JwkSets,
    now: Timestamp,
) -> Result<Claims, InvalidToken> {
    validate_signed(&Signed::read_svid(token)?, audience, keys, now)
}

fn validate_signed(
    signed: &Signed<'_>,
    audience: &str,
    keys: &JwkSets,
    now: Timestamp,
) -> Result<Claims, InvalidToken> {
    // The subject chooses whose keys count, so it is read before the signature is checked, and
    // nothing else of the payload is believed until then.
    let claims = Claims::read(signed.payload())?;
    signed.verify(claims.id.trust_domain(), keys)?;
    claims.check(audience, now)?;
    Ok(claims)
}

pub(crate) fn decode(segment: &str, bytes_max: usize) -> Result<Vec<u8>, InvalidToken> {
    if segment.len() > bytes_max {
        return Err(InvalidToken::TooLong);
    }
    // The engine takes neither padding nor loose trailing bits, and `.` is not in its alphabet, so a
    // fourth segment fails here.
    BASE64_URL_SAFE_NO_PAD.decode(segment).map_err(|_malformed| InvalidToken::Serialisation)
}

impl Claims {
    fn read(payload: &[u8]) -> Result<Self, InvalidToken> {
        let map: Map<String, Value> =
            serde_json::from_slice(payload).map_err(|_malformed| InvalidToken::Claims)?;
        let subject = map.get("sub").and_then(Value::as_str).ok_or(InvalidToken::Claim("sub"))?;
        let id = SpiffeId::parse(subject)?;
        if id.path().is_empty() {
            return Err(InvalidToken::RootPath);
        }
        Ok(Self {
            id,
            audience: audience(&map).ok_or(InvalidToken::Claim("aud"))?,
            expires_at: instant(&map, "exp")?.ok_or(InvalidToken::Claim("exp"))?,
            serial: map.get("jti").and_then(Value::as_str).and_then(|jti| Serial::parse(jti).ok()),
            map,
        })
    }

    fn check(&self, audience: &str, now: Timestamp) -> Result<(), InvalidToken> {
        if self.expires_at <= now {
            return Err(InvalidToken::Expired);
        }
        if instant(&self.map, "nbf")?.is_some_and(|from| from > now) {
            return Err(InvalidToken::NotYet);
        }
        if audience.is_empty() || !self.audience.iter().any(|one| one == audience) {
            return Err(InvalidToken::Audience(audience.to_owned()));
        }
        Ok(())
    }
}

/// One audience or a list of them; an empty one is nobody.
pub(crate) fn audience(map: &Map<String, Value>) -> Option<Vec<String>> {
    let one = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let audience = match map.get("aud")? {
        Value::Array(list) => list.iter().map(one).collect::<Option<Vec<_>>>()?,
        single @ (Value::String(_)
        | Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::Object(_)) => vec![one(single)?],
    };
    (!audience.is_empty()).then_some(audience)
}

/// A `NumericDate`. Fractions are allowed and rounded down; what is no instant is malformed.
pub(crate) fn instant(
    map: &Map<String, Value>,
    name: &'static str,
) -> Result<Option<Timestamp>, InvalidToken> {
    let Some(value) = map.get(name) else {
        return Ok(None);
    };
    let seconds = value.as_u64().or_else(|| {
        value
            .as_f64()
            .filter(|seconds| (0.0..9e15).contains(seconds))
            .and_then(|seconds| format!("{:.0}", seconds.floor()).parse().ok())
    });
    seconds
        .map(|seconds| Some(Timestamp(seconds.saturating_mul(1000))))
        .ok_or(InvalidToken::Claim(name))
}
