//! Who may do what to which tasks: roles, bound to names that somebody proved.
//!
//! There is no administrator. Each role covers the acts of one trade, so whoever suspends cannot begin
//! and whoever begins cannot release; a person with two trades is written down twice. Nobody holds
//! anything that is not written down, but for root and the user who runs the broker: they own its keys
//! and its log, and a rule that they could edit away would only pretend.

use mayfly_core::{Act, Denial, Principal, SpiffeId, TrustDomain, id};

use crate::{limits, own};

/// What somebody is trusted with.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Role {
    /// Begins, delegates, amends, keeps alive, ends and reads the tasks of some profiles.
    Orchestrator,
    /// Sees everything, stops anything and keeps the broker.
    Operator,
    /// Approves, and reads what is to be approved.
    Approver,
    /// Reads.
    Auditor,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Orchestrator, Self::Operator, Self::Approver, Self::Auditor];

    /// The word in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Orchestrator => "orchestrator",
            Self::Operator => "operator",
            Self::Approver => "approver",
            Self::Auditor => "auditor",
        }
    }

    /// Finds a role by its word.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// Whether whoever has this role may do `act`, to whatever its rule reaches.
    #[must_use]
    pub const fn covers(self, act: Act) -> bool {
        match act {
            Act::Read | Act::ReadProfiles => true,
            Act::Begin | Act::Delegate | Act::Amend | Act::Heartbeat => {
                matches!(self, Self::Orchestrator)
            }
            Act::End => matches!(self, Self::Orchestrator | Self::Operator),
            Act::Revoke
            | Act::Quarantine
            | Act::Release
            | Act::ApplyProfiles
            | Act::ChangeAuthority
            | Act::Diagnose => matches!(self, Self::Operator),
            Act::Approve => matches!(self, Self::Approver),
        }
    }
}

/// Whom a rule is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Subject {
    /// A user of this machine.
    User(u32),
    /// A SPIFFE ID.
    Spiffe(Pattern),
    /// A subject of an OIDC issuer.
    Oidc {
        /// The issuer, exactly.
        issuer: String,
        /// Its subjects.
        subject: Pattern,
    },
}

/// A name, or everything that begins with what stands before a final `*`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Pattern {
    /// Exactly this.
    Exactly(String),
    /// Everything that begins with this.
    Prefix(String),
}

impl Pattern {
    fn of(text: &str) -> Option<Self> {
        match text.strip_suffix('*') {
            Some(stem) if !stem.contains('*') => Some(Self::Prefix(stem.to_owned())),
            None if !text.is_empty() && !text.contains('*') => Some(Self::Exactly(text.to_owned())),
            Some(_) | None => None,
        }
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exactly(exactly) => exactly == name,
            Self::Prefix(stem) => name.starts_with(stem.as_str()),
        }
    }
}

impl Subject {
    /// Reads `uid:1000`, `spiffe://td/path`, `spiffe://td/prefix*`, `oidc:ISSUER#SUBJECT` or
    /// `oidc:ISSUER#PREFIX*`.
    ///
    /// # Errors
    /// What is wrong, as the end of a sentence about it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(uid) = text.strip_prefix("uid:") {
            let digits = !uid.is_empty() && uid.bytes().all(|b| b.is_ascii_digit());
            let uid = uid.parse().ok().filter(|uid| digits && *uid != u32::MAX);
            return uid.map(Self::User).ok_or("`uid:` has to be followed by a user's number");
        }
        if let Some(rest) = text.strip_prefix("oidc:") {
            let rule = "has to be like \"oidc:https://issuer.example#subject\"";
            let (issuer, subject) = rest.split_once('#').ok_or(rule)?;
            let subject = Pattern::of(subject).filter(|_| !issuer.is_empty()).ok_or(rule)?;
            return Ok(Self::Oidc { issuer: issuer.to_owned(), subject });
        }
        let rule = "has to be \"uid:1000\", a SPIFFE ID, or \"oidc:ISSUER#SUBJECT\"";
        let name = text.strip_prefix("spiffe://").ok_or(rule)?;
        let (domain, _) = name
            .split_once('/')
            .ok_or("a SPIFFE ID needs a path: a prefix of a trust domain could be another's")?;
        TrustDomain::parse(domain).map_err(|_invalid| "has no valid trust domain")?;
        let pattern = Pattern::of(text).ok_or("may have one '*', at its end")?;
        if let Pattern::Exactly(id) = &pattern {
            SpiffeId::parse(id).map_err(|_invalid| "is not a SPIFFE ID")?;
        }
        Ok(Self::Spiffe(pattern))
    }

    fn is(&self, who: &Principal) -> bool {
        match (self, who) {
            (Self::User(wanted), Principal::User(uid)) => wanted == uid,
            (Self::Spiffe(pattern), Principal::Spiffe(id)) => pattern.matches(id.as_str()),
            (Self::Oidc { issuer, subject }, Principal::Oidc { issuer: by, subject: about }) => {
                issuer == by && subject.matches(about)
            }
            (Self::User(_) | Self::Spiffe(_) | Self::Oidc { .. }, _) => false,
        }
    }
}

