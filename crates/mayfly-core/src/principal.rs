//! Who asks, and for which act: the words that rights are written in.

use alloc::string::String;
use core::fmt;

use crate::id::SpiffeId;

/// Who asks, as far as it was proved.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Principal {
    /// A user of this machine, by the kernel's word.
    User(u32),
    /// Whoever showed an X.509-SVID with this name.
    Spiffe(SpiffeId),
    /// The subject of a token of this issuer.
    Oidc {
        /// Who says so.
        issuer: String,
        /// About whom.
        subject: String,
    },
    /// Nobody in particular, who holds nothing.
    Nobody,
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "uid:{uid}"),
            Self::Spiffe(id) => f.write_str(id.as_str()),
            Self::Oidc { issuer, subject } => write!(f, "oidc:{issuer}#{subject}"),
            Self::Nobody => f.write_str("nobody"),
        }
    }
}

/// One thing that somebody may be entitled to.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Act {
    /// Begin a task by name.
    Begin,
    /// Begin a task below another.
    Delegate,
    /// Make a new version of a task.
    Amend,
    /// Keep the task of a lease alive.
    Heartbeat,
    /// End a task and everything below it.
    End,
    /// Read tasks and their story.
    Read,
    /// Read what profiles there are.
    ReadProfiles,
    /// Revoke whatever a target names.
    Revoke,
    /// Suspend a task.
    Quarantine,
    /// Lift a quarantine.
    Release,
    /// Replace the profiles.
    ApplyProfiles,
    /// Make, activate, taint or revoke an authority.
    ChangeAuthority,
    /// See why a process has the identities that it has.
    Diagnose,
    /// Approve what has to be approved.
    Approve,
}

impl Act {
    /// Every act.
    pub const ALL: [Self; 14] = [
        Self::Begin,
        Self::Delegate,
        Self::Amend,
        Self::Heartbeat,
        Self::End,
        Self::Read,
        Self::ReadProfiles,
        Self::Revoke,
        Self::Quarantine,
        Self::Release,
        Self::ApplyProfiles,
        Self::ChangeAuthority,
        Self::Diagnose,
        Self::Approve,
    ];

    /// The stable word in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Delegate => "delegate",
            Self::Amend => "amend",
            Self::Heartbeat => "heartbeat",
            Self::End => "end",
            Self::Read => "read",
            Self::ReadProfiles => "read_profiles",
            Self::Revoke => "revoke",
            Self::Quarantine => "quarantine",
            Self::Release => "release",
            Self::ApplyProfiles => "apply_profiles",
            Self::ChangeAuthority => "change_authority",
            Self::Diagnose => "diagnose",
            Self::Approve => "approve",
        }
    }
}
