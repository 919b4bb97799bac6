//! From samples to `docs/verifiers.md`.

use std::process::Command;

use crate::measure::quantile;

/// What was found about one verifier and one use.
#[derive(Debug)]
pub(crate) enum Cell {
    /// It refused when it heard of the end: milliseconds.
    Refused(Vec<f64>),
    /// It refused when the credential expired: milliseconds after that.
    Expired(Vec<f64>),
    /// It did not refuse while it was watched: how often it was.
    Never(usize),
    /// In words of its own.
    Said(String),
    /// It has no such use.
    None,
}

impl Cell {
    /// From tries in time, if there were any; else from tries at all.
    pub(crate) fn of(in_time: &[f64], at_all: &[Option<f64>]) -> Self {
        if !in_time.is_empty() {
            return Self::Refused(in_time.to_vec());
        }
        if at_all.is_empty() {
            return Self::None;
        }
        let seen: Vec<f64> = at_all.iter().copied().flatten().collect();
        if seen.is_empty() {
            return Self::Never(at_all.len());
        }
        // Certificates and tokens count whole seconds, so a refusal may seem to come one early.
        if seen.len() == at_all.len() && seen.iter().all(|after| *after > -1_000.0) {
            return Self::Expired(seen);
        }
        Self::Said(format!("unclear: {at_all:.0?} ms after its end"))
    }

    fn text(&self) -> String {
        match self {
            Self::Refused(ms) => {
                let [p50, max] = [0.5, 1.0].map(|q| quantile(ms, q));
                let digits = usize::from(p50 < 10.0);
                format!("**{p50:.digits$} ms**, max {max:.digits$} (n = {})", ms.len())
            }
            Self::Expired(ms) => {
                let [min, max] = [0.0, 1.0].map(|q| quantile(ms, q) / 1e3);
                format!(
                    "until expiry; refused {min:+.1} to {max:+.1} s after it (n = {})",
                    ms.len()
                )
            }
            Self::Never(n) => format!("not refused: still accepted 2 s after expiry (n = {n})"),
            Self::Said(words) => words.clone(),
            Self::None => "–".to_owned(),
        }
    }
}

/// One verifier.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) verifier: String,
    pub(crate) version: String,
    /// How it judges tokens.
    pub(crate) token: String,
    pub(crate) new: Cell,
    pub(crate) live: Cell,
    pub(crate) jwt: Cell,
}

/// The whole document.
pub(crate) fn render(rows: &[Row], skipped: &[String], (rounds, passes): (usize, usize)) -> String {
    let build = if cfg!(debug_assertions) { "a development build" } else { "a release build" };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut out = format!(
        "# What verifiers make of a task's end\n\n\
         *Written by `cargo bench -p mayfly --bench verifiers`, not by hand: {build}, {cores} cores, \
         {}, commit {}.*\n\n\
         Each cell says for how long after the end of a task its certificate or token was still \
         accepted. A number is the time from the operator's order (for nginx, PostgreSQL and Envoy: from \
         the kill -9 of the task's holder) to the first refusal, with what was stolen tried every \
         millisecond, {rounds} ends, certificates of a minute. *Until expiry* was measured too, not assumed: \
         certificates and tokens of five seconds, {passes} ends, tried until two seconds after.\n\n\
         | verifier | version | new connection | live connection | JWT |\n|---|---|---|---|---|\n",
        machine(),
        commit(),
    );
    for row in rows {
        let (new, live) = (row.new.text(), row.live.text());
        let jwt = if row.token.is_empty() {
            row.jwt.text()
        } else {
            format!("{}: {}", row.token, row.jwt.text())
        };
        out += &format!("| {} | {} | {new} | {live} | {jwt} |\n", row.verifier, row.version);
    }
    out += NOTES;
    if !skipped.is_empty() {
        out += "\nNot measured here:\n\n";
        out += &skipped.iter().map(|reason| format!("- {reason}\n")).collect::<String>();
    }
    out
}

const NOTES: &str = "\n\
## How to read it\n\n\
- **Lists are files.** All servers but mayfly-verify and Envoy read what one `mayfly sidecar` keeps \
([sidecar](sidecar.md)) and are told by `--on-renew` (SIGHUP); rustls and `openssl verify` read the \
files anew each time. In the number are: the end on disk, the list's signature, the Workload API's \
stream, the files made durable and swapped, the shell, the reload.\n\
- **One end at a time**, more than a second apart. Lists are signed at once after a quiet second and \
then at most once a second, so under steady ends add up to a second to every number that comes from a \
list; not to those of mayfly-verify, which follows the feed.\n\
- **Session resumption is off everywhere.** Where it is on, a revoked client that has a ticket is not \
verified again by rustls, Go or OpenSSL.\n\
- **Live connections** are verified once, when they are made, by everybody but mayfly-verify. nginx closes \
idle ones of the workers that its reload retires; a request or an upgraded connection that is under way \
goes on.\n\
- **Lists cover the whole chain** for nginx and PostgreSQL: with Mayfly's self-signed authorities one full \
list per authority is enough, and that is what lies in `crl.pem`.\n\
- **PostgreSQL and nginx do not read SPIFFE IDs**; they admit any living task of the trust domain.\n\
- JWT *offline* is the library's own check with the bundle: signature, audience, dates. *`ValidateJWTSVID`* \
asks the broker over the Workload API. `–` means that the verifier has no such use.\n\
- On a busy machine everything here waits for the scheduler; see [benches](../benches/README.md).\n";

fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let (kernel, load) = (read("/proc/sys/kernel/osrelease"), read("/proc/loadavg"));
    let load = load.split(' ').take(3).collect::<Vec<_>>().join(" ");
    format!("Linux {}, load at the end {load}", kernel.trim())
}

fn commit() -> String {
    let run = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    run.map(|run| String::from_utf8_lossy(&run.stdout).trim().to_owned()).unwrap_or_default()
}
