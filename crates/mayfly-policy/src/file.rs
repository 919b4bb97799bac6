//! From text to profiles.
//!
//! The document is walked by hand rather than deserialised, because a deserialiser stops at the first
//! mistake and an operator who has made three should not need three attempts.

use std::collections::{BTreeMap, BTreeSet};

use mayfly_core::{Binding, Selector, Terms, TrustDomain, limits as core_limits};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    field::{self, Fault, quote},
    invalid::{InvalidProfiles, Problem},
    limits,
    owners::Owners,
    profiles::Profile,
};

mod bounds;
mod owners;

/// Every key of a profile.
const KEYS: [&str; 19] = [
    "name",
    "path",
    "selectors",
    "owner",
    "binding",
    "identity",
    "hint",
    "x509_ttl",
    "jwt_ttl",
    "max_task",
    "federates_with",
    "requires",
    "risk",
    "on_failure",
    "delegates_to",
    "max_depth",
    "max_children",
    "scope",
    "budget",
];

/// What a good file says.
pub(crate) type Document = (Vec<Profile>, Owners);

pub(crate) fn read(text: &str, domain: &TrustDomain) -> Result<Document, InvalidProfiles> {
    let mut reader = Reader {
        text,
        domain,
        problems: Vec::new(),
        untold: 0,
        names: BTreeMap::new(),
        hints: BTreeMap::new(),
        delegations: Vec::new(),
    };
    let document = reader.document();
    if reader.problems.is_empty() {
        return Ok(document);
    }
    reader.problems.sort_by_key(|problem| problem.line);
    Err(InvalidProfiles::new(reader.problems, reader.untold))
}

struct Reader<'t> {
    text: &'t str,
    domain: &'t TrustDomain,
    problems: Vec<Problem>,
    untold: usize,
    /// Where each name was met first.
    names: BTreeMap<String, usize>,
    /// Which profile had each hint first.
    hints: BTreeMap<String, String>,
    /// Who delegates to whom, to be looked up when all profiles have been read.
    delegations: Vec<bounds::Delegation>,
}

/// One `[[profile]]`, before anything of it is believed.
#[derive(Clone, Copy)]
struct Entry<'t> {
    /// Its name, right or wrong, to call it by.
    name: Option<&'t str>,
    /// Where it begins.
    at: usize,
    table: &'t DeTable<'t>,
}

impl<'t> Entry<'t> {
    fn new(at: usize, table: &'t DeTable<'t>) -> Self {
        let name = table.get("name").and_then(|value| value.get_ref().as_str());
        Self { name, at, table }
    }

    /// Where `key` is written, or else where the profile begins.
    fn place(&self, key: &str) -> usize {
        self.table.get_key_value(key).map_or(self.at, |(key, _)| key.span().start)
    }
}

