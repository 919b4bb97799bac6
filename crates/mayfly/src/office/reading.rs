//! Reading tasks: one, some in order, or all that match and every change of one.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use futures_util::stream;
use mayfly_core::{Act, Denial, Principal, Registrar, Sequence, Task, TaskId};
use mayfly_policy::{Rights, rights};
use mayfly_serve::{
    asking::{Asker, Found, Object, Query, Seen, Watching},
    office::Refusal,
};
use tokio::sync::broadcast::{self, error::RecvError};

use super::LocalOffice;
use crate::board::{Change, Posted};

/// Tasks that are looked at in one turn of the driver. Nobody waits long for a long listing.
const SCAN_MAX: usize = 4096;
/// Behind every task.
const LAST: TaskId = TaskId::from_bytes([0xff; 16]);

/// What somebody may read.
#[derive(Clone, Debug)]
struct Readable {
    everything: bool,
    rights: Arc<Rights>,
    principal: Principal,
    /// Tasks that the caller stands for.
    held: Vec<TaskId>,
}

impl Readable {
    fn holds(&self, task: &Task, above: &[TaskId]) -> bool {
        let object = rights::Object::Profile { name: &task.terms.profile, path: &task.terms.path };
        self.everything
            || self.held.contains(&task.id)
            || above.iter().any(|id| self.held.contains(id))
            || self.rights.judge(&self.principal, Act::Read, object).is_ok()
    }
}

/// What one turn has found.
struct Turn {
    tasks: Vec<Task>,
    /// The last task that was looked at; `None` if there are no more.
    last: Option<TaskId>,
    position: Sequence,
}

impl LocalOffice {
    pub(super) async fn look(&self, id: TaskId) -> Result<Task, Refusal> {
        let task = self.0.inbox.read(move |registrar| registrar.task(id).cloned()).await?;
        Ok(task.ok_or(Denial::TaskUnknown)?)
    }

    async fn readable(&self, who: &Asker) -> Result<Readable, Refusal> {
        let (rights, principal) = (Arc::clone(&self.0.rights), who.principal.clone());
        let everything = rights.judge(&principal, Act::Read, rights::Object::Everything).is_ok();
        let held = if everything { Vec::new() } else { self.stands_for(who).await? };
        if !everything && held.is_empty() && !rights.may_somewhere(&principal, Act::Read) {
            self.note(&principal, Act::Read, &Object::Everything).await;
            return Err(Denial::NotEntitled.into());
        }
        Ok(Readable { everything, rights, principal, held })
    }

    /// Looks at the next tasks behind `after`, until `most` are found.
    async fn turn(
        &self,
        (query, readable): (&Arc<Query>, &Arc<Readable>),
        after: Option<TaskId>,
        most: usize,
    ) -> Result<Turn, Denial> {
        let (query, readable) = (Arc::clone(query), Arc::clone(readable));
        let question = move |registrar: &Registrar| {
            let (mut tasks, mut last, mut seen) = (Vec::new(), None, 0);
            for task in registrar.tasks_after(after) {
                if seen == SCAN_MAX || tasks.len() == most {
                    let position = registrar.last_sequence();
                    return Turn { tasks, last, position };
                }
                (last, seen) = (Some(task.id), seen + 1);
                if !query.admits(task.state) {
                    continue;
                }
                let above: Vec<_> = registrar.line_of(task.id).skip(1).map(|up| up.id).collect();
                if query.is_about(task, &above) && readable.holds(task, &above) {
                    tasks.push(task.clone());
                }
            }
            Turn { tasks, last: None, position: registrar.last_sequence() }
        };
        self.0.inbox.read(question).await
    }

