//! What is to be done with the files, given what was heard and what lies there. Pure.
//!
//! The rules, strongest first:
//!
//! 1. A *no* of the broker removes the files, all of them, at once.
//! 2. Files whose certificate has expired go: they are good for nothing but mistakes.
//! 3. A set is written when it is whole (certificate, authorities and every token that was asked for)
//!    and another than the one that lies there.
//! 4. Silence changes nothing. A broker that restarts must not take a server's certificate away.

use mayfly_core::Timestamp;

use super::{follow::Heard, set::FileSet};

/// What lies in the directory.
#[derive(Debug, Default)]
pub struct Kept {
    /// The set, if it is ours and not a predecessor's.
    pub set: Option<FileSet>,
    /// Until when; `None` if there is nothing.
    pub until: Option<Timestamp>,
}

/// Why files are removed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Why {
    /// The broker refused, in these words: `code: remedy`.
    Refused(String),
    /// The certificate has expired and no other has come.
    Expired,
    /// The sidecar was asked to stop.
    Stopped,
}

impl Why {
    /// A word for programs.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Refused(words) => words.split(':').next().unwrap_or_default(),
            Self::Expired => "expired",
            Self::Stopped => "stopped",
        }
    }

    /// The broker's last word, if no other can follow: a task that has ended does not come back.
    #[must_use]
    pub fn is_final(&self) -> Option<&str> {
        match self {
            Self::Refused(words) if is_final(words) => Some(words),
            Self::Refused(_) | Self::Expired | Self::Stopped => None,
        }
    }
}

/// Whether a refusal is for good. Another one may be lifted: a quarantine is released, a profile added.
#[must_use]
pub fn is_final(refusal: &str) -> bool {
    refusal.split(':').next() == Some(mayfly_core::Denial::TaskEnded.code())
}

/// What is to be done.
#[derive(Debug)]
pub enum Step {
    /// Nothing.
    Wait,
    /// Put this set in the place of the other.
    Write(FileSet),
    /// Remove everything.
    Remove(Why),
}

/// Decides. `audiences` are those that a whole set has tokens for.
#[must_use]
pub fn step(heard: &Heard, audiences: &[String], kept: &Kept, now: Timestamp) -> Step {
    if let Some(refusal) = &heard.refused {
        return match kept.until {
            Some(_) => Step::Remove(Why::Refused(refusal.clone())),
            None => Step::Wait,
        };
    }
    if let Some(set) = whole(heard, audiences, kept, now) {
        let same = kept.set.as_ref().is_some_and(|kept| set.changed_since(Some(kept)).is_empty());
        return if same { Step::Wait } else { Step::Write(set) };
    }
    if kept.until.is_some_and(|until| until <= now) {
        Step::Remove(Why::Expired)
    } else {
        Step::Wait
    }
}

/// When to look again if nothing is heard: something expires then.
#[must_use]
pub fn due(heard: &Heard, kept: &Kept, now: Timestamp) -> Option<Timestamp> {
    let tokens = heard.tokens.values().map(|token| token.expires_at);
    tokens.chain(kept.until).filter(|at| *at > now).min()
}

/// The set, if there is enough for one.
///
/// The first one waits for every token. Later a token that has expired without a successor drops out:
/// the rest serves on.
fn whole(heard: &Heard, audiences: &[String], kept: &Kept, now: Timestamp) -> Option<FileSet> {
    let identities = heard.identities.as_ref()?;
    let bundles = heard.bundles.as_ref()?;
    if identities.default_svid()?.leaf.not_after <= now {
        return None;
    }
    let all_tokens = audiences.iter().all(|audience| heard.tokens.contains_key(audience));
    if !all_tokens && kept.set.is_none() {
        return None;
    }
    let good = heard.tokens.iter().filter(|(_, token)| token.expires_at > now);
    FileSet::of(identities, bundles, good.map(|(audience, token)| (audience.as_str(), token)))
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
