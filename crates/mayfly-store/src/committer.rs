//! Group commit: one thread, one `fdatasync` for all that wait.
//!
//! While the disk is busy with one batch the next one gathers in the queue, so a slow disk makes
//! larger batches instead of longer queues.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{Builder, JoinHandle},
};

use mayfly_core::{Record, Sequence, limits};

use crate::{error::StoreError, journal::Journal};

/// Records in one append. Once so many have gathered they are committed, so that the first of them does
/// not wait for more.
const BATCH_MAX: usize = 1024;

/// What became of the records that were submitted.
#[derive(Clone, Debug)]
pub enum Committed {
    /// Everything up to here is durable.
    Upto(Sequence),
    /// Nothing more will be. The last thing that is ever said.
    Failed(StoreError),
}

/// Why a record was not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Rejected {
    /// More records wait than core allows.
    #[error("too many records wait for the disk")]
    Full,
    /// The journal has failed or is closed.
    #[error("the journal takes no more records")]
    Closed,
}

/// Records that were handed over together.
type Lot = Vec<(Sequence, Record)>;

/// The thread that owns the journal.
#[derive(Debug)]
pub struct Committer {
    sender: Sender<Lot>,
    /// Records that were handed over and are not on disk.
    waiting: Arc<AtomicUsize>,
    thread: JoinHandle<Result<(), StoreError>>,
}

impl Committer {
    /// Starts the thread. `notify` is called on it, after each commit and once after a failure; it
    /// must not block.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(
        journal: impl Journal + 'static,
        mut notify: impl FnMut(Committed) + Send + 'static,
    ) -> io::Result<Self> {
        // Bounded by counting records: a bound on lots would say nothing about them.
        let (sender, receiver) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let done = Arc::clone(&waiting);
        let thread = Builder::new().name("committer".into()).spawn(move || {
            let run = AssertUnwindSafe(|| run(journal, (&receiver, &done), &mut notify));
            let result = catch_unwind(run).unwrap_or(Err(StoreError::Stopped));
            // First the door, then the news: whoever has heard of the failure cannot submit.
            drop(receiver);
            if let Err(error) = &result {
                notify(Committed::Failed(error.clone()));
            }
            result
        })?;
        Ok(Self { sender, waiting, thread })
    }

    /// Hands over the next record. Never waits.
    ///
    /// # Errors
    /// [`Rejected`]; the caller has to stop issuing.
    pub fn submit(&self, sequence: Sequence, record: Record) -> Result<(), Rejected> {
        self.submit_all(vec![(sequence, record)])
    }

    /// Hands over the next records, all or none. Never waits.
    ///
    /// # Errors
    /// [`Rejected`]; the caller has to stop issuing.
    pub fn submit_all(&self, records: Vec<(Sequence, Record)>) -> Result<(), Rejected> {
        let count = records.len();
        // Core stops asking at this many, so a full queue is a bug and not a wait.
        if self.waiting.fetch_add(count, Ordering::Relaxed) + count > limits::RECORDS_IN_FLIGHT_MAX
        {
            self.waiting.fetch_sub(count, Ordering::Relaxed);
            return Err(Rejected::Full);
        }
        self.sender.send(records).map_err(|_thread_is_gone| Rejected::Closed)
    }

    /// Commits what was submitted and stops. The journal is dropped, cleanly closed, by then.
    ///
    /// # Errors
    /// The failure that had stopped it before, if any.
    pub fn close(self) -> Result<(), StoreError> {
        drop(self.sender);
        self.thread.join().unwrap_or(Err(StoreError::Stopped))
    }
}

fn run(
    mut journal: impl Journal,
    (receiver, waiting): (&Receiver<Lot>, &AtomicUsize),
    notify: &mut impl FnMut(Committed),
) -> Result<(), StoreError> {
    while let Ok(mut batch) = receiver.recv() {
        while batch.len() < BATCH_MAX
            && let Ok(more) = receiver.try_recv()
        {
            batch.extend(more);
        }
        for records in batch.chunks(BATCH_MAX) {
            journal.append(records)?;
        }
        let upto = journal.commit()?;
        waiting.fetch_sub(batch.len(), Ordering::Relaxed);
        notify(Committed::Upto(upto));
    }
    Ok(())
}
