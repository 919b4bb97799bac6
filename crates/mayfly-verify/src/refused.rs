//! Why a peer is turned away.

use std::{io, sync::Arc};

use mayfly_core::{SpiffeId, TrustDomain};
use rustls::{CertificateError, OtherError};

use crate::{jwt::InvalidToken, status_list::ListError, x509::InvalidSvid};

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
    /// A request came over a connection that nobody guards.
    #[error("the request's connection has no known peer")]
    NoPeer,
    /// No rule allows this peer to do this.
    #[error("`{id}` may not do `{action}`")]
    NotPermitted {
        /// Who asked.
        id: SpiffeId,
        /// For what.
        action: String,
    },
    /// There is no bearer token, or more than one.
    #[error("there is not exactly one bearer token")]
    NoToken,
    /// The token is not genuine, not in date, or not meant for us.
    #[error("the token is refused: {0}")]
    Token(#[from] InvalidToken),
    /// The broker does not confirm the token.
    #[error("the broker does not confirm the token: {0}")]
    NotConfirmed(String),
    /// The token is somebody else's than the one who shows it.
    #[error("`{presenter}` shows a token of `{subject}`")]
    NotTheSubject {
        /// Whom the token is about.
        subject: SpiffeId,
        /// Who shows it.
        presenter: SpiffeId,
    },
    /// Nothing tells whether the token's task is still going on.
    #[error("nothing is known about the status of tokens of `{0}`")]
    NoStatus(TrustDomain),
    /// The status list cannot answer for the token.
    #[error("the status list does not answer: {0}")]
    List(#[from] ListError),
    /// The answer was given too long ago to be relied on.
    #[error("the answer is too old to be relied on, ask again")]
    Stale,
}

impl Refused {
    /// Every code, for who keeps a table of them.
    pub const CODES: [&'static str; 19] = [
        "not_an_svid",
        "no_identity",
        "untrusted",
        "chain",
        "out_of_date",
        "unauthorized",
        "foreign_serial",
        "revoked",
        "suspended",
        "dark",
        "no_peer",
        "not_permitted",
        "no_token",
        "token",
        "not_confirmed",
        "not_the_subject",
        "no_status",
        "status_list",
        "stale",
    ];

    /// A stable word, for metrics and for the one who is refused. Codes are API: add, never reuse.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotAnSvid(_) => "not_an_svid",
            Self::NoIdentity => "no_identity",
            Self::Untrusted(_) => "untrusted",
            Self::Chain(_) => "chain",
            Self::OutOfDate => "out_of_date",
            Self::Unauthorized(_) => "unauthorized",
            Self::ForeignSerial(_) => "foreign_serial",
            Self::Revoked => "revoked",
            Self::Suspended => "suspended",
            Self::Dark => "dark",
            Self::NoPeer => "no_peer",
            Self::NotPermitted { .. } => "not_permitted",
            Self::NoToken => "no_token",
            Self::Token(_) => "token",
            Self::NotConfirmed(_) => "not_confirmed",
            Self::NotTheSubject { .. } => "not_the_subject",
            Self::NoStatus(_) => "no_status",
            Self::List(_) => "status_list",
            Self::Stale => "stale",
        }
    }
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
            | Refused::Dark
            | Refused::NoPeer
            | Refused::NotPermitted { .. }
            | Refused::NoToken
            | Refused::Token(_)
            | Refused::NotConfirmed(_)
            | Refused::NotTheSubject { .. }
            | Refused::NoStatus(_)
            | Refused::List(_)
            | Refused::Stale) => CertificateError::Other(OtherError(Arc::new(refused))),
        };
        Self::InvalidCertificate(error)
    }
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        Self::new(io::ErrorKind::ConnectionAborted, refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_written_down() {
        let text = include_str!("../../../docs/telemetry.md");
        for code in Refused::CODES {
            assert!(text.contains(&format!("| `{code}` |")), "docs/telemetry.md lacks `{code}`");
        }
        assert!(Refused::CODES.contains(&Refused::Dark.code()));
        assert!(Refused::CODES.contains(&Refused::List(ListError::Stale).code()));
    }
}
