//! Writes JWT-SVIDs: ES256, compact, three header fields and no more.
//!
//! The header is the same for all tokens of a key and is encoded once. The signature is the pair of
//! numbers as JWS wants it (`r | s`), made by a key that was parsed once; the usual libraries parse it
//! again for each token, which costs as much as signing.
//!
//! A token names its task (`mayfly:task`) and, if the task was delegated, on whose behalf it acts
//! (`act`, RFC 8693 §4.1, nearest ancestor outermost). It points to its two bits in the status list
//! only if there is a public URL to fetch that list from: a verifier that understands `status` has to
//! refuse a token whose list it cannot reach.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mayfly_core::{Grant, Kind, Serial, SpiffeId, TaskId, Timestamp};
use serde::Serialize;

use crate::{
    error::SignError,
    signer::{PublicUrl, Signer},
};

/// Longest encoded claims: the Rust client refuses longer segments.
pub const SEGMENT_BYTES_MAX: usize = 64 * 1024;

/// A signed token.
pub struct JwtSvid {
    /// The compact serialisation. Whoever has it can use it: it is a secret.
    pub token: String,
    /// Its `jti`, and its place in the status bitmaps.
    pub serial: Serial,
    /// Its last second.
    pub exp: Timestamp,
    /// Whom it names.
    pub spiffe_id: SpiffeId,
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JwtSvid({}, {}, ..)", self.spiffe_id, self.serial)
    }
}

/// Signs a token. Uses up the grant.
///
/// # Errors
/// [`SignError`] if the grant is not for this signer or its claims are too large.
pub fn issue(grant: Grant, signer: &Signer) -> Result<JwtSvid, SignError> {
    signer.admit(&grant, Kind::Jwt)?;
    if grant.audience().is_empty() {
        return Err(SignError::NoAudience);
    }
    let place = grant.serial().place();
    let status = signer.public_url().map(|url| Status {
        status_list: StatusList { idx: place.slot.0, uri: url.status_list(place.window) },
    });
    let issuer = signer.public_url().map(PublicUrl::as_str);
    let claims = Claims::of(&grant, issuer, status);
    let claims = serde_json::to_vec(&claims).map_err(|_io| SignError::Crypto("write claims"))?;
    let authority = signer.jwt();
    let encoded = claims.len().div_ceil(3) * 4;
    if encoded > SEGMENT_BYTES_MAX {
        return Err(SignError::TokenTooLarge(encoded));
    }
    let mut token = String::with_capacity(authority.header().len() + encoded + 2 + 86);
    token.push_str(authority.header());
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(&claims, &mut token);
    let signature = authority.key().sign(token.as_bytes())?;
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
    Ok(JwtSvid {
        token,
        serial: *grant.serial(),
        exp: grant.not_after().floor_to_second(),
        spiffe_id: grant.spiffe_id().clone(),
    })
}

#[derive(Serialize)]
struct Claims<'a> {
    /// The base of the public URL, where OIDC discovery finds the keys; without one there is no issuer
    /// that anybody could look up, and SPIFFE wants none.
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    sub: &'a str,
    /// Always a list: clients accept both forms, and SPIRE's callers expect this one.
    aud: &'a [String],
    exp: u64,
    /// The grant's first second, a moment in the past: clients refuse a token that their own clock
    /// says was made in the future.
    iat: u64,
    jti: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(rename = "mayfly:task")]
    task: Task,
    #[serde(skip_serializing_if = "Option::is_none")]
    act: Option<Act<'a>>,
}

#[derive(Serialize)]
struct Status {
    status_list: StatusList,
}

#[derive(Serialize)]
struct StatusList {
    idx: u32,
    uri: String,
}

#[derive(Serialize)]
struct Task {
    id: String,
    version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    root: String,
    depth: u32,
}

#[derive(Serialize)]
struct Act<'a> {
    sub: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    act: Option<Box<Self>>,
}

impl<'a> Act<'a> {
    /// Nests a chain, nearest outermost. Its depth is bounded by that of a tree of tasks.
    fn nest(actors: &'a [SpiffeId]) -> Option<Self> {
        actors
            .iter()
            .rev()
            .fold(None, |act, actor| Some(Self { sub: actor.as_str(), act: act.map(Box::new) }))
    }
}

impl<'a> Claims<'a> {
    fn of(grant: &'a Grant, iss: Option<&'a str>, status: Option<Status>) -> Self {
        let task = grant.task();
        Self {
            iss,
            sub: grant.spiffe_id().as_str(),
            aud: grant.audience(),
            exp: grant.not_after().seconds(),
            iat: grant.not_before().seconds(),
            jti: grant.serial().to_string(),
            status,
            task: Task {
                id: task.id.to_string(),
                version: task.version.0,
                parent: task.parent.as_ref().map(TaskId::to_string),
                root: task.root.to_string(),
                depth: task.depth,
            },
            act: Act::nest(grant.actors()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_of_actors_nests_with_the_nearest_outermost() {
        let actor = |path: &str| SpiffeId::parse(&format!("spiffe://td/{path}")).unwrap();
        let chain = [actor("parent"), actor("root")];
        let json = serde_json::to_string(&Act::nest(&chain)).unwrap();
        assert_eq!(json, r#"{"sub":"spiffe://td/parent","act":{"sub":"spiffe://td/root"}}"#);
        assert!(Act::nest(&[]).is_none());
    }
}
