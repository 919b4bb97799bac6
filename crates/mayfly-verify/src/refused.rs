//! Why a peer is turned away.

use std::{io, sync::Arc};

use mayfly_core::{SpiffeId, TrustDomain};
use rustls::{CertificateError, OtherError};

use crate::x509::InvalidSvid;

/// Why a peer is turned away, on a new connection or on a live one.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The certificate does not keep SPIFFE's rules.
    #[error("the peer's certificate is no X.509-SVID: {0}")]
    NotAnSvid(#[from] InvalidSvid),
    /// We hold no identity, hence no bundles to judge by.
    #[error("there is no identity and no bundle to judge the peer by")]
    NoIdentity,
    /// No authorities of the peer's trust domain are known.
    #[error("there is no bundle for trust domain `{0}`")]
    Untrusted(TrustDomain),
    /// The certificate does not lead to an authority of its own trust domain.
    #[error("the peer's certificate does not lead to its trust domain's bundle: {0}")]
    Chain(webpki::Error),
    /// The certificate is outside its dates.
    #[error("the peer's certificate has expired or is not valid yet")]
    OutOfDate,
    /// It is not one of those we talk to.
    #[error("`{0}` is not authorised")]
    Unauthorized(SpiffeId),
    /// A peer of our own trust domain whose serial has no place in the status bitmap, so that its end
    /// could not be learned.
    #[error("the serial of `{0}` is not one of Mayfly's")]
    ForeignSerial(SpiffeId),
    /// Its task has ended.
    #[error("the peer's task has ended")]
    Revoked,
    /// Its task is quarantined.
    #[error("the peer's task is quarantined")]
    Suspended,
    /// The feed has been silent for too long, or has not begun.
    #[error("the revocation feed is silent, so nobody is accepted")]
    Dark,
}

impl From<Refused> for rustls::Error {
    fn from(refused: Refused) -> Self {
        // Those for which TLS has an alert go as that alert, so that the peer learns what happened.
        let error = match refused {
            Refused::Revoked => CertificateError::Revoked,
            Refused::OutOfDate => CertificateError::Expired,
            Refused::Untrusted(_) => CertificateError::UnknownIssuer,
            Refused::Chain(webpki::Error::UnknownIssuer) => CertificateError::UnknownIssuer,
            refused @ (Refused::NotAnSvid(_)
            | Refused::NoIdentity
            | Refused::Chain(_)
            | Refused::Unauthorized(_)
            | Refused::ForeignSerial(_)
            | Refused::Suspended
            | Refused::Dark) => CertificateError::Other(OtherError(Arc::new(refused))),
        };
        Self::InvalidCertificate(error)
    }
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        Self::new(io::ErrorKind::ConnectionAborted, refused)
    }
}
