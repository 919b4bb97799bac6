//! Reads a certificate back before it is released.
//!
//! The writer of [`x509`](crate::x509) is fast because it knows the form by heart. This module does
//! not share a single constant with it: it parses what was written with an independent parser and
//! compares every field with the grant. A certificate with anything missing, doubled, altered or
//! added is withheld.
//!
//! The parser is kind: it takes a certificate whose tags or booleans are not quite what they should
//! be (a test that flips every bit found more than two hundred such flips), and a strict verifier would then refuse at
//! a peer what was accepted here. So `shape` looks at the skeleton too: every tag, every length in
//! its shortest form, nothing left over.

mod shape;
#[cfg(test)]
mod tests;

use mayfly_core::{Serial, SpiffeId, Timestamp};
use x509_parser::{
    certificate::{Validity, X509Certificate},
    extensions::{
        AuthorityKeyIdentifier, BasicConstraints, CRLDistributionPoints, DistributionPointName,
        ExtendedKeyUsage, GeneralName, KeyUsage, ParsedExtension, X509Extension,
    },
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256},
    x509::{AlgorithmIdentifier, SubjectPublicKeyInfo, X509Version},
};

use crate::{authority::X509Authority, keys::PublicPoint};

/// What a certificate must say.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Its serial number.
    pub serial: &'a Serial,
    /// Its only name.
    pub spiffe_id: &'a SpiffeId,
    /// Its first second.
    pub not_before: Timestamp,
    /// Its last second.
    pub not_after: Timestamp,
    /// Its key.
    pub key: &'a PublicPoint,
    /// Who signed it.
    pub issuer: &'a X509Authority,
    /// Where its revocation list is, if anywhere.
    pub crl_url: Option<&'a str>,
}

/// A field that is not as granted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the certificate's `{field}` is not what was granted")]
pub struct Flaw {
    /// Which field, in the words of RFC 5280.
    pub field: &'static str,
}

/// Parses `der` and compares every field with `expected`.
///
/// The signature's own mathematics are not checked: that would cost three more signatures, and every
/// verifier does it anyway.
///
/// # Errors
/// [`Flaw`] names the first field that differs.
pub fn check(der: &[u8], expected: &Expected<'_>) -> Result<(), Flaw> {
    let is_shaped = shape::is_leaf(der, expected.crl_url.is_some());
    let (rest, certificate) = x509_parser::parse_x509_certificate(der)
        .map_err(|_unparsable| Flaw { field: "encoding" })?;
    ensure(rest.is_empty(), "encoding")?;
    check_head(&certificate, expected)?;
    check_key(&certificate.tbs_certificate.subject_pki, expected.key)?;
    check_extensions(&certificate, expected)?;
    let signature = &certificate.signature_value;
    ensure(signature.unused_bits == 0 && !signature.data.is_empty(), "signatureValue")?;
    // Last, because it only says that something is wrong, and a field's name says more.
    ensure(is_shaped, "encoding")
}

fn ensure(holds: bool, field: &'static str) -> Result<(), Flaw> {
    if holds { Ok(()) } else { Err(Flaw { field }) }
}

fn check_head(certificate: &X509Certificate<'_>, expected: &Expected<'_>) -> Result<(), Flaw> {
    let body = &certificate.tbs_certificate;
    ensure(body.version == X509Version::V3, "version")?;
    ensure(body.raw_serial() == expected.serial.as_bytes(), "serialNumber")?;
    ensure(is_ecdsa_with_sha256(&body.signature), "signature")?;
    ensure(is_ecdsa_with_sha256(&certificate.signature_algorithm), "signatureAlgorithm")?;
    ensure(body.issuer.as_raw() == expected.issuer.name_der(), "issuer")?;
    check_validity(&body.validity, expected)?;
    // One attribute of one value, and not the issuer's name.
    let mut subject = body.subject.iter_organization();
    let name = subject.next().and_then(|organization| organization.as_str().ok());
    ensure(name == Some("Mayfly") && body.subject.iter_attributes().count() == 1, "subject")?;
    ensure(body.issuer_uid.is_none() && body.subject_uid.is_none(), "uniqueIdentifiers")
}

fn check_validity(validity: &Validity, expected: &Expected<'_>) -> Result<(), Flaw> {
    let is = |found: i64, wanted: Timestamp| u64::try_from(found) == Ok(wanted.seconds());
    ensure(is(validity.not_before.timestamp(), expected.not_before), "notBefore")?;
    ensure(is(validity.not_after.timestamp(), expected.not_after), "notAfter")?;
    // Belt and braces: the authority must outlive the leaf, whoever computed the date.
    ensure(expected.not_after <= expected.issuer.not_after(), "notAfter")
}

