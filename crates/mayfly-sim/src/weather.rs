//! What a seed has in store: how many there are of everything, and how often what goes wrong.
//!
//! Each world switches some of its dangers off and the others on with a strength of their own
//! (swarm testing): a world in which everything fails all the time reaches little.

use core::fmt;

use mayfly_core::{
    Admission, Span,
    task::{Binding, Terms},
};

use crate::{
    charge::{Charge, OWNERS},
    rng::Rng,
};

/// What an actor or a fault of the world may do next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Move {
    /// A process asks who it is.
    Meet,
    /// An introduced process asks for a credential.
    Ask,
    /// An orchestrator begins a task.
    Begin,
    /// An orchestrator sends a heartbeat.
    Heartbeat,
    /// An orchestrator amends a task.
    Amend,
    /// Somebody ends a task.
    End,
    /// A process starts.
    Spawn,
    /// A process dies.
    Die,
    /// The eyes notice a death.
    Notice,
    /// An operator quarantines a task.
    Quarantine,
    /// An operator releases a task.
    Release,
    /// An operator revokes one credential.
    Revoke,
    /// The profiles are replaced.
    Policy,
    /// An owner leaves; somebody may take the tasks.
    Leave,
    /// The eyes lose sight of a holder.
    Blind,
    /// The disk makes some records durable.
    Flush,
    /// The signer finishes one signature, in any order.
    Sign,
    /// A follower hears one delta.
    Deliver,
    /// A follower connects, or its connection breaks.
    Connect,
    /// Time passes.
    Tick,
    /// The broker's clock is set, forwards or backwards.
    Step,
    /// The broker dies. It comes back some moves later.
    Crash,
    /// The disk says no.
    DiskFails,
    /// A twin is rebuilt from the journal and compared.
    Twin,
}

/// One world's options.
#[derive(Clone, Debug)]
pub struct Weather {
    /// Moves before the weather clears.
    pub moves: u64,
    /// Followers of the feed.
    pub followers: usize,
    /// Processes at the start.
    pub processes: usize,
    /// The profiles of the first edition.
    pub profiles: Vec<Terms>,
    /// How often each move is made, relative to the others.
    pub weights: Vec<(Move, u64)>,
    /// Per mille of deltas that the feed loses.
    pub loss: u64,
    /// Per mille of deltas that it repeats.
    pub echo: u64,
    /// Per mille of deltas that it delivers out of order.
    pub reorder: u64,
    /// Per mille of signatures that fail.
    pub signer_fails: u64,
    /// Per mille of replays that start from a snapshot.
    pub snapshot: u64,
    /// Per mille of beginnings that want a certificate to be promised along with them.
    pub ahead: u64,
    /// Per mille of flushes that make only a part durable.
    pub short_flush: u64,
    /// Longest usual step of time, in milliseconds.
    pub pace: u64,
    /// What tasks declare and profiles bound.
    pub charge: Charge,
    /// How many may ask at once.
    pub admission: Admission,
}

impl Weather {
    /// The weather of `rng`'s seed.
    pub fn of(rng: &mut Rng) -> Self {
        let mut sometimes = |strongest: u64| {
            let on = rng.chance(650);
            let strength = 1 + rng.below(strongest);
            if on { strength } else { 0 }
        };
        let weights = vec![
            (Move::Meet, 30),
            (Move::Ask, 60),
            (Move::Begin, 25),
            (Move::Flush, 5 + sometimes(60)),
            (Move::Sign, 10 + sometimes(60)),
            (Move::Deliver, 10 + sometimes(60)),
            (Move::Tick, 5 + sometimes(30)),
            (Move::Notice, 5 + sometimes(20)),
            (Move::Twin, 6),
            (Move::Spawn, 5),
            (Move::Heartbeat, sometimes(20)),
            (Move::Amend, sometimes(10)),
            (Move::End, 2 + sometimes(20)),
            (Move::Die, 2 + sometimes(15)),
            (Move::Quarantine, sometimes(12)),
            (Move::Release, sometimes(12)),
            (Move::Revoke, sometimes(8)),
            (Move::Policy, sometimes(5)),
            (Move::Leave, sometimes(4)),
            (Move::Blind, sometimes(4)),
            (Move::Connect, sometimes(8)),
            (Move::Step, sometimes(6)),
            (Move::Crash, sometimes(12)),
            (Move::DiskFails, sometimes(2)),
        ];
        let loss = sometimes(300);
        let echo = sometimes(300);
        let reorder = sometimes(400);
        let signer_fails = sometimes(100);
        let short_flush = sometimes(500);
        let charge = Charge {
            narrow: sometimes(500),
            counted: sometimes(400),
            jobs: sometimes(250),
            keys: sometimes(500),
            fails: sometimes(700),
        };
        let profiles = 2 + rng.below(3);
        Self {
            moves: 30 + rng.below(130),
            followers: 1 + rng.index(3),
            processes: 1 + rng.index(5),
            profiles: (0..profiles)
                .map(|number| profile((number, profiles), charge, rng))
                .collect(),
            charge,
            weights,
            loss,
            echo,
            reorder,
            signer_fails,
            admission: Admission::default(),
            snapshot: rng.below(1000),
            ahead: 0,
            short_flush,
            pace: *rng.pick(&[5, 200, 5_000, 60_000, 400_000]).unwrap_or(&5),
        }
    }

