//! Detecting the use of what should not be used (R21).

use alloc::{collections::BTreeSet, string::String};

use super::Registrar;
use crate::{
    event::Effect,
    id::TaskId,
    ledger::Serial,
    limits,
    misuse::{Claim, Finding, Showing},
    record::Fact,
    task::{State, Task},
};

/// What was testified lately, so that one credential shown a thousand times is one line.
#[derive(Debug, Default)]
pub(super) struct Seen(BTreeSet<(Option<Serial>, Finding, String)>);

impl Seen {
    /// Whether this is news, and worth a record.
    fn admits(&mut self, showing: &Showing, finding: Finding) -> bool {
        self.0.len() < limits::SHOWINGS_REMEMBERED_MAX
            && self.0.insert((showing.serial, finding, showing.presenter.clone()))
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
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
        if !self.showings.admits(&showing, finding) || !self.reports.admits(self.now) {
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
        let Some(credential) = task.credentials.iter().rev().find(|c| c.serial == *serial) else {
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
