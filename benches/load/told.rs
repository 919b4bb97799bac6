//! The table for people, and the figures for programs.

use crate::{drive::Pass, measure::say};

#[derive(Default)]
pub(crate) struct Told {
    pub(crate) figures: Vec<(String, f64)>,
    headed: bool,
}

impl Told {
    /// A line of the table.
    pub(crate) fn line(&mut self, what: &str, pass: &Pass) {
        if !self.headed {
            self.headed = true;
            say(&format!(
                "{:<58} {:>9} {:>8} {:>8} {:>8} {:>9} {:>9}",
                "", "a second", "p50 ms", "p99 ms", "p99.9", "server us", "client us"
            ));
        }
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|q| pass.wait_ms(q));
        let cost = pass.cost;
        say(&format!(
            "{what:<58} {:>9.0} {p50:>8.3} {p99:>8.3} {p999:>8.3} {:>9.1} {:>9.1}",
            pass.per_second, cost.server_us, cost.client_us
        ));
    }

    /// Figures of one loop under names that begin with `name`. What was not measured is left out.
    pub(crate) fn keep(&mut self, name: &str, pass: &Pass) {
        for (key, value) in [
            ("per_second", pass.per_second),
            ("p50_ms", pass.wait_ms(0.5)),
            ("p99_ms", pass.wait_ms(0.99)),
            ("p999_ms", pass.wait_ms(0.999)),
            ("server_us", pass.cost.server_us),
            ("client_us", pass.cost.client_us),
        ] {
            if value.is_finite() {
                self.figure(&format!("{name}_{key}"), value);
            }
        }
    }

    pub(crate) fn figure(&mut self, name: &str, value: f64) {
        self.figures.push((name.to_owned(), value));
    }
}
