//! Tables for people, JSON and YAML for programs.

use std::{
    io::{ErrorKind, IsTerminal as _, Write as _},
    sync::atomic::{AtomicBool, Ordering},
};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use mayfly_core::Timestamp;
use mayfly_proto::mayfly::v1 as wire;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Output, complain, yaml};

/// Screens are narrow; a table that wraps is not read.
pub(crate) const WIDTH: u16 = 100;
/// Whatever is this long and hexadecimal is an id.
const ID_BYTES: usize = 32;
/// Columns of short words are not broken as long as there is room.
const WORD_CHARS: usize = 12;
/// The least that a column of other words can do with.
const WORDS_CHARS_MIN: usize = 8;

/// Prints a line of a result. Whoever read may be gone, as `head` soon is, or the disk is full: a broker
/// and a sidecar go on without being heard, and everything else looks at [`is_lost`].
pub(crate) fn line(text: &str) {
    let Err(error) = writeln!(std::io::stdout().lock(), "{text}") else { return };
    let known = lost().swap(true, Ordering::Relaxed);
    if !known && error.kind() != ErrorKind::BrokenPipe {
        complain(&format!("cannot write: {error}"));
    }
}

/// Whether something could not be printed, so that what follows is of no use either.
pub(crate) fn is_lost() -> bool {
    lost().load(Ordering::Relaxed)
}

fn lost() -> &'static AtomicBool {
    static LOST: AtomicBool = AtomicBool::new(false);
    &LOST
}

/// Prints a result for programs, and says whether it was wanted like that.
pub(crate) fn data(output: Output, value: &Value) {
    match output {
        // Indented, because people pipe it into a pager as often as into a program.
        Output::Json => line(&serde_json::to_string_pretty(value).unwrap_or_default()),
        Output::Yaml | Output::Table => line(&yaml::write(value)),
    }
}

/// Prints one of many results, which may go on for ever: a line of JSON, or a YAML document.
pub(crate) fn event(output: Output, value: &Value) {
    match output {
        Output::Json => line(&value.to_string()),
        Output::Yaml | Output::Table => line(&format!("---\n{}", yaml::write(value))),
    }
}

/// Prints rows under a head.
pub(crate) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let rows: Vec<_> = rows.into_iter().collect();
    for row in lay_out(head, &rows, paints()) {
        line(&row);
    }
}

/// Whether standard output is looked at by somebody who can see colour and wants it.
pub(crate) fn paints() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    std::io::stdout().is_terminal() && !set("NO_COLOR")
}

/// Rows under a head, without rules: they copy well. A column of ids is as wide as they are, because
/// what a row is about is copied into the next command, and columns of short words if there is room;
/// what is too long elsewhere is wrapped.
pub(crate) fn lay_out(head: &[&str], rows: &[Vec<String>], paint: bool) -> Vec<String> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(WIDTH).set_header(head.iter().copied());
    table.add_rows(rows.iter().map(|row| row.iter().map(|cell| clean(cell))));
    let id = |text: &String| text.len() >= ID_BYTES && text.bytes().all(|b| b.is_ascii_hexdigit());
    let whole = |n: usize| n == 0 || rows.iter().filter_map(|row| row.get(n)).any(id);
    let width = |n: usize| {
        let cells = rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count());
        cells.chain(head.get(n).map(|name| name.chars().count())).max().unwrap_or(0)
    };
    let least = |n: usize| {
        if whole(n) || width(n) <= WORD_CHARS { width(n) } else { WORDS_CHARS_MIN }
    };
    let fits = (0..head.len()).map(|n| least(n) + 2).sum::<usize>() <= usize::from(WIDTH);
    for (n, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if whole(n) || (fits && width(n) <= WORD_CHARS) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    let mut lines: Vec<_> = table.lines().map(|row| row.trim_end().to_owned()).collect();
    let state = lines.first().and_then(|head| head.find("STATE")).filter(|_| paint);
    if let Some(at) = state {
        lines.iter_mut().for_each(|row| paint_word(row, at));
    }
    lines
}

/// Colours the state that begins at the byte `at`, after everything has its place: a terminal's escape
/// sequences have no width.
fn paint_word(row: &mut String, at: usize) {
    let Some((before, rest)) = row.split_at_checked(at) else { return };
    let end = rest.find(' ').unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    *row = format!("{before}{}{after}", coloured(word));
}

/// A state or a cause as a terminal shows it.
pub(crate) fn coloured(word: &str) -> String {
    let code = match word {
        "active" => "32",
        "quarantined" | "awaiting" => "33",
        "failed" | "revoked" | "risk" | "watcher_blind" => "31",
        "" | "STATE" => return word.to_owned(),
        _ => "2",
    };
    format!("\u{1b}[{code}m{word}\u{1b}[0m")
}

