//! Writes certificate revocation lists, one for each authority that is still published.
//!
//! A list speaks only for the authority that signed it, and OpenSSL, Envoy and nginx refuse a chain
//! if any authority in it has no unexpired list. So each authority in the bundle gets one, also the
//! one that has not signed anything yet. Serials are unique across authorities, so they all list the
//! same entries and nobody has to remember who signed what.

use mayfly_core::{Cause, Serial, Timestamp, registrar::Ground};
use rcgen::{
    CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope,
    Issuer, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};

use crate::{authority::X509Authority, der, error::SignError};

/// Why a certificate was revoked, as far as RFC 5280 §5.3.1 has words for it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    /// No word fits. Written by leaving the reason out, as the RFC asks.
    Unspecified,
    /// The task is over.
    CessationOfOperation,
    /// Another took its place.
    Superseded,
    /// What it was allowed, it no longer is.
    PrivilegeWithdrawn,
    /// Nobody answers for it any more.
    AffiliationChanged,
    /// It may come back: its task is quarantined.
    CertificateHold,
}

impl From<Ground> for Reason {
    fn from(ground: Ground) -> Self {
        match ground {
            Ground::Ended(cause) => cause.into(),
            Ground::Overtaken => Self::Superseded,
            Ground::Alone => Self::PrivilegeWithdrawn,
            Ground::Suspended => Self::CertificateHold,
        }
    }
}

impl From<Cause> for Reason {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Completed
            | Cause::Failed
            | Cause::Exited
            | Cause::LeaseLapsed
            | Cause::Deadline
            | Cause::BudgetSpent
            | Cause::ParentEnded => Self::CessationOfOperation,
            Cause::Superseded => Self::Superseded,
            Cause::Revoked | Cause::PolicyChange | Cause::Risk | Cause::ParentNarrowed => {
                Self::PrivilegeWithdrawn
            }
            Cause::OwnerRemoved => Self::AffiliationChanged,
            Cause::WatcherBlind => Self::Unspecified,
        }
    }
}

impl Reason {
    const fn code(self) -> Option<RevocationReason> {
        match self {
            Self::Unspecified => None,
            Self::CessationOfOperation => Some(RevocationReason::CessationOfOperation),
            Self::Superseded => Some(RevocationReason::Superseded),
            Self::PrivilegeWithdrawn => Some(RevocationReason::PrivilegeWithdrawn),
            Self::AffiliationChanged => Some(RevocationReason::AffiliationChanged),
            Self::CertificateHold => Some(RevocationReason::CertificateHold),
        }
    }
}

/// What a list says, whoever signs it.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// Rises with every list.
    pub number: u64,
    /// When it was made.
    pub this_update: Timestamp,
    /// Until when it may be relied on. Verifiers refuse everything after that, so it has to outlive
    /// an outage of the broker.
    pub next_update: Timestamp,
    /// The unexpired certificates that are revoked.
    pub revoked: &'a [(Serial, Timestamp, Reason)],
}

/// Signs a full revocation list: it speaks for every certificate of its authority, the authority's own
/// included, whatever distribution point those name.
///
/// # Errors
/// [`SignError`] if a time cannot be written, if `next_update` is not after `this_update`, or if there
/// is no randomness.
pub fn issue(authority: &X509Authority, contents: &Contents<'_>) -> Result<Vec<u8>, SignError> {
    sign(authority, contents, None)
}

/// Signs one shard of a list: it speaks only for leaves whose distribution point is `url`.
///
/// Its issuing distribution point is critical (RFC 5280 §5.2.5) and names `url` and the scope
/// `onlyContainsUserCerts`, so a verifier that does not understand shards refuses it.
///
/// # Errors
/// As [`issue`].
pub fn issue_shard(
    authority: &X509Authority,
    contents: &Contents<'_>,
    url: &str,
) -> Result<Vec<u8>, SignError> {
    let distribution_point = CrlDistributionPoint { uris: vec![url.to_owned()] };
    let scope = Some(CrlScope::UserCertsOnly);
    sign(authority, contents, Some(CrlIssuingDistributionPoint { distribution_point, scope }))
}

fn sign(
    authority: &X509Authority,
    contents: &Contents<'_>,
    issuing_distribution_point: Option<CrlIssuingDistributionPoint>,
) -> Result<Vec<u8>, SignError> {
    let revoked_certs = contents
        .revoked
        .iter()
        .map(|(serial, revoked_at, reason)| {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial.as_bytes()),
                revocation_time: der::calendar(*revoked_at)?,
                reason_code: reason.code(),
                invalidity_date: None,
            })
        })
        .collect::<Result<_, SignError>>()?;
    let params = CertificateRevocationListParams {
        this_update: der::calendar(contents.this_update)?,
        next_update: der::calendar(contents.next_update)?,
        crl_number: SerialNumber::from(contents.number),
        issuing_distribution_point,
        revoked_certs,
        key_identifier_method: KeyIdMethod::PreSpecified(authority.identifier().to_vec()),
    };
    let certificate = authority.certificate_der().into();
    let issuer = Issuer::from_ca_cert_der(&certificate, authority.key())?;
    Ok(params.signed_by(&issuer)?.der().to_vec())
}
