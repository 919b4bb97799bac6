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

use crate::{limits, office::Refusal};

mod pushback;
mod reference;

pub use reference::{broker_header_missing, of_reference};

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
        | Denial::NotEntitled
        | Denial::AudienceOutOfScope
        | Denial::DelegationNotPermitted
        | Denial::ExceedsProfile
        | Denial::ExceedsParent
        | Denial::NotNarrower
        | Denial::BudgetSpent
        | Denial::JobHoldsNothing
        | Denial::ReferenceDenied
        | Denial::TaskRevoked
        | Denial::OidcTokenReplayed
        | Denial::OidcNotPermitted => Code::PermissionDenied,
        Denial::TaskUnknown
        | Denial::ProfileUnknown
        | Denial::OwnerUnknown
        | Denial::NodeUnknown
        | Denial::AuthorityUnknown
        | Denial::SerialUnknown
        | Denial::WorkloadGone
        | Denial::VersionUnmatched => Code::NotFound,
        Denial::Malformed
        | Denial::ReferenceInvalid
        | Denial::AudienceInvalid
        | Denial::TokenInvalid
        | Denial::OidcTokenInvalid
        | Denial::LeaseOutOfRange
        | Denial::DeclarationMissing
        | Denial::DeadlinePassed
        | Denial::DeadlineTooLate
        | Denial::PageInvalid => Code::InvalidArgument,
        Denial::LeaseTooShort
        | Denial::DeadlineNear
        | Denial::NoLease
        | Denial::ParentInactive
        | Denial::HolderTaken
        | Denial::HolderUnfit
        | Denial::AuthorityActive
        | Denial::AuthorityNotPrepared
        | Denial::AuthorityNotOld
        | Denial::AttemptRunning => Code::FailedPrecondition,
        Denial::TooDeep | Denial::TooManyChildren | Denial::AttemptsSpent => {
            Code::ResourceExhausted
        }
        Denial::IdempotencyConflict => Code::AlreadyExists,
        Denial::VersionConflict => Code::Aborted,
        // A version that was overtaken is current again at the next attempt.
        Denial::TaskVersion
        | Denial::Overloaded
        | Denial::RateExceeded
        | Denial::JournalFailed
        | Denial::SigningFailed
        | Denial::NotServing
        | Denial::OidcIssuerUnavailable
        | Denial::AttestationFailed => Code::Unavailable,
    }
}

/// A denial as the caller sees it: `code: remedy`.
#[must_use]
pub fn of(denial: Denial) -> Status {
    // The Rust client backs off gently when it reads `no identity issued`, word for word.
    let nobody = matches!(denial, Denial::NoIdentity | Denial::NotBound);
    let lead = if nobody { "no identity issued; " } else { "" };
    let status = Status::new(code(denial), format!("{denial}: {lead}{}", denial.remedy()));
    pushback::hinted(denial, status)
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

/// Whose words the reasons are in the details of a refusal.
const OURS: &str = "mayfly";
/// What those details are.
const ERROR_INFO_TYPE: &str = "type.googleapis.com/google.rpc.ErrorInfo";

/// A refusal of an office: `code: detail`, or the remedy where the code says it all; and the same in
/// `google.rpc.ErrorInfo`, for programs.
#[must_use]
pub fn of_refusal(refusal: &Refusal) -> Status {
    let denial = refusal.denial;
    let detail: String = refusal.detail.chars().take(limits::DETAIL_CHARS_MAX).collect();
    let text = if detail.is_empty() { denial.remedy() } else { &detail };
    let message = format!("{denial}: {text}");
    let word = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let metadata = [("code", denial.code()), ("remedy", denial.remedy()), ("detail", &detail)];
    let reason = denial.code().to_uppercase();
    let status =
        with_info((code(denial), message), (&reason, OURS), BTreeMap::from(metadata.map(word)));
    pushback::hinted(denial, status)
}

/// A refusal with its reason for programs.
fn with_info(
    (code, message): (Code, String),
    (reason, domain): (&str, &str),
    metadata: BTreeMap<String, String>,
) -> Status {
    let (reason, domain) = (reason.to_owned(), domain.to_owned());
    let info = rpc::ErrorInfo { reason, domain, metadata };
    let info =
        prost_types::Any { type_url: ERROR_INFO_TYPE.to_owned(), value: info.encode_to_vec() };
    let details = rpc::Status { code: code.into(), message: message.clone(), details: vec![info] };
    Status::with_details(code, message, details.encode_to_vec().into())
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
    fn whoever_finds_no_room_is_told_when_to_come_again_and_nobody_else_is() {
        for denial in Denial::ALL {
            for status in [of(*denial), of_refusal(&(*denial).into()), of_reference(*denial)] {
                let hint = status.metadata().get("grpc-retry-pushback-ms");
                let hint = hint.map(|ms| ms.to_str().unwrap().parse::<i32>().unwrap());
                assert_eq!(hint.is_some(), *denial == Denial::Overloaded, "{status:?}");
            }
        }
        assert!(of_token(Denial::Overloaded).metadata().contains_key("grpc-retry-pushback-ms"));
    }

    #[test]
    fn a_refusal_tells_programs_what_it_tells_people() {
        for denial in Denial::ALL {
            let refusal = Refusal { denial: *denial, detail: "é".repeat(5000) };
            let status = of_refusal(&refusal);
            assert_eq!(status.code(), code(*denial));
            let details = rpc::Status::decode(status.details()).unwrap();
            assert_eq!(
                (details.code, details.message.as_str()),
                (status.code() as i32, status.message())
            );
            let any = details.details.first().unwrap();
            assert_eq!(any.type_url, "type.googleapis.com/google.rpc.ErrorInfo");
            let info = rpc::ErrorInfo::decode(any.value.as_slice()).unwrap();
            assert_eq!(
                (info.reason.to_lowercase().as_str(), info.domain.as_str()),
                (denial.code(), "mayfly")
            );
            let told = |key: &str| info.metadata.get(key).cloned().unwrap_or_default();
            assert_eq!(
                (told("code").as_str(), told("remedy").as_str()),
                (denial.code(), denial.remedy())
            );
            assert_eq!(told("detail").chars().count(), limits::DETAIL_CHARS_MAX);
            assert!(of_refusal(&(*denial).into()).message().ends_with(denial.remedy()));
        }
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
