//! A registrar that grants, for benches that sign what it grants: in one thread, without a disk.

use mayfly_core::{
    Admission, Ask, Basis, Binding, Bounds, Caller, Charter, Effect, Event, Grant, PolicyEpoch,
    ProcessKey, Registrar, Sequence, Shard, Span, TaskId, Terms, Ticket, Timestamp, TrustDomain,
    Verdict,
};
use mayfly_sign::{KeyRing, PublicPoint, RotationPolicy, Signer, X509Svid, lint};

use crate::measure::Fault;

const X509_TTL: Span = Span::from_secs(300);

/// Reads a certificate back.
pub(crate) fn read_back(svid: &X509Svid, key: &PublicPoint, signer: &Signer) -> Result<(), Fault> {
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
pub(crate) struct Desk {
    registrar: Registrar,
    basis: Basis,
    ticket: Ticket,
    pub(crate) now: Timestamp,
}

impl Desk {
    /// With the keys that sign what it grants.
    pub(crate) fn new() -> Result<(Self, KeyRing), Fault> {
        let domain = TrustDomain::parse("example.org")?;
        let (epoch, now) = (PolicyEpoch(1), Timestamp(1_750_000_000_000));
        let policy = RotationPolicy::for_credentials(X509_TTL);
        let ring = KeyRing::create(domain.clone(), policy, now)?;
        let charter = Charter {
            trust_domain: domain,
            shard: Shard(0),
            policy_epoch: epoch,
            admission: Admission::default(),
        };
        let mut registrar = Registrar::replay(charter, None, []);
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
        Ok((Self { registrar, basis, ticket: Ticket(1), now }, ring))
    }

    /// Asks, and says that the promise is on disk.
    pub(crate) fn grant(&mut self, ask: Ask) -> Result<Grant, Fault> {
        self.ticket.0 += 1;
        let asked =
            Event::Asked { ticket: self.ticket, basis: self.basis, ask, luck: self.ticket.0 };
        let promised = self.orders(asked).journal.ok_or("nothing was promised")?;
        let granted = self.orders(Event::Journaled { upto: promised }).sign;
        granted.ok_or_else(|| "nothing was granted".into())
    }

    /// Says that it was signed.
    pub(crate) fn release(&mut self) -> Result<(), Fault> {
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
        bounds: Bounds::default(),
    }
}
