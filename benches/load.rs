//! How long a caller waits, how much one server answers, and what that costs it: over the SPIFFE Workload API
//! of any server, and from the begin of a task to its certificate on ours.
//!
//! `cargo bench -p mayfly --bench load` measures; add `--profile dev` and `-- --quick` for a smoke run.
//! `-- --socket unix:///path --pid N` asks another server than a broker of our own, and only what SPIFFE
//! defines; `--in-flight N`, `--seconds N` and `--rate N` (tokens a second, instead of finding out) are for
//! both. `benches/README.md` says what is in each figure. The last line is one JSON object.

#[expect(dead_code, reason = "the command line says how long, not the environment")]
mod measure;

mod canned;
#[path = "load/drive.rs"]
mod drive;
#[path = "load/floor.rs"]
mod floor;
#[path = "load/house.rs"]
mod house;
#[path = "load/meter.rs"]
mod meter;
#[path = "load/script.rs"]
mod script;
#[path = "load/told.rs"]
mod told;
#[path = "load/words.rs"]
mod words;
#[path = "load/workload.rs"]
mod workload;

use std::{path::Path, sync::Arc};

use house::{House, Task};
use measure::{Fault, Floor, Foreign};
use meter::Meter;
use script::Script;
use told::Told;
use words::Words;

fn main() -> Result<(), Fault> {
    if let Some(socket) = canned::wanted() {
        return canned::serve(&socket, || Some(()));
    }
    measure::headline("load");
    let words = Words::read()?;
    let dir = tempfile::tempdir()?;
    let (foreign, mut floor) = (Foreign::new(), Floor::new(dir.path())?);
    let mut told = Told::default();
    if words.socket.is_none() {
        // A caller that is alone has one thread: of more, each waking the next is a wait that is not the broker's.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let alone = dir.path().join("alone");
        runtime.block_on(one_at_a_time(&alone, &words, (&mut floor, &mut told)))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(crowd(&dir.path().join("broker"), &words, &mut told))?;
    floor.tell();
    foreign.tell();
    measure::report(&told.figures);
    Ok(())
}

/// Begin → certificate on an idle machine.
async fn one_at_a_time(
    dir: &Path,
    words: &Words,
    (floor, told): (&mut Floor, &mut Told),
) -> Result<(), Fault> {
    let house = House::open(dir).await?;
    let script = Script { words, meter: Meter::new(Some(house.pid)), is_bare: false };
    script.one_at_a_time(&house, floor, told).await?;
    house.close().await?;
    let floor = floor::Floor::open(dir).await?;
    let script = Script { words, meter: Meter::new(Some(floor.pid)), is_bare: true };
    script.one_at_least(&floor, told).await?;
    floor.close().await
}

async fn crowd(dir: &Path, words: &Words, told: &mut Told) -> Result<(), Fault> {
    if let Some(socket) = &words.socket {
        let script = Script { words, meter: Meter::new(words.pid), is_bare: false };
        let socket = Arc::new(socket.clone());
        let sockets = vec![socket; words.in_flight];
        return script.workload(&sockets, told).await;
    }
    let house = House::open(dir).await?;
    let script = Script { words, meter: Meter::new(Some(house.pid)), is_bare: false };
    let tasks = house.residents(words.in_flight).await?;
    let sockets: Vec<_> = tasks.iter().map(Task::socket).collect();
    script.workload(&sockets, told).await?;
    house.end_all(tasks).await?;
    script.lives(&house, told).await?;
    house.close().await?;
    let floor = floor::Floor::open(dir.parent().unwrap_or(dir)).await?;
    let script = Script { words, meter: Meter::new(Some(floor.pid)), is_bare: true };
    script.lives_at_least(&floor, told).await;
    floor.close().await
}
