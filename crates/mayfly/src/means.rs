//! What the driver does things with: disk, eyes, keys and sockets, behind one seam.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use mayfly_attest::Watcher;
use mayfly_core::{Delta, Event, Finding, Grant, Holder, Record, Sequence, Serial, TaskId, Ticket};
use mayfly_serve::feed::hub::Hub;
use mayfly_store::{Committer, Store};
use tokio::sync::{Notify, mpsc, watch};

use crate::{driver::Message, measures::Commits, signers::Signers, svids::Svids};

/// Orders for task sockets that wait to be carried out: after a restart, one per task that has one.
const SOCKET_ORDERS_MAX: usize = mayfly_core::limits::TASKS_MAX;

/// Carries out effects. Nothing here waits: what takes time answers through the driver's door.
pub trait Means {
    /// Hands records over in order; answers at once when the journal takes no more.
    #[must_use]
    fn append(&mut self, records: &mut Vec<(Sequence, Record)>) -> Option<Message>;
    /// Signs; answers with [`Message::Signed`], at once for what it does not do later.
    #[must_use]
    fn sign(&mut self, grants: &mut Vec<(Ticket, Grant)>) -> Option<Message>;
    /// Tells followers what has become durable.
    fn publish(&mut self, delta: &Delta);
    /// The list of revoked certificates has changed.
    fn refresh_crl(&mut self);
    /// Keeps an eye on a holder; answers at once when that cannot be done.
    #[must_use]
    fn watch(&mut self, task: TaskId, holder: &Holder) -> Option<Message>;
    /// Gives a task its own socket.
    fn open_socket(&mut self, task: TaskId);
    /// Takes it away.
    fn close_socket(&mut self, task: TaskId);
    /// Drops what was handed out for a task and might be handed out again.
    fn withdraw(&mut self, task: TaskId);
    /// Tells the operator that a credential was used that should not have been.
    fn alert(&mut self, finding: Finding, what: (Option<TaskId>, Option<Serial>));
    /// Drops everything about a task.
    fn forget(&mut self, task: TaskId);
}

/// What happens to a task's own socket.
#[derive(Debug)]
pub enum SocketOrder {
    /// Listen.
    Open(TaskId),
    /// Stop, and remove the file.
    Close(TaskId),
}

/// Orders for the tasks' own sockets, on the side of whoever gives them.
#[derive(Debug)]
pub struct SocketOrders {
    orders: mpsc::Sender<SocketOrder>,
    given: Arc<AtomicU64>,
}

/// The side of whoever carries them out.
#[derive(Debug)]
pub struct SocketWork {
    /// What is to be done, in this order. Ends with whoever gives orders.
    pub orders: mpsc::Receiver<SocketOrder>,
    /// How many are done.
    pub done: watch::Sender<u64>,
}

/// The side of whoever has to know how far it is.
#[derive(Clone, Debug)]
pub struct Settled {
    given: Arc<AtomicU64>,
    done: watch::Receiver<u64>,
}

impl SocketOrders {
    /// All three sides.
    #[must_use]
    pub fn new() -> (Self, SocketWork, Settled) {
        let (sender, orders) = mpsc::channel(SOCKET_ORDERS_MAX);
        let (done, seen) = watch::channel(0);
        let given = Arc::<AtomicU64>::default();
        let settled = Settled { given: Arc::clone(&given), done: seen };
        (Self { orders: sender, given }, SocketWork { orders, done }, settled)
    }

    fn give(&self, order: SocketOrder) {
        match self.orders.try_send(order) {
            Ok(()) => drop(self.given.fetch_add(1, Ordering::Release)),
            Err(lost) => tracing::error!(%lost, "too many orders for task sockets at once"),
        }
    }
}

impl Settled {
    /// Waits until everything that was ordered so far is done.
    pub async fn settled(&self) {
        let given = self.given.load(Ordering::Acquire);
        let mut done = self.done.clone();
        // An error means that the broker is stopping, and nobody will need a socket.
        let _stopping = done.wait_for(|done| *done >= given).await.is_err();
    }
}

