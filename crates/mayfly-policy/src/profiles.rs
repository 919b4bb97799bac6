//! The profiles of one edition, and the judgement on them.

use std::collections::BTreeSet;

use mayfly_core::{
    Binding, Bounds, Evidence, PolicyEpoch, Selector, Terms, TrustDomain, Verdict, limits,
};

use crate::{
    diff::{self, Difference},
    explain::{self, Explanation},
    file,
    invalid::InvalidProfiles,
    own,
    owners::Owners,
};

/// Who may have an identity, and which.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Profile {
    /// What must be seen of a caller, all of it.
    pub selectors: BTreeSet<Selector>,
    /// What it then gets. The profile's name is [`Terms::profile`].
    pub terms: Terms,
}

impl Profile {
    /// Whether the caller must come through a task's own socket: reaching it is then the evidence.
    #[must_use]
    pub fn rests_on_socket(&self) -> bool {
        self.selectors.is_empty()
    }

    /// Whether `evidence` holds everything that this profile asks for.
    #[must_use]
    pub fn matches(&self, evidence: &Evidence) -> bool {
        // INVARIANT P8: a conjunction of "is present". More conditions or less evidence can only
        // turn a Yes into a No.
        if self.rests_on_socket() {
            let own_socket = matches!(self.terms.binding, Binding::Socket | Binding::Lease);
            return own_socket && evidence.caller.socket.is_some();
        }
        self.selectors.is_subset(&evidence.selectors)
    }
}

/// One edition of the profiles: complete, checked and unchanging.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Profiles {
    epoch: PolicyEpoch,
    /// In the order of their file, which is the order of a caller's identities (SPIFFE Workload API
    /// §8: the first is the default).
    profiles: Vec<Profile>,
    owners: Owners,
}

impl Profiles {
    /// Reads every `[[profile]]` of a TOML document. Other tables of the document are left to
    /// whoever they belong to, so that profiles may stand in a configuration file.
    ///
    /// # Errors
    /// [`InvalidProfiles`] names everything that is wrong, not only the first thing.
    pub fn parse(
        text: &str,
        trust_domain: &TrustDomain,
        epoch: PolicyEpoch,
    ) -> Result<Self, InvalidProfiles> {
        let (profiles, owners) = file::read(text, trust_domain)?;
        Ok(Self { epoch, profiles, owners })
    }

    /// The built-in profile `dev`: every process of the user `uid`, who answers for it.
    #[must_use]
    pub fn dev(uid: u32) -> Self {
        let dev = Profile {
            selectors: [Selector::new("unix:uid", &uid.to_string())].into(),
            terms: Terms {
                profile: "dev".into(),
                path: "/dev".into(),
                owner: format!("user:{uid}"),
                binding: Binding::Process,
                stable_identity: false,
                x509_ttl: limits::X509_TTL_DEFAULT,
                jwt_ttl: limits::JWT_TTL_DEFAULT,
                task_ttl: None,
                hint: String::new(),
                federates_with: Vec::new(),
                bounds: Bounds::default(),
            },
        };
        Self { epoch: PolicyEpoch::default(), profiles: vec![dev], owners: Owners::default() }
    }

    /// The same profiles as another edition.
    #[must_use]
    pub fn at_epoch(self, epoch: PolicyEpoch) -> Self {
        Self { epoch, ..self }
    }

    /// The same profiles with the owners and transfers of `other`: for a document without profiles of
    /// its own.
    #[must_use]
    pub fn with_owners_of(self, other: Self) -> Self {
        Self { owners: other.owners, ..self }
    }

    /// Which edition this is.
    #[must_use]
    pub const fn epoch(&self) -> PolicyEpoch {
        self.epoch
    }

    /// What `evidence` earns: the terms of every profile that matches, in the order of the file.
    #[must_use]
    pub fn judge(&self, evidence: &Evidence) -> Verdict {
        Verdict {
            epoch: self.epoch,
            permits: self
                .profiles
                .iter()
                .filter(|profile| profile.matches(evidence))
                .map(|profile| profile.terms.clone())
                .collect(),
        }
    }

