//! What the oracle says to each thing as it happens.

use mayfly_core::{
    Caller, Change, Delta, Denial, Holder, Identity, Kind, Record, Sequence, Serial, Status,
    TaskId, Ticket, Timestamp, record::Fact,
};

use super::{Oracle, Promise, Violation, Ward, is_ended, is_suspended, promise, uphold, version};

type Checked = Result<(), Violation>;

impl Oracle {
    /// The broker's clock shows `now`; to a registrar it never goes back.
    pub(crate) fn clock(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
    }

    /// The latest that the registrar has heard the clock say.
    #[must_use]
    pub(crate) const fn now(&self) -> Timestamp {
        self.now
    }

    /// Records so far, durable or not.
    #[must_use]
    pub(crate) const fn count_records(&self) -> usize {
        self.journal.len()
    }

    /// Credentials that left so far.
    #[must_use]
    pub(crate) const fn count_released(&self) -> usize {
        self.released.len()
    }

    /// Somebody tells the registrar that `task` is over.
    pub(crate) fn hears_end(&mut self, task: TaskId) {
        self.heard.push(task);
    }

    /// An operator asks for a quarantine by name.
    pub(crate) fn hears_quarantine(&mut self, task: TaskId, by: Option<Ticket>) {
        self.wards.push(Ward { task, by, acknowledged: false, releasing: Vec::new() });
    }

    /// An operator asks for the release of `task`.
    pub(crate) fn hears_release(&mut self, task: TaskId, ticket: Ticket) {
        for ward in self.wards.iter_mut().filter(|ward| ward.task == task) {
            ward.releasing.push(ticket);
        }
    }

    /// The answer to a quarantine: from here on it has to hold.
    pub(crate) fn quarantined(&mut self, by: Ticket) {
        for ward in self.wards.iter_mut().filter(|ward| ward.by == Some(by)) {
            ward.acknowledged = true;
        }
    }

    /// The answer to a release: yes, or a denial after which the quarantine holds as before. A failed
    /// disk says neither: the record may be there.
    pub(crate) fn released_from_quarantine(&mut self, by: Ticket, answer: Result<(), Denial>) {
        if answer.is_ok() {
            self.wards.retain(|ward| !ward.releasing.contains(&by));
        }
        for ward in self.wards.iter_mut().filter(|ward| ward.releasing.contains(&by)) {
            ward.acknowledged &= answer != Err(Denial::JournalFailed);
            ward.releasing.retain(|ticket| *ticket != by);
        }
    }

    /// A record is ordered.
    ///
    /// # Errors
    /// The law that it breaks.
    pub(crate) fn ordered(&mut self, sequence: Sequence, record: &Record) -> Checked {
        let next = self.journal.len() as u64 + 1;
        uphold!(sequence.0 == next, "P9", "record {} came in place of {next}", sequence.0);
        let before = self.journal.last().map(|last| last.at).unwrap_or_default();
        uphold!(record.at >= before, "P9", "record {next} is older than the one before it");
        if let Some(promise) = promise(&record.fact) {
            self.promised(promise, record.at)?;
            self.may_be_promised(promise.task, record.at)?;
            self.promised_to_somebody(promise, record.at)?;
        }
        self.begins(&record.fact, record.at)?;
        self.changes(&record.fact)?;
        if let Fact::Began { task, parent: Some(parent), .. } = &record.fact {
            let fit = self.beginning(*parent).is_some()
                && !self.is_over(*parent)
                && !self.is_suspended(*parent);
            uphold!(fit, "P1", "{task} was begun below {parent}, which is not active");
        }
        self.journal.push(record.clone());
        Ok(())
    }

