//! P12 and P13 the slow way: extents as the words that they reach, and every count anew over the whole
//! journal.

use mayfly_core::{
    Budget, Extent, Fact, Holder, Mandate, OnFailure, Reach, RequestKey, Scope, Span, TaskId,
    Ticket, Tier, Timestamp, limits, task::Terms,
};

use super::{Oracle, Violation, uphold};
use crate::charge::WORDS;

type Checked = Result<(), Violation>;

impl Oracle {
    fn mandate(&self, id: TaskId) -> Option<&Mandate> {
        self.facts().find_map(|fact| {
            let Fact::Began { task, mandate, .. } = fact else { return None };
            (*task == id).then_some(&**mandate)
        })
    }

    /// The scope as it was last told.
    fn scope(&self, id: TaskId) -> Option<&Scope> {
        let amended = self.facts().rev().find_map(|fact| {
            let Fact::Amended { task, scope, .. } = fact else { return None };
            (*task == id).then_some(&**scope)
        });
        amended.or_else(|| self.mandate(id).map(|mandate| &mandate.scope))
    }

    fn owner(&self, id: TaskId) -> Option<&str> {
        let taken = self.facts().rev().find_map(|fact| {
            let Fact::Transferred { task, owner } = fact else { return None };
            (*task == id).then_some(owner.as_str())
        });
        taken.or_else(|| self.beginning(id).map(|begun| begun.terms.owner.as_str()))
    }

    fn children(&self, id: TaskId) -> Vec<TaskId> {
        let below = self.facts().filter_map(|fact| {
            let Fact::Began { task, parent, .. } = fact else { return None };
            (*parent == Some(id)).then_some(*task)
        });
        below.collect()
    }

    /// Somebody is accountable for nothing any more.
    pub(crate) fn hears_left(&mut self, owner: &str) {
        if !self.left.iter().any(|left| left == owner) {
            self.left.push(owner.into());
        }
    }

    /// The registrar is told that a task's holder is gone. Under a profile that quarantines what failed
    /// that is no end.
    pub(crate) fn hears_exit(&mut self, task: TaskId, exit: Option<i32>) {
        if !self.quarantines(task) {
            self.hears_end(task);
        } else if exit.is_some_and(|code| code != 0) {
            self.hears_quarantine(task, None);
        } else if !self.is_suspended(task) {
            self.hears_end(task);
        }
    }

    /// Somebody says that a task failed. Tells whether that quarantines it.
    pub(crate) fn hears_failure(&mut self, task: TaskId, by: Option<Ticket>) -> bool {
        let quarantines = self.quarantines(task);
        if quarantines {
            self.hears_quarantine(task, by);
        } else {
            self.hears_end(task);
        }
        quarantines
    }

    fn quarantines(&self, task: TaskId) -> bool {
        let begun = self.beginning(task);
        begun.is_some_and(|begun| begun.terms.bounds.on_failure == OnFailure::Quarantine)
    }

    /// P12 at a beginning that is about to be noted.
    pub(super) fn begins(&self, fact: &Fact, at: Timestamp) -> Checked {
        let Fact::Began { task, terms, holder, parent, mandate, deadline, key, .. } = fact else {
            return Ok(());
        };
        self.within_profile(*task, (terms, mandate))?;
        let cap = terms.task_ttl.map(|ttl| at.plus(ttl));
        uphold!(ends_by(*deadline, cap), "P12", "{task} ends after its profile's longest life");
        let left = self.left.contains(&terms.owner);
        uphold!(!left, "P12", "{task} was begun for {}, who has left", terms.owner);
        if let Some(key) = key {
            self.key_is_free(*task, key, at)?;
        }
        let Some(parent) = parent else { return Ok(()) };
        self.below(*task, *parent, (mandate, *deadline))?;
        for (levels, above) in (1..).zip(self.line(*parent)) {
            let reach = self.mandate(above).and_then(|mandate| mandate.reach).unwrap_or_default();
            uphold!(levels <= reach.depth, "P12", "{task} is {levels} levels below {above}");
        }
        let live = self.children(*parent).into_iter().filter(|child| !self.is_ended(*child));
        let live = live.count();
        let Some(begun) = self.beginning(*parent) else { return Ok(()) };
        if *begun.holder == Holder::Job {
            return self.attempts(*parent, (terms, holder), (live, at));
        }
        let reach = self.mandate(*parent).and_then(|mandate| mandate.reach).unwrap_or_default();
        let room = live < usize::try_from(reach.children).unwrap_or(usize::MAX);
        uphold!(room, "P12", "{task} is child {live} too many of {parent}");
        let to = begun.terms.bounds.delegates_to.as_ref();
        let named = to.is_none_or(|to| to.contains(&terms.profile));
        uphold!(named, "P12", "{task} is of a profile to which {parent} may not delegate");
        Ok(())
    }

