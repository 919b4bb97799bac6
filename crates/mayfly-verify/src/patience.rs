//! What a verifier does while the feed is silent.
//!
//! Silence has two readings: nothing happens, or nothing is heard. Heartbeats tell them apart, and
//! their absence is a fact that the operator decides upon beforehand, not the verifier in the moment.

use std::time::Duration;

/// The choice: how long silence is borne, and what follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Patience {
    /// Refuse everybody once the feed has been silent for `after`.
    Closed {
        /// Longest silence that is taken for calm.
        after: Duration,
    },
    /// Say so in the log after `after`, go on for `then`, and refuse everybody after that. Whoever
    /// ended in between is accepted for so long: the price of going on.
    Grace {
        /// Longest silence that is taken for calm.
        after: Duration,
        /// How much longer what was known last is relied on.
        then: Duration,
    },
}

impl Default for Patience {
    /// Three heartbeats may be lost.
    fn default() -> Self {
        Self::Closed { after: Duration::from_secs(3) }
    }
}

/// How well a verifier sees, judged by the length of the silence.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Sight {
    /// The feed speaks.
    Clear,
    /// The feed is silent, and the operator has allowed to go on for a while.
    Grace,
    /// Who has ended is not known: nobody is accepted.
    Dark,
}

/// How much is lost if an ended task is believed for a little longer.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Tier {
    /// Reading what is not secret.
    Low,
    /// The usual.
    Medium,
    /// What cannot be undone.
    High,
}

/// A patience for each tier.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tiers {
    /// Of [`Tier::Low`].
    pub low: Patience,
    /// Of [`Tier::Medium`].
    pub medium: Patience,
    /// Of [`Tier::High`].
    pub high: Patience,
}

impl Default for Tiers {
    /// High risk waits for one second and medium for three; low risk goes on for a minute more.
    fn default() -> Self {
        Self {
            low: Patience::Grace { after: Duration::from_secs(3), then: Duration::from_secs(60) },
            medium: Patience::default(),
            high: Patience::Closed { after: Duration::from_secs(1) },
        }
    }
}

impl Tiers {
    /// The patience of a tier, for a [`Party`](crate::Party) or a [`CheckLayer`](crate::CheckLayer).
    #[must_use]
    pub const fn of(&self, tier: Tier) -> Patience {
        match tier {
            Tier::Low => self.low,
            Tier::Medium => self.medium,
            Tier::High => self.high,
        }
    }

    /// The patience for the one [`Follower`](crate::Follower) that serves all tiers: it asks for the
    /// heartbeats of the least patient, and gives up with the most patient.
    #[must_use]
    pub fn together(&self) -> Patience {
        let all = [self.low, self.medium, self.high];
        let after = all.iter().map(|one| one.after()).min().unwrap_or_default();
        let limit = all.iter().map(|one| one.limit()).max().unwrap_or_default();
        Patience::Grace { after, then: limit.saturating_sub(after) }
    }
}

impl Patience {
    /// What a silence of this length means.
    #[must_use]
    pub fn sight(self, silence: Duration) -> Sight {
        if silence < self.after() {
            Sight::Clear
        } else if silence < self.limit() {
            Sight::Grace
        } else {
            Sight::Dark
        }
    }

    /// The longest silence that is taken for calm.
    #[must_use]
    pub const fn after(self) -> Duration {
        match self {
            Self::Closed { after } | Self::Grace { after, .. } => after,
        }
    }

    /// The silence that ends everything.
    #[must_use]
    pub const fn limit(self) -> Duration {
        match self {
            Self::Closed { after } => after,
            Self::Grace { after, then } => after.saturating_add(then),
        }
    }

    /// The heartbeat to ask for: three of them fit into the silence that is taken for calm.
    pub(crate) fn heartbeat_ms(self) -> u32 {
        u32::try_from(self.after().as_millis() / 3).unwrap_or(u32::MAX).clamp(100, 60_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn closed_patience_knows_no_grace() {
        let closed = Patience::Closed { after: SECOND };
        assert_eq!(closed.sight(Duration::ZERO), Sight::Clear);
        assert_eq!(closed.sight(SECOND), Sight::Dark);
    }

    #[test]
    fn grace_is_bounded() {
        let grace = Patience::Grace { after: SECOND, then: SECOND };
        assert_eq!(grace.sight(SECOND), Sight::Grace);
        assert_eq!(grace.sight(2 * SECOND), Sight::Dark);
    }

    #[test]
    fn one_follower_serves_all_tiers() {
        let tiers = Tiers::default();
        let together = tiers.together();
        assert_eq!(together.after(), tiers.of(Tier::High).after());
        assert_eq!(together.limit(), tiers.of(Tier::Low).limit());
        assert!(tiers.of(Tier::High).limit() < tiers.of(Tier::Medium).limit());
        assert_eq!(together.heartbeat_ms(), 333, "three of them within the shortest calm");
    }

    #[test]
    fn three_heartbeats_fit_into_the_calm() {
        assert_eq!(Patience::default().heartbeat_ms(), 1000);
        let hurried = Patience::Closed { after: Duration::from_millis(30) };
        assert_eq!(hurried.heartbeat_ms(), 100);
    }
}
