//! How large the program is, and what a broker holds that has nothing to do.
//!
//! `cargo bench -p mayfly --bench size` measures; with `--profile dev` the size is that of another build.
//! `MAYFLY_BENCH_PROGRAM` names another program. The last line is one JSON object.

#[expect(dead_code, reason = "each bench looks at another side of it")]
mod broker;
#[expect(dead_code, reason = "nothing here is timed")]
mod measure;

use std::{fs, path::Path, process::Command};

use broker::Broker;
use measure::{Fault, program, report, say};

/// What a broker needs to start.
const CONFIGURATION: &str = "trust_domain = \"example.org\"\n";

fn main() -> Result<(), Fault> {
    measure::headline("size");
    broker::raise_file_limit();
    let dir = tempfile::tempdir()?;
    let whole = megabytes(fs::metadata(program())?.len());
    let stripped = stripped(dir.path())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (fresh, idle) = runtime.block_on(idle(&dir.path().join("data")))?;
    say(&format!("  the program as it is built          {whole:>9.2} MB"));
    say(&format!("  … without symbols                   {stripped:>9.2} MB"));
    say(&format!("  a broker that has just started      {:>9.2} MiB", fresh / mebibytes()));
    say(&format!("  … that has had nothing to do        {:>9.2} MiB", idle / mebibytes()));
    let figures = [("binary_mb", stripped), ("idle_mib", idle / mebibytes())];
    report(&figures.map(|(key, value)| (key.to_owned(), value)));
    Ok(())
}

/// The size of a copy without symbols, in millions of bytes. Where there is no `strip` it is what a
/// program is loaded from: the end of its last loaded segment in the file.
fn stripped(dir: &Path) -> Result<f64, Fault> {
    let copy = dir.join("stripped");
    fs::copy(program(), &copy)?;
    let strip = Command::new("strip").arg(&copy).status();
    if strip.is_ok_and(|status| status.success()) {
        return Ok(megabytes(fs::metadata(&copy)?.len()));
    }
    say("there is no `strip` here: the segments that are loaded are counted");
    let program = fs::read(&copy)?;
    Ok(megabytes(loaded(&program).ok_or("not a program of 64 bits, little-endian")?))
}

/// The end of the last segment of an ELF file (64 bits, little-endian) that is loaded.
fn loaded(program: &[u8]) -> Option<u64> {
    const LOAD: u32 = 1;
    let word = |at: usize| Some(u64::from_le_bytes(program.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_le_bytes(program.get(at..at + 2)?.try_into().ok()?));
    let (headers, size, count) = (usize::try_from(word(0x20)?).ok()?, half(0x36)?, half(0x38)?);
    let ends = (0..usize::from(count)).filter_map(|number| {
        let at = headers + number * usize::from(size);
        let kind = u32::from_le_bytes(program.get(at..at + 4)?.try_into().ok()?);
        (kind == LOAD).then_some(word(at + 0x08)? + word(at + 0x20)?)
    });
    ends.max()
}

/// Resident memory of a broker when it says that it serves, and later.
async fn idle(dir: &Path) -> Result<(f64, f64), Fault> {
    let broker = Broker::open(dir, CONFIGURATION).await?;
    let fresh = broker.resident()?;
    broker.quiet().await?;
    let idle = broker.resident()?;
    broker.close().await?;
    Ok((fresh, idle))
}

#[expect(clippy::cast_precision_loss, reason = "the size of a program")]
const fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

const fn mebibytes() -> f64 {
    1_048_576.0
}
