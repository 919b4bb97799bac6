//! The moves of those who want something.

use mayfly_core::{
    Amendment, Ask, Author, Begin, Cause, Event, PolicyEpoch, Span, TaskId, Ticket, Timestamp,
    Verdict,
};

use super::{Done, Wish, World};
use crate::weather::Move;

impl World {
    pub(super) fn act(&mut self, next: Move) -> Done {
        match next {
            Move::Meet => self.meet(),
            Move::Ask => self.ask_credential(),
            Move::Begin => self.begin(),
            Move::Heartbeat => {
                self.about_task(Wish::Other, |ticket, task| Event::HeartbeatHeard { ticket, task })
            }
            Move::Amend => self.about_task(Wish::Other, |ticket, task| Event::AmendAsked {
                ticket,
                task,
                amendment: Amendment::default(),
                author: Author::default(),
            }),
            Move::End => self.end(),
            Move::Quarantine => self.quarantine(),
            Move::Release => self.release(),
            Move::Revoke => self.revoke(),
            Move::Policy => self.policy(),
            Move::Spawn => {
                self.machine.spawn(&mut self.rng);
                Ok(())
            }
            Move::Die => {
                self.machine.kill(&mut self.rng);
                Ok(())
            }
            Move::Notice => self.notice(),
            Move::Flush => self.flush(),
            Move::Sign => self.sign(),
            Move::Deliver => {
                self.deliver();
                Ok(())
            }
            Move::Connect => self.connect(),
            Move::Tick => self.tick(),
            Move::Step => {
                // A clock that is off by more than half of `FORGET_AFTER` breaks the law for a
                // verifier with a true one; docs/invariants.md says so under P3.
                self.skew = i64::try_from(self.rng.below(110_000)).unwrap_or(0) - 55_000;
                Ok(())
            }
            Move::Crash => self.crash_or_return(),
            Move::DiskFails => self.disk_fails(),
            Move::Twin => self.twin(),
        }
    }

    /// What the judge says of a process: its profiles that are in force, or fewer of them.
    fn earned(&mut self, earns: u64) -> Vec<usize> {
        let fewer = self.rng.chance(200);
        let mut earned = Vec::new();
        for (at, in_force) in self.in_force.iter().enumerate() {
            let missed = fewer && self.rng.chance(500);
            if *in_force && earns & (1 << at) != 0 && !missed {
                earned.push(at);
            }
        }
        earned
    }

    fn meet(&mut self) -> Done {
        let socket =
            if self.rng.chance(200) { self.rng.pick(&self.sockets).copied() } else { None };
        let process = self.machine.living(&mut self.rng);
        let earns = match (socket, process.and_then(|at| self.machine.process(at))) {
            (Some(_), _) => u64::MAX,
            (None, Some(process)) => process.earns,
            (None, None) => return Ok(()),
        };
        let mut caller = process.map(|at| self.machine.caller(at)).unwrap_or_default();
        caller.socket = socket;
        let earned = self.earned(earns);
        let permits = earned.iter().filter_map(|at| self.terms(*at)).cloned().collect();
        let late = self.epoch.0 > 1 && self.rng.chance(100);
        let epoch = PolicyEpoch(self.epoch.0 - u64::from(late));
        let luck = earned.iter().map(|_| TaskId::from_bytes(self.rng.bytes())).collect();
        let ticket = self.ticket();
        let wish = Wish::Meet { process, socket, earned };
        let verdict = Verdict { epoch, permits };
        self.ask(ticket, wish, Event::Met { ticket, caller, verdict, luck })
    }

    fn ask_credential(&mut self) -> Done {
        let Some(mut basis) = self.rng.pick(&self.introduced).copied() else {
            return Ok(());
        };
        if self.rng.chance(800) {
            basis.epoch = self.epoch;
        }
        let ask =
            if self.rng.chance(600) { Ask::X509 } else { Ask::Jwt { audience: vec!["a".into()] } };
        let (ticket, luck) = (self.ticket(), self.rng.next());
        let wish = Wish::Credential { serial: None };
        self.ask(ticket, wish, Event::Asked { ticket, basis, ask, luck })
    }

