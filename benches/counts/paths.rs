//! The paths that are counted. What is counted is what happens inside [`counted`]; what a path needs is made
//! outside of it.

use std::{hint::black_box, time::Duration};

use mayfly_core::{
    Ask, Bitmap, Place, Position, RevocationSet, Sequence, Serial, Shard, Slot, Status, Window,
};
use mayfly_sign::{LeafKey, jwt, x509};
use mayfly_verify::{Patience, View};
use tokio::time::Instant;

use crate::{
    granting::{self, Desk},
    measure::Fault,
};

/// Their names, as `benches/counts.json` has them.
pub(crate) const PATHS: [&str; 5] = ["admit", "jwt_grant", "lint", "registrar", "x509_grant"];

/// Times that each path is taken.
pub(crate) const TIMES: u32 = 50;
/// Times before that: what is done once in a life belongs to no credential.
const BEFORE: u32 = 5;

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
    let work = |(svid, key)| granting::read_back(&svid, &key, &signer);
    each(&mut desk, make, work, Desk::release)
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
