//! When whoever was turned away for want of room is to come again.
//!
//! Those who come together are turned away together, and with one hint for all they would come back
//! together. So each is told another moment, and all moments are spread evenly over the time in which a
//! full queue is worked off.

use std::sync::atomic::{AtomicU64, Ordering};

use mayfly_core::Denial;
use tonic::{Status, metadata::MetadataValue};

use crate::limits::{RETRY_MAX, RETRY_MIN};

/// gRPC A6. Clients with a retry policy keep to it by themselves, others can read it.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// How many were told so far. One number for all callers: evenness among them is its purpose.
static TOLD: AtomicU64 = AtomicU64::new(0);

/// Adds the hint to a refusal that is nobody's fault and soon over. Where a disk or a key is missing, no
/// moment is better than another.
pub(super) fn hinted(denial: Denial, mut status: Status) -> Status {
    if denial == Denial::Overloaded {
        let wait = wait(TOLD.fetch_add(1, Ordering::Relaxed));
        status.metadata_mut().insert(PUSHBACK, MetadataValue::from(wait));
    }
    status
}

/// Milliseconds for the `nth` who is told. Multiples of the golden ratio, of which any number in a row lie
/// as far apart from each other as can be, without a memory and without luck.
fn wait(nth: u64) -> u64 {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let range = u128::from(RETRY_MAX.as_millis() - RETRY_MIN.as_millis());
    let share = (u128::from(nth.wrapping_mul(GOLDEN)) * range) >> 64;
    RETRY_MIN.as_millis() + u64::try_from(share).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_are_turned_away_together_come_back_one_after_the_other() {
        for first in [0, 12_345, u64::MAX - 700] {
            let mut waits: Vec<_> = (0..500).map(|nth| wait(first.wrapping_add(nth))).collect();
            waits.sort_unstable();
            assert!(
                waits.iter().all(|ms| (RETRY_MIN.as_millis()..RETRY_MAX.as_millis()).contains(ms))
            );
            let even = (RETRY_MAX.as_millis() - RETRY_MIN.as_millis()) / 500;
            let widest = waits.windows(2).map(|two| two[1] - two[0]).max();
            assert!(
                widest.is_some_and(|gap| gap <= 3 * even + 1),
                "{widest:?} where {even} is even"
            );
        }
    }
}
