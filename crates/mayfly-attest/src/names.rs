//! Names of users and groups, asked rarely.
//!
//! The name service may be a directory on the network. It is asked on a blocking thread, and an
//! answer serves for a minute.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mayfly_core::time::{Span, Timestamp};
use nix::unistd::{Gid, Group, Uid, User};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

/// How long an answer serves.
const FRESH: Span = Span::from_secs(60);
/// How long a caller waits for its names before it is judged without them.
const PATIENCE: Duration = Duration::from_secs(2);
/// Threads that ask at the same time.
const ASKERS_MAX: usize = 4;
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
#[derive(Debug)]
pub(crate) struct Names {
    known: Mutex<BTreeMap<Account, (Option<String>, Timestamp)>>,
    askers: Arc<Semaphore>,
}

impl Names {
    pub(crate) fn new() -> Self {
        Self { known: Mutex::default(), askers: Arc::new(Semaphore::new(ASKERS_MAX)) }
    }

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
        // Nothing found in time is no evidence, and is not remembered.
        let Ok(Some(found)) = timeout(PATIENCE, self.ask(user, group)).await else {
            return (None, None);
        };
        self.keep(user, &found.0, now);
        self.keep(group, &found.1, now);
        found
    }

    async fn ask(&self, user: Account, group: Account) -> Option<(Option<String>, Option<String>)> {
        let turn = Arc::clone(&self.askers).acquire_owned().await.ok()?;
        let found = spawn_blocking(move || {
            // A name service that hangs keeps these few threads, however many callers give up.
            let _turn = turn;
            (user.ask(), group.ask())
        });
        found.await.ok()
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
