//! What was seen of a caller: sorted selectors, and the things that it can be held by.
//!
//! Evidence is collected by `mayfly-attest` from the kernel and never from the caller's own words.
//! Selectors decide which profiles match; holders decide which task is meant.

use alloc::{boxed::Box, collections::BTreeSet, string::String, vec::Vec};
use core::fmt;

use crate::{
    dwelling::{Container, Pod, Unit},
    id::{InvalidId, TaskId},
};

/// One fact about a caller, `type:value`, for example `unix:uid:1000`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Selector(String);

impl Selector {
    /// The kinds that an attestor of this crate's users can produce.
    pub const KINDS: [&'static str; 12] = [
        "unix:uid",
        "unix:gid",
        "unix:user",
        "unix:group",
        "unix:supplementary_gid",
        "unix:path",
        "unix:sha256",
        "unix:cgroup",
        "systemd:unit",
        "container:id",
        "container:engine",
        "k8s:pod-uid",
    ];

    /// Joins a kind such as `unix:uid` and a value. The kind is one of [`Self::KINDS`].
    #[must_use]
    pub fn new(kind: &str, value: &str) -> Self {
        debug_assert!(Self::KINDS.contains(&kind), "unknown selector kind");
        Self(alloc::format!("{kind}:{value}"))
    }

    /// Parses `kind:value`.
    ///
    /// # Errors
    /// [`InvalidId`] if the kind is unknown or the value empty.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let rule = |rule| InvalidId { what: "selector", rule };
        let known = Self::KINDS.iter().any(|kind| {
            text.strip_prefix(kind).is_some_and(|rest| rest.len() > 1 && rest.starts_with(':'))
        });
        if !known {
            return Err(rule("it is not one of the known kinds followed by ':' and a value"));
        }
        if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return Err(rule("it holds a control character"));
        }
        Ok(Self(text.into()))
    }

    /// The whole text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The kind, for example `unix:uid`.
    #[must_use]
    pub fn kind(&self) -> &str {
        let end = self.0.match_indices(':').nth(1).map_or(self.0.len(), |(at, _)| at);
        self.0.get(..end).unwrap_or("")
    }

    /// The value after the kind.
    #[must_use]
    pub fn value(&self) -> &str {
        self.0.get(self.kind().len() + 1..).unwrap_or("")
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A process for the time between two boots of a machine.
///
/// PIDs are reused; the inode of a pidfd is not, on kernels that have pidfs. Elsewhere the start
/// time in clock ticks takes its place (`boot` tells the two apart in either case).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ProcessKey {
    /// The kernel's boot id.
    pub boot: [u8; 16],
    /// The pidfs inode, or the start time where the kernel has no pidfs.
    pub inode: u64,
    /// The PID, for people and for finding the process again after a restart.
    pub pid: i32,
}

/// What a task is bound to.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Holder {
    /// Exactly this process; a forked child is somebody else.
    Process(ProcessKey),
    /// This process and those that descend from it, seen alive one by one.
    Lineage(ProcessKey),
    /// Every process in this cgroup or below it: absolute path in its hierarchy, `/` first.
    Cgroup(String),
    /// Every process of this run of a systemd unit.
    Unit(Box<Unit>),
    /// Every process of this run of a container.
    Container(Box<Container>),
    /// Every process of this pod.
    Pod(Box<Pod>),
    /// Whoever reaches the task's own Workload API socket.
    Socket,
    /// Nobody on this machine: the lease alone keeps the task alive.
    Lease,
    /// Nobody at all: a job is held by its window, and its attempts are tasks below it.
    Job,
}

impl Holder {
    /// Whether the task has a Workload API socket of its own: where no process is known to hold it,
    /// reaching that socket is the only way to be its workload.
    #[must_use]
    pub const fn owns_socket(&self) -> bool {
        match self {
            Self::Socket | Self::Lease => true,
            Self::Process(_)
            | Self::Lineage(_)
            | Self::Cgroup(_)
            | Self::Unit(_)
            | Self::Container(_)
            | Self::Pod(_)
            | Self::Job => false,
        }
    }

    /// Whether nothing on this machine can be asked whether it still holds the task.
    #[must_use]
    pub const fn is_nobody(&self) -> bool {
        match self {
            Self::Socket | Self::Lease | Self::Job => true,
            Self::Process(_)
            | Self::Lineage(_)
            | Self::Cgroup(_)
            | Self::Unit(_)
            | Self::Container(_)
            | Self::Pod(_) => false,
        }
    }
}

