//! The world: one registrar, the production one, and everything around it made of luck.
//!
//! First the weather is bad: each move is somebody's wish, a death, a fault, or time. Then it clears:
//! no more faults, and everything that waits is worked off. Then the oracle looks at all of it.

use mayfly_core::{
    Admission, Basis, Begin, Binding, Charter, Denial, Effect, Event, Grant, Holder, Identity,
    Kind, PolicyEpoch, Registrar, RequestKey, Serial, Shard, TaskId, TaskVersion, Ticket,
    Timestamp, TrustDomain, registrar::Planted, task::Terms,
};

use crate::{
    actors::Machine,
    disk::Disk,
    network::{Line, Plain, Post},
    oracle::{Oracle, Violation, uphold},
    rng::Rng,
    trace::Trace,
    weather::Weather,
};

mod act;
mod begin;
mod clear;
mod life;

type Done = Result<(), Violation>;

/// What a caller waits for.
#[derive(Clone, Debug)]
enum Wish {
    Meet {
        process: Option<usize>,
        socket: Option<TaskId>,
        earned: Vec<usize>,
        /// What it wants at once, and the chance for its serial.
        wants: Option<(Kind, u64)>,
    },
    Credential {
        serial: Option<Serial>,
    },
    Begin {
        task: TaskId,
        key: Option<RequestKey>,
    },
    End {
        task: TaskId,
    },
    Quarantine,
    Release,
    Other,
}

/// A caller that waits, and the length of the journal when the registrar had decided.
#[derive(Clone, Debug)]
struct Waiting {
    ticket: Ticket,
    wish: Wish,
    decided: usize,
}

/// One simulated machine with a broker on it. See the module's essay.
#[derive(Debug)]
pub struct World {
    weather: Weather,
    rng: Rng,
    trace: Trace,
    planted: Option<Planted>,
    /// True time. Verifiers live by it; the broker's clock is off by `skew`.
    now: Timestamp,
    skew: i64,
    registrar: Option<Registrar>,
    charter: Charter,
    epoch: PolicyEpoch,
    in_force: Vec<bool>,
    disk: Disk,
    /// Whether the registrar began with a snapshot.
    by_snapshot: bool,
    /// Whether the broker is back and does not serve yet.
    returning: bool,
    signer: Vec<(Ticket, Grant)>,
    post: Box<dyn Post>,
    /// The lines to the followers.
    lines: Vec<Line>,
    machine: Machine,
    watched: Vec<(TaskId, Holder)>,
    sockets: Vec<TaskId>,
    introduced: Vec<Basis>,
    tasks: Vec<TaskId>,
    serials: Vec<Serial>,
    /// Wishes that have a key, the newest first.
    told: Vec<Begin>,
    /// Owners who are gone, and whether somebody took their tasks.
    left: Vec<(String, bool)>,
    waiting: Vec<Waiting>,
    tickets: u64,
    oracle: Oracle,
}

/// How one world ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What happened.
    pub trace: Trace,
    /// The first law that did not hold, if any.
    pub violation: Option<Violation>,
}

impl World {
    /// The world of `seed`.
    #[must_use]
    pub fn new(seed: u64, planted: Option<Planted>, trace: Trace) -> Self {
        Self::with_post(seed, planted, trace, |followers| Box::new(Plain::new(followers)))
    }

    /// The same world with another feed, which is made for so many followers.
    #[must_use]
    pub fn with_post(
        seed: u64,
        planted: Option<Planted>,
        trace: Trace,
        post: impl FnOnce(usize) -> Box<dyn Post>,
    ) -> Self {
        let mut rng = Rng::new(seed);
        let weather = Weather::of(&mut rng).crowded(seed).foresighted(seed);
        let charter = charter(weather.admission);
        let mut machine = Machine::default();
        (0..weather.processes).for_each(|_| machine.spawn(&mut rng));
        let mut registrar = Registrar::new(charter.clone());
        if let Some(bug) = planted {
            registrar.plant(bug);
        }
        let mut post = post(weather.followers);
        post.start(registrar.revocations());
        Self {
            in_force: vec![true; weather.profiles.len()],
            post,
            lines: (0..weather.followers).map(|_| Line::default()).collect(),
            now: Timestamp(1_700_000_000_000 + rng.below(1_000_000_000)),
            weather,
            rng,
            trace,
            planted,
            skew: 0,
            registrar: Some(registrar),
            epoch: charter.policy_epoch,
            charter,
            disk: Disk::default(),
            by_snapshot: false,
            returning: false,
            signer: Vec::new(),
            machine,
            watched: Vec::new(),
            sockets: Vec::new(),
            introduced: Vec::new(),
            tasks: Vec::new(),
            serials: Vec::new(),
            told: Vec::new(),
            left: Vec::new(),
            waiting: Vec::new(),
            tickets: 0,
            oracle: Oracle::default(),
        }
    }

    /// The options that this world has drawn.
    #[must_use]
    pub const fn weather(&self) -> &Weather {
        &self.weather
    }

