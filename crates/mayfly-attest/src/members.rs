//! Who lives in a cgroup, for those who want to look at them.

use std::{fs, io, path::Path};

use crate::{cgroup::directory, error::AttestError};

/// How deep a tree is looked through.
const DEPTH_MAX: usize = 32;

/// The processes in the cgroup `path` and below it, at most `most`. A cgroup that is not there has none.
///
/// # Errors
/// [`AttestError`] if the kernel does not say.
pub fn members(path: &str, most: usize) -> Result<Vec<i32>, AttestError> {
    let failed = |source| AttestError::Io { what: "cgroup.procs", source };
    let dir = directory(path).map_err(|error| failed(io::Error::other(error)))?;
    let mut found = Vec::new();
    gather(&dir, (DEPTH_MAX, most), &mut found).map_err(failed)?;
    Ok(found)
}

fn gather(dir: &Path, (depth_left, most): (usize, usize), found: &mut Vec<i32>) -> io::Result<()> {
    let text = match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let room = most.saturating_sub(found.len());
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).take(room));
    if depth_left == 0 || found.len() >= most {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            gather(&entry.path(), (depth_left - 1, most), found)?;
        }
    }
    Ok(())
}
