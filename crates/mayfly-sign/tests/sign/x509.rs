//! Certificates, seen with eyes that are not ours: webpki, x509-parser, rcgen and OpenSSL.

use crate::common::{NOW, TTL, domain, id, ring, serial, webpki, x509_grant};
use mayfly_core::{Kind, Serial, Span, SpiffeId, Timestamp, grant::planted};
use mayfly_sign::{
    KeyRing, LeafKey, PublicPoint, PublicUrl, RotationPolicy, SignError, shards, x509,
};
use proptest::prelude::*;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

fn issue(ring: &KeyRing, path: &str) -> mayfly_sign::X509Svid {
    let key = LeafKey::generate().expect("a key");
    x509::issue(x509_grant(1, id(path), NOW), &ring.signer(), key).expect("an svid")
}

#[test]
fn a_leaf_is_accepted_for_both_ends_until_it_expires() {
    let ring = ring();
    let svid = issue(&ring, "/agent/task/1");
    let bundle = ring.x509_bundle();
    assert_eq!(svid.not_before.0, (NOW.0 - 10_000) / 1000 * 1000);
    for at in [svid.not_before, NOW, svid.not_after] {
        assert_eq!(webpki(&svid.chain_der, &bundle, at, None), Ok(()));
    }
    let second = Span::from_secs(1);
    assert!(webpki(&svid.chain_der, &bundle, svid.not_after.plus(second), None).is_err());
    assert!(webpki(&svid.chain_der, &bundle, svid.not_before.minus(second), None).is_err());
    let stranger = crate::common::ring().x509_bundle();
    assert!(webpki(&svid.chain_der, &stranger, NOW, None).is_err());
}

#[test]
fn points_49_and_57_an_authority_names_the_bare_trust_domain_and_constrains_no_names() {
    let bundle = ring().x509_bundle();
    let (_, authority) = X509Certificate::from_der(&bundle[0]).expect("a certificate");
    let names = authority.subject_alternative_name().expect("one").expect("some").value;
    let uri = GeneralName::URI("spiffe://example.org");
    assert_eq!(names.general_names, [uri], "no path, and no other name");
    assert!(authority.name_constraints().expect("one at most").is_none());
}

#[test]
fn the_private_key_belongs_to_the_leaf() {
    let ring = ring();
    let svid = issue(&ring, "/agent");
    let rng = ring::rand::SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &svid.key_pkcs8, &rng)
        .expect("a pkcs#8 key");
    let (_, leaf) = X509Certificate::from_der(&svid.chain_der).expect("a certificate");
    assert_eq!(pair.public_key().as_ref(), &*leaf.public_key().subject_public_key.data);
    let printed = format!("{svid:?}");
    assert_eq!(printed, format!("X509Svid(spiffe://example.org/agent, {}, ..)", serial(1)));
}

#[test]
fn the_serial_is_positive_and_reads_back_as_the_place() {
    let ring = ring();
    let svid = issue(&ring, "/agent");
    let (_, leaf) = X509Certificate::from_der(&svid.chain_der).expect("a certificate");
    assert!(leaf.raw_serial().len() <= 20);
    assert!(leaf.raw_serial()[0] < 0x80);
    assert_eq!(Serial::from_bytes(leaf.raw_serial()), Ok(serial(1)));
    for authority in ring.x509_bundle() {
        let (_, authority) = X509Certificate::from_der(&authority).expect("a certificate");
        assert!(Serial::from_bytes(authority.raw_serial()).is_err(), "no task has it");
    }
}

#[test]
fn a_key_brought_along_gets_the_same_certificate() {
    let ring = ring();
    let key = LeafKey::generate().expect("a key");
    let made = x509::issue(x509_grant(1, id("/agent"), NOW), &ring.signer(), key).expect("svid");
    let (_, leaf) = X509Certificate::from_der(&made.chain_der).expect("a certificate");
    let point = PublicPoint::from_spki(leaf.public_key().raw).expect("a point");
    let brought =
        x509::issue_for_public_key(x509_grant(1, id("/agent"), NOW), &ring.signer(), &point)
            .expect("a certificate");
    let (_, twin) = X509Certificate::from_der(&brought.chain_der).expect("a certificate");
    assert_eq!(leaf.tbs_certificate.as_ref(), twin.tbs_certificate.as_ref());
}

