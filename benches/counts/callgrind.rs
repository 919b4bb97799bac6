//! A copy of this program under valgrind, and what it says of it.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Stdio},
};

use crate::{WORD, measure::Fault, paths::TIMES};

/// Instructions for one time along a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Counts {
    /// Everything but the next.
    pub(crate) ours: u64,
    /// Within ring: signatures, digests, random numbers. A nonce that is refused makes it vary a little,
    /// and a signature too many makes it double.
    pub(crate) ring: u64,
}

/// Whether there is something to count with.
pub(crate) fn is_here() -> bool {
    let mut asked = Command::new("valgrind");
    asked.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    asked.status().is_ok_and(|status| status.success())
}

/// Takes `path` in a copy and counts.
pub(crate) fn count(path: &str) -> Result<Counts, Fault> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("callgrind.out");
    let told = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*counted_region*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args([WORD, path])
        .stdin(Stdio::null())
        .output()?;
    if !told.status.success() {
        let said = String::from_utf8_lossy(&told.stderr);
        return Err(format!("`{path}` failed under valgrind: {said}").into());
    }
    let Counts { ours, ring } = read(&fs::read_to_string(&out)?);
    if ours == 0 {
        return Err(format!("nothing was counted on the path `{path}`").into());
    }
    Ok(Counts { ours: ours / u64::from(TIMES), ring: ring / u64::from(TIMES) })
}

/// Adds up what functions took by themselves. A line of numbers is a place and its cost; the one after `calls=`
/// is what the called took, which stands in its own lines.
fn read(text: &str) -> Counts {
    let (mut files, mut functions) = (Names::new(), Names::new());
    let (mut counts, mut in_file, mut in_function) = (Counts { ours: 0, ring: 0 }, false, false);
    let mut called = false;
    for line in text.lines() {
        let (key, rest) = line.split_once('=').unwrap_or((line, ""));
        match key {
            "fl" => in_file = known(&mut files, rest),
            "fn" => in_function = known(&mut functions, rest),
            // A place that was inlined belongs to the function that it is in.
            "fi" | "fe" | "cfi" | "cfl" => drop(known(&mut files, rest)),
            "cfn" => drop(known(&mut functions, rest)),
            "calls" => called = true,
            _numbers if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) => {
                let cost = line.split(' ').nth(1).and_then(|cost| cost.parse::<u64>().ok());
                if !std::mem::take(&mut called) {
                    let ring = in_file || in_function;
                    let part = if ring { &mut counts.ring } else { &mut counts.ours };
                    *part += cost.unwrap_or(0);
                }
            }
            _header => {}
        }
    }
    counts
}

/// Whether a name is ring's, by its number.
type Names = BTreeMap<String, bool>;

/// A name stands beside its number the first time, and is left out from then on.
fn known(names: &mut Names, told: &str) -> bool {
    match told.split_once(' ') {
        Some((number, name)) => *names.entry(number.to_owned()).or_insert_with(|| is_ring(name)),
        None => names.get(told).copied().unwrap_or(false),
    }
}

/// Its Rust is in a module of that name; its C and its assembler, whose helpers are called anything, in files
/// of its folder.
fn is_ring(name: &str) -> bool {
    name.starts_with("ring::")
        || name.starts_with("<ring::")
        || name.contains("ring_core")
        || name.contains("/ring-0.")
}
