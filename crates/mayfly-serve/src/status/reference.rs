//! Refusals of the Broker API, in the standard's own reasons.

use std::collections::BTreeMap;

use mayfly_core::Denial;
use tonic::{Code, Status};

/// Whose words the reasons are that stand in an error's details.
const REASONS: &str = "spiffe.io";

/// Why the workload that a broker refers to gets nothing (Broker API §4.8).
#[derive(Clone, Copy)]
enum Reason {
    Invalid,
    NotFound,
    NotEntitled,
}

impl Reason {
    /// The reason of a denial, where it is about the workload. The others are about the call, and whoever
    /// makes it is to read their code alone.
    const fn of(denial: Denial) -> Option<Self> {
        match denial {
            Denial::ReferenceInvalid => Some(Self::Invalid),
            // What has ended is not there any more, whoever still asks about it.
            Denial::TaskUnknown
            | Denial::TaskEnded
            | Denial::PeerGone
            | Denial::WorkloadGone
            | Denial::VersionUnmatched => Some(Self::NotFound),
            Denial::NoIdentity
            | Denial::NotBound
            | Denial::TaskQuarantined
            | Denial::TaskRevoked
            | Denial::IdentityNotHeld
            | Denial::ReferenceDenied
            | Denial::NotEntitled
            | Denial::AudienceOutOfScope
            | Denial::BudgetSpent
            | Denial::JobHoldsNothing
            | Denial::CredentialRevoked => Some(Self::NotEntitled),
            Denial::TaskVersion
            | Denial::ProfileUnknown
            | Denial::LeaseTooShort
            | Denial::DeadlineNear
            | Denial::DeadlinePassed
            | Denial::LeaseOutOfRange
            | Denial::NoLease
            | Denial::ParentInactive
            | Denial::TooDeep
            | Denial::TooManyChildren
            | Denial::HolderTaken
            | Denial::HolderUnfit
            | Denial::Malformed
            | Denial::AudienceInvalid
            | Denial::SerialUnknown
            | Denial::Overloaded
            | Denial::JournalFailed
            | Denial::SigningFailed
            | Denial::NotServing
            | Denial::AttestationFailed
            | Denial::DeclarationMissing
            | Denial::OwnerUnknown
            | Denial::NodeUnknown
            | Denial::AuthorityUnknown
            | Denial::AuthorityActive
            | Denial::AuthorityNotPrepared
            | Denial::AuthorityNotOld
            | Denial::OidcTokenInvalid
            | Denial::OidcTokenReplayed
            | Denial::OidcNotPermitted
            | Denial::OidcIssuerUnavailable
            | Denial::ExceedsProfile
            | Denial::ExceedsParent
            | Denial::NotNarrower
            | Denial::DelegationNotPermitted
            | Denial::DeadlineTooLate
            | Denial::IdempotencyConflict
            | Denial::VersionConflict
            | Denial::RateExceeded
            | Denial::AttemptsSpent
            | Denial::AttemptRunning
            | Denial::PageInvalid
            | Denial::TokenInvalid => None,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Invalid => "WORKLOAD_REFERENCE_INVALID",
            Self::NotFound => "WORKLOAD_NOT_FOUND",
            Self::NotEntitled => "WORKLOAD_NOT_ENTITLED",
        }
    }

    const fn code(self) -> Code {
        match self {
            Self::Invalid => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::NotEntitled => Code::PermissionDenied,
        }
    }
}

/// A denial of the Broker API: about a workload that somebody else asks for, so its end is `NotFound`,
/// and programs are told the standard's reason beside our code.
#[must_use]
pub fn of_reference(denial: Denial) -> Status {
    // A workload did not call and so cannot be told to connect anew.
    let denial = if denial == Denial::PeerGone { Denial::WorkloadGone } else { denial };
    let Some(reason) = Reason::of(denial) else { return super::of(denial) };
    let (code, message) = (reason.code(), super::of(denial).message().to_owned());
    let metadata = BTreeMap::from([("code".to_owned(), denial.code().to_owned())]);
    super::with_info((code, message), (reason.word(), REASONS), metadata)
}

/// A Broker API request without the metadata that keeps browsers and proxies out.
#[must_use]
pub fn broker_header_missing() -> Status {
    Status::new(
        Code::InvalidArgument,
        "header_missing: send the metadata `broker.spiffe.io: true` exactly once",
    )
}

#[cfg(test)]
mod tests {
    use mayfly_proto::google::rpc;
    use prost::Message as _;

    use super::*;

    #[test]
    fn point_96_a_denial_about_a_workload_carries_the_standards_reason_and_our_code() {
        for (denial, code, reason) in [
            (Denial::ReferenceInvalid, Code::InvalidArgument, "WORKLOAD_REFERENCE_INVALID"),
            (Denial::TaskEnded, Code::NotFound, "WORKLOAD_NOT_FOUND"),
            (Denial::NoIdentity, Code::PermissionDenied, "WORKLOAD_NOT_ENTITLED"),
        ] {
            let status = of_reference(denial);
            assert_eq!(status.code(), code, "{denial}");
            let details = rpc::Status::decode(status.details()).unwrap();
            assert_eq!((details.code, details.message.as_str()), (code as i32, status.message()));
            let info = details.details.first().unwrap();
            assert_eq!(info.type_url, "type.googleapis.com/google.rpc.ErrorInfo");
            let info = rpc::ErrorInfo::decode(info.value.as_slice()).unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, "spiffe.io"));
            assert_eq!(info.metadata.get("code").map(String::as_str), Some(denial.code()));
        }
        assert!(of_reference(Denial::NotServing).details().is_empty());
    }
}
