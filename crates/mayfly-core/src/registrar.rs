//! The registrar: who may have what, and what is over.
//!
//! Its life is a loop of three steps. Something happens ([`Registrar::handle`]); the state changes at
//! once and a record of the change is ordered ([`Effect::Journal`]); and when the shell says that the
//! record is durable ([`Event::Journaled`]) whatever had to wait for it follows: a signature, an
//! answer, a publication.
//!
//! State changes before its record is durable, and that is safe in one direction only. It works
//! because every Yes waits: a credential promised after a task began stands behind that beginning in
//! the journal, so when the promise is on disk the beginning is too. A No waits for nothing.
//!
//! The parts, by noun: `meet` finds or opens the caller's tasks, `named` finds those that others act for,
//! `narrow` says how far a task may go, `admit` says who is served first, with `queue` for those that wait,
//! `ahead` holds what was promised before anybody asked, `due` says what is due when, `keys` which wish began
//! what, `issue` promises and releases credentials, `end` ends, suspends and revokes, `detect` finds
//! misuse, `fold` turns records into state, `query` reads.

use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    string::String,
    vec::Vec,
};

use self::{due::Due, shared::SharedTerms, tasks::Tasks};
use crate::{
    event::{Denial, Effect, Event},
    evidence::Holder,
    grant::Grant,
    id::{PolicyEpoch, Position, Sequence, Shard, TaskId, TaskVersion, Ticket, TrustDomain},
    ledger::{Place, Serial, Slots},
    limits,
    record::{Fact, Record},
    revocation::{Delta, RevocationSet},
    time::{Span, Timestamp},
};

mod admit;
mod ahead;
mod detect;
mod due;
mod end;
mod fold;
mod issue;
mod keys;
mod meet;
mod named;
mod narrow;
mod query;
mod queue;
mod shared;
mod tasks;

pub use admit::Admission;
pub use query::{Ground, Memory, RevokedCertificate};

/// What a registrar is set up with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Charter {
    /// The trust domain that it issues for.
    pub trust_domain: TrustDomain,
    /// The part of all tasks that it owns.
    pub shard: Shard,
    /// The edition of the profiles that is in force at the start.
    pub policy_epoch: PolicyEpoch,
    /// How many are served, and wait, at once.
    pub admission: Admission,
}

/// Faults that a simulator can plant, to show that it would find them.
#[cfg(feature = "planted")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Planted {
    /// Hands out a credential whose task ended while it was being signed.
    ReleaseAfterEnd,
    /// Tells followers before the record is durable.
    PublishBeforeJournal,
    /// Loses promised credentials at a replay.
    ForgetPromises,
    /// Hands out a slot again while its window is alive.
    ReuseSlots,
    /// Lets a child reach further than its parent.
    IgnoreParentScope,
    /// Leaves what is below a task as wide as it was when the task is narrowed.
    KeepWiderChildren,
    /// Counts no credential against its task's budget.
    ForgetCounts,
    /// Serves those that wait in the order in which they came.
    ServeByArrival,
}

/// What has to wait until its record is durable.
#[derive(Debug)]
enum After {
    Sign { ticket: Ticket, grant: Grant },
    Acknowledge { ticket: Ticket, task: TaskId, version: TaskVersion },
    Forget { task: TaskId },
    Publish(fold::Outcome),
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Timer {
    Deadline,
    Lease,
    Forget,
}

/// A credential that is being signed.
#[derive(Clone, Copy, Debug)]
struct Signing {
    task: TaskId,
    version: TaskVersion,
    serial: Serial,
}

/// Decides everything about one shard's tasks. See the module's essay.
#[derive(Debug)]
pub struct Registrar {
    charter: Charter,
    policy_epoch: PolicyEpoch,
    now: Timestamp,
    last: Sequence,
    durable: Sequence,
    halted: bool,
    tasks: Tasks,
    shared: SharedTerms,
    holders: BTreeMap<Holder, Vec<TaskId>>,
    keys: keys::Keys,
    slots: Slots,
    /// Which task has which place: serials name places.
    places: BTreeMap<Place, TaskId>,
    timers: BTreeSet<Due>,
    sweep_at: Timestamp,
    pending: VecDeque<(Sequence, After)>,
    signing: BTreeMap<Ticket, Signing>,
    ahead: ahead::AheadOf,
    waiting: queue::Queue,
    /// Tasks whose quarantine is lifted by a record that is not durable yet.
    resuming: BTreeMap<TaskId, Sequence>,
    set: RevocationSet,
    certificates: BTreeMap<Serial, RevokedCertificate>,
    refusals: Meter,
    alarms: detect::Alarms,
    effects: VecDeque<Effect>,
    #[cfg(feature = "planted")]
    planted: Option<Planted>,
}

impl Registrar {
    /// A registrar that remembers nothing.
    #[must_use]
    pub fn new(charter: Charter) -> Self {
        let start = Position { shard: charter.shard, sequence: Sequence(0) };
        Self {
            policy_epoch: charter.policy_epoch,
            charter,
            now: Timestamp::default(),
            last: Sequence(0),
            durable: Sequence(0),
            halted: false,
            tasks: Tasks::default(),
            shared: SharedTerms::default(),
            holders: BTreeMap::new(),
            keys: keys::Keys::default(),
            slots: Slots::default(),
            places: BTreeMap::new(),
            timers: BTreeSet::new(),
            sweep_at: Timestamp::default(),
            pending: VecDeque::new(),
            signing: BTreeMap::new(),
            ahead: ahead::AheadOf::default(),
            waiting: queue::Queue::default(),
            resuming: BTreeMap::new(),
            set: RevocationSet::at(start),
            certificates: BTreeMap::new(),
            refusals: Meter::new(limits::REFUSALS_JOURNALED_PER_SECOND_MAX),
            alarms: detect::Alarms::new(),
            effects: VecDeque::new(),
            #[cfg(feature = "planted")]
            planted: None,
        }
    }

