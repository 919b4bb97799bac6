//! State as the fold of records. Live decisions and replay go through the same function, so that
//! memory and a replayed journal cannot come to differ (P6).

use alloc::{collections::BTreeSet, sync::Arc, vec::Vec};

use super::{Charter, Ground, Registrar, RevokedCertificate, Timer, due::Due, keys::Keys};
use crate::{
    credentials::Credentials,
    event::Effect,
    evidence::Holder,
    id::{Position, Sequence, TaskId, TaskVersion},
    ledger::{Credential, Kind, Place, Serial, Slot},
    limits,
    mandate::Spent,
    record::{Fact, Record, Snapshot},
    revocation::{Change, RevocationSet, Status},
    task::{State, Task},
    time::Timestamp,
};

/// What a record means for verifiers.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) changes: Vec<Change>,
    pub(super) certificates: Vec<RevokedCertificate>,
    /// Certificates that leave the list again.
    pub(super) released: Vec<Serial>,
}

impl Outcome {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.certificates.is_empty() && self.released.is_empty()
    }
}

impl Registrar {
    /// Rebuilds a registrar from what was durable. Afterwards the shell reconciles: it watches every
    /// holder of [`Registrar::reconcile`] and reports those that died meanwhile, before it serves.
    #[must_use]
    pub fn replay(
        charter: Charter,
        snapshot: Option<Snapshot>,
        journal: impl IntoIterator<Item = (Sequence, Record)>,
    ) -> Self {
        let mut registrar = Self::new(charter);
        registrar.keys.defer();
        if let Some(snapshot) = snapshot {
            registrar.restore(snapshot);
        }
        for (sequence, record) in journal {
            if sequence <= registrar.last {
                continue; // The snapshot holds it already.
            }
            assert!(sequence == registrar.last.next(), "P6: the journal has no gaps");
            registrar.last = sequence;
            registrar.replay_one(&record);
        }
        let tasks = &registrar.tasks;
        let wish = |id| tasks.get(&id).and_then(|task| task.key).map(|wish| wish.key);
        registrar.keys.settle(|one, other| wish(one).is_some() && wish(one) == wish(other));
        registrar.durable = registrar.last;
        let position = Position { shard: registrar.charter.shard, sequence: registrar.last };
        registrar.set = reposition(&registrar.set, position);
        registrar
    }

    /// [`Self::replay`] with a known bug in it, for the simulator.
    #[cfg(feature = "planted")]
    #[must_use]
    pub fn replay_planted(
        charter: Charter,
        journal: impl IntoIterator<Item = (Sequence, Record)>,
        bug: super::Planted,
    ) -> Self {
        let forgets = bug == super::Planted::ForgetPromises;
        let journal = journal.into_iter().map(|(sequence, mut record)| {
            if forgets && matches!(record.fact, Fact::Promised { .. }) {
                let (what, detail) = Default::default();
                record.fact = Fact::Noted { what, detail };
            }
            (sequence, record)
        });
        let mut registrar = Self::replay(charter, None, journal);
        registrar.plant(bug);
        registrar
    }

    fn restore(&mut self, snapshot: Snapshot) {
        for (window, next) in snapshot.next_slots {
            if let Some(last) = next.checked_sub(1) {
                self.slots.reserve(Place { window, slot: Slot(last) });
            }
        }
        let Snapshot { position, at, records, .. } = snapshot;
        // Each record goes when it is folded: a million tasks are not held twice.
        for record in records {
            self.replay_one(&record);
        }
        self.now = self.now.max(at);
        self.last = position;
    }

    fn replay_one(&mut self, record: &Record) {
        self.now = self.now.max(record.at);
        let outcome = self.fold(record);
        for change in outcome.changes {
            self.set.take(change);
        }
        self.list(outcome.certificates, &outcome.released);
    }

    /// Puts certificates on the revocation list, and takes those off that are no longer suspended.
    pub(super) fn list(&mut self, entries: Vec<RevokedCertificate>, released: &[Serial]) {
        self.certificates.extend(entries.into_iter().map(|entry| (entry.serial, entry)));
        for serial in released {
            // INVARIANT P5: what is over stays on the list, whatever becomes of a quarantine.
            let ground = self.certificates.get(serial).map(|entry| entry.ground);
            if ground == Some(Ground::Suspended) {
                self.certificates.remove(serial);
            }
        }
    }

    /// Every holder that has to be looked for after a replay. Orders the sockets to be opened again,
    /// and the ends and quarantines that a crash has torn to be completed.
    #[must_use]
    pub fn reconcile(&mut self) -> Vec<(TaskId, Holder)> {
        let found = self.found();
        self.finish_cascades(&found);
        // What was torn has ended now.
        let goes_on = |id: &TaskId| self.tasks.get(id).is_some_and(|task| !task.state.is_ended());
        let open = found.sockets.into_iter().filter(goes_on);
        self.effects.extend(open.map(|task| Effect::OpenSocket { task }));
        found.held
    }