    /// Lives to the end.
    #[must_use]
    pub fn run(mut self) -> Outcome {
        let violation = self.live().err();
        Outcome { trace: self.trace, violation }
    }

    fn live(&mut self) -> Done {
        for _ in 0..self.weather.moves {
            let next = self.weather.choose(&mut self.rng);
            self.trace.mark(&[next as u64]);
            self.act(next)?;
        }
        self.clear()
    }

    /// What the broker's clock shows.
    fn clock(&self) -> Timestamp {
        Timestamp(self.now.0.saturating_add_signed(self.skew))
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    fn terms(&self, profile: usize) -> Option<&Terms> {
        self.weather.profiles.get(profile)
    }

    /// Tells the registrar something and does what it orders.
    fn tell(&mut self, event: Event) -> Done {
        let now = self.clock();
        let Some(registrar) = &mut self.registrar else {
            return Ok(());
        };
        self.trace.event(now.0, &event);
        self.oracle.clock(now);
        if let Event::Asked { ticket, basis, ask, luck } = &event {
            self.oracle.asks(*ticket, *basis, (ask.kind(), *luck));
        } else if let Event::BeginAsked { luck, first: Some(first), .. } = &event {
            self.oracle.offers_first(*luck, *first);
        }
        registrar.handle(now, event);
        self.obey()
    }

    /// Tells the registrar the wish of a caller.
    fn ask(&mut self, ticket: Ticket, wish: Wish, event: Event) -> Done {
        if self.registrar.is_none() {
            return Ok(());
        }
        self.waiting.push(Waiting { ticket, wish, decided: usize::MAX });
        self.tell(event)?;
        let decided = self.oracle.count_records();
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.ticket == ticket) {
            waiting.decided = decided;
        }
        Ok(())
    }

    fn obey(&mut self) -> Done {
        while let Some(effect) = self.registrar.as_mut().and_then(Registrar::poll_effect) {
            self.trace.effect(&effect);
            self.obey_one(effect)?;
        }
        // INVARIANT P10: each signature belongs to a caller that waits.
        uphold!(self.signer.len() <= self.waiting.len(), "P10", "more signatures than callers");
        self.oracle.check_waiting(self.weather.admission)
    }

    fn obey_one(&mut self, effect: Effect) -> Done {
        match effect {
            Effect::Journal(sequence, record) => {
                self.oracle.ordered(sequence, &record)?;
                if let mayfly_core::Fact::Promised { serial, .. } = &record.fact {
                    self.serials.push(*serial);
                }
                let taken = self.disk.append(sequence, record);
                uphold!(taken, "P2", "a record was ordered of a disk that had failed");
            }
            Effect::Sign { ticket, grant } => {
                self.oracle.signing(ticket, *grant.serial(), grant.audience())?;
                let mut waiting = self.waiting.iter_mut().filter(|w| w.ticket == ticket);
                let waiting = waiting.next();
                uphold!(waiting.is_some(), "P10", "a signature for nobody");
                if let Some(waiting) = waiting {
                    waiting.wish = Wish::Credential { serial: Some(*grant.serial()) };
                }
                self.signer.push((ticket, grant));
            }
            Effect::Publish(delta) => {
                self.oracle.published(&delta)?;
                let odds = (self.weather.loss, self.weather.echo);
                let message = self.post.publish(&delta);
                for line in &mut self.lines {
                    line.send(message, odds, &mut self.rng);
                }
            }
            Effect::Watch { task, holder } => {
                self.watched.retain(|(watched, _)| *watched != task);
                self.watched.push((task, holder));
            }
            Effect::Forget { task } => {
                self.oracle.forgets(task)?;
                self.watched.retain(|(watched, _)| *watched != task);
                self.tasks.retain(|known| *known != task);
                self.disk.forget(task);
            }
            Effect::OpenSocket { task } => self.sockets.push(task),
            Effect::CloseSocket { task } => self.sockets.retain(|open| *open != task),
            Effect::Close { .. } | Effect::RefreshCrl | Effect::Alert { .. } => {}
            Effect::Recognise { ticket, identity } => {
                let waiting = self.answered(ticket)?;
                self.recognised(ticket, &waiting.wish, identity)?;
                // It goes on waiting, for a credential.
                self.waiting.push(Waiting { wish: Wish::Credential { serial: None }, ..waiting });
            }
            Effect::Introduce { ticket, identities } => {
                let waiting = self.answered(ticket)?;
                self.introduced(&waiting.wish, &identities)?;
            }
            Effect::Reconsider { ticket } => drop(self.answered(ticket)?),
            Effect::Release { ticket } => self.released(ticket)?,
            Effect::Withhold { ticket, denial } => self.withheld(ticket, denial)?,
            Effect::Acknowledge { ticket, task, version } => {
                self.acknowledged(ticket, task, version)?;
            }
        }
        Ok(())
    }

    /// Takes the caller that is answered. Each is answered once.
    fn answered(&mut self, ticket: Ticket) -> Result<Waiting, Violation> {
        self.oracle.answered(ticket);
        let at = self.waiting.iter().position(|waiting| waiting.ticket == ticket);
        let waiting = at.map(|at| self.waiting.swap_remove(at));
        waiting.ok_or_else(|| Violation {
            law: "P10",
            what: format!("#{} is answered and nobody waits", ticket.0),
        })
    }

