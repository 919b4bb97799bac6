//! What one end costs after many of the same window, each of which stands on the revocation list.
//!
//! Whoever ends is a process that holds a hundred tasks, one of each of a hundred profiles: it fetches a
//! certificate for each in one call, and exits.

use std::{io::Read as _, path::Path, process::Stdio, time::Duration};

use mayfly_verify::{Endpoint, WorkloadClient};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::sleep,
};

use crate::{
    broker::{Broker, float},
    growing::growing,
    guests::Guest,
    measure::{Fault, count, is_quick, quantile, say},
    powers,
    profiles::ratio,
};

/// The word that makes this program a process that holds tasks.
pub(crate) const WORD: &str = "hold";
/// Tasks of one process: clients take no more identities in one answer.
const EACH: usize = 100;
/// Processes at once.
const AT_ONCE: usize = 8;
/// Ends that are measured at each number, and how long each stays open.
const ROUNDS: usize = 7;
const TAIL: Duration = Duration::from_millis(2200);

fn configuration() -> String {
    let uid = rustix::process::geteuid().as_raw();
    // An hour, so that all of them expire in the same window or the next, and none while this runs.
    let held = (0..EACH).map(|number| {
        format!(
            "\n[[profile]]\nname = \"p{number}\"\npath = \"/p/{number}\"\nowner = \"bench\"\n\
             selectors = [\"unix:uid:{uid}\"]\nbinding = \"process\"\nx509_ttl = \"1h\"\n"
        )
    });
    let guest = "\n[[profile]]\nname = \"guest\"\npath = \"/guest\"\nowner = \"bench\"\n\
                 selectors = []\nbinding = \"socket\"\nx509_ttl = \"1h\"\n";
    format!("trust_domain = \"example.org\"\n{}{guest}", held.collect::<String>())
}

pub(crate) async fn measure(dir: &Path) -> Result<Vec<(&'static str, f64)>, Fault> {
    let most = count("MAYFLY_BENCH_ENDS", (100, 100_000))?;
    let broker = Broker::open(dir, &configuration()).await?;
    let (mut costs, mut memory, mut ended) = (Vec::new(), Vec::new(), 0);
    for size in std::iter::once(1).chain(powers(EACH, most)) {
        let processes = size.saturating_sub(ended) / EACH;
        if size > 1 {
            end_many(&broker, processes).await?;
        }
        ended += processes * EACH;
        broker.quiet().await?;
        let cost = one(&broker, size).await?;
        let mib = broker.resident()? / 1_048_576.0;
        say(&format!(
            "{size:>7} ends in the window: one more costs the broker {cost:.2} ms, lists included; it holds {mib:.0} MiB"
        ));
        costs.push((float(size), cost));
        memory.push((float(size), mib));
    }
    broker.close().await?;
    let exponent = growing("end_by_ends", ("ends in the window", "ms of the broker"), &costs);
    growing("memory_by_ends", ("ends in the window", "MiB"), &memory);
    Ok(vec![("end_by_ends_exponent", exponent), ("end_by_ends_ratio", ratio(&costs))])
}

/// One end with everything that it puts off: milliseconds of the broker.
async fn one(broker: &Broker, size: usize) -> Result<f64, Fault> {
    let tasks = broker.tasks().await?;
    let rounds = if is_quick() { 1 } else { ROUNDS };
    let guests = Guest::begin(&tasks, (&format!("guest-{size}"), rounds)).await?;
    let mut costs = Vec::new();
    for guest in &guests {
        guest.certificate().await?;
    }
    broker.quiet().await?;
    for guest in &guests {
        let before = broker.cpu_s()?;
        sleep(TAIL).await;
        let idle = broker.cpu_s()? - before;
        let before = broker.cpu_s()?;
        guest.end(&tasks).await?;
        sleep(TAIL).await;
        costs.push((broker.cpu_s()? - before - idle) * 1e3);
    }
    Ok(quantile(&costs, 0.5))
}

async fn end_many(broker: &Broker, processes: usize) -> Result<(), Fault> {
    let socket = broker.socket();
    let mut left = processes;
    while left > 0 {
        let mut holders = Vec::new();
        for _ in 0..left.min(AT_ONCE) {
            let mut holder = Command::new(std::env::current_exe()?)
                .arg(WORD)
                .arg(&socket)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            let stdout = holder.stdout.take().ok_or("no output")?;
            holders.push((holder, BufReader::new(stdout).lines()));
        }
        left -= holders.len();
        for (mut holder, mut lines) in holders {
            let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await??;
            if line.as_deref() != Some("held") {
                return Err("a process could not hold its tasks".into());
            }
            drop(holder.stdin.take());
            holder.wait().await?;
        }
    }
    Ok(())
}

/// What the child does: `hold SOCKET`, until its input ends.
pub(crate) fn be() -> Result<(), Fault> {
    let socket = std::env::args().nth(2).ok_or("hold SOCKET")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // The client connects within it.
    let _within = runtime.enter();
    let client = WorkloadClient::new(&Endpoint::parse(&format!("unix://{socket}"))?);
    let held = runtime.block_on(client.fetch_x509())?.svids.len();
    if held < EACH {
        return Err(format!("{held} certificates").into());
    }
    say("held");
    std::io::stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(())
}
