//! Servers that are asked by scripts of `tests/interop`, which measure the same and say it in one line.

use std::{path::PathBuf, process::Command};

use serde_json::Value;

use crate::{
    measure::{program, say},
    table::{Cell, Row},
};

/// Folder, and what is set up in it.
const SERVERS: [(&str, &str); 3] = [
    ("nginx", "nginx, `ssl_crl`, reload by `--on-renew`"),
    ("postgres", "PostgreSQL, `ssl_crl_file`, reload by `--on-renew`"),
    ("envoy", "Envoy, SPIFFE validator, lists over SDS"),
];

/// One row for each server that can be run here.
pub(crate) fn rows(passes: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    for (folder, name) in SERVERS {
        let script =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/interop").join(folder);
        let mut said = Vec::new();
        for pass in 1..=passes {
            say(&format!("{folder}: pass {pass} of {passes}"));
            let run = Command::new(script.join("run")).env("MAYFLY", program()).output();
            let Ok(run) = run else { break };
            let text = String::from_utf8_lossy(&run.stdout).into_owned();
            let figures = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            said.extend(figures.filter(|value| !refusals(value).is_empty()));
        }
        rows.push(row(name, folder, &said));
    }
    rows
}

/// One figure of a script that ends one task, or all of one that ends several.
fn refusals(said: &Value) -> Vec<f64> {
    let one = said.get("end_to_refusal_ms").and_then(Value::as_f64);
    let all = said.get("all_ms").and_then(Value::as_array);
    all.into_iter().flatten().filter_map(Value::as_f64).chain(one).collect()
}

fn row(name: &str, folder: &str, said: &[Value]) -> Row {
    let text = |keys: [&str; 2]| {
        let values =
            said.iter().filter_map(|value| keys.iter().find_map(|key| value.get(key)?.as_str()));
        let mut values: Vec<&str> = values.collect();
        values.sort_unstable();
        values.dedup();
        values.join(", or ")
    };
    let new: Vec<f64> = said.iter().flat_map(refusals).collect();
    let (new, live) = if new.is_empty() {
        let why = format!("not measured: `tests/interop/{folder}/run` gave no figure here");
        (Cell::Said(why), Cell::None)
    } else {
        let live = text(["live_connection", "live"]);
        let live = if live.is_empty() {
            Cell::None
        } else {
            Cell::Said(format!("{live} (n = {})", said.len()))
        };
        (Cell::Refused(new), live)
    };
    let (verifier, version) = (name.to_owned(), text(["version", "envoy"]));
    Row { verifier, version, token: String::new(), new, live, jwt: Cell::None }
}
