//! Tokens of foreign OIDC issuers, as pipelines show them to begin a task (R5).
//!
//! Such a token is no SVID: its subject is a text in its issuer's own language, its header has members
//! that SPIFFE forbids, and it is signed with RSA as often as not. What is strict about an SVID is
//! strict here too: one serialisation, a short list of algorithms, a key that belongs to the issuer that
//! was named, exact names of issuer and audience. In addition a token must not live for long, because it
//! is good for one task and is remembered until it expires.
//!
//! A token chooses its keys by its `iss` before it is believed, so reading and verifying are two steps:
//! [`Unverified`] says which issuer and which key it claims, and [`Unverified::verify`] takes that
//! issuer's keys and nobody else's.

use mayfly_core::{Span, Timestamp};
use ring::digest;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    jwk::{Algorithm, JwkSet},
    jwt::{self, InvalidToken},
};

/// Longest token, in bytes. Those of the large providers are a tenth of it.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Longest key identifier, in bytes.
const KID_BYTES_MAX: usize = 512;
/// Longest text that stands for the token or its bearer: `sub` and `jti`, in bytes.
const NAME_BYTES_MAX: usize = 1024;
/// How far the issuer's clock may be from ours.
pub const LEEWAY: Span = Span::from_secs(60);
/// The longest that a token may live: from `iat` to `exp`.
pub const LIFE_MAX: Span = Span::from_secs(3600);

/// Why a token of an issuer is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidAssertion {
    /// Longer than [`TOKEN_BYTES_MAX`].
    #[error("it is longer than 16 KiB")]
    TooLong,
    /// Not three base64url segments.
    #[error("it is not a JWS in compact serialisation")]
    Serialisation,
    /// The header is not an object with `alg` and `kid`, or names a member as critical.
    #[error("its header lacks `alg` or `kid`, or has `crit`")]
    Header,
    /// Neither `RS256` nor `ES256`.
    #[error("its algorithm is neither `RS256` nor `ES256`")]
    Algorithm,
    /// It says that it is something else: a status list, say, which the same key may have signed.
    #[error("its `typ` is not `JWT`")]
    Type,
    /// The payload is not a JSON object.
    #[error("its claims are not a JSON object")]
    Claims,
    /// A claim that must be there is absent, too long or of the wrong type.
    #[error("its claim `{0}` is missing or malformed")]
    Claim(&'static str),
    /// It names another issuer.
    #[error("its issuer is not `{0}`")]
    Issuer(String),
    /// The issuer has no such key.
    #[error("its key is not one of its issuer's")]
    UnknownKey,
    /// The signature does not verify.
    #[error("its signature is wrong")]
    Signature,
    /// `exp` has come.
    #[error("it has expired")]
    Expired,
    /// `nbf` or `iat` has not come yet.
    #[error("it is not valid yet")]
    NotYet,
    /// It is meant to live for longer than [`LIFE_MAX`].
    #[error("it lives for longer than an hour")]
    LifeTooLong,
    /// It is meant for somebody else.
    #[error("it is not meant for `{0}`")]
    Audience(String),
}

/// What a genuine token of an issuer says.
#[derive(Clone, Debug, PartialEq)]
pub struct Assertion {
    /// Who vouches.
    pub issuer: String,
    /// For whom, in the issuer's own language.
    pub subject: String,
    /// The token's name, where its issuer gives it one.
    pub id: Option<String>,
    /// When it is refused for its age at the latest, leeway included.
    pub forget_after: Timestamp,
    /// What stands for this token among all tokens of all issuers: a digest, so that nothing that is kept
    /// of it can be shown again.
    pub key: [u8; 32],
    /// All claims, as they were signed.
    pub claims: Map<String, Value>,
}

impl Assertion {
    /// A claim that is a text.
    #[must_use]
    pub fn text(&self, claim: &str) -> Option<&str> {
        self.claims.get(claim).and_then(Value::as_str)
    }
}

/// Unknown members are the issuer's business (RFC 7515 §4), and none of them is used: a key that comes
/// with a token (`jwk`, `jku`, `x5c`) proves nothing.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
    typ: Option<String>,
    #[serde(default)]
    crit: Option<Value>,
}

/// A token whose parts were read and not yet believed.
pub struct Unverified<'a> {
    algorithm: Algorithm,
    kid: String,
    message: &'a str,
    signature: Vec<u8>,
    issuer: String,
    claims: Map<String, Value>,
}

