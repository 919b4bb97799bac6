//! What the tests of this crate share: a ring, grants for it, and verifiers that are not ours.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mayfly_core::{
    Grant, Kind, Place, Serial, Slot, Span, SpiffeId, Timestamp, TrustDomain, Window,
    grant::planted,
};
use mayfly_sign::{KeyRing, RotationPolicy};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, RevocationOptions, anchor_from_trusted_cert};

/// 2026-11-22, some time of day with milliseconds.
pub(crate) const NOW: Timestamp = Timestamp(1_795_339_123_456);
pub(crate) const TTL: Span = Span::from_secs(300);

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").expect("a valid name")
}

pub(crate) fn ring() -> KeyRing {
    KeyRing::create(domain(), RotationPolicy::for_credentials(TTL), NOW).expect("a ring")
}

pub(crate) fn id(path: &str) -> SpiffeId {
    SpiffeId::new(&domain(), path).expect("a valid path")
}

pub(crate) fn serial(slot: u32) -> Serial {
    let place = Place { window: Window::of(NOW.plus(TTL)), slot: Slot(slot) };
    Serial::new(place, 0x8000_0000_0000_0000 | u64::from(slot))
}

pub(crate) fn x509_grant(slot: u32, id: SpiffeId, now: Timestamp) -> Grant {
    planted::grant(Kind::X509, serial(slot), id, (now, TTL), Vec::new())
}

pub(crate) fn jwt_grant(slot: u32, now: Timestamp, audience: &[&str]) -> Grant {
    let audience = audience.iter().map(|audience| (*audience).to_owned()).collect();
    planted::grant(Kind::Jwt, serial(slot), id("/agent"), (now, TTL), audience)
}

pub(crate) fn unix(at: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(at.0))
}

/// Path building and validation by webpki, as a TLS server and as a TLS client would do it.
pub(crate) fn webpki(
    leaf: &[u8],
    bundle: &[Vec<u8>],
    at: Timestamp,
    revocation: Option<RevocationOptions<'_>>,
) -> Result<(), webpki::Error> {
    let authorities: Vec<CertificateDer<'_>> =
        bundle.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let anchors =
        authorities.iter().map(anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>()?;
    let leaf = CertificateDer::from(leaf);
    let leaf = EndEntityCert::try_from(&leaf)?;
    for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &[],
            unix(at),
            usage,
            revocation,
            None,
        )?;
    }
    Ok(())
}

/// The public keys of a JWK Set, by `kid`.
pub(crate) fn keys_of(jwks: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let jwks: serde_json::Value = serde_json::from_slice(jwks).expect("json");
    let keys = jwks.get("keys").and_then(|keys| keys.as_array()).expect("a list of keys");
    keys.iter()
        .map(|key| {
            let part = |name: &str| {
                let text = key.get(name).and_then(|part| part.as_str()).expect("a string");
                URL_SAFE_NO_PAD.decode(text).expect("base64url")
            };
            let kid = key.get("kid").and_then(|kid| kid.as_str()).expect("a kid").to_owned();
            (kid, [vec![4], part("x"), part("y")].concat())
        })
        .collect()
}

/// Verifies a token as a stranger would: `(header, claims)`, or `None`.
pub(crate) fn verify(token: &str, jwks: &[u8]) -> Option<(serde_json::Value, serde_json::Value)> {
    let (message, signature) = token.rsplit_once('.')?;
    let (header, claims) = message.split_once('.')?;
    let json = |part: &str| {
        let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
        serde_json::from_slice::<serde_json::Value>(&bytes).ok()
    };
    let (header, claims) = (json(header)?, json(claims)?);
    let keys = keys_of(jwks);
    let key = keys.get(header.get("kid")?.as_str()?)?;
    ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_FIXED, key)
        .verify(message.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).ok()?)
        .ok()?;
    Some((header, claims))
}
