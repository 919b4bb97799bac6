//! What is measured at one number of live tasks.

use std::{ops::Range, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mayfly::clock;
use mayfly_proto::mayfly::v1::{
    self as wire, GetRequest, holder_wish::Holder, outcome::Outcome as Said,
    tasks_client::TasksClient, wish::Wish as Of,
};
use nix::sys::signal::Signal;
use tonic::transport::Channel;

use crate::{
    broker::{self, Broker, batch, float, seconds},
    crowd::Guest,
    growing::growing,
    measure::{Fault, is_quick, quantile, say},
};

/// Wishes in one call, and calls in flight, of whoever fills the broker.
const BATCH: usize = 1_000;
const BATCHES: usize = 4;
/// Tasks that live and end among those that stay, in each round.
pub(crate) const LIVES: usize = 1_000;
const LOT: usize = 50;
/// Tasks through whose sockets tokens are asked for.
const GUESTS: usize = 32;
const TOKENS_EACH: usize = 32;
/// Ends in one measurement: few where memory is measured next, because what has ended is remembered for two minutes.
const ENDS: usize = 50;
pub(crate) const ENDS_MANY: usize = 400;
/// How long what they put off may take: a record, a delta, a revocation list.
const TAIL: Duration = Duration::from_millis(1_200);

/// What was found.
pub(crate) struct Step {
    pub(crate) tasks: usize,
    /// Begins and ends a second, together with their answers.
    pub(crate) per_second: f64,
    /// Processor time of the broker, milliseconds: a begin and an end, a token, an end alone.
    pub(crate) life_ms: f64,
    pub(crate) fetch_ms: f64,
    pub(crate) end_ms: f64,
    /// Memory for each task, when they had begun and after a start.
    pub(crate) bytes: f64,
    pub(crate) bytes_after: f64,
    /// From the start of the program to its first answer about a task of the run before.
    pub(crate) killed_s: f64,
    pub(crate) stopped_s: f64,
}

impl Step {
    pub(crate) async fn measure(
        broker: &mut Broker,
        (alive, empty): (usize, f64),
    ) -> Result<Self, Fault> {
        broker.quiet().await?;
        let bytes = (broker.resident()? - empty) / float(alive);
        let tasks = broker.tasks().await?;
        let rounds = if is_quick() { 1 } else { 5 };
        let (mut rates, mut lives, mut fetches) = (Vec::new(), Vec::new(), Vec::new());
        let mut ended = Vec::new();
        let known = begin_jobs(&tasks, &format!("known-{alive}"), 0..1).await?;
        let known = known.into_iter().next().ok_or("no task")?;
        for round in 0..rounds {
            let (rate, life) = live(broker, &tasks, (&format!("{alive}-{round}"), LIVES)).await?;
            rates.push(rate);
            lives.push(life);
            fetches.push(fetch(broker, &tasks, &format!("{alive}-{round}")).await?);
            ended.push(ends(broker, &tasks, (&format!("{alive}-{round}"), ENDS)).await?);
        }
        drop(tasks);
        let killed_s = first_answer(broker, Signal::SIGKILL, &known).await?;
        broker.quiet().await?;
        let bytes_after = (broker.resident()? - empty) / float(alive);
        let stopped_s = first_answer(broker, Signal::SIGTERM, &known).await?;
        let step = Self {
            tasks: alive,
            per_second: quantile(&rates, 0.5),
            life_ms: quantile(&lives, 0.5),
            fetch_ms: quantile(&fetches, 0.5),
            end_ms: quantile(&ended, 0.5),
            bytes,
            bytes_after,
            killed_s,
            stopped_s,
        };
        step.tell(broker)?;
        Ok(step)
    }

    fn tell(&self, broker: &Broker) -> Result<(), Fault> {
        say(&format!("{} tasks alive:", self.tasks));
        let line = |what: &str, value: String| say(&format!("  {what:<62} {value:>14}"));
        line("begun and ended among them, a second", format!("{:.0}", self.per_second));
        line("broker's processor time for one of these", format!("{:.3} ms", self.life_ms));
        line("… for a token", format!("{:.3} ms", self.fetch_ms));
        line("… for one end and what it puts off", format!("{:.3} ms", self.end_ms));
        line("memory for each task", format!("{:.0} B", self.bytes));
        line("… after a start", format!("{:.0} B", self.bytes_after));
        line("killed: start to first answer", format!("{:.2} s", self.killed_s));
        line("stopped: start to first answer", format!("{:.2} s", self.stopped_s));
        line("open files", broker.descriptors()?.to_string());
        Ok(())
    }
}

/// Prints how each cost grows.
pub(crate) fn grow(steps: &[Step]) {
    let series = |name: &str, unit: &str, of: fn(&Step) -> f64| {
        let points: Vec<_> = steps.iter().map(|step| (float(step.tasks), of(step))).collect();
        growing(name, ("tasks", unit), &points);
    };
    series("life_by_tasks", "ms of the broker", |step| step.life_ms);
    series("fetch_by_tasks", "ms of the broker", |step| step.fetch_ms);
    series("end_by_tasks", "ms of the broker", |step| step.end_ms);
    series("memory_by_tasks", "bytes a task", |step| step.bytes);
    series("restart_by_tasks", "s", |step| step.killed_s.max(step.stopped_s));
}

/// Begins jobs numbered by `numbers`, in large calls.
pub(crate) async fn fill(broker: &Broker, numbers: Range<usize>) -> Result<(), Fault> {
    let tasks = broker.tasks().await?;
    let (began, count) = (clock::monotonic_ns(), numbers.len());
    let calls = numbers.clone().step_by(BATCH).map(|from| {
        let (tasks, to) = (tasks.clone(), numbers.end.min(from + BATCH));
        async move { begin_jobs(&tasks, "job", from..to).await.map(drop) }
    });
    stream::iter(calls).buffer_unordered(BATCHES).try_collect::<()>().await?;
    let rate = float(count) / seconds(clock::monotonic_ns() - began);
    say(&format!("{count} more tasks begun, {rate:.0} a second"));
    Ok(())
}

async fn begin_jobs(
    tasks: &TasksClient<Channel>,
    key: &str,
    numbers: Range<usize>,
) -> Result<Vec<String>, Fault> {
    // A job has to say when it is over at the latest.
    let deadline_ms = clock::now().0 + 24 * 3_600_000;
    let wish = |number| {
        let begin = broker::begin("job", Holder::Job(true), format!("{key}-{number}"));
        Of::Begin(wire::BeginRequest { deadline_ms, ..begin })
    };
    let mut begun = Vec::new();
    for said in batch(tasks, numbers.map(wish).collect()).await? {
        let Said::Begun(task) = said else { return Err("a begin is answered otherwise".into()) };
        begun.push(task.task);
    }
    Ok(begun)
}

/// Jobs that begin and end among the others: how many a second, and what each costs.
pub(crate) async fn live(
    broker: &Broker,
    tasks: &TasksClient<Channel>,
    (key, count): (&str, usize),
) -> Result<(f64, f64), Fault> {
    let lots = (0..count / LOT).map(|lot| {
        let (tasks, key) = (tasks.clone(), format!("life-{key}-{lot}"));
        async move {
            let begun = begin_jobs(&tasks, &key, 0..LOT).await?;
            let ends = begun.into_iter().map(|task| Of::End(broker::end(task)));
            batch(&tasks, ends.collect()).await.map(drop)
        }
    });
    let (before, began) = (broker.cpu_s()?, clock::monotonic_ns());
    stream::iter(lots).buffer_unordered(BATCHES).try_collect::<()>().await?;
    let took = seconds(clock::monotonic_ns() - began);
    let cost = (broker.cpu_s()? - before) * 1e3 / float(count);
    Ok((float(count) / took, cost))
}

/// Tokens over connections that are up: milliseconds of the broker for each.
pub(crate) async fn fetch(
    broker: &Broker,
    tasks: &TasksClient<Channel>,
    key: &str,
) -> Result<f64, Fault> {
    let guests = Guest::begin(tasks, (&format!("fetch-{key}"), GUESTS)).await?;
    for guest in &guests {
        guest.token().await?;
    }
    let asking = guests.iter().map(|guest| async move {
        for _ in 0..TOKENS_EACH {
            guest.token().await?;
        }
        Ok::<_, Fault>(())
    });
    let before = broker.cpu_s()?;
    stream::iter(asking).buffer_unordered(GUESTS).try_collect::<()>().await?;
    let cost = (broker.cpu_s()? - before) * 1e3 / float(GUESTS * TOKENS_EACH);
    for guest in &guests {
        guest.end(tasks).await?;
    }
    Ok(cost)
}

/// Ends of tasks with a socket and a certificate: milliseconds of the broker for each.
pub(crate) async fn ends(
    broker: &Broker,
    tasks: &TasksClient<Channel>,
    (key, count): (&str, usize),
) -> Result<f64, Fault> {
    // Their certificates were promised when they began: nobody has to fetch them.
    let guests = Guest::begin(tasks, (&format!("end-{key}"), count)).await?;
    Ok(end_all(broker, tasks, &guests).await?.0)
}

/// Ends tasks one after the other: milliseconds of the broker for each, with everything that they put off,
/// and the mean of what the caller waits. What a broker does by the clock is not the ends'.
pub(crate) async fn end_all(
    broker: &Broker,
    tasks: &TasksClient<Channel>,
    guests: &[Guest],
) -> Result<(f64, f64), Fault> {
    broker.quiet().await?;
    let (before, began) = (broker.cpu_s()?, clock::monotonic_ns());
    for guest in guests {
        guest.end(tasks).await?;
    }
    let wait = seconds(clock::monotonic_ns() - began);
    tokio::time::sleep(TAIL).await;
    let (spent, took) = (broker.cpu_s()? - before, seconds(clock::monotonic_ns() - began));
    broker.quiet().await?;
    let before = broker.cpu_s()?;
    tokio::time::sleep(Duration::from_secs_f64(took)).await;
    let idle = broker.cpu_s()? - before;
    Ok(((spent - idle) * 1e3 / float(guests.len()), wait * 1e3 / float(guests.len())))
}

/// Stops the broker as `signal` does and starts it: seconds until it has told of a task that it knew.
async fn first_answer(broker: &mut Broker, signal: Signal, known: &str) -> Result<f64, Fault> {
    let served = broker.restart(signal).await?;
    let began = clock::monotonic_ns();
    let get = GetRequest { task: known.to_owned(), ..GetRequest::default() };
    broker.tasks().await?.get(get).await?;
    Ok(served + seconds(clock::monotonic_ns() - began))
}
