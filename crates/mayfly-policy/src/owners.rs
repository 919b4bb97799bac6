//! Who is accountable.

use std::collections::{BTreeMap, BTreeSet};

/// What a file says of owners beside those that its profiles name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Owners {
    /// Owners that orchestrators may name.
    pub(crate) listed: BTreeSet<String>,
    /// Who takes the tasks of whom: the old owner, then the new one.
    pub(crate) transfers: BTreeMap<String, String>,
}
