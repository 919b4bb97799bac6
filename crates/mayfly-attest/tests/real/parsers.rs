//! The kernel's texts, as recorded and as nobody would write them.

use mayfly_attest::procfs::{
    Cgroups, Stat, parse_boot_id, parse_cgroup, parse_cgroup_mount, parse_populated, parse_stat,
    parse_status, systemd_unit,
};
use proptest::{collection::vec, prelude::*};

const TAIL: &str = "1 812 812 0 -1 4194560 112 0 0 0 0 0 0 0 20 0 1 0 8123456 2703360 230 \
    18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 768\n";

#[test]
fn a_name_that_imitates_the_fields_behind_it_is_seen_through() {
    let want = Stat { state: b'S', ppid: 1, start_time: 8_123_456, exit: 768 };
    for name in ["sleep", "a) R 1 (b", "(((", ")", "", ") Z 0 0 0", "x\ny) S 7", "\u{fe}"] {
        let text = format!("812 ({name}) S {TAIL}");
        assert_eq!(parse_stat(text.as_bytes()), Some(want), "{name:?}");
    }
    let raw = [b"812 (\xff\xfe) S ".as_slice(), TAIL.as_bytes()].concat();
    assert_eq!(parse_stat(&raw), Some(want));
}

#[test]
fn a_line_that_is_cut_short_is_not_guessed() {
    let text = format!("812 (a) S {TAIL}");
    for end in 0..text.len() - 4 {
        assert_eq!(parse_stat(&text.as_bytes()[..end]), None, "{end}");
    }
}

#[test]
fn our_own_stat_says_what_the_system_says() {
    let text = std::fs::read("/proc/self/stat").expect("we live");
    let stat = parse_stat(&text).expect("the kernel's form");
    assert_eq!(stat.ppid, std::os::unix::process::parent_id().cast_signed());
    assert!(stat.start_time > 0);
}

#[test]
fn a_name_cannot_bring_its_own_uid_line() {
    // The kernel writes a line break in a name as backslash and n.
    let text = b"Name:\tUid:\\nUid:\t0\t0\t0\t0\nUmask:\t0022\nState:\tS (sleeping)\n\
        Uid:\t1000\t1001\t1002\t1003\nGid:\t100\t101\t102\t103\nFDSize:\t64\nGroups:\t4 24 27 \n";
    let status = parse_status(text).expect("the kernel's form");
    assert_eq!((status.euid, status.egid), (1001, 101));
    assert_eq!(status.groups, [4, 24, 27]);
    let none = parse_status(b"Uid:\t1\t1\t1\t1\nGid:\t2\t2\t2\t2\nGroups:\t \n");
    assert_eq!(none.expect("no groups is fine").groups, [0_u32; 0]);
    assert_eq!(parse_status(b"Uid:\t1\t1\t1\t1\nGid:\t2\t2\t2\t2\n"), None);
    assert_eq!(parse_status(b"Uid:\t1\t-1\t1\t1\nGid:\t2\t2\t2\t2\nGroups:\t\n"), None);
}

#[test]
fn the_most_telling_hierarchy_names_the_cgroup() {
    let telling =
        |text: &str| parse_cgroup(text.as_bytes()).expect(text).telling().map(String::from);
    let v2 = "0::/user.slice/user-1000.slice/session-3.scope\n";
    assert_eq!(telling(v2).as_deref(), Some("/user.slice/user-1000.slice/session-3.scope"));
    let hybrid = "9:name=systemd:/system.slice/cron.service\n4:memory:/docker/abc\n0::/\n";
    assert_eq!(telling(hybrid).as_deref(), Some("/system.slice/cron.service"));
    let v1 = "4:memory:/docker/abc\n2:cpu,cpuacct:/docker\n";
    assert_eq!(telling(v1).as_deref(), Some("/docker/abc"));
    assert_eq!(telling("4:memory:/\n0::/\n").as_deref(), Some("/"));
    assert_eq!(telling("").as_deref(), None);
    let colons = parse_cgroup(b"0::/a:b:c\n").expect("a path may hold colons");
    assert_eq!(colons.unified.as_deref(), Some("/a:b:c"));
    // Tasks are bound in the hierarchy that is watched, whatever is named alike in another.
    let named = parse_cgroup(b"1:name=systemd:/mayfly/t1\n0::/\n").expect("the kernel's form");
    assert_eq!(named.unified.as_deref(), Some("/"));
    assert_eq!(parse_cgroup(b"0::relative\n"), None);
    assert_eq!(parse_cgroup(b"no colons\n"), None);
    assert_eq!(parse_cgroup(b"\n"), Some(Cgroups::default()));
}

