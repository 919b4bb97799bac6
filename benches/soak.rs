//! Three quarters of an hour of everything at once: nothing leaks, nothing that ended comes back, nothing grows.
//!
//! `cargo bench -p mayfly --bench soak -- --minutes 45` soaks; `--quick` is the same in two minutes. Workloads
//! are processes that are killed with -9, sockets and leases; credentials are renewed, tasks amended, and
//! the broker is started anew twice, once after a kill -9. A follower has to refuse every credential of what
//! has ended and to accept those that stand. **Fails if anything was accepted that should not have been, or an
//! end was lost.** The last line is one JSON object.

#[expect(dead_code, reason = "each bench looks at another side of it")]
mod broker;
#[expect(dead_code, reason = "the disk is not asked by itself here")]
mod measure;
mod series;

#[path = "soak/life.rs"]
mod life;
#[path = "soak/sample.rs"]
mod sample;
#[path = "soak/shared.rs"]
mod shared;
#[path = "soak/worker.rs"]
mod worker;

use std::{path::Path, sync::Arc, time::Duration};

use broker::{Broker, float};
use mayfly_proto::mayfly::v1::{GetStatusRequest, InventoryRequest};
use mayfly_verify::{Endpoint, Follower, Patience};
use measure::{Fault, Foreign, count, quantile, report, say};
use nix::sys::signal::Signal;
use sample::Samples;
use shared::{Shared, What};
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

/// How often a life begins. Which kind it is goes round: see `life`.
const EVERY: Duration = Duration::from_millis(100);
/// Lives at once. Each is a descriptor or two.
const LIVES_MAX: usize = 400;
/// How long a feed may be silent: as long as a start takes.
const SILENCE: Duration = Duration::from_secs(60);
/// How long the last lives may take.
const LAST_LIVES_MAX: Duration = Duration::from_secs(90);

fn configuration() -> String {
    let uid = rustix::process::geteuid().as_raw();
    let profile = |name: &str, binding: &str, selectors: &str| {
        format!(
            "\n[[profile]]\nname = \"{name}\"\npath = \"/soak/{name}\"\nowner = \"bench\"\n\
             selectors = [{selectors}]\nbinding = \"{binding}\"\nx509_ttl = \"8s\"\njwt_ttl = \"30s\"\n"
        )
    };
    let user = format!("\"unix:uid:{uid}\"");
    [
        "trust_domain = \"example.org\"\n".to_owned(),
        profile("process", "process", &user),
        profile("guest", "socket", ""),
        profile("lease", "lease", ""),
    ]
    .concat()
}

fn minutes() -> Result<u64, Fault> {
    let told = std::env::args().skip_while(|word| word != "--minutes").nth(1);
    match told {
        Some(text) => Ok(text.parse()?),
        None => Ok(u64::try_from(count("MAYFLY_BENCH_MINUTES", (2, 45))?)?),
    }
}

fn main() -> Result<(), Fault> {
    if std::env::args().nth(1).is_some_and(|word| word == worker::WORD) {
        return worker::be();
    }
    measure::headline("soak");
    broker::raise_file_limit();
    let minutes = minutes()?;
    let foreign = Foreign::new();
    let dir = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (figures, wrong) = runtime.block_on(soak(&dir.path().join("data"), minutes))?;
    foreign.tell();
    report(&figures);
    match wrong {
        Some(wrong) => Err(wrong.into()),
        None => Ok(()),
    }
}

type Told = (Vec<(String, f64)>, Option<String>);

async fn soak(dir: &Path, minutes: u64) -> Result<Told, Fault> {
    let broker = Broker::open(dir, &configuration()).await?;
    let endpoint = Endpoint::parse(&format!("unix://{}", broker.socket().display()))?;
    let follower = Follower::connect(&endpoint, Patience::Closed { after: SILENCE });
    follower.ready().await;
    let shared = Arc::new(Shared::new(&broker, Arc::clone(follower.view())).await?);
    let broker = Arc::new(Mutex::new(broker));
    let whole = Duration::from_secs(minutes * 60);
    let mut watching = JoinSet::new();
    watching.spawn(sample::watch(Arc::clone(&broker), whole));
    let mut starting = JoinSet::new();
    starting.spawn(start_anew(Arc::clone(&broker), whole));
    live(&shared, whole).await?;
    while let Some(started) = starting.join_next().await {
        let (killed, stopped) = started??;
        say(&format!("killed, it served again after {killed:.2} s; stopped, after {stopped:.2} s"));
    }
    let mut samples = Samples::default();
    while let Some(seen) = watching.join_next().await {
        samples = seen??;
    }
    let left = left(&*broker.lock().await).await?;
    let broker = Arc::into_inner(broker).ok_or("somebody still looks at the broker")?.into_inner();
    broker.close().await?;
    Ok(tell(&shared, &samples, left))
}