    fn begin(&mut self) -> Done {
        let profile = self.rng.index(self.weather.profiles.len());
        let Some(terms) = self.terms(profile).cloned() else {
            return Ok(());
        };
        if !self.in_force.get(profile).is_some_and(|in_force| *in_force) {
            return Ok(()); // The judge knows no such profile.
        }
        let Some(holder) = self.holder_for(terms.binding) else {
            return Ok(());
        };
        let parent = if self.rng.chance(450) { self.rng.pick(&self.tasks).copied() } else { None };
        let near = |at: Timestamp, rng: &mut crate::rng::Rng| at.plus(Span(1 + rng.below(900_000)));
        let deadline = self.rng.chance(300).then(|| near(self.now, &mut self.rng));
        let leased = holder == mayfly_core::Holder::Lease || self.rng.chance(200);
        let lease = leased.then(|| Span(100 + self.rng.below(400_000)));
        let (ticket, luck) = (self.ticket(), TaskId::from_bytes(self.rng.bytes()));
        let begin = Begin { parent, deadline, lease, ..Begin::new(terms, holder) };
        self.ask(ticket, Wish::Begin { task: luck }, Event::BeginAsked { ticket, begin, luck })
    }

    fn about_task(&mut self, wish: Wish, event: impl FnOnce(Ticket, TaskId) -> Event) -> Done {
        let Some(task) = self.rng.pick(&self.tasks).copied() else {
            return Ok(());
        };
        let ticket = self.ticket();
        self.ask(ticket, wish, event(ticket, task))
    }

    fn end(&mut self) -> Done {
        let Some(task) = self.rng.pick(&self.tasks).copied() else {
            return Ok(());
        };
        if self.registrar.is_some() {
            self.oracle.hears_end(task);
        }
        let cause = self.rng.pick(&Cause::ALL).copied().unwrap_or(Cause::Revoked);
        let ticket = self.ticket();
        self.ask(
            ticket,
            Wish::End { task },
            Event::EndAsked { ticket, task, cause, author: Author::default() },
        )
    }

    fn quarantine(&mut self) -> Done {
        let Some(task) = self.rng.pick(&self.tasks).copied() else {
            return Ok(());
        };
        if self.registrar.is_some() {
            self.oracle.hears_quarantine(task);
        }
        let ticket = self.ticket();
        self.ask(
            ticket,
            Wish::Quarantine { task },
            Event::QuarantineAsked { ticket, task, author: Author::default() },
        )
    }

    fn release(&mut self) -> Done {
        let Some(task) = self.rng.pick(&self.tasks).copied() else {
            return Ok(());
        };
        let ticket = self.ticket();
        if self.registrar.is_some() {
            self.oracle.hears_release(task, ticket);
        }
        self.ask(
            ticket,
            Wish::Release,
            Event::ReleaseAsked { ticket, task, author: Author::default() },
        )
    }

    fn revoke(&mut self) -> Done {
        let Some(serial) = self.rng.pick(&self.serials).copied() else {
            return Ok(());
        };
        let ticket = self.ticket();
        self.ask(
            ticket,
            Wish::Other,
            Event::RevokeAsked { ticket, serial, author: Author::default() },
        )
    }

    fn policy(&mut self) -> Done {
        let at = self.rng.index(self.in_force.len());
        if let Some(in_force) = self.in_force.get_mut(at) {
            *in_force = !*in_force;
        }
        self.epoch.0 += 1;
        self.tell_policy()
    }

    /// Tells the registrar which profiles are gone; again after each replay, because what was gone
    /// when it died may not have been on disk.
    pub(super) fn tell_policy(&mut self) -> Done {
        let gone = self.weather.profiles.iter().zip(&self.in_force);
        let gone = gone.filter(|(_, in_force)| !**in_force);
        let gone = gone.map(|(terms, _)| terms.profile.clone()).collect();
        let (left, transfers) = Default::default();
        self.tell(Event::PolicyChanged { epoch: self.epoch, gone, left, transfers })
    }
}
