//! One rate, held for some seconds: an orchestrator, many holders, and a verifier.

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use mayfly::clock;
use mayfly_core::Serial;
use mayfly_proto::mayfly::v1::{
    self as wire, holder_wish::Holder, outcome::Outcome as Said, tasks_client::TasksClient,
    wish::Wish as Of,
};
use mayfly_verify::{Endpoint, Follower, Patience, View, WorkloadClient};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, sleep_until, timeout},
};
use tonic::transport::Channel;

use crate::{
    house::House,
    measure::{Fault, ms},
    tally::{Tally, Told, What},
};

/// Wishes are told in lots, because timers count milliseconds.
const LOT_EVERY: Duration = Duration::from_millis(10);
/// What a batch may hold.
const LOT_MAX: usize = 1_000;
/// Tasks that may be alive at once: each is two open files to the broker.
const ALIVE_MAX: usize = 8_000;
/// How long the follower may take to refuse, before that counts as a leak.
const BOUND: Duration = Duration::from_secs(10);
/// Whom the tokens are meant for.
const AUDIENCE: &str = "churn";

/// What everybody in a step shares.
struct Shared {
    tasks: TasksClient<Channel>,
    view: Arc<View>,
    tally: Tally,
    alive: AtomicUsize,
    most_alive: AtomicUsize,
    ends: mpsc::Sender<(String, oneshot::Sender<u64>)>,
}

/// Plays `seconds` at `rate` against a new broker in `dir`.
pub(crate) async fn play(dir: &Path, rate: usize, seconds: usize) -> Result<Told, Fault> {
    let house = House::open(dir).await?;
    let endpoint = Endpoint::parse(&format!("unix://{}", house.socket().display()))?;
    let follower = Follower::connect(&endpoint, Patience::Closed { after: BOUND });
    follower.ready().await;
    let (ends, ending) = mpsc::channel(ALIVE_MAX);
    let shared = Arc::new(Shared {
        tasks: house.tasks.clone(),
        view: Arc::clone(follower.view()),
        tally: Tally::default(),
        alive: AtomicUsize::new(0),
        most_alive: AtomicUsize::new(0),
        ends,
    });
    let (cpu, parts, own) = (house.cpu_s()?, house.parts_s()?, own_s()?);
    let mut ender = JoinSet::new();
    ender.spawn(end_in_lots(house.tasks.clone(), ending));
    let began = clock::monotonic_ns();
    let mut lives = JoinSet::new();
    let last = begin_in_lots(&shared, (rate, seconds), &mut lives).await;
    while let Some(dead) = lives.join_next().await {
        let Ok(Some(serials)) = dead else { continue };
        let leaks = serials.iter().any(|serial| shared.view.admit(serial).is_ok());
        shared.tally.count(if leaks { What::Leaked } else { What::Refused });
    }
    let (cpu_s, own_s) = (house.cpu_s()? - cpu, own_s()? - own);
    let parts_s = house.parts_s()?.into_iter().zip(parts);
    let parts_s = parts_s.map(|((what, after), (_, before))| (what, after - before)).collect();
    let left = house.live().await?;
    if left > 0 {
        return Err(format!("{left} tasks are left alive").into());
    }
    ender.shutdown().await;
    drop(follower);
    house.close().await?;
    let shared = Arc::into_inner(shared).ok_or("somebody still counts")?;
    Ok(Told {
        wanted: rate,
        seconds: ms(last.saturating_sub(began)) / 1e3,
        tally: shared.tally,
        cpu_s,
        parts_s,
        own_s,
        most_alive: shared.most_alive.into_inner(),
    })
}

type Lives = JoinSet<Option<[Serial; 2]>>;

