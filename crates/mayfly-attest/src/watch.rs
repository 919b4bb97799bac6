//! Eyes on holders: who has ended, told once, within a millisecond.
//!
//! Each holder gets a task of its own that sleeps on one descriptor. That is 1 KiB each and no work
//! until something happens, so tens of thousands are fine as long as the limit on open files allows.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, time::Duration};

use mayfly_core::{
    dwelling::{CgroupKey, Unit},
    evidence::{Holder, ProcessKey},
    id::TaskId,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use crate::{
    cgroup,
    engine::Engine,
    error::AttestError,
    kernel::sleep_on,
    members::members,
    peer::Peer,
    process::{Exit, Process},
    systemd::{Systemd, Word, written_invocation},
};

/// How often systemd is asked about a unit in which no process lives but which it says goes on.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long a process that has left its cgroup is given to be dead.
const DYING_MAX: Duration = Duration::from_millis(100);

/// Why a holder is not being watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// As many holders are being watched as were allowed for.
    #[error("already watching `{0}` holders")]
    Full(usize),
    /// The kernel does not let us look. The task has no watcher and must not be thought to have one.
    #[error("cannot watch")]
    Blind(#[source] AttestError),
}

/// What was seen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Seen {
    /// The process has ended.
    ProcessExited {
        /// How, where the kernel tells us.
        exit: Option<Exit>,
    },
    /// No process is left in the cgroup or below it, or the cgroup is gone.
    CgroupEmptied {
        /// How its main process ended, where there was one and the kernel tells us: the only process
        /// that lived there when the watch began. Without one, a container's engine may know.
        exit: Option<Exit>,
    },
    /// systemd says that this run of the unit is over.
    UnitEnded {
        /// How its main process ended, where systemd tells us.
        exit: Option<Exit>,
    },
    /// The eye itself failed. Nothing is known about the holder any more.
    Blinded,
}

/// A holder was seen to end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sighting {
    /// The task that the holder held.
    pub task: TaskId,
    /// The holder.
    pub holder: Holder,
    /// What was seen.
    pub what: Seen,
}

/// Watches holders, one per task, until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    sightings: mpsc::Sender<Sighting>,
    eyes: JoinSet<(TaskId, u64)>,
    open: BTreeMap<TaskId, (u64, AbortHandle)>,
    opened: u64,
    eyes_max: usize,
    systemd: Option<Systemd>,
    engine: Option<Engine>,
}

impl Watcher {
    /// A watcher of at most `eyes_max` holders, and the queue that it tells what it sees. When the
    /// queue is full the eyes wait: nothing seen is lost.
    #[must_use]
    pub fn new(eyes_max: usize, sightings_max: usize) -> (Self, mpsc::Receiver<Sighting>) {
        let (sightings, seen) = mpsc::channel(sightings_max.max(1));
        let (eyes, open) = (JoinSet::new(), BTreeMap::new());
        (Self { sightings, eyes, open, opened: 0, eyes_max, systemd: None, engine: None }, seen)
    }

    /// The same, which asks this systemd how its units are. Without one their cgroups decide.
    #[must_use]
    pub fn with_systemd(self, systemd: Systemd) -> Self {
        Self { systemd: Some(systemd), ..self }
    }

    /// The same, which asks this engine how a container ended that has no main process.
    #[must_use]
    pub fn with_engine(self, engine: Option<Engine>) -> Self {
        Self { engine, ..self }
    }

    /// Watches the holder of `task` from now on, instead of the one watched for it before. A holder
    /// that has ended already is seen at once, so there is no moment in which an end can be missed.
    ///
    /// `peer` may be given when it is at hand: its pidfd still knows how the process ended after the
    /// PID is gone. Must be called within a tokio runtime. [`Holder::Socket`] and [`Holder::Lease`]
    /// cannot be seen, and are accepted without an eye.
    ///
    /// # Errors
    /// [`WatchError`]; then the task is not watched.
    pub fn watch(
        &mut self,
        task: TaskId,
        holder: Holder,
        peer: Option<&Peer>,
    ) -> Result<(), WatchError> {
        self.unwatch(task);
        if matches!(holder, Holder::Socket | Holder::Lease) {
            return Ok(());
        }
        if self.open.len() >= self.eyes_max {
            return Err(WatchError::Full(self.eyes_max));
        }
        let eye = match &holder {
            Holder::Process(key) | Holder::Lineage(key) => Eye::on_process(key, peer),
            Holder::Cgroup(path) => Eye::on_cgroup(path, cgroup::open_events(path)),
            Holder::Unit(unit) => Eye::on_unit(unit, self.systemd.as_ref()),
            Holder::Container(it) => {
                Eye::on_key(&it.cgroup).map(|eye| eye.told_by(self.engine.as_ref(), &it.id))
            }
            Holder::Pod(it) => Eye::on_key(&it.cgroup),
            Holder::Socket | Holder::Lease | Holder::Job => return Ok(()),
        };
        let eye = eye.map_err(WatchError::Blind)?;
        self.opened += 1;
        let (number, sightings) = (self.opened, self.sightings.clone());
        let handle = self.eyes.spawn(async move {
            let what = eye.wait().await;
            // Nobody listens any more: then nobody needs to know.
            let _told = sightings.send(Sighting { task, holder, what }).await;
            (task, number)
        });
        self.open.insert(task, (number, handle));
        Ok(())
    }

