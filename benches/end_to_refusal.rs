//! How long it takes until a dead task is refused everywhere, and until a new one has its identity.
//!
//! `cargo bench -p mayfly --bench end_to_refusal` measures; add `--profile dev` and `-- --quick` for a
//! smoke run. The rounds are those of `mayfly demo`: broker, service and workload are processes of
//! their own, and the workload is killed with -9. `benches/README.md` says what is in each figure. The
//! last line is one JSON object.

mod measure;

use std::path::Path;

use mayfly::stage::{Round, Stage};
use measure::{Fault, Floor, Foreign, PROGRAM, count, quantile, report, say};

type Part = (&'static str, &'static str, fn(&Round) -> f64);

const PARTS: [Part; 5] = [
    ("begin_to_svid", "task begun, X.509-SVID in hand", |round| round.begin_to_svid_ms),
    ("stream_closed", "killed, Workload API stream closed", |round| round.stream_closed_ms),
    ("token_refused", "killed, token refused", |round| round.token_refused_ms),
    ("new_connection_refused", "killed, refused on a new connection", |round| {
        round.new_connection_refused_ms
    }),
    ("live_connection_cut", "killed, live connection cut", |round| round.live_connection_cut_ms),
];

fn main() -> Result<(), Fault> {
    measure::headline("end_to_refusal");
    let count = count("MAYFLY_BENCH_ROUNDS", (20, 200))?;
    // Survivors outlive the holders that started them; this process waits for them at the end, so
    // that what they used is not taken for somebody else's.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let foreign = Foreign::new();
    let dir = tempfile::tempdir()?;
    let mut floor = Floor::new(dir.path())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let rounds = runtime.block_on(play(dir.path(), &mut floor, count))?;
    drop(runtime);
    while rustix::process::wait(rustix::process::WaitOptions::empty()).is_ok() {}

    say(&format!("milliseconds on the wall, {count} rounds:"));
    let mut figures = Vec::new();
    for (key, what, of) in PARTS {
        let samples: Vec<f64> = rounds.iter().map(of).collect();
        let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|q| quantile(&samples, q));
        say(&format!(
            "  {what:<40} p50 {p50:>7.2}  p90 {p90:>7.2}  p99 {p99:>7.2}  max {max:>7.2}"
        ));
        figures.push((format!("{key}_ms_p50"), p50));
        figures.push((format!("{key}_ms_p99"), p99));
    }
    floor.tell();
    foreign.tell();
    report(&figures);
    Ok(())
}

async fn play(dir: &Path, floor: &mut Floor, count: usize) -> Result<Vec<Round>, Fault> {
    let mut stage = Stage::start(Path::new(PROGRAM), dir).await?;
    let mut rounds = Vec::with_capacity(count);
    for _ in 0..count {
        floor.sample()?;
        rounds.push(stage.round().await?);
    }
    stage.strike().await?;
    Ok(rounds)
}
