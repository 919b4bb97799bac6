//! P14: of all that ask at once, whoever needs it first is served first.

use std::collections::{BTreeMap, VecDeque};

use mayfly_core::{
    Admission, Ask, Author, Basis, Cause, Charter, Denial, Effect, Event, PolicyEpoch, Registrar,
    Span, TaskId, TaskVersion, Ticket, Timestamp, limits,
};
use proptest::{collection::vec, prelude::*};

use crate::bench::{START, begin, charter, task};

/// A registrar whose signers finish one after the other, when they are told to.
struct Herd {
    registrar: Registrar,
    now: Timestamp,
    tickets: u64,
    /// Under way, in the order of their promises.
    signing: VecDeque<Ticket>,
    /// Who left with what, and when.
    released: Vec<(Ticket, Timestamp)>,
    refused: BTreeMap<Ticket, Denial>,
}

impl Herd {
    fn new(tasks: u128, admission: Admission) -> Self {
        let registrar = Registrar::new(Charter { admission, ..charter() });
        let (signing, released) = (VecDeque::new(), Vec::new());
        let mut herd =
            Self { registrar, now: START, tickets: 0, signing, released, refused: BTreeMap::new() };
        for id in 0..tasks {
            let ticket = herd.ticket();
            let mut wish = begin(None);
            wish.lease = Some(limits::LEASE_MAX);
            herd.tell(Event::BeginAsked { ticket, begin: wish, luck: task(id), first: None });
        }
        herd
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// Tells the registrar something, and gives it a disk that is at once.
    fn tell(&mut self, event: Event) {
        self.registrar.handle(self.now, event);
        self.obey();
    }

    fn obey(&mut self) {
        loop {
            while let Some(effect) = self.registrar.poll_effect() {
                match effect {
                    Effect::Sign { ticket, .. } => self.signing.push_back(ticket),
                    Effect::Release { ticket } => self.released.push((ticket, self.now)),
                    Effect::Withhold { ticket, denial } => {
                        assert_eq!(self.refused.insert(ticket, denial), None, "one answer each");
                    }
                    Effect::Journal(..)
                    | Effect::Introduce { .. }
                    | Effect::Recognise { .. }
                    | Effect::Reconsider { .. }
                    | Effect::Acknowledge { .. }
                    | Effect::Publish(_)
                    | Effect::RefreshCrl
                    | Effect::Watch { .. }
                    | Effect::Close { .. }
                    | Effect::OpenSocket { .. }
                    | Effect::CloseSocket { .. }
                    | Effect::Alert { .. }
                    | Effect::Forget { .. } => {}
                }
            }
            let upto = self.registrar.last_sequence();
            if self.registrar.durable_sequence() == upto || self.registrar.is_halted() {
                return;
            }
            self.registrar.handle(self.now, Event::Journaled { upto });
        }
    }

    fn ask(&mut self, id: TaskId, ask: Ask) -> Ticket {
        let basis = Basis { task: id, version: TaskVersion(1), epoch: PolicyEpoch(1) };
        let ticket = self.ticket();
        self.tell(Event::Asked { ticket, basis, ask, luck: ticket.0 });
        ticket
    }

    /// The signers finish what is under way longest.
    fn sign(&mut self) -> Option<Ticket> {
        let ticket = self.signing.pop_front()?;
        self.tell(Event::Signed { ticket });
        Some(ticket)
    }

    fn pass(&mut self, span: Span) {
        self.now = self.now.plus(span);
        self.registrar.handle_timeout(self.now);
        self.obey();
    }
}

const fn narrow(signing_max: usize) -> Admission {
    Admission { signing_max, waiting_max: 10_000, per_task_max: 64 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Some of them hold a certificate since one instant or another, the others none; all ask, in any order.
    #[test]
    fn a_herd_is_served_in_the_order_of_its_needs(
        herd_of in vec((prop::option::of(0..250_u64), any::<u32>()), 2..60),
        signing_max in 1..5_usize,
    ) {
        let mut herd = Herd::new(herd_of.len() as u128 + 1, narrow(signing_max));
        let mut fetches: Vec<_> = (0..).zip(&herd_of).filter_map(|(id, one)| Some((one.0?, id))).collect();
        fetches.sort_unstable();
        for (since, id) in fetches {
            herd.pass(START.plus(Span::from_secs(since)).since(herd.now));
            herd.ask(task(id), Ask::X509);
            herd.sign();
        }
        herd.pass(START.plus(Span::from_secs(250)).since(herd.now));
        for _ in 0..signing_max {
            herd.ask(task(herd_of.len() as u128), Ask::X509);
        }
        let mut comes: Vec<_> = (0..).zip(&herd_of).map(|(id, (since, luck))| (*luck, id, *since)).collect();
        comes.sort_unstable();
        let mut wanted: Vec<_> =
            comes.into_iter().map(|(_, id, since)| (since, herd.ask(task(id), Ask::X509))).collect();
        // P14: first those that hold nothing, then by the age of what they hold, then as they came.
        wanted.sort_unstable();
        let before = herd.released.len() + signing_max;
        while herd.sign().is_some() {}
        let served: Vec<_> = herd.released[before..].iter().map(|(ticket, _)| *ticket).collect();
        prop_assert_eq!(served, wanted.into_iter().map(|(_, ticket)| ticket).collect::<Vec<_>>());
        prop_assert!(herd.refused.is_empty() && herd.registrar.asks_waiting() == 0);
    }

    /// Whatever comes, dies and ends: everybody is answered once, and nobody waits for what is over.
    #[test]
    fn everybody_in_a_herd_is_answered_once(
        moves in vec((0..5_u8, 0..12_u128), 1..200),
        waiting_max in 1..12_usize,
        per_task_max in 1..4_usize,
    ) {
        let mut herd = Herd::new(12, Admission { signing_max: 1, waiting_max, per_task_max });
        let mut asked = Vec::new();
        for (what, id) in moves {
            match what {
                0 | 1 => asked.push(herd.ask(task(id), Ask::X509)),
                2 => asked.push(herd.ask(task(id), Ask::Jwt { audience: vec!["a".into()] })),
                3 => drop(herd.sign()),
                _ => {
                    let (ticket, task) = (herd.ticket(), task(id));
                    let (cause, author) = (Cause::Revoked, Author::default());
                    herd.tell(Event::EndAsked { ticket, task, cause, author });
                }
            }
            prop_assert!(herd.registrar.asks_waiting() <= waiting_max, "P10");
            prop_assert!(herd.registrar.asks_waiting() == 0 || !herd.signing.is_empty(), "P14");
            herd.pass(Span(700));
        }
        while herd.sign().is_some() {}
        prop_assert_eq!(herd.registrar.asks_waiting(), 0);
        for ticket in asked {
            let served = herd.released.iter().filter(|(other, _)| *other == ticket).count();
            let refused = usize::from(herd.refused.contains_key(&ticket));
            prop_assert_eq!(served + refused, 1, "P10: {:?}", ticket);
        }
    }
}

/// New tasks come for ever, and more than can be served. Those that hold certificates lose none: each is
/// renewed in its last seconds at the latest.
#[test]
fn no_task_loses_its_credential_because_new_ones_keep_coming() {
    let mut herd = Herd::new(10, narrow(1));
    for id in 0..10 {
        herd.ask(task(id), Ask::X509);
        herd.sign();
    }
    let ends = herd.now.plus(Span::from_secs(300));
    let mut next = 1_000;
    let mut renewals = BTreeMap::new();
    herd.pass(Span::from_secs(150));
    while herd.now < ends {
        // Twelve come in the time in which ten are served.
        for _ in 0..12 {
            let ticket = herd.ticket();
            let begin = begin(None);
            herd.tell(Event::BeginAsked { ticket, begin, luck: task(next), first: None });
            herd.ask(task(next), Ask::X509);
            next += 1;
        }
        // Whoever was turned away comes back.
        for id in 0..10 {
            let waits = renewals.get(&id).is_some_and(|ticket| !herd.refused.contains_key(ticket));
            if !waits {
                renewals.insert(id, herd.ask(task(id), Ask::X509));
            }
        }
        for _ in 0..10 {
            herd.sign();
        }
        herd.pass(Span::from_secs(1));
    }
    for (id, ticket) in renewals {
        let got = herd.released.iter().find(|(served, _)| *served == ticket).map(|(_, at)| *at);
        assert!(got.is_some_and(|at| at < ends), "P14: task {id} lost its certificate: {got:?}");
    }
    let turned_away = herd.refused.values().all(|denial| *denial == Denial::Overloaded);
    assert!(turned_away && !herd.refused.is_empty(), "there was more than could be served");
}

/// One task that fetches tokens as fast as it can takes few places, and those that have none come before it.
#[test]
fn a_task_that_never_stops_asking_costs_the_others_little() {
    let mut herd = Herd::new(3, Admission { signing_max: 1, ..Admission::default() });
    let jwt = || Ask::Jwt { audience: vec!["a".into()] };
    herd.ask(task(0), jwt());
    herd.sign();
    let flood: Vec<_> = (0..1_000).map(|_| herd.ask(task(0), jwt())).collect();
    assert_eq!(herd.registrar.asks_waiting(), limits::ASKS_WAITING_PER_TASK_MAX);
    let turned_away = flood.iter().filter(|ticket| herd.refused.contains_key(ticket)).count();
    assert_eq!(turned_away, 1_000 - 1 - limits::ASKS_WAITING_PER_TASK_MAX);
    let (other, third) = (herd.ask(task(1), jwt()), herd.ask(task(2), Ask::X509));
    herd.sign();
    assert_eq!((herd.sign(), herd.sign()), (Some(other), Some(third)));
}

/// What a caller waits for longest, also where no signer ever answers.
#[test]
fn whoever_waits_for_too_long_is_told_and_the_timer_says_when() {
    let mut herd = Herd::new(2, narrow(1));
    herd.ask(task(0), Ask::X509);
    let waits = herd.ask(task(1), Ask::X509);
    assert_eq!(herd.registrar.poll_timeout(), Some(herd.now.plus(limits::ASK_WAIT_MAX)));
    herd.pass(Span(limits::ASK_WAIT_MAX.as_millis() - 1));
    assert!(herd.refused.is_empty());
    herd.pass(Span(1));
    assert_eq!(herd.refused.get(&waits), Some(&Denial::Overloaded));
}
