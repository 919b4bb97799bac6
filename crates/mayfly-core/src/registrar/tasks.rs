//! All tasks that are remembered, by name.

use alloc::{boxed::Box, collections::BTreeMap};
use core::ops::Bound;

use crate::{id::TaskId, task::Task};

/// A map of tasks. They stand in boxes, because a tree's nodes are a third empty and tasks are large: with
/// a million of them the difference is hundreds of megabytes.
#[derive(Debug, Default)]
pub(super) struct Tasks(BTreeMap<TaskId, Box<Task>>);

impl Tasks {
    pub(super) fn get(&self, id: &TaskId) -> Option<&Task> {
        self.0.get(id).map(|task| &**task)
    }

    pub(super) fn get_mut(&mut self, id: &TaskId) -> Option<&mut Task> {
        self.0.get_mut(id).map(|task| &mut **task)
    }

    pub(super) fn contains_key(&self, id: &TaskId) -> bool {
        self.0.contains_key(id)
    }

    pub(super) fn insert(&mut self, task: Task) {
        self.0.insert(task.id, Box::new(task));
    }

    pub(super) fn remove(&mut self, id: &TaskId) {
        self.0.remove(id);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Task> {
        self.0.values().map(|task| &**task)
    }

    /// Those behind `last` in the order of their names.
    pub(super) fn after(&self, last: Option<TaskId>) -> impl Iterator<Item = &Task> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        self.0.range((from, Bound::Unbounded)).map(|(_, task)| &**task)
    }
}
