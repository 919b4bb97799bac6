//! How long verifiers that people really use go on believing a task that has ended.
//!
//! `cargo bench -p mayfly --bench verifiers` measures and writes `docs/verifiers.md`; with `-- --quick`
//! it measures a little and prints the table instead; `-- --only rustls,go` measures some. Every figure
//! of the table comes from here. The servers read what one `mayfly sidecar` keeps and are told by its
//! `--on-renew`; what each of them is stands in `tests/interop`, and `tests/interop/*/prepare` has to
//! have been run.
//!
//! Two questions are asked of each. *In time*: a task with certificates of a minute is ended by its
//! operator, and its copies are tried without pause until they are refused. *At all*: a task with
//! certificates of five seconds is ended, and new connections, an open connection and the token are
//! tried until two seconds after they have expired. Who refuses only then did not notice the end.

#[expect(dead_code, reason = "no floor is taken here, and the last line is written otherwise")]
mod measure;

#[path = "verifiers/house.rs"]
mod house;
#[path = "verifiers/relying.rs"]
mod relying;
#[path = "verifiers/rust.rs"]
mod rust;
#[path = "verifiers/scripts.rs"]
mod scripts;
#[path = "verifiers/table.rs"]
mod table;

use std::{path::PathBuf, time::Duration};

use house::{House, LONG, Loot, SHORT};
use mayfly::clock;
use measure::{Fault, count, is_quick, ms, say};
use relying::{Door, Party};
use table::{Cell, Row};
use tokio::{task::JoinSet, time::sleep};

/// How long a verifier is given to refuse before it is said that it does not.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long after a credential's end it is still tried.
const BEYOND_MS: u64 = 2_000;
/// … a token that was accepted even then: some libraries allow a clock to be a minute off.
const LEEWAY_MS: u64 = 75_000;
/// Between two tries of something that is expected to take seconds.
const GLANCE: Duration = Duration::from_millis(50);
/// Between two tries of something that is measured in milliseconds.
const BEAT: Duration = Duration::from_millis(1);
/// Between two ends: a revocation list is signed at once when none was for a second, and the one before
/// may have had to wait for as long.
const REST: Duration = Duration::from_millis(2_200);

fn main() -> Result<(), Fault> {
    measure::headline("verifiers");
    let rounds = count("MAYFLY_BENCH_ROUNDS", (3, 20))?;
    let passes = count("MAYFLY_BENCH_PASSES", (1, 3))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (mut rows, skipped) = runtime.block_on(measure_all(rounds, passes))?;
    let all = !std::env::args().any(|word| word == "--only");
    if all {
        rows.extend(scripts::rows(passes));
    }
    let table = table::render(&rows, &skipped, (rounds, passes));
    say(&table);
    if all && !is_quick() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/verifiers.md");
        std::fs::write(path, &table)?;
    }
    Ok(())
}

/// The verifiers that this process starts and asks itself.
async fn measure_all(rounds: usize, passes: usize) -> Result<(Vec<Row>, Vec<String>), Fault> {
    let dir = tempfile::tempdir()?;
    let house = House::open(dir.path()).await?;
    let (mut parties, skipped) = relying::all(&house).await?;
    for party in &mut parties {
        say(&format!("{}: in time", party.name));
        for _ in 0..if party.hears_of_ends { rounds } else { 0 } {
            in_time(&house, party).await?;
        }
    }
    for pass in 1..=passes {
        say(&format!("at all: pass {pass} of {passes}"));
        parties = at_all(&house, parties).await?;
    }
    house.close().await?;
    Ok((parties.into_iter().map(Row::from).collect(), skipped))
}

/// Ends a task and tries what it left until it is refused.
async fn in_time(house: &House, party: &mut Party) -> Result<(), Fault> {
    sleep(REST).await;
    let loot = house.steal(LONG).await?;
    house.tell(party.pid())?;
    if let Some(door) = &mut party.door {
        let took = time_to_refusal(house, door, &loot).await?;
        party.new.push(took);
    }
    if let Some(address) = party.address().filter(|_| party.cuts) {
        sleep(REST).await;
        let loot = house.steal(LONG).await?;
        let mut live = relying::Live::open(address, &loot).await?;
        let ended = house.end(&loot).await?;
        while live.is_served().await && since(ended) < PATIENCE.as_secs_f64() * 1e3 {
            sleep(BEAT).await;
        }
        party.cut.push(since(ended));
    }
    if let Some(token) = &mut party.token
        && party.hears_of_tokens
    {
        sleep(REST).await;
        let loot = house.steal(LONG).await?;
        let took = time_to_refusal(house, token, &loot).await?;
        party.jwt.push(took);
    }
    Ok(())
}