    pub(super) fn fold(&mut self, record: &Record) -> Outcome {
        match &record.fact {
            Fact::Began { .. } => self.fold_began(record),
            Fact::Promised { task, version, kind, serial, not_after, count } => {
                let place = serial.place();
                self.slots.reserve(place);
                if let Some(task) = self.tasks.get_mut(task) {
                    if !task.places.contains(&(*version, place)) {
                        task.places.push((*version, place));
                        self.places.insert(place, task.id);
                    }
                    if count.0 > 0 {
                        let minute = minute_of(record.at);
                        task.spent = Spent { issued: count.0, minute, in_minute: count.1 };
                    }
                    task.credentials.push(Credential {
                        serial: *serial,
                        kind: *kind,
                        version: *version,
                        not_after: *not_after,
                        revoked_at: None,
                    });
                }
                Outcome::default()
            }
            Fact::Ended { task, cause, exit, .. } => {
                let state = State::Ended { cause: *cause, at: record.at, exit: *exit };
                self.fold_ended(*task, state, record.at)
            }
            Fact::Suspended { task, by, .. } => {
                let mut outcome =
                    self.fold_state(*task, State::Quarantined { by: *by }, Status::Suspended);
                outcome.certificates = self.current_certificates(*task, record.at);
                outcome
            }
            Fact::Resumed { task, .. } => {
                let mut outcome = self.fold_state(*task, State::Active, Status::Valid);
                let released = self.current_certificates(*task, record.at);
                outcome.released = released.into_iter().map(|entry| entry.serial).collect();
                outcome
            }
            Fact::Renewed { task, lease_until } => {
                self.fold_renewed(*task, *lease_until);
                Outcome::default()
            }
            Fact::Amended { task, version, intent, scope, .. } => {
                let Some(task) = self.tasks.get_mut(task) else {
                    return Outcome::default();
                };
                let old = task.version;
                task.version = *version;
                let mandate = Arc::make_mut(&mut task.mandate);
                mandate.intent.clone_from(intent);
                mandate.scope.clone_from(scope);
                overtake(task, record.at, old);
                revoke(task, (record.at, Ground::Overtaken), |version| version <= old)
            }
            Fact::Transferred { task, owner } => {
                if let Some(task) = self.tasks.get_mut(task) {
                    Arc::make_mut(&mut task.terms).owner.clone_from(owner);
                    task.terms = self.shared.of(&task.terms);
                }
                Outcome::default()
            }
            Fact::CredentialRevoked { task, serial, .. } => {
                self.fold_revoked(*task, *serial, record.at)
            }
            Fact::Refused { .. } | Fact::Misused { .. } | Fact::Noted { .. } => Outcome::default(),
        }
    }

    fn fold_began(&mut self, record: &Record) -> Outcome {
        let Fact::Began { task: id, terms, holder, parent, deadline, lease, declared, .. } =
            &record.fact
        else {
            return Outcome::default();
        };
        let Fact::Began { mandate, key, .. } = &record.fact else { return Outcome::default() };
        let above = parent.and_then(|parent| self.tasks.get(&parent));
        let task = Task {
            id: *id,
            version: TaskVersion(1),
            terms: self.shared.of(terms),
            domain: self.charter.trust_domain.clone(),
            holder: holder.clone(),
            declared: *declared,
            mandate: Arc::clone(mandate),
            spent: Spent::default(),
            attempts: 0,
            key: *key,
            parent: *parent,
            root: above.map_or(*id, |parent| parent.root),
            depth: above.map_or(0, |parent| parent.depth + 1),
            begun_at: record.at,
            deadline: *deadline,
            lease: *lease,
            lease_until: lease.map(|lease| record.at.plus(lease)),
            state: State::Active,
            children: BTreeSet::new(),
            places: Vec::new(),
            credentials: Credentials::default(),
            holder_gone: false,
            unseen: false,
        };
        let timers = [(task.deadline, Timer::Deadline), (task.lease_until, Timer::Lease)];
        let timers =
            timers.into_iter().filter_map(|(at, timer)| at.map(|at| Due::new(at, timer, *id)));
        self.timers.extend(timers);
        if let Some(parent) = parent.and_then(|parent| self.tasks.get_mut(&parent)) {
            parent.children.insert(*id);
            if parent.holder == Holder::Job {
                parent.attempts = parent.attempts.saturating_add(1);
            }
        }
        if let Some(wish) = key {
            let same = |before| {
                let before = self.tasks.get(&before).and_then(|task| task.key);
                before.is_some_and(|before| before.key == wish.key)
            };
            self.keys.insert(Keys::start_of(&wish.key), *id, same);
        }
        if !holder.is_nobody() {
            // The newest first: a holder that begins a second task means that one.
            self.holders.entry(holder.clone()).or_default().insert(0, *id);
        }
        self.tasks.insert(task);
        Outcome::default()
    }