    /// The same with bounds that a few callers reach, in four of ten worlds. They have dice of their own, so
    /// that the other worlds are what they were before there was a queue.
    #[must_use]
    pub(crate) fn crowded(self, seed: u64) -> Self {
        let mut rng = Rng::new(!seed);
        if rng.chance(600) {
            return self;
        }
        let mut one_of = |few: &[usize]| rng.pick(few).copied().unwrap_or(1);
        let (signing_max, waiting_max) = (one_of(&[1, 1, 2, 3]), one_of(&[1, 2, 4, 8]));
        let admission = Admission { signing_max, waiting_max, per_task_max: one_of(&[1, 2, 8]) };
        Self { admission, ..self }
    }

    /// The same with tasks that are promised something before anybody asks, in half of the worlds. Dice of
    /// their own, for the same reason.
    #[must_use]
    pub(crate) fn foresighted(self, seed: u64) -> Self {
        let mut rng = Rng::new(seed.rotate_left(32) ^ 0xa4ead);
        let ahead = if rng.chance(500) { 1 + rng.below(1000) } else { 0 };
        Self { ahead, ..self }
    }

    /// The next move.
    pub fn choose(&self, rng: &mut Rng) -> Move {
        let all = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut left = rng.below(all);
        for (what, weight) in &self.weights {
            if left < *weight {
                return *what;
            }
            left -= weight;
        }
        Move::Tick
    }
}

fn profile((number, count): (u64, u64), charge: Charge, rng: &mut Rng) -> Terms {
    const TTLS: [u64; 5] = [2, 30, 120, 300, 1_500];
    let mut ttl = || Span::from_secs(*rng.pick(&TTLS).unwrap_or(&300));
    let (x509_ttl, jwt_ttl) = (ttl(), ttl());
    let bindings = [
        Binding::Process,
        Binding::Process,
        Binding::Cgroup,
        Binding::Systemd,
        Binding::Container,
        Binding::Pod,
        Binding::Lineage,
        Binding::Socket,
        Binding::Lease,
        Binding::Lease,
    ];
    Terms {
        profile: format!("p{number}"),
        path: format!("/p{number}"),
        owner: rng.pick(&OWNERS).copied().unwrap_or("o0").into(),
        binding: *rng.pick(&bindings).unwrap_or(&Binding::Lease),
        stable_identity: rng.chance(300),
        x509_ttl,
        jwt_ttl,
        task_ttl: rng.chance(300).then(|| Span(1 + rng.below(2_000_000))),
        hint: String::new(),
        federates_with: Vec::new(),
        bounds: charge.bounds(count, rng),
    }
}

impl fmt::Display for Weather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "moves={} followers={} processes={} loss={} echo={} reorder={} signer_fails={} \
             snapshot={} ahead={} short_flush={} pace={}ms {:?} {:?}",
            self.moves,
            self.followers,
            self.processes,
            self.loss,
            self.echo,
            self.reorder,
            self.signer_fails,
            self.snapshot,
            self.ahead,
            self.short_flush,
            self.pace,
            self.charge,
            self.admission
        )?;
        for terms in &self.profiles {
            write!(
                f,
                " {}={}/{}/{}",
                terms.profile,
                terms.binding.name(),
                terms.x509_ttl,
                terms.jwt_ttl
            )?;
        }
        for (what, weight) in &self.weights {
            write!(f, " {what:?}:{weight}")?;
        }
        Ok(())
    }
}
