//! How far a new or amended task may go: within its profile, within its parent, and no further (P12).

use alloc::boxed::Box;

use super::Registrar;
use crate::{
    event::{Begin, Denial},
    evidence::Holder,
    id::{TaskId, TaskVersion, Ticket},
    limits,
    mandate::{Amendment, Author, Bounds, Budget, Mandate, Reach},
    record::Fact,
    scope::{Extent, Scope},
    task::{State, Task},
    time::{Span, Timestamp},
};

impl Registrar {
    /// What a task that begins may do: what it declares, and what its profile and its parent say where
    /// it is silent.
    pub(super) fn mandate(&self, begin: &Begin, declared: bool) -> Result<Mandate, Denial> {
        let bounds = &begin.terms.bounds;
        let beside = (begin.owner.is_some(), begin.deadline.is_some());
        if declared && bounds.lacking(&begin.mandate, beside).next().is_some() {
            return Err(Denial::DeclarationMissing);
        }
        let texts = [&begin.author.by, &begin.author.why];
        if !begin.mandate.is_well_formed()
            || texts.iter().any(|text| text.len() > limits::AUTHOR_BYTES_MAX)
            || begin.mandate.ttl.is_some_and(|ttl| ttl < limits::CREDENTIAL_TTL_MIN)
        {
            return Err(Denial::Malformed);
        }
        let parent = match begin.parent {
            Some(id) => Some(self.tasks.get(&id).ok_or(Denial::TaskUnknown)?),
            None => None,
        };
        if let Some(parent) = parent {
            self.may_begin_below(parent, begin)?;
        }
        let above = parent.map(|parent| &parent.mandate.scope);
        #[cfg(feature = "planted")]
        let above = above.filter(|_| !self.has_planted(super::Planted::IgnoreParentScope));
        let scope = settle_scope(&begin.mandate.scope, (&bounds.scope, above))?;
        if begin.delegated && above.is_some_and(|above| !scope.is_narrower_than(above)) {
            return Err(Denial::NotNarrower);
        }
        let is_job = begin.holder == Holder::Job;
        let budget = settle_budget(&begin.mandate.budget, (bounds, parent), is_job)?;
        let reach = settle_reach(begin.mandate.reach, (bounds, parent))?;
        let ttl = settle_ttl(begin.mandate.ttl, parent)?;
        let (reach, mandate) = (Some(reach), begin.mandate.clone());
        Ok(Mandate { scope, budget, reach, ttl, ..mandate })
    }

    /// The end of a task that begins now: as it wishes, or else as late as it may be.
    pub(super) fn deadline(&self, begin: &Begin) -> Result<Option<Timestamp>, Denial> {
        let above = begin.parent.and_then(|id| self.tasks.get(&id)).and_then(|task| task.deadline);
        let cap = begin.terms.task_ttl.map(|ttl| self.now.plus(ttl));
        let Some(wanted) = begin.deadline else {
            if begin.holder == Holder::Job && cap.is_none() && above.is_none() {
                // A job has no other end: without a window it would stand for ever.
                return Err(Denial::DeclarationMissing);
            }
            return Ok([cap, above].into_iter().flatten().min());
        };
        if wanted <= self.now {
            Err(Denial::DeadlinePassed)
        } else if cap.is_some_and(|cap| wanted > cap) {
            Err(Denial::DeadlineTooLate)
        } else if above.is_some_and(|above| wanted > above) {
            Err(Denial::ExceedsParent)
        } else {
            Ok(Some(wanted))
        }
    }

    fn may_begin_below(&self, parent: &Task, begin: &Begin) -> Result<(), Denial> {
        if parent.state != State::Active {
            return Err(Denial::ParentInactive);
        }
        let reach = parent.reach();
        if reach.depth == 0 || parent.depth >= limits::DEPTH_MAX {
            return Err(Denial::TooDeep);
        }
        let profile = &begin.terms.profile;
        if parent.holder == Holder::Job {
            return self.may_attempt(parent, begin);
        }
        let named = parent.terms.bounds.delegates_to.as_ref();
        if named.is_some_and(|named| !named.contains(profile)) {
            return Err(Denial::DelegationNotPermitted);
        }
        let room = usize::try_from(reach.children).unwrap_or(usize::MAX);
        if self.live_children(parent).take(room).count() >= room {
            return Err(Denial::TooManyChildren);
        }
        Ok(())
    }

    /// A job is retried by one attempt at a time, under its own profile, as often as it may be (R43).
    fn may_attempt(&self, job: &Task, begin: &Begin) -> Result<(), Denial> {
        if job.terms.profile != begin.terms.profile {
            Err(Denial::DelegationNotPermitted)
        } else if begin.holder == Holder::Job {
            // A job in a job would multiply its attempts.
            Err(Denial::HolderUnfit)
        } else if self.live_children(job).next().is_some() {
            Err(Denial::AttemptRunning)
        } else if job.attempts >= attempts_max(job) {
            Err(Denial::AttemptsSpent)
        } else {
            Ok(())
        }
    }

    fn live_children<'a>(&'a self, task: &'a Task) -> impl Iterator<Item = &'a Task> {
        let children = task.children.iter().filter_map(|child| self.tasks.get(child));
        children.filter(|child| !child.state.is_ended())
    }

    pub(super) fn amend_asked(
        &mut self,
        ticket: Ticket,
        id: TaskId,
        amendment: Amendment,
        author: Author,
    ) {
        match self.amended(id, amendment) {
            Ok((version, intent, scope)) => {
                let scope = Box::new(scope);
                let fact = Fact::Amended { task: id, version, intent, scope, author };
                self.journal(fact);
                self.close(id, crate::event::Closing::Changed);
                self.end_wider_children(id);
                // The Yes is to the ends below it, too.
                self.acknowledge(ticket, id, version);
            }
            Err(denial) if matches!(denial, Denial::JournalFailed | Denial::Overloaded) => {
                self.withhold(ticket, denial);
            }
            Err(denial) => self.refuse(ticket, denial, (Some(id), "")),
        }
    }

