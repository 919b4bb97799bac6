//! First contact: which tasks a caller stands for, and new tasks, met or declared.

use alloc::{sync::Arc, vec::Vec};

use super::{Registrar, Timer};
use crate::{
    event::{Basis, Begin, Denial, Effect, Identity, Verdict, Wish},
    evidence::{Caller, Holder},
    id::{TaskId, TaskVersion, Ticket},
    limits,
    record::Fact,
    task::{Binding, State, Task, Terms},
};

impl Registrar {
    pub(super) fn met(
        &mut self,
        ticket: Ticket,
        caller: &Caller,
        (verdict, luck): (&Verdict, &[TaskId]),
        wish: Option<Wish>,
    ) {
        if self.halted {
            return self.withhold(ticket, Denial::JournalFailed);
        }
        if verdict.epoch != self.policy_epoch {
            return self.effects.push_back(Effect::Reconsider { ticket });
        }
        let permits = &verdict.permits;
        let found = match self.declared_for(caller) {
            Some(tasks) => self.permitted(&tasks, permits),
            None => {
                let first = permits.get(..limits::IDENTITIES_PER_CALLER_MAX).unwrap_or(permits);
                self.observed_for(caller, first, luck)
            }
        };
        let identities = found.iter().flatten().filter_map(|id| self.identity(*id));
        let identities: Vec<_> = identities.take(limits::IDENTITIES_PER_CALLER_MAX).collect();
        // INVARIANT P8: silence is No; there is no identity to fall back on.
        if identities.is_empty() {
            let denial = found.iter().filter_map(|one| one.err()).min_by_key(|d| precedence(*d));
            let profile = permits.first().map_or("", |terms| terms.profile.as_str());
            return self.refuse(ticket, denial.unwrap_or(Denial::NoIdentity), (None, profile));
        }
        match (identities.as_slice(), wish) {
            ([one], Some(wish))
                if wish.spiffe_id.as_ref().is_none_or(|id| *id == one.spiffe_id) =>
            {
                let basis = Basis { task: one.task, version: one.version, epoch: verdict.epoch };
                self.effects.push_back(Effect::Recognise { ticket, identity: one.clone() });
                self.admit(ticket, basis, wish.ask, wish.luck);
            }
            _ => self.effects.push_back(Effect::Introduce { ticket, identities }),
        }
    }

    /// The tasks begun by name for the innermost thing that holds this caller. A process inside such
    /// a task holds that task's identity and no other, even after the task has ended: otherwise the
    /// end of a task would be the beginning of an unwatched one.
    pub(super) fn declared_for(&self, caller: &Caller) -> Option<Vec<TaskId>> {
        if let Some(task) = caller.socket {
            return Some([task].into());
        }
        let declared = |holder: &Holder| -> Option<Vec<TaskId>> {
            let tasks = self.holders.get(holder)?;
            let declared = tasks.iter().filter(|id| self.tasks.get(id).is_some_and(|t| t.declared));
            let declared: Vec<_> = declared.copied().collect();
            (!declared.is_empty()).then_some(declared)
        };
        let own = caller.lineage.first().and_then(|key| declared(&Holder::Process(*key)));
        let cgroup = || caller.cgroup.as_deref().into_iter().flat_map(ancestors);
        let at = |path: &str| {
            let own = declared(&Holder::Cgroup(path.into()));
            own.or_else(|| caller.dwellings_at(path).find_map(|holder| declared(&holder)))
        };
        own.or_else(|| cgroup().find_map(at))
            .or_else(|| caller.lineage.iter().find_map(|key| declared(&Holder::Lineage(*key))))
    }

    fn permitted(&self, tasks: &[TaskId], permits: &[Terms]) -> Vec<Result<TaskId, Denial>> {
        let permits_it = |task: &Task| permits.iter().any(|p| p.profile == task.terms.profile);
        tasks
            .iter()
            .filter_map(|id| self.tasks.get(id))
            .filter(|task| permits_it(task))
            .map(|task| usable(task).map(|()| task.id))
            .collect()
    }

