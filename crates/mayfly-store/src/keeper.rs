//! The keeper: a thread that brings the sentinel and the index up to what is durable.
//!
//! It reads records back from the log instead of being sent them. So the committer never waits for
//! it, no queue can fill, and what was written is read once more soon after.
//!
//! It comes once a second, or when there is much to do: nobody but the next start reads the index, and
//! a fold of a hundred records costs sled little more than a fold of ten.

use std::{
    collections::VecDeque,
    io, iter,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{Builder, JoinHandle},
    time::Duration,
};

use mayfly_audit::{Chain, Entry, Reader};
use mayfly_core::{Sequence, Shard, TaskId};

use crate::{
    compaction::Compaction,
    index::{Index, IndexError, guarded},
    priority::step_back,
    sentinel::{Sentinel, SentinelFile},
};

/// Commits after which the sentinel follows.
const COMMITS_MAX: u32 = 256;
/// How far sentinel and index may be behind, in time.
const LAG_MAX: Duration = Duration::from_secs(1);
/// Nobody waits for what is done here, and a fold of a second's records takes a core for so long that callers
/// would feel it. Of 19, and no more: whoever waits for the letter box while this thread holds it must not wait for long.
const NICE: i32 = 10;
/// Records folded in one round, and how many may wait for it.
const CHUNK: usize = 4096;
/// Forgotten tasks that wait for the index, also while it is written anew: seven minutes of 2,400 a second, in
/// less than the tasks took. What does not fit is forgotten again after a restart.
const FORGETS_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
struct Mail {
    durable: Sequence,
    chain: Chain,
    commits: u32,
    /// What core has forgotten, and how far the journal was then.
    forgets: VecDeque<(Sequence, TaskId)>,
    is_stopped: bool,
}

impl Mail {
    fn forget(&mut self, task: TaskId) {
        if self.forgets.len() < FORGETS_MAX {
            self.forgets.push_back((self.durable, task));
        }
    }

    /// What the index may drop: it has to stand where the forgetting was heard of. Where records never stop
    /// coming it never stands at the journal's end.
    fn ripe(&mut self, indexed: Option<Sequence>) -> Vec<TaskId> {
        let is_ripe = |(at, _): &(Sequence, TaskId)| indexed.is_none_or(|indexed| *at <= indexed);
        let count = self.forgets.iter().take_while(|forget| is_ripe(forget)).count();
        self.forgets.drain(..count).map(|(_, task)| task).collect()
    }
}

/// The keeper's letter box.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    mail: Mutex<Mail>,
    wake: Condvar,
    indexed: Mutex<Option<Sequence>>,
}

impl Desk {
    fn mail(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the index is; `None` once it is stale and left to the next start.
    pub(crate) fn indexed(&self) -> Option<Sequence> {
        *self.indexed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_indexed(&self, to: Option<Sequence>) {
        *self.indexed.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }

    /// Whether something cannot wait for the keeper's next round.
    fn is_urgent(&self, mail: &Mail) -> bool {
        let behind = self.indexed().map_or(0, |indexed| mail.durable.0.saturating_sub(indexed.0));
        mail.is_stopped || mail.commits >= COMMITS_MAX || behind >= CHUNK as u64
    }

    pub(crate) fn forget(&self, task: TaskId) {
        self.mail().forget(task);
    }
}

/// What the keeper works with.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) shard: Shard,
    pub(crate) sentinel: SentinelFile,
    pub(crate) reader: Reader,
    /// `None` if no index could be made; the log alone is enough.
    pub(crate) index: Option<Index>,
    /// What stands between the index and where the reader begins.
    pub(crate) backlog: VecDeque<Entry>,
}

impl Tools {
    /// Brings the sentinel, which stands `at`, to what is durable.
    fn follow(&self, at: &mut Sequence, sequence: Sequence, chain: Chain) {
        if sequence <= *at {
            return;
        }
        let sentinel = Sentinel { shard: self.shard, sequence, chain };
        // The log is the truth and goes on; a restored backup is only noticed from further back.
        if let Err(error) = self.sentinel.write(&sentinel) {
            tracing::warn!(%error, "the sentinel could not be written");
        }
        *at = sequence;
    }
}

/// The running thread. Dropping it stops it, after it has caught up.
#[derive(Debug)]
pub(crate) struct Keeper {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts after `durable`, up to which the sentinel is, and the index with its backlog.
    pub(crate) fn start(
        tools: Tools,
        compaction: Compaction,
        durable: Sequence,
        chain: Chain,
    ) -> io::Result<Self> {
        let desk = Arc::new(Desk::default());
        desk.set_indexed(tools.index.as_ref().map(Index::position));
        *desk.mail() = Mail { durable, chain, ..Mail::default() };
        let at_desk = Arc::clone(&desk);
        let mut work = Work { tools, compaction, desk: at_desk, sentinel_at: durable };
        let thread = Builder::new().name("keeper".into()).spawn(move || {
            step_back(NICE);
            work.run();
        })?;
        Ok(Self { desk, thread: Some(thread) })
    }

    pub(crate) fn desk(&self) -> Arc<Desk> {
        Arc::clone(&self.desk)
    }