    /// Stops watching the holder of `task`. A sighting that was queued already may still arrive.
    pub fn unwatch(&mut self, task: TaskId) {
        self.tidy();
        if let Some((_, eye)) = self.open.remove(&task) {
            eye.abort();
        }
    }

    /// How many holders are being watched.
    pub fn len(&mut self) -> usize {
        self.tidy();
        self.open.len()
    }

    /// Whether nobody is being watched.
    pub fn is_empty(&mut self) -> bool {
        self.len() == 0
    }

    /// Forgets the eyes that have told what they saw.
    fn tidy(&mut self) {
        while let Some(closed) = self.eyes.try_join_next() {
            let Ok((task, number)) = closed else { continue };
            if self.open.get(&task).is_some_and(|(current, _)| *current == number) {
                self.open.remove(&task);
            }
        }
    }
}

/// Whether a holder lives, asked after a restart, before anything is served: who died while nobody
/// watched? [`Holder::Socket`] and [`Holder::Lease`] have no life that could be seen, and count as
/// alive.
///
/// # Errors
/// [`AttestError`] if the kernel does not let us look; then nothing is known.
pub fn is_alive(holder: &Holder) -> Result<bool, AttestError> {
    match holder {
        Holder::Process(key) | Holder::Lineage(key) => Ok(Process::find(key)?.is_some()),
        Holder::Cgroup(path) => match cgroup::open_events(path)? {
            Some(events) => cgroup::is_populated(events),
            None => Ok(false),
        },
        // systemd may have made a run of it that we do not know yet; the eye will ask.
        Holder::Unit(unit) => {
            let same = written_invocation(&unit.name).is_none_or(|run| run == unit.invocation);
            Ok(same && cgroup::lives(&unit.cgroup)?)
        }
        Holder::Container(it) => cgroup::lives(&it.cgroup),
        Holder::Pod(it) => cgroup::lives(&it.cgroup),
        Holder::Socket | Holder::Lease | Holder::Job => Ok(true),
    }
}

/// What to sleep on, or the news that there is nothing to wait for.
#[derive(Debug)]
enum Eye {
    Process(Deathbed),
    Cgroup(AsyncFd<OwnedFd>, Option<Deathbed>),
    Container(AsyncFd<OwnedFd>, Engine, String),
    Unit(AsyncFd<OwnedFd>, Box<Unit>, Systemd),
    Already(Seen),
}

impl Eye {
    fn on_process(key: &ProcessKey, peer: Option<&Peer>) -> Result<Self, AttestError> {
        let process = match peer.filter(|peer| peer.key() == *key) {
            Some(peer) => Some(peer.process().duplicate()?),
            None => Process::find(key)?,
        };
        let Some(process) = process else {
            return Ok(Self::Already(Seen::ProcessExited { exit: None }));
        };
        Ok(Self::Process(Deathbed::of(process)?))
    }

    fn on_key(key: &CgroupKey) -> Result<Self, AttestError> {
        Self::on_cgroup(&key.path, cgroup::open_events_of(key))
    }

    fn on_cgroup(
        path: &str,
        events: Result<Option<OwnedFd>, AttestError>,
    ) -> Result<Self, AttestError> {
        let Some(events) = events? else {
            return Ok(Self::Already(Seen::CgroupEmptied { exit: None }));
        };
        let events = sleep_on(events, Interest::PRIORITY).map_err(no_epoll)?;
        Ok(Self::Cgroup(events, sole_member(path).map(Deathbed::of).transpose()?))
    }

