//! Lengths of time as people write them: `5m`, `30s`, `1h30m`, `250ms`.
//!
//! Own rather than a crate's, because a security setting wants one spelling per length: units fall,
//! none comes twice, nothing is optional, and there is no month whose length is a matter of opinion.

use std::fmt::Write as _;

use mayfly_core::Span;

/// The units, longest first, with their milliseconds.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads `1h30m`: whole numbers, each with a unit of `d`, `h`, `m`, `s` or `ms`, longest first.
/// `None` if `text` is anything else or does not fit.
#[must_use]
pub fn parse(text: &str) -> Option<Span> {
    let mut rest = text;
    let mut units = UNITS.iter();
    let mut total = 0_u64;
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        // The iterator has moved past every unit that was used: a unit that comes again or out of
        // order is not found any more.
        let (_, factor) = units.find(|(name, _)| *name == unit)?;
        let part = number.parse::<u64>().ok()?.checked_mul(*factor)?;
        total = total.checked_add(part)?;
        rest = tail;
        if rest.is_empty() {
            return Some(Span(total));
        }
    }
}

/// Writes `span` so that [`parse`] reads it back: `1h30m`, and `0s` for nothing at all.
#[must_use]
pub fn format(span: Span) -> String {
    let mut rest = span.as_millis();
    let mut text = String::new();
    for (unit, factor) in UNITS {
        let number = rest / factor;
        rest %= factor;
        if number > 0 {
            // Writing to a string cannot fail.
            write!(text, "{number}{unit}").unwrap_or_default();
        }
    }
    if text.is_empty() {
        text.push_str("0s");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_read_as_people_mean_them() {
        for (text, millis) in [
            ("5m", 300_000),
            ("30s", 30_000),
            ("1h30m", 5_400_000),
            ("250ms", 250),
            ("1m1ms", 60_001),
            ("2d", 172_800_000),
            ("90m", 5_400_000),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Some(Span(millis)), "{text}");
        }
    }

    #[test]
    fn whatever_could_mean_two_things_is_not_a_duration() {
        for text in [
            "",
            "5",
            "m",
            "5 m",
            " 5m",
            "5m ",
            "-5m",
            "+5m",
            "1.5h",
            "5M",
            "5min",
            "1s1m",
            "1m1m",
            "1m30",
            "5µs",
            "٥m",
            "1w",
            "1e3s",
            "99999999999999999999s",
            "18446744073709551615d",
            "18446744073709551s9999ms",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_span_survives_being_written_down(millis: u64) {
            prop_assert_eq!(parse(&format(Span(millis))), Some(Span(millis)));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[0-9dhms .µ]{0,24}") {
            if let Some(span) = parse(&text) {
                prop_assert_eq!(parse(&format(span)), Some(span));
            }
        }
    }
}
