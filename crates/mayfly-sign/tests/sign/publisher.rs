//! Documents about keys, as other trust domains and clouds read them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mayfly_core::{Span, Window};
use mayfly_sign::{KeyRing, PublicUrl, RotationPolicy};
use serde_json::{Value, json};

use crate::common::{NOW, TTL, domain, ring, verify};

fn read(document: &[u8]) -> Value {
    serde_json::from_slice(document).expect("json")
}

fn keys(document: &Value) -> Vec<Value> {
    document["keys"].as_array().expect("a list of keys").clone()
}

fn rotating() -> KeyRing {
    let mut ring = ring();
    while ring.x509_bundle().len() < 2 || ring.jwks() == self::ring().jwks() {
        ring.handle_timeout(ring.poll_timeout()).expect("a step");
    }
    ring
}

/// SPIFFE points 61 to 64.
#[test]
fn points_61_to_64_a_bundle_document_is_in_spiffe_s_form() {
    let ring = rotating();
    let document = read(&ring.publisher().bundle(7 << 16, 300));
    let keys = keys(&document);
    let used = |what: &str| {
        let of = |key: &&Value| key["use"] == what;
        keys.iter().filter(of).cloned().collect::<Vec<_>>()
    };
    let (x509, jwt) = (used("x509-svid"), used("jwt-svid"));
    assert_eq!(keys.len(), x509.len() + jwt.len(), "every key says its use");
    assert_eq!(x509.len(), ring.x509_bundle().len());
    for (key, der) in x509.iter().zip(ring.x509_bundle()) {
        assert_eq!(key.get("kid"), None, "X509-SVID §6");
        assert_eq!(key["x5c"], json!([STANDARD.encode(&der)]), "one certificate, plain base64");
        assert_eq!((&key["kty"], &key["crv"]), (&json!("EC"), &json!("P-256")));
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).expect("a certificate");
        let point = certificate.public_key().subject_public_key.data.clone();
        let coordinate = |name: &str| {
            let text = key[name].as_str().expect("a coordinate");
            base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).expect("base64url")
        };
        assert_eq!([vec![4], coordinate("x"), coordinate("y")].concat(), *point);
    }
    let plain = read(&ring.jwks());
    for (key, known) in jwt.iter().zip(self::keys(&plain)) {
        assert_eq!((&key["kid"], &key["x"]), (&known["kid"], &known["x"]));
        assert!(key["kid"].as_str().is_some_and(|kid| !kid.is_empty()));
        assert_eq!(key.get("x5c"), None);
    }
    assert_eq!(document["spiffe_sequence"], json!(7 << 16));
    assert_eq!(document["spiffe_refresh_hint"], json!(300));
    assert_eq!(document.as_object().map(serde_json::Map::len), Some(3), "nothing of our own");
}

/// SPIFFE point 67: a key is known several refreshes before it signs.
#[test]
fn point_67_others_look_often_enough_to_know_a_key_before_it_signs() {
    assert_eq!(ring().refresh_hint(), Span::from_secs(300), "a day's life: the default");
    let short =
        RotationPolicy::new(Span::from_secs(200), Span::from_secs(160), Span::from_secs(20));
    let short = KeyRing::create(domain(), short.expect("a policy"), NOW).expect("a ring");
    // Published for a quarter of its life before it signs, 40 s: five times 8.
    assert_eq!(short.refresh_hint(), Span::from_secs(8));
    assert!(TTL > short.refresh_hint());
}

#[test]
fn discovery_has_the_shape_that_clouds_want() {
    let url = PublicUrl::parse("https://mayfly.example.org/").expect("a url");
    let ring = ring().with_public_url(Some(url));
    let publisher = ring.publisher();
    let document = read(&publisher.discovery().expect("a public url"));
    let issuer = "https://mayfly.example.org";
    assert_eq!(document["issuer"], issuer, "exactly what stands in `iss`");
    assert_eq!(document["jwks_uri"], format!("{issuer}/keys"));
    assert_eq!(document["id_token_signing_alg_values_supported"], json!(["ES256"]));
    assert_eq!(document["response_types_supported"], json!(["id_token"]));
    assert_eq!(document["subject_types_supported"], json!(["public"]));
    let claims = document["claims_supported"].as_array().expect("a list");
    for claim in ["iss", "sub", "aud", "exp", "iat"] {
        assert!(claims.contains(&json!(claim)), "{claim}");
    }
    let oidc = publisher.oidc_keys();
    for key in keys(&read(&oidc)) {
        assert_eq!(
            (&key["use"], &key["alg"], &key["kty"]),
            (&json!("sig"), &json!("ES256"), &json!("EC"))
        );
        assert!(key["kid"].is_string());
    }
    let svid = mayfly_sign::jwt::issue(crate::common::jwt_grant(1, NOW, &["aws"]), &ring.signer());
    let (_, claims) = verify(&svid.expect("a token").token, &oidc).expect("found by its kid");
    assert_eq!(claims["iss"], issuer);
    let lists = read(&publisher.aggregation([Window(3), Window(4)]).expect("a public url"));
    assert_eq!(
        lists,
        json!({"status_lists": [format!("{issuer}/status/3"), format!("{issuer}/status/4")]})
    );
}