    fn attempts(
        &self,
        job: TaskId,
        (terms, holder): (&Terms, &Holder),
        (live, at): (usize, Timestamp),
    ) -> Checked {
        uphold!(live == 0, "P12", "two attempts of {job} are alive");
        uphold!(*holder != Holder::Job, "P12", "an attempt of {job} is a job");
        let begun = self.beginning(job);
        let same = begun.is_some_and(|begun| begun.terms.profile == terms.profile);
        uphold!(same, "P12", "an attempt of {job} is of another profile");
        let open = begun.and_then(|begun| begun.deadline).is_some_and(|until| at < until);
        uphold!(open, "P12", "an attempt of {job} after its window");
        let (made, most) = (self.children(job).len(), self.attempts_max(job));
        uphold!(made < most, "P12", "{job} has {made} attempts of {most} and one more");
        Ok(())
    }

    fn attempts_max(&self, job: TaskId) -> usize {
        let most = self.mandate(job).and_then(|mandate| mandate.budget.attempts).unwrap_or(3);
        usize::try_from(most).unwrap_or(usize::MAX)
    }

    fn within_profile(&self, task: TaskId, (terms, mandate): (&Terms, &Mandate)) -> Checked {
        let bounds = &terms.bounds;
        let scope = self.scope(task).unwrap_or(&mandate.scope);
        uphold!(narrower(scope, &bounds.scope), "P12", "{task} is wider than its profile");
        let of = (&mandate.budget, mandate.reach.unwrap_or_default());
        let fits = spends_no_more(of, (&bounds.budget, bounds.reach));
        uphold!(fits, "P12", "{task} has more than its profile");
        Ok(())
    }

    fn below(
        &self,
        task: TaskId,
        parent: TaskId,
        (mandate, deadline): (&Mandate, Option<Timestamp>),
    ) -> Checked {
        let (Some(above), Some(outer)) = (self.mandate(parent), self.scope(parent)) else {
            return Ok(());
        };
        let scope = self.scope(task).unwrap_or(&mandate.scope);
        uphold!(narrower(scope, outer), "P12", "{task} is wider than {parent} above it");
        let reach = mandate.reach.unwrap_or_default();
        let budget = Budget { attempts: None, ..above.budget };
        let fits =
            spends_no_more((&mandate.budget, reach), (&budget, above.reach.unwrap_or_default()));
        uphold!(fits, "P12", "{task} has more than {parent} above it");
        let shorter = above.ttl.is_none_or(|above| mandate.ttl.is_some_and(|own| own <= above));
        uphold!(shorter, "P12", "credentials of {task} live longer than those of {parent}");
        let until = self.beginning(parent).and_then(|begun| begun.deadline);
        uphold!(ends_by(deadline, until), "P12", "{task} ends after {parent} above it");
        Ok(())
    }

    /// A key begins a second task only when the first is over, and has been for so long that whoever
    /// sent it has given up.
    fn key_is_free(&self, id: TaskId, wish: &RequestKey, at: Timestamp) -> Checked {
        for (other, _) in self.facts().filter_map(|fact| of_key(fact, wish)) {
            // What was forgotten stays so, though a crash has lost what the clock said then.
            let free = self.forgotten.contains(&other) || self.may_forget(other, at);
            uphold!(free, "P4", "one key began {other} and {id}");
        }
        Ok(())
    }

