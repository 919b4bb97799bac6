//! How a cost grows with a number, for programs that draw it.

use crate::measure::say;

/// Prints `series {"name":…,"x":…,"unit":…,"points":[[n,cost],…]}`.
pub(crate) fn series(name: &str, (x, unit): (&str, &str), points: &[(f64, f64)]) {
    let points = points.iter().map(|(n, cost)| format!("[{n},{cost:.6}]")).collect::<Vec<_>>();
    let points = points.join(",");
    say(&format!(r#"series {{"name":"{name}","x":"{x}","unit":"{unit}","points":[{points}]}}"#));
}
