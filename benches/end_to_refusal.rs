//! How long it takes until a dead task is refused everywhere, and until a new one has its identity.
//!
//! `cargo bench -p mayfly --bench end_to_refusal` measures; add `--profile dev` and `-- --quick` for a
//! smoke run. The rounds are those of `mayfly demo`: broker, service and workload are processes of
//! their own, and the workload is killed with -9. `benches/README.md` says what is in each figure. The
//! last line is one JSON object.

mod measure;

#[path = "end_to_refusal/crowd.rs"]
mod crowd;

use std::path::Path;

use crowd::Crowd;
use mayfly::stage::{Probe, Round, Stage};
use measure::{Fault, Floor, Foreign, count, program, quantile, report, say};

type Part = (&'static str, &'static str, fn(&Round) -> Option<f64>);

const PARTS: [Part; 5] = [
    ("begin_to_svid", "task begun, X.509-SVID in hand", |round| Some(round.begin_to_svid_ms)),
    ("stream_closed", "killed, Workload API stream closed", |round| Some(round.stream_closed_ms)),
    ("token_refused", "killed, token refused", |round| round.token_refused_ms),
    ("new_connection_refused", "killed, refused on a new connection", |round| {
        round.new_connection_refused_ms
    }),
    ("live_connection_cut", "killed, live connection cut", |round| {
        Some(round.live_connection_cut_ms)
    }),
];

fn main() -> Result<(), Fault> {
    if std::env::args().nth(1).is_some_and(|word| word == crowd::WORD) {
        return crowd::be();
    }
    measure::headline("end_to_refusal");
    let rounds = count("MAYFLY_BENCH_ROUNDS", (20, 400))?;
    let followers = count("MAYFLY_BENCH_FOLLOWERS", (50, 1_000))?;
    let ends = count("MAYFLY_BENCH_ENDS", (20, 500))?;
    // Survivors outlive the holders that started them; this process waits for them at the end, so
    // that what they used is not taken for somebody else's.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let foreign = Foreign::new();
    let dir = tempfile::tempdir()?;
    let mut floor = Floor::new(dir.path())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let play = play(dir.path(), &mut floor, (rounds, followers, ends));
    let (calm, crowded, said) = runtime.block_on(play)?;
    drop(runtime);
    while rustix::process::wait(rustix::process::WaitOptions::empty()).is_ok() {}

    let mut figures = Vec::new();
    say(&format!("milliseconds on the wall, {rounds} rounds, nobody else there:"));
    tell("", &calm, &mut figures);
    say(&format!("the same in a crowd ({said}):"));
    tell("crowd_", &crowded, &mut figures);
    floor.tell();
    foreign.tell();
    report(&figures);
    Ok(())
}

fn tell(prefix: &str, rounds: &[Round], figures: &mut Vec<(String, f64)>) {
    for (key, what, of) in PARTS {
        let samples: Vec<f64> = rounds.iter().filter_map(of).collect();
        let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|q| quantile(&samples, q));
        say(&format!(
            "  {what:<40} p50 {p50:>7.2}  p90 {p90:>7.2}  p99 {p99:>7.2}  max {max:>7.2}  ({})",
            samples.len()
        ));
        figures.push((format!("{prefix}{key}_ms_p50"), p50));
        figures.push((format!("{prefix}{key}_ms_p99"), p99));
    }
}

type Played = (Vec<Round>, Vec<Round>, String);

async fn play(
    dir: &Path,
    floor: &mut Floor,
    (rounds, followers, ends): (usize, usize, usize),
) -> Result<Played, Fault> {
    let mut stage = Stage::start(&program(), dir).await?;
    let calm = act(&mut stage, floor, rounds).await?;
    let crowd = Crowd::gather(stage.dir(), (followers, ends)).await?;
    let crowded = act(&mut stage, floor, rounds).await?;
    let said = crowd.disperse().await?;
    stage.strike().await?;
    Ok((calm, crowded, said))
}

async fn act(stage: &mut Stage, floor: &mut Floor, count: usize) -> Result<Vec<Round>, Fault> {
    let mut rounds = Vec::with_capacity(count);
    for at in 0..count {
        floor.sample()?;
        // Trying costs the machine what the broker then lacks, so each round tries one thing.
        let probe = if at % 2 == 0 { Probe::Connection } else { Probe::Token };
        rounds.push(stage.round(probe).await?);
    }
    Ok(rounds)
}
