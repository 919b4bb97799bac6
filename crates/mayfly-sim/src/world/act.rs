//! The moves of those who want something.

use mayfly_core::{Ask, Author, Cause, Event, PolicyEpoch, TaskId, Ticket, Verdict};

use super::{Done, Wish, World};
use crate::{
    charge::{Charge, HEIR, OWNERS},
    weather::Move,
};

impl World {
    pub(super) fn act(&mut self, next: Move) -> Done {
        match next {
            Move::Meet => self.meet(),
            Move::Ask => self.ask_credential(),
            Move::Begin => self.begin(),
            Move::Heartbeat => {
                self.about_task(Wish::Other, |ticket, task| Event::HeartbeatHeard { ticket, task })
            }
            Move::Amend => self.amend(),
            Move::End => self.end(),
            Move::Quarantine => self.quarantine(),
            Move::Release => self.release(),
            Move::Revoke => self.revoke(),
            Move::Policy => self.policy(),
            Move::Leave => self.leave(),
            Move::Blind => self.blind(),
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
        let verdict = Verdict { epoch, permits };
        let at_once = self.rng.chance(400).then(|| mayfly_core::Wish {
            ask: self.some_ask(),
            spiffe_id: None,
            luck: self.rng.next(),
        });
        let wants = at_once.as_ref().map(|wish| (wish.ask.kind(), wish.luck));
        let wish = Wish::Meet { process, socket, earned, wants };
        self.ask(ticket, wish, Event::Met { ticket, caller, verdict, luck, wish: at_once })
    }

    fn some_ask(&mut self) -> Ask {
        if self.rng.chance(600) {
            Ask::X509
        } else {
            Ask::Jwt { audience: Charge::audience(&mut self.rng) }
        }
    }

    fn ask_credential(&mut self) -> Done {
        let Some(mut basis) = self.rng.pick(&self.introduced).copied() else {
            return Ok(());
        };
        if self.rng.chance(800) {
            basis.epoch = self.epoch;
        }
        let ask = self.some_ask();
        let (ticket, luck) = (self.ticket(), self.rng.next());
        let wish = Wish::Credential { serial: None };
        self.ask(ticket, wish, Event::Asked { ticket, basis, ask, luck })
    }

    pub(super) fn about_task(
        &mut self,
        wish: Wish,
        event: impl FnOnce(Ticket, TaskId) -> Event,
    ) -> Done {
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
        let cause = self.rng.pick(&Cause::ALL).copied().unwrap_or(Cause::Revoked);
        let failed = self.rng.chance(self.weather.charge.fails / 3);
        let cause = if failed { Cause::Failed } else { cause };
        let ticket = self.ticket();
        let mut wish = Wish::End { task };
        if self.registrar.is_none() {
            return Ok(());
        } else if cause != Cause::Failed {
            self.oracle.hears_end(task);
        } else if self.oracle.hears_failure(task, Some(ticket)) {
            wish = Wish::Quarantine;
        }
        self.ask(ticket, wish, Event::EndAsked { ticket, task, cause, author: Author::default() })
    }

    fn quarantine(&mut self) -> Done {
        let Some(task) = self.rng.pick(&self.tasks).copied() else {
            return Ok(());
        };
        let ticket = self.ticket();
        if self.registrar.is_some() {
            self.oracle.hears_quarantine(task, Some(ticket));
        }
        self.ask(
            ticket,
            Wish::Quarantine,
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

    /// An owner leaves. The profiles have another one from here on; the tasks may have.
    fn leave(&mut self) -> Done {
        let Some(owner) = self.rng.pick(&OWNERS).filter(|owner| !self.has_left(owner)) else {
            return Ok(());
        };
        self.left.push((String::from(*owner), self.rng.chance(500)));
        for terms in self.weather.profiles.iter_mut().filter(|terms| terms.owner == *owner) {
            terms.owner = HEIR.into();
        }
        self.epoch.0 += 1;
        self.tell_policy()
    }

    pub(super) fn has_left(&self, owner: &str) -> bool {
        self.left.iter().any(|(left, _)| left == owner)
    }

    /// Tells the registrar which profiles and owners are gone; again after each replay, because what was gone
    /// when it died may not have been on disk.
    pub(super) fn tell_policy(&mut self) -> Done {
        let gone = self.weather.profiles.iter().zip(&self.in_force);
        let gone = gone.filter(|(_, in_force)| !**in_force);
        let gone = gone.map(|(terms, _)| terms.profile.clone()).collect();
        let left: Vec<_> = self.left.iter().map(|(owner, _)| owner.clone()).collect();
        left.iter().for_each(|owner| self.oracle.hears_left(owner));
        let taken = self.left.iter().filter(|(_, taken)| *taken);
        let transfers = taken.map(|(owner, _)| (owner.clone(), HEIR.into())).collect();
        self.tell(Event::PolicyChanged { epoch: self.epoch, gone, left, transfers })
    }
}
