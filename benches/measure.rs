//! What the benches share: clocks, quantiles, the machine's own floor, and who else was busy.

use std::{
    error::Error,
    fs::{self, File},
    io::{PipeReader, PipeWriter, Read as _, Write as _},
    path::{Path, PathBuf},
    thread,
};

use mayfly::clock;

/// Why a bench came to nothing.
pub(crate) type Fault = Box<dyn Error + Send + Sync>;

/// The program that is measured: the one of this build, or another that `MAYFLY_BENCH_PROGRAM` names.
pub(crate) fn program() -> PathBuf {
    let ours = env!("CARGO_BIN_EXE_mayfly");
    std::env::var_os("MAYFLY_BENCH_PROGRAM").map_or_else(|| ours.into(), Into::into)
}

/// Whether this is a smoke run.
pub(crate) fn is_quick() -> bool {
    std::env::args().any(|word| word == "--quick")
}

/// How often to do something: as the environment says, else by what kind of run this is.
pub(crate) fn count(variable: &str, (quick, full): (usize, usize)) -> Result<usize, Fault> {
    match std::env::var(variable) {
        Ok(text) => {
            let count = text.parse().ok().filter(|count| *count > 0);
            count.ok_or_else(|| format!("`{variable}` is not a number above 0: `{text}`").into())
        }
        Err(_unset) => Ok(if is_quick() { quick } else { full }),
    }
}

/// Says which build was measured and where.
pub(crate) fn headline(what: &str) {
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    say(&format!("{what}: {cores} cores, linux {}", kernel.trim()));
    if cfg!(debug_assertions) {
        say("DEV BUILD: this shows that the path works; its figures say nothing about a release.");
    }
}

/// A line for people.
#[expect(clippy::print_stdout, reason = "a bench reports on standard output")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

/// The last line, for programs.
pub(crate) fn report(figures: &[(String, f64)]) {
    let fields = figures.iter().map(|(key, value)| format!("\"{key}\":{value:.3}"));
    say(&format!("{{{}}}", fields.collect::<Vec<_>>().join(",")));
}

/// The value below which the share `q` of all samples lies.
pub(crate) fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a list that fits into memory"
    )]
    let at = ((sorted.len() as f64 * q).ceil() as usize).saturating_sub(1);
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// Nanoseconds as milliseconds.
#[expect(clippy::cast_precision_loss, reason = "a duration of less than a day")]
pub(crate) const fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// What this machine takes for the two things that every figure here is made of: waking another
/// thread, and asking the disk. One try a round, so that they saw the same neighbours as the rest.
pub(crate) struct Floor {
    to: PipeWriter,
    back: PipeReader,
    file: File,
    wake: Vec<f64>,
    sync: Vec<f64>,
}

impl Floor {
    /// Measures the disk in `dir`.
    pub(crate) fn new(dir: &Path) -> Result<Self, Fault> {
        let (mut hear, to) = std::io::pipe()?;
        let (back, mut answer) = std::io::pipe()?;
        // Ends with the pipe, which ends with this value.
        drop(thread::Builder::new().name("echo".into()).spawn(move || {
            let mut byte = [0];
            while hear.read_exact(&mut byte).and_then(|()| answer.write_all(&byte)).is_ok() {}
        })?);
        let file = File::create(dir.join("floor"))?;
        Ok(Self { to, back, file, wake: Vec::new(), sync: Vec::new() })
    }

    /// One try of each.
    pub(crate) fn sample(&mut self) -> Result<(), Fault> {
        let began = clock::monotonic_ns();
        self.to.write_all(&[1])?;
        self.back.read_exact(&mut [0])?;
        let woken = clock::monotonic_ns();
        self.file.write_all(&[7; 200])?;
        self.file.sync_data()?;
        self.wake.push(ms(woken - began));
        self.sync.push(ms(clock::monotonic_ns() - woken));
        Ok(())
    }

    /// Says what was found.
    pub(crate) fn tell(&self) {
        say("the machine itself, in the same rounds:");
        for (what, samples) in [
            ("a byte to another thread and back", &self.wake),
            ("an append of 200 bytes and its fdatasync", &self.sync),
        ] {
            let (p50, p99) = (quantile(samples, 0.5), quantile(samples, 0.99));
            say(&format!("  {what:<48} p50 {p50:>8.3} ms   p99 {p99:>8.3} ms"));
        }
    }
}

/// Adds up what others used, so that a figure from a busy machine can be told from a slow broker.
pub(crate) struct Foreign {
    began: u64,
    busy: f64,
    own: f64,
}

impl Foreign {
    /// Counts from here on.
    pub(crate) fn new() -> Self {
        Self { began: clock::monotonic_ns(), busy: busy_s(), own: own_s() }
    }

    /// Says how much of the machine was used by others. To be called when every process of the bench
    /// has been waited for.
    pub(crate) fn tell(&self) {
        let wall = ms(clock::monotonic_ns() - self.began) / 1e3;
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        #[expect(clippy::cast_precision_loss, reason = "a number of cores")]
        let machine = wall * cores as f64;
        let (busy, own) = (busy_s() - self.busy, own_s() - self.own);
        let share = |seconds: f64| 100.0 * seconds / machine;
        let foreign = (busy - own).max(0.0);
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').take(3).collect::<Vec<_>>().join(" ");
        say(&format!(
            "{wall:.1} s; of the machine this bench used {:.0} %, others {:.0} %; load {load}",
            share(own),
            share(foreign)
        ));
        if share(foreign) > 10.0 {
            say(
                "OTHERS WERE BUSY: ratios hold, latencies contain waits for the scheduler (4 ms each).",
            );
        }
    }
}

/// Fields of `/proc` count hundredths of a second.
fn sum(fields: &str, wanted: std::ops::Range<usize>) -> f64 {
    let numbers = fields.split_ascii_whitespace().enumerate();
    let numbers = numbers.filter(|(at, _)| wanted.contains(at));
    numbers.filter_map(|(_, text)| text.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn busy_s() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = stat.lines().next().unwrap_or_default();
    // user nice system, then idle and iowait, then irq and softirq.
    sum(all, 1..4) + sum(all, 6..8)
}

/// This process and all that it has waited for.
fn own_s() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    sum(after_name, 11..15)
}
