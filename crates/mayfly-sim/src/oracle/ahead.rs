//! What was promised before anybody asked, and who may be given it.

use mayfly_core::{Holder, Kind, Serial, Span, TaskId, Ticket, Timestamp, record::Fact};

use super::{Oracle, Promise, Violation, admission::luck_of, uphold};

type Checked = Result<(), Violation>;

/// Chances that came with wishes to begin, and promises that nobody was given.
#[derive(Debug, Default)]
pub(super) struct Promises {
    offered: Vec<(TaskId, u64)>,
    unused: Vec<Unused>,
}

#[derive(Clone, Copy, Debug)]
struct Unused {
    task: TaskId,
    serial: Serial,
    until: Timestamp,
}

impl Promises {
    pub(super) fn clear(&mut self) {
        self.offered.clear();
        self.unused.clear();
    }
}

impl Oracle {
    /// A wish to begin a task says that a certificate may be promised along with it.
    pub(crate) fn offers_first(&mut self, task: TaskId, luck: u64) {
        self.ahead.offered.push((task, luck));
    }

    /// Whether that promise was made ahead and is as good as new.
    pub(super) fn is_ahead(&self, serial: Serial) -> bool {
        self.ahead.unused.iter().any(|one| one.serial == serial && self.now < one.until)
    }

    /// A promise is about to be noted: for one that asks, or right behind the beginning of its task.
    pub(super) fn promised_to_somebody(&mut self, promise: Promise, at: Timestamp) -> Checked {
        let Promise { task, kind, serial, not_after, .. } = promise;
        let offer = (task, luck_of(serial));
        if !self.ahead.offered.contains(&offer) {
            if kind == Kind::X509 {
                self.ahead.unused.retain(|one| one.task != task);
            }
            let ticket = self.asked_for(serial)?;
            return self.takes_turn(ticket, serial);
        }
        self.ahead.offered.retain(|one| *one != offer);
        let Some(Fact::Began { task: begun, holder, mandate, .. }) = self.facts().next_back()
        else {
            return Err(Violation { law: "P10", what: format!("nobody asked for {serial}") });
        };
        let own = *begun == task && *holder == Holder::Socket;
        uphold!(own, "P10", "{serial} is promised ahead to nobody who has a socket");
        let counts = mandate.budget.issuances.is_some() || mandate.budget.per_minute.is_some();
        uphold!(!counts, "P13", "{serial} is promised ahead at the cost of a budget");
        let fresh = Span((not_after.0 - at.0) / 16).min(Span::from_secs(10));
        self.ahead.unused.push(Unused { task, serial, until: at.plus(fresh) });
        Ok(())
    }

    /// A signature for which nothing was promised when it was asked for.
    pub(super) fn takes_what_was_ahead(&mut self, ticket: Ticket, serial: Serial) -> Checked {
        let Some(at) = self.ahead.unused.iter().position(|one| one.serial == serial) else {
            return Ok(());
        };
        let Unused { task, until, .. } = self.ahead.unused.swap_remove(at);
        let first = self.waits_for_first(ticket, task);
        uphold!(first, "P10", "{serial} was promised to {task} ahead and is signed for another");
        uphold!(self.now < until, "P7", "{serial} was promised ahead and is no longer fresh");
        self.takes_turn(ticket, serial)
    }
}
