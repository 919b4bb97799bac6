//! The only place that makes a [`Status`].
//!
//! Clients live or die by these codes (facts gathered from every shipped SPIFFE client): a stream that
//! ends OK is never reopened by Java, CANCELLED ends Go and Python for good, INVALID_ARGUMENT ends all
//! of them. So a call ends in PERMISSION_DENIED when the answer is no, in INVALID_ARGUMENT when the
//! question was wrong, and in UNAVAILABLE when it should be asked again. Strangers get a stable code
//! and a remedy; reasons stay in our own log.

use std::collections::BTreeMap;

use mayfly_core::{Denial, InvalidId};
use mayfly_proto::google::rpc;
use prost::Message as _;
use tonic::{Code, Status};

/// The gRPC code of a denial.
#[must_use]
pub const fn code(denial: Denial) -> Code {
    match denial {
        Denial::NoIdentity
        | Denial::NotBound
        | Denial::TaskEnded
        | Denial::TaskQuarantined
        | Denial::IdentityNotHeld
        | Denial::PeerGone
        | Denial::CredentialRevoked
        | Denial::ReferenceDenied
        | Denial::TaskRevoked => Code::PermissionDenied,
        Denial::TaskUnknown
        | Denial::ProfileUnknown
        | Denial::SerialUnknown
        | Denial::WorkloadGone
        | Denial::VersionUnmatched => Code::NotFound,
        Denial::Malformed
        | Denial::ReferenceInvalid
        | Denial::AudienceInvalid
        | Denial::TokenInvalid
        | Denial::LeaseOutOfRange
        | Denial::DeadlinePassed => Code::InvalidArgument,
        Denial::LeaseTooShort
        | Denial::DeadlineNear
        | Denial::NoLease
        | Denial::ParentInactive
        | Denial::HolderTaken
        | Denial::HolderUnfit => Code::FailedPrecondition,
        Denial::TooDeep | Denial::TooManyChildren => Code::ResourceExhausted,
        // A version that was overtaken is current again at the next attempt.
        Denial::TaskVersion
        | Denial::Overloaded
        | Denial::JournalFailed
        | Denial::SigningFailed
        | Denial::NotServing
        | Denial::AttestationFailed => Code::Unavailable,
    }
}

/// A denial as the caller sees it: `code: remedy`.
#[must_use]
pub fn of(denial: Denial) -> Status {
    // The Rust client backs off gently when it reads `no identity issued`, word for word.
    let nobody = matches!(denial, Denial::NoIdentity | Denial::NotBound);
    let lead = if nobody { "no identity issued; " } else { "" };
    Status::new(code(denial), format!("{denial}: {lead}{}", denial.remedy()))
}

/// A denial of `ValidateJWTSVID`. Whatever is wrong with the token is an invalid argument there, and
/// never `Unauthenticated`: it says nothing about the caller.
#[must_use]
pub fn of_token(denial: Denial) -> Status {
    if code(denial) == Code::Unavailable {
        return of(denial);
    }
    Status::new(Code::InvalidArgument, format!("{denial}: {}", denial.remedy()))
}

/// A request field that cannot be read. The text names the field and the rule, never the value.
#[must_use]
pub fn of_field(invalid: &InvalidId) -> Status {
    let denial = Denial::Malformed;
    Status::new(code(denial), format!("{denial}: {invalid}"))
}

/// Whose words the reasons are that stand in an error's details.
const REASONS: &str = "spiffe.io";
/// What an error's details are.
const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";

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
    let Some(reason) = Reason::of(denial) else { return of(denial) };
    let (code, message) = (reason.code(), of(denial).message().to_owned());
    let info = rpc::ErrorInfo {
        reason: reason.word().to_owned(),
        domain: REASONS.to_owned(),
        metadata: BTreeMap::from([("code".to_owned(), denial.code().to_owned())]),
    };
    let info = prost_types::Any { type_url: ERROR_INFO.to_owned(), value: info.encode_to_vec() };
    let details = rpc::Status { code: code.into(), message: message.clone(), details: vec![info] };
    Status::with_details(code, message, details.encode_to_vec().into())
}

/// A Broker API request without the metadata that keeps browsers and proxies out.
#[must_use]
pub fn broker_header_missing() -> Status {
    Status::new(
        Code::InvalidArgument,
        "header_missing: send the metadata `broker.spiffe.io: true` exactly once",
    )
}

/// A Workload API request without the metadata that keeps browsers and proxies out.
#[must_use]
pub fn header_missing() -> Status {
    Status::new(
        Code::InvalidArgument,
        "header_missing: send the metadata `workload.spiffe.io: true` exactly once",
    )
}

/// A method of the standard that Mayfly does not offer.
#[must_use]
pub fn unimplemented() -> Status {
    Status::new(Code::Unimplemented, "unimplemented: use X.509-SVIDs or JWT-SVIDs")
}

/// A method of Envoy's that Mayfly does not offer.
#[must_use]
pub fn unimplemented_delta() -> Status {
    Status::new(Code::Unimplemented, "unimplemented: use StreamSecrets (`api_type: GRPC`)")
}

/// A name that is no secret of the caller's.
#[must_use]
pub fn of_secret_name() -> Status {
    Status::new(
        Code::InvalidArgument,
        "secret_unknown: ask for `default`, `ROOTCA`, `ALL`, a SPIFFE ID of your own, or a trust domain \
         that your profile names",
    )
}

/// A type that is not discovered here.
#[must_use]
pub fn of_secret_type() -> Status {
    Status::new(Code::InvalidArgument, "type_unknown: only secrets are discovered here")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_denial_ends_a_stream_in_a_way_that_kills_clients() {
        for denial in Denial::ALL {
            let status = of(*denial);
            assert!(!matches!(status.code(), Code::Ok | Code::Cancelled | Code::Unknown));
            assert!(status.message().starts_with(denial.code()), "{status:?}");
            assert!(status.message().ends_with(denial.remedy()), "{status:?}");
            let status = of_reference(*denial);
            assert!(!matches!(status.code(), Code::Ok | Code::Cancelled | Code::Unknown));
        }
    }

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

    #[test]
    fn point_33_no_identity_is_said_in_the_words_that_clients_look_for() {
        for denial in [Denial::NoIdentity, Denial::NotBound] {
            let status = of(denial);
            assert_eq!(status.code(), Code::PermissionDenied);
            assert!(status.message().contains("no identity issued"));
        }
    }

    #[test]
    fn point_38_a_bad_token_is_an_invalid_argument_whatever_is_wrong_with_it() {
        for denial in [Denial::TokenInvalid, Denial::TaskEnded, Denial::CredentialRevoked] {
            assert_eq!(of_token(denial).code(), Code::InvalidArgument);
        }
        assert_eq!(of_token(Denial::Overloaded).code(), Code::Unavailable);
    }
}
