//! The yardstick, and ratios to it.
//!
//! Absolute speed drifts with what the host's other guests do, by a fifth within the hour. A ratio of
//! two things measured a few milliseconds apart does not, so each round measures the yardstick anew
//! and the median of the rounds' ratios is what is reported.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use mayfly_sign::LeafKey;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};

use crate::measure::{Fault, quantile, say};

/// Signatures in one measurement of the yardstick.
const SIGNATURES: u32 = 200;
/// As long as the part of a certificate that is signed.
const MESSAGE: [u8; 460] = [7; 460];

/// A raw signature: P-256 and SHA-256, by the library that Mayfly signs with.
pub(crate) struct Raw {
    key: EcdsaKeyPair,
    rng: SystemRandom,
    seen: Mutex<Vec<f64>>,
}

impl Raw {
    pub(crate) fn new() -> Result<Self, Fault> {
        let rng = SystemRandom::new();
        let pkcs8 = LeafKey::generate()?.into_pkcs8();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8, &rng)
            .map_err(|_rejected| "the yardstick has no key")?;
        Ok(Self { key, rng, seen: Mutex::default() })
    }

    /// One signature.
    pub(crate) fn sign(&self) -> Result<(), Fault> {
        let signature = self.key.sign(&self.rng, std::hint::black_box(&MESSAGE));
        std::hint::black_box(signature.map_err(|_failed| "no signature")?);
        Ok(())
    }

    /// What one signature costs at this moment, in nanoseconds of processor time.
    pub(crate) fn cost(&self) -> Result<f64, Fault> {
        let before = thread_cpu_ns();
        for _ in 0..SIGNATURES {
            self.sign()?;
        }
        let cost = (thread_cpu_ns() - before) / f64::from(SIGNATURES);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(cost);
        Ok(cost)
    }

    /// The median of what was seen, in microseconds.
    pub(crate) fn typical_us(&self) -> f64 {
        quantile(&self.seen.lock().unwrap_or_else(PoisonError::into_inner), 0.5) / 1e3
    }
}

/// Ratios by name, in the order in which they came.
#[derive(Default)]
pub(crate) struct Ratios {
    order: Vec<(&'static str, &'static str)>,
    all: BTreeMap<&'static str, Vec<f64>>,
}

impl Ratios {
    /// Adds what one round found for `name`.
    pub(crate) fn add(&mut self, (name, what): (&'static str, &'static str), ratio: f64) {
        if !self.all.contains_key(name) {
            self.order.push((name, what));
        }
        self.all.entry(name).or_default().push(ratio);
    }

    /// The median over all rounds.
    pub(crate) fn median(&self, name: &str) -> f64 {
        self.all.get(name).map_or(f64::NAN, |ratios| quantile(ratios, 0.5))
    }

    pub(crate) fn tell(&self) {
        for (name, what) in &self.order {
            let ratios = self.all.get(name).map_or(&[][..], Vec::as_slice);
            let [p10, p50, p90] = [0.1, 0.5, 0.9].map(|q| quantile(ratios, q));
            say(&format!("  {what:<68} {p50:>7.2}  ({p10:.2} to {p90:.2})"));
        }
    }
}

/// Processor time of this thread: what other threads and processes do does not count.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a short run")]
pub(crate) fn thread_cpu_ns() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}