async fn time_to_refusal(house: &House, door: &mut Door, loot: &Loot) -> Result<f64, Fault> {
    if !door.is_open_to(loot).await? {
        return Err("a verifier refuses a task that is going on".into());
    }
    let ended = house.end(loot).await?;
    while door.is_open_to(loot).await? {
        if since(ended) > PATIENCE.as_secs_f64() * 1e3 {
            return Err("a verifier that should hear of ends does not".into());
        }
        // Trying costs the machine what broker, sidecar and verifier then lack.
        sleep(BEAT).await;
    }
    Ok(since(ended))
}

/// Milliseconds since an instant of the monotonic clock.
fn since(ns: u64) -> f64 {
    ms(clock::monotonic_ns().saturating_sub(ns))
}

/// Ends one task before all verifiers and watches each of them until the credentials are long over.
async fn at_all(house: &House, parties: Vec<Party>) -> Result<Vec<Party>, Fault> {
    sleep(REST).await;
    house.tell_all(parties.iter().filter_map(Party::pid))?;
    let loot = std::sync::Arc::new(house.steal(SHORT).await?);
    let mut lives = Vec::new();
    for party in &parties {
        lives.push(match party.address() {
            Some(address) => Some(relying::Live::open(address, &loot).await?),
            None => None,
        });
    }
    house.end(&loot).await?;
    let mut watching = JoinSet::new();
    for (at, (party, live)) in parties.into_iter().zip(lives).enumerate() {
        let loot = std::sync::Arc::clone(&loot);
        watching.spawn(async move { (at, watch(party, live, &loot).await) });
    }
    let mut back = Vec::new();
    while let Some(done) = watching.join_next().await {
        let (at, party) = done?;
        back.push((at, party?));
    }
    back.sort_by_key(|(at, _)| *at);
    Ok(back.into_iter().map(|(_, party)| party).collect())
}

async fn watch(
    mut party: Party,
    mut live: Option<relying::Live>,
    loot: &Loot,
) -> Result<Party, Fault> {
    let (mut new, mut cut, mut jwt) = (None, None, None);
    let now = || clock::now().0;
    while now() < loot.not_after_ms + BEYOND_MS {
        let served = match &mut live {
            Some(live) if cut.is_none() => live.is_served().await,
            _ => true,
        };
        if !served {
            cut = Some(now());
        }
        let open = match &mut party.door {
            Some(door) if new.is_none() => door.is_open_to(loot).await?,
            _ => true,
        };
        if !open {
            new = Some(now());
        }
        let good = match &mut party.token {
            Some(token) if jwt.is_none() => token.is_open_to(loot).await?,
            _ => true,
        };
        if !good {
            jwt = Some(now());
        }
        sleep(GLANCE).await;
    }
    if let (Some(token), None) = (&mut party.token, jwt) {
        while jwt.is_none() && now() < loot.expires_ms + LEEWAY_MS {
            sleep(GLANCE * 10).await;
            jwt = (!token.is_open_to(loot).await?).then(now);
        }
    }
    let after = |at: Option<u64>, end: u64| at.map(|at| signed(at) - signed(end));
    if party.door.is_some() {
        party.new_at_all.push(after(new, loot.not_after_ms));
    }
    if live.is_some() {
        party.cut_at_all.push(after(cut, loot.not_after_ms));
    }
    if party.token.is_some() {
        party.jwt_at_all.push(after(jwt, loot.expires_ms));
    }
    Ok(party)
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of this century")]
const fn signed(ms: u64) -> f64 {
    ms as f64
}

impl From<Party> for Row {
    fn from(party: Party) -> Self {
        Self {
            new: Cell::of(&party.new, &party.new_at_all),
            live: Cell::of(&party.cut, &party.cut_at_all),
            jwt: Cell::of(&party.jwt, &party.jwt_at_all),
            verifier: party.name,
            version: party.version,
            token: party.token_name,
        }
    }
}