/// Begins lives until it is time to stop, and waits for the last of them.
async fn live(shared: &Arc<Shared>, whole: Duration) -> Result<(), Fault> {
    let until = Instant::now() + whole;
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lives = JoinSet::new();
    let mut number = 0;
    while Instant::now() < until {
        ticks.tick().await;
        while lives.try_join_next().is_some() {}
        if lives.len() < LIVES_MAX {
            lives.spawn(life::live(Arc::clone(shared), number));
            number += 1;
        }
    }
    let last = async { while lives.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_LIVES_MAX, last).await.is_err() {
        shared.count(What::Stuck, "lives that do not end");
    }
    Ok(())
}

/// Starts the broker anew, once after a kill and once after it was asked to stop. Early, so that what
/// grows afterwards is seen to grow.
async fn start_anew(broker: Arc<Mutex<Broker>>, whole: Duration) -> Result<(f64, f64), Fault> {
    let began = Instant::now();
    sleep_until(began + whole / 12).await;
    let killed = broker.lock().await.restart(Signal::SIGKILL).await?;
    sleep_until(began + whole / 6).await;
    let stopped = broker.lock().await.restart(Signal::SIGTERM).await?;
    Ok((killed, stopped))
}

/// Tasks that live and credentials that stand, when everything has ended.
async fn left(broker: &Broker) -> Result<(u64, usize), Fault> {
    let mut operator = broker.operator().await?;
    let live = operator.get_status(GetStatusRequest {}).await?.into_inner().tasks_live;
    let standing = operator.inventory(InventoryRequest::default()).await?.into_inner();
    Ok((live, standing.holdings.len()))
}

fn tell(shared: &Shared, samples: &Samples, (live, standing): (u64, usize)) -> Told {
    let grown = samples.tell();
    let counts = shared.counts();
    say("what came of it:");
    for (what, count) in &counts {
        say(&format!("  {:<48} {count:>8}", what.name()));
    }
    say(&format!("  {:<48} {live:>8}", "tasks that live on"));
    say(&format!("  {:<48} {standing:>8}", "credentials in the inventory"));
    shared.tell_failures();
    let count = |what| float(counts.get(&what).copied().unwrap_or(0));
    // A task that lives on was ended by somebody, and that is not known any more.
    let lost = count(What::Lost) + f64::from(u32::try_from(live).unwrap_or(u32::MAX));
    let leaked = count(What::Leaked) + float(standing);
    let mut figures = vec![
        ("soak_tasks".to_owned(), count(What::Begun)),
        ("soak_credentials".to_owned(), count(What::Credential)),
        ("soak_leaked".to_owned(), leaked),
        ("soak_lost_ends".to_owned(), lost),
        ("soak_refused_alive".to_owned(), count(What::RefusedAlive)),
        ("soak_failed".to_owned(), count(What::Failed)),
        ("soak_memory_growth_mib_per_h".to_owned(), grown.0),
        ("soak_fd_growth_per_h".to_owned(), grown.1),
    ];
    for (key, waits) in shared.waits() {
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|q| quantile(&waits, q));
        say(&format!("  {key:<32} p50 {p50:>8.2} ms   p99 {p99:>8.2} ms   p999 {p999:>8.2} ms"));
        for (q, value) in [("p50", p50), ("p99", p99), ("p999", p999)] {
            figures.push((format!("soak_{key}_ms_{q}"), value));
        }
    }
    let bad = leaked + lost + count(What::RefusedAlive) + count(What::Stuck);
    let wrong = format!("{leaked} leaked, {lost} ends lost, see above");
    (figures, (bad > 0.0 || count(What::Begun) < 1.0).then_some(wrong))
}
