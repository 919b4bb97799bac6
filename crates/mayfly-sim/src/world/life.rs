//! The moves of the machine: its disk, its signer, its network, its time and its death.

use mayfly_core::{Event, Registrar, Span, TaskId, registrar::Planted};

use super::{Done, World};
use crate::oracle::uphold;

impl World {
    /// The eyes look at one holder.
    pub(super) fn notice(&mut self) -> Done {
        if self.registrar.is_none() || self.watched.is_empty() {
            return Ok(());
        }
        let at = self.rng.index(self.watched.len());
        self.notice_at(at).map(drop)
    }

    /// Reports the holder of the watch at `at` if it is gone; says so.
    pub(super) fn notice_at(&mut self, at: usize) -> Result<bool, crate::oracle::Violation> {
        let gone = self.watched.get(at).is_some_and(|(_, holder)| self.machine.is_gone(holder));
        if gone {
            let (task, _) = self.watched.swap_remove(at);
            let failed = self.rng.chance(self.weather.charge.fails);
            // Who died while the broker was dead left no code.
            let exit = (!self.returning).then_some(if failed { 3 } else { 0 });
            self.oracle.hears_exit(task, exit);
            self.tell(Event::HolderGone { task, exit })?;
        }
        Ok(gone)
    }

    /// The eyes lose sight of one holder, which may be alive. What they see later still arrives.
    pub(super) fn blind(&mut self) -> Done {
        let Some((task, _)) = self.rng.pick(&self.watched).cloned() else {
            return Ok(());
        };
        if self.registrar.is_none() {
            return Ok(());
        }
        self.oracle.hears_failure(task, None);
        self.tell(Event::WatcherBlinded { task })
    }

    pub(super) fn flush(&mut self) -> Done {
        let short = self.rng.chance(self.weather.short_flush);
        let all = self.disk.unsynced();
        let count = if short { self.rng.index(all + 1) } else { all };
        self.flush_some(count)
    }

    pub(super) fn flush_some(&mut self, count: usize) -> Done {
        let halted = self.registrar.as_ref().is_none_or(Registrar::is_halted);
        if count == 0 || halted {
            return Ok(());
        }
        let upto = self.disk.sync(count);
        self.oracle.journaled(upto);
        self.tell(Event::Journaled { upto })
    }

    /// The signer finishes one signature; which one is luck.
    pub(super) fn sign(&mut self) -> Done {
        if self.signer.is_empty() {
            return Ok(());
        }
        let at = self.rng.index(self.signer.len());
        // The grant is used up by signing.
        let (ticket, _grant) = self.signer.swap_remove(at);
        if self.rng.chance(self.weather.signer_fails) {
            self.tell(Event::SigningFailed { ticket })
        } else {
            self.tell(Event::Signed { ticket })
        }
    }

    pub(super) fn deliver(&mut self) {
        let at = self.rng.index(self.lines.len());
        self.hear(at, self.weather.reorder);
        self.trace.mark(&[at as u64, self.post.position(at).sequence.0]);
    }

    /// The follower at `at` hears one message that is under way. Says whether there was one.
    pub(super) fn hear(&mut self, at: usize, reorder: u64) -> bool {
        let Some(line) = self.lines.get_mut(at) else { return false };
        let Some(message) = line.next(reorder, &mut self.rng) else { return false };
        if !self.post.deliver(at, message) {
            line.missed();
        }
        true
    }

    pub(super) fn connect(&mut self) -> Done {
        let at = self.rng.index(self.lines.len());
        let cut = self.rng.chance(400);
        if let (true, Some(line)) = (cut, self.lines.get_mut(at)) {
            line.cut();
            return Ok(());
        }
        self.resync(at)
    }

    /// The follower at `at` connects anew, and follows from there.
    pub(super) fn resync(&mut self, at: usize) -> Done {
        let (Some(registrar), Some(line)) = (&self.registrar, self.lines.get_mut(at)) else {
            return Ok(());
        };
        let before = self.post.position(at).sequence.0;
        let forward = self.post.connect(at, registrar.revocations());
        line.connect();
        uphold!(forward, "P9", "a snapshot is behind {before}, which follower {at} has heard");
        Ok(())
    }

    pub(super) fn tick(&mut self) -> Done {
        // Mostly small steps, and now and then one that expires everything.
        let most = if self.rng.chance(60) { 4_000_000 } else { self.weather.pace };
        self.now = self.now.plus(Span(1 + self.rng.below(most)));
        for at in 0..self.lines.len() {
            self.post.forget(at, self.now);
        }
        if self.rng.chance(700) { self.timers() } else { Ok(()) }
    }

    /// Lets the registrar do what is due.
    pub(super) fn timers(&mut self) -> Done {
        let now = self.clock();
        let Some(registrar) = &mut self.registrar else {
            return Ok(());
        };
        self.trace.mark(&[now.0]);
        self.trace.say(|| format!("{:>12} tick", now.0));
        self.oracle.clock(now);
        registrar.handle_timeout(now);
        self.obey()
    }

