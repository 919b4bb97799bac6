//! The kernel's texts, in which a caller chooses some of the words.

use std::hint::black_box;

use mayfly_attest::{
    dwelling::dwellings,
    procfs::{
        parse_boot_id, parse_cgroup, parse_cgroup_mount, parse_populated, parse_stat, parse_status,
        systemd_unit,
    },
};

/// `/proc` and cgroup texts: raw, and with the input as the part that a caller may write.
pub(crate) fn procfs(input: &[u8]) {
    // Raw: whatever it is, nobody panics.
    black_box(parse_stat(input));
    black_box(parse_status(input));
    black_box(parse_cgroup_mount(input));
    black_box(parse_populated(input));
    black_box(parse_boot_id(input));
    if let Some(cgroups) = parse_cgroup(input) {
        for path in [&cgroups.unified, &cgroups.systemd, &cgroups.longest].into_iter().flatten() {
            assert!(path.starts_with('/') && !path.contains('\n'), "{path:?} is no path");
            if let Some(unit) = systemd_unit(path) {
                assert!(!unit.contains('/') && path.contains(unit), "{unit:?} is no unit");
            }
        }
    }
    a_name_moves_no_field(input);
    a_cgroup_says_only_its_own_path(input);
    a_dwelling_lies_on_its_path(input);
}

/// A process may call itself anything, also `x) S 1 …`.
fn a_name_moves_no_field(name: &[u8]) {
    let numbers: Vec<String> = (4..=52).map(|field| (field * 1000).to_string()).collect();
    let text = [b"7 (", name, b") S ", numbers.join(" ").as_bytes(), b"\n"].concat();
    let stat = parse_stat(&text).expect("a line of the kernel's form");
    assert_eq!((stat.state, stat.ppid), (b'S', 4_000));
    assert_eq!((stat.start_time, stat.exit), (22_000, 52_000));

    // In `status` the kernel writes line breaks and backslashes of the name as escapes.
    let escaped: Vec<u8> = name.iter().copied().filter(|b| !b"\n\\\0".contains(b)).collect();
    let rest = b"\nState:\tS\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \n";
    let status = parse_status(&[b"Name:\t", escaped.as_slice(), rest].concat());
    let status = status.expect("a text of the kernel's form");
    assert_eq!((status.euid, status.egid), (2, 6));
    assert_eq!(status.groups, [9, 10]);
}

/// The directory of a delegated cgroup is named by its owner, and may look like another line.
fn a_cgroup_says_only_its_own_path(name: &[u8]) {
    // The kernel writes a line break in a path as it is named; `mkdir` may put one there, and then
    // the line is cut. It must not become somebody else's path.
    let Ok(name) = std::str::from_utf8(name) else { return };
    let name: String = name.chars().filter(|c| *c != '\n' && *c != '\0').collect();
    let path = format!("/user.slice/user@1000.service/{name}");
    let cgroups = parse_cgroup(format!("0::{path}\n").as_bytes()).expect("the kernel's form");
    assert_eq!(cgroups.unified.as_deref(), Some(path.as_str()));
    assert_eq!(systemd_unit(&path), Some("user@1000.service"), "a delegate named its own unit");
}

/// Units, containers and pods lie on the path that they were read from, and what stands below them
/// changes nothing about them.
fn a_dwelling_lies_on_its_path(name: &[u8]) {
    let Ok(text) = std::str::from_utf8(name) else { return };
    let found = dwellings(text);
    let unit = found.unit.map(|unit| unit.cgroup);
    let container = found.container.map(|container| container.cgroup);
    let pod = found.pod.as_ref().map(|pod| pod.cgroup);
    for cgroup in [unit, container, pod].into_iter().flatten() {
        let below = text.strip_prefix(cgroup).expect("a part of the path");
        assert!(below.is_empty() || below.starts_with('/'), "{cgroup:?} ends within a segment");
    }
    if let Some(container) = found.container {
        let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        assert!(container.id.len() == 64 && container.id.bytes().all(hex), "no id: {container:?}");
    }
    const ID: &str = "8f1a2b3c4d5e6f708192a3b4c5d6e7f808192a3b4c5d6e7f8091a2b3c4d5e6f7";
    let tail: String = text.chars().filter(|c| *c != '\n' && *c != '\0').collect();
    for own in [format!("/docker/{ID}"), format!("/system.slice/crio-{ID}.scope")] {
        let inside = format!("{own}/{tail}");
        let container = dwellings(&inside).container;
        let climbs = tail.split('/').any(|segment| matches!(segment, "" | "." | ".."));
        assert_eq!(container.is_none(), climbs, "{inside:?}");
        assert!(container.is_none_or(|it| it.id == ID), "{inside:?} is another's");
        // A delegate that makes the same directories below its own is nobody's container.
        let delegated = format!("/user.slice/user@1000.service/{tail}{own}");
        assert_eq!(dwellings(&delegated).container, None, "{delegated:?}");
    }
}
