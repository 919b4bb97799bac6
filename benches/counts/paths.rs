//! The paths that are counted. What is counted is what happens inside [`counted`]; what a path needs is made
//! outside of it.

use std::{hint::black_box, time::Duration};

use mayfly_core::{
    Ask, Basis, Binding, Bitmap, Bounds, Caller, Charter, Effect, Event, Grant, Place, PolicyEpoch,
    Position, ProcessKey, Registrar, RevocationSet, Sequence, Serial, Shard, Slot, Span, Status,
    TaskId, Terms, Ticket, Timestamp, TrustDomain, Verdict, Window,
};
use mayfly_sign::{
    KeyRing, LeafKey, PublicPoint, RotationPolicy, Signer, X509Svid, jwt, lint, x509,
};
use mayfly_verify::{Patience, View};
use tokio::time::Instant;

use crate::measure::Fault;

/// Their names, as `benches/counts.json` has them.
pub(crate) const PATHS: [&str; 5] = ["admit", "jwt_grant", "lint", "registrar", "x509_grant"];

/// Times that each path is taken.
pub(crate) const TIMES: u32 = 50;
/// Times before that: what is done once in a life belongs to no credential.
const BEFORE: u32 = 5;

const X509_TTL: Span = Span::from_secs(300);

/// Everything between its call and its return is counted, by its name: it is never inlined, and called from
/// nowhere but [`each`].
#[inline(never)]
fn counted_region<I, O>(work: &mut impl FnMut(I) -> O, input: I) -> O {
    black_box(work(black_box(input)))
}

/// Takes a path, [`TIMES`] times under the eyes of whoever counts.
pub(crate) fn take(path: &str) -> Result<(), Fault> {
    match path {
        "admit" => admit(),
        "jwt_grant" => jwt_grant(),
        "lint" => read_back(),
        "registrar" => registrar(),
        "x509_grant" => x509_grant(),
        _unknown => Err(format!("no path is called `{path}`").into()),
    }
}

/// Makes an input, works on it and puts the outcome away, over and over. Only the work is counted.
fn each<I, O>(
    desk: &mut Desk,
    mut make: impl FnMut(&mut Desk) -> Result<I, Fault>,
    mut work: impl FnMut(I) -> Result<O, Fault>,
    mut put_away: impl FnMut(&mut Desk) -> Result<(), Fault>,
) -> Result<(), Fault> {
    for n in 0..BEFORE + TIMES {
        let input = make(desk)?;
        let outcome = if n < BEFORE { work(input) } else { counted_region(&mut work, input) };
        drop(black_box(outcome?));
        put_away(desk)?;
    }
    Ok(())
}

/// A grant and a key become a certificate that was read back.
fn x509_grant() -> Result<(), Fault> {
    let (mut desk, ring) = Desk::new()?;
    let signer = ring.signer();
    let make = |desk: &mut Desk| Ok((desk.grant(Ask::X509)?, LeafKey::generate()?));
    let work = |(grant, key)| Ok(x509::issue(grant, &signer, key)?);
    each(&mut desk, make, work, Desk::release)
}

/// A grant becomes a token.
fn jwt_grant() -> Result<(), Fault> {
    let (mut desk, ring) = Desk::new()?;
    let signer = ring.signer();
    let make = |desk: &mut Desk| desk.grant(Ask::Jwt { audience: ["db".to_owned()].into() });
    let work = |grant| Ok(jwt::issue(grant, &signer)?);
    each(&mut desk, make, work, Desk::release)
}

/// A certificate is read back.
fn read_back() -> Result<(), Fault> {
    let (mut desk, ring) = Desk::new()?;
    let signer = ring.signer();
    let make = |desk: &mut Desk| {
        let key = LeafKey::generate()?;
        let public = *key.public();
        Ok((x509::issue(desk.grant(Ask::X509)?, &signer, key)?, public))
    };
    let work = |(svid, key)| check(&svid, &key, &signer);
    each(&mut desk, make, work, Desk::release)
}

fn check(svid: &X509Svid, key: &PublicPoint, signer: &Signer) -> Result<(), Fault> {
    let expected = lint::Expected {
        serial: &svid.serial,
        spiffe_id: &svid.spiffe_id,
        not_before: svid.not_before,
        not_after: svid.not_after,
        key,
        issuer: signer.x509(),
        crl_url: None,
    };
    Ok(lint::check(&svid.chain_der, &expected)?)
}

