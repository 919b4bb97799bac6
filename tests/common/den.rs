//! Cgroups of the names that engines give them, for tests on machines where they may be made.

use std::{
    fs,
    path::{Path, PathBuf},
};

use mayfly_attest::procfs::parse_cgroup_mount;

/// A cgroup that is removed at the end, with what was made above it.
#[derive(Debug)]
pub(crate) struct Den {
    path: String,
    dir: PathBuf,
    made: Vec<PathBuf>,
}

impl Den {
    /// Makes the cgroup `path`, or says why it may not be had.
    pub(crate) fn make(path: &str) -> Result<Self, String> {
        let mounts = fs::read("/proc/self/mountinfo").map_err(|error| error.to_string())?;
        let mount = parse_cgroup_mount(&mounts).ok_or("there is no cgroup v2 hierarchy")?;
        if mount.root != "/" {
            return Err("only a part of the hierarchy is mounted".to_owned());
        }
        let mut den = Self { path: path.to_owned(), dir: mount.point.into(), made: Vec::new() };
        for segment in path.split('/').skip(1) {
            den.dir.push(segment);
            match fs::create_dir(&den.dir) {
                Ok(()) => den.made.push(den.dir.clone()),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(den)
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Moves a process into it.
    pub(crate) fn place(&self, pid: u32) {
        fs::write(self.dir.join("cgroup.procs"), pid.to_string()).expect("it is ours to move");
    }

    /// Kills everybody in it, as `kill -9` of each would.
    pub(crate) fn kill(&self) {
        fs::write(self.dir.join("cgroup.kill"), "1").expect("this kernel can");
    }

    /// Removes it and makes it anew, as an engine does when it starts a container again.
    pub(crate) fn renew(&self) {
        until_removed(&self.dir);
        fs::create_dir(&self.dir).expect("its parent is there");
    }
}

impl Drop for Den {
    fn drop(&mut self) {
        self.kill();
        self.made.iter().rev().for_each(|dir| until_removed(dir));
    }
}

/// The killed leave a cgroup a moment after they were killed.
fn until_removed(dir: &Path) {
    for _ in 0..1000 {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            // A sibling may still live in it: then it is not ours to remove.
            Ok(()) | Err(_) => return,
        }
    }
}
