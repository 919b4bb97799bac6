//! Group commit: one thread, one `fdatasync` for all that wait.
//!
//! While the disk is busy with one batch the next one gathers in the queue, so a slow disk makes
//! larger batches instead of longer queues.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread::{Builder, JoinHandle},
};

use mayfly_core::{Record, Sequence, limits};

use crate::{error::StoreError, journal::Journal};

/// Records in one commit. Bounds the time that the first of them waits for the others.
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

/// A record on its way; boxed, because the queue has room for many from the start.
type Message = (Sequence, Box<Record>);

/// The thread that owns the journal.
#[derive(Debug)]
pub struct Committer {
    sender: SyncSender<Message>,
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
        // Core stops asking at this many, so a full queue is a bug and not a wait.
        let (sender, receiver) = sync_channel(limits::RECORDS_IN_FLIGHT_MAX);
        let thread = Builder::new().name("committer".into()).spawn(move || {
            let run = AssertUnwindSafe(|| run(journal, &receiver, &mut notify));
            let result = catch_unwind(run).unwrap_or(Err(StoreError::Stopped));
            // First the door, then the news: whoever has heard of the failure cannot submit.
            drop(receiver);
            if let Err(error) = &result {
                notify(Committed::Failed(error.clone()));
            }
            result
        })?;
        Ok(Self { sender, thread })
    }

    /// Hands over the next record. Never waits.
    ///
    /// # Errors
    /// [`Rejected`]; the caller has to stop issuing.
    pub fn submit(&self, sequence: Sequence, record: Record) -> Result<(), Rejected> {
        self.sender.try_send((sequence, Box::new(record))).map_err(|error| match error {
            TrySendError::Full(_) => Rejected::Full,
            TrySendError::Disconnected(_) => Rejected::Closed,
        })
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
    receiver: &Receiver<Message>,
    notify: &mut impl FnMut(Committed),
) -> Result<(), StoreError> {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while let Ok((sequence, record)) = receiver.recv() {
        batch.push((sequence, *record));
        let more = receiver.try_iter().take(BATCH_MAX - 1);
        batch.extend(more.map(|(sequence, record)| (sequence, *record)));
        journal.append(&batch)?;
        notify(Committed::Upto(journal.commit()?));
        batch.clear();
    }
    Ok(())
}