    fn promised(&self, promise: Promise, at: Timestamp) -> Checked {
        let Promise { task, version, kind, serial, not_after } = promise;
        let begun = self.beginning(task);
        uphold!(begun.is_some(), "P8", "{serial} was promised to nobody");
        uphold!(!self.is_over(task), "P1", "{serial} was promised to {task}, which is over");
        uphold!(!self.is_suspended(task), "P1", "{serial} was promised to a quarantined task");
        uphold!(version == self.version(task), "P1", "{serial} was promised to an old version");
        let kept = self.line_keeps_until(task).is_none_or(|until| not_after <= until);
        uphold!(kept, "P7", "{serial} outlives the lease or deadline of {task} or its parents");
        uphold!(not_after > at, "P7", "{serial} is dead on arrival");
        let ttl = begun.map(|begun| match kind {
            Kind::X509 => begun.terms.x509_ttl,
            Kind::Jwt => begun.terms.jwt_ttl,
        });
        let short = ttl.is_some_and(|ttl| not_after <= at.plus(self.longest(task, ttl)));
        uphold!(short, "P7", "{serial} outlives the ttl of its profile, tier or task");
        for other in self.promises() {
            uphold!(other.serial != serial, "P9", "{serial} was promised twice");
            let same = (other.task, other.version) == (task, version);
            let apart = other.serial.place() != serial.place();
            uphold!(same || apart, "P9", "{serial} stands in the slot of {}", other.serial);
        }
        Ok(())
    }

    /// The disk has told the registrar that everything up to `upto` is there.
    pub(crate) fn journaled(&mut self, upto: Sequence) {
        self.durable = self.durable.max(usize::try_from(upto.0).unwrap_or(usize::MAX));
    }

    /// The registrar died. `survivors` records are on the disk, and nothing else is remembered.
    pub(crate) fn crashed(&mut self, survivors: usize) {
        self.journal.truncate(survivors);
        self.durable = self.journal.len();
        self.heard.clear();
        self.asking.clear();
        self.ahead.clear();
        self.now = self.journal.last().map(|last| last.at).unwrap_or_default();
        self.position = self.durable as u64;
        for ward in &mut self.wards {
            // A release that was not answered may have happened, or half of it.
            ward.acknowledged &= ward.releasing.is_empty();
            ward.releasing.clear();
        }
    }

    /// A signature is ordered.
    ///
    /// # Errors
    /// P2 if its promise is not durable.
    pub(crate) fn signing(
        &mut self,
        ticket: Ticket,
        serial: Serial,
        audience: &[String],
    ) -> Checked {
        let task = self.promises().find(|known| known.serial == serial).map(|known| known.task);
        let fits = task.is_some_and(|task| self.may_name(task, audience));
        uphold!(fits, "P12", "{serial} is for {audience:?}, outside the scope of its task");
        let durable = self.on_disk().filter_map(promise).any(|known| known.serial == serial);
        uphold!(durable, "P2", "{serial} is signed before its promise is on disk");
        uphold!(!self.signing.contains(&serial), "P2", "{serial} is signed twice");
        self.takes_what_was_ahead(ticket, serial)?;
        self.signing.push(serial);
        Ok(())
    }

    /// A credential leaves.
    ///
    /// # Errors
    /// P1 if its task is known to be over, or not to be active.
    pub(crate) fn released(&mut self, serial: Serial) -> Checked {
        uphold!(self.signing.contains(&serial), "P2", "{serial} was never signed");
        uphold!(!self.released.contains(&serial), "P2", "{serial} is released twice");
        let known = self.promises().find(|known| known.serial == serial);
        let Some(Promise { task, version, .. }) = known else {
            return Err(Violation { law: "P2", what: format!("{serial} is unknown") });
        };
        uphold!(!self.is_over(task), "P1", "{serial} is released though {task} is over");
        uphold!(!self.is_suspended(task), "P1", "{serial} is released under quarantine");
        let durable = !is_suspended(self.on_disk(), task);
        uphold!(durable, "P4", "{serial} is released and its task's own release is not on disk");
        uphold!(version == self.version(task), "P1", "{serial} is of an old version of {task}");
        uphold!(!self.is_revoked_alone(serial), "P1", "{serial} is released though revoked");
        let kept = self.line_keeps_until(task).is_none_or(|until| until > self.now);
        uphold!(kept, "P1", "{serial} is released after the time of {task}");
        self.released.push(serial);
        Ok(())
    }

