//! Which unit, container and pod a cgroup path belongs to, as a pure function over text.
//!
//! A path is believed from the root down to the first segment that somebody other than the machine's
//! root may have made. Slices are made by systemd alone; below a unit, and below a container, the
//! tree may be delegated, and whoever it is delegated to can make a directory that bears another
//! container's id. So only the outermost unit and the outermost container count, and nothing below.

/// Who runs a container, as far as the cgroup's name tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Engine {
    /// Docker Engine.
    Docker,
    /// Podman.
    Podman,
    /// containerd, through Kubernetes or nerdctl.
    Containerd,
    /// CRI-O.
    Crio,
}

impl Engine {
    /// The word in selectors.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd => "containerd",
            Self::Crio => "crio",
        }
    }
}

/// A container that a path belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ContainerPath<'a> {
    /// Its id: 64 hexadecimal digits in lower case.
    pub id: &'a str,
    /// Who runs it; with the cgroupfs driver of Kubernetes the path does not say.
    pub engine: Option<Engine>,
    /// The container's own cgroup: the path, or one above it.
    pub cgroup: &'a str,
}

/// A pod that a path belongs to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodPath<'a> {
    /// Its UID, with dashes.
    pub uid: String,
    /// The pod's own cgroup.
    pub cgroup: &'a str,
}

/// A unit that a path belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UnitPath<'a> {
    /// Its name.
    pub name: &'a str,
    /// The unit's own cgroup.
    pub cgroup: &'a str,
}

/// What a cgroup path belongs to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Dwellings<'a> {
    /// The systemd unit below the leading slices.
    pub unit: Option<UnitPath<'a>>,
    /// The outermost container.
    pub container: Option<ContainerPath<'a>>,
    /// The pod around it.
    pub pod: Option<PodPath<'a>>,
}

/// Reads an absolute cgroup path.
#[must_use]
pub fn dwellings(path: &str) -> Dwellings<'_> {
    let mut found = Dwellings::default();
    let Some(inner) = path.strip_prefix('/') else { return found };
    // A path out of another cgroup namespace climbs; what it passes on its way up is not its own.
    if inner.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return found;
    }
    let mut segments = Segments { path, at: 0 };
    let mut sliced = false;
    let first = loop {
        let Some(segment) = segments.next() else { return found };
        let Some(slice) = segment.strip_suffix(".slice") else { break segment };
        sliced = true;
        if let Some(uid) = pod_of_slice(slice) {
            found.pod = Some(PodPath { uid, cgroup: segments.so_far() });
        }
    };
    found.unit = unit(first).map(|name| UnitPath { name, cgroup: segments.so_far() });
    if let Some((engine, id)) = first.strip_suffix(".scope").and_then(scope) {
        let engine = Some(engine);
        found.container = Some(ContainerPath { id, engine, cgroup: segments.so_far() });
    } else if !sliced {
        plain(first, segments, &mut found);
    }
    found
}

/// The segments of a path, and how far it was read.
struct Segments<'a> {
    path: &'a str,
    at: usize,
}

impl<'a> Segments<'a> {
    fn so_far(&self) -> &'a str {
        self.path.get(..self.at).unwrap_or_default()
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.path.get(self.at..)?.strip_prefix('/')?;
        let segment = rest.split('/').next().filter(|segment| !segment.is_empty())?;
        self.at += 1 + segment.len();
        Some(segment)
    }
}

/// The systemd unit that a segment names, if it has the form of one.
fn unit(segment: &str) -> Option<&str> {
    const KINDS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];
    // systemd puts one underscore before names that would clash with the kernel's own files.
    let name = segment.strip_prefix('_').unwrap_or(segment);
    KINDS.iter().any(|kind| name.len() > kind.len() && name.ends_with(kind)).then_some(name)
}

/// A container's scope, as engines with the systemd driver name it. Monitors such as
/// `libpod-conmon-<id>` live outside of what they monitor and have no such form.
fn scope(name: &str) -> Option<(Engine, &str)> {
    const PREFIXES: [(&str, Engine); 5] = [
        ("docker-", Engine::Docker),
        ("libpod-", Engine::Podman),
        ("cri-containerd-", Engine::Containerd),
        ("nerdctl-", Engine::Containerd),
        ("crio-", Engine::Crio),
    ];
    PREFIXES.iter().find_map(|(prefix, engine)| Some((*engine, id(name.strip_prefix(prefix)?)?)))
}

/// The directories of engines that do without systemd, which stand at the root of the hierarchy.
fn plain<'a>(first: &str, mut segments: Segments<'a>, found: &mut Dwellings<'a>) {
    let (engine, name) = match first {
        "docker" => (Some(Engine::Docker), segments.next()),
        "libpod_parent" => {
            let name = segments.next().and_then(|name| name.strip_prefix("libpod-"));
            (Some(Engine::Podman), name)
        }
        "kubepods" => {
            let mut pod = segments.next();
            if matches!(pod, Some("burstable" | "besteffort")) {
                pod = segments.next();
            }
            let Some(uid) = pod.and_then(|pod| pod.strip_prefix("pod")).and_then(|u| uid(u, '-'))
            else {
                return;
            };
            found.pod = Some(PodPath { uid, cgroup: segments.so_far() });
            match segments.next() {
                Some(name) => match name.strip_prefix("crio-") {
                    Some(name) => (Some(Engine::Crio), Some(name)),
                    None => (None, Some(name)),
                },
                None => return,
            }
        }
        _ => return,
    };
    if let Some(id) = name.and_then(id) {
        found.container = Some(ContainerPath { id, engine, cgroup: segments.so_far() });
    }
}

/// A container's full id. A shorter one could be the beginning of several.
fn id(text: &str) -> Option<&str> {
    (text.len() == 64 && text.bytes().all(is_hex)).then_some(text)
}

/// The pod of a slice such as `kubepods-burstable-pod<uid>`, whose UID has underscores because a
/// dash there means a slice above. A kubelet of its own may put its name before `kubepods`.
fn pod_of_slice(slice: &str) -> Option<String> {
    let (class, text) = slice.rsplit_once("-pod")?;
    let class = ["-burstable", "-besteffort"]
        .iter()
        .find_map(|quality| class.strip_suffix(quality))
        .unwrap_or(class);
    (class == "kubepods" || class.ends_with("-kubepods")).then(|| uid(text, '_')).flatten()
}

/// A UUID with `separator` between its groups; a static pod has 32 digits without any.
fn uid(text: &str, separator: char) -> Option<String> {
    let groups: Vec<&str> = text.split(separator).collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let hex = groups.iter().all(|group| group.bytes().all(is_hex));
    let known = lengths == [8, 4, 4, 4, 12] || lengths == [32];
    (hex && known).then(|| groups.join("-"))
}

const fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}