/// Fields one below the other; empty ones are left out.
pub(crate) fn fields(fields: &[(&str, String)]) {
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        // Continuation lines stand below the value, so that the names can be found at a glance.
        for (n, part) in wrap(&clean(value), usize::from(WIDTH) - 13).iter().enumerate() {
            line(&format!("{:<12} {part}", if n == 0 { name } else { "" }));
        }
    }
}

/// Text of strangers as a screen may show it: an intent must not move the cursor.
pub(crate) fn clean(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// Breaks text between words so that no line is longer than `width`, unless a single word is.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut();
        match last {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) | None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Text that fits into `width`, with an ellipsis where it was longer.
pub(crate) fn shortened(text: &str, width: usize) -> String {
    let text = clean(text);
    if text.chars().count() <= width {
        return text;
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// `1 task`, `2 tasks`.
pub(crate) fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A scope as data. A dimension without bound is null; an empty one permits nothing.
pub(crate) fn scope(scope: wire::Scope) -> Value {
    let names = |names: Option<wire::Names>| names.map(|names| names.names);
    json!({
        "actions": names(scope.actions),
        "resources": names(scope.resources),
        "audiences": names(scope.audiences),
        "tools": names(scope.tools),
    })
}

/// A budget as data; what is not counted is null.
pub(crate) fn budget(budget: wire::Budget) -> Value {
    json!({
        "issuances": budget.issuances,
        "per_minute": budget.per_minute,
        "attempts": budget.attempts,
    })
}

/// How far a task may delegate.
pub(crate) fn reach(reach: Option<wire::Reach>) -> Value {
    reach.map_or(Value::Null, |reach| json!({ "depth": reach.depth, "children": reach.children }))
}

/// An instant as RFC 3339, to the second; empty for none.
pub(crate) fn instant(ms: u64) -> String {
    let seconds = i64::try_from(Timestamp(ms).seconds()).unwrap_or(i64::MAX);
    let at = OffsetDateTime::from_unix_timestamp(seconds).ok().filter(|_| ms != 0);
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

/// A span in its two largest units, for people.
pub(crate) fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

pub(crate) fn maybe(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { json!(text) }
}

pub(crate) fn maybe_instant(ms: u64) -> Value {
    maybe(&instant(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_the_screen_and_breaks_no_id() {
        let (task, long) = ("0123456789abcdef".repeat(2), "word ".repeat(60));
        let rows = [vec![task.clone(), "active".to_owned(), task.clone(), long.clone(), long]];
        let lines = lay_out(&["TASK", "STATE", "PARENT", "INTENT", "REASON"], &rows, false);
        assert!(lines.iter().all(|line| line.chars().count() <= usize::from(WIDTH)), "{lines:#?}");
        assert_eq!(lines.iter().filter(|line| line.matches(&task).count() == 2).count(), 1);
    }

    #[test]
    fn short_words_are_broken_only_where_there_is_no_room() {
        let words = ["quarantined", "errand", "team:night", "its own socket", "10m10s", "0"];
        let mut row = vec!["0123456789abcdef".repeat(2)];
        row.extend(words.map(str::to_owned));
        let head = ["TASK", "STATE", "PROFILE", "OWNER", "HELD BY", "AGE", "CREDENTIALS"];
        let lines = lay_out(&head, &[row], false);
        assert!(lines.iter().any(|line| line.ends_with("CREDENTIALS")), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("quarantined")), "{lines:#?}");
        let crowded = lay_out(&["N"; 12], &[vec!["quarantined".to_owned(); 12]], false);
        assert!(crowded.iter().all(|line| line.chars().count() <= usize::from(WIDTH)));
    }

    #[test]
    fn colour_takes_no_room_and_control_characters_are_shown_as_such() {
        let rows = [vec!["a".to_owned(), "active".to_owned(), "x\u{1b}[2Jy".to_owned()]];
        let plain = lay_out(&["TASK", "STATE", "INTENT"], &rows, false);
        let painted = lay_out(&["TASK", "STATE", "INTENT"], &rows, true);
        let bare: Vec<_> = painted
            .iter()
            .map(|line| line.replace("\u{1b}[32m", "").replace("\u{1b}[0m", ""))
            .collect();
        assert_eq!(plain, bare);
        assert_ne!(plain, painted);
        assert!(!plain.concat().contains('\u{1b}'), "{plain:?}");
    }
}
