//! R5: which tokens of an OIDC issuer are believed. Each case breaks one rule of a token that is good.

use crate::{
    common::NOW,
    token::{Signer, header, with},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as B64};
use mayfly_core::Timestamp;
use mayfly_verify::{
    JwkSet,
    oidc::{Assertion, InvalidAssertion, TOKEN_BYTES_MAX, Unverified},
};
use serde_json::{Value, json};

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "spiffe://example.org";

fn claims() -> Value {
    let now = NOW.seconds();
    json!({
        "iss": ISSUER,
        "sub": "repo:acme/shop:ref:refs/heads/main",
        "aud": AUDIENCE,
        "iat": now,
        "nbf": now,
        "exp": now + 300,
        "jti": "one",
        "repository": "acme/shop",
        "run_number": 7,
    })
}

fn keys_of(signer: &Signer, kid: &str) -> JwkSet {
    let keys = json!({ "keys": [signer.jwk(kid)] }).to_string();
    JwkSet::parse(keys.as_bytes()).expect("a set")
}

fn judge(token: &str, keys: &JwkSet, now: Timestamp) -> Result<Assertion, InvalidAssertion> {
    Unverified::read(token)?.verify((ISSUER, keys), AUDIENCE, now)
}

#[test]
fn r5_a_good_token_says_who_it_is_about() {
    let signer = Signer::p256();
    let keys = keys_of(&signer, "k1");
    let said = judge(&signer.sign(&header(), &claims()), &keys, NOW).expect("a good token");
    assert_eq!(said.issuer, ISSUER);
    assert_eq!(said.subject, "repo:acme/shop:ref:refs/heads/main");
    assert_eq!(said.id.as_deref(), Some("one"));
    assert_eq!(said.text("repository"), Some("acme/shop"));
    assert_eq!(said.text("run_number"), None, "rules compare texts");
    assert_eq!(said.forget_after.seconds(), NOW.seconds() + 360);
    let now = NOW.seconds();
    for changed in [
        with(claims(), "aud", json!(["other", AUDIENCE])),
        with(claims(), "exp", json!(now + 3600)),
        with(with(claims(), "exp", json!(now - 59)), "iat", json!(now - 60)),
        with(claims(), "nbf", Value::Null),
        with(claims(), "nbf", json!(now + 60)),
        with(claims(), "iat", json!(now + 60)),
        with(claims(), "jti", Value::Null),
    ] {
        let judged = judge(&signer.sign(&header(), &changed), &keys, NOW);
        assert!(judged.is_ok(), "{changed}: {judged:?}");
    }
    // Members of the header that nobody needs, as large providers send them.
    for (name, value) in [("x5t", json!("abc")), ("typ", json!("jwt")), ("typ", Value::Null)] {
        let header = with(header(), name, value);
        assert!(judge(&signer.sign(&header, &claims()), &keys, NOW).is_ok(), "{header}");
    }
}

#[test]
fn r5_rsa_is_what_most_issuers_sign_with() {
    // The modulus, then a token signed RS256: made once with openssl, the key thrown away.
    let mut lines = include_str!("fixtures/oidc_rs256.b64").lines();
    let (n, token) = (lines.next().expect("n"), lines.next().expect("a token"));
    let jwk = json!({"kty": "RSA", "kid": "k1", "alg": "RS256", "use": "sig", "n": n, "e": "AQAB"});
    let keys =
        |jwk: Value| JwkSet::parse(json!({ "keys": [jwk] }).to_string().as_bytes()).expect("a set");
    let said = judge(token, &keys(jwk.clone()), NOW).expect("a good token");
    assert_eq!(said.subject, "project_path:acme/shop:ref_type:branch:ref:main");
    let confused = with(jwk, "alg", json!("PS256"));
    assert_eq!(judge(token, &keys(confused), NOW), Err(InvalidAssertion::Signature));
}

