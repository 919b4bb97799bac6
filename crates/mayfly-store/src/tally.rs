//! What rows add up to: a digest and how many octets they are.

use ring::digest;

/// The sum of the hashes of all rows: independent of their order, so it can be kept up to date row by
/// row, and computed again from a scan.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Digest(pub(crate) [u64; 4]);

impl Digest {
    fn of(key: &[u8], value: &[u8]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&(key.len() as u64).to_le_bytes());
        context.update(key);
        context.update(value);
        let hash = context.finish();
        let mut lanes = [0; 4];
        for (lane, bytes) in lanes.iter_mut().zip(hash.as_ref().as_chunks().0) {
            *lane = u64::from_le_bytes(*bytes);
        }
        Self(lanes)
    }

    fn add(&mut self, other: Self) {
        for (lane, other) in self.0.iter_mut().zip(other.0) {
            *lane = lane.wrapping_add(other);
        }
    }

    fn subtract(&mut self, other: Self) {
        for (lane, other) in self.0.iter_mut().zip(other.0) {
            *lane = lane.wrapping_sub(other);
        }
    }
}

/// All rows but the head, added up.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Tally {
    pub(crate) digest: Digest,
    /// Keys and values.
    pub(crate) octets: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.digest.add(Digest::of(key, value));
        self.octets = self.octets.saturating_add(octets(key, value));
    }

    pub(crate) fn subtract(&mut self, key: &[u8], value: &[u8]) {
        self.digest.subtract(Digest::of(key, value));
        self.octets = self.octets.saturating_sub(octets(key, value));
    }

    pub(crate) fn join(&mut self, other: Self) {
        self.digest.add(other.digest);
        self.octets = self.octets.saturating_add(other.octets);
    }
}

const fn octets(key: &[u8], value: &[u8]) -> u64 {
    (key.len() as u64).saturating_add(value.len() as u64)
}