/// What tasks are or were held by. Looking at it costs something at each call, so it is looked at only
/// from the first such task on.
#[derive(Debug, Default)]
pub struct Sought {
    lineage: AtomicBool,
    dwellings: AtomicBool,
}

impl Sought {
    /// A task is held by this.
    pub fn note(&self, holder: &Holder) {
        match holder {
            Holder::Lineage(_) => self.lineage.store(true, Ordering::Relaxed),
            Holder::Unit(_) | Holder::Container(_) | Holder::Pod(_) => {
                self.dwellings.store(true, Ordering::Relaxed);
            }
            Holder::Process(_)
            | Holder::Cgroup(_)
            | Holder::Socket
            | Holder::Lease
            | Holder::Job => {}
        }
    }

    /// Whether callers' ancestors are worth looking at.
    #[must_use]
    pub fn lineage(&self) -> bool {
        self.lineage.load(Ordering::Relaxed)
    }

    /// Whether their units, containers and pods are.
    #[must_use]
    pub fn dwellings(&self) -> bool {
        self.dwellings.load(Ordering::Relaxed)
    }
}

/// The means of one machine.
#[derive(Debug)]
pub struct Machine {
    /// The journal's committer.
    pub committer: Committer,
    /// How long it takes.
    pub commits: Commits,
    /// The journal's index.
    pub store: Store,
    /// Signing threads.
    pub signers: Signers,
    /// Eyes on holders.
    pub watcher: Watcher,
    /// The feed.
    pub feed: Arc<Hub>,
    /// Wakes whoever signs revocation lists.
    pub crl: Arc<Notify>,
    /// Orders for the tasks' own sockets.
    pub sockets: SocketOrders,
    /// What tasks are held by, so that it is worth looking at in callers.
    pub sought: Arc<Sought>,
    /// The certificates in use.
    pub svids: Arc<Svids>,
}

impl Means for Machine {
    fn append(&mut self, records: &mut Vec<(Sequence, Record)>) -> Option<Message> {
        let (last, _) = records.last()?;
        self.commits.handed(*last);
        let error = self.committer.submit_all(std::mem::take(records)).err()?;
        tracing::error!(%error, "nothing is issued until a restart");
        Some(Message::Event(Event::JournalFailed))
    }

    fn sign(&mut self, grants: &mut Vec<(Ticket, Grant)>) -> Option<Message> {
        self.signers.submit(grants)
    }

    fn publish(&mut self, delta: &Delta) {
        self.feed.publish(delta);
    }

    fn refresh_crl(&mut self) {
        self.crl.notify_one();
    }

    fn watch(&mut self, task: TaskId, holder: &Holder) -> Option<Message> {
        self.sought.note(holder);
        let error = self.watcher.watch(task, holder.clone(), None).err()?;
        // A holder that cannot be watched could die unseen, so its task ends instead.
        tracing::warn!(%task, %error, "the holder cannot be watched; its task ends");
        Some(Message::Event(Event::WatcherBlinded { task }))
    }

    fn open_socket(&mut self, task: TaskId) {
        self.sockets.give(SocketOrder::Open(task));
    }

    fn close_socket(&mut self, task: TaskId) {
        self.sockets.give(SocketOrder::Close(task));
    }

    fn withdraw(&mut self, task: TaskId) {
        self.svids.forget(task);
    }

    fn alert(&mut self, finding: Finding, (task, serial): (Option<TaskId>, Option<Serial>)) {
        let task = task.map(|task| task.to_string());
        let serial = serial.map(|serial| serial.to_string());
        tracing::warn!(finding = finding.code(), task, serial, "a credential was misused");
    }

    fn forget(&mut self, task: TaskId) {
        self.watcher.unwatch(task);
        self.store.forget(task);
    }
}
