//! The same among few tasks and among many, by turns. From one minute to the next a machine changes by more
//! than what is looked for, so what was found among few ten minutes ago is no measure for many.

use crate::{
    broker::Broker,
    measure::{Fault, is_quick, quantile, say},
    step,
};

/// Many to few.
pub(crate) struct Pair {
    /// Begins and ends a second.
    pub(crate) throughput: f64,
    /// Processor time of the broker: a begin and an end, a token, an end and what it puts off.
    pub(crate) life: f64,
    pub(crate) fetch: f64,
    pub(crate) end: f64,
}

/// What one broker did in one round.
struct Round {
    rate: f64,
    life_ms: f64,
    fetch_ms: f64,
    end_ms: f64,
}

/// Measures both by turns. What is told is the median of the rounds' ratios.
pub(crate) async fn measure(few: &Broker, many: &Broker) -> Result<Pair, Fault> {
    let rounds = if is_quick() { 1 } else { 31 };
    let mut pairs = Vec::new();
    for round in 0..rounds {
        let key = format!("pair-{round}");
        // The first to have its turn is not always the same: whatever the machine does at its own pace meets both.
        pairs.push(if round % 2 == 0 {
            (one(few, &key).await?, one(many, &key).await?)
        } else {
            let many = one(many, &key).await?;
            (one(few, &key).await?, many)
        });
    }
    let ratio = |of: fn(&Round) -> f64| {
        let ratios: Vec<_> = pairs.iter().map(|(few, many)| of(many) / of(few)).collect();
        [0.1, 0.5, 0.9].map(|q| quantile(&ratios, q))
    };
    say("many to few, by turns (median; tenth and ninetieth percentile of the rounds):");
    let told = |what: &str, of: fn(&Round) -> f64| {
        let [p10, p50, p90] = ratio(of);
        say(&format!("  {what:<62} {p50:>6.2}  ({p10:.2} to {p90:.2})"));
        p50
    };
    Ok(Pair {
        throughput: told("begun and ended among them, a second", |round| round.rate),
        life: told("broker's processor time for one of these", |round| round.life_ms),
        fetch: told("… for a token", |round| round.fetch_ms),
        end: told("… for one end and what it puts off", |round| round.end_ms),
    })
}

async fn one(broker: &Broker, key: &str) -> Result<Round, Fault> {
    let tasks = broker.tasks().await?;
    // No more: those that are over are remembered for two minutes, and few tasks are to stay few.
    let (lives, ends) =
        if is_quick() { (step::LIVES, 20) } else { (10 * step::LIVES, step::ENDS_MANY) };
    let (rate, life_ms) = step::live(broker, &tasks, (key, lives)).await?;
    let fetch_ms = step::fetch(broker, &tasks, key).await?;
    let end_ms = step::ends(broker, &tasks, (key, ends)).await?;
    Ok(Round { rate, life_ms, fetch_ms, end_ms })
}