    fn recognised(&mut self, ticket: Ticket, wish: &Wish, identity: Identity) -> Done {
        let Wish::Meet { wants: Some(wants), .. } = wish else {
            return Err(Violation { law: "P10", what: "a wish that nobody had is served".into() });
        };
        let basis = Basis { task: identity.task, version: identity.version, epoch: self.epoch };
        self.introduced(wish, &[identity])?;
        self.oracle.asks(ticket, basis, *wants);
        Ok(())
    }

    fn introduced(&mut self, wish: &Wish, found: &[Identity]) -> Done {
        let Wish::Meet { process, socket, earned, .. } = wish else {
            return Err(Violation { law: "P10", what: "an introduction nobody asked for".into() });
        };
        let mut caller = process.map(|at| self.machine.caller(at)).unwrap_or_default();
        caller.socket = *socket;
        let earned: Vec<_> =
            earned.iter().filter_map(|p| self.terms(*p)).map(|t| t.profile.as_str()).collect();
        self.oracle.introduced(&caller, &earned, found)?;
        let epoch = self.epoch;
        self.introduced.extend(found.iter().map(|identity| Basis {
            task: identity.task,
            version: identity.version,
            epoch,
        }));
        for identity in found {
            if !self.tasks.contains(&identity.task) {
                self.tasks.push(identity.task);
            }
        }
        Ok(())
    }

    fn released(&mut self, ticket: Ticket) -> Done {
        match self.answered(ticket)?.wish {
            Wish::Credential { serial: Some(serial) } => self.oracle.released(serial),
            Wish::Credential { serial: None }
            | Wish::Meet { .. }
            | Wish::Begin { .. }
            | Wish::End { .. }
            | Wish::Quarantine
            | Wish::Release
            | Wish::Other => {
                Err(Violation { law: "P2", what: "what was never signed is released".into() })
            }
        }
    }

    fn withheld(&mut self, ticket: Ticket, denial: Denial) -> Done {
        self.signer.retain(|(signing, _)| *signing != ticket);
        match self.answered(ticket)?.wish {
            Wish::Release => self.oracle.released_from_quarantine(ticket, Err(denial)),
            Wish::Begin { key: Some(key), .. } if denial == Denial::IdempotencyConflict => {
                self.oracle.told(&key, None)?;
            }
            Wish::Meet { .. }
            | Wish::Credential { .. }
            | Wish::Begin { .. }
            | Wish::End { .. }
            | Wish::Quarantine
            | Wish::Other => {}
        }
        Ok(())
    }

    fn acknowledged(&mut self, ticket: Ticket, task: TaskId, version: TaskVersion) -> Done {
        let waiting = self.answered(ticket)?;
        // Answered before `ask` could note it: everything decided so far has to be durable.
        self.oracle.acknowledged(waiting.decided.min(self.oracle.count_records()))?;
        match waiting.wish {
            Wish::Begin { task: begun, key } => {
                let own = begun == task || key.is_some();
                uphold!(own, "P10", "{task} is acknowledged in place of {begun}");
                if let Some(key) = key {
                    self.oracle.told(&key, Some(task))?;
                }
                if !self.tasks.contains(&task) {
                    self.tasks.push(task);
                }
                self.introduced.push(Basis { task, version, epoch: self.epoch });
            }
            Wish::End { task } => self.oracle.end_acknowledged(task)?,
            Wish::Quarantine => self.oracle.quarantined(ticket),
            Wish::Release => self.oracle.released_from_quarantine(ticket, Ok(())),
            Wish::Other => {}
            Wish::Meet { .. } | Wish::Credential { .. } => {
                return Err(Violation { law: "P10", what: "a question is acknowledged".into() });
            }
        }
        Ok(())
    }

    fn holder_for(&mut self, binding: Binding) -> Option<Holder> {
        let at = self.machine.living(&mut self.rng);
        let process = at.and_then(|at| self.machine.process(at));
        let caller = at.map(|at| self.machine.caller(at)).unwrap_or_default();
        match binding {
            Binding::Process => process.map(|process| Holder::Process(process.key)),
            Binding::Lineage => process.map(|process| Holder::Lineage(process.key)),
            Binding::Cgroup => process.map(|process| Holder::Cgroup(process.cgroup.into())),
            Binding::Systemd => caller.unit.map(Holder::Unit),
            Binding::Container => caller.container.map(Holder::Container),
            Binding::Pod => caller.pod.map(Holder::Pod),
            Binding::Socket => Some(Holder::Socket),
            Binding::Lease => Some(Holder::Lease),
        }
    }
}

fn charter(admission: Admission) -> Charter {
    // INVARIANT: a constant that parses; the unit test below shows it.
    let trust_domain = TrustDomain::parse("sim.test").unwrap_or_else(|_| unreachable!());
    Charter { trust_domain, shard: Shard(0), policy_epoch: PolicyEpoch(1), admission }
}
