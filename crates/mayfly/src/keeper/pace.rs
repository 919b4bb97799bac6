//! When lists may be signed, and what they are numbered.
//!
//! After a quiet second a change is signed at once; after that, at most once a second. A verifier that
//! holds two lists tells them apart by `thisUpdate`, which counts seconds (OpenSSL goes by the order of
//! files when they are equal), so two lists never share one.

use std::time::Duration;

use mayfly_core::{Sequence, Span, Timestamp};
use tokio::time::Instant;

/// The least time between two revocation lists.
const PACE: Duration = Duration::from_secs(1);
/// The least difference between two instants on paper.
const SECOND: Span = Span::from_secs(1);
/// How far a clock may step back without the next list being dated after the last one all the same. A
/// list from the future is refused by those whose clocks are right.
const STEP_MAX: Span = Span::from_secs(60);

/// The pace of signing.
#[derive(Debug, Default)]
pub(super) struct Pace {
    next: Option<Instant>,
}

impl Pace {
    /// Waits until something may be signed.
    pub(super) async fn ready(&self) {
        if let Some(next) = self.next {
            tokio::time::sleep_until(next).await;
        }
    }

    /// Something is signed, now.
    pub(super) fn spend(&mut self) {
        self.next = Some(Instant::now() + PACE);
    }
}

/// Numbers of lists and documents. They have to rise across restarts and clock steps, so they are
/// derived from the journal's durable position, which does.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    last: u64,
    dated: Option<Timestamp>,
}

impl Numbers {
    /// Lists that may be signed without a record between them. A restart writes a record.
    const PER_POSITION: u64 = 1 << 16;

    /// The next number, and the date that goes with it.
    pub(super) fn next(&mut self, durable: Sequence, now: Timestamp) -> (u64, Timestamp) {
        self.last = (self.last + 1).max(durable.0.saturating_mul(Self::PER_POSITION));
        let now = now.floor_to_second();
        let after = self.dated.map(|dated| dated.plus(SECOND));
        let date = match after {
            Some(after) if after > now && after.since(now) <= STEP_MAX => after,
            Some(_) | None => now,
        };
        self.dated = Some(date);
        (self.last, date)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_339_123_456);

    #[test]
    fn numbers_and_dates_rise_within_a_second_and_over_small_steps_back() {
        let mut numbers = Numbers::default();
        let first = numbers.next(Sequence(7), NOW);
        assert_eq!(first, (7 << 16, NOW.floor_to_second()));
        let mut last = first;
        for at in [NOW, NOW.plus(Span(10)), NOW.minus(Span::from_secs(20)), NOW.plus(SECOND)] {
            let next = numbers.next(Sequence(7), at);
            assert!(next.0 > last.0 && next.1 > last.1, "{last:?} {next:?}");
            last = next;
        }
        let hour = Span::from_secs(3600);
        let back = numbers.next(Sequence(8), NOW.minus(hour));
        assert!(back.0 > last.0, "the number rises whatever the clock does");
        assert_eq!(back.1, NOW.minus(hour).floor_to_second(), "and nothing is from the future");
    }

    #[test]
    fn numbers_rise_across_a_restart() {
        let mut before = Numbers::default();
        let last = (0..1000).map(|_| before.next(Sequence(7), NOW).0).last().unwrap();
        // A start is a record: the durable position has risen by one at least.
        assert!(Numbers::default().next(Sequence(8), NOW).0 > last);
    }

    #[tokio::test]
    async fn the_first_change_after_a_quiet_second_does_not_wait() {
        let mut pace = Pace::default();
        let start = Instant::now();
        pace.ready().await;
        assert!(start.elapsed() < PACE / 2);
        pace.spend();
        pace.ready().await;
        assert!(start.elapsed() >= PACE);
        pace.ready().await;
        assert!(start.elapsed() < 2 * PACE, "a second that nobody used is not waited for");
    }
}
