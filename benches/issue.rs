//! What a credential costs, as a multiple of the signature in it.
//!
//! `cargo bench -p mayfly --bench issue` measures; add `--profile dev` and `-- --quick` for a smoke
//! run. `benches/README.md` says what is in each figure. The last line is one JSON object.

mod canned;
#[path = "issue/floor.rs"]
mod floor;
mod granting;
#[path = "issue/house.rs"]
mod house;
mod measure;
#[path = "issue/ratio.rs"]
mod ratio;
#[path = "issue/registrar.rs"]
mod registrar;
#[path = "issue/socket.rs"]
mod socket;

use measure::{Fault, Floor, Foreign, count, report, say};
use ratio::{Ratios, Raw};

fn main() -> Result<(), Fault> {
    if let Some(socket) = canned::wanted() {
        let raw = Raw::new()?;
        return canned::serve(&socket, move || raw.sign().ok());
    }
    measure::headline("issue");
    let foreign = Foreign::new();
    let dir = tempfile::tempdir()?;
    let mut floor = Floor::new(dir.path())?;
    let raw = Raw::new()?;

    let mut core = Ratios::default();
    let rounds = count("MAYFLY_BENCH_ROUNDS", (7, 101))?;
    registrar::measure(&raw, rounds, &mut core)?;

    let mut path = Ratios::default();
    let mut latencies = socket::Latencies::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rounds = count("MAYFLY_BENCH_ROUNDS", (2, 15))?;
    runtime.block_on(socket::measure(
        dir.path(),
        (&raw, &mut floor),
        rounds,
        (&mut path, &mut latencies),
    ))?;

    runtime.block_on(floor::measure(dir.path(), rounds, (&raw, &mut path)))?;

    say("in processor time, as multiples of one raw P-256 signature of the same round:");
    core.tell();
    path.tell();
    say(&format!("  one raw signature took {:.1} us", raw.typical_us()));
    // The same transport, and what has to be signed and written down: attestation, decision, the log's chain
    // and sockets would cost nothing.
    let jwt_floor = path.median("floor_token");
    let signed = core.median("keyed") + core.median("lint");
    // A call that writes a line: that token without its signature, which is one.
    let durable_call = jwt_floor - 1.0;
    let life_floor = path.median("floor_visit") + 2.0 * durable_call + signed;
    say(&format!("  below which nothing behind this transport comes: a token {jwt_floor:.2}"));
    say(&format!(
        "  … a life: a connection, two calls with a line on disk, a key and a signature {life_floor:.2}"
    ));
    latencies.tell();
    floor.tell();
    foreign.tell();
    report(&[
        ("x509_grant_ratio".into(), core.median("x509")),
        ("lint_ratio".into(), core.median("lint")),
        ("jwt_grant_ratio".into(), core.median("jwt")),
        ("x509_path_ratio".into(), path.median("x509")),
        ("jwt_path_ratio".into(), path.median("jwt")),
        ("life_ratio".into(), path.median("life")),
        ("floor_call_ratio".into(), path.median("floor_call")),
        ("floor_visit_ratio".into(), path.median("floor_visit")),
        ("jwt_floor_ratio".into(), jwt_floor),
        ("life_floor_ratio".into(), life_floor),
    ]);
    Ok(())
}
