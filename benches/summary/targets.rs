//! What is aimed at. The only place that says so to a program.

use std::fmt;

use crate::output::Found;

/// One figure and its bounds.
pub(crate) struct Target {
    /// The key under which a bench reports it.
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) aim: Aim,
    /// The key of what a server with canned answers reached in the same run, where there is one.
    floor: Option<&'static str>,
    pub(crate) unit: &'static str,
    /// Digits after the point.
    digits: usize,
}

/// When it is good enough.
#[derive(Clone, Copy)]
pub(crate) enum Aim {
    AtMost(f64),
    AtLeast(f64),
    Within(f64, f64),
}

use Aim::{AtLeast, AtMost, Within};

const fn target(
    name: &'static str,
    what: &'static str,
    aim: Aim,
    (unit, digits): (&'static str, usize),
) -> Target {
    Target { name, what, aim, floor: None, unit, digits }
}

impl Target {
    const fn above(self, floor: &'static str) -> Self {
        Self { floor: Some(floor), ..self }
    }
}

const RATIO: (&str, usize) = ("ratio", 2);
const MS: (&str, usize) = ("ms", 2);

/// In the order of the table.
pub(crate) const TARGETS: [Target; 16] = [
    target("x509_grant_ratio", "X.509-SVID from a grant, key given", AtMost(1.10), RATIO),
    target("jwt_grant_ratio", "JWT-SVID from a grant", AtMost(1.05), RATIO),
    target("lint_ratio", "reading a certificate back", AtMost(0.20), RATIO),
    target("jwt_path_ratio", "JWT-SVID, whole path, 64 in flight, durable", AtMost(3.0), RATIO)
        .above("jwt_floor_ratio"),
    target("life_ratio", "a task's whole life, whole path, durable", AtMost(8.0), RATIO)
        .above("life_floor_ratio"),
    target("begin_to_svid_p50_ms", "task begun → X.509-SVID in hand, idle, p50", AtMost(1.0), MS)
        .above("floor_alone_p50_ms"),
    target("begin_to_svid_p99_ms", "the same, p99", AtMost(5.0), MS).above("floor_alone_p99_ms"),
    target(
        "begin_to_svid_p99_at_70_ms",
        "the same at 70 % of the highest rate that is held, p99",
        AtMost(20.0),
        MS,
    )
    .above("floor_p99_at_70_ms"),
    target(
        "tasks_1m_throughput_ratio",
        "throughput with a million tasks alive ÷ with few",
        AtLeast(0.90),
        RATIO,
    ),
    target("task_memory_bytes", "memory for each task that is alive", AtMost(1024.0), ("B", 0)),
    target("restart_1m_s", "restart with a million tasks alive", AtMost(10.0), ("s", 2)),
    target("end_1m_ratio", "an end with a million tasks alive ÷ with few", Within(0.8, 1.2), RATIO),
    target(
        "end_10k_credentials_ratio",
        "the end of a task of ten thousand credentials ÷ of one",
        Within(0.8, 1.2),
        RATIO,
    ),
    target("rotation_fetch_max_s", "longest fetch while authorities rotate", AtMost(1.0), ("s", 3)),
    target("binary_mb", "the program on disk, MB = 10^6", AtMost(25.0), ("MB", 1)),
    target("idle_mib", "memory of an idle broker", AtMost(20.0), ("MiB", 1)),
];

/// A target and what was found.
pub(crate) struct Row {
    pub(crate) target: &'static Target,
    /// None if no bench told it.
    pub(crate) value: Option<f64>,
    /// What the same run showed to be the least that it can be.
    pub(crate) floor: Option<f64>,
    pub(crate) met: bool,
}

impl Target {
    pub(crate) fn row(&'static self, found: &Found) -> Row {
        let value = found.value(self.name);
        let floor = self.floor.and_then(|floor| found.value(floor));
        Row { target: self, value, floor, met: value.is_some_and(|value| self.aim.is_met(value)) }
    }
}

impl Aim {
    pub(crate) fn is_met(self, value: f64) -> bool {
        match self {
            AtMost(most) => value <= most,
            AtLeast(least) => value >= least,
            Within(least, most) => (least..=most).contains(&value),
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AtMost(most) => write!(f, "≤ {most}"),
            AtLeast(least) => write!(f, "≥ {least}"),
            Within(least, most) => write!(f, "{least} … {most}"),
        }
    }
}

impl Row {
    /// What was found, with its unit.
    pub(crate) fn today(&self) -> String {
        self.value.map_or_else(|| "not measured".to_owned(), |value| self.figure(value))
    }

    /// What cannot be undercut, with its unit.
    pub(crate) fn least(&self) -> String {
        self.floor.map_or_else(String::new, |floor| self.figure(floor))
    }

    /// Whether even canned answers miss the target.
    pub(crate) fn is_out_of_reach(&self) -> bool {
        self.floor.is_some_and(|floor| !self.target.aim.is_met(floor))
    }

    fn figure(&self, value: f64) -> String {
        let digits = self.target.digits;
        let unit = if self.target.unit == "ratio" { "" } else { self.target.unit };
        format!("{value:.digits$} {unit}").trim_end().to_owned()
    }

    /// For a terminal.
    pub(crate) fn line(&self) -> String {
        let verdict = match (self.value, self.met) {
            (None, _) => "not measured",
            (Some(_), true) => "met",
            (Some(_), false) if self.is_out_of_reach() => "MISSED, and so does its floor",
            (Some(_), false) => "MISSED",
        };
        let (name, aim) = (self.target.name, self.target.aim.to_string());
        format!("{name:<30} {aim:>12} {:>12} {:>16}   {verdict}", self.least(), self.today())
    }
}

/// The unit of a figure without a target, by how its name ends.
pub(crate) fn unit_of(name: &str) -> &'static str {
    if name.ends_with("_ratio") {
        "ratio"
    } else if name.contains("_ms_") {
        "ms"
    } else if name.contains("_us_") {
        "us"
    } else {
        "1/s"
    }
}