    /// Why `evidence` earns what it earns: every profile, the nearest first. Those that match come
    /// before those that do not.
    #[must_use]
    pub fn explain(&self, evidence: &Evidence) -> Vec<Explanation> {
        explain::explain(&self.profiles, evidence)
    }

    /// The terms of the profile `name`.
    #[must_use]
    pub fn terms(&self, name: &str) -> Option<&Terms> {
        self.find(name).map(|profile| &profile.terms)
    }

    /// The profile `name`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Profile> {
        self.profiles.iter().find(|profile| profile.terms.profile == name)
    }

    /// Every profile, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Profile> {
        self.profiles.iter()
    }

    /// Every name, in the order of the file.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.profiles.iter().map(|profile| profile.terms.profile.as_str())
    }

    /// The names that `old` has and this edition has not: their tasks end.
    #[must_use]
    pub fn gone_since(&self, old: &Self) -> Vec<String> {
        let here: BTreeSet<&str> = self.names().collect();
        old.names().filter(|name| !here.contains(name)).map(Into::into).collect()
    }

    /// Whether somebody of that name may be accountable: listed, or the owner of a profile.
    #[must_use]
    pub fn knows_owner(&self, name: &str) -> bool {
        self.owners.listed.contains(name)
            || self.profiles.iter().any(|profile| profile.terms.owner == name)
    }

    /// Everybody who may be accountable.
    #[must_use]
    pub fn owners(&self) -> BTreeSet<&str> {
        let named = self.profiles.iter().map(|profile| profile.terms.owner.as_str());
        self.owners.listed.iter().map(String::as_str).chain(named).collect()
    }

    /// Those among `known` who are not accountable any more, `known` being who was or whose tasks live.
    /// The broker's own tasks are nobody else's.
    #[must_use]
    pub fn left_of<'a>(&self, known: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let here = self.owners();
        let left = known.into_iter().filter(|name| !here.contains(name) && *name != own::OWNER);
        let left: BTreeSet<_> = left.collect();
        left.into_iter().map(Into::into).collect()
    }

    /// Who takes the tasks of whom: the old owner, then the new one.
    pub fn transfers(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.owners.transfers.iter().map(|(old, new)| (old.as_str(), new.as_str()))
    }

    /// What is different from `old`, for people: what was added, removed and changed.
    #[must_use]
    pub fn diff(&self, old: &Self) -> Vec<Difference> {
        let mut all = diff::diff(&old.profiles, &self.profiles);
        let (before, after) = (old.owners(), self.owners());
        let named = |name: &&str| (*name).to_owned();
        all.extend(after.difference(&before).map(|name| Difference::Joined { owner: named(name) }));
        all.extend(before.difference(&after).map(|name| {
            let heir = self.owners.transfers.get(*name).cloned();
            Difference::Left { owner: named(name), heir }
        }));
        all
    }

    /// Whether any profile asks for names of users or groups, for which the name service has to be
    /// asked.
    #[must_use]
    pub fn needs_names(&self) -> bool {
        self.asks_for(&["unix:user", "unix:group"])
    }

    /// Whether any profile asks for the digest of the executable. Reading a whole binary is the one
    /// dear piece of evidence, so it is collected only if somebody looks at it.
    #[must_use]
    pub fn needs_sha256(&self) -> bool {
        self.asks_for(&["unix:sha256"])
    }

    /// Whether any profile ties tasks to units, containers or pods, which then have to be named.
    #[must_use]
    pub fn needs_dwellings(&self) -> bool {
        let held = |profile: &Profile| match profile.terms.binding {
            Binding::Systemd | Binding::Container | Binding::Pod => true,
            Binding::Process
            | Binding::Lineage
            | Binding::Cgroup
            | Binding::Socket
            | Binding::Lease => false,
        };
        self.profiles.iter().any(held)
    }

    fn asks_for(&self, kinds: &[&str]) -> bool {
        let mut selectors = self.profiles.iter().flat_map(|profile| &profile.selectors);
        selectors.any(|selector| kinds.contains(&selector.kind()))
    }
}
