//! Why a call came to nothing.

use std::{error::Error as _, path::PathBuf, time::Duration};

use mayfly_core::Denial;
use mayfly_verify::InvalidEndpoint;
use tonic::{Code, Status};

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address cannot be one.
    #[error(transparent)]
    Address(#[from] InvalidEndpoint),
    /// Nobody listens.
    #[error(
        "no broker at `{path}`: start one with `mayfly up`, or name its directory with \
         `--data-dir` or MAYFLY_DATA_DIR"
    )]
    NoBroker {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Its door is shut for us.
    #[error("the broker at `{path}` may not be reached by this user: ask its operator for a role")]
    NotPermitted {
        /// Where.
        path: PathBuf,
    },
    /// It cannot be shown.
    #[error("the token holds what no header may")]
    Token,
    /// Without an SVID there is no TLS with a broker.
    #[error("no identity: the Workload API at `SPIFFE_ENDPOINT_SOCKET` gave us none to show")]
    NoIdentity,
    /// The broker said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The connection was lost, or never made.
    #[error("the broker was not heard: {0}")]
    Unheard(#[source] Box<Status>),
    /// Nobody answered in time.
    #[error("the broker did not answer within {patience:?}")]
    Silent {
        /// How long was waited.
        patience: Duration,
    },
}

/// A No, with its stable code (`docs/denials.md`) and what can be done about it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// The gRPC code.
    pub status: Code,
    /// The stable code, for example `exceeds_parent`; empty if the answer carries none.
    pub code: String,
    /// What exactly was wrong, in words.
    pub message: String,
}

impl Refusal {
    /// Reads an answer of the broker's.
    #[must_use]
    pub fn of(status: &Status) -> Self {
        let is_code = |word: &&str| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        };
        let text = status.message();
        let split = text.split_once(": ").filter(|(word, _)| is_code(word));
        let (code, message) = split.unwrap_or(("", text));
        // A stranger's words, or a proxy's: the name of the gRPC code is all there is to go by.
        let code = if code.is_empty() { snake(status.code()) } else { code.to_owned() };
        Self { status: status.code(), code, message: message.to_owned() }
    }

    /// What to do about it, where more was said than that.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        self.denial().map(Denial::remedy).filter(|remedy| !self.message.ends_with(remedy))
    }

    /// The denial that it is, if this version knows it.
    #[must_use]
    pub fn denial(&self) -> Option<Denial> {
        Denial::ALL.iter().find(|denial| denial.code() == self.code).copied()
    }
}

/// `PermissionDenied` as `permission_denied`.
fn snake(code: Code) -> String {
    let mut text = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

/// Whether a status was made on our side of the connection: what a server sends has no source.
pub(super) fn is_unheard(status: &Status) -> bool {
    status.source().is_some()
}

impl ClientError {
    pub(crate) fn of(status: Status) -> Self {
        if is_unheard(&status) {
            return Self::Unheard(Box::new(status));
        }
        Self::Refused(Refusal::of(&status))
    }

    /// The refusal, if it is one.
    #[must_use]
    pub const fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::Address(_)
            | Self::NoBroker { .. }
            | Self::NotPermitted { .. }
            | Self::Token
            | Self::NoIdentity
            | Self::Unheard(_)
            | Self::Silent { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_its_code_and_its_remedy_once() {
        let denial = Denial::ProfileUnknown;
        let long = Status::not_found("profile_unknown: no profile `x`; there are: a");
        let refusal = Refusal::of(&long);
        assert_eq!(refusal.denial(), Some(denial));
        assert_eq!(refusal.message, "no profile `x`; there are: a");
        assert_eq!(refusal.remedy(), Some(denial.remedy()));
        let short = Status::not_found(format!("{denial}: {}", denial.remedy()));
        assert_eq!(Refusal::of(&short).remedy(), None, "the message is the remedy");
    }

    #[test]
    fn words_without_a_code_have_that_of_grpc() {
        let strange = Refusal::of(&Status::permission_denied("RBAC: access denied"));
        assert_eq!((strange.code.as_str(), strange.denial()), ("permission_denied", None));
        assert_eq!(strange.message, "RBAC: access denied");
    }
}
