//! `[admission]`: how many credentials may be asked for at once.

use std::ops::RangeInclusive;

use mayfly_core::{Admission, limits};
use serde::Deserialize;

use super::{ConfigError, value};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAdmission {
    signing: Option<usize>,
    waiting: Option<usize>,
}

impl RawAdmission {
    /// Bounds that are no wider than those that were measured.
    pub(super) fn read(self) -> Result<Admission, ConfigError> {
        let usual = Admission::default();
        // Whoever has a hundred identities asks for all of them at once.
        let waiting = limits::IDENTITIES_PER_CALLER_MAX..=usual.waiting_max;
        Ok(Admission {
            signing_max: within("admission.signing", self.signing, 1..=usual.signing_max)?,
            waiting_max: within("admission.waiting", self.waiting, waiting)?,
            ..usual
        })
    }
}

fn within(
    key: &str,
    number: Option<usize>,
    bounds: RangeInclusive<usize>,
) -> Result<usize, ConfigError> {
    let number = number.unwrap_or_else(|| *bounds.end());
    let rule = || format!("has to be from {} to {}", bounds.start(), bounds.end());
    if bounds.contains(&number) { Ok(number) } else { Err(value(key, rule())) }
}
