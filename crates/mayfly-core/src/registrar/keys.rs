//! Which task a wish began that must not be carried out twice.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use crate::id::TaskId;

/// What a wish's key is looked for by. Its task knows the whole of it, and a million keys are worth a
/// moment of looking twice.
pub(super) type Start = [u8; 8];

/// Tasks by the start of the key of the wish that began them.
#[derive(Debug, Default)]
pub(super) struct Keys {
    first: BTreeMap<Start, TaskId>,
    /// Those whose keys begin like that of another: nobody has any by chance.
    alike: BTreeSet<(Start, TaskId)>,
    /// What is noted while nobody asks.
    later: Option<Vec<(Start, TaskId)>>,
}

impl Keys {
    /// The start of a key.
    pub(super) fn start_of(key: &[u8; 32]) -> Start {
        key.first_chunk().copied().unwrap_or_default()
    }

    /// The tasks whose keys begin like this.
    pub(super) fn of(&self, start: Start) -> impl Iterator<Item = TaskId> {
        let (first, last) = (TaskId::from_bytes([0; 16]), TaskId::from_bytes([u8::MAX; 16]));
        let alike = self.alike.range((start, first)..=(start, last)).map(|(_, id)| *id);
        self.first.get(&start).copied().into_iter().chain(alike)
    }

    /// Notes a task; those before it that are its `same` wish's are not found any more.
    pub(super) fn insert(&mut self, start: Start, id: TaskId, same: impl Fn(TaskId) -> bool) {
        if let Some(later) = &mut self.later {
            return later.push((start, id));
        }
        let held = self.first.entry(start).or_insert(id);
        if *held == id {
            return;
        }
        if same(*held) {
            *held = id;
            return;
        }
        self.alike.retain(|(other, before)| *other != start || !same(*before));
        self.alike.insert((start, id));
    }

    /// From here to [`Self::settle`] nobody asks, as in a replay: a million keys in any order are a million
    /// ways through a tree, and sorted they are one.
    pub(super) fn defer(&mut self) {
        self.later = Some(Vec::new());
    }

    /// Puts what was noted in order; `same` says whether two tasks were begun by one wish.
    pub(super) fn settle(&mut self, same: impl Fn(TaskId, TaskId) -> bool) {
        let mut later = self.later.take().unwrap_or_default();
        // Stable: of those that begin alike the later comes later.
        later.sort_by_key(|(start, _)| *start);
        let is_alike = |pair: &[(Start, TaskId)]| matches!(pair, [one, next] if one.0 == next.0);
        if later.windows(2).any(is_alike) {
            for (start, id) in later {
                self.insert(start, id, |before| same(before, id));
            }
        } else {
            self.first = later.into_iter().collect();
        }
    }

    /// Forgets a task, if it is noted.
    pub(super) fn remove(&mut self, start: Start, id: TaskId) {
        self.alike.remove(&(start, id));
        if self.first.get(&start) == Some(&id) {
            self.first.remove(&start);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    const fn task(number: u128) -> TaskId {
        TaskId::from_bytes(number.to_be_bytes())
    }

    fn found(keys: &Keys, start: Start) -> Vec<TaskId> {
        keys.of(start).collect()
    }

    #[test]
    fn keys_that_begin_alike_are_all_found() {
        let mut keys = Keys::default();
        for number in 1..=3 {
            keys.insert([7; 8], task(number), |_| false);
        }
        keys.insert([8; 8], task(4), |_| false);
        assert_eq!(found(&keys, [7; 8]), vec![task(1), task(2), task(3)]);
        keys.remove([7; 8], task(1));
        assert_eq!(found(&keys, [7; 8]), vec![task(2), task(3)], "also without the first");
        keys.insert([7; 8], task(5), |_| false);
        keys.remove([7; 8], task(2));
        assert_eq!(found(&keys, [7; 8]), vec![task(5), task(3)]);
    }

    #[test]
    fn what_is_put_off_comes_out_as_if_it_were_not() {
        let all = [(7, 1), (3, 2), (7, 3), (5, 4), (7, 5)];
        for some in (0..=all.len()).filter_map(|count| all.get(..count)) {
            let same = |one: TaskId, other: TaskId| (one, other) == (task(1), task(3));
            let (mut at_once, mut later) = (Keys::default(), Keys::default());
            later.defer();
            for (start, id) in some.iter().map(|(start, id)| ([*start; 8], task(*id))) {
                at_once.insert(start, id, |before| same(before, id));
                later.insert(start, id, |_| false);
            }
            later.settle(same);
            for start in 0..9 {
                assert_eq!(found(&later, [start; 8]), found(&at_once, [start; 8]));
            }
        }
    }

    #[test]
    fn a_wish_that_began_another_task_is_that_ones() {
        let mut keys = Keys::default();
        keys.insert([7; 8], task(1), |_| false);
        keys.insert([7; 8], task(2), |before| before == task(1));
        assert_eq!(found(&keys, [7; 8]), vec![task(2)]);
        keys.insert([7; 8], task(3), |_| false);
        keys.insert([7; 8], task(4), |before| before == task(3));
        assert_eq!(found(&keys, [7; 8]), vec![task(2), task(4)]);
        keys.remove([7; 8], task(3));
        assert_eq!(found(&keys, [7; 8]), vec![task(2), task(4)], "what is not noted is not missed");
    }
}
