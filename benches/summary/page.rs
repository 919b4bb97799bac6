//! The tables of `docs/performance.md`, each between a mark with its name and the next closing mark.

use mayfly::clock;
use mayfly_core::Timestamp;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{measure::Fault, output::Found, plot::Plot, targets::Row};

const CLOSE: &str = "<!-- /bench -->";

/// Puts `text` between the marks of `name`.
pub(crate) fn put(page: &str, name: &str, text: &str) -> Result<String, Fault> {
    let open = format!("<!-- bench:{name} -->");
    let missing = || format!("docs/performance.md lacks the mark `{open}` or its end");
    let (before, rest) = page.split_once(&open).ok_or_else(missing)?;
    let (_, after) = rest.split_once(CLOSE).ok_or_else(missing)?;
    Ok(format!("{before}{open}\n{text}\n{CLOSE}{after}"))
}

/// What is aimed at, and today.
pub(crate) fn targets(rows: &[Row], found: &Found) -> String {
    let mut lines = vec![
        "| what | target | floor of this run | today | |".to_owned(),
        "|---|---|---|---|---|".to_owned(),
    ];
    for row in rows {
        let verdict = match (row.value, row.met) {
            (None, _) => "**no figure**",
            (Some(_), true) => "met",
            (Some(_), false) if row.is_out_of_reach() => "**missed**, and so does its floor",
            (Some(_), false) => "**missed**",
        };
        let (what, name, aim) = (row.target.what, row.target.name, row.target.aim);
        let (least, today) = (row.least(), row.today());
        lines.push(format!("| {what} (`{name}`) | {aim} | {least} | {today} | {verdict} |"));
    }
    lines.push(String::new());
    lines.push(circumstances(found));
    lines.join("\n")
}

/// When, on what, with which build, and beside whom.
fn circumstances(found: &Found) -> String {
    let mut said = format!("{}, `benches/run`", day(clock::now()));
    if let Some(machine) = &found.machine {
        said.push_str(&format!("; {machine}"));
    }
    said.push_str(if found.dev.is_empty() { "; release build" } else { "; " });
    if !found.dev.is_empty() {
        said.push_str(&format!("NOT a release build: {}", found.dev.join(", ")));
    }
    let busy = found.disturbed.iter().map(|(bench, share)| format!("{bench} {share:.0} %"));
    let busy: Vec<String> = busy.collect();
    if busy.is_empty() {
        said.push_str("; others used at most 10 % of the machine");
    } else {
        said.push_str(&format!("; **others used of the machine**: {}", busy.join(", ")));
    }
    if !found.silent.is_empty() {
        said.push_str(&format!("; without figures: {}", found.silent.join(", ")));
    }
    format!("{said}.")
}

fn day(now: Timestamp) -> String {
    let seconds = i64::try_from(now.0 / 1_000).unwrap_or(0);
    let date = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    date.format(&Rfc3339).unwrap_or_default().chars().take(10).collect()
}

/// Mayfly and each rival.
pub(crate) fn rivals(found: &Found) -> String {
    const MEASURES: [&str; 5] = ["per_second", "server_us", "p50_ms", "p99_ms", "created_p50_ms"];
    let value =
        |duel: &str, measure: &str, side: &str| found.value(&format!("{duel}_{measure}_{side}"));
    let suffix = "_per_second_ratio";
    let duels: Vec<&str> =
        found.of("rivals").filter_map(|(name, _)| name.strip_suffix(suffix)).collect();
    if duels.is_empty() {
        return "No rival was there in the last run.".to_owned();
    }
    let mut lines = vec![
        "| Mayfly ÷ rival (Mayfly, rival) | a second | server µs an operation | p50 ms | p99 ms | \
         created → in hand, p50 ms |"
            .to_owned(),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    for duel in duels {
        let cell = |measure| {
            let [ratio, ours, theirs] = ["ratio", "mayfly", "rival"]
                .map(|side| value(duel, measure, side).map_or_else(|| "?".to_owned(), three));
            format!("**{ratio}** ({ours}, {theirs})")
        };
        let cells = MEASURES.map(cell).join(" | ");
        lines.push(format!("| {} | {cells} |", duel.replace('_', " ")));
    }
    lines.join("\n")
}

/// Three digits that count.
fn three(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// Pictures of what grows.
pub(crate) fn plots(plots: &[Plot]) -> String {
    if plots.is_empty() {
        return "No series was told in the last run.".to_owned();
    }
    let picture = |plot: &Plot| format!("![{}](plots/{})", plot.caption, plot.file);
    plots.iter().map(picture).collect::<Vec<_>>().join("\n\n")
}
