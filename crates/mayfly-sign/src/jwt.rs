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

use crate::{
    error::SignError,
    signer::{PublicUrl, Signer},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mayfly_core::{Grant, Kind, Serial, SpiffeId, Timestamp};

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
    let claims = write_claims(&grant, signer.public_url());
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

/// Octets of claims without an audience, a status list and actors; a bit more than it takes.
const CLAIMS_BYTES: usize = 480;

/// Writes the claims by heart: an encoder that knows nothing of them costs a tenth of the signature.
/// The tests compare what stands here with what it would have written.
fn write_claims(grant: &Grant, public_url: Option<&PublicUrl>) -> Vec<u8> {
    let mut out = Vec::with_capacity(CLAIMS_BYTES);
    out.push(b'{');
    if let Some(url) = public_url {
        // The base of the public URL, where OIDC discovery finds the keys; without one there is no
        // issuer that anybody could look up, and SPIFFE wants none.
        put_text(&mut out, "\"iss\":", url.as_str());
        out.push(b',');
    }
    put_id(&mut out, "\"sub\":\"", grant.spiffe_id());
    // Always a list: clients accept both forms, and SPIRE's callers expect this one.
    out.extend_from_slice(b",\"aud\":[");
    for (at, audience) in grant.audience().iter().enumerate() {
        put_text(&mut out, if at == 0 { "" } else { "," }, audience);
    }
    put_number(&mut out, "],\"exp\":", grant.not_after().seconds());
    // The grant's first second, a moment in the past: clients refuse a token that their own clock says
    // was made in the future.
    put_number(&mut out, ",\"iat\":", grant.not_before().seconds());
    put_hex(&mut out, ",\"jti\":\"", grant.serial().as_bytes());
    out.push(b'"');
    if let Some(url) = public_url {
        let place = grant.serial().place();
        put_number(&mut out, ",\"status\":{\"status_list\":{\"idx\":", place.slot.0.into());
        put_text(&mut out, ",\"uri\":", &url.status_list(place.window));
        out.extend_from_slice(b"}}");
    }
    put_task(&mut out, grant);
    // Nearest outermost. The depth is bounded by that of a tree of tasks.
    for actor in grant.actors() {
        put_id(&mut out, ",\"act\":{\"sub\":\"", actor);
    }
    out.resize(out.len() + grant.actors().len(), b'}');
    out.push(b'}');
    out
}

fn put_task(out: &mut Vec<u8>, grant: &Grant) {
    let task = grant.task();
    put_hex(out, ",\"mayfly:task\":{\"id\":\"", task.id.as_bytes());
    put_number(out, "\",\"version\":", task.version.0.into());
    if let Some(parent) = &task.parent {
        put_hex(out, ",\"parent\":\"", parent.as_bytes());
        out.push(b'"');
    }
    put_hex(out, ",\"root\":\"", task.root.as_bytes());
    put_number(out, "\",\"depth\":", task.depth.into());
    out.push(b'}');
}

/// A SPIFFE ID has no characters that would have to be escaped (SPIFFE-ID §2).
fn put_id(out: &mut Vec<u8>, before: &str, id: &SpiffeId) {
    out.extend_from_slice(before.as_bytes());
    out.extend_from_slice(id.as_str().as_bytes());
    out.push(b'"');
}

/// A JSON string, as short as it can be: only what has to be escaped is (RFC 8259 §7).
fn put_text(out: &mut Vec<u8>, before: &str, text: &str) {
    out.extend_from_slice(before.as_bytes());
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|octet| matches!(octet, ..0x20 | b'"' | b'\\')) {
        let (plain, special) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((octet, after)) = special.split_first() else { break };
        put_escaped(out, *octet);
        rest = after;
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn put_escaped(out: &mut Vec<u8>, octet: u8) {
    match octet {
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        0x08 => out.extend_from_slice(b"\\b"),
        0x0c => out.extend_from_slice(b"\\f"),
        ..0x20 => put_hex(out, "\\u00", &[octet]),
        _ => out.extend_from_slice(&[b'\\', octet]),
    }
}

fn put_hex<const N: usize>(out: &mut Vec<u8>, before: &str, octets: &[u8; N]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |of: u8| DIGITS.get(usize::from(of & 0xf)).copied().unwrap_or_default();
    out.extend_from_slice(before.as_bytes());
    let pairs = octets.map(|octet| [digit(octet >> 4), digit(octet)]);
    out.extend_from_slice(pairs.as_flattened());
}

fn put_number(out: &mut Vec<u8>, before: &str, mut number: u64) {
    out.extend_from_slice(before.as_bytes());
    let start = out.len();
    loop {
        out.push(b'0' + u8::try_from(number % 10).unwrap_or_default());
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.get_mut(start..).unwrap_or_default().reverse();
}

#[cfg(test)]
mod tests {
    use mayfly_core::{Place, Slot, Span, TaskId, Window, grant::planted};
    use proptest::{collection::vec, prelude::*};
    use serde::Serialize;

    use super::*;

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
        fn of(grant: &'a Grant, public_url: Option<&'a PublicUrl>) -> Self {
            let place = grant.serial().place();
            let iss = public_url.map(PublicUrl::as_str);
            let status = public_url.map(|url| Status {
                status_list: StatusList { idx: place.slot.0, uri: url.status_list(place.window) },
            });
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

    proptest! {
        #[test]
        fn what_is_written_by_heart_is_what_an_encoder_writes(
            audience in vec(any::<String>(), 0..4),
            actors in 0..5_usize,
            (slot, now) in (0..1_u32 << 24, 0..253_000_000_000_000_u64),
            is_public: bool,
        ) {
            let now = Timestamp(now);
            let place = Place { window: Window::of(now), slot: Slot(slot) };
            let (serial, ttl) = (Serial::new(place, now.0 ^ 0x5a5a), Span::from_secs(120));
            let id = SpiffeId::parse("spiffe://td/agent").unwrap();
            let grant = planted::grant(Kind::Jwt, serial, id.clone(), (now, ttl), audience);
            let grant = planted::delegated(grant, vec![id; actors]);
            let url = PublicUrl::parse("https://m.example.org/x").unwrap();
            let url = is_public.then_some(&url);
            let encoded = serde_json::to_string(&Claims::of(&grant, url)).unwrap();
            assert_eq!(String::from_utf8(write_claims(&grant, url)).unwrap(), encoded);
        }
    }

    #[test]
    fn a_chain_of_actors_nests_with_the_nearest_outermost() {
        let actor = |path: &str| SpiffeId::parse(&format!("spiffe://td/{path}")).unwrap();
        let chain = [actor("parent"), actor("root")];
        let json = serde_json::to_string(&Act::nest(&chain)).unwrap();
        assert_eq!(json, r#"{"sub":"spiffe://td/parent","act":{"sub":"spiffe://td/root"}}"#);
        assert!(Act::nest(&[]).is_none());
    }
}
