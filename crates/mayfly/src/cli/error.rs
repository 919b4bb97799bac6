//! Why a command came to nothing, and the exit code that says so.

use std::process::ExitCode;

use tonic::Code;

use crate::{
    admin::AdminError,
    client::{ClientError, Refusal},
};

/// Why a command came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Broker(#[from] crate::broker::BrokerError),
    #[error(transparent)]
    Workload(#[from] mayfly_verify::WorkloadError),
    #[error(transparent)]
    Stage(#[from] crate::stage::StageError),
    #[error(transparent)]
    Sidecar(#[from] crate::sidecar::SidecarError),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Other(String),
}

/// How a command can end (`docs/cli.md`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Exit {
    /// It was refused, or failed on the way.
    Refused = 1,
    /// It cannot have been meant like that. clap says the same of what it finds.
    Usage = 2,
    /// Nobody listens where the broker should.
    NoBroker = 3,
    /// The caller has no right to ask for this.
    NotEntitled = 4,
}

impl CliError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The broker's own words, if it was the broker.
    fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Admin(AdminError::Refused(status)) => Some(Refusal::of(status)),
            Self::Client(error) => error.refusal().cloned(),
            Self::Admin(AdminError::NoBroker { .. } | AdminError::NotPermitted { .. })
            | Self::Config(_)
            | Self::Broker(_)
            | Self::Workload(_)
            | Self::Stage(_)
            | Self::Sidecar(_)
            | Self::Io { .. }
            | Self::Usage(_)
            | Self::Other(_) => None,
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Admin(AdminError::NoBroker { .. })
            | Self::Client(ClientError::NoBroker { .. }) => Exit::NoBroker,
            Self::Admin(AdminError::NotPermitted { .. })
            | Self::Client(ClientError::NotPermitted { .. } | ClientError::NoIdentity) => {
                Exit::NotEntitled
            }
            Self::Usage(_) | Self::Client(ClientError::Address(_) | ClientError::Token) => {
                Exit::Usage
            }
            Self::Admin(AdminError::Refused(_)) | Self::Client(ClientError::Refused(_)) => {
                let not_entitled = mayfly_core::Denial::NotEntitled.code();
                let refusal = self.refusal();
                let code = refusal.as_ref().map(|refusal| refusal.code.as_str());
                if code == Some(not_entitled) { Exit::NotEntitled } else { Exit::Refused }
            }
            Self::Client(ClientError::Unheard(_) | ClientError::Silent { .. })
            | Self::Config(_)
            | Self::Broker(_)
            | Self::Workload(_)
            | Self::Stage(_)
            | Self::Sidecar(_)
            | Self::Io { .. }
            | Self::Other(_) => Exit::Refused,
        }
    }
}

/// Says why, and what to do about it.
pub(super) fn report(error: CliError) -> ExitCode {
    let refusal = error.refusal();
    let said = match &refusal {
        // What was made up on our side names neither code nor remedy, but the channel does not say so.
        Some(refusal) if refusal.status == Code::Unavailable && refusal.denial().is_none() => {
            format!("the broker was not heard: {}", refusal.message)
        }
        Some(refusal) => refusal.to_string(),
        None => error.to_string(),
    };
    complain(&said);
    if let Some(remedy) = refusal.as_ref().and_then(Refusal::remedy) {
        complain(&format!("remedy: {remedy}"));
    }
    ExitCode::from(error.exit() as u8)
}

/// A sentence for whoever typed the command; results go to standard output.
#[expect(clippy::print_stderr, reason = "a command line tool says on standard error why it failed")]
pub(super) fn complain(why: &str) {
    eprintln!("mayfly: {why}");
}