    /// The eye on a container without a main process, whose engine is asked.
    fn told_by(self, engine: Option<&Engine>, id: &str) -> Self {
        match (self, engine) {
            (Self::Cgroup(events, None), Some(engine)) => {
                Self::Container(events, engine.clone(), id.to_owned())
            }
            (other, _) => other,
        }
    }

    fn on_unit(unit: &Unit, systemd: Option<&Systemd>) -> Result<Self, AttestError> {
        let eye = Self::on_key(&unit.cgroup)?;
        Ok(match (eye, systemd) {
            (Self::Cgroup(events, _), Some(systemd)) => {
                Self::Unit(events, Box::new(unit.clone()), systemd.clone())
            }
            (other, _) => other,
        })
    }

    async fn wait(self) -> Seen {
        match self {
            Self::Already(seen) => seen,
            Self::Process(bed) => match bed.exit().await {
                Ok(exit) => Seen::ProcessExited { exit },
                Err(_) => Seen::Blinded,
            },
            Self::Unit(events, unit, systemd) => {
                unit_ended(&events, &unit, &systemd).await.unwrap_or(Seen::Blinded)
            }
            Self::Container(eye, engine, id) => match emptied(&eye).await {
                Ok(()) => Seen::CgroupEmptied { exit: engine.exit(&id).await },
                Err(_) => Seen::Blinded,
            },
            Self::Cgroup(eye, main) => match emptied(&eye).await {
                Ok(()) => Seen::CgroupEmptied { exit: last_words(main).await },
                Err(_) => Seen::Blinded,
            },
        }
    }
}

/// A process whose end is waited for.
#[derive(Debug)]
struct Deathbed {
    pidfd: AsyncFd<OwnedFd>,
    key: ProcessKey,
}

impl Deathbed {
    fn of(process: Process) -> Result<Self, AttestError> {
        let key = process.key();
        let pidfd = sleep_on(process.into_pidfd(), Interest::READABLE).map_err(no_epoll)?;
        Ok(Self { pidfd, key })
    }

    /// Waits for the end, and tells how it was.
    async fn exit(self) -> io::Result<Option<Exit>> {
        self.pidfd.readable().await?.retain_ready();
        Ok(Process::wake(self.pidfd.into_inner(), self.key).exit())
    }
}

/// How the main process of an emptied cgroup ended. A process leaves its cgroup an instant before it
/// is dead, and who is told of a failure may act on it, so the instant is waited for.
async fn last_words(main: Option<Deathbed>) -> Option<Exit> {
    timeout(DYING_MAX, main?.exit()).await.ok()?.ok()?
}

/// The process that lives alone in a cgroup: its main process, whose end says how all went. Where there
/// are several, or we may not look, there is none.
fn sole_member(path: &str) -> Option<Process> {
    let alone = || <[i32; 1]>::try_from(members(path, 2).ok()?).ok();
    let pid = alone()?;
    let main = Process::open(pid[0]).ok()?;
    // Still alone, and still alive: so it was not a successor with the same number that was opened.
    (alone() == Some(pid) && main.still_there().is_ok()).then_some(main)
}

/// Waits until nobody lives in the cgroup. The kernel raises "priority" at each change of the file,
/// counted from the last reading, so nothing between two readings is missed.
async fn emptied(events: &AsyncFd<OwnedFd>) -> Result<(), AttestError> {
    while cgroup::is_populated(events.get_ref())? {
        events.ready(Interest::PRIORITY).await.map_err(no_epoll)?.clear_ready();
    }
    Ok(())
}

/// Waits until a run of a unit is over: systemd decides while it speaks, the cgroup when it does not.
async fn unit_ended(
    events: &AsyncFd<OwnedFd>,
    unit: &Unit,
    systemd: &Systemd,
) -> Result<Seen, AttestError> {
    let mut news = systemd.news(&unit.name);
    loop {
        // Before systemd is asked: who dies while it answers changes the file, and wakes us.
        let populated = cgroup::is_populated(events.get_ref())?;
        match systemd.ask(unit).await {
            Word::Over(exit) => return Ok(Seen::UnitEnded { exit }),
            Word::Silent if !populated => return Ok(Seen::CgroupEmptied { exit: None }),
            Word::Runs | Word::Silent => {}
        }
        tokio::select! {
            () = news.changed() => {}
            changed = events.ready(Interest::PRIORITY) => changed.map_err(no_epoll)?.clear_ready(),
            // systemd may have stopped answering, and then there will be no news.
            () = sleep(ASK_AGAIN), if !populated => {}
        }
    }
}

const fn no_epoll(source: io::Error) -> AttestError {
    AttestError::Io { what: "epoll", source }
}