#[test]
fn r5_each_broken_claim_is_refused_for_its_own_reason() {
    let signer = Signer::p256();
    let keys = keys_of(&signer, "k1");
    let now = NOW.seconds();
    let long = "x".repeat(1025);
    use InvalidAssertion as No;
    for (name, value, wanted) in [
        ("iss", json!("https://issuer.example/"), No::Issuer(ISSUER.to_owned())),
        ("iss", json!("https://other.example"), No::Issuer(ISSUER.to_owned())),
        ("iss", Value::Null, No::Claim("iss")),
        ("iss", json!([ISSUER]), No::Claim("iss")),
        ("aud", json!("spiffe://example.org/"), No::Audience(AUDIENCE.to_owned())),
        ("aud", json!(["other"]), No::Audience(AUDIENCE.to_owned())),
        ("aud", json!([]), No::Claim("aud")),
        ("aud", json!([AUDIENCE, 7]), No::Claim("aud")),
        ("aud", Value::Null, No::Claim("aud")),
        ("sub", Value::Null, No::Claim("sub")),
        ("sub", json!(""), No::Claim("sub")),
        ("sub", json!(7), No::Claim("sub")),
        ("sub", json!(long), No::Claim("sub")),
        ("jti", json!(7), No::Claim("jti")),
        ("jti", json!(long), No::Claim("jti")),
        ("exp", Value::Null, No::Claim("exp")),
        ("exp", json!("soon"), No::Claim("exp")),
        ("exp", json!(now - 60), No::Expired),
        ("exp", json!(now - 1), No::Claim("exp")),
        ("exp", json!(now + 3601), No::LifeTooLong),
        ("exp", json!(u64::MAX), No::LifeTooLong),
        ("iat", Value::Null, No::Claim("iat")),
        ("iat", json!(now + 61), No::NotYet),
        ("iat", json!(0), No::LifeTooLong),
        ("nbf", json!(now + 61), No::NotYet),
        ("nbf", json!("now"), No::Claim("nbf")),
    ] {
        let token = signer.sign(&header(), &with(claims(), name, value.clone()));
        assert_eq!(judge(&token, &keys, NOW), Err(wanted), "{name} {value}");
    }
    let later = Timestamp((now + 360) * 1000);
    let token = signer.sign(&header(), &claims());
    assert_eq!(judge(&token, &keys, later), Err(No::Expired));
}

#[test]
fn r5_algorithms_keys_and_signatures_are_not_the_tokens_to_choose() {
    let (signer, thief) = (Signer::p256(), Signer::p256());
    let keys = keys_of(&signer, "k1");
    use InvalidAssertion as No;
    for (name, value, wanted) in [
        ("alg", json!("none"), No::Algorithm),
        ("alg", json!("HS256"), No::Algorithm),
        ("alg", json!("ES384"), No::Algorithm),
        ("alg", json!("RS512"), No::Algorithm),
        ("alg", json!("RS256"), No::Signature),
        ("alg", Value::Null, No::Header),
        ("kid", json!("k2"), No::UnknownKey),
        ("kid", json!(""), No::Header),
        ("kid", Value::Null, No::Header),
        ("crit", json!(["exp"]), No::Header),
        ("typ", json!("statuslist+jwt"), No::Type),
    ] {
        let token = signer.sign(&with(header(), name, value.clone()), &claims());
        assert_eq!(judge(&token, &keys, NOW), Err(wanted), "{name} {value}");
    }
    // A key that comes along proves nothing.
    let token = thief.sign(&with(header(), "jwk", thief.jwk("k1")), &claims());
    assert_eq!(judge(&token, &keys, NOW), Err(No::Signature));

    let good = signer.sign(&header(), &claims());
    let [head, payload, signature] =
        <[&str; 3]>::try_from(good.split('.').collect::<Vec<_>>()).expect("three segments");
    let other =
        B64.encode(with(claims(), "sub", json!("repo:acme/shop:ref:refs/heads/x")).to_string());
    assert_eq!(judge(&format!("{head}.{other}.{signature}"), &keys, NOW), Err(No::Signature));
    for broken in [
        format!("{head}.{payload}."),
        good.get(..good.len() - 2).expect("longer than that").to_owned(),
    ] {
        assert_eq!(judge(&broken, &keys, NOW), Err(No::Signature), "{broken}");
    }
    for broken in ["", "a", "a.b", ".."] {
        assert!(judge(broken, &keys, NOW).is_err(), "{broken:?}");
    }
    assert_eq!(judge(&format!("{good}.x"), &keys, NOW), Err(No::Serialisation));
    assert_eq!(judge(&format!("{good}="), &keys, NOW), Err(No::Serialisation));
    assert_eq!(judge(&"a".repeat(TOKEN_BYTES_MAX + 1), &keys, NOW), Err(No::TooLong));
    let list = format!("{head}.{}.{signature}", B64.encode("[]"));
    assert_eq!(judge(&list, &keys, NOW), Err(No::Claims));
}

#[test]
fn r5_one_token_has_one_name_and_two_have_two() {
    let signer = Signer::p256();
    let keys = keys_of(&signer, "k1");
    let key = |claims: &Value| {
        let token = signer.sign(&header(), claims);
        judge(&token, &keys, NOW).expect("a good token").key
    };
    // ECDSA signs with luck: the octets differ, the token is the same.
    assert_eq!(key(&claims()), key(&claims()));
    assert_eq!(key(&claims()), key(&with(claims(), "exp", json!(NOW.seconds() + 301))));
    let nameless = with(claims(), "jti", Value::Null);
    assert_eq!(key(&nameless), key(&nameless));
    let keys: std::collections::BTreeSet<_> = [
        key(&claims()),
        key(&with(claims(), "jti", json!("two"))),
        key(&nameless),
        key(&with(nameless.clone(), "exp", json!(NOW.seconds() + 301))),
    ]
    .into();
    assert_eq!(keys.len(), 4);
}
