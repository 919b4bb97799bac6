//! Which tokens are JWT-SVIDs (facts of JWT-SVID §2–4).

use crate::common::{NOW, serial};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as B64};
use mayfly_core::{Timestamp, TrustDomain};
use mayfly_verify::{
    JwkSet, JwkSets,
    jwt::{Claims, InvalidToken, validate},
};
use ring::{
    rand::SystemRandom,
    signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _},
};
use serde_json::{Value, json};

pub(crate) const AUDIENCE: &str = "db";

pub(crate) struct Signer {
    key: EcdsaKeyPair,
    curve: &'static str,
}

impl Signer {
    fn new(algorithm: &'static EcdsaSigningAlgorithm, curve: &'static str) -> Self {
        let luck = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &luck).expect("a key");
        let key = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &luck).expect("a key");
        Self { key, curve }
    }

    pub(crate) fn p256() -> Self {
        Self::new(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256")
    }

    pub(crate) fn jwk(&self, kid: &str) -> Value {
        let point = self.key.public_key().as_ref().get(1..).expect("a point");
        let (x, y) = point.split_at(point.len() / 2);
        json!({"kty": "EC", "crv": self.curve, "kid": kid, "x": B64.encode(x), "y": B64.encode(y)})
    }

    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        let message = message(header, claims);
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes()).expect("signed");
        format!("{message}.{}", B64.encode(signature))
    }
}

fn message(header: &Value, claims: &Value) -> String {
    format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()))
}

pub(crate) fn header() -> Value {
    json!({"alg": "ES256", "kid": "k1", "typ": "JWT"})
}

pub(crate) fn claims() -> Value {
    json!({
        "sub": "spiffe://example.org/a",
        "aud": [AUDIENCE],
        "exp": NOW.seconds() + 60,
        "iat": NOW.seconds(),
        "jti": serial(5).to_string(),
    })
}

pub(crate) fn sets(domain: &str, keys: Value) -> JwkSets {
    let set = JwkSet::parse(json!({ "keys": keys }).to_string().as_bytes()).expect("a set");
    [(TrustDomain::parse(domain).expect("a name"), set)].into_iter().collect()
}

/// `base` with one member changed, or removed if `value` is null.
pub(crate) fn with(mut base: Value, name: &str, value: Value) -> Value {
    let map = base.as_object_mut().expect("an object");
    if value.is_null() {
        map.remove(name);
    } else {
        map.insert(name.to_owned(), value);
    }
    base
}

fn judge(header: &Value, claims: &Value) -> Result<Claims, InvalidToken> {
    let signer = Signer::p256();
    let keys = sets("example.org", json!([signer.jwk("k1")]));
    validate(&signer.sign(header, claims), AUDIENCE, &keys, NOW)
}

#[test]
fn a_good_token_tells_who_and_which_and_until_when() {
    let claims = judge(&header(), &with(claims(), "extra", json!({"a": 1}))).unwrap();
    assert_eq!(claims.id.as_str(), "spiffe://example.org/a");
    assert_eq!(claims.audience, [AUDIENCE]);
    assert_eq!(claims.expires_at, Timestamp(NOW.0 + 60_000));
    assert_eq!(claims.serial, Some(serial(5)));
    assert_eq!(claims.map.get("extra"), Some(&json!({"a": 1})));
}

#[test]
fn what_the_specification_allows_is_accepted() {
    for header in [with(header(), "typ", Value::Null), with(header(), "typ", json!("JOSE"))] {
        assert!(judge(&header, &claims()).is_ok(), "{header}");
    }
    for claims in [
        with(claims(), "aud", json!(AUDIENCE)),
        with(claims(), "aud", json!(["other", AUDIENCE])),
        with(claims(), "exp", json!(1.8e9 + 60.5)),
        with(claims(), "nbf", json!(NOW.seconds())),
        with(claims(), "jti", json!("not a serial")),
        with(claims(), "jti", Value::Null),
    ] {
        assert!(judge(&header(), &claims).is_ok(), "{claims}");
    }
}

