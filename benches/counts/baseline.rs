//! The counts that were committed.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    callgrind::Counts,
    measure::{Fault, say},
};

/// How much more a path may take before somebody has to say that it is meant.
const GROWTH_MAX: f64 = 1.10;
/// Instructions depend on the build, so a count belongs to one. This is the one that CI makes.
const PROFILE: &str = "dev";

/// Counts by path.
#[derive(Default)]
pub(crate) struct Baseline(BTreeMap<String, Counts>);

impl Baseline {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn insert(&mut self, path: String, counts: Counts) {
        self.0.insert(path, counts);
    }

    pub(crate) fn read() -> Result<Self, Fault> {
        let text = fs::read_to_string(file())?;
        let value: Value = serde_json::from_str(&text)?;
        let paths = value.get("paths").and_then(Value::as_object).ok_or("no paths")?;
        let mut kept = Self::new();
        for (path, counts) in paths {
            let part = |name| counts.get(name).and_then(Value::as_u64).ok_or("not a count");
            kept.insert(path.clone(), Counts { ours: part("ours")?, ring: part("ring")? });
        }
        Ok(kept)
    }

    pub(crate) fn write(&self) -> Result<(), Fault> {
        if !cfg!(debug_assertions) {
            return Err("counts are kept for the dev profile: add `--profile dev`".into());
        }
        let paths: BTreeMap<&String, Value> = self
            .0
            .iter()
            .map(|(path, counts)| (path, json!({ "ours": counts.ours, "ring": counts.ring })))
            .collect();
        let whole = json!({ "profile": PROFILE, "unit": "instructions", "paths": paths });
        Ok(fs::write(file(), format!("{}\n", serde_json::to_string_pretty(&whole)?))?)
    }

    #[expect(clippy::cast_precision_loss, reason = "instructions of one path")]
    pub(crate) fn figures(&self) -> Vec<(String, f64)> {
        let parts = |(path, counts): (&String, &Counts)| {
            [
                (format!("{path}_instructions"), counts.ours as f64),
                (format!("{path}_ring_instructions"), counts.ring as f64),
            ]
        };
        self.0.iter().flat_map(parts).collect()
    }

    /// Tells how `counted` stands to what was committed; whether a path has grown.
    pub(crate) fn compare(&self, counted: &Self) -> bool {
        let held = cfg!(debug_assertions);
        if !held {
            say("another build than that of the committed counts: compared, and not held");
        }
        say(&format!(
            "{:<14} {:>12} {:>12} {:>7} {:>12} {:>12} {:>7}",
            "", "committed", "today", "", "in ring", "today", ""
        ));
        let mut broken = false;
        for (path, now) in &counted.0 {
            let Some(kept) = self.0.get(path) else {
                say(&format!("{path:<14} is not in benches/counts.json: run with `--bless`"));
                broken |= held;
                continue;
            };
            let (ours, ring) = (growth(kept.ours, now.ours), growth(kept.ring, now.ring));
            let grown = held && (ours > GROWTH_MAX || ring > GROWTH_MAX);
            broken |= grown;
            say(&format!(
                "{path:<14} {:>12} {:>12} {ours:>7.3} {:>12} {:>12} {ring:>7.3}{}",
                kept.ours,
                now.ours,
                kept.ring,
                now.ring,
                if grown { "  GROWN BY MORE THAN A TENTH" } else { "" }
            ));
        }
        if broken {
            say(
                "if that is meant: cargo bench --workspace --profile dev --bench counts -- --bless",
            );
        }
        broken
    }
}

#[expect(clippy::cast_precision_loss, reason = "instructions of one path")]
fn growth(kept: u64, now: u64) -> f64 {
    if kept == 0 && now == 0 {
        return 1.0;
    }
    now as f64 / kept as f64
}

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../benches/counts.json")
}
