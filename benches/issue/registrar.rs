//! The core path: a registrar that decides and a signer that signs, in one thread, without a disk.

use std::hint::black_box;

use mayfly_core::{Ask, Grant, Span};
use mayfly_sign::{LeafKey, Signer, jwt, x509};

use crate::{
    granting::{Desk, read_back},
    measure::Fault,
    ratio::{Ratios, Raw, thread_cpu_ns},
};

/// Credentials of each kind in one round.
const CALLS: u32 = 100;

/// Measures `rounds` rounds.
pub(crate) fn measure(raw: &Raw, rounds: usize, ratios: &mut Ratios) -> Result<(), Fault> {
    let (mut desk, ring) = Desk::new()?;
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
        let pooled = grants(desk, || Ask::X509)?.into_iter();
        let pooled = pooled.map(|grant| Ok((grant, LeafKey::generate()?)));
        let pooled: Vec<_> = pooled.collect::<Result<_, Fault>>()?;
        let mut signed = Vec::with_capacity(pooled.len());
        let issuing = cost(pooled, |(grant, key)| {
            let public = *key.public();
            signed.push((x509::issue(grant, self.signer, key)?, public));
            Ok(())
        })?;
        let linting = cost(&signed, |(svid, key)| read_back(svid, key, self.signer))?;
        let grant = (issuing - linting) / signature;
        ratios.add(("x509", "core: an X.509-SVID from a grant, its key made ahead"), grant);
        ratios.add(("lint", "core: … and reading it back"), linting / signature);
        let grants = grants(desk, || Ask::X509)?;
        let keyed = cost(grants, |grant| {
            black_box(x509::issue(grant, self.signer, LeafKey::generate()?)?);
            Ok(())
        })?;
        ratios.add(("keyed", "core: … and its key made on the spot"), keyed / signature);
        Ok(())
    }

    fn jwt(&self, desk: &mut Desk, ratios: &mut Ratios) -> Result<(), Fault> {
        let grants = grants(desk, || Ask::Jwt { audience: ["db".to_owned()].into() })?;
        let signature = self.raw.cost()?;
        let cost = cost(grants, |grant| {
            black_box(jwt::issue(grant, self.signer)?);
            Ok(())
        })?;
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

/// Grants that are ready to be signed, and released as if they had been.
fn grants(desk: &mut Desk, ask: impl Fn() -> Ask) -> Result<Vec<Grant>, Fault> {
    let grants = (0..CALLS).map(|_| {
        let grant = desk.grant(ask())?;
        desk.release()?;
        Ok(grant)
    });
    grants.collect()
}
