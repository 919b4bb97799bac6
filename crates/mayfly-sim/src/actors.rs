//! Processes and cgroups: those who hold tasks, live and die.

use mayfly_core::{Caller, CgroupKey, Container, Holder, Pod, ProcessKey, Unit};

use crate::rng::Rng;

/// A process of the simulated machine.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its name for the time between two boots.
    pub key: ProcessKey,
    /// Whether it runs.
    pub alive: bool,
    /// Its cgroup.
    pub cgroup: &'static str,
    /// Which profiles its evidence earns, as bits.
    pub earns: u64,
    lineage: Vec<ProcessKey>,
}

const CGROUPS: [&str; 4] = ["/a", "/a/b", "/ab", "/c"];

/// Everything that runs, and everything that ran.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    processes: Vec<Process>,
}

impl Machine {
    /// Starts a process: a stranger, or a fork of one that runs.
    pub(crate) fn spawn(&mut self, rng: &mut Rng) {
        let number = self.processes.len() as u64 + 1;
        // PIDs are reused on purpose; the inode tells the two apart.
        let pid = i32::try_from(number % 3).unwrap_or(0);
        let key = ProcessKey { boot: [0; 16], inode: number, pid };
        let parent = if rng.chance(500) { self.living(rng) } else { None };
        let parent = parent.and_then(|at| self.processes.get(at));
        let process = match parent {
            Some(parent) => Process {
                key,
                alive: true,
                cgroup: parent.cgroup,
                earns: parent.earns,
                lineage: [key].into_iter().chain(parent.lineage.iter().copied()).collect(),
            },
            None => Process {
                key,
                alive: true,
                cgroup: rng.pick(&CGROUPS).copied().unwrap_or("/c"),
                earns: rng.next(),
                lineage: vec![key],
            },
        };
        self.processes.push(process);
    }

    /// Some process that runs.
    pub(crate) fn living(&self, rng: &mut Rng) -> Option<usize> {
        let living = self.processes.iter().filter(|process| process.alive).count();
        let chosen = rng.index(living);
        let mut living = self.processes.iter().enumerate().filter(|(_, process)| process.alive);
        living.nth(chosen).map(|(at, _)| at)
    }

    /// A process by its place.
    #[must_use]
    pub(crate) fn process(&self, at: usize) -> Option<&Process> {
        self.processes.get(at)
    }

    /// What an attestor would see of the process at `at`.
    #[must_use]
    pub(crate) fn caller(&self, at: usize) -> Caller {
        self.process(at).map_or_else(Caller::default, |process| Caller {
            lineage: process.lineage.clone(),
            cgroup: Some(process.cgroup.into()),
            unit: dwelling(process.cgroup, "/a").map(unit),
            container: dwelling(process.cgroup, "/c").map(container),
            pod: dwelling(process.cgroup, "/ab").map(pod),
            socket: None,
        })
    }

    /// Kills some process.
    pub(crate) fn kill(&mut self, rng: &mut Rng) {
        let at = self.living(rng);
        if let Some(process) = at.and_then(|at| self.processes.get_mut(at)) {
            process.alive = false;
        }
    }

    /// Whether nobody can stand for `holder` any more.
    #[must_use]
    pub(crate) fn is_gone(&self, holder: &Holder) -> bool {
        let mut living = self.processes.iter().filter(|process| process.alive);
        match holder {
            Holder::Process(key) | Holder::Lineage(key) => living.all(|p| p.key != *key),
            Holder::Cgroup(path) => living.all(|process| !below(process.cgroup, path)),
            Holder::Unit(it) => living.all(|process| !below(process.cgroup, &it.cgroup.path)),
            Holder::Container(it) => living.all(|process| !below(process.cgroup, &it.cgroup.path)),
            Holder::Pod(it) => living.all(|process| !below(process.cgroup, &it.cgroup.path)),
            Holder::Socket | Holder::Lease | Holder::Job => false,
        }
    }
}

/// The cgroup `path` as a place to live in, if `own` is there or below.
fn dwelling(own: &str, path: &str) -> Option<CgroupKey> {
    below(own, path).then(|| CgroupKey { boot: [0; 16], inode: 1, path: path.into() })
}

fn unit(cgroup: CgroupKey) -> Box<Unit> {
    Box::new(Unit { name: "a.service".into(), invocation: [0; 16], cgroup })
}

fn container(cgroup: CgroupKey) -> Box<Container> {
    Box::new(Container { id: "c".into(), cgroup })
}

fn pod(cgroup: CgroupKey) -> Box<Pod> {
    Box::new(Pod { uid: "ab".into(), cgroup })
}

/// Whether the cgroup `own` is `path` or lies below it.
pub(crate) fn below(own: &str, path: &str) -> bool {
    own == path || own.starts_with(&format!("{path}/"))
}
