//! Tokens: nothing passes that was not signed, and of what was signed nothing that is not an SVID.

use std::sync::OnceLock;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use mayfly_core::{Timestamp, TrustDomain};
use mayfly_verify::{
    JwkSet, JwkSets,
    jwt::{Claims, validate},
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::Value;

/// Far enough from any date in the corpus to make both sides of every comparison reachable.
const NOW: Timestamp = Timestamp(1_800_000_000_000);
const AUDIENCE: &str = "spiffe://example.org/api";

/// The generator of P-256, which is the public key of the private key 1: a key without a secret.
const GENERATOR: [&str; 2] = [
    "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296",
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5",
];

/// The input is a token as it stands; and, cut at its first line break, it is a header and claims
/// that somebody with the right key has signed.
pub(crate) fn jwt(input: &[u8]) {
    let keys = keys();
    let text = String::from_utf8_lossy(input);
    // A corpus may hold tokens that were signed; then the rules hold for them as well.
    if let Ok(claims) = validate(&text, AUDIENCE, keys, NOW) {
        check(&text, &claims);
    }
    let Some((message, token)) = signed(input) else { return };
    if let Ok(claims) = validate(&token, AUDIENCE, keys, NOW) {
        check(&token, &claims);
        let other = "spiffe://example.org/other";
        let meant = claims.audience.iter().any(|one| one == other);
        assert_eq!(validate(&token, other, keys, NOW).is_ok(), meant, "the audience is not asked");
        assert!(validate(&token, AUDIENCE, &JwkSets::default(), NOW).is_err(), "no key, no faith");
        assert!(validate(&token, AUDIENCE, keys, claims.expires_at).is_err(), "it outlives itself");
        let forged = format!("{message}.{}", BASE64.encode([7; 64]));
        assert!(validate(&forged, AUDIENCE, keys, NOW).is_err(), "anybody can sign");
    }
}

/// What is signed, and the token.
fn signed(input: &[u8]) -> Option<(String, String)> {
    let mut parts = input.splitn(2, |b| *b == b'\n');
    let (header, payload) = (parts.next()?, parts.next()?);
    let message = format!("{}.{}", BASE64.encode(header), BASE64.encode(payload));
    let token = format!("{message}.{}", BASE64.encode(sign(message.as_bytes())));
    Some((message, token))
}

/// What JWT-SVID demands of a token that was accepted, read a second time with other means.
fn check(token: &str, claims: &Claims) {
    let parts: Vec<&str> = token.split('.').collect();
    assert_eq!(parts.len(), 3, "not a compact JWS");
    let json = |part: &str| -> Value {
        let bytes = BASE64.decode(part).expect("base64url without padding");
        serde_json::from_slice(&bytes).expect("JSON")
    };
    let header = json(parts.first().expect("a header"));
    let header = header.as_object().expect("an object");
    assert!(header.keys().all(|key| ["alg", "kid", "typ"].contains(&key.as_str())), "{header:?}");
    assert_eq!(header.get("alg").and_then(Value::as_str), Some("ES256"));
    assert_eq!(header.get("kid").and_then(Value::as_str), Some("one"));
    let typ = header.get("typ").filter(|typ| !typ.is_null());
    assert!(typ.is_none_or(|typ| typ == "JWT" || typ == "JOSE"), "{typ:?}");

    let payload = json(parts.get(1).expect("claims"));
    let subject = payload.get("sub").and_then(Value::as_str).expect("a subject");
    assert!(subject.eq_ignore_ascii_case(claims.id.as_str()), "another subject");
    assert_eq!(claims.id.trust_domain().as_str(), "example.org", "a foreign key was believed");
    assert!(!claims.id.path().is_empty(), "a trust domain is no workload");
    assert!(claims.audience.iter().any(|one| one == AUDIENCE), "meant for somebody else");
    assert!(claims.audience.iter().all(|one| !one.is_empty()));
    let expiry = payload.get("exp").and_then(Value::as_f64).expect("an expiry");
    assert!(expiry * 1000.0 > 1_800_000_000_000.0, "it has expired");
    if let Some(from) = payload.get("nbf") {
        assert!(from.as_f64().expect("a number").floor() * 1000.0 <= 1_800_000_000_000.0);
    }
}

fn keys() -> &'static JwkSets {
    static KEYS: OnceLock<JwkSets> = OnceLock::new();
    KEYS.get_or_init(|| {
        let [x, y] = GENERATOR.map(|hex| BASE64.encode(unhex(hex)));
        let set = serde_json::json!({ "keys": [
            { "kty": "EC", "crv": "P-256", "kid": "one", "use": "jwt-svid", "x": x, "y": y },
        ]});
        let set = JwkSet::parse(set.to_string().as_bytes()).expect("a good key set");
        assert_eq!(set.len(), 1, "the key was not understood");
        let domain = TrustDomain::parse("example.org").expect("a good name");
        [(domain, set)].into_iter().collect()
    })
}

fn sign(message: &[u8]) -> Vec<u8> {
    static PAIR: OnceLock<EcdsaKeyPair> = OnceLock::new();
    let luck = SystemRandom::new();
    let pair = PAIR.get_or_init(|| {
        let private = unhex(&format!("{:064x}", 1));
        let public = [vec![4], unhex(GENERATOR[0]), unhex(GENERATOR[1])].concat();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        EcdsaKeyPair::from_private_key_and_public_key(algorithm, &private, &public, &luck)
            .expect("1 is a private key")
    });
    pair.sign(&luck, message).expect("the key signs").as_ref().to_vec()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |b: &u8| char::from(*b).to_digit(16).expect("a hexadecimal digit") as u8;
    text.as_bytes().chunks(2).map(|pair| pair.iter().fold(0, |n, b| n * 16 + digit(b))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_is_signed_and_in_date_is_reached() {
        let (_, token) = signed(include_bytes!("../../corpus/jwt/good")).expect("two lines");
        assert!(validate(&token, AUDIENCE, keys(), NOW).is_ok(), "the target tests nothing");
    }
}
