//! What the broker holds, second by second, and whether it grows.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Mutex,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    broker::{Broker, float},
    measure::{Fault, quantile, say},
    series::series,
};

/// Samples of one line: the second, and what there was.
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
    /// Prints the lines; how steep they are in the last third, in MiB and files an hour.
    pub(crate) fn tell(&self) -> (f64, f64) {
        let (memory, files) = (last_third(&self.memory), last_third(&self.files));
        for (what, points) in [("MiB resident", memory), ("open files", files)] {
            let values: Vec<_> = points.iter().map(|(_, value)| *value).collect();
            let [least, p50, most] = [0.0, 0.5, 1.0].map(|q| quantile(&values, q));
            say(&format!(
                "{what} in the last third: {least:.1} to {most:.1}, median {p50:.1}, {:+.2} an hour",
                slope(points) * 3600.0
            ));
        }
        series("soak_memory", ("seconds", "MiB"), &self.memory);
        series("soak_files", ("seconds", "open files"), &self.files);
        (slope(memory) * 3600.0, slope(files) * 3600.0)
    }
}

/// Both restarts are behind it, and two windows of expiry (ten minutes each, forgotten whole): as many ended
/// tasks are remembered as there will be.
fn last_third(points: &[(f64, f64)]) -> &[(f64, f64)] {
    points.get(points.len() / 3 * 2..).unwrap_or_default()
}

/// The slope of the line of least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.iter().map(|_| 1.0).sum::<f64>();
    let x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
    let y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
    let along = points.iter().map(|(px, py)| (px - x) * (py - y)).sum::<f64>();
    along / points.iter().map(|(px, _)| (px - x).powi(2)).sum::<f64>()
}
