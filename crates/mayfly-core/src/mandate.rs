//! What a task is begun with beside its holder: what for, how far, how often, and on whose word.
//!
//! A [`Mandate`] is what the task declares; [`Bounds`] are what its profile demands and allows.

use alloc::{boxed::Box, collections::BTreeSet, string::String};

use crate::{
    limits,
    scope::{Dimension, Scope},
    time::Span,
};

/// How much is lost if a task is misused. Higher tiers have shorter credentials.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Tier {
    /// Reading, and what can be done again.
    #[default]
    Low,
    /// Writing what can be undone.
    Medium,
    /// What cannot be undone.
    High,
}

impl Tier {
    /// Every tier, the lowest first.
    pub const ALL: [Self; 3] = [Self::Low, Self::Medium, Self::High];

    /// The stable word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

    /// Finds a tier by its word.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tier| tier.name() == name)
    }

    /// The longest life of a credential in this tier (R8).
    #[must_use]
    pub const fn ttl_max(self) -> Span {
        match self {
            Self::Low => limits::CREDENTIAL_TTL_MAX,
            Self::Medium => limits::TTL_MEDIUM_MAX,
            Self::High => limits::TTL_HIGH_MAX,
        }
    }
}

/// What ends a task by itself. The usual ends always do; naming them says that its orchestrator counts
/// on them. [`Trigger::Budget`] does so only for tasks that name it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Trigger {
    /// Its holder is gone.
    HolderExit,
    /// It failed.
    Failure,
    /// No heartbeat in time.
    Lease,
    /// Its time is up.
    Deadline,
    /// Its parent ended.
    Parent,
    /// Its owner is no longer accountable.
    Owner,
    /// Its profile is gone.
    Policy,
    /// Its risk rose too high.
    Risk,
    /// Its budget is spent.
    Budget,
}

impl Trigger {
    /// Every trigger.
    pub const ALL: [Self; 9] = [
        Self::HolderExit,
        Self::Failure,
        Self::Lease,
        Self::Deadline,
        Self::Parent,
        Self::Owner,
        Self::Policy,
        Self::Risk,
        Self::Budget,
    ];

    /// The stable word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HolderExit => "holder_exit",
            Self::Failure => "failure",
            Self::Lease => "lease",
            Self::Deadline => "deadline",
            Self::Parent => "parent",
            Self::Owner => "owner",
            Self::Policy => "policy",
            Self::Risk => "risk",
            Self::Budget => "budget",
        }
    }

    /// Finds a trigger by its word.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|trigger| trigger.name() == name)
    }
}

/// One part of what a task declares, as profiles demand them (R9).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Part {
    /// What for.
    Intent,
    /// One dimension of its scope.
    Scope(Dimension),
    /// Who is accountable, by name and not by profile.
    Owner,
    /// When it ends at the latest.
    Deadline,
    /// What ends it.
    Triggers,
    /// How much is lost if it is misused.
    Risk,
    /// Under which conditions somebody has to approve what it does.
    Approval,
    /// What it reports of itself.
    Telemetry,
    /// Who is called when it goes wrong.
    Escalation,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 12] = [
        Self::Intent,
        Self::Scope(Dimension::Actions),
        Self::Scope(Dimension::Resources),
        Self::Scope(Dimension::Audiences),
        Self::Scope(Dimension::Tools),
        Self::Owner,
        Self::Deadline,
        Self::Triggers,
        Self::Risk,
        Self::Approval,
        Self::Telemetry,
        Self::Escalation,
    ];

    /// The word that profiles and refusals use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Scope(dimension) => dimension.name(),
            Self::Owner => "owner",
            Self::Deadline => "deadline",
            Self::Triggers => "triggers",
            Self::Risk => "risk",
            Self::Approval => "approval",
            Self::Telemetry => "telemetry",
            Self::Escalation => "escalation",
        }
    }

    /// Finds a part by its word.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }
}

/// What becomes of a task that failed: its holder exited with an error or is no longer seen, or its
/// orchestrator says so (R16).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum OnFailure {
    /// It ends.
    #[default]
    End,
    /// It is quarantined, with everything below it, until an operator has looked.
    Quarantine,
}

impl OnFailure {
    /// The word that profiles use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Quarantine => "quarantine",
        }
    }

    /// Finds it by its word.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::End, Self::Quarantine].into_iter().find(|one| one.name() == name)
    }
}

/// How much of something there may be; nothing said is as much as the limits allow (R45).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Budget {
    /// Credentials over the task's whole life, renewals included.
    pub issuances: Option<u64>,
    /// Credentials in any minute of the clock.
    pub per_minute: Option<u32>,
    /// Attempts of a job.
    pub attempts: Option<u32>,
}

impl Budget {
    /// Whether nothing in it is more than `outer` has.
    #[must_use]
    pub fn is_within(&self, outer: &Self) -> bool {
        fits(self.issuances, outer.issuances)
            && fits(self.per_minute, outer.per_minute)
            && fits(self.attempts, outer.attempts)
    }

    /// This, and `outer` where nothing was said.
    #[must_use]
    pub fn or(self, outer: &Self) -> Self {
        Self {
            issuances: self.issuances.or(outer.issuances),
            per_minute: self.per_minute.or(outer.per_minute),
            attempts: self.attempts.or(outer.attempts),
        }
    }