/// Which profiles an orchestrator's tasks may have.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Territory {
    profiles: Vec<Pattern>,
    paths: Vec<String>,
}

impl Territory {
    /// Profiles of these names, a final `*` standing for any rest, and those whose path is one of these
    /// or below it.
    ///
    /// # Errors
    /// What is wrong, as the end of a sentence about the key that it names.
    pub fn of(profiles: &[String], paths: &[String]) -> Result<Self, (&'static str, String)> {
        let pattern = |name: &String| {
            let fits = name.len() <= limits::NAME_BYTES_MAX;
            let pattern = Pattern::of(name).filter(|_| fits);
            pattern.ok_or_else(|| ("profiles", format!("{name:?} is not the name of a profile")))
        };
        let path = |path: &String| {
            let bare = path.strip_suffix('/').unwrap_or(path);
            let fits = path == "/" || id::check_path(bare).is_ok() && !bare.is_empty();
            let wrong = || ("paths", format!("{path:?} has to be like \"/team/\""));
            if fits { Ok(path.clone()) } else { Err(wrong()) }
        };
        if profiles.is_empty() && paths.is_empty() {
            let rule = "or `paths` is required for an orchestrator: which tasks are its own?";
            return Err(("profiles", rule.to_owned()));
        }
        Ok(Self {
            profiles: profiles.iter().map(pattern).collect::<Result<_, _>>()?,
            paths: paths.iter().map(path).collect::<Result<_, _>>()?,
        })
    }

    fn holds(&self, profile: &str, path: &str) -> bool {
        // A prefix ends where a segment does: `/shop` is not the beginning of `/shopping`.
        let below = |prefix: &String| {
            let rest = path.strip_prefix(prefix.as_str());
            let whole =
                |rest: &str| prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/');
            rest.is_some_and(whole)
        };
        self.profiles.iter().any(|pattern| pattern.matches(profile)) || self.paths.iter().any(below)
    }
}

/// One role of some subjects.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// Which.
    pub role: Role,
    /// Whose.
    pub subjects: Vec<Subject>,
    /// Over which tasks; `None` is all of them.
    pub territory: Option<Territory>,
}

/// What something is done to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Object<'a> {
    /// Everything, or nothing in particular.
    Everything,
    /// A task of this profile, or the profile itself.
    Profile {
        /// Its name.
        name: &'a str,
        /// Its SPIFFE ID's path.
        path: &'a str,
    },
}

/// Everybody's rights. They do not change while a broker runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rights {
    owner: u32,
    rules: Vec<Rule>,
}

impl Rights {
    /// What holds without a word: root and the user `owner`, who runs the broker, orchestrate, operate and
    /// audit everything, and nobody else does anything.
    #[must_use]
    pub const fn new(owner: u32) -> Self {
        Self { owner, rules: Vec::new() }
    }

    /// The same, and these.
    #[must_use]
    pub fn with(mut self, rules: impl IntoIterator<Item = Rule>) -> Self {
        self.rules.extend(rules);
        self
    }

    /// Whether `who` may do `act` to `object`.
    ///
    /// # Errors
    /// [`Denial::NotEntitled`].
    pub fn judge(&self, who: &Principal, act: Act, object: Object<'_>) -> Result<(), Denial> {
        let reaches = |territory: &Option<Territory>| match (territory, object) {
            (None, _) => true,
            // The broker's own task is nobody's to orchestrate.
            (Some(_), Object::Profile { name: own::PROFILE, .. }) => false,
            (Some(land), Object::Profile { name, path }) => land.holds(name, path),
            // That there are profiles is known to whoever may use one.
            (Some(_), Object::Everything) => act == Act::ReadProfiles,
        };
        // INVARIANT P8: what is not granted is refused, and no rule takes another's grant away.
        let granted = self.owns(who) && act != Act::Approve
            || self.of(who, act).any(|rule| reaches(&rule.territory));
        if granted { Ok(()) } else { Err(Denial::NotEntitled) }
    }

    /// Whether there is anything to which `who` may do `act`.
    #[must_use]
    pub fn may_somewhere(&self, who: &Principal, act: Act) -> bool {
        self.owns(who) && act != Act::Approve || self.of(who, act).next().is_some()
    }

    fn owns(&self, who: &Principal) -> bool {
        matches!(who, Principal::User(uid) if *uid == self.owner || *uid == 0)
    }

    fn of<'a>(&'a self, who: &'a Principal, act: Act) -> impl Iterator<Item = &'a Rule> {
        let is = move |rule: &&Rule| rule.subjects.iter().any(|subject| subject.is(who));
        self.rules.iter().filter(move |rule| rule.role.covers(act)).filter(is)
    }
}
