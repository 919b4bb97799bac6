//! The extensions of a leaf: each of them once, and no other.
//!
//! Their values are read one by one and not by the certificate's parser, which would look each up in a
//! table of all the extensions that there are. Those that are the same in every leaf are compared with what
//! the standard makes of them.

use x509_parser::{
    extensions::{
        AuthorityKeyIdentifier, CRLDistributionPoints, DistributionPointName, GeneralName,
        KeyIdentifier, SubjectAlternativeName, X509Extension,
    },
    oid_registry::{
        OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_BASIC_CONSTRAINTS,
        OID_X509_EXT_CRL_DISTRIBUTION_POINTS, OID_X509_EXT_EXTENDED_KEY_USAGE,
        OID_X509_EXT_KEY_USAGE, OID_X509_EXT_SUBJECT_ALT_NAME, OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
        Oid,
    },
    prelude::{FromDer, X509Error},
};

use super::{Expected, Flaw, ensure};

/// What one extension has to be.
struct Rule {
    oid: Oid<'static>,
    /// Its name in RFC 5280.
    field: &'static str,
    critical: bool,
    holds: fn(&[u8], &Expected<'_>) -> bool,
}

const fn rule(
    oid: Oid<'static>,
    (field, critical): (&'static str, bool),
    holds: fn(&[u8], &Expected<'_>) -> bool,
) -> Rule {
    Rule { oid, field, critical, holds }
}

/// In the order of writing, which spares comparisons and is not asked for here.
static RULES: [Rule; 7] = [
    rule(
        OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER,
        ("authorityKeyIdentifier", false),
        |value, expected| read(value).is_some_and(|found| is_of_issuer(&found, expected)),
    ),
    rule(OID_X509_EXT_SUBJECT_ALT_NAME, ("subjectAltName", false), |value, expected| {
        let wanted = expected.spiffe_id.as_str();
        read(value).is_some_and(|found: SubjectAlternativeName<'_>| {
            is_one_uri(&found.general_names, wanted)
        })
    }),
    rule(OID_X509_EXT_KEY_USAGE, ("keyUsage", true), |value, _| value == SIGNING_ALONE),
    rule(OID_X509_EXT_EXTENDED_KEY_USAGE, ("extendedKeyUsage", false), |value, _| {
        value == FOR_BOTH_ENDS
    }),
    rule(OID_X509_EXT_CRL_DISTRIBUTION_POINTS, ("cRLDistributionPoints", false), is_its_list),
    rule(
        OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
        ("subjectKeyIdentifier", false),
        |value, expected| {
            let wanted = expected.key.identifier();
            read(value).is_some_and(|found: KeyIdentifier<'_>| found.0 == wanted)
        },
    ),
    rule(OID_X509_EXT_BASIC_CONSTRAINTS, ("basicConstraints", true), |value, _| {
        value == NO_AUTHORITY
    }),
];

/// `digitalSignature`, the first of the named bits of RFC 5280 §4.2.1.3.
const SIGNING_ALONE: &[u8] = &[0x03, 0x02, 7, 0b1000_0000];
/// `serverAuth` and `clientAuth`, 1.3.6.1.5.5.7.3.1 and .2 (RFC 5280 §4.2.1.12).
const FOR_BOTH_ENDS: &[u8] =
    &[0x30, 20, 0x06, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1, 0x06, 8, 0x2b, 6, 1, 5, 5, 7, 3, 2];
/// `cA` is false where it is not written (RFC 5280 §4.2.1.9).
const NO_AUTHORITY: &[u8] = &[0x30, 0];

/// Each extension of the profile stands there once, and no other.
pub(super) fn check(found: &[X509Extension<'_>], expected: &Expected<'_>) -> Result<(), Flaw> {
    const FIELD: &str = "extensions";
    let mut seen = [false; RULES.len()];
    for extension in found {
        let known = RULES.iter().zip(&mut seen).find(|(rule, _)| rule.oid == extension.oid);
        let (rule, seen) = known.ok_or(Flaw { field: FIELD })?;
        ensure(!std::mem::replace(seen, true), FIELD)?;
        let holds = extension.critical == rule.critical && (rule.holds)(extension.value, expected);
        ensure(holds, rule.field)?;
    }
    // All but the distribution point, which there need not be.
    let wanted = RULES.len() - usize::from(expected.crl_url.is_none());
    ensure(found.len() == wanted, FIELD)
}

/// The value of an extension, and nothing behind it.
fn read<'a, T: FromDer<'a, X509Error>>(value: &'a [u8]) -> Option<T> {
    T::from_der(value).ok().filter(|(rest, _)| rest.is_empty()).map(|(_, read)| read)
}

fn is_of_issuer(found: &AuthorityKeyIdentifier<'_>, expected: &Expected<'_>) -> bool {
    let wanted = expected.issuer.identifier();
    found.key_identifier.as_ref().is_some_and(|found| found.0 == wanted)
        && found.authority_cert_issuer.is_none()
        && found.authority_cert_serial.is_none()
}

fn is_its_list(value: &[u8], expected: &Expected<'_>) -> bool {
    let (Some(found), Some(wanted)) = (read(value), expected.crl_url) else {
        return false;
    };
    let CRLDistributionPoints { points } = found;
    let [point] = points.as_slice() else {
        return false;
    };
    let right = match &point.distribution_point {
        Some(DistributionPointName::FullName(names)) => is_one_uri(names, wanted),
        Some(DistributionPointName::NameRelativeToCRLIssuer(_)) | None => false,
    };
    right && point.reasons.is_none() && point.crl_issuer.is_none()
}

fn is_one_uri(names: &[GeneralName<'_>], wanted: &str) -> bool {
    matches!(names, [GeneralName::URI(uri)] if *uri == wanted)
}
