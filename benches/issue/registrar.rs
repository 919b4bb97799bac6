//! The core path: a registrar that decides and a signer that signs, in one thread, without a disk.

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
        let signature = raw.cost()?;
        let pooled: Vec<_> = (0..CALLS).map(|_| LeafKey::generate()).collect::<Result<_, _>>()?;
        let mut last = None;
        let cost = cost(pooled, |key| {
            last = Some((*key.public(), desk.x509(&signer, key)?));
            Ok(())
        })?;
        ratios.add(("x509", "core: an X.509-SVID, its key made ahead"), cost / signature);
        let (key, svid) = last.ok_or("nothing was signed")?;
        let cost = self::cost(0..CALLS, |_| lint(&svid, &key, &signer))?;
        ratios.add(("lint", "core: … of which reading it back is"), cost / signature);
        let cost = self::cost(0..CALLS, |_| desk.x509(&signer, LeafKey::generate()?).map(drop))?;
        ratios.add(("keyed", "core: an X.509-SVID, its key made on the spot"), cost / signature);
        let cost = self::cost(0..CALLS, |_| desk.jwt(&signer))?;
        ratios.add(("jwt", "core: a JWT-SVID"), cost / signature);
        let cost = self::cost(0..CALLS, |_| desk.grant(Ask::X509).and_then(|_| desk.release()))?;
        ratios.add(("decide", "core: deciding alone, without the signature"), cost / signature);
    }
    Ok(())
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

    fn x509(&mut self, signer: &Signer, key: LeafKey) -> Result<X509Svid, Fault> {
        let grant = self.grant(Ask::X509)?;
        let svid = x509::issue(grant, signer, key)?;
        self.release()?;
        Ok(svid)
    }

    fn jwt(&mut self, signer: &Signer) -> Result<(), Fault> {
        let grant = self.grant(Ask::Jwt { audience: ["db".to_owned()].into() })?;
        std::hint::black_box(jwt::issue(grant, signer)?);
        self.release()
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
