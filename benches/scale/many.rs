//! What the end of a task with ten thousand credentials costs, beside that of a task with one.

use std::{path::Path, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::{
    CONFIGURATION,
    broker::{Broker, float},
    crowd::Guest,
    measure::{Fault, count, is_quick, quantile, say},
    step,
};

/// Calls in flight.
const IN_FLIGHT: usize = 64;
/// Until the index has on disk what was fetched: it writes every five seconds.
const SETTLE: Duration = Duration::from_secs(11);
/// Tasks that end in one measurement.
const ENDS: usize = 16;

/// Many credentials to one: of processor time, and of what the caller waits.
pub(crate) struct Ratio {
    pub(crate) cpu: f64,
    pub(crate) wait: f64,
}

/// Measures both, in turn.
pub(crate) async fn credentials(dir: &Path) -> Result<Ratio, Fault> {
    let many = if is_quick() { 200 } else { 10_000 };
    let rounds = count("MAYFLY_BENCH_ROUNDS", (1, 5))?;
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

/// Tasks with so many tokens each, ended: processor time and wait for each, milliseconds.
async fn one(broker: &Broker, key: &str, held: usize) -> Result<(f64, f64), Fault> {
    let tasks = broker.tasks().await?;
    let guests = Guest::begin(&tasks, (key, ENDS)).await?;
    for guest in &guests {
        let fetches = (0..held).map(|_| guest.token());
        stream::iter(fetches).buffer_unordered(IN_FLIGHT).try_collect::<()>().await?;
    }
    if !is_quick() {
        tokio::time::sleep(SETTLE).await;
    }
    step::end_all(broker, &tasks, &guests).await
}
