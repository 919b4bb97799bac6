//! Planted mistakes: each must be caught, by the name of the field that it spoils.

use mayfly_core::{Grant, Kind, Place, Serial, Slot, Span, SpiffeId, TrustDomain, grant::planted};
use rcgen::{
    BasicConstraints, CertificateParams, CrlDistributionPoint, CustomExtension, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};

use super::*;
use crate::{KeyRing, LeafKey, RotationPolicy, Signer, der, x509};

const NOW: Timestamp = Timestamp(1_795_339_123_000);
const TTL: Span = Span::from_secs(300);
const URI: &str = "spiffe://example.org/agent/task/07";
const CRL: &str = "http://example.org/crl";

struct Point<'a>(&'a PublicPoint);

impl PublicKeyData for Point<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// A signer, a key, and what a leaf for them has to say.
struct Case {
    signer: std::sync::Arc<Signer>,
    key: LeafKey,
    serial: Serial,
    spiffe_id: SpiffeId,
    crl_url: Option<&'static str>,
}

impl Case {
    fn new(crl_url: Option<&'static str>) -> Self {
        let domain = TrustDomain::parse("example.org").unwrap();
        let ring = KeyRing::create(domain, RotationPolicy::for_credentials(TTL), NOW).unwrap();
        let place = Place { slot: Slot(3), ..Place::default() };
        Self {
            signer: ring.signer(),
            key: LeafKey::generate().unwrap(),
            serial: Serial::new(place, 9),
            spiffe_id: SpiffeId::parse(URI).unwrap(),
            crl_url,
        }
    }

    fn grant(&self) -> Grant {
        let times = (NOW, TTL);
        planted::grant(Kind::X509, self.serial, self.spiffe_id.clone(), times, Vec::new())
    }

    fn expected(&self) -> Expected<'_> {
        Expected {
            serial: &self.serial,
            spiffe_id: &self.spiffe_id,
            not_before: NOW.minus(Span::from_secs(10)),
            not_after: NOW.plus(TTL),
            key: self.key.public(),
            issuer: self.signer.x509(),
            crl_url: self.crl_url,
        }
    }

    /// The same leaf in the words of rcgen.
    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.not_before = der::calendar(self.expected().not_before).unwrap();
        params.not_after = der::calendar(self.expected().not_after).unwrap();
        params.serial_number = Some(SerialNumber::from_slice(self.serial.as_bytes()));
        params.subject_alt_names = vec![uri(URI)];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Mayfly");
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let identifier = self.key.public().identifier().to_vec();
        params.key_identifier_method = KeyIdMethod::PreSpecified(identifier);
        params.crl_distribution_points = self.crl_url.map(point).into_iter().collect();
        params
    }

    fn sign_with_rcgen(&self, params: &CertificateParams) -> Vec<u8> {
        let authority = self.signer.x509();
        let certificate = authority.certificate_der().into();
        let issuer = Issuer::from_ca_cert_der(&certificate, authority.key()).unwrap();
        params.signed_by(&Point(self.key.public()), &issuer).unwrap().der().to_vec()
    }

    fn flaw(&self, der: &[u8]) -> Option<&'static str> {
        check(der, &self.expected()).err().map(|flaw| flaw.field)
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn point(url: &str) -> CrlDistributionPoint {
    CrlDistributionPoint { uris: vec![url.to_owned()] }
}

fn name(attributes: &[(DnType, &str)]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (kind, value) in attributes {
        name.push(kind.clone(), *value);
    }
    name
}

fn issued(case: &Case) -> Vec<u8> {
    x509::issue_for_public_key(case.grant(), &case.signer, case.key.public()).unwrap().chain_der
}

/// The octets that the signature is about.
fn signed(der: &[u8]) -> Vec<u8> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).unwrap();
    parsed.tbs_certificate.as_ref().to_vec()
}

#[test]
fn rcgen_writes_the_same_leaf() {
    let case = Case::new(None);
    let (ours, theirs) = (issued(&case), case.sign_with_rcgen(&case.params()));
    assert_eq!(case.flaw(&ours), None);
    assert_eq!(case.flaw(&theirs), None);
    assert_eq!(signed(&ours), signed(&theirs));
}

#[test]
fn rcgen_writes_the_same_distribution_point() {
    let case = Case::new(Some(CRL));
    let theirs = case.sign_with_rcgen(&case.params());
    assert_eq!(case.flaw(&theirs), None);
    let template = x509::Template::new(case.signer.x509(), vec![CRL.to_owned(); 64]);
    let ours = template.sign_for_test(&case.expected());
    assert_eq!(case.flaw(&ours), None);
    assert_eq!(signed(&ours), signed(&theirs));
}

