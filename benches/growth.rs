//! What grows with the number of profiles, with the ends of a window, and with the days.
//!
//! `cargo bench -p mayfly --bench growth` measures; add `--profile dev` and `-- --quick` for a smoke run,
//! `-- --only profiles`, `ends` or `churn` for a part. `MAYFLY_BENCH_PROFILES`, `MAYFLY_BENCH_ENDS` and
//! `MAYFLY_BENCH_LIVES` set how far it goes. The last line is one JSON object.

#[expect(dead_code, reason = "each bench looks at another side of it")]
mod broker;
mod growing;
#[expect(dead_code, reason = "the disk is not asked by itself here")]
mod measure;
mod series;

#[path = "growth/churn.rs"]
mod churn;
#[path = "growth/ends.rs"]
mod ends;
#[expect(dead_code, reason = "not every bench asks these for everything")]
#[path = "scale/crowd.rs"]
mod guests;
#[path = "growth/profiles.rs"]
mod profiles;

use measure::{Fault, Foreign, report};

fn main() -> Result<(), Fault> {
    if std::env::args().nth(1).is_some_and(|word| word == ends::WORD) {
        return ends::be();
    }
    measure::headline("growth");
    broker::raise_file_limit();
    let only = std::env::args().skip_while(|word| word != "--only").nth(1);
    let wanted = |part: &str| only.as_ref().is_none_or(|only| only == part);
    let foreign = Foreign::new();
    let dir = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut figures = Vec::new();
    if wanted("profiles") {
        figures.extend(runtime.block_on(profiles::measure(dir.path()))?);
    }
    if wanted("ends") {
        figures.extend(runtime.block_on(ends::measure(&dir.path().join("ends")))?);
    }
    if wanted("churn") {
        figures.extend(runtime.block_on(churn::measure(&dir.path().join("churn")))?);
    }
    foreign.tell();
    let figures = figures.into_iter().map(|(key, value)| (key.to_owned(), value));
    report(&figures.collect::<Vec<_>>());
    Ok(())
}

/// The numbers to measure at: powers of ten up to the last.
fn powers(first: usize, most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(first), |size| Some(size * 10)).take_while(move |size| *size <= most)
}
