//! YAML, written from JSON values.
//!
//! Every string that could be read as anything else is quoted as JSON quotes it, which YAML 1.2 takes as
//! it is; everything else is block style, because people read it.

use std::fmt::Write as _;

use serde_json::Value;

/// Writes a value as one document, without a line end after it.
pub(super) fn write(value: &Value) -> String {
    let mut text = String::new();
    node(&mut text, value, 0);
    text.truncate(text.trim_end_matches('\n').len());
    text
}

/// Writes what stands behind `key:` or `-`, or at the top.
fn node(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                indent(text, depth);
                text.push('-');
                below(text, item, depth + 1);
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            for (key, item) in fields {
                indent(text, depth);
                text.push_str(&scalar(&Value::String(key.clone())));
                text.push(':');
                below(text, item, depth + 1);
            }
        }
        Value::Array(_)
        | Value::Object(_)
        | Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_) => {
            text.push_str(&scalar(value));
            text.push('\n');
        }
    }
}

fn below(text: &mut String, value: &Value, depth: usize) {
    let block = match value {
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    };
    text.push(if block { '\n' } else { ' ' });
    node(text, value, depth);
}

fn indent(text: &mut String, depth: usize) {
    // Writing to a string cannot fail.
    write!(text, "{:1$}", "", depth * 2).unwrap_or_default();
}

fn scalar(value: &Value) -> String {
    // Empty arrays and objects, and all other scalars, are the same in both languages.
    value.as_str().filter(|word| is_plain(word)).map_or_else(|| value.to_string(), str::to_owned)
}

/// Whether a bare word is read back as this string by every reader: a letter first, nothing that YAML
/// gives a meaning, and none of the words that YAML 1.1 takes for truth or nothing.
fn is_plain(word: &str) -> bool {
    const TAKEN: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'/' | b'.');
    word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word.bytes().all(inside)
        && !TAKEN.contains(&word.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_could_be_read_as_anything_else_is_quoted() {
        let awkward = [
            "",
            " ",
            "no",
            "NO",
            "y",
            "null",
            "~",
            "1",
            "1e3",
            "0x10",
            "1_000",
            ".5",
            "-",
            "- a",
            "a: b",
            "a #b",
            "a\nb",
            "\t",
            "\"",
            "'",
            "{}",
            "[a]",
            "&a",
            "*a",
            "!a",
            "%a",
            "@a",
            "`a",
            "é",
            "\u{7f}",
            "2026-01-02T03:04:05Z",
            "spiffe://example.org/job",
            "12:30",
            "?",
            "=",
            "<<",
            "a,b",
            "\u{1b}",
        ];
        for text in awkward {
            let written = write(&json!(text));
            assert!(written.starts_with('"') && written.ends_with('"'), "{text:?}: {written}");
            assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), json!(text));
        }
        for text in ["active", "team-a", "plain-word/like.this", "deadbeef", "a1e3"] {
            assert_eq!(write(&json!(text)), text);
        }
    }

    #[test]
    fn structure_is_shown_by_indentation() {
        let value = json!({
            "empty": [[], {}],
            "list": [1, null, true, { "a": "b", "c": [2.5] }, ["x"]],
            "no": { "nested": u64::MAX },
        });
        let lines = [
            "empty:",
            "  - []",
            "  - {}",
            "list:",
            "  - 1",
            "  - null",
            "  - true",
            "  -",
            "    a: b",
            "    c:",
            "      - 2.5",
            "  -",
            "    - x",
            "\"no\":",
            "  nested: 18446744073709551615",
        ];
        assert_eq!(write(&value), lines.join("\n"));
        assert_eq!(write(&json!([])), "[]");
    }
}
