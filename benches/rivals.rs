//! Mayfly beside other servers that issue certificates, in one run on one machine, by one generator.
//!
//! `cargo bench -p mayfly --bench rivals` measures; add `--profile dev` and `-- --quick` for a smoke run.
//! OpenBao is found as `benches/rivals/prepare` leaves it, or named by `-- --openbao PATH`;
//! `--rival-socket unix:///path` (with `--rival-pid N,…`) names any SPIFFE Workload API, and
//! `--spire-server unix:///path` (with `--spire-agent unix:///path --spire-parent spiffe://…`) the server API of a
//! SPIRE server; `benches/rivals/spire` starts one and says all that. Who is not there is skipped. `benches/README.md` says what is in each figure. The last line is one JSON object.

#[expect(dead_code, reason = "nothing is asked at a rate here")]
#[path = "load/drive.rs"]
mod drive;
#[path = "rivals/duel.rs"]
mod duel;
#[path = "rivals/entries.rs"]
mod entries;
#[expect(dead_code, reason = "tasks of this process are asked for by one at most")]
#[path = "load/house.rs"]
mod house;
mod measure;
#[path = "load/meter.rs"]
mod meter;
#[path = "rivals/openbao.rs"]
mod openbao;
#[path = "rivals/pki.rs"]
mod pki;
#[path = "rivals/spire.rs"]
mod spire;
#[expect(dead_code, reason = "the rivals have words of their own")]
#[path = "load/words.rs"]
mod words;
#[path = "load/workload.rs"]
mod workload;

use std::{path::Path, sync::Arc};

use duel::{Duel, Loops, Server, Tally};
use entries::{Entries, Spread};
use house::{House, Lives, Task};
use measure::{Fault, Floor, Foreign, say};
use meter::Meter;
use openbao::{OpenBao, STORES};
use spire::Spire;
use words::{Words, word};
use workload::{Connections, NewConnection, Token, Warm};

fn main() -> Result<(), Fault> {
    measure::headline("rivals");
    let words = Words::read()?;
    let dir = tempfile::tempdir()?;
    let (foreign, mut floor) = (Foreign::new(), Floor::new(dir.path())?);
    let mut tally = Tally::default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(play(dir.path(), &words, (&mut floor, &mut tally)))?;
    tally.tell();
    floor.tell();
    foreign.tell();
    measure::report(&tally.figures());
    Ok(())
}

async fn play(
    dir: &Path,
    words: &Words,
    (floor, tally): (&mut Floor, &mut Tally),
) -> Result<(), Fault> {
    let loops = Loops::new(words)?;
    floor.sample()?;
    match openbao::find() {
        Some(program) => {
            for (store, what) in STORES {
                floor.sample()?;
                let dir = dir.join(store);
                std::fs::create_dir(&dir)?;
                let rival = OpenBao::start(&program, &dir, store).await?;
                let met = against_openbao(&dir, (&rival, what), &loops, tally).await;
                rival.close().await?;
                met?;
            }
        }
        None => say("SKIPPED: OpenBao is not here; `benches/rivals/prepare` installs it"),
    }
    match word("--rival-socket") {
        Some(_) => against_socket(&dir.join("socket"), &loops, tally).await?,
        None => say("SKIPPED: no other Workload API; `--rival-socket unix:///path` names one"),
    }
    match word("--spire-server") {
        Some(socket) => {
            let rival = Spire::connect(&socket).await?;
            against_spire(&dir.join("spire"), &rival, &loops, tally).await?;
        }
        None => say("SKIPPED: no SPIRE server; `--spire-server unix:///path` names one"),
    }
    Ok(())
}

