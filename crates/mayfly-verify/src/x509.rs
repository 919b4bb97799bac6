//! An X.509-SVID's leaf, read strictly (X509-SVID §2–5).
//!
//! Chain building is webpki's work. What SPIFFE asks of a leaf beyond that stands here, and it reads
//! strangers' bytes: every answer is a value, nothing panics.

use mayfly_core::{Serial, SpiffeId, Timestamp};
use rustls_pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, KeyUsage},
    prelude::FromDer,
};

/// Certificates in one chain; clients refuse longer ones.
pub const CHAIN_MAX: usize = 16;

/// Why a certificate is not an X.509-SVID.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidSvid {
    /// Not DER, or bytes follow the certificate.
    #[error("it is not one DER certificate")]
    Encoding,
    /// An extension occurs twice or cannot be read.
    #[error("an extension is malformed or occurs twice")]
    Extension,
    /// There is not exactly one URI name.
    #[error("it does not have exactly one URI name")]
    UriNames,
    /// The URI name is no SPIFFE ID.
    #[error("its URI name is not a SPIFFE ID")]
    SpiffeId,
    /// The SPIFFE ID is a trust domain's, which no workload has.
    #[error("its SPIFFE ID has no path")]
    RootPath,
    /// Basic constraints are absent.
    #[error("it does not say that it is no authority")]
    BasicConstraintsMissing,
    /// It is an authority's certificate.
    #[error("it is an authority")]
    Authority,
    /// Key usage is absent or not critical.
    #[error("it has no critical key usage")]
    KeyUsageMissing,
    /// Key usage allows signing certificates or lists, or does not allow signatures.
    #[error("its key usage is not that of a leaf")]
    KeyUsage,
    /// The chain is empty or longer than [`CHAIN_MAX`].
    #[error("the chain is empty or too long")]
    Chain,
    /// The message names another SPIFFE ID than the certificate.
    #[error("the certificate names another SPIFFE ID than the message")]
    OtherId,
    /// The key is not unencrypted PKCS#8, or not the certificate's.
    #[error("the key is not the certificate's, or not PKCS#8")]
    Key,
}

/// What a verifier needs of a leaf that keeps SPIFFE's rules. Holding one says nothing about who
/// signed it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Leaf {
    /// Who it is about.
    pub id: SpiffeId,
    /// Its serial number, if it is one of Mayfly's.
    pub serial: Option<Serial>,
    /// When it begins to be valid.
    pub not_before: Timestamp,
    /// When it ceases to be valid.
    pub not_after: Timestamp,
}

impl Leaf {
    /// Reads one DER certificate and checks what a leaf must and must not say.
    ///
    /// # Errors
    /// [`InvalidSvid`] names the first rule that is broken.
    pub fn parse(der: &[u8]) -> Result<Self, InvalidSvid> {
        let certificate = parse_one(der)?;
        check_constraints(&certificate)?;
        check_usage(&certificate)?;
        let id = spiffe_id(&certificate)?;
        if id.path().is_empty() {
            return Err(InvalidSvid::RootPath);
        }
        let validity = certificate.validity();
        let instant = |seconds: i64| Timestamp(u64::try_from(seconds).unwrap_or(0) * 1000);
        Ok(Self {
            id,
            serial: Serial::from_bytes(certificate.raw_serial()).ok(),
            not_before: instant(validity.not_before.timestamp()),
            not_after: instant(validity.not_after.timestamp()),
        })
    }
}

/// Cuts concatenated DER into certificates. No padding is allowed between them or at the end.
///
/// # Errors
/// [`InvalidSvid::Encoding`] if anything else than certificates is found.
pub fn split(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, InvalidSvid> {
    let mut certificates = Vec::new();
    while !der.is_empty() {
        let (rest, _) =
            X509Certificate::from_der(der).map_err(|_malformed| InvalidSvid::Encoding)?;
        let length = der.len() - rest.len();
        let one = der.get(..length).ok_or(InvalidSvid::Encoding)?;
        certificates.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    Ok(certificates)
}

/// Whether `der` is an authority that may sign certificates. webpki looks at `cA` alone.
pub(crate) fn may_sign_certificates(der: &[u8]) -> bool {
    parse_one(der).is_ok_and(|certificate| {
        certificate.is_ca()
            && certificate
                .key_usage()
                .is_ok_and(|usage| usage.is_some_and(|usage| usage.value.key_cert_sign()))
    })
}

fn parse_one(der: &[u8]) -> Result<X509Certificate<'_>, InvalidSvid> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(_) => Err(InvalidSvid::Encoding),
    }
}

fn check_constraints(certificate: &X509Certificate<'_>) -> Result<(), InvalidSvid> {
    let constraints = certificate
        .basic_constraints()
        .map_err(|_malformed| InvalidSvid::Extension)?
        .ok_or(InvalidSvid::BasicConstraintsMissing)?;
    if constraints.value.ca {
        return Err(InvalidSvid::Authority);
    }
    Ok(())
}

fn check_usage(certificate: &X509Certificate<'_>) -> Result<(), InvalidSvid> {
    let usage = certificate
        .key_usage()
        .map_err(|_malformed| InvalidSvid::Extension)?
        .filter(|usage| usage.critical)
        .ok_or(InvalidSvid::KeyUsageMissing)?;
    let usage: &KeyUsage = usage.value;
    if !usage.digital_signature() || usage.key_cert_sign() || usage.crl_sign() {
        return Err(InvalidSvid::KeyUsage);
    }
    Ok(())
}

fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, InvalidSvid> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_malformed| InvalidSvid::Extension)?
        .ok_or(InvalidSvid::UriNames)?;
    // A name that could not be read may have been a second URI, so it counts as one.
    let mut uris = names.value.general_names.iter().filter_map(|name| {
        if let GeneralName::URI(uri) = name {
            Some(Some(*uri))
        } else if let GeneralName::Invalid(..) = name {
            Some(None)
        } else {
            None
        }
    });
    let (Some(Some(uri)), None) = (uris.next(), uris.next()) else {
        return Err(InvalidSvid::UriNames);
    };
    SpiffeId::parse(uri).map_err(|_rule| InvalidSvid::SpiffeId)
}
