//! Finds the cgroups that units, containers and pods live in.
//!
//! No engine is asked: the kernel's hierarchy is walked, and a cgroup counts as whose it is exactly as
//! it would for a caller in it.

use std::{collections::VecDeque, fs, path::Path};

use mayfly_core::dwelling::{CgroupKey, Container, Pod, Unit};

use crate::{
    cgroup,
    dwelling::{Dwellings, dwellings},
    error::AttestError,
    systemd::Systemd,
};

/// Cgroups that are looked at before the search is given up; a busy node has some thousands.
const CGROUPS_MAX: usize = 65_536;

/// A caller's unit, container and pod.
pub(crate) type Found = (Option<Box<Unit>>, Option<Box<Container>>, Option<Box<Pod>>);

/// The dwellings of a caller in the cgroup `path`, as far as they can be named. What cannot be seen is
/// left out.
///
/// What systemd calls the unit's run is asked only if there is a systemd to ask.
pub(crate) async fn of_caller(path: &str, systemd: Option<&Systemd>) -> Found {
    let found = dwellings(path);
    let key = |path| cgroup::key(path).ok().flatten();
    let container = found.container.and_then(|it| Some(container(it.id, key(it.cgroup)?)));
    let pod = found.pod.and_then(|it| Some(pod(&it.uid, key(it.cgroup)?)));
    let unit = match (found.unit, systemd) {
        (Some(it), Some(systemd)) => run_of(it.name, key(it.cgroup), systemd).await,
        _ => None,
    };
    (unit, container, pod)
}

async fn run_of(name: &str, cgroup: Option<CgroupKey>, systemd: &Systemd) -> Option<Box<Unit>> {
    let cgroup = cgroup?;
    let invocation = systemd.invocation(name).await?;
    Some(Box::new(Unit { name: name.to_owned(), invocation, cgroup }))
}

fn container(id: &str, cgroup: CgroupKey) -> Box<Container> {
    Box::new(Container { id: id.to_owned(), cgroup })
}

fn pod(uid: &str, cgroup: CgroupKey) -> Box<Pod> {
    Box::new(Pod { uid: uid.to_owned(), cgroup })
}

/// The current run of the unit `name`: `None` if no process of it lives, or systemd does not say
/// which run it is.
///
/// # Errors
/// [`AttestError`] if the hierarchy cannot be read.
pub async fn find_unit(name: &str, systemd: &Systemd) -> Result<Option<Box<Unit>>, AttestError> {
    let wanted = name.to_owned();
    let is_it = move |here: &Dwellings<'_>| {
        let unit = here.unit.filter(|unit| unit.name == wanted)?;
        Some(unit.cgroup.to_owned())
    };
    Ok(run_of(name, search(is_it).await?, systemd).await)
}

/// The container with this id, `None` if no process of it lives.
///
/// # Errors
/// [`AttestError`] if the hierarchy cannot be read.
pub async fn find_container(id: &str) -> Result<Option<Box<Container>>, AttestError> {
    let wanted = id.to_owned();
    let is_it = move |here: &Dwellings<'_>| {
        let container = here.container.filter(|container| container.id == wanted)?;
        Some(container.cgroup.to_owned())
    };
    let key = search(is_it).await?;
    Ok(key.map(|key| container(id, key)))
}

/// The pod with this UID, `None` if no process of it lives.
///
/// # Errors
/// [`AttestError`] if the hierarchy cannot be read.
pub async fn find_pod(uid: &str) -> Result<Option<Box<Pod>>, AttestError> {
    let wanted = uid.to_owned();
    let is_it = move |here: &Dwellings<'_>| {
        let pod = here.pod.as_ref().filter(|pod| pod.uid == wanted)?;
        Some(pod.cgroup.to_owned())
    };
    let key = search(is_it).await?;
    Ok(key.map(|key| pod(uid, key)))
}

/// The populated cgroup that `is_it` picks. More than one, or too many to look at, is none: whoever
/// begins a task has to know what holds it.
async fn search(
    is_it: impl Fn(&Dwellings<'_>) -> Option<String> + Send + 'static,
) -> Result<Option<CgroupKey>, AttestError> {
    let walk = tokio::task::spawn_blocking(move || walk(is_it)).await;
    let mut found = walk.map_err(|stopped| AttestError::Io {
        what: "a walk through the cgroups",
        source: std::io::Error::other(stopped),
    })??;
    Ok(if found.len() == 1 { found.pop() } else { None })
}

fn walk(is_it: impl Fn(&Dwellings<'_>) -> Option<String>) -> Result<Vec<CgroupKey>, AttestError> {
    let mut found = Vec::new();
    let mut next = VecDeque::from([cgroup::top()?]);
    let mut seen = 0;
    while let Some((path, dir)) = next.pop_front() {
        let here = dwellings(&path);
        if is_it(&here).as_deref() == Some(path.as_str())
            && let Some(key) = cgroup::key(&path)?
            && cgroup::lives(&key)?
        {
            found.push(key);
        }
        // Below a unit and below a container everybody is who they are already.
        if here.unit.is_some() || here.container.is_some() {
            continue;
        }
        for (name, dir) in children(&dir) {
            seen += 1;
            if seen > CGROUPS_MAX {
                return Err(AttestError::Malformed { file: "the cgroup hierarchy" });
            }
            next.push_back((format!("{}/{name}", path.trim_end_matches('/')), dir));
        }
    }
    Ok(found)
}

/// The cgroups right below; one that vanishes meanwhile has none.
fn children(dir: &Path) -> Vec<(String, std::path::PathBuf)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir()));
    dirs.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path()))).collect()
}
