//! How many instructions the core paths take, counted by valgrind, against counts that were committed.
//!
//! `cargo bench --workspace --profile dev --bench counts` counts and compares: a path that takes more than a
//! tenth more than `benches/counts.json` says fails. `-- --bless` writes the counts anew. Instructions do not
//! depend on who else is busy, so this is what can be held on a machine that is shared. Without valgrind it
//! says so and exits with 77. `benches/README.md` says what is in each count. The last line is one JSON object.

#[path = "counts/baseline.rs"]
mod baseline;
#[path = "counts/callgrind.rs"]
mod callgrind;
mod granting;
#[expect(dead_code, reason = "nothing is timed here, and no broker is started")]
mod measure;
#[path = "counts/paths.rs"]
mod paths;

use std::process::ExitCode;

use baseline::Baseline;
use callgrind::Counts;
use measure::{Fault, say};
use paths::PATHS;

/// The word by which this program tells its copy under valgrind which path to take.
const WORD: &str = "--path";
/// The exit code for "could not be asked", as `.ci/run` understands it.
const SKIPPED: u8 = 77;
/// Counts are the median of so many copies: a nonce or the order of a map may be unlucky once.
const COPIES: usize = 3;

fn main() -> Result<ExitCode, Fault> {
    if let Some(path) = std::env::args().skip_while(|word| word != WORD).nth(1) {
        paths::take(&path)?;
        return Ok(ExitCode::SUCCESS);
    }
    measure::headline("counts");
    if !callgrind::is_here() {
        say("SKIPPED: valgrind is not installed; nothing was counted and nothing is held");
        return Ok(SKIPPED.into());
    }
    let mut counted = Baseline::new();
    for path in PATHS {
        counted.insert(path.to_owned(), typical(path)?);
    }
    let figures = counted.figures();
    if std::env::args().any(|word| word == "--bless") {
        counted.write()?;
        say("benches/counts.json was written anew");
        measure::report(&figures);
        return Ok(ExitCode::SUCCESS);
    }
    let kept = Baseline::read()?;
    let broken = kept.compare(&counted);
    measure::report(&figures);
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The median of several copies, each part by itself.
fn typical(path: &str) -> Result<Counts, Fault> {
    let copies: Vec<_> = (0..COPIES).map(|_| callgrind::count(path)).collect::<Result<_, _>>()?;
    let middle = |part: fn(&Counts) -> u64| {
        let mut all: Vec<u64> = copies.iter().map(part).collect();
        all.sort_unstable();
        all.get(COPIES / 2).copied().ok_or("nothing was counted")
    };
    Ok(Counts { ours: middle(|counts| counts.ours)?, ring: middle(|counts| counts.ring)? })
}
