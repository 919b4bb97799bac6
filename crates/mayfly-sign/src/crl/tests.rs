//! Each list is, but for its signature, what rcgen would have written.

use mayfly_core::{Place, Slot, Span, TrustDomain, Window};
use proptest::prelude::*;
use rcgen::{
    CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope,
    Issuer, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _};

use super::*;
use crate::{KeyRing, RotationPolicy, Signer, der};

const NOW: Timestamp = Timestamp(1_795_339_123_456);
const URL: &str = "https://mayfly.example.org/crl/01/7.crl";

fn signer() -> std::sync::Arc<Signer> {
    let domain = TrustDomain::parse("example.org").unwrap();
    let policy = RotationPolicy::for_credentials(Span::from_secs(300));
    KeyRing::create(domain, policy, NOW).unwrap().signer()
}

fn word(reason: Reason) -> Option<RevocationReason> {
    match reason {
        Reason::Unspecified => None,
        Reason::CessationOfOperation => Some(RevocationReason::CessationOfOperation),
        Reason::Superseded => Some(RevocationReason::Superseded),
        Reason::PrivilegeWithdrawn => Some(RevocationReason::PrivilegeWithdrawn),
        Reason::AffiliationChanged => Some(RevocationReason::AffiliationChanged),
        Reason::CertificateHold => Some(RevocationReason::CertificateHold),
    }
}

/// The list in the words of rcgen.
fn by_rcgen(signer: &Signer, contents: &Contents<'_>, url: Option<&str>) -> Vec<u8> {
    let entry = |(serial, at, reason): &(Serial, Timestamp, Reason)| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial.as_bytes()),
        revocation_time: der::calendar(*at).unwrap(),
        reason_code: word(*reason),
        invalidity_date: None,
    };
    let authority = signer.x509();
    let params = CertificateRevocationListParams {
        this_update: der::calendar(contents.this_update).unwrap(),
        next_update: der::calendar(contents.next_update).unwrap(),
        crl_number: SerialNumber::from(contents.number),
        issuing_distribution_point: url.map(|url| CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint { uris: vec![url.to_owned()] },
            scope: Some(CrlScope::UserCertsOnly),
        }),
        revoked_certs: contents.revoked.iter().map(entry).collect(),
        key_identifier_method: KeyIdMethod::PreSpecified(authority.identifier().to_vec()),
    };
    let certificate = authority.certificate_der().into();
    let issuer = Issuer::from_ca_cert_der(&certificate, authority.key()).unwrap();
    params.signed_by(&issuer).unwrap().der().to_vec()
}

/// The octets that the signature is about, and whether it is right.
fn signed(der: &[u8], signer: &Signer) -> Vec<u8> {
    let (rest, list) = CertificateRevocationList::from_der(der).unwrap();
    assert!(rest.is_empty());
    let authority = signer.x509().certificate_der();
    let (_, authority) = x509_parser::parse_x509_certificate(authority).unwrap();
    list.verify_signature(authority.public_key()).unwrap();
    list.tbs_cert_list.as_ref().to_vec()
}

fn reasons() -> impl Strategy<Value = Reason> {
    prop::sample::select(vec![
        Reason::Unspecified,
        Reason::CessationOfOperation,
        Reason::Superseded,
        Reason::PrivilegeWithdrawn,
        Reason::AffiliationChanged,
        Reason::CertificateHold,
    ])
}

/// Also beyond 2050, where dates become longer.
fn times() -> impl Strategy<Value = Timestamp> {
    let soon = (0..4_000_u64).prop_map(|ms| Timestamp(NOW.0 + ms));
    prop_oneof![4 => soon, 1 => (0..9_000_000_000_000_u64).prop_map(Timestamp)]
}

fn entry() -> impl Strategy<Value = (Serial, Timestamp, Reason)> {
    (any::<(u32, u32, u64)>(), times(), reasons()).prop_map(|((window, slot, luck), when, why)| {
        let place = Place { window: Window(window), slot: Slot(slot) };
        (Serial::new(place, luck), when, why)
    })
}

/// None at all, and up to lengths that take one octet, two and three.
fn entries() -> impl Strategy<Value = Vec<(Serial, Timestamp, Reason)>> {
    prop_oneof![prop::collection::vec(entry(), 0..4), prop::collection::vec(entry(), 0..1_500)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rcgen_writes_the_same_list(
        revoked in entries(),
        number in prop_oneof![0..70_000_u64, any::<u64>()],
        (this_update, life) in (times(), 1..90_000_u64),
        is_shard in any::<bool>(),
    ) {
        let signer = signer();
        let next_update = this_update.plus(Span::from_secs(life));
        let contents = Contents { number, this_update, next_update, revoked: &revoked };
        let url = is_shard.then_some(URL);
        let ours = match url {
            Some(url) => issue_shard(signer.x509(), &contents, url),
            None => issue(signer.x509(), &contents),
        };
        let theirs = by_rcgen(&signer, &contents, url);
        prop_assert_eq!(signed(&ours.unwrap(), &signer), signed(&theirs, &signer));
    }
}