    /// Plants a known bug, for the simulator.
    #[cfg(feature = "planted")]
    pub fn plant(&mut self, bug: Planted) {
        self.planted = Some(bug);
    }

    #[cfg(feature = "planted")]
    fn has_planted(&self, bug: Planted) -> bool {
        self.planted == Some(bug)
    }

    /// Hears `event` at `now`. A clock that steps back is taken to stand still: ending early is safe,
    /// forgetting an end is not.
    pub fn handle(&mut self, now: Timestamp, event: Event) {
        self.handle_timeout(now);
        match event {
            Event::Met { ticket, caller, verdict, luck, wish } => {
                self.met(ticket, &caller, (&verdict, &luck), wish);
            }
            Event::TaskNamed { ticket, task, version, epoch } => {
                self.task_named(ticket, (task, version), epoch);
            }
            Event::Asked { ticket, basis, ask, luck } => self.admit(ticket, basis, ask, luck),
            Event::BeginAsked { ticket, begin, luck, first } => {
                self.begin_asked(ticket, begin, (luck, first));
            }
            Event::HeartbeatHeard { ticket, task } => self.heartbeat_heard(ticket, task),
            Event::AmendAsked { ticket, task, amendment, author } => {
                self.amend_asked(ticket, task, amendment, author);
            }
            Event::EndAsked { ticket, task, cause, author } => {
                self.end_asked(ticket, task, (cause, author));
            }
            Event::HolderGone { task, exit } => self.holder_gone(task, exit),
            Event::WatcherBlinded { task } => {
                self.watcher_blinded(task);
            }
            Event::QuarantineAsked { ticket, task, author } => {
                self.quarantine_asked(ticket, task, author);
            }
            Event::ReleaseAsked { ticket, task, author } => {
                self.release_asked(ticket, task, author);
            }
            Event::RevokeAsked { ticket, serial, author } => {
                self.revoke_asked(ticket, serial, author);
            }
            Event::Signed { ticket } => self.signed(ticket),
            Event::SigningFailed { ticket } => self.signing_failed(ticket),
            Event::Journaled { upto } => self.journaled(upto),
            Event::JournalFailed => self.journal_failed(),
            Event::PolicyChanged { epoch, gone, left, transfers } => {
                self.policy_changed(epoch, &gone, (&left, &transfers));
            }
            Event::Shown(showing) => self.shown(showing),
            Event::NoteAsked { what, detail } => self.journal(Fact::Noted { what, detail }),
        }
        self.take_turns();
    }