    /// Whether credentials have to be counted.
    #[must_use]
    pub const fn counts(&self) -> bool {
        self.issuances.is_some() || self.per_minute.is_some()
    }
}

/// Whether an inner bound holds whatever the outer one holds.
fn fits<T: Ord>(inner: Option<T>, outer: Option<T>) -> bool {
    match (inner, outer) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(inner), Some(outer)) => inner <= outer,
    }
}

/// What a task has used of its budget.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Spent {
    /// Credentials so far, if they are counted.
    pub issued: u64,
    /// The minute of the last one, counted from the epoch.
    pub minute: u32,
    /// Credentials in that minute.
    pub in_minute: u32,
}

/// How far a task may delegate.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Reach {
    /// Levels below it.
    pub depth: u32,
    /// Children that live at the same time.
    pub children: u32,
}

impl Reach {
    /// As far as the limits allow.
    pub const MAX: Self = Self { depth: limits::DEPTH_MAX, children: limits::CHILDREN_MAX };

    /// Whether this is no further than `outer`.
    #[must_use]
    pub const fn is_within(&self, outer: &Self) -> bool {
        self.depth <= outer.depth && self.children <= outer.children
    }

    /// The lesser in each.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self { depth: self.depth.min(other.depth), children: self.children.min(other.children) }
    }
}

impl Default for Reach {
    fn default() -> Self {
        Self::MAX
    }
}

/// What a task declares.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Mandate {
    /// What for, in its orchestrator's words.
    pub intent: String,
    /// What it may be used for.
    pub scope: Scope,
    /// How much is lost if it is misused; the profile's tier if that is higher.
    pub tier: Option<Tier>,
    /// What ends it.
    pub triggers: BTreeSet<Trigger>,
    /// How much it may use.
    pub budget: Budget,
    /// How far it may delegate; as far as its profile and its parent allow where nothing was said.
    pub reach: Option<Reach>,
    /// The longest life of its credentials.
    pub ttl: Option<Span>,
    /// Under which conditions somebody has to approve what it does.
    pub approval: Box<str>,
    /// What it reports of itself.
    pub telemetry: Box<str>,
    /// Who is called when it goes wrong.
    pub escalation: Box<str>,
}

impl Mandate {
    /// A mandate that says only what for.
    #[must_use]
    pub fn of_intent(intent: impl Into<String>) -> Self {
        Self { intent: intent.into(), ..Self::default() }
    }

    /// Whether `part` is declared. Owner and deadline stand beside the mandate, so they are told here.
    #[must_use]
    pub fn declares(&self, part: Part, (owner, deadline): (bool, bool)) -> bool {
        match part {
            Part::Intent => !self.intent.trim().is_empty(),
            Part::Scope(dimension) => self.scope.extent(dimension).is_told(),
            Part::Owner => owner,
            Part::Deadline => deadline,
            Part::Triggers => !self.triggers.is_empty(),
            Part::Risk => self.tier.is_some(),
            Part::Approval => !self.approval.trim().is_empty(),
            Part::Telemetry => !self.telemetry.trim().is_empty(),
            Part::Escalation => !self.escalation.trim().is_empty(),
        }
    }

    /// Whether every text is short enough for a record.
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        let notes = [&*self.intent, &self.approval, &self.telemetry, &self.escalation];
        notes.iter().all(|text| text.len() <= limits::INTENT_BYTES_MAX)
            && self.scope.is_well_formed()
    }
}

/// What a profile demands of its tasks and how far they may go.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Bounds {
    /// What has to be declared.
    pub requires: BTreeSet<Part>,
    /// The widest scope.
    pub scope: Scope,
    /// The lowest tier.
    pub tier: Tier,
    /// What becomes of a task that failed.
    pub on_failure: OnFailure,
    /// The largest budget.
    pub budget: Budget,
    /// How far its tasks may delegate.
    pub reach: Reach,
    /// Which profiles their children may have; any where nothing was said.
    pub delegates_to: Option<BTreeSet<String>>,
}

impl Bounds {
    /// What is demanded and not declared, in the order of [`Part`].
    pub fn lacking<'a>(
        &'a self,
        mandate: &'a Mandate,
        beside: (bool, bool),
    ) -> impl Iterator<Item = Part> + 'a {
        self.requires.iter().copied().filter(move |part| !mandate.declares(*part, beside))
    }
}

/// On whose word something happens, and why; both empty where it happens by itself.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Author {
    /// Who, for example `uid:1000` or a SPIFFE ID.
    pub by: String,
    /// Why, in their words.
    pub why: String,
}

/// A wish that must be carried out once, however often it is told.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct RequestKey {
    /// A digest of who wishes and of the key they chose.
    pub key: [u8; 32],
    /// A digest of what they wish: the same key with another wish is a mistake.
    pub body: [u8; 32],
}

/// What is to be different about a task. Nothing said stays as it is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Amendment {
    /// Another intent.
    pub intent: Option<String>,
    /// Another scope, in the dimensions that it names.
    pub scope: Scope,
    /// Only if this is the version that holds.
    pub if_version: Option<crate::id::TaskVersion>,
}