#[test]
fn a_distribution_point_stands_there_only_with_a_public_url() {
    let plain = issue(&ring(), "/agent");
    assert!(!String::from_utf8_lossy(&plain.chain_der).contains("http"));
    let url = PublicUrl::parse("https://mayfly.example.org").expect("a url");
    let ring = ring().with_public_url(Some(url));
    let pointed = issue(&ring, "/agent");
    let (authority, shard) = (ring.signer().x509().key_id().to_owned(), shards::of(&serial(1)));
    let wanted = format!("https://mayfly.example.org/crl/{authority}/{shard}");
    assert!(String::from_utf8_lossy(&pointed.chain_der).contains(&wanted));
    assert_eq!(webpki(&pointed.chain_der, &ring.x509_bundle(), NOW, None), Ok(()));
}

#[test]
fn a_grant_for_another_signer_signs_nothing() {
    let ring = ring();
    let signer = ring.signer();
    let try_to = |grant| x509::issue(grant, &signer, LeafKey::generate().expect("a key"));
    let foreign = SpiffeId::parse("spiffe://other.org/agent").expect("an id");
    assert!(matches!(try_to(x509_grant(1, foreign, NOW)), Err(SignError::WrongTrustDomain { .. })));
    assert!(matches!(try_to(x509_grant(1, id(""), NOW)), Err(SignError::NoPath(_))));
    assert!(matches!(
        try_to(crate::common::jwt_grant(1, NOW, &["db"])),
        Err(SignError::WrongKind(Kind::Jwt))
    ));
    let after = NOW.plus(Span::from_secs(25 * 3600));
    assert!(matches!(
        try_to(x509_grant(1, id("/agent"), after)),
        Err(SignError::AuthorityExpired(_))
    ));
}

#[test]
fn a_leaf_does_not_outlive_its_authority() {
    let ring = ring();
    let signer = ring.signer();
    let late = signer.x509().not_after().minus(Span::from_secs(60));
    let key = LeafKey::generate().expect("a key");
    let svid = x509::issue(x509_grant(1, id("/agent"), late), &signer, key).expect("an svid");
    assert_eq!(svid.not_after, signer.x509().not_after());
}

#[test]
fn dates_beyond_2049_are_written_and_read() {
    let then = Timestamp(2_524_607_900_000); // 1 min 40 s before 2050.
    let ring = KeyRing::create(domain(), RotationPolicy::for_credentials(TTL), then).expect("ring");
    let key = LeafKey::generate().expect("a key");
    let svid =
        x509::issue(x509_grant(1, id("/agent"), then), &ring.signer(), key).expect("an svid");
    assert_eq!(svid.not_after, Timestamp(2_524_608_200_000));
    assert_eq!(webpki(&svid.chain_der, &ring.x509_bundle(), svid.not_after, None), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn identities_of_every_length_are_accepted(length in 40_usize..=2048, slot in any::<u32>()) {
        let ring = ring();
        let room = length - domain().uri().len() - 1;
        let spiffe_id = id(&format!("/{}", "x".repeat(room)));
        prop_assert_eq!(spiffe_id.as_str().len(), length);
        let grant = planted::grant(Kind::X509, serial(slot), spiffe_id.clone(), (NOW, TTL), Vec::new());
        let svid = x509::issue(grant, &ring.signer(), LeafKey::generate().expect("a key"))
            .expect("an svid");
        prop_assert_eq!(webpki(&svid.chain_der, &ring.x509_bundle(), NOW, None), Ok(()));
        let (_, leaf) = X509Certificate::from_der(&svid.chain_der).expect("a certificate");
        let names = leaf.subject_alternative_name().expect("one").expect("some").value;
        let [GeneralName::URI(uri)] = names.general_names.as_slice() else {
            return Err(TestCaseError::fail("not one URI"));
        };
        prop_assert_eq!(*uri, spiffe_id.as_str());
    }
}