#[test]
fn only_the_first_unit_counts() {
    for (path, unit) in [
        ("/system.slice/nginx.service", Some("nginx.service")),
        ("/system.slice/system-getty.slice/getty@tty1.service", Some("getty@tty1.service")),
        ("/init.scope", Some("init.scope")),
        ("/system.slice/_cpu.service", Some("cpu.service")),
        // A user's own manager is delegated a tree in which it names things as it likes.
        ("/user.slice/user-1.slice/user@1.service/app.slice/nginx.service", Some("user@1.service")),
        ("/system.slice/evil.service/system.slice/nginx.service", Some("evil.service")),
        ("/docker/abc/system.slice/nginx.service", None),
        ("/../nginx.service", None),
        ("/system.slice", None),
        ("/system.slice/.service", None),
        ("/", None),
        ("", None),
    ] {
        assert_eq!(systemd_unit(path), unit, "{path}");
    }
}

#[test]
fn the_v2_mount_is_found_among_the_others() {
    let text = b"31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
        41 31 0:38 /docker/x /sys/fs/a\\040b rw,relatime shared:4 master:1 - cgroup2 cgroup2 rw\n";
    let mount = parse_cgroup_mount(text).expect("there is one");
    assert_eq!((mount.root.as_str(), mount.point.as_str()), ("/docker/x", "/sys/fs/a b"));
    assert_eq!(parse_cgroup_mount(b"41 31 0:38 / /bad\\9 rw - cgroup2 cgroup2 rw\n"), None);
    assert_eq!(parse_cgroup_mount(b"1 2 3 / /x rw - ext4 cgroup2 rw\n"), None);
}

#[test]
fn small_files_are_read_strictly() {
    assert_eq!(parse_populated(b"populated 1\nfrozen 0\n"), Some(true));
    assert_eq!(parse_populated(b"populated 0\nfrozen 0\n"), Some(false));
    assert_eq!(parse_populated(b"populated 10\n"), None);
    assert_eq!(parse_populated(b""), None);
    let id = parse_boot_id(b"00010203-0405-0607-0809-0a0b0c0d0e0f\n").expect("a boot id");
    assert_eq!(id, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    assert_eq!(parse_boot_id(b"00010203-0405-0607-0809-0a0b0c0d0e0"), None);
    assert_eq!(parse_boot_id(b"+0010203-0405-0607-0809-0a0b0c0d0e0f"), None);
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(text in vec(any::<u8>(), 0..2_000)) {
        parse_all(&text);
    }

    #[test]
    fn no_near_miss_makes_a_parser_panic(
        text in "([0-9]{0,20}|[()\\\\:/ \n\t-]|Uid:|Gid:|Groups:|0::|cgroup2| - |populated |é){0,80}"
    ) {
        parse_all(text.as_bytes());
        let unit = systemd_unit(&text);
        prop_assert!(unit.is_none_or(|unit| !unit.contains('/') && text.contains(unit)));
    }

    #[test]
    fn every_name_leaves_the_fields_alone(name in vec(any::<u8>(), 0..64)) {
        let text = [b"7 (".as_slice(), &name, b") Z ", TAIL.as_bytes()].concat();
        let stat = parse_stat(&text).expect("the fields are intact");
        prop_assert_eq!((stat.state, stat.ppid, stat.exit), (b'Z', 1, 768));
    }
}

fn parse_all(text: &[u8]) {
    std::hint::black_box((parse_stat(text), parse_status(text), parse_cgroup(text)));
    std::hint::black_box((parse_cgroup_mount(text), parse_populated(text), parse_boot_id(text)));
}