    fn fold_ended(&mut self, id: TaskId, state: State, at: Timestamp) -> Outcome {
        let Some(task) = self.tasks.get_mut(&id) else {
            return Outcome::default();
        };
        task.state = state;
        self.ahead.remove(&id);
        let timers = [(task.deadline, Timer::Deadline), (task.lease_until, Timer::Lease)];
        for (at, timer) in timers {
            if let Some(at) = at {
                self.timers.remove(&Due::new(at, timer, id));
            }
        }
        let ground = match state {
            State::Ended { cause, .. } => Ground::Ended(cause),
            State::Active | State::Quarantined { .. } => Ground::Alone,
        };
        let outcome = revoke(task, (at, ground), |_| true);
        self.remember_until(id);
        outcome
    }

    fn fold_state(&mut self, id: TaskId, state: State, status: Status) -> Outcome {
        let Some(task) = self.tasks.get_mut(&id) else {
            return Outcome::default();
        };
        task.state = state;
        let current = task.version;
        let places = task.places.iter().filter(|(version, _)| *version == current);
        let changes = places.map(|(_, place)| Change::Place(*place, status)).collect();
        Outcome { changes, ..Outcome::default() }
    }

    /// The unexpired certificates of a task's current version that have not been revoked on their own,
    /// as entries for a list that they may leave again.
    fn current_certificates(&self, id: TaskId, at: Timestamp) -> Vec<RevokedCertificate> {
        let Some(task) = self.tasks.get(&id) else {
            return Vec::new();
        };
        let current = task.credentials.of(Kind::X509).iter().filter(|credential| {
            credential.version == task.version
                && credential.revoked_at.is_none()
                && credential.outlives(at)
        });
        current.map(|credential| entry(credential, (at, Ground::Suspended))).collect()
    }

    fn fold_renewed(&mut self, id: TaskId, lease_until: Timestamp) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        if let Some(old) = task.lease_until.replace(lease_until) {
            self.timers.remove(&Due::new(old, Timer::Lease, id));
        }
        self.timers.insert(Due::new(lease_until, Timer::Lease, id));
    }

    fn fold_revoked(&mut self, task: TaskId, serial: Serial, at: Timestamp) -> Outcome {
        let task = self.tasks.get_mut(&task);
        let Some(credential) = task.and_then(|task| task.credentials.find_mut(&serial)) else {
            return Outcome::default();
        };
        credential.revoked_at = Some(at);
        let until = credential.not_after.plus(limits::FORGET_AFTER);
        let is_certificate = credential.kind == Kind::X509;
        let certificates = is_certificate.then(|| entry(credential, (at, Ground::Alone)));
        let certificates = certificates.into_iter().collect();
        let changes = [Change::Serial(serial, until)].into();
        Outcome { changes, certificates, ..Outcome::default() }
    }
}

/// Marks the certificates of the versions that are over, and says what verifiers have to learn.
fn revoke(
    task: &mut Task,
    (at, ground): (Timestamp, Ground),
    over: impl Fn(TaskVersion) -> bool,
) -> Outcome {
    let places = task.places.iter().filter(|(version, _)| over(*version));
    let live = places.filter(|(_, place)| place.window.forget_at() > at);
    let changes = live.map(|(_, place)| Change::Place(*place, Status::Revoked)).collect();
    let mut certificates = Vec::new();
    for credential in task.credentials.of_mut(Kind::X509) {
        // What was revoked before stands on the list already, with its own instant and ground.
        if over(credential.version) && credential.revoked_at.is_none() && credential.outlives(at) {
            credential.revoked_at = Some(at);
            certificates.push(entry(credential, (at, ground)));
        }
    }
    Outcome { changes, certificates, ..Outcome::default() }
}

/// Marks the tokens that an amendment has overtaken. After an end there is nothing to mark.
fn overtake(task: &mut Task, at: Timestamp, old: TaskVersion) {
    for token in task.credentials.of_mut(Kind::Jwt) {
        if token.version <= old && token.revoked_at.is_none() && token.outlives(at) {
            token.revoked_at = Some(at);
        }
    }
}

/// A certificate's entry on the list.
const fn entry(
    certificate: &Credential,
    (revoked_at, ground): (Timestamp, Ground),
) -> RevokedCertificate {
    let Credential { serial, not_after, .. } = *certificate;
    RevokedCertificate { serial, revoked_at, not_after, ground }
}

/// The same facts at another position. After a replay everything up to the last record is in the set,
/// and followers start again from a snapshot of it.
fn reposition(set: &RevocationSet, position: Position) -> RevocationSet {
    let mut moved = RevocationSet::at(position);
    for (window, bitmap) in set.windows() {
        moved.insert_window(window, bitmap.clone());
    }
    for (serial, until) in set.serials() {
        moved.take(Change::Serial(serial, until));
    }
    moved
}

/// The minute in which a rate is counted.
pub(super) fn minute_of(at: Timestamp) -> u32 {
    u32::try_from(at.seconds() / 60).unwrap_or(u32::MAX)
}
