//! Detecting the use of what should not be used (R21).

use alloc::{collections::BTreeSet, string::String};

use super::{Meter, Registrar};
use crate::{
    event::Effect,
    id::TaskId,
    ledger::Serial,
    limits,
    misuse::{Claim, Finding, Showing},
    record::Fact,
    task::{State, Task},
    time::Timestamp,
};

/// What was testified lately, so that one credential shown a thousand times is one line, and how much
/// more may be. What the ledger proves has a bound of its own: whoever reaches the feed can invent serials
/// and presenters, and must not be able to hide a real alarm behind them.
#[derive(Debug)]
pub(super) struct Alarms {
    proven: Budget,
    claimed: Budget,
}

#[derive(Debug)]
struct Budget {
    seen: BTreeSet<(Option<Serial>, Finding, String)>,
    meter: Meter,
}

impl Alarms {
    pub(super) const fn new() -> Self {
        Self { proven: Budget::new(), claimed: Budget::new() }
    }

    pub(super) fn forget(&mut self) {
        self.proven.seen.clear();
        self.claimed.seen.clear();
    }
}

impl Budget {
    const fn new() -> Self {
        let meter = Meter::new(limits::MISUSES_JOURNALED_PER_SECOND_MAX);
        Self { seen: BTreeSet::new(), meter }
    }

    /// Whether this is news, and worth a record. What finds no room is not remembered as said.
    fn admits(&mut self, what: (Option<Serial>, Finding, String), now: Timestamp) -> bool {
        !self.seen.contains(&what)
            && self.seen.len() < limits::SHOWINGS_REMEMBERED_MAX
            && self.meter.admits(now)
            && self.seen.insert(what)
    }
}

impl Registrar {
    /// Hears what a verifier says, and testifies if there is something to it. A report is a stranger's
    /// word: it is checked against the ledger, bounded, and changes no task.
    pub(super) fn shown(&mut self, showing: Showing) {
        let too_long = |name: &String| name.len() > limits::SPIFFE_ID_BYTES_MAX;
        if self.halted
            || self.is_full()
            || [&showing.presenter, &showing.verifier].into_iter().any(too_long)
        {
            return;
        }
        let Some((task, finding)) = self.misuse(&showing) else {
            return;
        };
        let (serial, alarms) = (showing.serial, &mut self.alarms);
        let is_news = match finding {
            Finding::AfterEnd | Finding::WhileSuspended | Finding::Stale => {
                // Whoever shows it: a presenter that is made up does not make it another alarm.
                alarms.proven.admits((serial, finding, String::new()), self.now)
            }
            Finding::ByAnother | Finding::Orphaned | Finding::Unexplained => {
                alarms.claimed.admits((serial, finding, showing.presenter.clone()), self.now)
            }
        };
        if !is_news {
            return;
        }
        let Showing { serial, presenter, verifier, .. } = showing;
        self.effects.push_back(Effect::Alert { finding, task, serial });
        self.journal(Fact::Misused { finding, serial, task, presenter, verifier });
    }

    /// What there is to a report: none if the credential is in order.
    ///
    /// INVARIANT P11: a credential in the ledger that is in order raises no alarm by being called over.
    /// What the ledger cannot check is believed: that somebody else has shown it, and that a serial
    /// which was never promised was seen at all. The record names who says so.
    #[must_use]
    pub fn misuse(&self, showing: &Showing) -> Option<(Option<TaskId>, Finding)> {
        let Some(serial) = &showing.serial else {
            return Some((None, Finding::Unexplained));
        };
        let Some(task) = self.holder_of(serial) else {
            return Some((None, self.unheld(serial)));
        };
        let Some(credential) = task.credentials.find(serial) else {
            return Some((Some(task.id), Finding::Unexplained));
        };
        let finding = match (showing.claim, task.state) {
            (Claim::ByAnother, _) => Some(Finding::ByAnother),
            (Claim::NotToBeUsed, State::Ended { .. }) => Some(Finding::AfterEnd),
            (Claim::NotToBeUsed, State::Quarantined { .. }) => Some(Finding::WhileSuspended),
            (Claim::NotToBeUsed, State::Active) => {
                let stale = credential.version != task.version || credential.revoked_at.is_some();
                stale.then_some(Finding::Stale)
            }
        };
        finding.map(|finding| (Some(task.id), finding))
    }

    /// The task whose place a serial names.
    pub(super) fn holder_of(&self, serial: &Serial) -> Option<&Task> {
        self.tasks.get(self.places.get(&serial.place())?)
    }

    fn unheld(&self, serial: &Serial) -> Finding {
        let place = serial.place();
        let next = self.slots.iter().find(|(window, _)| *window == place.window);
        let was_handed_out = next.is_some_and(|(_, next)| place.slot.0 < next);
        if was_handed_out { Finding::Orphaned } else { Finding::Unexplained }
    }
}
