//! The whole path: client, socket, attestation, policy, registrar, disk, key and back.
//!
//! The processor time is the broker's alone. The clients share its cores, which costs it cache and
//! nothing else that this clock sees.

use std::{path::Path, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mayfly::clock;

use crate::{
    house::{Guest, House},
    measure::{Fault, Floor, is_quick, ms, quantile, say},
    ratio::{Ratios, Raw},
};

/// Calls in flight.
const IN_FLIGHT: usize = 64;
/// A figure stays open for this long after its last answer: what the broker puts off, such as making
/// new keys for its pool (256 at 16 every 20 ms) or signing a revocation list, is paid for in it.
const TAIL: Duration = Duration::from_millis(350);

/// How long a caller waits, in milliseconds.
#[derive(Default)]
pub(crate) struct Latencies {
    jwt_alone: Vec<f64>,
    x509_alone: Vec<f64>,
    jwt_crowd: Vec<f64>,
    x509_crowd: Vec<f64>,
}

impl Latencies {
    pub(crate) fn tell(&self) {
        say("what a caller waits on a warm connection:");
        for (what, samples) in [
            ("a JWT-SVID, nobody else asking", &self.jwt_alone),
            ("an X.509-SVID, nobody else asking", &self.x509_alone),
            ("a JWT-SVID, 64 calls in flight", &self.jwt_crowd),
            ("an X.509-SVID, 64 calls in flight", &self.x509_crowd),
        ] {
            let (p50, p99) = (quantile(samples, 0.5), quantile(samples, 0.99));
            say(&format!("  {what:<48} p50 {p50:>8.3} ms   p99 {p99:>8.3} ms"));
        }
    }
}

/// Measures `rounds` rounds against a broker in `dir`.
pub(crate) async fn measure(
    dir: &Path,
    (raw, floor): (&Raw, &mut Floor),
    rounds: usize,
    (ratios, latencies): (&mut Ratios, &mut Latencies),
) -> Result<(), Fault> {
    for round in 0..rounds {
        floor.sample()?;
        // A broker that remembers nothing: what it has seen would make each round dearer than the last.
        let house = House::open(&dir.join(round.to_string())).await?;
        let residents = warm(&house, IN_FLIGHT).await?;
        if is_wanted("jwt") {
            jwt(&house, &residents, (raw, &mut *ratios), latencies).await?;
        }
        if is_wanted("x509") {
            let guests = x509(&house, ("x509", X509), (raw, &mut *ratios), latencies).await?;
            all_end(&house, &guests).await?;
        }
        if is_wanted("alone") {
            alone(&house, latencies).await?;
        }
        if is_wanted("life") {
            life(&house, (raw, &mut *ratios)).await?;
            let mut unread = Latencies::default();
            x509(&house, ("x509_later", X509_LATER), (raw, &mut *ratios), &mut unread).await?;
        }
        house.close().await?;
    }
    Ok(())
}

const X509: &str = "socket: first FetchX509SVID on a warm connection";
const X509_LATER: &str = "socket: FetchX509SVID, what this round revoked listed in each answer";

fn calls() -> (usize, usize) {
    if is_quick() { (512, 256) } else { (8192, 512) }
}

/// Whether this figure is wanted: all are, unless `--only` names one, for a look at it with a profiler.
fn is_wanted(figure: &str) -> bool {
    let mut words = std::env::args().skip_while(|word| word != "--only").skip(1);
    words.next().is_none_or(|only| only == figure)
}

/// The broker's threads, by the beginning of their names.
const THREADS: [(&str, &str); 5] = [
    ("tokio", "… of which sockets, attestation, profiles and registrar"),
    ("sign", "… of which signing threads"),
    ("committer", "… of which the journal"),
    ("keeper", "… of which bringing the index up to date"),
    ("sled", "… of which the index's own threads"),
];

/// Tokens over connections that are up, each of another task.
async fn jwt(
    house: &House,
    residents: &[Guest],
    (raw, ratios): (&Raw, &mut Ratios),
    latencies: &mut Latencies,
) -> Result<(), Fault> {
    let each = calls().0 / residents.len();
    let all = residents.iter().map(|guest| async move {
        let mut waits = Vec::with_capacity(each);
        for _ in 0..each {
            let asked = clock::monotonic_ns();
            guest.client.fetch_jwt(&["bench"], None).await?;
            waits.push(ms(clock::monotonic_ns() - asked));
        }
        Ok::<_, Fault>(waits)
    });
    let parts = || THREADS.map(|(name, _)| house.threads_ns(name));
    let signature = raw.cost()?;
    let (before, parts_before) = (house.cpu_ns()?, parts());
    let waits: Vec<_> =
        stream::iter(all).buffer_unordered(IN_FLIGHT).try_collect::<Vec<_>>().await?;
    let count = each * residents.len();
    let cost = per(house.cpu_ns()? - before, count);
    ratios.add(("jwt", "socket: FetchJWTSVID on a warm connection"), cost / signature);
    for ((part, after), before) in THREADS.into_iter().zip(parts()).zip(parts_before) {
        ratios.add(part, per(after? - before?, count) / signature);
    }
    latencies.jwt_crowd.extend(waits.concat());
    Ok(())
}

/// The first certificate of tasks that have begun, over connections that are up. A task shares its
/// certificate among its streams, so only a new task gets a new one on demand.
async fn x509(
    house: &House,
    figure: (&'static str, &'static str),
    (raw, ratios): (&Raw, &mut Ratios),
    latencies: &mut Latencies,
) -> Result<Vec<Guest>, Fault> {
    let guests = warm(house, calls().1).await?;
    tokio::time::sleep(TAIL).await;
    let signature = raw.cost()?;
    let before = house.cpu_ns()?;
    let fetches = guests.iter().map(fetch);
    let waits: Vec<f64> = stream::iter(fetches).buffer_unordered(IN_FLIGHT).try_collect().await?;
    tokio::time::sleep(TAIL).await;
    let cost = per(house.cpu_ns()? - before, guests.len());
    ratios.add(figure, cost / signature);
    latencies.x509_crowd.extend(waits);
    Ok(guests)
}

async fn all_end(house: &House, guests: &[Guest]) -> Result<(), Fault> {
    let ends = guests.iter().map(|guest| house.end(guest));
    stream::iter(ends).buffer_unordered(IN_FLIGHT).try_collect().await
}

/// The whole life of a task with one certificate: begun, its socket made, connected to, fetched
/// from, ended, its certificate revoked.
async fn life(house: &House, (raw, ratios): (&Raw, &mut Ratios)) -> Result<(), Fault> {
    let count = calls().1;
    let lives = (0..count).map(|_| async {
        let guest = house.begin().await?;
        fetch(&guest).await?;
        house.end(&guest).await
    });
    tokio::time::sleep(TAIL).await;
    let signature = raw.cost()?;
    let before = house.cpu_ns()?;
    stream::iter(lives).buffer_unordered(IN_FLIGHT).try_collect::<()>().await?;
    tokio::time::sleep(TAIL).await;
    let cost = per(house.cpu_ns()? - before, count);
    let what = "socket: begin, own socket, connect, FetchX509SVID, end";
    ratios.add(("life", what), cost / signature);
    Ok(())
}

/// One caller at a time.
async fn alone(house: &House, latencies: &mut Latencies) -> Result<(), Fault> {
    for guest in warm(house, if is_quick() { 8 } else { 32 }).await? {
        latencies.x509_alone.push(fetch(&guest).await?);
        let asked = clock::monotonic_ns();
        guest.client.fetch_jwt(&["bench"], None).await?;
        latencies.jwt_alone.push(ms(clock::monotonic_ns() - asked));
        house.end(&guest).await?;
    }
    Ok(())
}

async fn fetch(guest: &Guest) -> Result<f64, Fault> {
    let asked = clock::monotonic_ns();
    guest.client.fetch_x509().await?;
    Ok(ms(clock::monotonic_ns() - asked))
}

/// Tasks with a connection that has carried a call.
async fn warm(house: &House, count: usize) -> Result<Vec<Guest>, Fault> {
    let guests = (0..count).map(|_| async {
        let guest = house.begin().await?;
        guest.client.fetch_jwt_bundles().await?;
        Ok::<_, Fault>(guest)
    });
    stream::iter(guests).buffer_unordered(IN_FLIGHT).try_collect().await
}

#[expect(clippy::cast_precision_loss, reason = "a number of calls")]
fn per(cost: f64, count: usize) -> f64 {
    cost / count as f64
}
