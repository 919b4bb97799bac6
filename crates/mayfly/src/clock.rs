//! The only place that asks for the hour, and the only source of luck.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mayfly_core::{Span, TaskId, Timestamp};

/// The hour, for those who are handed it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// This machine's wall clock. Credentials carry wall time, so a monotonic clock would not do; the
/// registrar takes a step back for standing still.
#[must_use]
pub fn system() -> Clock {
    Arc::new(now)
}

/// The wall clock, read once.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the clock that everybody else is handed")]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A clock that shows `now` at first and never steps, whatever becomes of the hour.
#[must_use]
pub fn steady(now: Timestamp) -> Clock {
    let begun = instant();
    Arc::new(move || {
        let since = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        now.plus(Span(since))
    })
}

/// A monotonic instant, for measuring.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "measurements need a clock that never steps")]
pub fn instant() -> std::time::Instant {
    std::time::Instant::now()
}

/// How long it is from `now` to `then`, for waiting.
#[must_use]
pub const fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::from_millis(then.since(now).0)
}

/// A span of the core as the standard library's.
#[must_use]
pub const fn duration(span: Span) -> Duration {
    Duration::from_millis(span.0)
}

/// Bytes from the kernel's generator.
///
/// # Panics
/// Never in practice: the kernel's generator does not fail once it is seeded. If it did, going on
/// without luck would make guessable serials, so this stops the process instead.
#[must_use]
#[expect(clippy::expect_used, reason = "without luck no serial may be made")]
pub fn luck<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    assert!(filled.expect("the kernel gives random bytes") == N, "short read of random bytes");
    bytes
}

/// A name for a task that begins `now`: a UUID of version 7 (RFC 9562 §5.7). Names of tasks that begin one
/// after the other lie side by side in every ordered map and in the index, and 74 bits of each are luck.
#[must_use]
pub fn task_id(now: Timestamp) -> TaskId {
    let name = uuid::Builder::from_unix_timestamp_millis(now.0, &luck());
    TaskId::from_bytes(name.into_uuid().into_bytes())
}

/// Nanoseconds since the machine was started. Two processes of one machine may compare theirs.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_clock_and_are_never_the_same() {
        let at = |ms| task_id(Timestamp(ms));
        let (first, again, later) =
            (at(1_764_000_000_000), at(1_764_000_000_000), at(1_764_000_000_001));
        assert_ne!(first, again);
        assert!(first.max(again) < later);
        let name = first.to_string();
        assert!(name.starts_with("019ab697e800") && name.get(12..13) == Some("7"), "{name}");
    }
}
