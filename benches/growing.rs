//! How a cost grows: the points for programs, and one number for people.

use crate::{measure::say, series::series};

/// Prints the points, and the exponent of the power by which they grow: the slope of the line of least
/// squares through both logarithms. 0 is a cost that does not grow, 1 one that grows with the number.
pub(crate) fn growing(name: &str, (x, unit): (&str, &str), points: &[(f64, f64)]) -> f64 {
    series("series", name, (x, unit), points);
    let exponent = exponent(points);
    say(&format!("  {name}: grows with {x} to the power of {exponent:.2}"));
    exponent
}

fn exponent(points: &[(f64, f64)]) -> f64 {
    let known = points.iter().filter(|(n, cost)| *n > 0.0 && *cost > 0.0);
    let logs: Vec<_> = known.map(|(n, cost)| (n.ln(), cost.ln())).collect();
    let count = logs.iter().map(|_| 1.0).sum::<f64>();
    let x = logs.iter().map(|(x, _)| x).sum::<f64>() / count;
    let y = logs.iter().map(|(_, y)| y).sum::<f64>() / count;
    let along = logs.iter().map(|(px, py)| (px - x) * (py - y)).sum::<f64>();
    along / logs.iter().map(|(px, _)| (px - x).powi(2)).sum::<f64>()
}
