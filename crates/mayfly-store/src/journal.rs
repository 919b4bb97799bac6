//! The journal: where a record has to be before its effect may happen.

use std::sync::Arc;

use mayfly_audit::Log;
use mayfly_core::{Record, Sequence};

use crate::{error::StoreError, keeper::Keeper, lock::Lock};

/// A place that keeps records in order. On one machine this is the log; across machines it will be
/// etcd, where a commit is a transaction fenced by the ownership of the shard.
pub trait Journal: Send {
    /// Takes records, which follow the last one without a gap. They may be lost until
    /// [`Self::commit`] has returned.
    ///
    /// # Errors
    /// [`StoreError`]; the journal must not be used again after that.
    fn append(&mut self, batch: &[(Sequence, Record)]) -> Result<(), StoreError>;

    /// Makes everything taken durable, and says up to where that is.
    ///
    /// # Errors
    /// [`StoreError`]; what was taken since the last commit may or may not be durable.
    fn commit(&mut self) -> Result<Sequence, StoreError>;
}

/// The journal of one machine. Dropping it is a clean stop: the index catches up and the sentinel
/// is brought to the log's end.
#[derive(Debug)]
pub struct LogJournal {
    log: Log,
    keeper: Keeper,
    _lock: Arc<Lock>,
}

impl LogJournal {
    pub(crate) const fn new(log: Log, keeper: Keeper, lock: Arc<Lock>) -> Self {
        Self { log, keeper, _lock: lock }
    }
}

impl Journal for LogJournal {
    fn append(&mut self, batch: &[(Sequence, Record)]) -> Result<(), StoreError> {
        self.log.append(batch)?;
        Ok(())
    }

    fn commit(&mut self) -> Result<Sequence, StoreError> {
        let upto = self.log.sync()?;
        self.keeper.tell(upto, *self.log.chain());
        Ok(upto)
    }
}