impl Reader<'_> {
    fn document(&mut self) -> Document {
        if self.text.len() > limits::FILE_BYTES_MAX {
            let remedy = format!("use at most {} bytes", limits::FILE_BYTES_MAX);
            self.report(None, None, 0, Fault::new("the file is too long", remedy));
            return Document::default();
        }
        let (document, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let at = error.span().map_or(0, |span| span.start);
            let why = format!("not TOML: {}", error.message());
            self.report(None, None, at, Fault::new(why, "correct the syntax"));
        }
        if !errors.is_empty() {
            return Document::default(); // What a broken document seems to say is not worth a complaint.
        }
        let document = document.get_ref();
        if let Some((key, _)) = document.get_key_value("profiles") {
            let fault = Fault::new("there is no such table", "write `[[profile]]`");
            self.report(None, Some("profiles"), key.span().start, fault);
        }
        let entries = document.get("profile").map(|list| self.entries(list)).unwrap_or_default();
        let profiles: Vec<_> = entries.iter().filter_map(|entry| self.profile(*entry)).collect();
        self.check_delegations(&entries);
        // Who an owner is depends on every profile: while one of them is not understood, a complaint
        // about owners could be about nothing.
        let owners = if profiles.len() == entries.len() {
            self.owners(document, &profiles)
        } else {
            Owners::default()
        };
        (profiles, owners)
    }

    fn entries<'d>(&mut self, list: &'d Spanned<DeValue<'d>>) -> Vec<Entry<'d>> {
        let not_tables = || Fault::new("it is not a list of tables", "write `[[profile]]`");
        let Some(items) = list.get_ref().as_array() else {
            self.report(None, Some("profile"), list.span().start, not_tables());
            return Vec::new();
        };
        if items.len() > limits::PROFILES_MAX {
            let why = format!("there are more than {} profiles", limits::PROFILES_MAX);
            let fault = Fault::new(why, "merge profiles that differ only in their tasks");
            self.report(None, Some("profile"), list.span().start, fault);
            return Vec::new();
        }
        let mut entries = Vec::new();
        for item in items.iter() {
            match item.get_ref().as_table() {
                Some(table) => entries.push(Entry::new(item.span().start, table)),
                None => self.report(None, Some("profile"), item.span().start, not_tables()),
            }
        }
        entries
    }

    fn profile(&mut self, entry: Entry<'_>) -> Option<Profile> {
        self.unknown_keys(entry, &KEYS);
        let domain = self.domain;
        let name = self.required(entry, "name", field::name);
        let path = self.required(entry, "path", |text| field::path(text, domain));
        let owner = self.required(entry, "owner", field::owner);
        let binding = self.optional(entry, "binding", Binding::Process, field::binding);
        let stable = self.optional(entry, "identity", false, field::identity);
        let hint = self.optional(entry, "hint", String::new(), field::hint);
        let x509 = core_limits::X509_TTL_DEFAULT;
        let x509_ttl = self.optional(entry, "x509_ttl", x509, field::ttl);
        let jwt = core_limits::JWT_TTL_DEFAULT;
        let jwt_ttl = self.optional(entry, "jwt_ttl", jwt, field::ttl);
        let task_ttl =
            self.optional(entry, "max_task", None, |text| field::task_ttl(text).map(Some));
        let selectors = self.selectors(entry, binding);
        let federates_with = self.federates_with(entry);
        let bounds = self.bounds(entry);
        if let Some(bounds) = &bounds {
            self.check_lives(entry, bounds.tier, [x509_ttl, jwt_ttl]);
        }
        self.unique(entry, name.as_deref(), hint.as_deref());
        Some(Profile {
            selectors: selectors?,
            terms: Terms {
                profile: name?,
                path: path?,
                owner: owner?,
                binding: binding?,
                stable_identity: stable?,
                x509_ttl: x509_ttl?,
                jwt_ttl: jwt_ttl?,
                task_ttl: task_ttl?,
                hint: hint?,
                federates_with: federates_with?,
                bounds: bounds?,
            },
        })
    }

    fn selectors(
        &mut self,
        entry: Entry<'_>,
        binding: Option<Binding>,
    ) -> Option<BTreeSet<Selector>> {
        let found = self.list(entry, "selectors", limits::SELECTORS_MAX, field::selector)?;
        // An empty conjunction is true of everybody. Only a socket made for one task, which those of a
        // lease have too, is evidence enough by itself; where the binding was not understood, that
        // complaint comes first.
        let own_socket = |binding| matches!(binding, Binding::Socket | Binding::Lease);
        if found.is_empty() && binding.is_some_and(|binding| !own_socket(binding)) {
            let fault = Fault::new(
                "without selectors everybody would match",
                "name at least one, for example \"unix:uid:1000\"; only `binding = \"socket\"` and `\"lease\"` need none",
            );
            self.fault(entry, "selectors", entry.place("selectors"), fault);
            return None;
        }
        let mut selectors = BTreeSet::new();
        let mut single = BTreeMap::new();
        for (at, selector) in found {
            let kind = selector.kind().to_owned();
            if !selectors.insert(selector.clone()) {
                let why = format!("{} comes twice", quote(selector.as_str()));
                self.fault(entry, "selectors", at, Fault::new(why, "remove one"));
            } else if field::is_single(&kind)
                && let Some(first) = single.insert(kind.clone(), selector.clone())
            {
                let why = format!(
                    "{} and {} can match nobody: a caller has one `{kind}`",
                    quote(first.as_str()),
                    quote(selector.as_str())
                );
                let fault = Fault::new(why, "remove one, or write two profiles");
                self.fault(entry, "selectors", at, fault);
            }
        }
        Some(selectors)
    }

    fn federates_with(&mut self, entry: Entry<'_>) -> Option<Vec<TrustDomain>> {
        const KEY: &str = "federates_with";
        let found = self.list(entry, KEY, limits::FEDERATES_MAX, field::trust_domain)?;
        let mut domains: Vec<TrustDomain> = Vec::new();
        for (at, domain) in found {
            let why = if domain == *self.domain {
                Some("is our own trust domain")
            } else if domains.contains(&domain) {
                Some("comes twice")
            } else {
                None
            };
            if let Some(why) = why {
                let why = format!("{} {why}", quote(domain.as_str()));
                self.fault(entry, KEY, at, Fault::new(why, "remove it"));
            }
            domains.push(domain);
        }
        Some(domains)
    }

    /// Names are unique. So are hints: whatever two profiles ask for, some workload may have it all,
    /// and of two equal hints in one answer it could only ever see the first.
    fn unique(&mut self, entry: Entry<'_>, name: Option<&str>, hint: Option<&str>) {
        if let Some(name) = name {
            let at = entry.place("name");
            if let Some(first) = self.names.get(name).copied() {
                let why = format!("the profile of line {} has this name", self.line(first));
                self.fault(entry, "name", at, Fault::new(why, "choose another"));
                return; // A hint that comes twice with its profile is the same mistake.
            }
            self.names.insert(name.into(), at);
        }
        let Some(hint) = hint.filter(|hint| !hint.is_empty()) else {
            return;
        };
        if let Some(first) = self.hints.get(hint) {
            let why = format!("profile `{first}` has the hint {} already", quote(hint));
            let fault =
                Fault::new(why, "choose another: a workload that has both tells them apart by it");
            self.fault(entry, "hint", entry.place("hint"), fault);
        } else {
            let name = entry.name.unwrap_or("without a name");
            self.hints.insert(hint.into(), name.into());
        }
    }

    fn unknown_keys(&mut self, entry: Entry<'_>, keys: &[&str]) {
        for (key, _) in entry.table.iter() {
            let name = key.get_ref().as_ref();
            if keys.contains(&name) {
                continue;
            }
            let remedy = match keys.iter().find(|known| is_near(name, known)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the keys are {}", keys.join(", ")),
            };
            let fault = Fault::new(format!("unknown key {}", quote(name)), remedy);
            self.report(entry.name, None, key.span().start, fault);
        }
    }

    fn required<T>(
        &mut self,
        entry: Entry<'_>,
        key: &'static str,
        check: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        let Some(value) = entry.table.get(key) else {
            self.fault(entry, key, entry.at, Fault::new("it is missing", "add it"));
            return None;
        };
        self.value(entry, key, value, check)
    }

    /// `None` only where something is written and cannot be taken.
    fn optional<T>(
        &mut self,
        entry: Entry<'_>,
        key: &'static str,
        default: T,
        check: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        match entry.table.get(key) {
            None => Some(default),
            Some(value) => self.value(entry, key, value, check),
        }
    }

    fn value<T>(
        &mut self,
        entry: Entry<'_>,
        key: &'static str,
        value: &Spanned<DeValue<'_>>,
        check: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        let checked = match value.get_ref().as_str() {
            Some(text) => check(text),
            None => Err(Fault::new(
                format!("it is {}, not text", value.get_ref().type_str()),
                "write it in quotation marks",
            )),
        };
        match checked {
            Ok(value) => Some(value),
            Err(fault) => {
                self.fault(entry, key, value.span().start, fault);
                None
            }
        }
    }

    /// The good items of a list with their places, the bad ones reported; absent is empty. `None`
    /// where there is no list or any item is bad.
    fn list<T>(
        &mut self,
        entry: Entry<'_>,
        key: &'static str,
        most: usize,
        check: impl Fn(&str) -> Result<T, Fault>,
    ) -> Option<Vec<(usize, T)>> {
        match entry.table.get(key) {
            None => Some(Vec::new()),
            Some(value) => self.items(entry, (key, value), most, check),
        }
    }

    fn items<T>(
        &mut self,
        entry: Entry<'_>,
        (key, value): (&'static str, &Spanned<DeValue<'_>>),
        most: usize,
        check: impl Fn(&str) -> Result<T, Fault>,
    ) -> Option<Vec<(usize, T)>> {
        let at = value.span().start;
        let Some(items) = value.get_ref().as_array() else {
            let why = format!("it is {}, not a list", value.get_ref().type_str());
            let fault = Fault::new(why, "write it in square brackets");
            self.fault(entry, key, at, fault);
            return None;
        };
        if items.len() > most {
            let fault = Fault::new("the list is too long", format!("use at most {most} items"));
            self.fault(entry, key, at, fault);
            return None;
        }
        let checked: Vec<_> = items
            .iter()
            .map(|item| {
                self.value(entry, key, item, &check).map(|value| (item.span().start, value))
            })
            .collect();
        checked.into_iter().collect()
    }

    fn fault(&mut self, entry: Entry<'_>, key: &'static str, at: usize, fault: Fault) {
        self.report(entry.name, Some(key), at, fault);
    }

    fn report(&mut self, profile: Option<&str>, field: Option<&str>, at: usize, fault: Fault) {
        if self.problems.len() == limits::PROBLEMS_MAX {
            self.untold += 1;
            return;
        }
        let shown = |name: &str| quote(name).trim_matches('`').to_owned();
        self.problems.push(Problem {
            line: self.line(at),
            profile: profile.map(shown),
            field: field.map(Into::into),
            why: fault.why,
            remedy: fault.remedy,
        });
    }

    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().iter().take(at);
        1 + before.filter(|byte| **byte == b'\n').count()
    }
}

/// Whether `typed` is `known` but for one letter more, less or other, or a neighbour swap, or `-` for
/// `_`.
pub(crate) fn is_near(typed: &str, known: &str) -> bool {
    let typed: Vec<u8> =
        typed.bytes().map(|b| if b == b'-' { b'_' } else { b.to_ascii_lowercase() }).collect();
    let known = known.as_bytes();
    let front = typed.iter().zip(known).take_while(|(a, b)| a == b).count();
    let (a, b) = (typed.get(front..).unwrap_or(&[]), known.get(front..).unwrap_or(&[]));
    let back = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    let (left_a, left_b) = (a.len() - back, b.len() - back);
    match (a.get(..left_a), b.get(..left_b)) {
        (Some([x, y]), Some([u, v])) => x == v && y == u,
        _ => left_a <= 1 && left_b <= 1,
    }
}
