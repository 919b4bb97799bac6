//! Readers of the kernel's texts under /proc, as pure functions over bytes.
//!
//! A process chooses its own name and, within what it was delegated, the names of its cgroups, so
//! these texts are partly written by the caller. Nothing here panics, every input has a bound, and
//! what is not understood is `None` and not a guess. The fuzz target calls these functions directly.

/// Longest text that a parser accepts: 65 536 supplementary groups fill about 720 KiB.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// The fields of `/proc/<pid>/stat` that matter here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stat {
    /// State letter, for example `S`; `Z` is a process that has ended and was not yet reaped.
    pub state: u8,
    /// The parent's PID.
    pub ppid: i32,
    /// Clock ticks between boot and the start of the process.
    pub start_time: u64,
    /// Wait status; meaningful for a zombie only, 0 where we may not see it.
    pub exit: i32,
}

/// Parses `/proc/<pid>/stat`.
///
/// The name stands in parentheses and may itself hold spaces, parentheses and digits, so the fields
/// are counted from the last `)`: everything after it is written by the kernel.
#[must_use]
pub fn parse_stat(text: &[u8]) -> Option<Stat> {
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    let end = text.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
    // Field 3, the state, is the first; see proc_pid_stat(5).
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.as_bytes();
    let &[state] = state else { return None };
    let ppid = fields.next()?.parse().ok()?;
    let start_time = fields.nth(22 - 5)?.parse().ok()?;
    let exit = fields.nth(52 - 23)?.parse().ok()?;
    Some(Stat { state, ppid, start_time, exit })
}

/// The fields of `/proc/<pid>/status` that matter here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    /// Effective user.
    pub euid: u32,
    /// Effective group.
    pub egid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Parses `/proc/<pid>/status`. The kernel escapes line breaks in the name, which comes first, so a
/// line that starts with `Uid:` is the kernel's own.
#[must_use]
pub fn parse_status(text: &[u8]) -> Option<Status> {
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    let field = |name: &[u8]| {
        let line = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(name))?;
        std::str::from_utf8(line).ok()
    };
    // Real, effective, saved, file system.
    let effective = |line: &str| line.split_ascii_whitespace().nth(1)?.parse().ok();
    let groups = field(b"Groups:")?.split_ascii_whitespace().map(str::parse);
    Some(Status {
        euid: effective(field(b"Uid:")?)?,
        egid: effective(field(b"Gid:")?)?,
        groups: groups.collect::<Result<_, _>>().ok()?,
    })
}

/// The paths in `/proc/<pid>/cgroup`, one per hierarchy.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Cgroups {
    /// The path in the v2 hierarchy. Only this one can be watched, so only this one binds tasks.
    pub unified: Option<String>,
    /// The path in the v1 hierarchy that systemd keeps for itself.
    pub systemd: Option<String>,
    /// The longest path of any hierarchy.
    pub longest: Option<String>,
}

impl Cgroups {
    /// The path that says most: v2, else systemd's, else the longest.
    ///
    /// A hierarchy in which the process sits at the root says nothing. On hybrid machines that is
    /// the usual state of v2, while the real path is in a v1 hierarchy.
    #[must_use]
    pub fn telling(&self) -> Option<&str> {
        let told = |path: &&str| *path != "/";
        let unified = self.unified.as_deref();
        let systemd = self.systemd.as_deref();
        unified.filter(told).or_else(|| systemd.filter(told)).or(self.longest.as_deref())
    }
}

/// Parses `/proc/<pid>/cgroup`: lines of `hierarchy:controllers:path`.
#[must_use]
pub fn parse_cgroup(text: &[u8]) -> Option<Cgroups> {
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    let mut found = Cgroups::default();
    for line in text.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let Ok(line) = std::str::from_utf8(line) else {
            continue;
        };
        let mut parts = line.splitn(3, ':');
        let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        if !path.starts_with('/') {
            return None;
        }
        if id == "0" && controllers.is_empty() {
            found.unified = Some(path.into());
        } else if controllers == "name=systemd" {
            found.systemd = Some(path.into());
        }
        if found.longest.as_ref().is_none_or(|longest| longest.len() < path.len()) {
            found.longest = Some(path.into());
        }
    }
    Some(found)
}

/// The systemd unit that a cgroup path belongs to: what follows the leading slices.
///
/// Only the first unit counts. Below it the tree may be delegated, and whoever it is delegated to
/// can make a directory called `nginx.service`.
#[must_use]
pub fn systemd_unit(path: &str) -> Option<&str> {
    const KINDS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];
    let mut segments = path.strip_prefix('/')?.split('/');
    let unit = segments.find(|segment| !segment.ends_with(".slice"))?;
    // systemd puts one underscore before names that would clash with the kernel's own files.
    let unit = unit.strip_prefix('_').unwrap_or(unit);
    KINDS.iter().any(|kind| unit.len() > kind.len() && unit.ends_with(kind)).then_some(unit)
}

/// Where a cgroup v2 hierarchy is mounted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CgroupMount {
    /// The part of the hierarchy that is mounted, `/` for all of it.
    pub root: String,
    /// The directory where it appears.
    pub point: String,
}

/// Finds the first cgroup v2 mount in `/proc/self/mountinfo`.
#[must_use]
pub fn parse_cgroup_mount(text: &[u8]) -> Option<CgroupMount> {
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    text.split(|b| *b == b'\n').find_map(|line| {
        let (mount, kind) = std::str::from_utf8(line).ok()?.split_once(" - ")?;
        if kind.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        Some(CgroupMount { root: unescape(fields.next()?)?, point: unescape(fields.next()?)? })
    })
}

/// Undoes the kernel's `\040` for the characters that would break a line into the wrong fields.
fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(3)?;
        out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()?);
        rest = tail;
    }
    String::from_utf8(out).ok()
}

/// Whether `cgroup.events` says that a process lives in the cgroup or below it.
#[must_use]
pub fn parse_populated(text: &[u8]) -> Option<bool> {
    text.split(|b| *b == b'\n').find_map(|line| match line.strip_prefix(b"populated ")? {
        b"0" => Some(false),
        b"1" => Some(true),
        _ => None,
    })
}

/// Parses a boot id, a UUID in its usual form.
#[must_use]
pub fn parse_boot_id(text: &[u8]) -> Option<[u8; 16]> {
    let text = std::str::from_utf8(text).ok()?.trim_end();
    if text.len() != 36 || !text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        return None;
    }
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 {
        return None;
    }
    u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
}