    fn amended(
        &self,
        id: TaskId,
        amendment: Amendment,
    ) -> Result<(TaskVersion, alloc::string::String, Scope), Denial> {
        let task = self.live(id)?;
        if self.halted {
            return Err(Denial::JournalFailed);
        }
        if self.is_full() {
            return Err(Denial::Overloaded);
        }
        if amendment.if_version.is_some_and(|version| version != task.version) {
            return Err(Denial::VersionConflict);
        }
        let intent = amendment.intent.unwrap_or_else(|| task.mandate.intent.clone());
        let told = amendment.scope;
        if intent.len() > limits::INTENT_BYTES_MAX || !told.is_well_formed() {
            return Err(Denial::Malformed);
        }
        let scope = told.or(&task.mandate.scope);
        if scope.exceeds(&task.terms.bounds.scope).is_some() {
            return Err(Denial::ExceedsProfile);
        }
        let parent = task.parent.and_then(|parent| self.tasks.get(&parent));
        if parent.is_some_and(|parent| scope.exceeds(&parent.mandate.scope).is_some()) {
            return Err(Denial::ExceedsParent);
        }
        let version = task.version.0.checked_add(1).ok_or(Denial::Overloaded)?;
        Ok((TaskVersion(version), intent, scope))
    }

    /// INVARIANT P12: nothing below a task is wider than the task, also after it was amended.
    pub(super) fn end_wider_children(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else {
            return;
        };
        #[cfg(feature = "planted")]
        if self.has_planted(super::Planted::KeepWiderChildren) {
            return;
        }
        let scope = &task.mandate.scope;
        let wider = self.live_children(task).filter(|c| c.mandate.scope.exceeds(scope).is_some());
        let wider: alloc::vec::Vec<_> = wider.map(|child| child.id).collect();
        for child in wider {
            self.end(child, crate::task::Cause::ParentNarrowed);
        }
    }
}

/// How many attempts a job has.
pub(super) fn attempts_max(job: &Task) -> u32 {
    job.mandate.budget.attempts.unwrap_or(limits::ATTEMPTS_DEFAULT).min(limits::ATTEMPTS_MAX)
}

fn settle_scope(
    told: &Scope,
    (profile, parent): (&Scope, Option<&Scope>),
) -> Result<Scope, Denial> {
    let settle = |told: &Extent, profile: &Extent, parent: Option<&Extent>| {
        if told.is_told() {
            return if !told.is_within(profile) {
                Err(Denial::ExceedsProfile)
            } else if parent.is_some_and(|parent| !told.is_within(parent)) {
                Err(Denial::ExceedsParent)
            } else {
                Ok(told.clone())
            };
        }
        // What is not claimed is the lesser of what is above; where neither is, it has to be said.
        match parent {
            None => Ok(profile.clone()),
            Some(parent) if parent.is_within(profile) => Ok(parent.clone()),
            Some(parent) if profile.is_within(parent) => Ok(profile.clone()),
            Some(_neither) => Err(Denial::ExceedsProfile),
        }
    };
    Ok(Scope {
        actions: settle(&told.actions, &profile.actions, parent.map(|p| &p.actions))?,
        resources: settle(&told.resources, &profile.resources, parent.map(|p| &p.resources))?,
        audiences: settle(&told.audiences, &profile.audiences, parent.map(|p| &p.audiences))?,
        tools: settle(&told.tools, &profile.tools, parent.map(|p| &p.tools))?,
    })
}

fn settle_budget(
    told: &Budget,
    (bounds, parent): (&Bounds, Option<&Task>),
    is_job: bool,
) -> Result<Budget, Denial> {
    let above = parent.map_or_else(Budget::default, |parent| parent.mandate.budget);
    // Attempts are a job's own; its attempts do not inherit them.
    let above = Budget { attempts: None, ..above };
    let lesser = Budget {
        issuances: least(bounds.budget.issuances, above.issuances),
        per_minute: least(bounds.budget.per_minute, above.per_minute),
        attempts: bounds.budget.attempts,
    };
    let budget = told.or(&lesser);
    if !budget.is_within(&bounds.budget) {
        return Err(Denial::ExceedsProfile);
    }
    if !budget.is_within(&above) {
        return Err(Denial::ExceedsParent);
    }
    Ok(Budget { attempts: budget.attempts.filter(|_| is_job), ..budget })
}

fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn settle_reach(
    told: Option<Reach>,
    (bounds, parent): (&Bounds, Option<&Task>),
) -> Result<Reach, Denial> {
    let above = parent.map_or(Reach::MAX, |parent| {
        let reach = parent.reach();
        Reach { depth: reach.depth.saturating_sub(1), ..reach }
    });
    match told {
        Some(told) if !told.is_within(&bounds.reach) => Err(Denial::ExceedsProfile),
        Some(told) if !told.is_within(&above) => Err(Denial::ExceedsParent),
        Some(told) => Ok(told),
        None => Ok(bounds.reach.min(above)),
    }
}

fn settle_ttl(told: Option<Span>, parent: Option<&Task>) -> Result<Option<Span>, Denial> {
    match (told, parent.and_then(|parent| parent.mandate.ttl)) {
        (Some(told), Some(above)) if told > above => Err(Denial::ExceedsParent),
        (Some(told), _) => Ok(Some(told)),
        (None, above) => Ok(above),
    }
}
