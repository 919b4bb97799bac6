//! How many of something there may be at once, in all and of one user: a number on this machine, an
//! address elsewhere.
//!
//! The two bounds differ so that one user who takes all that he may still leaves room for others.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// A number of seats, shared by all users.
#[derive(Debug)]
pub struct Quota<U = u32> {
    max: usize,
    per_user_max: usize,
    taken: Mutex<BTreeMap<U, usize>>,
}

impl<U: Copy + Ord> Quota<U> {
    /// So many seats in all, and so many for one user.
    #[must_use]
    pub fn new(max: usize, per_user_max: usize) -> Arc<Self> {
        Arc::new(Self { max, per_user_max, taken: Mutex::default() })
    }

    /// Takes a seat for `user`, or `None` when the user or the house is full.
    #[must_use]
    pub fn take(self: &Arc<Self>, user: U) -> Option<Seat<U>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        // Users with a seat are few, so the sum is cheap; a second counter could drift.
        let all: usize = taken.values().sum();
        let own = taken.get(&user).copied().unwrap_or(0);
        if all >= self.max || own >= self.per_user_max {
            return None;
        }
        taken.insert(user, own + 1);
        Some(Seat { quota: Arc::clone(self), user })
    }

    /// How many seats are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }
}

/// A seat, given back when it is dropped.
#[derive(Debug)]
pub struct Seat<U: Copy + Ord = u32> {
    quota: Arc<Quota<U>>,
    user: U,
}

impl<U: Copy + Ord> Drop for Seat<U> {
    fn drop(&mut self) {
        let mut taken = self.quota.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get(&self.user).copied() {
            Some(own) if own > 1 => drop(taken.insert(self.user, own - 1)),
            _ => drop(taken.remove(&self.user)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greedy_user_leaves_room_for_others_and_seats_come_back() {
        let quota = Quota::new(3, 2);
        let greedy: Vec<_> = (0..3).map(|_| quota.take(1)).collect();
        assert_eq!(greedy.iter().flatten().count(), 2);
        let other = quota.take(2);
        assert!(other.is_some() && quota.take(3).is_none());
        drop(greedy);
        assert_eq!(quota.taken(), 1);
        assert!(quota.take(3).is_some());
    }
}
