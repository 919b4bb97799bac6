//! From a peer to evidence.
//!
//! The order is what makes it safe: the pidfd is held first, then /proc is read, and at the end the
//! pidfd is asked whether the process lives. If it does, its PID was its own all the time, so every
//! line that was read is about it. Nothing is read from what the caller sent.

use mayfly_core::{
    evidence::{Caller, Evidence, ProcessKey, Selector},
    time::Timestamp,
};
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::{
    dwelling::dwellings, error::AttestError, exe::Exe, find, glance::Glance, hash::HashCache,
    names::Names, peer::Peer, process::Process, process::read_file, procfs, systemd::Systemd,
};

/// The longest chain of ancestors that is followed.
pub const LINEAGE_MAX: usize = 64;
/// Supplementary groups that become selectors; the kernel allows 65 536, a person reads fewer.
const GROUPS_MAX: usize = 1024;

/// What is worth its price, decided by what the profiles ask for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CollectOptions {
    /// Ask the name service for user and group names.
    pub names: bool,
    /// Read the program and take its digest.
    pub sha256: bool,
    /// Programs longer than this get no digest.
    pub sha256_bytes_max: u64,
    /// Name the unit, container and pod that a task may be held by.
    pub dwellings: bool,
    /// Follow the ancestors, for tasks that are held by a lineage.
    pub lineage: bool,
}

impl Default for CollectOptions {
    /// Everything, for programs of at most 512 MiB.
    fn default() -> Self {
        Self {
            names: true,
            sha256: true,
            sha256_bytes_max: 512 << 20,
            dwellings: true,
            lineage: true,
        }
    }
}

/// Collects evidence, and remembers what is dear: digests of programs, names of accounts.
#[derive(Debug)]
pub struct Collector {
    hashes: HashCache,
    names: Names,
    systemd: Option<Systemd>,
}

impl Collector {
    /// A collector that remembers the digests of this many programs.
    #[must_use]
    pub fn new(hashes_max: usize) -> Self {
        Self { hashes: HashCache::new(hashes_max), names: Names::new(), systemd: None }
    }

    /// The same, which asks this systemd for the runs of units.
    #[must_use]
    pub fn with_systemd(self, systemd: Systemd) -> Self {
        Self { systemd: Some(systemd), ..self }
    }

    /// The remembered digests.
    #[must_use]
    pub const fn hashes(&self) -> &HashCache {
        &self.hashes
    }

    /// Everything that can be seen of `peer` and that `options` ask for. Of a peer that was looked at
    /// within the last second, and is at a glance as it was, it is what was seen then.
    ///
    /// What cannot be read is left out: less evidence never grants more.
    ///
    /// # Errors
    /// [`AttestError::PeerGone`] if the peer ended before the last look, [`AttestError::Changed`] if
    /// it became another user or another program since it connected or while it was looked at.
    pub async fn collect(
        &self,
        peer: &Peer,
        options: CollectOptions,
        now: Timestamp,
    ) -> Result<Evidence, AttestError> {
        let _turn = peer.memory().turn().await;
        // Before the full look: what changes between the two shows at the next glance.
        let glance = Glance::at(peer);
        let recall = |glance| peer.memory().recall(glance, options, now);
        if let Some(mut evidence) = glance.and_then(recall) {
            if options.lineage {
                // The ancestors may have changed while the peer itself has not.
                evidence.caller.lineage = lineage(peer.process())?;
            }
            peer.still_there()?;
            return Ok(evidence);
        }
        let evidence = self.look(peer, options, now).await?;
        if let Some(glance) = glance {
            peer.memory().keep(glance, options, (now, &evidence));
        }
        Ok(evidence)
    }

    /// The full look.
    async fn look(
        &self,
        peer: &Peer,
        options: CollectOptions,
        now: Timestamp,
    ) -> Result<Evidence, AttestError> {
        let dir = open_dir(peer.key().pid)?;
        let exe = Exe::open(&dir, options.sha256)?;
        let mut evidence = Evidence::default();
        add_accounts(&mut evidence, peer, &read_status(&dir)?)?;
        add_cgroup(&mut evidence, &read_file(&dir, "cgroup")?)?;
        if options.dwellings {
            self.add_dwellings(&mut evidence.caller).await;
        }
        evidence.caller.lineage =
            if options.lineage { lineage(peer.process())? } else { vec![peer.key()] };
        if let Some(path) = exe.as_ref().and_then(Exe::intact_path) {
            add(&mut evidence, "unix:path", &path);
        }
        if options.names {
            let (user, group) = self.names.of(peer.uid(), peer.gid(), now).await;
            user.iter().for_each(|name| add(&mut evidence, "unix:user", name));
            group.iter().for_each(|name| add(&mut evidence, "unix:group", name));
        }
        let runs = exe.as_ref().map(Exe::identity);
        if let Some(exe) = exe.filter(|_| options.sha256) {
            let digest = self.hashes.sha256(exe, peer.uid(), options.sha256_bytes_max, now).await;
            digest.iter().for_each(|digest| add(&mut evidence, "unix:sha256", &hex(digest)));
        }
        // The second look. First at the program, then at the process: that it lives is the last
        // thing seen, and vouches for all that was read before.
        let unchanged = runs.is_none_or(|runs| runs.still_runs(&dir));
        peer.still_there()?;
        if unchanged { Ok(evidence) } else { Err(AttestError::Changed { what: "executable" }) }
    }
}