/// Everything seen of one caller at one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Evidence {
    /// Facts, sorted and without duplicates.
    pub selectors: BTreeSet<Selector>,
    /// Which holders this caller can stand for.
    pub caller: Caller,
}

/// The things that a caller may hold a task by.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Caller {
    /// The caller's process first, then its ancestors, nearest first.
    pub lineage: Vec<ProcessKey>,
    /// The caller's cgroup, absolute path.
    pub cgroup: Option<String>,
    /// The systemd unit that the caller runs in.
    pub unit: Option<Box<Unit>>,
    /// The container that it runs in.
    pub container: Option<Box<Container>>,
    /// The pod that it runs in.
    pub pod: Option<Box<Pod>>,
    /// The task whose own socket the caller came through.
    pub socket: Option<TaskId>,
}

impl Caller {
    /// Whether this caller stands for `holder`. `Socket` and `Lease` tasks are reached by their
    /// socket only, which the caller's [`Self::socket`] says.
    #[must_use]
    pub fn holds(&self, holder: &Holder) -> bool {
        match holder {
            Holder::Process(key) => self.lineage.first() == Some(key),
            Holder::Lineage(key) => self.lineage.contains(key),
            Holder::Cgroup(path) => self.cgroup.as_deref().is_some_and(|own| is_below(own, path)),
            Holder::Unit(unit) => self.unit.as_ref() == Some(unit),
            Holder::Container(container) => self.container.as_ref() == Some(container),
            Holder::Pod(pod) => self.pod.as_ref() == Some(pod),
            Holder::Socket | Holder::Lease | Holder::Job => false,
        }
    }

    /// The dwellings of this caller that live in the cgroup `path` itself, the narrowest first.
    pub fn dwellings_at(&self, path: &str) -> impl Iterator<Item = Holder> {
        let container = self.container.as_ref().filter(|it| it.cgroup.path == path);
        let unit = self.unit.as_ref().filter(|it| it.cgroup.path == path);
        let pod = self.pod.as_ref().filter(|it| it.cgroup.path == path);
        let container = container.cloned().map(Holder::Container);
        let unit = unit.cloned().map(Holder::Unit);
        let pod = pod.cloned().map(Holder::Pod);
        container.into_iter().chain(unit).chain(pod)
    }
}

/// Whether the cgroup `own` is `root` or lies below it; `/a/bc` is not below `/a/b`.
fn is_below(own: &str, root: &str) -> bool {
    own.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dwelling::CgroupKey;

    #[test]
    fn a_selector_splits_into_kind_and_value() {
        let selector = Selector::parse("unix:path:/usr/bin/a:b").unwrap();
        assert_eq!((selector.kind(), selector.value()), ("unix:path", "/usr/bin/a:b"));
        for bad in ["", "unix", "unix:uid", "unix:uid:", "x:y:z", "unix:uid:1\n"] {
            assert!(Selector::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_forked_child_does_not_hold_what_its_parent_holds() {
        let key = |inode| ProcessKey { boot: [0; 16], inode, pid: 7 };
        let child = Caller { lineage: [key(2), key(1)].into(), ..Caller::default() };
        assert!(!child.holds(&Holder::Process(key(1))));
        assert!(child.holds(&Holder::Lineage(key(1))));
    }

    #[test]
    fn a_sibling_cgroup_with_a_common_prefix_is_not_below() {
        let caller = Caller { cgroup: Some("/a/bc".into()), ..Caller::default() };
        assert!(!caller.holds(&Holder::Cgroup("/a/b".into())));
        assert!(caller.holds(&Holder::Cgroup("/a/bc".into())));
        assert!(caller.holds(&Holder::Cgroup("/a".into())));
    }

    #[test]
    fn a_container_that_was_started_anew_holds_nothing_of_the_first() {
        let run = |inode| {
            let cgroup = CgroupKey { boot: [0; 16], inode, path: "/docker/a".into() };
            Box::new(Container { id: "a".into(), cgroup })
        };
        let caller = Caller { container: Some(run(2)), ..Caller::default() };
        assert!(!caller.holds(&Holder::Container(run(1))));
        assert!(caller.holds(&Holder::Container(run(2))));
        let at = |path| caller.dwellings_at(path).collect::<Vec<_>>();
        assert_eq!(at("/docker/a"), [Holder::Container(run(2))]);
        assert_eq!(at("/docker"), []);
    }
}
