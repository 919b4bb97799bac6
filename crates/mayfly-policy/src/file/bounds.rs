//! The keys by which a profile says what its tasks have to declare and how far they may go.

use std::{collections::BTreeSet, ops::RangeInclusive};

use mayfly_core::{
    Bounds, Budget, Dimension, Extent, OnFailure, Part, Reach, Scope, Span, Tier,
    limits as core_limits,
};
use toml::{Spanned, de::DeValue};

use super::{Entry, Reader, is_near};
use crate::{
    duration,
    field::{self, Fault, quote},
    limits,
};

/// The keys of `[profile.scope]`, which are the dimensions' words, with the names that complaints use.
const SCOPE: [(&str, &str, Dimension); 4] = [
    ("actions", "scope.actions", Dimension::Actions),
    ("resources", "scope.resources", Dimension::Resources),
    ("audiences", "scope.audiences", Dimension::Audiences),
    ("tools", "scope.tools", Dimension::Tools),
];
const BUDGET: [&str; 3] = ["issuances", "per_minute", "attempts"];

/// A profile that another one delegates to, until it is known whether there is one.
pub(super) struct Delegation {
    /// Who delegates.
    from: Option<String>,
    /// Where that is written.
    at: usize,
    /// To which profile.
    to: String,
}

impl Reader<'_> {
    pub(super) fn bounds(&mut self, entry: Entry<'_>) -> Option<Bounds> {
        let requires = self.requires(entry);
        let tier = self.optional(entry, "risk", Tier::Low, field::tier);
        let on_failure = self.optional(entry, "on_failure", OnFailure::End, field::on_failure);
        let delegates_to = self.delegates_to(entry);
        let depth = self.count(entry, ("max_depth", "max_depth"), 0..=core_limits::DEPTH_MAX);
        let children = 0..=core_limits::CHILDREN_MAX;
        let children = self.count(entry, ("max_children", "max_children"), children);
        let scope = self.scope(entry);
        let budget = self.budget(entry);
        Some(Bounds {
            requires: requires?,
            scope: scope?,
            tier: tier?,
            on_failure: on_failure?,
            budget: budget?,
            reach: Reach {
                depth: depth?.unwrap_or(core_limits::DEPTH_MAX),
                children: children?.unwrap_or(core_limits::CHILDREN_MAX),
            },
            delegates_to: delegates_to?,
        })
    }

    /// A life that the profile's tier does not allow. Only what is written is blamed: the defaults fit
    /// every tier.
    pub(super) fn check_lives(&mut self, entry: Entry<'_>, tier: Tier, lives: [Option<Span>; 2]) {
        for (key, life) in ["x509_ttl", "jwt_ttl"].into_iter().zip(lives) {
            let most = tier.ttl_max();
            if let Some(life) = life.filter(|life| *life > most) {
                let life = quote(&duration::format(life));
                let why = format!("{life} is too long for the risk {}", quote(tier.name()));
                let remedy = format!("choose at most {}", duration::format(most));
                self.fault(entry, key, self.value_place(entry, key), Fault::new(why, remedy));
            }
        }
    }

    fn value_place(&self, entry: Entry<'_>, key: &str) -> usize {
        entry.table.get(key).map_or(entry.at, |value| value.span().start)
    }

    fn requires(&mut self, entry: Entry<'_>) -> Option<BTreeSet<Part>> {
        const KEY: &str = "requires";
        let found = self.list(entry, KEY, Part::ALL.len(), field::part)?;
        let mut parts = BTreeSet::new();
        for (at, part) in found {
            if !parts.insert(part) {
                self.twice(entry, KEY, (at, part.name()));
            }
        }
        Some(parts)
    }

    fn delegates_to(&mut self, entry: Entry<'_>) -> Option<Option<BTreeSet<String>>> {
        const KEY: &str = "delegates_to";
        if entry.table.get(KEY).is_none() {
            return Some(None);
        }
        let found = self.list(entry, KEY, limits::DELEGATES_MAX, field::name)?;
        let mut names = BTreeSet::new();
        for (at, to) in found {
            if !names.insert(to.clone()) {
                self.twice(entry, KEY, (at, &to));
            }
            self.delegations.push(Delegation { from: entry.name.map(Into::into), at, to });
        }
        Some(Some(names))
    }

    /// Profiles may stand in any order, so who is delegated to is looked up when all have been read.
    pub(super) fn check_delegations(&mut self, entries: &[Entry<'_>]) {
        let known: Vec<&str> = entries.iter().filter_map(|entry| entry.name).collect();
        for Delegation { from, at, to } in std::mem::take(&mut self.delegations) {
            if known.contains(&to.as_str()) {
                continue;
            }
            let remedy = match known.iter().find(|name| is_near(&to, &name.replace('-', "_"))) {
                Some(near) => format!("did you mean {}?", quote(near)),
                None => "write that profile, or remove the name".to_owned(),
            };
            let fault = Fault::new(format!("there is no profile {}", quote(&to)), remedy);
            self.report(from.as_deref(), Some("delegates_to"), at, fault);
        }
    }

    fn scope(&mut self, entry: Entry<'_>) -> Option<Scope> {
        let Some(inner) = self.table(entry, "scope")? else {
            return Some(Scope::default());
        };
        self.unknown_keys(inner, &SCOPE.map(|(key, ..)| key));
        let mut scope = Scope::default();
        let mut sound = true;
        for (key, field, dimension) in SCOPE {
            let Some(extent) = self.extent(inner, (key, field)) else {
                sound = false;
                continue;
            };
            match dimension {
                Dimension::Actions => scope.actions = extent,
                Dimension::Resources => scope.resources = extent,
                Dimension::Audiences => scope.audiences = extent,
                Dimension::Tools => scope.tools = extent,
            }
        }
        sound.then_some(scope)
    }

    fn extent(&mut self, entry: Entry<'_>, (key, field): (&str, &'static str)) -> Option<Extent> {
        let Some(value) = entry.table.get(key) else {
            return Some(Extent::Any);
        };
        let most = core_limits::SCOPE_NAMES_MAX;
        let found = self.items(entry, (field, value), most, field::scope_name)?;
        let mut names = BTreeSet::new();
        for (at, name) in found {
            if !names.insert(name.clone()) {
                self.twice(entry, field, (at, &name));
            }
        }
        Some(Extent::Only(names.into()))
    }

    fn budget(&mut self, entry: Entry<'_>) -> Option<Budget> {
        let Some(inner) = self.table(entry, "budget")? else {
            return Some(Budget::default());
        };
        self.unknown_keys(inner, &BUDGET);
        let some = 1..=u32::MAX;
        let issuances = ("issuances", "budget.issuances");
        let issuances = self.whole(inner, issuances, 1..=u64::from(u32::MAX));
        let per_minute = self.count(inner, ("per_minute", "budget.per_minute"), some);
        let attempts = 1..=limits::ATTEMPTS_MAX;
        let attempts = self.count(inner, ("attempts", "budget.attempts"), attempts);
        Some(Budget { issuances: issuances?, per_minute: per_minute?, attempts: attempts? })
    }

    /// A table below the profile, called by the profile's name; `Some(None)` where there is none.
    fn table<'t>(&mut self, entry: Entry<'t>, key: &'static str) -> Option<Option<Entry<'t>>> {
        let Some(value) = entry.table.get(key) else {
            return Some(None);
        };
        let at = value.span().start;
        let Some(table) = value.get_ref().as_table() else {
            let why = format!("it is {}, not a table", value.get_ref().type_str());
            let fault = Fault::new(why, format!("write `[profile.{key}]` below the profile"));
            self.fault(entry, key, at, fault);
            return None;
        };
        Some(Some(Entry { name: entry.name, at, table }))
    }

    fn count(
        &mut self,
        entry: Entry<'_>,
        names: (&str, &'static str),
        range: RangeInclusive<u32>,
    ) -> Option<Option<u32>> {
        let range = u64::from(*range.start())..=u64::from(*range.end());
        let found = self.whole(entry, names, range)?;
        Some(found.and_then(|number| u32::try_from(number).ok()))
    }

    /// A whole number; `Some(None)` where there is none, `None` where there is something else.
    fn whole(
        &mut self,
        entry: Entry<'_>,
        (key, field): (&str, &'static str),
        range: RangeInclusive<u64>,
    ) -> Option<Option<u64>> {
        let Some(value) = entry.table.get(key) else {
            return Some(None);
        };
        match number(value, &range) {
            Ok(number) => Some(Some(number)),
            Err(fault) => {
                self.fault(entry, field, value.span().start, fault);
                None
            }
        }
    }

    fn twice(&mut self, entry: Entry<'_>, key: &'static str, (at, what): (usize, &str)) {
        let why = format!("{} comes twice", quote(what));
        self.fault(entry, key, at, Fault::new(why, "remove one"));
    }
}

fn number(value: &Spanned<DeValue<'_>>, range: &RangeInclusive<u64>) -> Result<u64, Fault> {
    let (least, most) = (range.start(), range.end());
    let remedy = format!("choose a whole number from {least} to {most}");
    let Some(integer) = value.get_ref().as_integer() else {
        let why = format!("it is {}, not a number", value.get_ref().type_str());
        return Err(Fault::new(why, remedy));
    };
    let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
    let fits = number.filter(|number| range.contains(number));
    fits.ok_or_else(|| Fault::new(format!("{} is out of range", quote(integer.as_str())), remedy))
}
