//! How many short tasks a second one broker can begin, give their credentials, end and have refused.
//!
//! `cargo bench -p mayfly --bench churn` measures; add `--profile dev` and `-- --quick` for a smoke run.
//! Tasks are begun and ended through `Tasks.Batch` and held by connections to their own sockets, all of
//! them in this process. The rate goes up until it is not held. Each step has a broker of its own.
//! `benches/README.md` says what is in each figure. The last line is one JSON object.

#[expect(dead_code, reason = "the disk is not asked by itself here")]
mod measure;

#[path = "churn/house.rs"]
mod house;
#[path = "churn/step.rs"]
mod step;
#[path = "churn/tally.rs"]
mod tally;

use std::path::Path;

use measure::{Fault, Foreign, count, is_quick, say};

/// Tasks a second: the first is what processes can be started at, the last what is aimed at.
const RATES: [usize; 6] = [100, 200, 500, 1_000, 1_500, 2_000];
const RATES_QUICK: [usize; 2] = [20, 50];

fn main() -> Result<(), Fault> {
    measure::headline("churn");
    let seconds = count("MAYFLY_BENCH_SECONDS", (3, 20))?;
    house::raise_file_limit();
    let dir = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = runtime.block_on(climb(dir.path(), seconds))?;
    measure::report(&figures);
    Ok(())
}

async fn climb(dir: &Path, seconds: usize) -> Result<Vec<(String, f64)>, Fault> {
    let rates: &[usize] = if is_quick() { &RATES_QUICK } else { &RATES };
    let mut figures = Vec::new();
    let mut held = 0.0;
    for rate in rates {
        let foreign = Foreign::new();
        let told = step::play(&dir.join(rate.to_string()), *rate, seconds).await?;
        told.tell(&mut figures);
        foreign.tell();
        if let Some(broken) = told.broken() {
            return Err(broken.into());
        }
        if !told.is_held() {
            say(&format!("{rate} a second are not held: the climb ends here"));
            break;
        }
        held = told.rate();
    }
    figures.push(("held_per_second".to_owned(), held));
    Ok(figures)
}
