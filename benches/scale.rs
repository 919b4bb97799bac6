//! What a million live tasks cost, and whether anything costs more among them than among a thousand.
//!
//! `cargo bench -p mayfly --bench scale` measures; add `--profile dev` and `-- --quick` for a smoke run.
//! One broker is filled to a thousand, ten thousand, a hundred thousand and a million tasks, which are jobs:
//! the only tasks that cost no descriptor. At each number the same is measured among them; the ratios of the
//! last to the first come from two brokers by turns. `MAYFLY_BENCH_TASKS`
//! sets the last number, `MAYFLY_BENCH_TASKS_FIRST` the first, `MAYFLY_BENCH_PROGRAM` names another build. `benches/README.md` says what is in each
//! figure. The last line is one JSON object.

#[expect(dead_code, reason = "each bench looks at another side of it")]
mod broker;
mod growing;
#[expect(dead_code, reason = "the disk is not asked by itself here")]
mod measure;
mod series;

#[expect(dead_code, reason = "not every bench asks these for everything")]
#[path = "scale/crowd.rs"]
mod crowd;
#[path = "scale/many.rs"]
mod many;
#[path = "scale/pair.rs"]
mod pair;
#[path = "scale/step.rs"]
mod step;

use std::path::Path;

use broker::{Broker, float};
use measure::{Fault, Foreign, count, report};
use step::Step;

/// Jobs hold what is alive; sockets are what credentials are asked for through.
const CONFIGURATION: &str = r#"trust_domain = "example.org"

[[profile]]
name = "job"
path = "/bench/job"
selectors = []
owner = "bench"
binding = "lease"

[[profile]]
name = "guest"
path = "/bench/guest"
selectors = []
owner = "bench"
binding = "socket"
"#;

fn main() -> Result<(), Fault> {
    measure::headline("scale");
    broker::raise_file_limit();
    let most = count("MAYFLY_BENCH_TASKS", (1_000, 1_000_000))?;
    let first = count("MAYFLY_BENCH_TASKS_FIRST", (100, 1_000))?;
    let sizes = std::iter::successors(Some(first), |size| Some(size * 10));
    let sizes: Vec<usize> = sizes.take_while(|size| *size <= most).collect();
    let foreign = Foreign::new();
    let dir = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = runtime.block_on(measure_all(dir.path(), &sizes))?;
    foreign.tell();
    report(&figures);
    Ok(())
}

async fn measure_all(dir: &Path, sizes: &[usize]) -> Result<Vec<(String, f64)>, Fault> {
    let ratio = many::credentials(&dir.join("many")).await?;
    let mut broker = Broker::open(&dir.join("filled"), CONFIGURATION).await?;
    broker.quiet().await?;
    let empty = broker.resident()?;
    let mut steps: Vec<Step> = Vec::new();
    let mut alive = 0;
    for size in sizes {
        step::fill(&broker, alive..*size).await?;
        alive = *size;
        steps.push(Step::measure(&mut broker, (alive, empty)).await?);
    }
    let (Some(first), Some(large)) = (sizes.first(), steps.last()) else {
        return Err("no number of tasks to measure at".into());
    };
    let few = Broker::open(&dir.join("few"), CONFIGURATION).await?;
    step::fill(&few, 0..*first).await?;
    broker.quiet().await?;
    let pair = pair::measure(&few, &broker).await?;
    few.close().await?;
    broker.close().await?;
    step::grow(&steps);
    let mut figures: Vec<(&str, f64)> = vec![
        ("tasks", float(large.tasks)),
        ("tasks_1m_throughput_ratio", pair.throughput),
        ("tasks_1m_cpu_ratio", pair.life),
        ("fetch_1m_cpu_ratio", pair.fetch),
        ("task_memory_bytes", large.bytes),
        ("task_memory_after_restart_bytes", large.bytes_after),
        ("restart_1m_s", large.killed_s.max(large.stopped_s)),
        ("end_1m_ratio", pair.end),
    ];
    figures.push(("end_10k_credentials_ratio", ratio.cpu));
    figures.push(("end_10k_credentials_wait_ratio", ratio.wait));
    Ok(figures.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}