/// A wish is promised, granted and released.
fn registrar() -> Result<(), Fault> {
    // The desk that works is not the one that makes, so that both can be lent.
    let (mut idle, _ring) = Desk::new()?;
    let (mut desk, _ring) = Desk::new()?;
    let work = |()| {
        black_box(desk.grant(Ask::X509)?);
        desk.release()
    };
    each(&mut idle, |_idle| Ok(()), work, |_idle| Ok(()))
}

/// A verifier asks about a serial, with ten thousand ended tasks in its window.
fn admit() -> Result<(), Fault> {
    const WINDOW: Window = Window(3_000_000);
    let mut bitmap = Bitmap::default();
    (0..10_000).for_each(|n| bitmap.set(Slot(n * 2), Status::Revoked));
    let mut set = RevocationSet::at(Position { shard: Shard(0), sequence: Sequence(1) });
    set.insert_window(WINDOW, bitmap);
    // The view asks for the hour on the clock of a runtime.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let _within = runtime.enter();
    let view = View::new(Patience::Closed { after: Duration::from_secs(3_600) });
    view.replace(set, Instant::now())?;
    let serial = Serial::new(Place { window: WINDOW, slot: Slot(7) }, 7);
    let (mut idle, _ring) = Desk::new()?;
    let work = |serial: Serial| Ok(view.admit(&serial)?);
    each(&mut idle, |_idle| Ok(serial), work, |_idle| Ok(()))
}

/// A registrar with one task, and a driver that has no disk to wait for.
struct Desk {
    registrar: Registrar,
    basis: Basis,
    ticket: Ticket,
    now: Timestamp,
}

impl Desk {
    /// With the keys that sign what it grants.
    fn new() -> Result<(Self, KeyRing), Fault> {
        let domain = TrustDomain::parse("example.org")?;
        let (epoch, now) = (PolicyEpoch(1), Timestamp(1_750_000_000_000));
        let policy = RotationPolicy::for_credentials(X509_TTL);
        let ring = KeyRing::create(domain.clone(), policy, now)?;
        let charter = Charter { trust_domain: domain, shard: Shard(0), policy_epoch: epoch };
        let mut registrar = Registrar::replay(charter, None, []);
        let caller = ProcessKey { boot: [0; 16], inode: 1, pid: 1 };
        let met = Event::Met {
            ticket: Ticket(0),
            caller: Caller { lineage: [caller].into(), ..Caller::default() },
            verdict: Verdict { epoch, permits: [terms()].into() },
            luck: [TaskId::from_bytes([1; 16])].into(),
        };
        registrar.handle(now, met);
        let mut met = None;
        while let Some(effect) = registrar.poll_effect() {
            if let Effect::Introduce { identities, .. } = effect {
                met = identities.into_iter().next();
            }
        }
        let met = met.ok_or("the caller has no identity")?;
        let basis = Basis { task: met.task, version: met.version, epoch };
        Ok((Self { registrar, basis, ticket: Ticket(1), now }, ring))
    }

    /// Asks, and says that the promise is on disk.
    fn grant(&mut self, ask: Ask) -> Result<Grant, Fault> {
        self.ticket.0 += 1;
        let (ticket, basis, luck) = (self.ticket, self.basis, self.ticket.0);
        self.registrar.handle(self.now, Event::Asked { ticket, basis, ask, luck });
        let mut promised = None;
        while let Some(effect) = self.registrar.poll_effect() {
            if let Effect::Journal(sequence, _) = effect {
                promised = Some(sequence);
            }
        }
        let upto = promised.ok_or("nothing was promised")?;
        self.registrar.handle(self.now, Event::Journaled { upto });
        let mut granted = None;
        while let Some(effect) = self.registrar.poll_effect() {
            if let Effect::Sign { grant, .. } = effect {
                granted = Some(grant);
            }
        }
        granted.ok_or_else(|| "nothing was granted".into())
    }

    /// Says that it was signed.
    fn release(&mut self) -> Result<(), Fault> {
        self.registrar.handle(self.now, Event::Signed { ticket: self.ticket });
        let mut released = false;
        while let Some(effect) = self.registrar.poll_effect() {
            released |= matches!(effect, Effect::Release { .. });
        }
        if released { Ok(()) } else { Err("nothing was released".into()) }
    }
}

fn terms() -> Terms {
    Terms {
        profile: "bench".into(),
        path: "/agents/bench".into(),
        owner: "bench".into(),
        binding: Binding::Process,
        stable_identity: false,
        x509_ttl: X509_TTL,
        jwt_ttl: Span::from_secs(120),
        task_ttl: None,
        hint: String::new(),
        federates_with: Vec::new(),
        bounds: Bounds::default(),
    }
}
