//! How long to wait before trying again.

use std::time::Duration;

use ring::rand::{SecureRandom as _, SystemRandom};

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

    pub(crate) async fn wait(&mut self) {
        let wait = shortened(self.next);
        self.next = (self.next * 2).min(self.last);
        tokio::time::sleep(wait).await;
    }
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
