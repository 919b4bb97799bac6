//! Ten thousand open Workload API streams, and one rotation of everything under them.
//!
//! `cargo bench -p mayfly --bench streams` measures; add `--profile dev` and `-- --quick` for a smoke run.
//! The streams are a process of their own; each is open until the bench ends and waits for its next
//! certificate. `MAYFLY_BENCH_STREAMS` sets the last number of streams. The last line is one JSON object.

#[expect(dead_code, reason = "each bench looks at another side of it")]
mod broker;
mod growing;
#[expect(dead_code, reason = "the disk is not asked by itself here")]
mod measure;
mod series;

#[path = "streams/crowd.rs"]
mod crowd;
#[expect(dead_code, reason = "not every bench asks these for everything")]
#[path = "scale/crowd.rs"]
mod guests;

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use broker::{Broker, float};
use crowd::Crowd;
use growing::growing;
use guests::Guest;
use mayfly::clock;
use mayfly_proto::mayfly::v1::ChangeAuthorityRequest;
use measure::{Fault, Foreign, count, ms, quantile, report, say};
use tokio::task::JoinSet;

/// Tasks whose streams these are: each has a socket and a certificate of its own.
const TASKS_MAX: usize = 1_000;
/// Callers that fetch tokens one after another all the time.
const CALLERS: usize = 4;

const CONFIGURATION: &str = r#"trust_domain = "example.org"

[[profile]]
name = "guest"
path = "/bench/guest"
selectors = []
owner = "bench"
binding = "socket"
"#;

/// What was found at one number of streams.
struct Round {
    streams: usize,
    /// From the order to activate the new authority to the last stream's next certificate.
    last_s: f64,
    /// The longest that a caller waited for a token, from the first order on until then.
    fetch_max_s: f64,
    fetch_p50_s: f64,
    fetches: usize,
    /// Of the broker, for each stream.
    kib: f64,
    cpu_ms: f64,
}

fn main() -> Result<(), Fault> {
    if std::env::args().nth(1).is_some_and(|word| word == crowd::WORD) {
        return crowd::be();
    }
    measure::headline("streams");
    broker::raise_file_limit();
    let most = count("MAYFLY_BENCH_STREAMS", (100, 10_000))?;
    let foreign = Foreign::new();
    let dir = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let rounds = runtime.block_on(async {
        let sizes = std::iter::successors(Some(1), |size| Some(size * 10));
        let mut rounds = Vec::new();
        for size in sizes.take_while(|size| *size <= most) {
            rounds.push(round(&dir.path().join(size.to_string()), size).await?);
        }
        Ok::<_, Fault>(rounds)
    })?;
    foreign.tell();
    tell(&rounds)
}

fn tell(rounds: &[Round]) -> Result<(), Fault> {
    for round in rounds {
        say(&format!(
            "{:>6} streams: the last has its certificate after {:.3} s; a caller waits {:.4} s, at most {:.3} s \
             ({} calls); {:.1} KiB and {:.2} ms of the broker for each stream",
            round.streams,
            round.last_s,
            round.fetch_p50_s,
            round.fetch_max_s,
            round.fetches,
            round.kib,
            round.cpu_ms
        ));
    }
    let series = |name: &str, unit: &str, of: fn(&Round) -> f64| {
        let points: Vec<_> = rounds.iter().map(|round| (float(round.streams), of(round))).collect();
        growing(name, ("streams", unit), &points);
    };
    series("rotation_last_stream_by_streams", "s", |round| round.last_s);
    series("rotation_fetch_max_by_streams", "s", |round| round.fetch_max_s);
    series("rotation_cost_by_streams", "ms of the broker a stream", |round| round.cpu_ms);
    series("memory_by_streams", "KiB a stream", |round| round.kib);
    let most = rounds.last().ok_or("no number of streams to measure at")?;
    let figures = [
        ("streams", float(most.streams)),
        ("rotation_fetch_max_s", most.fetch_max_s),
        ("rotation_last_stream_s", most.last_s),
        ("stream_kib", most.kib),
        ("rotation_stream_cpu_ms", most.cpu_ms),
    ];
    report(&figures.map(|(key, value)| (key.to_owned(), value)));
    Ok(())
}

async fn round(dir: &Path, streams: usize) -> Result<Round, Fault> {
    let broker = Broker::open(dir, CONFIGURATION).await?;
    let tasks = broker.tasks().await?;
    let owners = Guest::begin(&tasks, ("owner", streams.min(TASKS_MAX))).await?;
    let callers = Guest::begin(&tasks, ("caller", CALLERS)).await?;
    broker.quiet().await?;
    let before = broker.resident()?;
    let sockets: Vec<_> = owners.into_iter().map(|guest| guest.socket).collect();
    let mut crowd = Crowd::gather(&sockets, streams).await?;
    broker.quiet().await?;
    let kib = (broker.resident()? - before) / 1024.0 / float(streams);

    let (waits, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
    let mut asking = JoinSet::new();
    for guest in callers {
        asking.spawn(ask(guest, Arc::clone(&waits), Arc::clone(&over)));
    }
    // Published first, so that nobody meets a certificate of an authority that he has not heard of.
    change(&broker, "prepare").await?;
    let (began, cpu) = (clock::monotonic_ns(), broker.cpu_s()?);
    change(&broker, "activate").await?;
    change(&broker, "taint").await?;
    let last = crowd.renewed().await?;
    let cpu_ms = (broker.cpu_s()? - cpu) * 1e3 / float(streams);
    over.store(true, Ordering::Relaxed);
    while let Some(asked) = asking.join_next().await {
        asked??;
    }
    crowd.disperse().await?;
    broker.close().await?;
    let waits = waits.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Round {
        streams,
        last_s: ms(last.saturating_sub(began)) / 1e3,
        fetch_max_s: quantile(&waits, 1.0) / 1e3,
        fetch_p50_s: quantile(&waits, 0.5) / 1e3,
        fetches: waits.len(),
        kib,
        cpu_ms,
    })
}

/// Orders something of the X.509 authorities: a successor, its use, and the end of what signed before.
async fn change(broker: &Broker, order: &str) -> Result<(), Fault> {
    let mut operator = broker.operator().await?;
    let id = match order {
        "taint" => {
            let status = operator.get_status(mayfly_proto::mayfly::v1::GetStatusRequest {}).await?;
            let old = status.into_inner().authorities.into_iter();
            old.filter(|one| one.kind == "x509").find(|one| one.state == "old").map(|one| one.id)
        }
        _ => Some(String::new()),
    };
    let request = ChangeAuthorityRequest {
        kind: "x509".to_owned(),
        order: order.to_owned(),
        id: id.ok_or("no authority is old")?,
        reason: "bench".to_owned(),
    };
    operator.change_authority(request).await?;
    Ok(())
}

/// Fetches one token after another until it is over, and writes down what each took.
async fn ask(
    guest: Guest,
    waits: Arc<Mutex<Vec<f64>>>,
    over: Arc<AtomicBool>,
) -> Result<(), Fault> {
    while !over.load(Ordering::Relaxed) {
        let asked = clock::monotonic_ns();
        guest.token().await?;
        let took = ms(clock::monotonic_ns() - asked);
        waits.lock().unwrap_or_else(PoisonError::into_inner).push(took);
    }
    Ok(())
}
