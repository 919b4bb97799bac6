//! Dwellings: units, containers and pods, each with processes of its own in a cgroup of its own.
//!
//! All three end when nobody lives in their cgroup any more. A cgroup's path alone is not enough to
//! name it: whoever starts a container or a unit anew is given the same path again.

use alloc::string::String;

/// One life of a cgroup, from its making to its removal.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CgroupKey {
    /// The kernel's boot id.
    pub boot: [u8; 16],
    /// The directory's inode, which the kernel does not use again before the next boot.
    pub inode: u64,
    /// Absolute path in its hierarchy, `/` first.
    pub path: String,
}

/// One run of a systemd unit; the unit started anew is another.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Unit {
    /// Its name, for example `web.service`.
    pub name: String,
    /// What systemd calls this run.
    pub invocation: [u8; 16],
    /// Where it lives.
    pub cgroup: CgroupKey,
}

/// One run of a container; the container started anew is another.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Container {
    /// Its engine's id of it: 64 hexadecimal digits.
    pub id: String,
    /// Where it lives.
    pub cgroup: CgroupKey,
}

/// A Kubernetes pod.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Pod {
    /// Its UID, with dashes where it has any.
    pub uid: String,
    /// Where it lives.
    pub cgroup: CgroupKey,
}