    fn may_forget(&self, id: TaskId, at: Timestamp) -> bool {
        self.journal.iter().any(|record| {
            matches!(&record.fact, Fact::Ended { task, .. } if *task == id)
                && record.at.plus(limits::FORGET_AFTER) <= at
        })
    }

    /// The registrar forgets a task.
    ///
    /// # Errors
    /// P4 if it may be asked for again.
    pub(crate) fn forgets(&mut self, task: TaskId) -> Checked {
        let late = self.may_forget(task, self.now);
        uphold!(late, "P4", "{task} is forgotten while its key may come again");
        self.forgotten.push(task);
        Ok(())
    }

    /// Somebody is told which task their wish has begun, or that their key is of another wish.
    ///
    /// # Errors
    /// P4 if the journal says something else.
    pub(crate) fn told(&self, wish: &RequestKey, answer: Option<TaskId>) -> Checked {
        // A disk may be so slow that a key has begun a second task before the first is told of.
        let mut begun = self.facts().filter_map(|fact| of_key(fact, wish));
        let known = begun.any(|(task, body)| match answer {
            Some(told) => told == task && body == wish.body,
            None => body != wish.body,
        });
        uphold!(known, "P4", "a key is answered with {answer:?} and began something else");
        Ok(())
    }

    /// P12 at an amendment, and what only failing says of an end.
    pub(super) fn changes(&self, fact: &Fact) -> Checked {
        if let Fact::Amended { task, version, scope, .. } = fact {
            let next = self.version(*task).0 + 1;
            uphold!(version.0 == next, "P9", "{task} became version {}, not {next}", version.0);
            let Some(begun) = self.beginning(*task) else { return Ok(()) };
            let fits = narrower(scope, &begun.terms.bounds.scope);
            uphold!(fits, "P12", "{task} was amended to more than its profile has");
            let outer = begun.parent.and_then(|parent| self.scope(parent));
            let fits = outer.is_none_or(|outer| narrower(scope, outer));
            uphold!(fits, "P12", "{task} was amended to more than its parent has");
        }
        if let Fact::Ended { task, cause, .. } = fact {
            use mayfly_core::Cause::{Failed, WatcherBlind};
            let job = self.beginning(*task).is_some_and(|begun| *begun.holder == Holder::Job);
            let by_itself = matches!(cause, Failed | WatcherBlind) && !job;
            // Whoever asks for an end gets it, whatever cause they name.
            let asked = self.heard.contains(task);
            let kept = self.quarantines(*task) && !self.is_suspended(*task) && !asked;
            uphold!(!(by_itself && kept), "P12", "{task} failed and ended in place of quarantine");
        }
        Ok(())
    }

    /// P12 and P13 at a promise that is about to be noted.
    pub(super) fn may_be_promised(&self, id: TaskId, at: Timestamp) -> Checked {
        let (Some(mandate), Some(begun)) = (self.mandate(id), self.beginning(id)) else {
            return Ok(());
        };
        uphold!(*begun.holder != Holder::Job, "P12", "{id} is a job and was promised something");
        let left = self.owner(id).is_some_and(|owner| self.left.iter().any(|left| left == owner));
        uphold!(!left, "P1", "{id} was promised something though its owner has left");
        if let (Some(parent), Some(scope)) = (begun.parent, self.scope(id)) {
            let outer = self.scope(parent);
            let fits = outer.is_none_or(|outer| narrower(scope, outer));
            uphold!(fits, "P12", "{id} is promised something and is wider than {parent}");
        }
        if mandate.budget == Budget::default() {
            return Ok(());
        }
        let minute = |at: Timestamp| at.0 / 60_000;
        let (mut all, mut now) = (0, 0);
        for record in &self.journal {
            if matches!(&record.fact, Fact::Promised { task, .. } if *task == id) {
                all += 1;
                now += u32::from(minute(record.at) == minute(at));
            }
        }
        let fits = mandate.budget.issuances.is_none_or(|most| all < most);
        uphold!(fits, "P13", "{id} has had {all} credentials and is promised one more");
        let fits = mandate.budget.per_minute.is_none_or(|most| now < most);
        uphold!(
            fits,
            "P13",
            "{id} has had {now} credentials in this minute and is promised one more"
        );
        Ok(())
    }

