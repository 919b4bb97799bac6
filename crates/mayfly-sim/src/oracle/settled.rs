//! What has to be true once everything has settled.

use mayfly_core::{
    Claim, Finding, Kind, Registrar, Serial, Showing, State, Status, TaskId, Timestamp,
};

use super::{Oracle, Promise, Violation, uphold};

type Checked = Result<(), Violation>;

impl Oracle {
    /// What a verifier has to think of a credential.
    fn status(&self, promise: &Promise) -> Status {
        let Promise { task, version, serial, .. } = *promise;
        if self.is_ended(task) || version < self.version(task) || self.is_revoked_alone(serial) {
            Status::Revoked
        } else if self.is_suspended(task) {
            Status::Suspended
        } else {
            Status::Valid
        }
    }

    fn unexpired(&self, now: Timestamp) -> impl Iterator<Item = Promise> {
        self.promises().filter(move |promise| promise.not_after > now)
    }

    /// Unexpired credentials of tasks that are still active.
    #[must_use]
    pub(crate) fn live_credentials(&self, now: Timestamp) -> usize {
        self.unexpired(now).filter(|promise| self.status(promise) == Status::Valid).count()
    }

    /// Compares what one follower says with the truth.
    ///
    /// # Errors
    /// P3, with the first credential of which the copy thinks something else.
    pub(crate) fn check_set(
        &self,
        who: &str,
        says: impl Fn(&Serial) -> Status,
        now: Timestamp,
    ) -> Checked {
        for promise in self.unexpired(now) {
            let (heard, truth) = (says(&promise.serial), self.status(&promise));
            let serial = promise.serial;
            uphold!(heard == truth, "P3", "{who} takes {serial} for {heard:?}, it is {truth:?}");
        }
        Ok(())
    }

    /// Compares the revocation list and the registrar's own opinion with the truth.
    ///
    /// # Errors
    /// P5 if the list misses a certificate or holds a good one, P1 if the opinion differs.
    pub(crate) fn check_list(&self, registrar: &Registrar, now: Timestamp) -> Checked {
        let listed: Vec<_> = registrar.revoked_certificates().map(|entry| entry.serial).collect();
        for promise in self.unexpired(now) {
            let truth = self.status(&promise);
            let serial = promise.serial;
            // A suspended certificate is listed too, on hold, until its task is released.
            let wanted = promise.kind == Kind::X509 && truth != Status::Valid;
            let there = listed.contains(&serial);
            uphold!(there == wanted, "P5", "{serial} in the list: {there}, it is {truth:?}");
            let stands = registrar.standing(promise.task, &serial).is_ok();
            uphold!(stands == (truth == Status::Valid), "P1", "{serial} stands: {stands}");
        }
        Ok(())
    }

    /// Shows every credential that has not expired, as a verifier would report it.
    ///
    /// # Errors
    /// P11 for an alarm without a cause, or a cause without an alarm.
    pub(crate) fn check_alarms(&self, registrar: &Registrar, now: Timestamp) -> Checked {
        for promise in self.unexpired(now) {
            let Promise { task, version, serial, .. } = promise;
            let wanted = if registrar.task(task).is_none() {
                Some(Finding::Orphaned)
            } else if self.is_ended(task) {
                Some(Finding::AfterEnd)
            } else if self.is_suspended(task) {
                Some(Finding::WhileSuspended)
            } else if version < self.version(task) || self.is_revoked_alone(serial) {
                Some(Finding::Stale)
            } else {
                None
            };
            let (presenter, verifier) = Default::default();
            let claim = Claim::NotToBeUsed;
            let showing = Showing { serial: Some(serial), claim, presenter, verifier };
            let found = registrar.misuse(&showing).map(|(_, finding)| finding);
            uphold!(found == wanted, "P11", "{serial} raises {found:?}, it should {wanted:?}");
        }
        Ok(())
    }

    /// Compares every task with the trees and quarantines that it is under.
    ///
    /// # Errors
    /// P1 for a task that is active and should not be, P6 for one that was lost.
    pub(crate) fn check_tasks(
        &self,
        registrar: &Registrar,
        forgotten: impl Fn(TaskId) -> bool,
    ) -> Checked {
        for id in self.tasks() {
            let line = self.line(id);
            let (ended, suspended) = (self.is_ended(id), self.is_suspended(id));
            let orphan = !ended && line.iter().any(|above| self.is_ended(*above));
            uphold!(!orphan, "P1", "{id} lives below a task that is over");
            let warded = |acknowledged: bool| {
                self.wards.iter().any(|ward| {
                    line.contains(&ward.task)
                        && (!acknowledged || (ward.acknowledged && ward.releasing.is_empty()))
                })
            };
            if !ended {
                uphold!(suspended || !warded(true), "P1", "{id} is active under a quarantine");
                let above = line.get(1).is_some_and(|parent| self.is_suspended(*parent));
                uphold!(suspended || !above, "P1", "{id} is active below a quarantined task");
                uphold!(!suspended || warded(false), "P1", "{id} is suspended by nobody");
            }
            let Some(task) = registrar.task(id) else {
                uphold!(ended || forgotten(id), "P6", "{id} is live and was lost");
                continue;
            };
            let known = match task.state {
                State::Active => (false, false),
                State::Quarantined { .. } => (false, true),
                State::Ended { .. } => (true, suspended),
            };
            uphold!(known == (ended, suspended), "P6", "{id} is {:?}", task.state);
            uphold!(task.version == self.version(id), "P6", "{id} has another version");
        }
        Ok(())
    }
}
