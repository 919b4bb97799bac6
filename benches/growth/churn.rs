//! The index's file under a day's tasks: as many as ten a second for 24 hours, faster.

use std::{fs, path::Path, time::Duration};

use mayfly::clock;
use mayfly_proto::mayfly::v1::{
    self as wire, holder_wish::Holder, outcome::Outcome as Said, wish::Wish as Of,
};
use tokio::time::{Instant, sleep_until};

use crate::{
    broker::{self, Broker, batch, float, seconds},
    measure::{Fault, count, say},
    series::series,
};

/// Tasks in one call, begun and ended.
const LOT: usize = 240;
/// How often. Together 2,400 tasks a second: the last two minutes' are remembered.
const EVERY: Duration = Duration::from_millis(100);
/// Size is looked at once in so many lots.
const LOOK: usize = 10;

const CONFIGURATION: &str = r#"trust_domain = "example.org"

[[profile]]
name = "job"
path = "/bench/job"
selectors = []
owner = "bench"
binding = "lease"
"#;

pub(crate) async fn measure(dir: &Path) -> Result<Vec<(&'static str, f64)>, Fault> {
    let lives = count("MAYFLY_BENCH_LIVES", (4_800, 864_000))?;
    let broker = Broker::open(dir, CONFIGURATION).await?;
    let index = dir.join("store/index");
    let began = clock::monotonic_ns();
    let (mut points, mut memory) = (Vec::new(), Vec::new());
    let mut due = Instant::now();
    for lot in 0..lives / LOT {
        live(&broker, lot).await?;
        if lot % LOOK == 0 {
            let done = float((lot + 1) * LOT);
            points.push((done, megabytes(&index)?));
            memory.push((done, broker.resident()? / 1_048_576.0));
        }
        due += EVERY;
        sleep_until(due).await;
    }
    let rate = float(lives) / seconds(clock::monotonic_ns() - began);
    broker.quiet().await?;
    let (after, log) = (megabytes(&index)?, megabytes(&dir.join("store/log"))?);
    points.push((float(lives), after));
    broker.close().await?;
    let most = |points: &[(f64, f64)]| points.iter().map(|(_, size)| *size).fold(0.0, f64::max);
    let (first, second) = points.split_at(points.len() / 2);
    let growth = most(second) / most(first);
    say(&format!("{lives} tasks begun and ended, {rate:.0} a second:"));
    say(&format!("  the index's file, at most in the first half    {:>9.1} MB", most(first)));
    say(&format!("  … in the second half                           {:>9.1} MB", most(second)));
    say(&format!("  … afterwards                                   {after:>9.1} MB"));
    say(&format!("  the log, which is kept                         {log:>9.1} MB"));
    series("course", "index_by_churn", ("tasks begun and ended", "MB"), &points);
    series("course", "memory_by_churn", ("tasks begun and ended", "MiB"), &memory);
    Ok(vec![
        ("index_mb_after_churn", after),
        ("index_growth_ratio", growth),
        ("log_bytes_per_task", log * 1e6 / float(lives)),
    ])
}

/// A lot of jobs, begun and ended.
async fn live(broker: &Broker, lot: usize) -> Result<(), Fault> {
    let tasks = broker.tasks().await?;
    let deadline_ms = clock::now().0 + 3_600_000;
    let wish = |of| {
        let begin = broker::begin("job", Holder::Job(true), format!("{lot}-{of}"));
        Of::Begin(wire::BeginRequest { deadline_ms, ..begin })
    };
    let mut ends = Vec::with_capacity(LOT);
    for said in batch(&tasks, (0..LOT).map(wish).collect()).await? {
        let Said::Begun(task) = said else { return Err("a begin is answered otherwise".into()) };
        ends.push(Of::End(broker::end(task.task)));
    }
    batch(&tasks, ends).await?;
    Ok(())
}

/// What a folder holds, in millions of bytes.
#[expect(clippy::cast_precision_loss, reason = "sizes of files")]
fn megabytes(dir: &Path) -> Result<f64, Fault> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // Sled removes files of its own accord.
        let Ok(held) = entry.metadata() else { continue };
        bytes += if held.is_dir() { 0 } else { held.len() };
        if held.is_dir() {
            for below in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                bytes += below.metadata().map_or(0, |held| held.len());
            }
        }
    }
    Ok(bytes as f64 / 1e6)
}
