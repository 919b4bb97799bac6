//! How a revocation list is cut into shards, so that a verifier that follows a certificate's
//! distribution point fetches a sixty-fourth of it.
//!
//! The shard follows from the serial's random part: it is known when the certificate is signed, and no
//! pattern in the order of tasks can crowd one shard. Sixty-four is where path validation by webpki
//! is fastest for lists of 100,000 entries; it looks through all shards that it was given.

use mayfly_core::Serial;

/// How many shards there are for each authority. It stands in certificates that are about, so it may
/// change only with a prefix of its own in the path.
pub const COUNT: u8 = 64;

/// The shard in which a certificate would be listed.
#[must_use]
pub fn of(serial: &Serial) -> u8 {
    serial.as_bytes().last().map_or(0, |octet| octet % COUNT)
}

/// All of them.
pub fn all() -> impl Iterator<Item = u8> {
    0..COUNT
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_core::{Place, Slot, Window};

    #[test]
    fn shards_fill_evenly_whatever_the_order_of_tasks() {
        let mut filled = [0_u32; COUNT as usize];
        // Every other slot, as if only half of the tasks asked for certificates; luck as the kernel's.
        for n in 0..64_000_u64 {
            let luck = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
            let slot = Slot(u32::try_from(2 * n).unwrap());
            let serial = Serial::new(Place { window: Window(1), slot }, luck);
            filled[usize::from(of(&serial))] += 1;
        }
        assert!(filled.iter().all(|count| (800..1200).contains(count)), "{filled:?}");
        assert_eq!(all().count(), filled.len());
    }
}