#[test]
fn a_header_that_says_anything_unusual_is_refused() {
    for (name, value) in [
        ("alg", json!("none")),
        ("alg", json!("HS256")),
        ("alg", json!("EdDSA")),
        ("alg", json!("ES512")),
        ("alg", json!("es256")),
        ("alg", Value::Null),
        ("kid", Value::Null),
        ("crit", json!(["exp"])),
        ("jku", json!("https://example.org")),
        ("x5c", json!([])),
        ("cty", json!("JWT")),
    ] {
        let header = with(header(), name, value);
        assert_eq!(judge(&header, &claims()), Err(InvalidToken::Header), "{header}");
    }
    for typ in ["wit+jwt", "jwt", "at+jwt", ""] {
        let header = with(header(), "typ", json!(typ));
        assert_eq!(judge(&header, &claims()), Err(InvalidToken::Type), "{typ}");
    }
    let header = with(header(), "kid", json!("k2"));
    assert_eq!(judge(&header, &claims()), Err(InvalidToken::UnknownKey("k2".into())));
}

#[test]
fn claims_that_are_missing_or_wrong_are_refused() {
    use InvalidToken as No;
    let audience = || No::Audience(AUDIENCE.into());
    for (name, value, reason) in [
        ("sub", Value::Null, No::Claim("sub")),
        ("sub", json!(7), No::Claim("sub")),
        ("sub", json!("spiffe://example.org"), No::RootPath),
        ("aud", Value::Null, No::Claim("aud")),
        ("aud", json!([]), No::Claim("aud")),
        ("aud", json!(""), No::Claim("aud")),
        ("aud", json!([AUDIENCE, 7]), No::Claim("aud")),
        ("aud", json!({}), No::Claim("aud")),
        ("aud", json!("other"), audience()),
        ("aud", json!("DB"), audience()),
        ("exp", Value::Null, No::Claim("exp")),
        ("exp", json!("1900000000"), No::Claim("exp")),
        ("exp", json!(-5), No::Claim("exp")),
        ("exp", json!(1e300), No::Claim("exp")),
        ("exp", json!(NOW.seconds()), No::Expired),
        ("exp", json!(NOW.seconds() - 1), No::Expired),
        ("nbf", json!(NOW.seconds() + 1), No::NotYet),
        ("nbf", json!("soon"), No::Claim("nbf")),
    ] {
        let claims = with(claims(), name, value);
        assert_eq!(judge(&header(), &claims), Err(reason), "{claims}");
    }
    for subject in ["https://example.org/a", "spiffe://example.org/", "a"] {
        let claims = with(claims(), "sub", json!(subject));
        let refused = judge(&header(), &claims);
        assert!(matches!(refused, Err(No::Subject(_))), "{subject}");
    }
}

#[test]
fn a_key_counts_for_its_own_trust_domain_only() {
    let (ours, theirs) = (Signer::p256(), Signer::p256());
    let mut keys = sets("example.org", json!([ours.jwk("k1")]));
    let foreign = json!({ "keys": [theirs.jwk("k1")] }).to_string();
    keys.insert(
        TrustDomain::parse("other.org").unwrap(),
        JwkSet::parse(foreign.as_bytes()).unwrap(),
    );
    // The same key identifier in two trust domains, and a token that borrows the other's name.
    let borrowed = theirs.sign(&header(), &claims());
    assert_eq!(validate(&borrowed, AUDIENCE, &keys, NOW), Err(InvalidToken::Signature));
    let own = theirs.sign(&header(), &with(claims(), "sub", json!("spiffe://other.org/a")));
    assert!(validate(&own, AUDIENCE, &keys, NOW).is_ok());
    let unknown = ours.sign(&header(), &with(claims(), "sub", json!("spiffe://third.org/a")));
    assert!(matches!(validate(&unknown, AUDIENCE, &keys, NOW), Err(InvalidToken::Untrusted(_))));
}

