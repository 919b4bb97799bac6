//! How long to wait before trying again.

use std::time::Duration;

use ring::rand::{SecureRandom as _, SystemRandom};
use tonic::Status;

/// The longest that a broker may send somebody away.
const HINT_MAX: Duration = Duration::from_secs(30);

/// Doubles from `first` to `last`, each time shortened by up to a half at random, so that a thousand
/// clients do not come back in the same instant.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, last: Duration) -> Self {
        Self { first, last, next: first }
    }

    /// It has worked: the next failure is a first one.
    pub(crate) const fn reset(&mut self) {
        self.next = self.first;
    }

    /// Waits for as long as a broker without room has asked for, and like [`Self::wait`] otherwise.
    pub(crate) async fn wait_after(&mut self, end: &Status) {
        match retry_hint(end) {
            Some(hint) => tokio::time::sleep(hint).await,
            None => self.wait().await,
        }
    }

    pub(crate) async fn wait(&mut self) {
        let wait = shortened(self.next);
        self.next = (self.next * 2).min(self.last);
        tokio::time::sleep(wait).await;
    }
}

/// How long a broker that has no room asks to wait before the next attempt: `grpc-retry-pushback-ms`, which
/// is spread over all that were turned away. Longer than half a minute is not believed.
#[must_use]
pub fn retry_hint(status: &Status) -> Option<Duration> {
    let hint = status.metadata().get("grpc-retry-pushback-ms")?.to_str().ok()?;
    let hint = Duration::from_millis(hint.parse().ok()?);
    (hint <= HINT_MAX).then_some(hint)
}

fn shortened(wait: Duration) -> Duration {
    let mut byte = [0_u8];
    // Without luck all wait the full time, which is correct and merely less polite.
    if SystemRandom::new().fill(&mut byte).is_err() {
        return wait;
    }
    let [byte] = byte;
    wait - wait.mul_f64(f64::from(byte) / 512.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_kept_to_if_it_is_one() {
        let hint = |text: &'static str| {
            let mut status = Status::unavailable("overloaded");
            status.metadata_mut().insert("grpc-retry-pushback-ms", text.parse().unwrap());
            retry_hint(&status)
        };
        assert_eq!(hint("1250"), Some(Duration::from_millis(1250)));
        assert_eq!(hint("0"), Some(Duration::ZERO));
        for odd in ["", "-1", "soon", "30001", "99999999999999999999999"] {
            assert_eq!(hint(odd), None, "{odd}");
        }
        assert_eq!(retry_hint(&Status::unavailable("gone")), None);
    }
}
