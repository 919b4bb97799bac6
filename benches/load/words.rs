//! What the command line asks for.

use std::{path::PathBuf, time::Duration};

use nix::unistd::Pid;

use crate::measure::{Fault, is_quick};

/// Calls in flight, unless somebody says otherwise.
const IN_FLIGHT: usize = 64;
/// Beyond it the clients' own connections would be what is measured.
const IN_FLIGHT_MAX: usize = 1_024;
const SECONDS_MAX: u64 = 600;

pub(crate) struct Words {
    /// The Workload API of another server.
    pub(crate) socket: Option<PathBuf>,
    /// The process whose processor time is told.
    pub(crate) pid: Option<Pid>,
    pub(crate) in_flight: usize,
    /// How long one loop lasts.
    pub(crate) lasting: Duration,
    /// Calls a second, instead of finding out what is held.
    pub(crate) rate: Option<f64>,
}

impl Words {
    pub(crate) fn read() -> Result<Self, Fault> {
        let pid = number("--pid")?.map(i32::try_from).transpose()?;
        let in_flight = number("--in-flight")?.map_or(Ok(IN_FLIGHT), usize::try_from)?;
        let seconds = number("--seconds")?.unwrap_or_else(|| if is_quick() { 1 } else { 10 });
        if in_flight > IN_FLIGHT_MAX || seconds > SECONDS_MAX {
            return Err("at most 1024 in flight and 600 seconds".into());
        }
        Ok(Self {
            socket: word("--socket").as_deref().map(unix).transpose()?,
            pid: pid.map(Pid::from_raw),
            in_flight,
            lasting: Duration::from_secs(seconds),
            rate: number("--rate")?.map(u32::try_from).transpose()?.map(f64::from),
        })
    }
}

/// The word after `flag`.
pub(crate) fn word(flag: &str) -> Option<String> {
    std::env::args().skip_while(|word| word != flag).nth(1)
}

fn number(flag: &str) -> Result<Option<u64>, Fault> {
    let Some(text) = word(flag) else { return Ok(None) };
    let number = text.parse().ok().filter(|number| *number > 0);
    number.map(Some).ok_or_else(|| format!("`{flag}` takes a number above 0: `{text}`").into())
}

/// The path in `unix:///path`, or the path alone.
pub(crate) fn unix(text: &str) -> Result<PathBuf, Fault> {
    let path = text.strip_prefix("unix:").unwrap_or(text);
    let path = path.strip_prefix("//").unwrap_or(path);
    if path.starts_with('/') {
        return Ok(path.into());
    }
    Err(format!("not `unix:` and an absolute path: `{text}`").into())
}
