//! What the end of a task with ten thousand credentials costs, beside that of a task with one.

use std::{path::Path, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mayfly::clock;

use crate::{
    CONFIGURATION,
    broker::{Broker, float},
    crowd::Guest,
    measure::{Fault, count, is_quick, ms, quantile, say},
};

/// Calls in flight.
const IN_FLIGHT: usize = 64;
/// An end stays open for this long after it was asked for: its record, its delta, its revocation list.
const TAIL: Duration = Duration::from_millis(1200);

/// Many credentials to one: of processor time, and of what the caller waits.
pub(crate) struct Ratio {
    pub(crate) cpu: f64,
    pub(crate) wait: f64,
}

/// Measures both, in turn.
pub(crate) async fn credentials(dir: &Path) -> Result<Ratio, Fault> {
    let many = if is_quick() { 200 } else { 10_000 };
    let rounds = count("MAYFLY_BENCH_ROUNDS", (2, 7))?;
    let broker = Broker::open(dir, CONFIGURATION).await?;
    let (mut few_cost, mut many_cost) = (Vec::new(), Vec::new());
    let mut points = Vec::new();
    for round in 0..rounds {
        for (held, costs) in [(1, &mut few_cost), (many, &mut many_cost)] {
            costs.push(one(&broker, &format!("{round}-{held}"), held).await?);
        }
    }
    let median = |costs: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| {
        quantile(&costs.iter().map(of).collect::<Vec<_>>(), 0.5)
    };
    let all = [(1, &few_cost), (many, &many_cost)];
    say("the end of a task, with everything that it puts off:");
    for (held, costs) in all {
        let (cpu, wait) = (median(costs, |cost| cost.0), median(costs, |cost| cost.1));
        say(&format!(
            "  {held:>7} credentials   broker {cpu:>7.3} ms   the caller waits {wait:>7.3} ms"
        ));
        points.push((float(held), cpu));
    }
    crate::growing::growing("end_by_credentials", ("credentials", "ms of the broker"), &points);
    broker.close().await?;
    let ratio = |of: fn(&(f64, f64)) -> f64| median(&many_cost, of) / median(&few_cost, of);
    Ok(Ratio { cpu: ratio(|cost| cost.0), wait: ratio(|cost| cost.1) })
}

/// A task with so many tokens, ended: processor time and wait, milliseconds.
async fn one(broker: &Broker, key: &str, held: usize) -> Result<(f64, f64), Fault> {
    let tasks = broker.tasks().await?;
    let guests = Guest::begin(&tasks, (key, 1)).await?;
    let guest = guests.first().ok_or("no guest")?;
    let fetches = (0..held).map(|_| guest.token());
    stream::iter(fetches).buffer_unordered(IN_FLIGHT).try_collect::<()>().await?;
    broker.quiet().await?;
    // What the broker does by the clock is not the end's.
    let before = broker.cpu_s()?;
    tokio::time::sleep(TAIL).await;
    let idle = broker.cpu_s()? - before;
    let (before, asked) = (broker.cpu_s()?, clock::monotonic_ns());
    guest.end(&tasks).await?;
    let wait = ms(clock::monotonic_ns() - asked);
    tokio::time::sleep(TAIL.saturating_sub(Duration::from_secs_f64(wait / 1e3))).await;
    Ok(((broker.cpu_s()? - before - idle) * 1e3, wait))
}
