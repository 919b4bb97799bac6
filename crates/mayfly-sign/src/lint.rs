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

mod extensions;
mod shape;
#[cfg(test)]
mod tests;

use mayfly_core::{Serial, SpiffeId, Timestamp};
use x509_parser::{
    certificate::{Validity, X509Certificate, X509CertificateParser},
    nom::Parser as _,
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
    let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
    let (rest, certificate) =
        parser.parse(der).map_err(|_unparsable| Flaw { field: "encoding" })?;
    ensure(rest.is_empty(), "encoding")?;
    check_head(&certificate, expected)?;
    check_key(&certificate.tbs_certificate.subject_pki, expected.key)?;
    extensions::check(certificate.extensions(), expected)?;
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
