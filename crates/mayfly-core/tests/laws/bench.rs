//! A registrar with a disk that is always there, and short ways to talk to it.

use std::collections::BTreeSet;

use mayfly_core::{
    Ask, Author, Basis, Begin, Binding, Caller, Cause, Charter, Denial, Effect, Event, Holder,
    Identity, PolicyEpoch, Record, Registrar, RevocationSet, Sequence, Serial, Shard, Span, State,
    TaskId, TaskVersion, Terms, Ticket, Timestamp, TrustDomain, Verdict,
};

pub(crate) const START: Timestamp = Timestamp(1_800_000_000_000);

/// The registrar, and everything that it ordered.
pub(crate) struct Bench {
    pub(crate) registrar: Registrar,
    pub(crate) now: Timestamp,
    pub(crate) journal: Vec<(Sequence, Record)>,
    /// Serials in the order of their release, each with its grant's `notAfter`.
    pub(crate) released: Vec<(Serial, Timestamp)>,
    pub(crate) denials: Vec<Denial>,
    pub(crate) introduced: Vec<Identity>,
    pub(crate) acknowledged: u64,
    /// Deltas so far, and a follower that has heard all of them.
    pub(crate) deltas: u64,
    pub(crate) follower: RevocationSet,
    tickets: u64,
}

pub(crate) fn charter() -> Charter {
    Charter {
        trust_domain: TrustDomain::parse("laws.test").expect("a name"),
        shard: Shard(0),
        policy_epoch: PolicyEpoch(1),
        admission: mayfly_core::Admission::default(),
    }
}

pub(crate) fn terms(profile: &str, binding: Binding) -> Terms {
    Terms {
        profile: profile.into(),
        path: format!("/{profile}"),
        owner: "laws".into(),
        binding,
        stable_identity: false,
        x509_ttl: Span::from_secs(300),
        jwt_ttl: Span::from_secs(120),
        task_ttl: None,
        hint: String::new(),
        federates_with: Vec::new(),
        bounds: mayfly_core::Bounds::default(),
    }
}

pub(crate) fn task(number: u128) -> TaskId {
    TaskId::from_bytes(number.to_be_bytes())
}

pub(crate) fn begin(parent: Option<TaskId>) -> Begin {
    let lease = Some(Span::from_secs(3600));
    Begin { parent, lease, ..Begin::new(terms("p", Binding::Lease), Holder::Lease) }
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self {
            registrar: Registrar::new(charter()),
            now: START,
            journal: Vec::new(),
            released: Vec::new(),
            denials: Vec::new(),
            introduced: Vec::new(),
            acknowledged: 0,
            deltas: 0,
            follower: RevocationSet::default(),
            tickets: 0,
        }
    }

    pub(crate) fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// Tells the registrar `event`, syncs and signs what it orders, and goes on until it is quiet.
    pub(crate) fn tell(&mut self, event: Event) {
        self.registrar.handle(self.now, event);
        loop {
            let signed = self.obey();
            let last = self.registrar.last_sequence();
            let synced = self.journal.len() as u64;
            assert_eq!(last, Sequence(synced), "every record is ordered");
            self.registrar.handle(self.now, Event::Journaled { upto: last });
            let more = self.obey();
            if signed.is_empty() && more.is_empty() {
                break;
            }
            for ticket in signed.into_iter().chain(more) {
                self.registrar.handle(self.now, Event::Signed { ticket });
            }
        }
    }

    /// Does what is ordered, and says what is to be signed.
    pub(crate) fn obey(&mut self) -> Vec<Ticket> {
        let mut signing = Vec::new();
        while let Some(effect) = self.registrar.poll_effect() {
            match effect {
                Effect::Journal(sequence, record) => self.journal.push((sequence, record)),
                Effect::Sign { ticket, grant } => {
                    self.released.push((*grant.serial(), grant.not_after()));
                    signing.push(ticket);
                }
                Effect::Withhold { denial, .. } => self.denials.push(denial),
                Effect::Introduce { identities, .. } => self.introduced.extend(identities),
                Effect::Acknowledge { .. } => self.acknowledged += 1,
                Effect::Publish(delta) => {
                    self.deltas += 1;
                    assert!(self.follower.apply(&delta), "P9: deltas have no holes");
                }
                Effect::Recognise { .. }
                | Effect::Reconsider { .. }
                | Effect::Release { .. }
                | Effect::RefreshCrl
                | Effect::Watch { .. }
                | Effect::Close { .. }
                | Effect::OpenSocket { .. }
                | Effect::CloseSocket { .. }
                | Effect::Alert { .. }
                | Effect::Forget { .. } => {}
            }
        }
        signing
    }

    pub(crate) fn begin(&mut self, id: TaskId, begin: Begin) {
        let ticket = self.ticket();
        self.tell(Event::BeginAsked { ticket, begin, luck: id, first: None });
    }

    pub(crate) fn ask(&mut self, id: TaskId, ask: Ask) -> Option<(Serial, Timestamp)> {
        let version = self.registrar.task(id).map_or(TaskVersion(1), |task| task.version);
        let basis = Basis { task: id, version, epoch: PolicyEpoch(1) };
        let (ticket, before) = (self.ticket(), self.released.len());
        self.tell(Event::Asked { ticket, basis, ask, luck: ticket.0 });
        self.released.get(before).copied()
    }

    pub(crate) fn end(&mut self, id: TaskId) {
        let ticket = self.ticket();
        self.tell(Event::EndAsked {
            ticket,
            task: id,
            cause: Cause::Revoked,
            author: Author::default(),
        });
    }

    /// The profiles of the identities that a caller is told.
    pub(crate) fn meet(&mut self, caller: Caller, permits: Vec<Terms>) -> BTreeSet<TaskId> {
        let ticket = self.ticket();
        let luck =
            (0..permits.len()).map(|at| task(u128::from(ticket.0) << 32 | at as u128)).collect();
        let verdict = Verdict { epoch: PolicyEpoch(1), permits };
        self.introduced.clear();
        self.tell(Event::Met { ticket, caller, verdict, luck, wish: None });
        self.introduced.iter().map(|identity| identity.task).collect()
    }

    /// The broker dies with so many records on its disk, and comes back.
    pub(crate) fn restart(&mut self, kept: usize) {
        self.journal.truncate(kept);
        self.registrar = self.replayed();
        self.follower = self.registrar.revocations().clone();
        let _held = self.registrar.reconcile();
        let _signing = self.obey();
        let upto = self.registrar.last_sequence();
        self.tell(Event::Journaled { upto });
    }

    /// The first refusal of what `wish` asks for, if it is refused.
    pub(crate) fn refused(&mut self, id: TaskId, wish: Begin) -> Option<Denial> {
        self.denials.clear();
        self.begin(id, wish);
        self.denials.first().copied()
    }

    pub(crate) fn end_as(&mut self, id: TaskId, cause: Cause) {
        let (ticket, author) = (self.ticket(), Author::default());
        self.tell(Event::EndAsked { ticket, task: id, cause, author });
    }

    pub(crate) fn cause(&self, id: TaskId) -> Option<Cause> {
        match self.registrar.task(id).map(|task| task.state) {
            Some(State::Ended { cause, .. }) => Some(cause),
            Some(State::Active | State::Quarantined { .. }) | None => None,
        }
    }

    /// What a crash at this moment leaves.
    pub(crate) fn replayed(&self) -> Registrar {
        Registrar::replay(charter(), None, self.journal.iter().cloned())
    }
}
