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

/// A key usage, `digitalSignature` alone.
fn signing(is_critical: bool) -> CustomExtension {
    let usage = vec![0x03, 0x02, 0x07, 0x80];
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 15], usage);
    extension.set_criticality(is_critical);
    extension
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
    ("keyUsage", |p| {
        p.key_usages.clear();
        p.custom_extensions.push(signing(false));
    }),
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
        p.use_authority_key_identifier_extension = false;
        p.custom_extensions.push(signing(true));
    }),
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

/// Values in the order of writing, each with what it contains.
struct Value {
    tag: u8,
    content: Vec<u8>,
    inside: Vec<Self>,
}

/// Reads values as deep as they go: what is made of values, and an octet string that one of those holds, as the
/// content of an extension. What an octet string itself holds may look like values by chance.
fn values(mut der: &[u8], is_made_of_values: bool) -> Option<Vec<Value>> {
    let mut all = Vec::new();
    while let [tag, rest @ ..] = der {
        let (length, rest) = match rest {
            [0x82, high, low, rest @ ..] => (usize::from(*high) << 8 | usize::from(*low), rest),
            [0x81, length, rest @ ..] => (usize::from(*length), rest),
            [length @ ..=0x7f, rest @ ..] => (usize::from(*length), rest),
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        let inside = match tag {
            0x04 if is_made_of_values => values(content, false),
            tag if tag & 0x20 != 0 => values(content, true),
            _ => None,
        };
        let inside = inside.unwrap_or_default();
        all.push(Value { tag: *tag, content: content.to_vec(), inside });
        der = rest;
    }
    Some(all)
}

/// What is wrong with a container.
#[derive(Clone, Copy, Debug)]
enum Spoil {
    /// A null behind its content.
    Added,
    /// Its length is also that of its neighbour. No other octet is another one.
    Swallowed,
}

/// Writes values, and spoils the container with the number `left`.
fn write(values: &[Value], how: Spoil, left: &mut usize) -> Vec<u8> {
    let mut der = Vec::new();
    let mut values = values.iter();
    while let Some(value) = values.next() {
        let is_container = !value.inside.is_empty() || value.tag == 0x30;
        let is_spoilt = is_container && *left == 0;
        *left = left.wrapping_sub(usize::from(is_container));
        let mut content = match value.inside.as_slice() {
            [] => value.content.clone(),
            inside => write(inside, how, left),
        };
        match how {
            Spoil::Added if is_spoilt => content.extend([0x05, 0x00]),
            Spoil::Swallowed if is_spoilt => {
                let neighbour = values.next().map(std::slice::from_ref).unwrap_or_default();
                content.extend(write(neighbour, how, left));
            }
            Spoil::Added | Spoil::Swallowed => {}
        }
        der.push(value.tag);
        match u16::try_from(content.len()).unwrap().to_be_bytes() {
            [0, short @ ..=0x7f] => der.push(short),
            [0, long] => der.extend([0x81, long]),
            [high, low] => der.extend([0x82, high, low]),
        }
        der.extend(content);
    }
    der
}

#[test]
fn a_container_holds_what_it_should_and_nothing_else() {
    let case = Case::new(Some(CRL));
    let der = case.sign_with_rcgen(&case.params());
    let values = values(&der, true).unwrap();
    for how in [Spoil::Added, Spoil::Swallowed] {
        let mut spoilt_ones = 0;
        // More than there are.
        for number in 0..80 {
            let spoilt = write(&values, how, &mut number.clone());
            if spoilt == der {
                // Beyond the last, or without a neighbour.
                continue;
            }
            spoilt_ones += 1;
            assert!(!shape::is_leaf(&spoilt, true), "container {number}: {how:?}");
            assert!(case.flaw(&spoilt).is_some(), "container {number}: {how:?}");
        }
        assert!(spoilt_ones > 15, "{spoilt_ones} containers: {how:?}");
    }
}
