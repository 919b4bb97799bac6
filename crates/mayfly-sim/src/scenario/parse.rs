//! The text of a story, as lines.

use super::ScenarioError;
use mayfly_core::Span;

/// One line of a story.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Line {
    /// Its number, from 1.
    pub number: usize,
    /// When, counted from the beginning of the story.
    pub at: Span,
    /// What is done.
    pub verb: String,
    /// The words after the verb.
    pub words: Vec<String>,
    /// The `name=value` pairs after the verb.
    pub options: Vec<(String, String)>,
    /// What has to follow, if the line says so.
    pub expected: Option<Vec<String>>,
}

impl Line {
    /// The value of an option.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn word(&self, at: usize) -> Result<&str, String> {
        let word = self.words.get(at).map(String::as_str);
        word.ok_or_else(|| format!("`{}` needs {} words", self.verb, at + 1))
    }

    pub(super) fn span(&self, name: &str) -> Result<Option<Span>, String> {
        self.option(name).map(span).transpose()
    }
}

/// Reads a story.
///
/// # Errors
/// The first line that is not of the form `at TIME VERB WORDS => OUTCOMES`.
pub fn parse(text: &str) -> Result<Vec<Line>, ScenarioError> {
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let read =
        |(number, text)| line(number, text).map_err(|what| ScenarioError { line: number, what });
    lines.map(read).collect()
}

fn line(number: usize, text: &str) -> Result<Line, String> {
    let (said, expected) = match text.split_once("=>") {
        Some((said, expected)) => (said, Some(outcomes(expected))),
        None => (text, None),
    };
    let mut words = said.split_whitespace();
    if words.next() != Some("at") {
        return Err("it does not begin with `at`".into());
    }
    let at = span(words.next().ok_or("no time after `at`")?)?;
    let verb = words.next().ok_or("nothing is done")?.to_owned();
    let (options, words): (Vec<_>, Vec<_>) = words.partition(|word| word.contains('='));
    let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    Ok(Line {
        number,
        at,
        verb,
        words: words.into_iter().map(String::from).collect(),
        options: options.into_iter().filter_map(|word| word.split_once('=')).map(pair).collect(),
        expected,
    })
}

fn outcomes(text: &str) -> Vec<String> {
    let text = text.split('#').next().unwrap_or_default();
    let one = |part: &str| part.split_whitespace().collect::<Vec<_>>().join(" ");
    let all = text.split(',').map(one);
    all.filter(|outcome| !outcome.is_empty() && outcome != "nothing").collect()
}

/// Reads `0`, `250ms`, `3s`, `5m` or `2h`.
pub(super) fn span(text: &str) -> Result<Span, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let scale = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "" if number == "0" => Some(0),
        _ => None,
    };
    let number: Option<u64> = number.parse().ok();
    let length = number.zip(scale).and_then(|(number, scale)| number.checked_mul(scale));
    length.map(Span).ok_or_else(|| format!("`{text}` is not a time such as `250ms` or `3s`"))
}