fn is_ecdsa_with_sha256(algorithm: &AlgorithmIdentifier<'_>) -> bool {
    algorithm.algorithm == OID_SIG_ECDSA_WITH_SHA256 && algorithm.parameters.is_none()
}

fn check_key(found: &SubjectPublicKeyInfo<'_>, wanted: &PublicPoint) -> Result<(), Flaw> {
    const FIELD: &str = "subjectPublicKeyInfo";
    let curve = found.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    ensure(found.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY, FIELD)?;
    ensure(curve == Some(OID_EC_P256), FIELD)?;
    ensure(found.subject_public_key.unused_bits == 0, FIELD)?;
    ensure(*found.subject_public_key.data == *wanted.as_bytes(), FIELD)
}

/// How many extensions a leaf has, a distribution point apart.
const EXTENSIONS: usize = 6;

/// Each extension of the profile stands there once, and no other.
fn check_extensions(
    certificate: &X509Certificate<'_>,
    expected: &Expected<'_>,
) -> Result<(), Flaw> {
    let extensions = certificate.extensions();
    let mut seen = [false; EXTENSIONS + 1];
    for extension in extensions {
        let place = check_extension(extension, expected)?;
        match seen.get_mut(place) {
            Some(seen) if !*seen => *seen = true,
            _ => return Err(Flaw { field: "extensions" }),
        }
    }
    let wanted = EXTENSIONS + usize::from(expected.crl_url.is_some());
    ensure(seen.iter().filter(|seen| **seen).count() == wanted, "extensions")
}

/// Checks one extension and says which it is.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "an extension outside the profile is a flaw, whether the parser knows it or not"
)]
fn check_extension(extension: &X509Extension<'_>, expected: &Expected<'_>) -> Result<usize, Flaw> {
    let critical = extension.critical;
    match extension.parsed_extension() {
        ParsedExtension::KeyUsage(usage) => {
            ensure(critical && is_signing_only(usage), "keyUsage").map(|()| 0)
        }
        ParsedExtension::ExtendedKeyUsage(usage) => {
            ensure(!critical && is_for_both_ends(usage), "extendedKeyUsage").map(|()| 1)
        }
        ParsedExtension::BasicConstraints(BasicConstraints { ca, path_len_constraint }) => {
            ensure(critical && !ca && path_len_constraint.is_none(), "basicConstraints").map(|()| 2)
        }
        ParsedExtension::SubjectKeyIdentifier(identifier) => {
            let right = identifier.0 == expected.key.identifier();
            ensure(!critical && right, "subjectKeyIdentifier").map(|()| 3)
        }
        ParsedExtension::AuthorityKeyIdentifier(identifier) => {
            let right = is_identifier_of(identifier, expected.issuer);
            ensure(!critical && right, "authorityKeyIdentifier").map(|()| 4)
        }
        ParsedExtension::SubjectAlternativeName(names) => {
            let right = is_one_uri(&names.general_names, expected.spiffe_id.as_str());
            ensure(!critical && right, "subjectAltName").map(|()| 5)
        }
        ParsedExtension::CRLDistributionPoints(points) => {
            let right = expected.crl_url.is_some_and(|url| is_one_full_name(points, url));
            ensure(!critical && right, "cRLDistributionPoints").map(|()| 6)
        }
        _ => Err(Flaw { field: "extensions" }),
    }
}

fn is_signing_only(usage: &KeyUsage) -> bool {
    usage.digital_signature() && usage.flags.count_ones() == 1
}

fn is_for_both_ends(usage: &ExtendedKeyUsage<'_>) -> bool {
    let beyond = usage.any
        || usage.code_signing
        || usage.email_protection
        || usage.time_stamping
        || usage.ocsp_signing
        || !usage.other.is_empty();
    usage.server_auth && usage.client_auth && !beyond
}

fn is_identifier_of(found: &AuthorityKeyIdentifier<'_>, issuer: &X509Authority) -> bool {
    found.key_identifier.as_ref().is_some_and(|found| found.0 == issuer.identifier())
        && found.authority_cert_issuer.is_none()
        && found.authority_cert_serial.is_none()
}

fn is_one_uri(names: &[GeneralName<'_>], wanted: &str) -> bool {
    matches!(names, [GeneralName::URI(uri)] if *uri == wanted)
}

fn is_one_full_name(points: &CRLDistributionPoints<'_>, wanted: &str) -> bool {
    let [point] = points.points.as_slice() else {
        return false;
    };
    let right = match &point.distribution_point {
        Some(DistributionPointName::FullName(names)) => is_one_uri(names, wanted),
        Some(DistributionPointName::NameRelativeToCRLIssuer(_)) | None => false,
    };
    right && point.reasons.is_none() && point.crl_issuer.is_none()
}