type Mistake = (&'static str, fn(&mut CertificateParams));

const MISTAKES: &[Mistake] = &[
    ("serialNumber", |p| p.serial_number = Some(SerialNumber::from_slice(&[1; 17]))),
    ("notBefore", |p| p.not_before -= time::Duration::SECOND),
    ("notAfter", |p| p.not_after += time::Duration::SECOND),
    ("subject", |p| p.distinguished_name = DistinguishedName::new()),
    ("subject", |p| p.distinguished_name = name(&[(DnType::OrganizationName, "SPIRE")])),
    ("subject", |p| p.distinguished_name.push(DnType::CommonName, "root")),
    ("keyUsage", |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
    ("keyUsage", |p| p.key_usages.push(KeyUsagePurpose::CrlSign)),
    ("keyUsage", |p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
    ("extensions", |p| p.key_usages.clear()),
    ("extendedKeyUsage", |p| p.extended_key_usages.truncate(1)),
    ("extendedKeyUsage", |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning)),
    ("extendedKeyUsage", |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::Any)),
    ("extensions", |p| p.extended_key_usages.clear()),
    ("basicConstraints", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
    ("basicConstraints", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))),
    ("extensions", |p| p.is_ca = IsCa::NoCa),
    ("subjectAltName", |p| p.subject_alt_names = vec![uri("spiffe://example.org/other")]),
    ("subjectAltName", |p| p.subject_alt_names.push(uri(URI))),
    ("subjectAltName", |p| p.subject_alt_names.push(SanType::DnsName("a.b".try_into().unwrap()))),
    ("extensions", |p| p.subject_alt_names.clear()),
    ("subjectKeyIdentifier", |p| p.key_identifier_method = KeyIdMethod::PreSpecified(vec![1; 20])),
    ("extensions", |p| p.use_authority_key_identifier_extension = false),
    ("cRLDistributionPoints", |p| p.crl_distribution_points.push(point(CRL))),
    ("extensions", |p| {
        let nothing = vec![0x05, 0x00];
        p.custom_extensions.push(CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1], nothing));
    }),
];

#[test]
fn each_field_that_is_not_as_granted_is_named() {
    let case = Case::new(None);
    for (at, (field, spoil)) in MISTAKES.iter().enumerate() {
        let mut params = case.params();
        spoil(&mut params);
        let der = case.sign_with_rcgen(&params);
        assert_eq!(case.flaw(&der), Some(*field), "mistake {at}");
    }
}

#[test]
fn a_distribution_point_is_that_of_the_signer_and_alone() {
    let case = Case::new(Some(CRL));
    let with = |points: Vec<CrlDistributionPoint>| {
        let mut params = case.params();
        params.crl_distribution_points = points;
        case.flaw(&case.sign_with_rcgen(&params))
    };
    assert_eq!(with(vec![point(CRL)]), None);
    assert_eq!(with(Vec::new()), Some("extensions"));
    assert_eq!(with(vec![point("http://other")]), Some("cRLDistributionPoints"));
    assert_eq!(with(vec![point(CRL), point(CRL)]), Some("cRLDistributionPoints"));
    let both = CrlDistributionPoint { uris: vec![CRL.to_owned(), CRL.to_owned()] };
    assert_eq!(with(vec![both]), Some("cRLDistributionPoints"));
}

#[test]
fn a_leaf_of_another_key_or_authority_is_withheld() {
    let (case, other) = (Case::new(None), Case::new(None));
    let stranger = Case { key: LeafKey::generate().unwrap(), ..case };
    let der = issued(&stranger);
    let expected = Expected { key: other.key.public(), ..stranger.expected() };
    assert_eq!(check(&der, &expected), Err(Flaw { field: "subjectPublicKeyInfo" }));
    let expected = Expected { issuer: other.signer.x509(), ..stranger.expected() };
    assert_eq!(check(&der, &expected), Err(Flaw { field: "issuer" }));
}

#[test]
fn no_bit_outside_the_signature_can_change_unnoticed() {
    let case = Case::new(Some(CRL));
    let der = case.sign_with_rcgen(&case.params());
    assert_eq!(case.flaw(&der), None);
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    let signature = parsed.signature_value.data.len();
    let mut unnoticed = Vec::new();
    for at in 0..der.len() - signature {
        for bit in 0..8 {
            let mut spoilt = der.clone();
            spoilt[at] ^= 1 << bit;
            if case.flaw(&spoilt).is_none() {
                unnoticed.push((at, bit, der[at]));
            }
        }
    }
    assert_eq!(unnoticed, []);
}

#[test]
fn octets_too_many_or_too_few_are_withheld() {
    let case = Case::new(None);
    let der = issued(&case);
    assert_eq!(case.flaw(&[der.as_slice(), &[0]].concat()), Some("encoding"));
    for length in 0..der.len() {
        assert_eq!(case.flaw(&der[..length]), Some("encoding"), "{length} octets");
    }
}
