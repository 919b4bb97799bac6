//! What operators order of the authorities, carried out between two things that the clock wants.

use mayfly_core::{Author, Denial, Event, Kind};
use mayfly_serve::office::Refusal;
use mayfly_sign::{AuthorityOrder, OrderError, RotationStep};
use tokio::sync::oneshot;

use super::{Keeper, note};

/// Orders that may wait for the keeper.
pub const ORDERS_MAX: usize = 16;

/// One order, and whom to answer: with the number of tasks whose certificates are made anew.
#[derive(Debug)]
pub struct Order {
    /// Of certificates or of tokens.
    pub kind: Kind,
    /// What is to become of them.
    pub order: AuthorityOrder,
    /// On whose word.
    pub author: Author,
    /// Whom to answer.
    pub answer: oneshot::Sender<Result<u64, Refusal>>,
}

impl Keeper {
    /// Carries out one order; `true` if lists are as new as the authorities.
    pub(super) async fn obey(&mut self, order: Order) -> bool {
        let Order { kind, order, author, answer } = order;
        let step = match self.ring.order(kind, &order, (self.clock)()) {
            Ok(Some(step)) => step,
            Ok(None) => {
                // It is so already.
                drop(answer.send(Ok(0)));
                return true;
            }
            Err(error) => {
                drop(answer.send(Err(refusal(error))));
                return true;
            }
        };
        // Whoever is told of a successor has to hear of it before the first certificate that it signs.
        self.publish();
        self.keys.replace(self.ring.signer());
        self.authorities.send_replace(self.ring.authorities());
        let tasks = self.distrust(&step).await;
        let (what, mut detail) = note(&step);
        tracing::info!(what, detail, by = author.by, "authority");
        for (before, word) in [(", by ", &author.by), (": ", &author.why)] {
            if !word.is_empty() {
                detail.extend([before, word]);
            }
        }
        self.inbox.tell(Event::NoteAsked { what: what.to_owned(), detail }).await;
        let renewed = self.renew_for(&step).await;
        // The operator may have left.
        drop(answer.send(Ok(tasks)));
        renewed
    }

    /// Makes anew what the authority of `step` has signed, if it is trusted no more, and says for how
    /// many tasks. Certificates of other authorities stay as they are.
    async fn distrust(&self, step: &RotationStep) -> u64 {
        let id = match step {
            RotationStep::Tainted(Kind::X509, id) | RotationStep::Revoked(Kind::X509, id) => id,
            // Tokens are fetched for one use, and nobody is sent another.
            RotationStep::Tainted(Kind::Jwt, _)
            | RotationStep::Revoked(Kind::Jwt, _)
            | RotationStep::Prepared(..)
            | RotationStep::Activated(..)
            | RotationStep::Retired(..) => return 0,
        };
        let (dropped, good) = self.svids.distrust(id);
        // Whoever is not known to hold a good one looks again: certificates that were being signed, and
        // those that were not kept for want of room, are among these.
        self.inbox.wake_all_but(good).await;
        dropped
    }

    /// A successor needs revocation lists of its own before it signs, so its maker waits for them; the
    /// list of one that is withdrawn may stay a moment longer.
    async fn renew_for(&mut self, step: &RotationStep) -> bool {
        match step {
            RotationStep::Prepared(..) => {
                self.signed.pace.ready().await;
                self.renew_lists().await
            }
            RotationStep::Tainted(..) => true,
            RotationStep::Activated(..) | RotationStep::Retired(..) | RotationStep::Revoked(..) => {
                false
            }
        }
    }
}

fn refusal(error: OrderError) -> Refusal {
    match error {
        OrderError::Denied(denial) => denial.into(),
        OrderError::Failed(error) => {
            tracing::error!(%error, "an authority could not be changed");
            Refusal { denial: Denial::SigningFailed, detail: error.to_string() }
        }
    }
}