    /// Does what is due at `now`: leases, deadlines, forgetting.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        while let Some(due) = self.timers.first().copied().filter(|due| due.at() <= self.now) {
            self.timers.remove(&due);
            self.timer_fired(due.timer, due.task);
        }
        self.turn_away_overdue();
        if self.sweep_at <= self.now {
            self.slots.forget(self.now);
            self.set.forget(self.now);
            self.alarms.forget();
            self.shared.forget();
            let now = self.now;
            self.ahead.retain(|_, ahead| ahead.until > now);
            self.certificates.retain(|_, revoked| revoked.forget_at() > now);
            self.sweep_at = self.now.plus(SWEEP_EVERY);
        }
    }

    /// When [`Self::handle_timeout`] has something to do, at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let sweep = (!self.tasks.is_empty()).then_some(self.sweep_at);
        let timer = self.timers.first().map(Due::at);
        [sweep, timer, self.waiting.overdue_at()].into_iter().flatten().min()
    }

    /// The next thing to be done, in order. To be called until it is `None` after each event.
    #[must_use]
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Changes state by `fact` and orders its record; `after` follows when the record is durable.
    fn journal_then(&mut self, fact: Fact, after: impl IntoIterator<Item = After>) {
        let record = Record { at: self.now, fact };
        self.last = self.last.next();
        let outcome = self.fold(&record);
        self.pending.extend(after.into_iter().map(|after| (self.last, after)));
        if !outcome.is_empty() {
            self.pending.push_back((self.last, After::Publish(outcome)));
        }
        if !self.halted {
            self.effects.push_back(Effect::Journal(self.last, record));
        }
        #[cfg(feature = "planted")]
        if self.has_planted(Planted::PublishBeforeJournal) {
            self.follow_up(self.last);
        }
    }

    fn journal(&mut self, fact: Fact) {
        self.journal_then(fact, []);
    }

    fn journaled(&mut self, upto: Sequence) {
        assert!(upto <= self.last, "P2: the disk cannot know a record that was not ordered");
        assert!(upto >= self.durable, "P9: what is durable stays durable");
        self.durable = upto;
        self.resuming.retain(|_, sequence| *sequence > upto);
        self.follow_up(upto);
    }

    /// Does everything that waited for records up to `upto`. All changes go out as one delta.
    fn follow_up(&mut self, upto: Sequence) {
        let mut delta =
            Delta { from: self.set.position(), to: self.set.position(), changes: Vec::new() };
        let mut refresh = false;
        while self.pending.front().is_some_and(|(sequence, _)| *sequence <= upto) {
            let Some((sequence, after)) = self.pending.pop_front() else {
                break;
            };
            match after {
                After::Sign { ticket, grant } => self.promised(ticket, grant),
                After::Acknowledge { ticket, task, version } => {
                    self.effects.push_back(Effect::Acknowledge { ticket, task, version });
                }
                After::Forget { task } => self.effects.push_back(Effect::Forget { task }),
                After::Publish(outcome) => {
                    delta.to.sequence = sequence;
                    refresh = true;
                    delta.changes.extend(outcome.changes);
                    self.list(outcome.certificates, &outcome.released);
                }
            }
        }
        if delta.to != delta.from {
            // INVARIANT P4: only what is durable is published, so no crash can unsay it.
            assert!(self.set.apply(&delta), "P9: our own deltas have no holes");
            self.effects.push_back(Effect::Publish(delta));
        }
        if refresh {
            self.effects.push_back(Effect::RefreshCrl);
        }
    }

    /// The disk has said no. Everything that waited for it is refused, and so is everything later.
    fn journal_failed(&mut self) {
        self.halted = true;
        for ticket in self.waiting.drain() {
            self.withhold(ticket, Denial::JournalFailed);
        }
        for (_, after) in core::mem::take(&mut self.pending) {
            match after {
                After::Sign { ticket, .. } | After::Acknowledge { ticket, .. } => {
                    self.signing.remove(&ticket);
                    self.withhold(ticket, Denial::JournalFailed);
                }
                After::Forget { .. } | After::Publish { .. } => {}
            }
        }
    }

    fn withhold(&mut self, ticket: Ticket, denial: Denial) {
        self.effects.push_back(Effect::Withhold { ticket, denial });
    }

    /// Answers with a No and testifies to it, unless strangers could fill the disk that way.
    fn refuse(&mut self, ticket: Ticket, denial: Denial, about: (Option<TaskId>, &str)) {
        self.withhold(ticket, denial);
        if !self.halted && self.refusals.admits(self.now) && !self.is_full() {
            let (task, profile) = (about.0, String::from(about.1));
            self.journal(Fact::Refused { denial, task, profile });
        }
    }

    /// Whether more would break a bound (P10). Ends are never refused for that.
    fn is_full(&self) -> bool {
        self.pending.len() >= limits::RECORDS_IN_FLIGHT_MAX
    }
}

const SWEEP_EVERY: Span = Span::from_secs(60);

/// Lets a bounded number of strangers' doings a second into the journal.
#[derive(Debug)]
struct Meter {
    per_second_max: u32,
    second: u64,
    count: u32,
}

impl Meter {
    const fn new(per_second_max: u32) -> Self {
        Self { per_second_max, second: 0, count: 0 }
    }

    fn admits(&mut self, now: Timestamp) -> bool {
        if now.seconds() != self.second {
            (self.second, self.count) = (now.seconds(), 0);
        }
        self.count = self.count.saturating_add(1);
        self.count <= self.per_second_max
    }
}