    /// The longest life of what is promised to `id` under a profile that gives `ttl`.
    pub(super) fn longest(&self, id: TaskId, ttl: Span) -> Span {
        let declared = self.mandate(id).and_then(|mandate| mandate.tier).unwrap_or_default();
        let least = self.beginning(id).map(|begun| begun.terms.bounds.tier).unwrap_or_default();
        let tier = match declared.max(least) {
            Tier::Low => 24 * 3600,
            Tier::Medium => 3600,
            Tier::High => 300,
        };
        let own = self.mandate(id).and_then(|mandate| mandate.ttl).unwrap_or(ttl);
        ttl.min(own).min(Span::from_secs(tier))
    }

    /// Whether the task that was promised `serial` may show a token to `audience`.
    pub(super) fn may_name(&self, id: TaskId, audience: &[String]) -> bool {
        let scope = self.scope(id);
        scope.is_some_and(|scope| audience.iter().all(|one| reaches(&scope.audiences, one)))
    }

    /// P12 and R43 once everything has settled.
    ///
    /// # Errors
    /// P12 for a live task that is wider than what is above it, or a job that stays without attempts.
    pub(crate) fn check_authority(&self) -> Checked {
        for id in self.tasks().filter(|id| !self.is_ended(*id)) {
            let (Some(begun), Some(mandate)) = (self.beginning(id), self.mandate(id)) else {
                continue;
            };
            self.within_profile(id, (begun.terms, mandate))?;
            let left = self.owner(id).is_some_and(|owner| self.left.iter().any(|l| l == owner));
            uphold!(!left, "P1", "{id} is live though its owner has left");
            if let Some(parent) = begun.parent {
                self.below(id, parent, (mandate, begun.deadline))?;
            }
            if *begun.holder == Holder::Job {
                let attempts = self.children(id);
                let done = self.facts().any(|fact| {
                    let Fact::Ended { task, cause, .. } = fact else { return false };
                    *cause == mayfly_core::Cause::Completed && attempts.contains(task)
                });
                uphold!(!done, "P12", "{id} is open though an attempt completed");
                let spent = attempts.len() >= self.attempts_max(id);
                let spent = spent && attempts.iter().all(|attempt| self.is_ended(*attempt));
                uphold!(!spent, "P12", "{id} is open and has no attempt left");
            }
        }
        Ok(())
    }
}

fn of_key(fact: &Fact, wish: &RequestKey) -> Option<(TaskId, [u8; 32])> {
    let Fact::Began { task, key: Some(told), .. } = fact else { return None };
    (told.key == wish.key).then_some((*task, told.body))
}

fn reaches(extent: &Extent, word: &str) -> bool {
    match extent {
        Extent::Any => true,
        Extent::Only(names) => names.iter().any(|name| {
            let stem = name.trim_end_matches('*');
            if stem == name { word == name } else { word.starts_with(stem) }
        }),
    }
}

fn narrower(inner: &Scope, outer: &Scope) -> bool {
    let dimensions = [
        (&inner.actions, &outer.actions),
        (&inner.resources, &outer.resources),
        (&inner.audiences, &outer.audiences),
        (&inner.tools, &outer.tools),
    ];
    dimensions.iter().all(|(inner, outer)| {
        WORDS.iter().all(|word| !reaches(inner, word) || reaches(outer, word))
    })
}

fn spends_no_more((budget, reach): (&Budget, Reach), (most, furthest): (&Budget, Reach)) -> bool {
    let fits = |one: Option<u64>, most: Option<u64>| {
        most.is_none_or(|most| one.is_some_and(|one| one <= most))
    };
    // Attempts are told for jobs only.
    fits(budget.issuances, most.issuances)
        && fits(budget.per_minute.map(u64::from), most.per_minute.map(u64::from))
        && budget.attempts.is_none_or(|one| most.attempts.is_none_or(|most| one <= most))
        && reach.depth <= furthest.depth
        && reach.children <= furthest.children
}

fn ends_by(deadline: Option<Timestamp>, cap: Option<Timestamp>) -> bool {
    cap.is_none_or(|cap| deadline.is_some_and(|deadline| deadline <= cap))
}