    fn observed_for(
        &mut self,
        caller: &Caller,
        permits: &[Terms],
        luck: &[TaskId],
    ) -> Vec<Result<TaskId, Denial>> {
        let pairs = permits.iter().zip(luck);
        pairs.map(|(terms, luck)| self.find_or_open(caller, terms, *luck)).collect()
    }

    fn find_or_open(
        &mut self,
        caller: &Caller,
        terms: &Terms,
        luck: TaskId,
    ) -> Result<TaskId, Denial> {
        let holder = observable_holder(caller, terms.binding).ok_or(Denial::NotBound)?;
        if let Some(task) = self.observed_task(&holder, &terms.profile) {
            return usable(task).map(|()| task.id);
        }
        // Whoever is met declares nothing, so what has to be declared is begun by name.
        if !terms.bounds.requires.is_empty() {
            return Err(Denial::NotBound);
        }
        let begin = Begin::new(terms.clone(), holder);
        self.open(begin, luck, false).map(|()| luck)
    }

    /// The task of `profile` that `holder` has, over or not. A cgroup is held by whoever holds one
    /// above it: otherwise a process would leave an ended task by making a cgroup of its own below.
    fn observed_task(&self, holder: &Holder, profile: &str) -> Option<&Task> {
        let of = |holder: &Holder| {
            let held = self.holders.get(holder).into_iter().flatten();
            let mut held = held.filter_map(|id| self.tasks.get(id));
            held.find(|task| task.terms.profile == profile)
        };
        match holder {
            Holder::Cgroup(path) => ancestors(path).find_map(|up| of(&Holder::Cgroup(up.into()))),
            Holder::Process(_)
            | Holder::Lineage(_)
            | Holder::Unit(_)
            | Holder::Container(_)
            | Holder::Pod(_)
            | Holder::Socket
            | Holder::Lease
            | Holder::Job => of(holder),
        }
    }

    pub(super) fn identity(&self, id: TaskId) -> Option<Identity> {
        self.tasks.get(&id).map(|task| Identity {
            task: id,
            version: task.version,
            spiffe_id: task.spiffe_id(),
            hint: task.terms.hint.clone(),
            federates_with: task.terms.federates_with.clone(),
        })
    }

    pub(super) fn begin_asked(
        &mut self,
        ticket: Ticket,
        begin: Begin,
        (luck, first): (TaskId, Option<u64>),
    ) {
        let profile = begin.terms.profile.clone();
        let parent = begin.parent;
        if let Some(known) = begin.key.and_then(|wish| self.told_before(wish)) {
            return match known {
                Ok((task, version)) => self.acknowledge(ticket, task, version),
                Err(denial) => self.refuse(ticket, denial, (None, &profile)),
            };
        }
        if let Err(denial) = self.open(begin, luck, true) {
            return self.refuse(ticket, denial, (parent, &profile));
        }
        if let Some(first) = first {
            self.promise_ahead(luck, first);
        }
        self.acknowledge(ticket, luck, TaskVersion(1));
    }

    /// Opens a task, or says why not. The record is ordered here.
    fn open(&mut self, begin: Begin, id: TaskId, declared: bool) -> Result<(), Denial> {
        self.check_begin(&begin, id, declared)?;
        let mandate = self.mandate(&begin, declared)?;
        let deadline = self.deadline(&begin)?;
        let Begin { mut terms, holder, parent, owner, lease, key, author, .. } = begin;
        if let Some(owner) = owner {
            terms.owner = owner;
        }
        let fact = Fact::Began {
            task: id,
            terms: Arc::new(terms),
            holder: holder.clone(),
            parent,
            mandate: Arc::new(mandate),
            deadline,
            lease,
            declared,
            key,
            author,
        };
        self.journal(fact);
        // A socket is not yet a Yes: whoever comes in gets nothing that does not wait for the record.
        let socket = holder.owns_socket().then_some(Effect::OpenSocket { task: id });
        self.effects.extend(socket);
        self.effects.push_back(Effect::Watch { task: id, holder });
        Ok(())
    }