    pub(super) fn disk_fails(&mut self) -> Done {
        if self.registrar.as_ref().is_none_or(Registrar::is_halted) {
            return Ok(());
        }
        self.timers()?; // What is due is ordered while the disk still takes it.
        self.disk.fail();
        self.tell(Event::JournalFailed)
    }

    pub(super) fn crash_or_return(&mut self) -> Done {
        if self.registrar.is_some() {
            self.crash();
            if self.rng.chance(300) {
                return Ok(()); // Down for some moves.
            }
        }
        self.come_back()
    }

    fn crash(&mut self) {
        self.registrar = None;
        let survivors = self.disk.crash(&mut self.rng);
        self.oracle.crashed(survivors);
        self.trace.mark(&[survivors as u64]);
        self.trace.say(|| format!("{:>12} crash, {survivors} records survive", self.now.0));
        self.signer.clear();
        self.waiting.clear();
        self.watched.clear();
        self.sockets.clear();
        self.lines.iter_mut().for_each(crate::network::Line::cut);
    }

    /// Replays, looks who is still there, and only then serves.
    pub(super) fn come_back(&mut self) -> Done {
        let by_snapshot = self.rng.chance(self.weather.snapshot);
        if !by_snapshot {
            self.disk.rebuild();
        }
        let mut registrar = self.replayed(by_snapshot);
        self.trace.say(|| format!("{:>12} replay, by snapshot: {by_snapshot}", self.now.0));
        self.watched = registrar.reconcile();
        self.by_snapshot = by_snapshot;
        self.disk.remember(|task| registrar.task(task).is_some());
        self.post.start(registrar.revocations());
        self.registrar = Some(registrar);
        self.obey()?;
        self.returning = true;
        let mut at = 0;
        while at < self.watched.len() {
            if !self.notice_at(at)? {
                at += 1;
            }
        }
        self.returning = false;
        self.tell_policy()
    }

    fn replayed(&mut self, by_snapshot: bool) -> Registrar {
        let mut charter = self.charter.clone();
        charter.policy_epoch = self.epoch;
        match self.planted {
            Some(bug @ Planted::ForgetPromises) => {
                Registrar::replay_planted(charter, self.disk.journal(), bug)
            }
            planted => {
                // The planted slot bug lives in memory; a snapshot that knows better would mend it.
                let snapshot = by_snapshot.then(|| self.disk.snapshot(&mut self.rng));
                let mut registrar = Registrar::replay(charter, snapshot, self.disk.journal());
                if let Some(bug) = planted {
                    registrar.plant(bug);
                }
                registrar
            }
        }
    }

    /// INVARIANT P6: rebuilds a twin from the journal and compares what the two remember.
    pub(super) fn twin(&mut self) -> Done {
        let by_snapshot = self.disk.unsynced() == 0 && self.rng.chance(self.weather.snapshot);
        if self.registrar.as_ref().is_none_or(Registrar::is_halted) {
            return Ok(());
        }
        let twin = self.replayed(by_snapshot);
        let Some(registrar) = &self.registrar else {
            return Ok(());
        };
        let now = self.oracle.now();
        let (memory, twins) = (registrar.memory(now), twin.memory(now));
        for (id, task) in &memory.tasks {
            let other = twins.tasks.get(id);
            uphold!(other == Some(task), "P6", "{task:?} differs from its replay {other:?}");
        }
        let lost = |id: &&TaskId| !memory.tasks.contains_key(id) && !self.disk.has_forgotten(**id);
        let other = twins.tasks.keys().find(lost);
        uphold!(other.is_none(), "P6", "{other:?} is only in the replay");
        let (slots, others) = (&memory.next_slots, &twins.next_slots);
        uphold!(slots == others, "P6", "slots {slots:?} differ from their replay {others:?}");
        // The list holds what is durable; a replay holds everything that it is given. After a snapshot
        // and with a clock set back, a replay of everything remembers what was forgotten already.
        if self.disk.unsynced() == 0 && !self.by_snapshot {
            let (list, other) = (&memory.certificates, &twins.certificates);
            uphold!(list == other, "P6", "the list {list:?} differs from its replay {other:?}");
        }
        for task in registrar.tasks() {
            let same = twin.task(task.id).is_some_and(|other| other.state == task.state);
            uphold!(same, "P6", "{} is {:?} and not in its replay", task.id, task.state);
        }
        uphold!(registrar.last_sequence() == twin.last_sequence(), "P6", "a twin is behind");
        // A snapshot leaves out the statuses of tasks whose credentials have all expired, though their
        // windows have not.
        if self.disk.unsynced() == 0 && !by_snapshot && !self.by_snapshot {
            let (mut set, mut other) =
                (registrar.revocations().clone(), twin.revocations().clone());
            set.forget(now);
            other.forget(now);
            let same = set.windows().eq(other.windows()) && set.serials().eq(other.serials());
            uphold!(same, "P6", "the set {set:?} differs from its replay {other:?}");
        }
        Ok(())
    }
}
