//! Who may be accountable beside the owners that profiles name, and who takes over from whom.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Spanned, de::DeTable, de::DeValue};

use super::{Entry, Reader};
use crate::{
    field::{self, Fault, quote},
    limits,
    owners::Owners,
    profiles::Profile,
};

impl Reader<'_> {
    /// Reads `owners` and `[transfers]`, and holds them to the profiles.
    pub(super) fn owners(&mut self, document: &DeTable<'_>, profiles: &[Profile]) -> Owners {
        let top = Entry { name: None, at: 0, table: document };
        let found = self.list(top, "owners", limits::OWNERS_MAX, field::owner).unwrap_or_default();
        let mut listed = BTreeSet::new();
        for (at, owner) in found {
            if !listed.insert(owner.clone()) {
                let why = format!("{} comes twice", quote(&owner));
                self.fault(top, "owners", at, Fault::new(why, "remove one"));
            }
        }
        let mut owners = Owners { listed, transfers: BTreeMap::new() };
        if let Some(value) = document.get("transfers") {
            self.transfers(top, value, (&mut owners, profiles));
        }
        owners
    }

    fn transfers(
        &mut self,
        top: Entry<'_>,
        value: &Spanned<DeValue<'_>>,
        (owners, profiles): (&mut Owners, &[Profile]),
    ) {
        const KEY: &str = "transfers";
        let at = value.span().start;
        let Some(table) = value.get_ref().as_table() else {
            let why = format!("it is {}, not a table", value.get_ref().type_str());
            let remedy = "write `[transfers]` and below it \"old\" = \"new\"";
            return self.fault(top, KEY, at, Fault::new(why, remedy));
        };
        if table.len() > limits::OWNERS_MAX {
            let remedy = format!("use at most {}", limits::OWNERS_MAX);
            return self.fault(top, KEY, at, Fault::new("there are too many", remedy));
        }
        let is_known = |name: &str| {
            owners.listed.contains(name) || profiles.iter().any(|p| p.terms.owner == name)
        };
        let mut transfers = BTreeMap::new();
        for (key, value) in table.iter() {
            let old = key.get_ref().as_ref();
            let Some(new) = self.value(top, KEY, value, field::owner) else { continue };
            let at = key.span().start;
            if is_known(old) {
                let why = format!("{} is an owner still", quote(old));
                let remedy = "take it out of `owners` and the profiles, or remove the transfer";
                self.fault(top, KEY, at, Fault::new(why, remedy));
            } else if !is_known(&new) {
                let why = format!("{} is no owner", quote(&new));
                let remedy = "name an owner of a profile, or add it to `owners`";
                self.fault(top, KEY, value.span().start, Fault::new(why, remedy));
            } else {
                transfers.insert(old.to_owned(), new);
            }
        }
        owners.transfers = transfers;
    }
}
