//! The weather clears: nothing fails any more, and everything has to settle.

use mayfly_core::{Begin, Event, Holder, Registrar, Span, TaskId};

use super::{Done, Wish, World};
use crate::oracle::uphold;

/// Rounds in which everything that waits is worked off. Each round does all of each kind, and the
/// longest chain is promise, sign, release, publish, hear, once for each of those that wait in turn.
const ROUNDS_MAX: usize = 32;

impl World {
    pub(super) fn clear(&mut self) -> Done {
        self.trace.say(|| format!("{:>12} the weather clears", self.now.0));
        (self.weather.loss, self.weather.echo, self.weather.reorder) = (0, 0, 0);
        self.weather.signer_fails = 0;
        if self.registrar.as_ref().is_none_or(Registrar::is_halted) {
            if self.registrar.is_some() {
                self.crash_or_return()?;
            }
            if self.registrar.is_none() {
                self.come_back()?;
            }
        }
        self.settle()?;
        self.check()?;
        self.twin()?;
        self.newcomer()?;
        self.night()
    }

    fn settle(&mut self) -> Done {
        self.timers()?;
        for _ in 0..ROUNDS_MAX {
            let mut at = 0;
            while at < self.watched.len() {
                at += usize::from(!self.notice_at(at)?);
            }
            self.flush_some(self.disk.unsynced())?;
            while !self.signer.is_empty() {
                self.sign()?;
            }
            self.hear_all()?;
            if self.disk.unsynced() == 0 && self.signer.is_empty() {
                break;
            }
        }
        uphold!(self.disk.unsynced() == 0, "P10", "records keep coming and nobody asks");
        uphold!(self.waiting.is_empty(), "P10", "never answered: {:?}", self.waiting);
        Ok(())
    }

    /// Every follower hears what is under way, and the position that each heartbeat of the feed
    /// carries. Whoever stands elsewhere asks for a snapshot.
    fn hear_all(&mut self) -> Done {
        for at in 0..self.lines.len() {
            while self.hear(at, 0) {}
            let position = self.registrar.as_ref().map(|r| r.revocations().position());
            let behind = position != Some(self.post.position(at));
            let lost =
                self.lines.get(at).is_none_or(|line| line.is_holed() || !line.is_connected());
            if behind || lost {
                self.resync(at)?;
            }
        }
        Ok(())
    }

    fn check(&self) -> Done {
        let Some(registrar) = &self.registrar else {
            return Ok(());
        };
        let now = self.now.max(self.clock());
        for at in 0..self.lines.len() {
            let says = |serial: &mayfly_core::Serial| self.post.status(at, serial);
            self.oracle.check_set(&format!("follower {at}"), says, now)?;
        }
        self.oracle.check_list(registrar, now)?;
        self.oracle.check_alarms(registrar, now)?;
        self.oracle.check_authority()?;
        self.oracle.check_tasks(registrar, |task| self.disk.has_forgotten(task))
    }

    /// Somebody new gets a task and its credential: whatever the weather was, it left nothing shut.
    fn newcomer(&mut self) -> Done {
        let Some(mut terms) = self.terms(0).cloned() else {
            return Ok(());
        };
        terms.binding = mayfly_core::Binding::Lease;
        terms.task_ttl = None;
        terms.profile = "newcomer".into();
        terms.bounds = mayfly_core::Bounds::default();
        let (ticket, luck) = (self.ticket(), TaskId::from_bytes(self.rng.bytes()));
        let lease = Some(Span::from_secs(3600));
        let holder = Holder::Lease;
        let begin = Begin { lease, ..Begin::new(terms, holder) };
        let wish = Wish::Begin { task: luck, key: None };
        self.ask(ticket, wish, Event::BeginAsked { ticket, begin, luck, first: None })?;
        self.settle()?;
        let basis = self.introduced.iter().rev().find(|basis| basis.task == luck).copied();
        let Some(basis) = basis else {
            return Err(crate::oracle::Violation {
                law: "P10",
                what: "a newcomer's task was not begun".into(),
            });
        };
        let (ticket, luck) = (self.ticket(), self.rng.next());
        let ask = mayfly_core::Ask::X509;
        let before = self.oracle.count_released();
        let wish = Wish::Credential { serial: None };
        self.ask(ticket, wish, Event::Asked { ticket, basis, ask, luck })?;
        self.settle()?;
        let got = self.oracle.count_released() == before + 1;
        uphold!(got, "P10", "a newcomer got no credential in calm weather");
        self.check()
    }

    /// Everything dies and a long time passes. Nothing may be left that anybody could use (R7), and
    /// nothing remembered that nobody can ask about (P10).
    fn night(&mut self) -> Done {
        while self.machine.living(&mut self.rng).is_some() {
            self.machine.kill(&mut self.rng);
        }
        let tasks: Vec<_> =
            self.registrar.iter().flat_map(Registrar::tasks).map(|t| t.id).collect();
        for task in tasks {
            self.oracle.hears_end(task);
            let ticket = self.ticket();
            let cause = mayfly_core::Cause::Completed;
            self.ask(
                ticket,
                Wish::End { task },
                Event::EndAsked { ticket, task, cause, author: mayfly_core::Author::default() },
            )?;
        }
        self.settle()?;
        self.skew = 0;
        self.now = self.now.plus(Span::from_secs(26 * 3600));
        // Parents wait for their children, so that a deep tree takes a while to be forgotten.
        for _ in 0..40 {
            self.settle()?;
            self.now = self.now.plus(Span::from_secs(130));
        }
        let live = self.oracle.live_credentials(self.now);
        uphold!(live == 0, "P7", "{live} credentials are alive after the night (R7)");
        let Some(registrar) = &self.registrar else {
            return Ok(());
        };
        let left = registrar.tasks().count();
        uphold!(left == 0, "P10", "{left} tasks are remembered after the night");
        let memory = registrar.memory(self.now);
        let empty = memory.next_slots.is_empty() && memory.certificates.is_empty();
        uphold!(empty, "P10", "{memory:?} is remembered after the night");
        let set = registrar.revocations();
        let empty = set.windows().next().is_none() && set.serials().next().is_none();
        uphold!(empty, "P10", "{set:?} is remembered after the night");
        Ok(())
    }
}
