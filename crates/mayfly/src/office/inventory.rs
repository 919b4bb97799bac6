//! Who holds what, now.

use std::sync::Arc;

use mayfly_core::{Registrar, Serial, Task, TaskId, Timestamp};
use mayfly_serve::office::{Holding, Holdings, InventoryWish, Refusal};

use super::LocalOffice;

/// Tasks looked at in one of the driver's turns: an inventory of any size holds nobody up.
const PORTION: usize = 4096;

/// Where the next portion begins.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    /// The last task that has been looked at.
    task: Option<TaskId>,
    /// Its last credential, if there are more of it.
    serial: Option<Serial>,
}

/// What is looked for.
struct Search {
    wish: InventoryWish,
    root: Option<TaskId>,
    now: Timestamp,
}

/// What one turn found.
#[derive(Default)]
struct Portion {
    holdings: Vec<Holding>,
    mark: Mark,
    is_last: bool,
}

impl LocalOffice {
    pub(super) async fn inventory(&self, wish: InventoryWish) -> Result<Holdings, Refusal> {
        let root = match wish.tree {
            None => None,
            Some(id) => {
                let root = move |r: &Registrar| r.task(id).map(|task| task.root);
                Some(self.0.inbox.read(root).await?.ok_or(mayfly_core::Denial::TaskUnknown)?)
            }
        };
        let (after, count) = (wish.after, wish.count);
        let mut mark = Mark { task: after.map(|(task, _)| task), serial: after.map(|(_, s)| s) };
        let search = Arc::new(Search { wish, root, now: (self.0.clock)() });
        let mut found = Holdings::default();
        loop {
            let (search, room) = (Arc::clone(&search), count - found.holdings.len());
            let portion = self.0.inbox.read(move |r| search.portion(r, mark, room)).await?;
            found.holdings.extend(portion.holdings);
            mark = portion.mark;
            found.has_more = !portion.is_last;
            if portion.is_last || found.holdings.len() >= count {
                return Ok(found);
            }
        }
    }
}

impl Search {
    fn portion(&self, registrar: &Registrar, from: Mark, room: usize) -> Portion {
        // The task in which the last page ended may have more, if it is still there.
        let again = from.serial.and(from.task).and_then(|task| registrar.task(task));
        let mut tasks = again.into_iter().chain(registrar.tasks_after(from.task));
        let mut portion = Portion { mark: from, ..Portion::default() };
        for _ in 0..PORTION {
            let Some(task) = tasks.next() else {
                portion.is_last = true;
                return portion;
            };
            let behind = from.serial.filter(|_| from.task == Some(task.id));
            portion.mark = Mark { task: Some(task.id), serial: None };
            if !self.wants(task) {
                continue;
            }
            let mut held: Vec<_> = registrar.holdings(task, self.now).collect();
            held.retain(|credential| behind.is_none_or(|behind| credential.serial > behind));
            held.sort_unstable_by_key(|credential| credential.serial);
            for credential in held {
                if portion.holdings.len() == room {
                    return portion;
                }
                portion.mark.serial = Some(credential.serial);
                portion.holdings.push(Holding {
                    credential: *credential,
                    spiffe_id: task.spiffe_id(),
                    task: task.id,
                    profile: task.terms.profile.clone(),
                    owner: task.terms.owner.clone(),
                    holder: task.holder.clone(),
                    intent: task.mandate.intent.clone(),
                });
            }
            portion.mark.serial = None;
        }
        portion
    }

    fn wants(&self, task: &Task) -> bool {
        let is = |wanted: &Option<String>, has: &str| wanted.as_ref().is_none_or(|w| w == has);
        !task.state.is_ended()
            && is(&self.wish.owner, &task.terms.owner)
            && is(&self.wish.profile, &task.terms.profile)
            && self.root.is_none_or(|root| task.root == root)
    }
}