impl Collector {
    /// Adds what the caller runs in. It lives there, so its cgroups cannot be removed and made anew
    /// between the reading of their path and the look at their inode; the second look vouches for it.
    async fn add_dwellings(&self, caller: &mut Caller) {
        if let Some(path) = caller.cgroup.as_deref().filter(|path| *path != "/") {
            let found = find::of_caller(path, self.systemd.as_ref()).await;
            (caller.unit, caller.container, caller.pod) = found;
        }
    }
}

impl Default for Collector {
    fn default() -> Self {
        Self::new(4096)
    }
}

/// A process and its ancestors, nearest first, each seen alive while it was the parent of the one
/// before. The first process of the machine is left out: every orphan descends from it.
///
/// # Errors
/// [`AttestError::PeerGone`] if the process itself ended.
pub fn lineage(process: &Process) -> Result<Vec<ProcessKey>, AttestError> {
    let mut keys = vec![process.key()];
    let mut next = process.parent()?;
    while let Some(ancestor) = next {
        if ancestor.key().pid == 1 || keys.len() >= LINEAGE_MAX {
            break;
        }
        keys.push(ancestor.key());
        next = match ancestor.parent() {
            Ok(parent) => parent,
            // This ancestor ended meanwhile: what was above it is no longer proven.
            Err(AttestError::PeerGone) => None,
            Err(other) => return Err(other),
        };
    }
    Ok(keys)
}

fn open_dir(pid: i32) -> Result<std::os::fd::OwnedFd, AttestError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, format!("/proc/{pid}"), flags, Mode::empty())
        .map_err(|errno| AttestError::of("open /proc/<pid>", errno))
}

/// The status of the process that has this PID at the moment.
pub(crate) fn status_of(pid: i32) -> Result<procfs::Status, AttestError> {
    read_status(open_dir(pid)?)
}

fn read_status(dir: impl std::os::fd::AsFd) -> Result<procfs::Status, AttestError> {
    procfs::parse_status(&read_file(dir, "status")?)
        .ok_or(AttestError::Malformed { file: "status" })
}

/// Adds user and groups.
///
/// The socket remembers who the process was when it connected. If it is somebody else by now, for
/// example because it executed a set-uid program, then its new facts must not be joined to its old
/// user: a child that kept the socket would speak with the authority of both.
fn add_accounts(
    evidence: &mut Evidence,
    peer: &Peer,
    status: &procfs::Status,
) -> Result<(), AttestError> {
    if (status.euid, status.egid) != (peer.uid(), peer.gid()) {
        peer.still_there()?;
        return Err(AttestError::Changed { what: "credentials" });
    }
    add(evidence, "unix:uid", &peer.uid().to_string());
    add(evidence, "unix:gid", &peer.gid().to_string());
    for group in status.groups.iter().take(GROUPS_MAX) {
        add(evidence, "unix:supplementary_gid", &group.to_string());
    }
    Ok(())
}

fn add_cgroup(evidence: &mut Evidence, text: &[u8]) -> Result<(), AttestError> {
    let cgroups = procfs::parse_cgroup(text).ok_or(AttestError::Malformed { file: "cgroup" })?;
    if let Some(path) = cgroups.telling() {
        add(evidence, "unix:cgroup", path);
        if let Some(unit) = procfs::systemd_unit(path) {
            add(evidence, "systemd:unit", unit);
        }
        let inside = dwellings(path);
        if let Some(container) = inside.container {
            add(evidence, "container:id", container.id);
            container.engine.iter().for_each(|it| add(evidence, "container:engine", it.name()));
        }
        if let Some(pod) = inside.pod {
            add(evidence, "k8s:pod-uid", &pod.uid);
        }
    }
    // Another hierarchy may have a directory of the same name, made by somebody else.
    evidence.caller = Caller { cgroup: cgroups.unified, ..Caller::default() };
    Ok(())
}

/// Adds a selector, unless its value is empty or holds control characters: a caller names its own
/// files, and a line break in a selector would be a second line in a log.
fn add(evidence: &mut Evidence, kind: &str, value: &str) {
    if let Ok(selector) = Selector::parse(&format!("{kind}:{value}")) {
        evidence.selectors.insert(selector);
    }
}

fn hex(bytes: &[u8; 32]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a string cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn who_asks_while_somebody_looks_is_told_what_that_one_saw() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        let options = CollectOptions {
            names: false,
            sha256: false,
            dwellings: false,
            lineage: false,
            ..CollectOptions::default()
        };
        let Some(glance) = Glance::at(&peer) else {
            return eprintln!("SKIPPED: this kernel does not tell enough at a glance");
        };
        let (collector, now) = (Collector::default(), Timestamp(1_000));
        let looking = peer.memory().turn().await;
        let mut asking = pin!(collector.collect(&peer, options, now));
        let mut nobody = Context::from_waker(Waker::noop());
        assert!(asking.as_mut().poll(&mut nobody).is_pending(), "somebody looks");
        let seen = Evidence::default();
        peer.memory().keep(glance, options, (now, &seen));
        drop(looking);
        assert_eq!(asking.await.unwrap(), seen);
    }
}
