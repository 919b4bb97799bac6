//! What following costs: the size and the price of everything that is revoked, and how long it takes
//! until ten thousand streams have heard of one end while credentials are being issued.
//!
//! `cargo bench -p mayfly --bench feed` measures; add `--profile dev` and `-- --quick` for a smoke run.
//! Broker, streams and whoever ends tasks are processes of their own. The streams count and do not
//! verify: each of them would be another machine's work. The last line is one JSON object.

mod measure;

#[path = "feed/crowd.rs"]
mod crowd;
#[path = "feed/whole.rs"]
mod whole;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crowd::Crowd;
use mayfly::{admin, clock, stage::start_broker};
use mayfly_proto::mayfly::v1::{
    self as wire, begin_task_request::Holder, order_task_request::Order,
};
use mayfly_verify::{Endpoint, WorkloadClient};
use measure::{Fault, Floor, Foreign, count, ms, program, quantile, report, say};
use tokio::task::JoinSet;

/// The pause between two ends, so that each is a message of its own.
const BETWEEN: Duration = Duration::from_millis(700);
/// Clients that fetch tokens without a pause.
const ISSUING: usize = 8;

fn configuration() -> String {
    let uid = rustix::process::geteuid().as_raw();
    format!(
        r#"trust_domain = "example.org"

[[profile]]
name = "crowd"
path = "/bench/crowd"
selectors = ["unix:uid:{uid}"]
owner = "bench"
binding = "lease"
"#
    )
}

fn main() -> Result<(), Fault> {
    if std::env::args().nth(1).is_some_and(|word| word == crowd::WORD) {
        return crowd::be();
    }
    measure::headline("feed");
    let streams = count("MAYFLY_BENCH_STREAMS", (200, 10_000))?;
    let ends = count("MAYFLY_BENCH_ENDS", (5, 40))?;
    let foreign = Foreign::new();
    let mut figures = Vec::new();
    whole::measure(&mut figures)?;
    let dir = tempfile::tempdir()?;
    let mut floor = Floor::new(dir.path())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(told(dir.path(), &mut floor, (streams, ends), &mut figures))?;
    floor.tell();
    foreign.tell();
    report(&figures);
    Ok(())
}

async fn told(
    dir: &Path,
    floor: &mut Floor,
    (streams, ends): (usize, usize),
    figures: &mut Vec<(String, f64)>,
) -> Result<(), Fault> {
    let config = dir.join("mayfly.toml");
    std::fs::write(&config, configuration())?;
    let data = dir.join("data");
    let mut broker = start_broker(&program(), &data, &config).await?;
    let pid = broker.id().ok_or("the broker has ended by itself")?;
    let before = resident_kib(pid)?;
    let mut crowd = Crowd::gather(&data.join("workload.sock"), streams).await?;
    let each = (resident_kib(pid)? - before) / whole::float(streams);

    let issued = Arc::new(AtomicU64::new(0));
    let mut issuing = JoinSet::new();
    for _ in 0..ISSUING {
        let (socket, _task) = begin(&data).await?;
        issuing.spawn(issue(socket, Arc::clone(&issued)));
    }
    let began = tokio::time::Instant::now();
    let (mut last, mut median) = (Vec::new(), Vec::new());
    for _ in 0..ends {
        let (socket, task) = begin(&data).await?;
        // A task without a credential has nothing to revoke.
        WorkloadClient::new(&Endpoint::parse(&format!("unix://{socket}"))?)
            .fetch_jwt(&["bench"], None)
            .await?;
        floor.sample()?;
        tokio::time::sleep(BETWEEN).await;
        let asked = clock::monotonic_ns();
        end(&data, task).await?;
        let heard = crowd.heard().await?;
        last.push(ms(heard.last.saturating_sub(asked)));
        median.push(ms(heard.median.saturating_sub(asked)));
    }
    let rate = whole::float(usize::try_from(issued.load(Ordering::Relaxed))?)
        / began.elapsed().as_secs_f64();
    issuing.shutdown().await;
    crowd.disperse().await?;
    broker.kill().await?;

    let [p50, max] = [0.5, 1.0].map(|q| quantile(&last, q));
    say(&format!("{streams} streams, {ends} ends, {rate:.0} tokens a second issued meanwhile:"));
    say(&format!(
        "  asked for the end, half of the streams told    p50 {:>8.2} ms",
        quantile(&median, 0.5)
    ));
    say(&format!(
        "  asked for the end, the last stream told        p50 {p50:>8.2} ms   max {max:>8.2} ms"
    ));
    say(&format!("  the broker's resident memory for each stream       {each:>8.2} KiB"));
    figures.push(("streams".to_owned(), whole::float(streams)));
    figures.push(("last_stream_told_ms_p50".to_owned(), p50));
    figures.push(("last_stream_told_ms_max".to_owned(), max));
    figures.push(("resident_kib_per_stream".to_owned(), each));
    figures.push(("tokens_per_second_meanwhile".to_owned(), rate));
    Ok(())
}

async fn begin(data: &Path) -> Result<(String, String), Fault> {
    let begin = wire::BeginTaskRequest {
        profile: "crowd".to_owned(),
        holder: Some(Holder::LeaseOnly(true)),
        lease_ms: 3_600_000,
        ..wire::BeginTaskRequest::default()
    };
    let begun = admin::connect(data).await?.begin_task(begin).await?.into_inner();
    Ok((begun.socket, begun.task))
}

async fn end(data: &Path, task: String) -> Result<(), Fault> {
    let order = Some(Order::End("completed".to_owned()));
    admin::connect(data)
        .await?
        .order_task(wire::OrderTaskRequest { task, order, reason: String::new() })
        .await?;
    Ok(())
}

async fn issue(socket: String, issued: Arc<AtomicU64>) {
    let Ok(endpoint) = Endpoint::parse(&format!("unix://{socket}")) else { return };
    let client = WorkloadClient::new(&endpoint);
    while client.fetch_jwt(&["bench"], None).await.is_ok() {
        issued.fetch_add(1, Ordering::Relaxed);
    }
}

fn resident_kib(pid: u32) -> Result<f64, Fault> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmRSS")?;
    Ok(number.parse()?)
}
