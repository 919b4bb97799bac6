//! Tasks that somebody else acts for: whoever names one is told what it is, or in which way it is over.
//!
//! The holder of a task learns that it has ended. A broker that delivers for it has to know more: whether
//! the workload is done, so that nothing is left to deliver to, or lives on and has lost its rights.

use alloc::{string::String, vec::Vec};

use super::{Registrar, meet::ancestors};
use crate::{
    event::{Denial, Effect, Identity},
    evidence::{Caller, Holder},
    id::{PolicyEpoch, TaskId, TaskVersion, Ticket},
    task::{Cause, State, Task},
};

impl Registrar {
    pub(super) fn task_named(
        &mut self,
        ticket: Ticket,
        (id, version): (TaskId, Option<TaskVersion>),
        epoch: PolicyEpoch,
    ) {
        if self.halted {
            return self.withhold(ticket, Denial::JournalFailed);
        }
        // What is asked for next rests on this edition.
        if epoch != self.policy_epoch {
            return self.effects.push_back(Effect::Reconsider { ticket });
        }
        match self.find_named(id, version) {
            Ok(identity) => {
                let identities = Vec::from([identity]);
                self.effects.push_back(Effect::Introduce { ticket, identities });
            }
            Err(denial) => {
                let profile = self.tasks.get(&id).map(|task| task.terms.profile.clone());
                self.refuse(ticket, denial, (Some(id), &profile.unwrap_or_default()));
            }
        }
    }

    fn find_named(&self, id: TaskId, version: Option<TaskVersion>) -> Result<Identity, Denial> {
        let task = self.tasks.get(&id).ok_or(Denial::TaskUnknown)?;
        // The end goes before the version: an ended task has none that could be meant instead.
        match task.state {
            State::Ended { .. } => Err(over(task)),
            State::Active | State::Quarantined { .. }
                if version.is_some_and(|version| version != task.version) =>
            {
                Err(Denial::VersionUnmatched)
            }
            State::Quarantined { .. } => Err(Denial::TaskQuarantined),
            State::Active => self.identity(id).ok_or(Denial::TaskUnknown),
        }
    }

    /// In which way the tasks of a caller are over that was refused with [`Denial::TaskEnded`].
    #[must_use]
    pub fn why_over(&self, caller: &Caller) -> Denial {
        let own = caller.lineage.first().map(|key| Holder::Process(*key));
        let cgroups = caller.cgroup.as_deref().into_iter().flat_map(ancestors);
        let holders = own.into_iter().chain(cgroups.map(|path| Holder::Cgroup(String::from(path))));
        let observed = || holders.filter_map(|holder| self.holders.get(&holder)).flatten().copied();
        let tasks = self.declared_for(caller).unwrap_or_else(|| observed().collect());
        let mut tasks = tasks.iter().filter_map(|id| self.tasks.get(id));
        let was_revoked = tasks.any(|task| over(task) == Denial::TaskRevoked);
        if was_revoked { Denial::TaskRevoked } else { Denial::TaskEnded }
    }
}

/// Whether an ended task has finished, or was stopped while its holder lives.
fn over(task: &Task) -> Denial {
    let State::Ended { cause, .. } = task.state else {
        return Denial::TaskEnded;
    };
    let over_its_head = match cause {
        Cause::Revoked
        | Cause::OwnerRemoved
        | Cause::PolicyChange
        | Cause::ParentNarrowed
        | Cause::Risk => true,
        Cause::Completed
        | Cause::Failed
        | Cause::Exited
        | Cause::LeaseLapsed
        | Cause::Deadline
        | Cause::Superseded
        | Cause::ParentEnded
        | Cause::BudgetSpent
        | Cause::WatcherBlind => false,
    };
    if over_its_head && !task.holder_gone { Denial::TaskRevoked } else { Denial::TaskEnded }
}
