//! The core path: a registrar that decides and a signer that signs, in one thread, without a disk.

use std::hint::black_box;

use mayfly_core::{
    Ask, Basis, Binding, Caller, Charter, Effect, Event, Grant, PolicyEpoch, ProcessKey, Registrar,
    Sequence, Shard, Span, TaskId, Terms, Ticket, Timestamp, TrustDomain, Verdict,
};
use mayfly_sign::{KeyRing, LeafKey, RotationPolicy, Signer, X509Svid, jwt, lint, x509};

use crate::{
    measure::Fault,
    ratio::{Ratios, Raw, thread_cpu_ns},
};

/// Credentials of each kind in one round.
const CALLS: u32 = 100;
const X509_TTL: Span = Span::from_secs(300);

/// Measures `rounds` rounds.
pub(crate) fn measure(raw: &Raw, rounds: usize, ratios: &mut Ratios) -> Result<(), Fault> {
    let domain = TrustDomain::parse("example.org")?;
    let mut desk = Desk::new(&domain)?;
    let policy = RotationPolicy::for_credentials(X509_TTL);
    let ring = KeyRing::create(domain, policy, desk.now)?;
    let signer = ring.signer();
    for _ in 0..rounds {
        desk.now = desk.now.plus(Span::from_secs(1));
        let round = Round { raw, signer: &signer };
        round.x509(&mut desk, ratios)?;
        round.jwt(&mut desk, ratios)?;
        let signature = raw.cost()?;
        let cost = cost(0..CALLS, |_| desk.grant(Ask::X509).and_then(|_| desk.release()))?;
        ratios.add(("decide", "core: deciding, promising and releasing"), cost / signature);
    }
    Ok(())
}

/// One round's yardstick and keys.
struct Round<'a> {
    raw: &'a Raw,
    signer: &'a Signer,
}

impl Round<'_> {
    /// Certificates from grants, with keys that are given. What issuing takes beyond reading back is
    /// building and signing.
    fn x509(&self, desk: &mut Desk, ratios: &mut Ratios) -> Result<(), Fault> {
        let signature = self.raw.cost()?;
        let pooled = desk.grants(|| Ask::X509)?.into_iter();
        let pooled = pooled.map(|grant| Ok((grant, LeafKey::generate()?)));
        let pooled: Vec<_> = pooled.collect::<Result<_, Fault>>()?;
        let mut signed = Vec::with_capacity(pooled.len());
        let issuing = cost(pooled, |(grant, key)| {
            let public = *key.public();
            signed.push((x509::issue(grant, self.signer, key)?, public));
            Ok(())
        })?;
        let linting = cost(&signed, |(svid, key)| lint(svid, key, self.signer))?;
        let grant = (issuing - linting) / signature;
        ratios.add(("x509", "core: an X.509-SVID from a grant, its key made ahead"), grant);
        ratios.add(("lint", "core: … and reading it back"), linting / signature);
        let grants = desk.grants(|| Ask::X509)?;
        let keyed =
            cost(grants, |grant| Ok(drop(x509::issue(grant, self.signer, LeafKey::generate()?)?)))?;
        ratios.add(("keyed", "core: … and its key made on the spot"), keyed / signature);
        Ok(())
    }

    fn jwt(&self, desk: &mut Desk, ratios: &mut Ratios) -> Result<(), Fault> {
        let grants = desk.grants(|| Ask::Jwt { audience: ["db".to_owned()].into() })?;
        let signature = self.raw.cost()?;
        let cost = cost(grants, |grant| Ok(drop(black_box(jwt::issue(grant, self.signer)?))))?;
        ratios.add(("jwt", "core: a JWT-SVID from a grant"), cost / signature);
        Ok(())
    }
}

/// What `work` costs for one of `inputs`, in nanoseconds of this thread.
fn cost<I>(
    inputs: impl IntoIterator<Item = I>,
    mut work: impl FnMut(I) -> Result<(), Fault>,
) -> Result<f64, Fault> {
    let inputs = inputs.into_iter();
    let before = thread_cpu_ns();
    for input in inputs {
        work(input)?;
    }
    Ok((thread_cpu_ns() - before) / f64::from(CALLS))
}

fn lint(svid: &X509Svid, key: &mayfly_sign::PublicPoint, signer: &Signer) -> Result<(), Fault> {
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

/// A registrar with one task, and a driver that has no disk to wait for.
struct Desk {
    registrar: Registrar,
    basis: Basis,
    ticket: Ticket,
    now: Timestamp,
}

impl Desk {
    fn new(domain: &TrustDomain) -> Result<Self, Fault> {
        let epoch = PolicyEpoch(1);
        let charter = Charter {
            trust_domain: domain.clone(),
            shard: Shard(0),
            policy_epoch: epoch,
            admission: mayfly_core::Admission::default(),
        };
        let mut registrar = Registrar::replay(charter, None, []);
        let now = Timestamp(1_750_000_000_000);
        let caller = ProcessKey { boot: [0; 16], inode: 1, pid: 1 };
        let met = Event::Met {
            ticket: Ticket(0),
            caller: Caller { lineage: [caller].into(), ..Caller::default() },
            verdict: Verdict { epoch, permits: [terms()].into() },
            luck: [TaskId::from_bytes([1; 16])].into(),
            wish: None,
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
        Ok(Self { registrar, basis, ticket: Ticket(1), now })
    }

    /// Grants that are ready to be signed, and released as if they had been.
    fn grants(&mut self, ask: impl Fn() -> Ask) -> Result<Vec<Grant>, Fault> {
        let grants = (0..CALLS).map(|_| {
            let grant = self.grant(ask())?;
            self.release()?;
            Ok(grant)
        });
        grants.collect()
    }

    /// Asks, and says that the promise is on disk.
    fn grant(&mut self, ask: Ask) -> Result<Grant, Fault> {
        self.ticket.0 += 1;
        let asked =
            Event::Asked { ticket: self.ticket, basis: self.basis, ask, luck: self.ticket.0 };
        let promised = self.orders(asked).journal.ok_or("nothing was promised")?;
        let granted = self.orders(Event::Journaled { upto: promised }).sign;
        granted.ok_or_else(|| "nothing was granted".into())
    }

    /// Says that it was signed.
    fn release(&mut self) -> Result<(), Fault> {
        let released = self.orders(Event::Signed { ticket: self.ticket }).release;
        released.ok_or_else(|| "nothing was released".into())
    }

    /// What the registrar orders when it hears `event`.
    fn orders(&mut self, event: Event) -> Orders {
        self.registrar.handle(self.now, event);
        let mut orders = Orders::default();
        while let Some(effect) = self.registrar.poll_effect() {
            if let Effect::Journal(sequence, _) = effect {
                orders.journal = Some(sequence);
            } else if let Effect::Sign { grant, .. } = effect {
                orders.sign = Some(grant);
            } else if let Effect::Release { .. } = effect {
                orders.release = Some(());
            }
        }
        orders
    }
}

/// The effects that matter here.
#[derive(Default)]
struct Orders {
    journal: Option<Sequence>,
    sign: Option<Grant>,
    release: Option<()>,
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
        bounds: mayfly_core::Bounds::default(),
    }
}