    /// Tells what has become durable.
    pub(crate) fn tell(&self, durable: Sequence, chain: Chain) {
        let mut mail = self.desk.mail();
        mail.durable = durable;
        mail.chain = chain;
        mail.commits = mail.commits.saturating_add(1);
        if self.desk.is_urgent(&mail) {
            self.desk.wake.notify_one();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.desk.mail().is_stopped = true;
        self.desk.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the keeper panicked; sentinel and index are left to the next start");
        }
    }
}

struct Work {
    tools: Tools,
    compaction: Compaction,
    desk: Arc<Desk>,
    sentinel_at: Sequence,
}

impl Work {
    fn run(&mut self) {
        loop {
            let is_due = self.wait();
            let mut mail = self.desk.mail();
            let is_due = is_due || mail.is_stopped || mail.commits >= COMMITS_MAX;
            if is_due {
                mail.commits = 0;
            }
            let (durable, chain, is_stopped) = (mail.durable, mail.chain, mail.is_stopped);
            let forgets = mail.ripe(self.desk.indexed());
            drop(mail);
            if is_due {
                self.tools.follow(&mut self.sentinel_at, durable, chain);
            }
            self.index(durable, &forgets);
            if !is_stopped {
                self.compact();
            }
            if is_stopped && self.desk.indexed().is_none_or(|indexed| indexed >= durable) {
                break;
            }
        }
        if let Some(index) = &self.tools.index {
            // For a faster next start only.
            if let Err(error) = guarded(|| index.flush()) {
                tracing::warn!(%error, "the index could not be flushed");
            }
        }
    }

    /// Waits for the next round, or for something that cannot; `true` if it is the round.
    fn wait(&self) -> bool {
        let (mail, is_calm) = (self.desk.mail(), |mail: &mut Mail| !self.desk.is_urgent(mail));
        let woken = self.desk.wake.wait_timeout_while(mail, LAG_MAX, is_calm);
        woken.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn index(&mut self, durable: Sequence, forgets: &[TaskId]) {
        let Tools { index: slot @ Some(_), reader, backlog, .. } = &mut self.tools else {
            return;
        };
        let result = guarded(|| {
            let Some(index) = slot.as_mut() else {
                return Ok(None);
            };
            let next =
                || reader.next(durable).map_err(|error| error.to_string().into()).transpose();
            let late = backlog.drain(..backlog.len().min(CHUNK)).map(Ok);
            index.apply(late.chain(iter::from_fn(next)).take(CHUNK))?;
            if backlog.is_empty() {
                backlog.shrink_to_fit();
            }
            index.forget(forgets)?;
            Ok(Some(index.position()))
        });
        match result {
            Ok(position) => self.desk.set_indexed(position),
            Err(error) => self.give_up(&error),
        }
    }

    /// Writes the index anew if that is due. What comes meanwhile waits in the log; the sentinel does not.
    fn compact(&mut self) {
        let Self { tools, compaction, desk, sentinel_at } = self;
        let Some(index) = tools.index.take_if(|index| compaction.is_due(index)) else {
            return;
        };
        let mut go_on = || {
            let mail = desk.mail();
            let (durable, chain, is_stopped) = (mail.durable, mail.chain, mail.is_stopped);
            drop(mail);
            tools.follow(sentinel_at, durable, chain);
            !is_stopped
        };
        match guarded(|| compaction.run(index, &mut go_on)) {
            Ok(index) => tools.index = Some(index),
            Err(error) => self.give_up(&error),
        }
    }

    fn give_up(&mut self, error: &IndexError) {
        tracing::warn!(%error, "the index is stale and will be rebuilt at the next start");
        self.tools.index = None;
        self.tools.backlog = VecDeque::new();
        self.desk.set_indexed(None);
    }
}

#[cfg(test)]
mod tests {
    use mayfly_audit::Log;

    use super::*;
    use crate::{compaction::tests::grown, sentinel::Found};

    #[test]
    fn what_core_has_forgotten_goes_though_records_never_stop_coming() {
        let task = |name| TaskId::from_bytes([name; 16]);
        let mut mail = Mail { durable: Sequence(5), ..Mail::default() };
        mail.forget(task(1));
        mail.durable = Sequence(9);
        mail.forget(task(2));
        mail.durable = Sequence(14);
        assert_eq!(mail.ripe(Some(Sequence(4))), [], "it may still be told of them");
        assert_eq!(mail.ripe(Some(Sequence(8))), [task(1)]);
        assert_eq!(mail.ripe(Some(Sequence(13))), [task(2)]);
        mail.forget(task(3));
        assert_eq!(mail.ripe(None), [task(3)], "without an index nothing is kept for it");
    }

    #[test]
    fn a_stop_is_heard_while_the_index_is_written_anew_and_the_sentinel_follows() {
        let (dir, index, compaction) = grown();
        let recovery = Log::recover(dir.path(), Shard(0), Sequence(0), |_| {}).unwrap();
        let log = recovery.open(Log::SEGMENT_BYTES).unwrap();
        let tools = Tools {
            shard: Shard(0),
            sentinel: SentinelFile::new(dir.path()),
            reader: Reader::new(dir.path(), log.cursor()),
            index: Some(index),
            backlog: VecDeque::new(),
        };
        let desk = Arc::new(Desk::default());
        *desk.mail() = Mail { durable: Sequence(9), is_stopped: true, ..Mail::default() };
        let sentinel_at = Sequence(0);
        let mut work = Work { tools, compaction, desk, sentinel_at };
        work.compact();
        // Its size says nothing: sled gives some of it back when it likes.
        let is_due = |work: &Work| work.compaction.is_due(work.tools.index.as_ref().unwrap());
        assert!(is_due(&work), "it was given up, and has not failed");
        let sentinel = work.tools.sentinel.read().unwrap();
        assert!(matches!(sentinel, Found::Sentinel(Sentinel { sequence: Sequence(9), .. })));
        work.desk.mail().is_stopped = false;
        work.compact();
        assert!(!is_due(&work), "it was written anew");
    }
}
