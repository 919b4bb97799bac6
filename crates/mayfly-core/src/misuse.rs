//! Credentials that were shown although they should not have been: what verifiers say, and what is
//! true of it.
//!
//! A verifier sees one handshake or one token; whether the credential is stale, orphaned or was never
//! issued is known to the registrar alone. So a verifier claims, the registrar finds, and only what it
//! finds is testified: whoever calls a credential over that is in order raises no alarm. Two things the
//! ledger cannot check, and takes the verifier's word for: that a credential was shown by another than its
//! subject, and that a serial which was never promised was seen.

use alloc::string::String;

use crate::ledger::Serial;

/// What a verifier says of a credential that it has turned away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Claim {
    /// It is not to be used: its task is over, suspended, or unknown to the verifier.
    NotToBeUsed,
    /// It was shown by somebody else than its subject.
    ByAnother,
}

/// A verifier's report.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Showing {
    /// The credential's name; none if it has no serial of ours.
    pub serial: Option<Serial>,
    /// What is said of it.
    pub claim: Claim,
    /// Who showed it, as far as the verifier could tell: a SPIFFE ID, or empty.
    pub presenter: String,
    /// Who says so: a SPIFFE ID, or empty.
    pub verifier: String,
}

/// What is true of it. The words are stable.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Finding {
    /// Its task is over.
    AfterEnd,
    /// Its task is quarantined.
    WhileSuspended,
    /// Its task goes on, but the credential does not: an old version, or revoked on its own.
    Stale,
    /// Its place was handed out to a task that is forgotten.
    Orphaned,
    /// Nothing like it was ever promised.
    Unexplained,
    /// Somebody else than its subject has shown it.
    ByAnother,
}

impl Finding {
    /// Every finding.
    pub const ALL: &'static [Self] = &[
        Self::AfterEnd,
        Self::WhileSuspended,
        Self::Stale,
        Self::Orphaned,
        Self::Unexplained,
        Self::ByAnother,
    ];

    /// The stable word.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::AfterEnd => "used_after_end",
            Self::WhileSuspended => "used_while_suspended",
            Self::Stale => "used_stale",
            Self::Orphaned => "used_orphaned",
            Self::Unexplained => "used_unexplained",
            Self::ByAnother => "used_by_another",
        }
    }

    /// Finds a finding by its word.
    #[must_use]
    pub fn parse(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|finding| finding.code() == code)
    }
}
