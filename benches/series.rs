//! Numbers for programs that draw them.

use crate::measure::say;

/// Prints `WORD {"name":…,"x":…,"unit":…,"points":[[n,cost],…]}`. The word is `series` where a cost is shown to grow
/// with a number, and `course` for what was seen as time went by.
pub(crate) fn series(word: &str, name: &str, (x, unit): (&str, &str), points: &[(f64, f64)]) {
    let points = points.iter().map(|(n, cost)| format!("[{n},{cost:.6}]")).collect::<Vec<_>>();
    let points = points.join(",");
    say(&format!(r#"{word} {{"name":"{name}","x":"{x}","unit":"{unit}","points":[{points}]}}"#));
}