/// Begins tasks when they are due, whether or not the broker is done with those before. Returns when
/// the last was due or acknowledged, whichever was later.
async fn begin_in_lots(
    shared: &Arc<Shared>,
    (rate, seconds): (usize, usize),
    lives: &mut Lives,
) -> u64 {
    let mut lots = tokio::time::interval(LOT_EVERY);
    lots.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (begun, mut acknowledged) = mpsc::channel(ALIVE_MAX);
    let (mut owed, mut told) = (0, 0);
    let mut asking = JoinSet::new();
    while told < rate * seconds {
        let tick = tokio::select! {
            tick = lots.tick() => tick,
            Some(task) = acknowledged.recv() => {
                live_on(shared, task, lives);
                continue;
            }
        };
        // A tick that comes late was due when it was due.
        let late = u64::try_from(tick.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let due = clock::monotonic_ns().saturating_sub(late);
        while asking.try_join_next().is_some() {}
        owed += rate;
        let mut lot = (owed / 100).min(LOT_MAX);
        owed -= lot * 100;
        told += lot;
        let room = ALIVE_MAX.saturating_sub(shared.alive.load(Ordering::Relaxed));
        for _ in room..lot {
            shared.tally.count(What::NotBegun);
        }
        lot = lot.min(room);
        let alive = shared.alive.fetch_add(lot, Ordering::Relaxed) + lot;
        shared.most_alive.fetch_max(alive, Ordering::Relaxed);
        asking.spawn(begin(Arc::clone(shared), due, lot, begun.clone()));
    }
    drop(begun);
    while let Some(task) = acknowledged.recv().await {
        live_on(shared, task, lives);
    }
    clock::monotonic_ns()
}

/// A task that has begun.
struct Begun {
    response: wire::BeginResponse,
    due: u64,
}

async fn begin(shared: Arc<Shared>, due: u64, lot: usize, begun: mpsc::Sender<Begun>) {
    if lot == 0 {
        return;
    }
    let wish = |of: usize| wire::Wish {
        wish: Some(Of::Begin(wire::BeginRequest {
            profile: "churn".to_owned(),
            holder: Some(wire::HolderWish { holder: Some(Holder::Socket(true)) }),
            declaration: Some(wire::Declaration {
                intent: "one short piece of work".to_owned(),
                ..wire::Declaration::default()
            }),
            idempotency_key: format!("{due}-{of}"),
            ..wire::BeginRequest::default()
        })),
    };
    let request = wire::BatchRequest { wishes: (0..lot).map(wish).collect() };
    let mut left = lot;
    match shared.tasks.clone().batch(request).await {
        Ok(answer) => {
            shared.tally.wait("batch of begins", ms(clock::monotonic_ns() - due));
            for outcome in answer.into_inner().outcomes {
                match outcome.outcome {
                    Some(Said::Begun(response)) => {
                        left -= 1;
                        shared.tally.count(What::Begun);
                        drop(begun.send(Begun { response, due }).await);
                    }
                    other => shared.tally.fail(&format!("begin: {other:?}")),
                }
            }
        }
        Err(status) => (0..lot).for_each(|_| shared.tally.fail(&status)),
    }
    shared.alive.fetch_sub(left, Ordering::Relaxed);
}

fn live_on(shared: &Arc<Shared>, begun: Begun, lives: &mut Lives) {
    let shared = Arc::clone(shared);
    lives.spawn(async move {
        let dead = live(&shared, begun).await;
        shared.alive.fetch_sub(1, Ordering::Relaxed);
        dead.inspect_err(|why| shared.tally.fail(why)).ok()
    });
}

/// The whole of one life; the credentials that have to be refused from then on.
async fn live(shared: &Shared, begun: Begun) -> Result<[Serial; 2], Fault> {
    let Begun { response, due } = begun;
    let [byte, ..] = clock::luck::<1>();
    // One to five seconds, in 256 steps.
    let life = Duration::from_secs(1) + Duration::from_secs(4) * u32::from(byte) / 255;
    let ends = Instant::now() + life;
    let held = fetch(shared, &response.socket, due).await;
    let (serials, _client) = match held {
        Ok(held) => held,
        Err(why) => {
            end(shared, response.task).await?;
            return Err(why);
        }
    };
    let in_time = ms(clock::monotonic_ns() - due) / 1e3 < life.as_secs_f64() / 2.0;
    shared.tally.count(if in_time { What::InTime } else { What::Late });
    for serial in &serials {
        if shared.view.admit(serial).is_err() {
            shared.tally.count(What::RefusedAlive);
        }
    }
    sleep_until(ends).await;
    let ended = clock::monotonic_ns();
    let mut news = shared.view.position();
    let told = end(shared, response.task).await?;
    shared.tally.wait("end acknowledged", ms(told - ended));
    let refused = async {
        loop {
            news.mark_unchanged();
            if serials.iter().all(|serial| shared.view.admit(serial).is_err()) {
                break;
            }
            // The sender is the view that we hold.
            drop(news.changed().await);
        }
    };
    if timeout(BOUND, refused).await.is_ok() {
        shared.tally.wait("end asked, both refused", ms(clock::monotonic_ns() - ended));
    }
    Ok(serials)
}

/// A connection to the task's own socket, a certificate and a token over it.
async fn fetch(
    shared: &Shared,
    socket: &str,
    due: u64,
) -> Result<([Serial; 2], WorkloadClient), Fault> {
    let client = WorkloadClient::new(&Endpoint::parse(&format!("unix://{socket}"))?);
    let context = client.fetch_x509().await?;
    shared.tally.wait("due, X.509-SVID in hand", ms(clock::monotonic_ns() - due));
    let tokens = client.fetch_jwt(&[AUDIENCE], None).await?;
    shared.tally.wait("due, both in hand", ms(clock::monotonic_ns() - due));
    let serial = context.default_svid().and_then(|svid| svid.leaf.serial).ok_or("no serial")?;
    let token = tokens.first().ok_or("no token")?;
    Ok(([serial, jti(&token.token)?], client))
}

/// The token's name. It was just given to us, so its signature is not asked for.
fn jti(token: &str) -> Result<Serial, Fault> {
    let payload = token.split('.').nth(1).ok_or("not a token")?;
    let claims: serde_json::Value =
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload)?)?;
    let jti = claims.get("jti").and_then(serde_json::Value::as_str).ok_or("no `jti`")?;
    Ok(Serial::parse(jti)?)
}