/// A task with its certificate, and its end, against a certificate of each kind of role.
async fn against_openbao(
    dir: &Path,
    (rival, store): (&OpenBao, &'static str),
    loops: &Loops,
    tally: &mut Tally,
) -> Result<(), Fault> {
    for kind in pki::Kind::ALL {
        let house = House::open(&dir.join(kind.name())).await?;
        let ours = (Arc::new(house.lives()), Server::new(house.pid));
        let theirs = Arc::new(pki::Issue::open(rival, kind, loops.in_flight).await?);
        let theirs = (theirs, Server::new(rival.pid));
        let duel = Duel::fight(loops, &ours, &theirs).await?;
        let what = format!("OpenBao, {store}: {}", kind.what());
        let key = format!("openbao_{}_{}", rival.store, kind.name());
        tally.add(what, key, duel);
        drop(theirs);
        house.close().await?;
    }
    Ok(())
}

/// What SPIFFE defines, on both sides.
async fn against_socket(dir: &Path, loops: &Loops, tally: &mut Tally) -> Result<(), Fault> {
    let socket = Arc::new(words::unix(&word("--rival-socket").ok_or("no socket")?)?);
    let far = vec![socket; loops.in_flight];
    let theirs = Server::named("--rival-pid")?;
    let house = House::open(dir).await?;
    let tasks = house.residents(loops.in_flight).await?;
    let near: Vec<_> = tasks.iter().map(Task::socket).collect();
    let ours = Server::new(house.pid);
    let anew = |sockets: &[_]| Arc::new(NewConnection(sockets.to_vec()));
    let (near_anew, far_anew) = ((anew(&near), ours.clone()), (anew(&far), theirs.clone()));
    let duel = Duel::fight(loops, &near_anew, &far_anew).await?;
    tally.add("socket: FetchX509SVID, a new connection".into(), "socket_x509_new".into(), duel);
    let near = Connections::open(&near).await?;
    let far = Connections::open(&far).await?;
    let warm = |connections: &Connections| Arc::new(Warm(connections.clone()));
    let sides = ((warm(&near), ours.clone()), (warm(&far), theirs.clone()));
    let duel = Duel::fight(loops, &sides.0, &sides.1).await?;
    tally.add("socket: FetchX509SVID, warm".into(), "socket_x509_warm".into(), duel);
    let token = |connections: Connections| Arc::new(Token(connections));
    let duel = Duel::fight(loops, &(token(near), ours), &(token(far), theirs)).await?;
    tally.add("socket: FetchJWTSVID, warm".into(), "socket_jwt".into(), duel);
    house.end_all(tasks).await?;
    house.close().await
}

/// A certificate of the server's own API, without an entry and within the life of one.
async fn against_spire(
    dir: &Path,
    rival: &Spire,
    loops: &Loops,
    tally: &mut Tally,
) -> Result<(), Fault> {
    let house = House::open(dir).await?;
    let ours = (Arc::new(house.lives()), Server::new(house.pid));
    if !std::env::args().any(|word| word == "--spire-entries-only") {
        for (entered, key, what) in [
            (false, "spire_mint", "SPIRE: MintX509SVID, no entry"),
            (true, "spire_entry_mint", "SPIRE: an entry, MintX509SVID, its deletion"),
        ] {
            let mint = Arc::new(rival.minting(loops.in_flight, entered).await?);
            let theirs = (mint, Server::named("--spire-pid")?);
            let duel = Duel::fight(loops, &ours, &theirs).await?;
            tally.add(what.into(), key.into(), duel);
        }
    }
    against_entries(&ours, rival, loops, tally).await?;
    house.close().await
}

/// A task's certificate against one of an entry, which comes when server and agent have looked.
async fn against_entries(
    ours: &(Arc<Lives>, Server),
    rival: &Spire,
    loops: &Loops,
    tally: &mut Tally,
) -> Result<(), Fault> {
    let agent = word("--spire-agent").or_else(|| word("--rival-socket"));
    let (Some(agent), Some(parent)) = (agent, word("--spire-parent")) else {
        say("SKIPPED: entry → socket needs `--spire-agent` and `--spire-parent spiffe://…`");
        return Ok(());
    };
    let agent = Arc::new(words::unix(&agent)?);
    let entries = Arc::new(Entries::open(rival, spire::parse(&parent)?, agent).await?);
    let every = word("--spire-every").unwrap_or_else(|| "5s".to_owned());
    let count = if loops.is_short { 2 } else { 20 };
    let alone = drive::alone(&Spread::new(&entries), count, &Meter::new(None)).await?.check()?;
    let [least, median, most] = [0.0, 0.5, 1.0].map(|q| alone.wait_ms(q));
    say(&format!(
        "SPIRE, looking every {every}: an entry is a certificate at the agent's socket after {median:.0} ms, \
         {count} of them after {least:.0} to {most:.0} ms"
    ));
    let theirs = (entries, Server::named("--spire-pid")?);
    let mut duel = Duel::fight(&loops.against_slow(), ours, &theirs).await?;
    duel.rival_creates(vec![median]);
    let what = format!("SPIRE, every {every}: an entry → the agent's socket");
    tally.add(what, format!("spire_{every}_entry"), duel);
    Ok(())
}
