//! What the broker holds, second by second, and whether it grows.

use std::{sync::Arc, time::Duration};

use mayfly_core::limits;
use tokio::{
    sync::Mutex,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    broker::{Broker, float},
    measure::{Fault, quantile, say},
    series::series,
};

/// Samples: the second, and what there was.
type Line = [(f64, f64)];

/// What was seen, second by second.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    memory: Vec<(f64, f64)>,
    files: Vec<(f64, f64)>,
}

/// Looks once a second until `whole` has passed.
pub(crate) async fn watch(broker: Arc<Mutex<Broker>>, whole: Duration) -> Result<Samples, Fault> {
    let began = Instant::now();
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut samples = Samples::default();
    while began.elapsed() < whole {
        seconds.tick().await;
        let broker = broker.lock().await;
        let at = began.elapsed().as_secs_f64();
        samples.memory.push((at, broker.resident()? / 1_048_576.0));
        samples.files.push((at, float(broker.descriptors()?)));
    }
    Ok(samples)
}

impl Samples {
    /// Prints the lines; by how much they grow, in MiB and files an hour.
    pub(crate) fn tell(&self) -> (f64, f64) {
        let tell = |what, points: &Line| {
            let period = period(points);
            let (before, last) = two_last(period, points);
            let [was, is] = [before, last].map(mean);
            let growth = (is - was) / period * 3600.0;
            let values: Vec<_> = last.iter().map(|(_, value)| *value).collect();
            let [least, most] = [0.0, 1.0].map(|q| quantile(&values, q));
            say(&format!(
                "{what} in the last {:.1} minutes: {least:.1} to {most:.1}, mean {is:.1} after {was:.1} in \
                 those before: {growth:+.2} an hour",
                period / 60.0
            ));
            growth
        };
        let grown = (tell("MiB resident", &self.memory), tell("open files", &self.files));
        series("course", "soak_memory", ("seconds", "MiB"), &self.memory);
        series("course", "soak_files", ("seconds", "open files"), &self.files);
        grown
    }
}

/// What ended within a window of expiry is forgotten with the whole of it, so that memory goes up and down once a
/// window: only means of whole windows say whether it grows. A short soak has a quarter of itself instead.
fn period(points: &Line) -> f64 {
    Duration::from_millis(limits::WINDOW.as_millis()).as_secs_f64().min(end(points) / 4.0)
}

fn end(points: &Line) -> f64 {
    points.last().map_or(0.0, |(at, _)| *at)
}

/// The last period but one, and the last. Both restarts are behind them, and in a soak of 45 minutes so is the time
/// until as many ended tasks are remembered as there will be.
fn two_last(period: f64, points: &Line) -> (&Line, &Line) {
    let since = |back: f64| points.partition_point(|(at, _)| *at < end(points) - back);
    let (before, last) = points.split_at(since(period));
    (before.get(since(2.0 * period)..).unwrap_or_default(), last)
}

fn mean(points: &Line) -> f64 {
    points.iter().map(|(_, value)| value).sum::<f64>() / points.iter().map(|_| 1.0).sum::<f64>()
}