impl std::fmt::Debug for Unverified<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unverified").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl<'a> Unverified<'a> {
    /// Reads a token.
    ///
    /// # Errors
    /// [`InvalidAssertion`] if it is none that could ever be believed.
    pub fn read(token: &'a str) -> Result<Self, InvalidAssertion> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(InvalidAssertion::TooLong);
        }
        let parts = token.rsplit_once('.').and_then(|(message, signature)| {
            let (header, payload) = message.split_once('.')?;
            Some((message, header, payload, signature))
        });
        let (message, header, payload, signature) = parts.ok_or(InvalidAssertion::Serialisation)?;
        let decode = |segment| {
            jwt::decode(segment, TOKEN_BYTES_MAX)
                .map_err(|_malformed| InvalidAssertion::Serialisation)
        };
        let (header, payload, signature) = (decode(header)?, decode(payload)?, decode(signature)?);
        let header: Header =
            serde_json::from_slice(&header).map_err(|_malformed| InvalidAssertion::Header)?;
        if header.crit.is_some() || !(1..=KID_BYTES_MAX).contains(&header.kid.len()) {
            return Err(InvalidAssertion::Header);
        }
        if !header.typ.is_none_or(|typ| typ.eq_ignore_ascii_case("JWT")) {
            return Err(InvalidAssertion::Type);
        }
        let algorithm = match header.alg.as_str() {
            "RS256" => Algorithm::RS256,
            "ES256" => Algorithm::ES256,
            _ => return Err(InvalidAssertion::Algorithm),
        };
        let claims: Map<String, Value> =
            serde_json::from_slice(&payload).map_err(|_malformed| InvalidAssertion::Claims)?;
        let issuer = claims.get("iss").and_then(Value::as_str);
        let issuer = issuer.ok_or(InvalidAssertion::Claim("iss"))?.to_owned();
        Ok(Self { algorithm, kid: header.kid, message, signature, issuer, claims })
    }

    /// Whose token it claims to be.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Whether `keys` hold the key that it names. If they do not, they may be out of date.
    #[must_use]
    pub fn is_by_one_of(&self, keys: &JwkSet) -> bool {
        keys.key(&self.kid).is_some()
    }

    /// Believes it, if it is by `issuer`, whose keys are `keys`, for `audience`, and in date at `now`.
    ///
    /// # Errors
    /// [`InvalidAssertion`] names the first rule that is broken.
    pub fn verify(
        self,
        (issuer, keys): (&str, &JwkSet),
        audience: &str,
        now: Timestamp,
    ) -> Result<Assertion, InvalidAssertion> {
        if self.issuer != issuer {
            return Err(InvalidAssertion::Issuer(issuer.to_owned()));
        }
        let key = keys.key(&self.kid).ok_or(InvalidAssertion::UnknownKey)?;
        if !key.verifies(self.algorithm, self.message.as_bytes(), &self.signature) {
            return Err(InvalidAssertion::Signature);
        }
        let forget_after = in_date(&self.claims, now)?;
        let meant_for = jwt::audience(&self.claims).ok_or(InvalidAssertion::Claim("aud"))?;
        if !meant_for.iter().any(|one| one == audience) {
            return Err(InvalidAssertion::Audience(audience.to_owned()));
        }
        let subject = name(&self.claims, "sub")?.ok_or(InvalidAssertion::Claim("sub"))?;
        let id = name(&self.claims, "jti")?;
        let key = fingerprint(&self.issuer, id.as_deref(), self.message);
        Ok(Assertion { issuer: self.issuer, subject, id, forget_after, key, claims: self.claims })
    }
}

/// Checks the dates; the answer is when the token has expired for everybody.
fn in_date(claims: &Map<String, Value>, now: Timestamp) -> Result<Timestamp, InvalidAssertion> {
    let instant = |name: &'static str| {
        jwt::instant(claims, name).map_err(|_malformed: InvalidToken| InvalidAssertion::Claim(name))
    };
    let must = |name: &'static str| instant(name)?.ok_or(InvalidAssertion::Claim(name));
    let (expires, issued) = (must("exp")?, must("iat")?);
    let forget_after = expires.plus(LEEWAY);
    if forget_after <= now {
        return Err(InvalidAssertion::Expired);
    }
    let latest = now.plus(LEEWAY);
    if issued > latest || instant("nbf")?.is_some_and(|from| from > latest) {
        return Err(InvalidAssertion::NotYet);
    }
    // One that expires before it was made has no life to speak of, and no issuer that can count.
    if expires < issued {
        return Err(InvalidAssertion::Claim("exp"));
    }
    if expires.since(issued) > LIFE_MAX {
        return Err(InvalidAssertion::LifeTooLong);
    }
    Ok(forget_after)
}

fn name(
    claims: &Map<String, Value>,
    claim: &'static str,
) -> Result<Option<String>, InvalidAssertion> {
    let Some(value) = claims.get(claim) else { return Ok(None) };
    let text = value.as_str().filter(|text| (1..=NAME_BYTES_MAX).contains(&text.len()));
    text.map(|text| Some(text.to_owned())).ok_or(InvalidAssertion::Claim(claim))
}

/// The name of a token: its issuer's for it, or what was signed. Not its signature: of an ECDSA signature
/// anybody can make a second one that verifies as well.
fn fingerprint(issuer: &str, id: Option<&str>, message: &str) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    let (kind, name) = id.map_or(("message", message), |id| ("jti", id));
    for part in ["oidc", kind, issuer, name] {
        // Lengths keep two parts from trading octets.
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    let mut key = [0; 32];
    key.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    key
}
