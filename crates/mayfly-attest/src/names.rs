//! Names of users and groups, asked rarely.
//!
//! The name service may be a directory on the network. It is asked on a blocking thread, and an
//! answer serves for a minute.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use mayfly_core::time::{Span, Timestamp};
use nix::unistd::{Gid, Group, Uid, User};
use tokio::task::spawn_blocking;

/// How long an answer serves.
const FRESH: Span = Span::from_secs(60);
/// Answers kept; beyond that, names are asked each time.
const ENTRIES_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Account {
    User(u32),
    Group(u32),
}

impl Account {
    /// Blocks. No name is an answer too, and so is a name service that is down: less evidence.
    fn ask(self) -> Option<String> {
        match self {
            Self::User(uid) => User::from_uid(Uid::from_raw(uid)).ok()?.map(|user| user.name),
            Self::Group(gid) => Group::from_gid(Gid::from_raw(gid)).ok()?.map(|group| group.name),
        }
    }
}

/// A bounded, short memory of account names.
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: Mutex<BTreeMap<Account, (Option<String>, Timestamp)>>,
}

impl Names {
    /// The names of a user and of a group.
    pub(crate) async fn of(
        &self,
        uid: u32,
        gid: u32,
        now: Timestamp,
    ) -> (Option<String>, Option<String>) {
        let (user, group) = (Account::User(uid), Account::Group(gid));
        if let (Some(user), Some(group)) = (self.fresh(user, now), self.fresh(group, now)) {
            return (user, group);
        }
        // A lookup that panicked gave no name, and is not remembered.
        let Ok(found) = spawn_blocking(move || (user.ask(), group.ask())).await else {
            return (None, None);
        };
        self.keep(user, &found.0, now);
        self.keep(group, &found.1, now);
        found
    }

    fn fresh(&self, account: Account, now: Timestamp) -> Option<Option<String>> {
        let known = self.known();
        let (name, asked) = known.get(&account)?;
        // An answer from the future was given before the clock was set back.
        (*asked <= now && now.since(*asked) < FRESH).then(|| name.clone())
    }

    fn keep(&self, account: Account, name: &Option<String>, now: Timestamp) {
        let mut known = self.known();
        if known.len() >= ENTRIES_MAX {
            known.retain(|_, (_, asked)| *asked <= now && now.since(*asked) < FRESH);
        }
        if known.len() < ENTRIES_MAX {
            known.insert(account, (name.clone(), now));
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Account, (Option<String>, Timestamp)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