#[test]
fn only_the_compact_serialisation_is_read() {
    let signer = Signer::p256();
    let keys = sets("example.org", json!([signer.jwk("k1")]));
    let token = signer.sign(&header(), &claims());
    let refused = |token: &str| validate(token, AUDIENCE, &keys, NOW).unwrap_err();
    let (message, signature) = token.rsplit_once('.').unwrap();
    for bent in [
        String::new(),
        ".".into(),
        "..".into(),
        message.to_owned(),
        format!("{token}.{signature}"),
        format!("{token}="),
        format!("{token}\n"),
        format!(" {token}"),
        json!({"payload": "", "signatures": []}).to_string(),
        format!("{message}."),
    ] {
        // Without panic, and never accepted.
        let _reason = refused(&bent);
    }
    assert_eq!(
        refused(&format!("{}.{signature}", "A".repeat(70_000))),
        InvalidToken::Serialisation
    );
    assert_eq!(refused(&format!("{message}.{}", "A".repeat(70_000))), InvalidToken::TooLong);
    for at in 0..token.len() {
        let mut bent = token.clone().into_bytes();
        bent[at] = if bent[at] == b'A' { b'B' } else { b'A' };
        let bent = String::from_utf8(bent).unwrap();
        assert!(validate(&bent, AUDIENCE, &keys, NOW).is_err(), "bent at {at}");
    }
    let twice = format!(
        "{}.{}",
        B64.encode(r#"{"alg":"ES256","kid":"k1","kid":"k1"}"#),
        B64.encode(claims().to_string())
    );
    assert_eq!(refused(&format!("{twice}.{signature}")), InvalidToken::Header);
    let list = format!("{}.{}", B64.encode(header().to_string()), B64.encode("[]"));
    assert_eq!(refused(&format!("{list}.{signature}")), InvalidToken::Claims);
}

#[test]
fn an_algorithm_must_be_its_keys_own() {
    let p384 = Signer::new(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384");
    let keys = sets("example.org", json!([p384.jwk("k1")]));
    let header384 = with(header(), "alg", json!("ES384"));
    let token = p384.sign(&header384, &claims());
    assert!(validate(&token, AUDIENCE, &keys, NOW).is_ok());
    let token = p384.sign(&header(), &claims());
    assert_eq!(validate(&token, AUDIENCE, &keys, NOW), Err(InvalidToken::Signature));

    let p256 = Signer::p256();
    let other_alg = with(p256.jwk("k1"), "alg", json!("ES384"));
    let keys = sets("example.org", json!([other_alg]));
    let token = p256.sign(&header(), &claims());
    assert_eq!(validate(&token, AUDIENCE, &keys, NOW), Err(InvalidToken::Signature));
}

#[test]
fn rsa_is_verified_from_2048_bits_on() {
    for (fixture, works) in [
        (include_str!("fixtures/rsa2048.b64"), true),
        (include_str!("fixtures/rsa1024.b64"), false),
    ] {
        // The modulus, then a token signed RS256: made once with openssl, the key thrown away.
        let mut lines = fixture.lines();
        let (n, token) = (lines.next().expect("n"), lines.next().expect("a token"));
        let jwk = json!({"kty": "RSA", "kid": "k1", "n": n, "e": "AQAB"});
        let keys = sets("example.org", json!([jwk]));
        assert_eq!(validate(token, AUDIENCE, &keys, NOW).is_ok(), works);
        let confused = with(jwk, "alg", json!("PS256"));
        let keys = sets("example.org", json!([confused]));
        assert_eq!(validate(token, AUDIENCE, &keys, NOW), Err(InvalidToken::Signature));
    }
}

#[test]
fn a_key_set_passes_over_what_it_cannot_use() {
    let signer = Signer::p256();
    let keys = json!({ "keys": [
        signer.jwk("k1"),
        {"kty": "OKP", "crv": "Ed25519", "kid": "k2", "x": ""},
        with(signer.jwk("k3"), "use", json!("x509-svid")),
        with(signer.jwk("k4"), "kid", Value::Null),
        with(signer.jwk("k5"), "y", json!("AA")),
        "not even an object",
    ], "spiffe_sequence": 7});
    assert_eq!(JwkSet::parse(keys.to_string().as_bytes()).unwrap().len(), 1);
    let twice = json!({ "keys": [signer.jwk("k1"), signer.jwk("k1")] }).to_string();
    assert!(JwkSet::parse(twice.as_bytes()).is_err());
    assert!(JwkSet::parse(b"{}").is_err());
}
