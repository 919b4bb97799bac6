//! Processor time, the server's and our own, each by the kernel's account of the whole process.

use nix::{
    time::{ClockId, clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

use crate::measure::Fault;

/// Who is watched while calls are made. Without a process the server's time is not told.
#[derive(Clone, Copy)]
pub(crate) struct Meter {
    server: Option<Pid>,
}

/// Processor time in microseconds: of all, or of each call.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    /// NaN if nobody said which process the server is.
    pub(crate) server_us: f64,
    pub(crate) client_us: f64,
}

impl Meter {
    pub(crate) const fn new(server: Option<Pid>) -> Self {
        Self { server }
    }

    /// To be handed to [`Self::stop`].
    pub(crate) fn start(&self) -> Result<Cost, Fault> {
        let server_us = match self.server {
            // All its threads, those that ended included.
            Some(pid) => micros(clock_getcpuclockid(pid)?)?,
            None => f64::NAN,
        };
        let client_us = micros(ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
        Ok(Cost { server_us, client_us })
    }

    /// What was used since.
    pub(crate) fn stop(&self, since: Cost) -> Result<Cost, Fault> {
        let now = self.start()?;
        Ok(Cost {
            server_us: now.server_us - since.server_us,
            client_us: now.client_us - since.client_us,
        })
    }
}

impl Cost {
    /// Divided among so many calls.
    #[expect(clippy::cast_precision_loss, reason = "a number of calls")]
    pub(crate) fn each(self, calls: usize) -> Self {
        let calls = calls.max(1) as f64;
        Self { server_us: self.server_us / calls, client_us: self.client_us / calls }
    }
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a short run")]
fn micros(clock: ClockId) -> Result<f64, Fault> {
    let now = clock_gettime(clock)?;
    Ok(now.tv_sec() as f64 * 1e6 + now.tv_nsec() as f64 / 1e3)
}