/// Ends a task; when that was acknowledged.
async fn end(shared: &Shared, task: String) -> Result<u64, Fault> {
    let (done, told) = oneshot::channel();
    shared.ends.send((task, done)).await?;
    Ok(told.await?)
}

async fn end_in_lots(
    tasks: TasksClient<Channel>,
    mut ending: mpsc::Receiver<(String, oneshot::Sender<u64>)>,
) {
    let mut lots = tokio::time::interval(LOT_EVERY);
    lots.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asking = JoinSet::new();
    let mut lot = Vec::with_capacity(LOT_MAX);
    while ending.recv_many(&mut lot, LOT_MAX).await > 0 {
        while asking.try_join_next().is_some() {}
        asking.spawn(end_lot(tasks.clone(), std::mem::take(&mut lot)));
        lots.tick().await;
    }
}

/// Whoever waits for a task that could not be ended hears that its sender is gone.
async fn end_lot(mut tasks: TasksClient<Channel>, lot: Vec<(String, oneshot::Sender<u64>)>) {
    let (names, waiting): (Vec<_>, Vec<_>) = lot.into_iter().unzip();
    let wish = |task| {
        let cause = "completed".to_owned();
        let end = wire::EndRequest { task, cause, reason: String::new() };
        wire::Wish { wish: Some(Of::End(end)) }
    };
    let request = wire::BatchRequest { wishes: names.into_iter().map(wish).collect() };
    let Ok(answer) = tasks.batch(request).await else { return };
    for (outcome, done) in answer.into_inner().outcomes.into_iter().zip(waiting) {
        if matches!(outcome.outcome, Some(Said::Ended(_))) {
            // Nobody waits any more: the run is over.
            let _nobody_waits = done.send(clock::monotonic_ns());
        }
    }
}

/// Processor time of this process, seconds.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a short run")]
fn own_s() -> Result<f64, Fault> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
    Ok(now.tv_sec() as f64 + now.tv_nsec() as f64 / 1e9)
}
