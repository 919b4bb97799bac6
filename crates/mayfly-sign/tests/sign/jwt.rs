//! Tokens, verified with nothing but ring and serde_json.

use crate::common::{NOW, TTL, id, jwt_grant, ring, serial, verify, x509_grant};
use mayfly_core::{Kind, TaskId, grant::planted};
use mayfly_sign::{PublicUrl, SignError, jwt};
use proptest::prelude::*;
use serde_json::json;

#[test]
fn a_token_says_who_for_whom_until_when_and_for_which_task() {
    let ring = ring();
    let svid = jwt::issue(jwt_grant(5, NOW, &["db", "api"]), &ring.signer()).expect("a token");
    let (header, claims) = verify(&svid.token, &ring.jwks()).expect("a valid token");
    let kid = ring.signer().jwt().key_id().to_owned();
    assert_eq!(header, json!({"alg": "ES256", "kid": kid, "typ": "JWT"}));
    let exp = NOW.plus(TTL).0 / 1000;
    let task = TaskId::from_bytes([7; 16]).to_string();
    assert_eq!(
        claims,
        json!({
            "sub": "spiffe://example.org/agent",
            "aud": ["db", "api"],
            "exp": exp,
            "iat": NOW.0 / 1000 - 10,
            "jti": serial(5).to_string(),
            "mayfly:task": {"id": task, "version": 1, "root": task, "depth": 0},
        })
    );
    assert_eq!((svid.exp.0 / 1000, svid.serial), (exp, serial(5)));
    assert_eq!(format!("{svid:?}"), format!("JwtSvid({}, {}, ..)", id("/agent"), serial(5)));
}

#[test]
fn a_token_points_to_its_status_only_with_a_public_url() {
    let url = PublicUrl::parse("https://mayfly.example.org/").expect("a url");
    let ring = ring().with_public_url(Some(url));
    let svid = jwt::issue(jwt_grant(5, NOW, &["db"]), &ring.signer()).expect("a token");
    let (_, claims) = verify(&svid.token, &ring.jwks()).expect("a valid token");
    let window = serial(5).place().window.0;
    let uri = format!("https://mayfly.example.org/status/{window}");
    assert_eq!(claims["status"], json!({"status_list": {"idx": 5, "uri": uri}}));
    assert_eq!(claims["iss"], "https://mayfly.example.org");
}

#[test]
fn a_token_of_another_ring_is_refused() {
    let (ours, theirs) = (ring(), ring());
    let svid = jwt::issue(jwt_grant(5, NOW, &["db"]), &ours.signer()).expect("a token");
    assert!(verify(&svid.token, &theirs.jwks()).is_none());
}

#[test]
fn a_token_needs_an_audience_and_a_grant_of_its_kind() {
    let signer = ring().signer();
    assert!(matches!(jwt::issue(jwt_grant(5, NOW, &[]), &signer), Err(SignError::NoAudience)));
    assert!(matches!(
        jwt::issue(x509_grant(1, id("/agent"), NOW), &signer),
        Err(SignError::WrongKind(Kind::X509))
    ));
    assert!(matches!(
        jwt::issue(
            planted::grant(Kind::Jwt, serial(1), id(""), (NOW, TTL), vec!["a".into()]),
            &signer
        ),
        Err(SignError::NoPath(_))
    ));
}

#[test]
fn a_token_that_clients_would_refuse_for_its_size_is_not_signed() {
    let audience = "\u{1}".repeat(1024);
    let audiences = [audience.as_str(); 32];
    assert!(matches!(
        jwt::issue(jwt_grant(5, NOW, &audiences), &ring().signer()),
        Err(SignError::TokenTooLarge(bytes)) if bytes > jwt::SEGMENT_BYTES_MAX
    ));
}

proptest! {
    #[test]
    fn any_audience_survives_as_it_is(audience in proptest::collection::vec(any::<String>(), 1..4)) {
        let ring = ring();
        let wanted: Vec<&str> = audience.iter().map(String::as_str).collect();
        let svid = jwt::issue(jwt_grant(5, NOW, &wanted), &ring.signer()).expect("a token");
        let (_, claims) = verify(&svid.token, &ring.jwks()).expect("a valid token");
        prop_assert_eq!(&claims["aud"], &json!(audience));
    }
}