    /// A delta goes to the followers.
    ///
    /// # Errors
    /// P4 or P9.
    pub(crate) fn published(&mut self, delta: &Delta) -> Checked {
        let (from, to) = (delta.from.sequence.0, delta.to.sequence.0);
        uphold!(from == self.position, "P9", "a delta starts at {from}, not {}", self.position);
        uphold!(to > from, "P9", "a delta from {from} to {to}");
        uphold!(to <= self.durable as u64, "P4", "a delta up to {to} is ahead of the disk");
        for change in &delta.changes {
            let true_on_disk = match change {
                Change::Place(place, status) => {
                    self.is_so(*status, |known| known.serial.place() == *place)
                }
                Change::Serial(serial, _) => super::is_revoked_alone(self.on_disk(), *serial),
            };
            uphold!(true_on_disk, "P4", "{change:?} was published and is not on disk");
        }
        self.position = to;
        Ok(())
    }

    fn is_so(&self, status: Status, which: impl Fn(&Promise) -> bool) -> bool {
        let Some(known) = self.on_disk().filter_map(promise).find(which) else {
            return false;
        };
        let suspended =
            |fact: &Fact| matches!(fact, Fact::Suspended { task, .. } if *task == known.task);
        let resumed =
            |fact: &Fact| matches!(fact, Fact::Resumed { task, .. } if *task == known.task);
        match status {
            Status::Revoked => {
                is_ended(self.on_disk(), known.task)
                    || known.version < version(self.on_disk(), known.task)
            }
            Status::Suspended => self.on_disk().any(suspended),
            Status::Valid => self.on_disk().any(resumed),
        }
    }

    /// Somebody is told Yes. `upto` is the length of the journal when the registrar had decided.
    ///
    /// # Errors
    /// P4 if a crash could unsay it.
    pub(crate) fn acknowledged(&self, upto: usize) -> Checked {
        uphold!(self.durable >= upto, "P4", "a Yes to record {upto} at {}", self.durable);
        Ok(())
    }

    /// Somebody is told that `task` is over.
    ///
    /// # Errors
    /// P4 unless its end and the ends of everything below it are on disk.
    pub(crate) fn end_acknowledged(&self, task: TaskId) -> Checked {
        for id in self.tasks() {
            let below = self.line(id).contains(&task);
            let ended = !below || is_ended(self.on_disk(), id);
            uphold!(ended, "P4", "the end of {task} is acknowledged and {id} lives on disk");
        }
        Ok(())
    }

    /// A caller is told who it is.
    ///
    /// # Errors
    /// P8 if it is told more than was earned.
    pub(crate) fn introduced(
        &self,
        caller: &Caller,
        earned: &[&str],
        found: &[Identity],
    ) -> Checked {
        uphold!(!found.is_empty(), "P8", "an introduction without identities");
        for identity in found {
            let id = identity.task;
            let Some(begun) = self.beginning(id) else {
                return Err(Violation { law: "P8", what: format!("{id} was never begun") });
            };
            let earns = earned.contains(&begun.terms.profile.as_str());
            uphold!(earns, "P8", "{id} is of {}, not among {earned:?}", begun.terms.profile);
            uphold!(holds(caller, begun.holder, id), "P8", "{caller:?} does not hold {id}");
            let active = !self.is_over(id) && !self.is_suspended(id);
            uphold!(active, "P1", "{id} is introduced and is not active");
            uphold!(identity.version == self.version(id), "P1", "{id} has another version");
        }
        Ok(())
    }
}

fn holds(caller: &Caller, holder: &Holder, task: TaskId) -> bool {
    match holder {
        Holder::Process(key) => caller.lineage.first() == Some(key),
        Holder::Lineage(key) => caller.lineage.contains(key),
        Holder::Cgroup(path) => {
            caller.cgroup.as_deref().is_some_and(|own| crate::actors::below(own, path))
        }
        Holder::Unit(it) => caller.unit.as_ref() == Some(it),
        Holder::Container(it) => caller.container.as_ref() == Some(it),
        Holder::Pod(it) => caller.pod.as_ref() == Some(it),
        Holder::Socket | Holder::Lease => caller.socket == Some(task),
        Holder::Job => false,
    }
}
