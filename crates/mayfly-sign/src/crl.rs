//! Writes certificate revocation lists, one for each authority that is still published.
//!
//! A list speaks only for the authority that signed it, and OpenSSL, Envoy and nginx refuse a chain
//! if any authority in it has no unexpired list. So each authority in the bundle gets one, also the
//! one that has not signed anything yet. Serials are unique across authorities, so they all list the
//! same entries and nobody has to remember who signed what.
//!
//! An entry is a fixed form with three blanks, written without an encoder: lists grow to a hundred
//! thousand of them and are signed anew each second in which something ends. rcgen is the oracle of the
//! tests.

#[cfg(test)]
mod tests;

use mayfly_core::{Cause, Serial, Timestamp, registrar::Ground};

use crate::{
    authority::X509Authority,
    der::{
        CONTEXT_0, ECDSA_WITH_SHA256, INTEGER, SEQUENCE, nest, put, put_bits, put_extension,
        put_header, put_time, put_unsigned, value_bytes,
    },
    error::SignError,
    x509::{put_authority_key_identifier, put_full_name},
};

/// `INTEGER 1`: version 2.
const VERSION_2: &[u8] = &[0x02, 0x01, 0x01];
const OID_CRL_NUMBER: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x14];
/// With the boolean that makes it critical.
const OID_ISSUING_DISTRIBUTION_POINT: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x1c, 0x01, 0x01, 0xff];
/// `onlyContainsUserCerts [1] TRUE`.
const USER_CERTIFICATES_ONLY: &[u8] = &[0x81, 0x01, 0xff];
/// An entry's extensions, up to the octet that says why.
const REASON_HEAD: &[u8] =
    &[0x30, 0x0c, 0x30, 0x0a, 0x06, 0x03, 0x55, 0x1d, 0x15, 0x04, 0x03, 0x0a, 0x01];
/// Octets of an entry, before 2050 and with a reason.
const ENTRY_BYTES: usize = 49;

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
    /// Its number in RFC 5280 §5.3.1.
    const fn code(self) -> Option<u8> {
        match self {
            Self::Unspecified => None,
            Self::AffiliationChanged => Some(3),
            Self::Superseded => Some(4),
            Self::CessationOfOperation => Some(5),
            Self::CertificateHold => Some(6),
            Self::PrivilegeWithdrawn => Some(9),
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
    sign(authority, contents, Some(url))
}

fn sign(
    authority: &X509Authority,
    contents: &Contents<'_>,
    url: Option<&str>,
) -> Result<Vec<u8>, SignError> {
    if contents.next_update.seconds() <= contents.this_update.seconds() {
        return Err(rcgen::Error::InvalidCrlNextUpdate.into());
    }
    let body = body(authority, contents, url)?;
    let signature = authority.key().sign(&body)?;
    let mut behind = ECDSA_WITH_SHA256.to_vec();
    put_bits(&mut behind, signature.as_ref());
    let length = body.len() + behind.len();
    let mut out = Vec::with_capacity(value_bytes(length));
    put_header(&mut out, SEQUENCE, length);
    out.extend_from_slice(&body);
    out.extend_from_slice(&behind);
    Ok(out)
}

/// What is signed: `TBSCertList`. A list may have a million entries, so each is written once, and they are
/// moved all together.
fn body(
    authority: &X509Authority,
    contents: &Contents<'_>,
    url: Option<&str>,
) -> Result<Vec<u8>, SignError> {
    let mut head = [VERSION_2, ECDSA_WITH_SHA256, authority.name_der()].concat();
    put_time(&mut head, contents.this_update)?;
    put_time(&mut head, contents.next_update)?;
    let entries = entries(contents.revoked)?;
    let mut behind = Vec::new();
    nest(&mut behind, CONTEXT_0, |out| {
        nest(out, SEQUENCE, |out| put_extensions(out, (authority, contents.number), url));
    });
    // RFC 5280 §5.1.2.6: where nothing is revoked, there is no list of it.
    let all = if entries.is_empty() { 0 } else { value_bytes(entries.len()) };
    let length = head.len() + all + behind.len();
    let mut out = Vec::with_capacity(value_bytes(length));
    put_header(&mut out, SEQUENCE, length);
    out.extend_from_slice(&head);
    if !entries.is_empty() {
        put(&mut out, SEQUENCE, &entries);
    }
    out.extend_from_slice(&behind);
    Ok(out)
}

fn entries(revoked: &[(Serial, Timestamp, Reason)]) -> Result<Vec<u8>, SignError> {
    let mut out = Vec::with_capacity(revoked.len() * ENTRY_BYTES);
    // Neighbours end together more often than not, and to write a date is most of what an entry takes.
    let (mut second, mut date) = (None, Vec::new());
    for (serial, at, reason) in revoked {
        if second != Some(at.seconds()) {
            date.clear();
            put_time(&mut date, *at)?;
            second = Some(at.seconds());
        }
        let serial = serial.as_bytes();
        let why = reason.code().map_or(0, |_| REASON_HEAD.len() + 1);
        put_header(&mut out, SEQUENCE, value_bytes(serial.len()) + date.len() + why);
        // The serial's first octet is 1: positive, and of fixed length.
        put(&mut out, INTEGER, serial);
        out.extend_from_slice(&date);
        if let Some(code) = reason.code() {
            out.extend_from_slice(REASON_HEAD);
            out.push(code);
        }
    }
    Ok(out)
}

fn put_extensions(
    out: &mut Vec<u8>,
    (authority, number): (&X509Authority, u64),
    url: Option<&str>,
) {
    put_authority_key_identifier(out, authority);
    put_extension(out, OID_CRL_NUMBER, |out| put_unsigned(out, number));
    if let Some(url) = url {
        put_extension(out, OID_ISSUING_DISTRIBUTION_POINT, |out| {
            nest(out, SEQUENCE, |out| {
                put_full_name(out, url);
                out.extend_from_slice(USER_CERTIFICATES_ONLY);
            });
        });
    }
}
