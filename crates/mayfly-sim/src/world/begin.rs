//! The moves of orchestrators: tasks begun, jobs, attempts, wishes told twice, amendments.

use mayfly_core::{
    Amendment, Author, Begin, Event, Holder, Span, TaskId, TaskVersion, Timestamp, task::Terms,
};

use super::{Done, Wish, World};
use crate::charge::{Charge, OWNERS};

/// Wishes that are remembered to be told again.
const TOLD_MAX: usize = 16;

impl World {
    pub(super) fn begin(&mut self) -> Done {
        if self.rng.chance(150) {
            return self.tell_again();
        }
        let parent = if self.rng.chance(450) { self.rng.pick(&self.tasks).copied() } else { None };
        let profile = self.profile_below(parent);
        let Some(terms) = self.terms(profile).cloned() else {
            return Ok(());
        };
        if !self.in_force.get(profile).is_some_and(|in_force| *in_force) {
            return Ok(()); // The judge knows no such profile.
        }
        let is_job = self.rng.chance(self.weather.charge.jobs);
        let Some(holder) =
            (if is_job { Some(Holder::Job) } else { self.holder_for(terms.binding) })
        else {
            return Ok(());
        };
        let mut begin = self.wished(Begin { parent, ..Begin::new(terms, holder) });
        if self.rng.chance(self.weather.charge.keys) {
            begin.key = Some(Charge::key(&mut self.rng));
            self.told.truncate(TOLD_MAX - 1);
            self.told.insert(0, begin.clone());
        }
        self.wish_for(begin)
    }

    fn wished(&mut self, begin: Begin) -> Begin {
        let near = |at: Timestamp, rng: &mut crate::rng::Rng| at.plus(Span(1 + rng.below(900_000)));
        let is_job = begin.holder == Holder::Job;
        let by = self.rng.chance(if is_job { 900 } else { 300 });
        let deadline = by.then(|| near(self.now, &mut self.rng));
        let leased = begin.holder == Holder::Lease || (!is_job && self.rng.chance(200));
        let lease = leased.then(|| Span(100 + self.rng.below(400_000)));
        let named = self.rng.chance(100);
        let owner = self.rng.pick(&OWNERS).filter(|owner| named && !self.has_left(owner));
        Begin {
            deadline,
            lease,
            owner: owner.map(|owner| String::from(*owner)),
            delegated: self.rng.chance(60),
            mandate: self.weather.charge.mandate(&mut self.rng),
            ..begin
        }
    }

    /// A profile for a task below `parent`: mostly the one that an attempt of a job has to have.
    fn profile_below(&mut self, parent: Option<TaskId>) -> usize {
        let any = self.rng.index(self.weather.profiles.len());
        let above = parent.and_then(|id| self.registrar.as_ref()?.task(id));
        let job = above.filter(|above| above.holder == Holder::Job);
        let same = |terms: &Terms| job.is_some_and(|job| job.terms.profile == terms.profile);
        let same = self.weather.profiles.iter().position(same);
        same.filter(|_| self.rng.chance(850)).unwrap_or(any)
    }

    /// The same wish once more, as after a lost answer; sometimes another one under its key.
    fn tell_again(&mut self) -> Done {
        let Some(mut begin) = self.rng.pick(&self.told).cloned() else {
            return Ok(());
        };
        let of = |terms: &Terms| terms.profile == begin.terms.profile;
        let profile = self.weather.profiles.iter().position(of);
        let in_force = profile.and_then(|at| self.in_force.get(at)).is_some_and(|is| *is);
        // What a wish means is settled by those who tell it: a profile that is gone, or an owner who
        // has left, is found before the registrar hears of it.
        let owner = begin.owner.as_ref().unwrap_or(&begin.terms.owner);
        if !in_force || self.has_left(owner) {
            return Ok(());
        }
        if let (true, Some(key)) = (self.rng.chance(200), &mut begin.key) {
            key.body = Charge::key(&mut self.rng).body;
        }
        self.wish_for(begin)
    }

    fn wish_for(&mut self, begin: Begin) -> Done {
        let (ticket, luck) = (self.ticket(), TaskId::from_bytes(self.rng.bytes()));
        let wish = Wish::Begin { task: luck, key: begin.key };
        // Not diced for: worlds without foresight stay what they were.
        let first = luck.as_bytes().first_chunk().copied().map_or(0, u64::from_be_bytes);
        let first = (first % 1000 < self.weather.ahead).then_some(first);
        self.ask(ticket, wish, Event::BeginAsked { ticket, begin, luck, first })
    }

    pub(super) fn amend(&mut self) -> Done {
        let scope = self.weather.charge.scope(&mut self.rng);
        let guarded = self.rng.chance(250);
        let if_version =
            guarded.then(|| TaskVersion(1 + u32::try_from(self.rng.below(3)).unwrap_or(0)));
        let amendment = Amendment { intent: None, scope, if_version };
        let author = Author::default();
        self.about_task(Wish::Other, |ticket, task| Event::AmendAsked {
            ticket,
            task,
            amendment,
            author,
        })
    }
}
