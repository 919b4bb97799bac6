//! The smallest workload on the `spiffe` crate, in the lines of `../README.md`: it waits for its task to
//! be begun, fetches one X.509-SVID and one token, and lives until its time is over.

use std::io::{BufRead as _, Write as _};
use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use spiffe::WorkloadApiClient;
use tokio::time::timeout;

const AUDIENCE: &str = "supervisor";
const CALL: Duration = Duration::from_secs(10);

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    say(&json!({ "ready": true }))?;
    let mut lines = std::io::stdin().lock().lines();
    let Some(go) = lines.next().transpose()? else { return Ok(()) };
    let ends: u64 = go.strip_prefix("go ").ok_or("the first line is `go END`")?.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(async {
        let client = timeout(CALL, WorkloadApiClient::connect_env()).await??;
        let svid = timeout(CALL, client.fetch_x509_svid()).await??;
        let t_x509 = now();
        let token = timeout(CALL, client.fetch_jwt_token([AUDIENCE], None)).await??;
        let t_jwt = now();
        let leaf = BASE64_STANDARD.encode(svid.leaf().as_bytes());
        say(&json!({ "t_x509": t_x509, "t_jwt": t_jwt, "leaf": leaf, "token": token }))?;
        Ok::<_, Failure>(client)
    })?;
    if ends > 0 {
        std::thread::sleep(Duration::from_nanos(ends.saturating_sub(now())));
        return say(&json!({ "bye": now() }));
    }
    while let Some(line) = lines.next().transpose()? {
        if line == "again" {
            let again = runtime.block_on(async {
                let x509 = timeout(CALL, client.fetch_x509_svid()).await?.is_err();
                let jwt = timeout(CALL, client.fetch_jwt_token([AUDIENCE], None)).await?.is_err();
                Ok::<_, Failure>(x509 && jwt)
            })?;
            say(&json!({ "refused": again }))?;
        }
    }
    Ok(())
}

/// The monotonic clock, which all processes of a machine share.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)).unwrap_or(0)
}

fn say(line: &Value) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