    pub(super) async fn find(
        &self,
        who: Asker,
        query: Query,
        (after, most): (Option<TaskId>, usize),
    ) -> Result<Found, Refusal> {
        let (query, readable) = (Arc::new(query), Arc::new(self.readable(&who).await?));
        let (mut found, mut after) = (Found::default(), after);
        loop {
            // One more than wanted, to know whether there is one.
            let missing = most.saturating_add(1).saturating_sub(found.tasks.len());
            let turn = self.turn((&query, &readable), after, missing).await?;
            found.tasks.extend(turn.tasks);
            if found.tasks.len() > most {
                found.tasks.truncate(most);
                found.more = true;
                return Ok(found);
            }
            match turn.last {
                Some(last) => after = Some(last),
                None => return Ok(found),
            }
        }
    }

    pub(super) async fn watch(&self, who: Asker, query: Query) -> Result<Watching, Refusal> {
        let watcher = Watcher {
            readable: Arc::new(self.readable(&who).await?),
            posts: self.0.board.watch(),
            shown: query.state.map(|_| BTreeSet::new()),
            query: Arc::new(query),
            office: self.clone(),
            pages: Vec::new(),
            after: None,
            ready: VecDeque::new(),
            synced: false,
        };
        Ok(Box::pin(stream::unfold(Some(watcher), |watcher| async move {
            let mut watcher = watcher?;
            match watcher.next().await {
                Ok(seen) => Some((Ok(seen), Some(watcher))),
                Err(denial) => Some((Err(denial), None)),
            }
        })))
    }
}

/// One who watches.
struct Watcher {
    office: LocalOffice,
    query: Arc<Query>,
    readable: Arc<Readable>,
    /// Begun before the first look, so that nothing falls between.
    posts: broadcast::Receiver<Posted>,
    /// Up to which task was looked at as of which record: what a post says of those is older.
    pages: Vec<(TaskId, Sequence)>,
    after: Option<TaskId>,
    ready: VecDeque<Task>,
    synced: bool,
    /// Who was told of, where the query asks for a state: when one leaves it, that is news.
    shown: Option<BTreeSet<TaskId>>,
}

impl Watcher {
    async fn next(&mut self) -> Result<Seen, Denial> {
        loop {
            if let Some(task) = self.ready.pop_front() {
                if let Some(shown) = &mut self.shown {
                    shown.insert(task.id);
                }
                return Ok(Seen::Task { task: Box::new(task), change: None });
            }
            if self.pages.last().is_none_or(|(last, _)| *last != LAST) {
                self.read_on().await?;
            } else if !self.synced {
                self.synced = true;
                return Ok(Seen::Synced);
            } else {
                match self.posts.recv().await {
                    Ok(Posted::Change(change)) if self.wants(&change) => {
                        let task = Box::new(change.task.0.clone());
                        let change = Some((change.word, change.position));
                        return Ok(Seen::Task { task, change });
                    }
                    Ok(Posted::Change(_)) => {}
                    Ok(Posted::Gap) | Err(RecvError::Lagged(_)) => return Err(Denial::Overloaded),
                    Err(RecvError::Closed) => return Err(Denial::NotServing),
                }
            }
        }
    }

    async fn read_on(&mut self) -> Result<(), Denial> {
        let sides = (&self.query, &self.readable);
        let turn = self.office.turn(sides, self.after, SCAN_MAX).await?;
        // What was read may be ahead of the disk, and what is told may not.
        self.office.0.board.durable(turn.position).await?;
        self.after = turn.last;
        self.pages.push((turn.last.unwrap_or(LAST), turn.position));
        self.ready.extend(turn.tasks);
        Ok(())
    }

    fn wants(&mut self, change: &Change) -> bool {
        let (task, above) = &*change.task;
        let at = self.pages.partition_point(|(last, _)| *last < task.id);
        let is_new = self.pages.get(at).is_none_or(|(_, position)| change.position > *position);
        if !is_new || !self.query.is_about(task, above) || !self.readable.holds(task, above) {
            return false;
        }
        let Some(shown) = &mut self.shown else { return true };
        if self.query.admits(task.state) {
            shown.insert(task.id);
            return true;
        }
        // It left the state that was asked for, which is the last that is told of it until it returns.
        shown.remove(&task.id)
    }
}
