//! What benches printed: a last line of JSON, lines of series, and who else was busy.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;
use serde_json::Value;

use crate::measure::Fault;

/// Points that were told.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) x: String,
    pub(crate) unit: String,
    pub(crate) points: Vec<(f64, f64)>,
    /// It is no growth of a cost, but what was seen as time went by.
    #[serde(skip)]
    pub(crate) is_course: bool,
}

/// All that was found in a folder.
#[derive(Default)]
pub(crate) struct Found {
    /// Figures by bench.
    figures: BTreeMap<String, BTreeMap<String, f64>>,
    pub(crate) series: Vec<Series>,
    /// Benches that others disturbed, with the share of the machine that those used, at most where it ran more than once.
    pub(crate) disturbed: BTreeMap<String, f64>,
    /// Benches whose build says nothing about a release.
    pub(crate) dev: Vec<String>,
    /// What broke off or printed something else than figures.
    pub(crate) silent: Vec<String>,
    /// The machine, as the first bench describes it.
    pub(crate) machine: Option<String>,
}

impl Found {
    /// Reads `<bench>.txt` of each bench.
    pub(crate) fn read(folder: &Path) -> Result<Self, Fault> {
        let mut paths: Vec<_> =
            fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_, Fault>>()?;
        paths.retain(|path| path.extension().is_some_and(|end| end == "txt"));
        paths.sort();
        let mut found = Self::default();
        for path in paths {
            let bench = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            found.take(bench, &fs::read_to_string(&path)?);
        }
        Ok(found)
    }

    fn take(&mut self, bench: String, text: &str) {
        for line in text.lines() {
            for (word, is_course) in [("series ", false), ("course ", true)] {
                let told = line.strip_prefix(word).map(serde_json::from_str::<Series>);
                let told = told.and_then(Result::ok);
                self.series.extend(told.map(|series| Series { is_course, ..series }));
            }
            if let Some(share) = foreign(line).filter(|share| *share > 10.0) {
                let most = self.disturbed.entry(bench.clone()).or_default();
                *most = most.max(share);
            }
            if line.starts_with("DEV BUILD") {
                self.dev.push(bench.clone());
            }
            if let Some(machine) = line.strip_prefix(&format!("{bench}: ")) {
                self.machine.get_or_insert_with(|| machine.to_owned());
            }
        }
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let Ok(Value::Object(object)) = serde_json::from_str(last) else {
            self.silent.push(bench);
            return;
        };
        let numbers = object.into_iter().filter_map(|(key, value)| Some((key, value.as_f64()?)));
        self.figures.insert(bench, numbers.collect());
    }

    /// The figure of that name, whichever bench told it.
    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        self.figures.values().find_map(|figures| figures.get(name)).copied()
    }

    /// All figures of a bench.
    pub(crate) fn of(&self, bench: &str) -> impl Iterator<Item = (&String, f64)> {
        let figures = self.figures.get(bench).into_iter().flatten();
        figures.map(|(name, value)| (name, *value))
    }
}

/// The share of the machine that others used, from the line with which benches tell it.
fn foreign(line: &str) -> Option<f64> {
    let (_, rest) = line.split_once("others ")?;
    rest.split(' ').next()?.parse().ok()
}