    fn check_begin(&self, begin: &Begin, id: TaskId, declared: bool) -> Result<(), Denial> {
        if self.halted {
            return Err(Denial::JournalFailed);
        }
        if self.is_full() || self.tasks.len() >= limits::TASKS_MAX || self.tasks.contains_key(&id) {
            return Err(Denial::Overloaded);
        }
        let owner = begin.owner.as_ref().unwrap_or(&begin.terms.owner);
        if owner.trim().is_empty() || owner.len() > limits::OWNER_BYTES_MAX {
            return Err(Denial::Malformed);
        }
        let named = begin.terms.check_id(&self.charter.trust_domain, id);
        named.map_err(|_named_by_denial| Denial::Malformed)?;
        let lease_fits = |lease| (limits::LEASE_MIN..=limits::LEASE_MAX).contains(&lease);
        if begin.lease.is_some_and(|lease| !lease_fits(lease)) {
            return Err(Denial::LeaseOutOfRange);
        }
        if declared { self.check_holder(begin) } else { Ok(()) }
    }

    fn check_holder(&self, begin: &Begin) -> Result<(), Denial> {
        let fits = match (&begin.holder, begin.terms.binding) {
            (Holder::Process(_), binding) => binding == Binding::Process,
            // A run has a cgroup where it may and verified ancestry elsewhere, whichever way its
            // profile holds processes.
            (Holder::Lineage(_) | Holder::Cgroup(_), binding) => {
                matches!(binding, Binding::Process | Binding::Lineage | Binding::Cgroup)
            }
            (Holder::Unit(_), binding) => binding == Binding::Systemd,
            (Holder::Container(_), binding) => binding == Binding::Container,
            (Holder::Pod(_), binding) => binding == Binding::Pod,
            (Holder::Socket, binding) => binding == Binding::Socket,
            (Holder::Lease, binding) => binding == Binding::Lease && begin.lease.is_some(),
            // Whatever holds its attempts, a job is held by its window.
            (Holder::Job, _) => begin.lease.is_none(),
        };
        if !fits || matches!(&begin.holder, Holder::Cgroup(path) if is_everything(path)) {
            return Err(Denial::HolderUnfit);
        }
        if begin.holder.is_nobody() {
            return Ok(());
        }
        let held = self.holders.get(&begin.holder).into_iter().flatten();
        let mut held = held.filter_map(|id| self.tasks.get(id));
        let taken = held.any(|t| !t.state.is_ended() && t.terms.profile == begin.terms.profile);
        if taken { Err(Denial::HolderTaken) } else { Ok(()) }
    }

    pub(super) fn timer_fired(&mut self, timer: Timer, id: TaskId) {
        match timer {
            Timer::Deadline => self.end(id, crate::task::Cause::Deadline),
            Timer::Lease => self.end(id, crate::task::Cause::LeaseLapsed),
            Timer::Forget => self.forget(id),
        }
    }
}

/// Whether a cgroup is the whole machine, which cannot hold one task.
fn is_everything(path: &str) -> bool {
    path.trim_end_matches('/').is_empty()
}

fn observable_holder(caller: &Caller, binding: Binding) -> Option<Holder> {
    match binding {
        Binding::Process => caller.lineage.first().map(|key| Holder::Process(*key)),
        Binding::Cgroup => {
            let path = caller.cgroup.as_ref().filter(|path| !is_everything(path))?;
            Some(Holder::Cgroup(path.clone()))
        }
        Binding::Systemd => caller.unit.clone().map(Holder::Unit),
        Binding::Container => caller.container.clone().map(Holder::Container),
        Binding::Pod => caller.pod.clone().map(Holder::Pod),
        Binding::Lineage | Binding::Socket | Binding::Lease => None,
    }
}

/// A cgroup's path and those above it, the deepest first.
pub(super) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    core::iter::successors(Some(path), |path| {
        let at = path.rfind('/')?;
        path.get(..at).filter(|up| !up.is_empty())
    })
}

fn usable(task: &Task) -> Result<(), Denial> {
    match task.state {
        State::Active => Ok(()),
        State::Quarantined { .. } => Err(Denial::TaskQuarantined),
        State::Ended { .. } => Err(Denial::TaskEnded),
    }
}

/// Of several reasons the caller hears the one that says most about it.
fn precedence(denial: Denial) -> (bool, bool, Denial) {
    (denial != Denial::TaskEnded, denial != Denial::TaskQuarantined, denial)
}
