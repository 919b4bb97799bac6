//! Entering a cgroup moves the whole process, so this test is alone in its own.
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

use std::process::{Command, Stdio};

use mayfly_attest::{Cgroup, CgroupError, procfs::parse_cgroup};

fn cgroup_of(pid: u32) -> String {
    let text = std::fs::read(format!("/proc/{pid}/cgroup")).expect("it lives");
    parse_cgroup(&text).expect("a cgroup file").unified.expect("a v2 hierarchy")
}

#[test]
fn a_command_started_during_a_visit_is_born_in_the_cgroup() {
    let own = std::process::id();
    let cgroup = match Cgroup::create(&format!("test-{own}-visit")) {
        Ok(cgroup) => cgroup,
        Err(error @ (CgroupError::NotPermitted(_) | CgroupError::NoHierarchy)) => {
            eprintln!("SKIPPED: {error}");
            return;
        }
        Err(error) => panic!("{error:?}"),
    };
    let home = cgroup_of(own);
    let visit = cgroup.enter().expect("we may");
    let away = cgroup_of(own);
    let mut born = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat starts");
    visit.leave().expect("we may go home");
    assert_eq!((away.as_str(), cgroup_of(own)), (cgroup.path(), home.clone()));
    assert_eq!(cgroup_of(born.id()), cgroup.path());

    drop(born.stdin.take());
    born.wait().expect("it is ours");
    // A visit that is forgotten ends too.
    drop(cgroup.enter().expect("we may"));
    assert_eq!(cgroup_of(own), home);
    cgroup.remove().expect("it is empty");
}
