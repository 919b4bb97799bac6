//! What has become of tasks, for whoever watches: posted when it is on disk, and not before.
//!
//! The driver writes what it orders on its side; a change is seen when the journal says that its record,
//! and everything that the task shown with it rests on, is durable. Nobody who watches can slow the driver
//! down: who falls behind is told so and starts over.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, OnceLock},
};

use mayfly_core::{Denial, Event, Record, Registrar, Sequence, Task, TaskId};
use tokio::sync::{broadcast, watch};

/// Changes that one who watches may be behind.
const CHANGES_MAX: usize = 16_384;
/// Changes that may wait for the disk. More is a gap, and whoever watches starts over.
const WAITING_MAX: usize = 65_536;

/// One change of one task.
#[derive(Clone, Debug)]
pub struct Change {
    /// The task as it is with everything that was ordered together with this.
    pub task: Arc<(Task, Vec<TaskId>)>,
    /// The word for the record that changed it.
    pub word: &'static str,
    /// Where that record stands.
    pub position: Sequence,
}

/// What is posted.
#[derive(Clone, Debug)]
pub enum Posted {
    /// Something changed.
    Change(Change),
    /// Something changed that there was no room to tell.
    Gap,
}

#[derive(Clone, Copy, Debug)]
struct Durable {
    upto: Sequence,
    gone: Option<Denial>,
}

/// The side of those who watch.
#[derive(Debug)]
pub struct Board {
    /// Made for the first who watches: its slots are made at once, a megabyte of them.
    posts: OnceLock<broadcast::Sender<Posted>>,
    durable: watch::Sender<Durable>,
}

impl Board {
    /// A board on which nothing is posted, and the driver's side of it. Everything up to `upto` is durable.
    #[must_use]
    pub fn new(upto: Sequence) -> (Arc<Self>, Poster) {
        let posts = OnceLock::new();
        let durable = watch::Sender::new(Durable { upto, gone: None });
        let board = Arc::new(Self { posts, durable });
        let waiting = VecDeque::new();
        (Arc::clone(&board), Poster { board, waiting })
    }

    /// Everything that is ordered from here on, once it is durable.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Posted> {
        self.posts.get_or_init(|| broadcast::Sender::new(CHANGES_MAX)).subscribe()
    }

    fn is_watched(&self) -> bool {
        self.posts.get().is_some_and(|posts| posts.receiver_count() > 0)
    }

    fn post(&self, post: Posted) {
        if let Some(posts) = self.posts.get() {
            // Those who watched may have left.
            drop(posts.send(post));
        }
    }

    /// Waits until everything up to `at` is on disk.
    ///
    /// # Errors
    /// `JournalFailed` or `NotServing`, when it never will be.
    pub async fn durable(&self, at: Sequence) -> Result<(), Denial> {
        let mut durable = self.durable.subscribe();
        let settled = durable.wait_for(|now| now.upto >= at || now.gone.is_some()).await;
        let settled = settled.map_err(|_closed| Denial::NotServing)?;
        if settled.upto >= at { Ok(()) } else { Err(settled.gone.unwrap_or(Denial::NotServing)) }
    }
}

/// The driver's side.
#[derive(Debug)]
pub struct Poster {
    board: Arc<Board>,
    /// With the last record of its batch, which the task that is shown rests on.
    waiting: VecDeque<(Sequence, Posted)>,
}

impl Poster {
    /// Writes down what is ordered, if anybody watches.
    pub fn ordered(&mut self, registrar: &Registrar, records: &[(Sequence, Record)]) {
        let Some((last, _)) = records.last() else { return };
        if !self.board.is_watched() {
            return;
        }
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.clear();
            self.waiting.push_back((*last, Posted::Gap));
            return;
        }
        let mut seen = BTreeMap::new();
        for (position, record) in records {
            let id = record.fact.task();
            let Some(task) = id.and_then(|id| registrar.task(id)) else { continue };
            let shown = seen.entry(task.id).or_insert_with(|| {
                let above = registrar.line_of(task.id).skip(1).map(|task| task.id).collect();
                Arc::new((task.clone(), above))
            });
            let (task, word) = (Arc::clone(shown), mayfly_serve::asking::word(&record.fact));
            let change = Change { task, word, position: *position };
            self.waiting.push_back((*last, Posted::Change(change)));
        }
    }

    /// Posts what has become durable.
    pub fn hear(&mut self, event: &Event) {
        if let Event::Journaled { upto } = event {
            self.board.durable.send_modify(|durable| durable.upto = *upto);
            while self.waiting.front().is_some_and(|(at, _)| at <= upto)
                && let Some((_, post)) = self.waiting.pop_front()
            {
                self.board.post(post);
            }
        } else if *event == Event::JournalFailed {
            self.leave(Denial::JournalFailed);
        }
    }

    fn leave(&self, why: Denial) {
        self.board.durable.send_modify(|durable| durable.gone = Some(why));
        self.board.post(Posted::Gap);
    }
}

impl Drop for Poster {
    fn drop(&mut self) {
        self.leave(Denial::NotServing);
    }
}
