//! What the benches found, beside what is aimed at.
//!
//! `benches/run` runs it last. It reads what each bench printed, writes `summary.json` next to it, draws how
//! costs grow, and puts tables into `docs/performance.md`, between the marks that are there for them. With
//! `--quick` it reads the smoke runs' folder and leaves `docs/` alone. `--from FOLDER` reads another.

#[expect(dead_code, reason = "nothing is measured here")]
mod measure;
#[path = "summary/output.rs"]
mod output;
#[path = "summary/page.rs"]
mod page;
#[path = "summary/plot.rs"]
mod plot;
#[path = "summary/targets.rs"]
mod targets;

use std::{
    fs,
    path::{Path, PathBuf},
};

use measure::{Fault, is_quick, say};
use output::Found;
use serde_json::json;
use targets::{Row, TARGETS};

fn main() -> Result<(), Fault> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let quick = is_quick();
    let from = std::env::args().skip_while(|word| word != "--from").nth(1).map(PathBuf::from);
    let usual = if quick { "target/bench-quick" } else { "target/bench" };
    let from = from.unwrap_or_else(|| root.join(usual));
    let found = Found::read(&from)?;
    let rows: Vec<Row> = TARGETS.iter().map(|target| target.row(&found)).collect();
    rows.iter().for_each(|row| say(&row.line()));
    let met = rows.iter().filter(|row| row.met).count();
    fs::write(from.join("summary.json"), summary(&rows, &found)?)?;
    if !quick {
        write_docs(&root, (&rows, &found))?;
    }
    say(&format!("{{\"targets\":{},\"met\":{met}}}", rows.len()));
    Ok(())
}

/// The targets, then what was measured beside rivals, which has no target.
fn summary(rows: &[Row], found: &Found) -> Result<String, Fault> {
    let targets = rows.iter().map(|row| {
        json!({
            "name": row.target.name, "value": row.value, "target": row.target.aim.to_string(),
            "unit": row.target.unit, "met": row.met, "floor": row.floor,
        })
    });
    let rivals = found.of("rivals").map(|(name, value)| {
        json!({
            "name": name, "value": value, "target": null, "unit": targets::unit_of(name),
            "met": null,
        })
    });
    let all: Vec<_> = targets.chain(rivals).collect();
    Ok(format!("{}\n", serde_json::to_string_pretty(&all)?))
}

fn write_docs(root: &Path, (rows, found): (&[Row], &Found)) -> Result<(), Fault> {
    let folder = root.join("docs/plots");
    let mut pictures = Vec::new();
    if !found.series.is_empty() {
        fs::create_dir_all(&folder)?;
    }
    for series in &found.series {
        let plot = plot::draw(series);
        fs::write(folder.join(&plot.file), &plot.svg)?;
        pictures.push(plot);
    }
    let path = root.join("docs/performance.md");
    let mut page = fs::read_to_string(&path)?;
    page = page::put(&page, "targets", &page::targets(rows, found))?;
    page = page::put(&page, "rivals", &page::rivals(found))?;
    page = page::put(&page, "plots", &page::plots(&pictures))?;
    Ok(fs::write(path, page)?)
}
