//! Terms that many tasks have in common, kept once.

use alloc::{collections::BTreeMap, string::String, sync::Arc, vec::Vec};

use crate::task::Terms;

/// Different terms of one profile that are looked through: its editions, and owners that were named
/// apart from it. Whatever is not among these is kept by its task alone.
const PER_PROFILE_MAX: usize = 8;

/// Terms by the name of their profile, the newest last. Holds nothing that no task holds, but for as long
/// as nobody looks.
#[derive(Debug, Default)]
pub(super) struct SharedTerms(BTreeMap<String, Vec<Arc<Terms>>>);

impl SharedTerms {
    /// The same terms, shared with the tasks that have them already.
    pub(super) fn of(&mut self, terms: &Arc<Terms>) -> Arc<Terms> {
        let Some(known) = self.0.get_mut(&terms.profile) else {
            self.0.insert(terms.profile.clone(), [Arc::clone(terms)].into());
            return Arc::clone(terms);
        };
        let is_same = |one: &&Arc<Terms>| Arc::ptr_eq(one, terms) || *one == terms;
        if let Some(same) = known.iter().rev().find(is_same) {
            return Arc::clone(same);
        }
        known.retain(|one| Arc::strong_count(one) > 1);
        if known.len() >= PER_PROFILE_MAX {
            known.remove(0);
        }
        known.push(Arc::clone(terms));
        Arc::clone(terms)
    }

    /// Lets go of what no task has any more: profiles that are gone.
    pub(super) fn forget(&mut self) {
        self.0.retain(|_, known| {
            known.retain(|one| Arc::strong_count(one) > 1);
            !known.is_empty()
        });
    }
}
