//! What is due, and when.

use super::Timer;
use crate::{id::TaskId, time::Timestamp};

/// A timer of one task. Sorted by its instant, which is written so that octets sort like numbers: there may be
/// millions, and so none has a gap in it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Due {
    at: [u8; 8],
    pub(super) timer: Timer,
    pub(super) task: TaskId,
}

impl Due {
    pub(super) const fn new(at: Timestamp, timer: Timer, task: TaskId) -> Self {
        Self { at: at.0.to_be_bytes(), timer, task }
    }

    pub(super) const fn at(&self) -> Timestamp {
        Timestamp(u64::from_be_bytes(self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_sorts_by_its_instant_and_has_no_gaps() {
        let due = |at| Due::new(Timestamp(at), Timer::Lease, TaskId::from_bytes([0; 16]));
        for (earlier, later) in [(0, 1), (255, 256), (1 << 40, u64::MAX)] {
            assert!(due(earlier) < due(later));
            assert_eq!(due(later).at(), Timestamp(later));
        }
        assert_eq!(size_of::<Due>(), 25);
    }
}
