//! What operators may order beside the clock: the same steps earlier, and distrust.
//!
//! An authority whose key may be known to others goes in four steps. A successor is *prepared*, so that
//! everybody knows it before it signs; it is *activated*; the old one is *tainted*, upon which all that it
//! signed is made anew; and it is *revoked*: nobody believes it any more. The order is held to, because
//! each step that is left out would leave somebody without a credential that is believed.

use mayfly_core::{Denial, Kind, Timestamp};

use crate::{
    error::SignError,
    rotation::{Past, Rotates, RotationPolicy, RotationStep, Track},
};

/// What is to become of the authorities of one kind.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AuthorityOrder {
    /// Make a successor and publish it. One that is there already is the answer.
    Prepare,
    /// Let the prepared one sign; it may be named.
    Activate(Option<String>),
    /// An old one is not to be trusted for long: what it signed is to be made anew.
    Taint(String),
    /// An old one is not to be trusted at all.
    Revoke(String),
}

/// Why an order was not carried out. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// It may not be.
    #[error("{0}: {remedy}", remedy = .0.remedy())]
    Denied(Denial),
    /// It could not be.
    #[error(transparent)]
    Failed(#[from] SignError),
}

impl<A: Rotates> Track<A> {
    /// Carries `order` out. A wish that is fulfilled already takes no step.
    pub(crate) fn obey(
        &mut self,
        now: Timestamp,
        (kind, policy): (Kind, &RotationPolicy),
        order: &AuthorityOrder,
        make: impl FnOnce() -> Result<A, SignError>,
    ) -> Result<Option<RotationStep>, OrderError> {
        match order {
            AuthorityOrder::Prepare if self.prepared.is_some() => Ok(None),
            AuthorityOrder::Prepare => Ok(Some(self.prepare(kind, make()?))),
            AuthorityOrder::Activate(Some(id)) if self.active.key_id() == id => Ok(None),
            AuthorityOrder::Activate(id) => {
                let wanted = |next: &A| id.as_ref().is_none_or(|id| next.key_id() == id);
                let Some(next) = self.prepared.take_if(|next| wanted(next)) else {
                    let is_unknown = id.as_ref().is_some_and(|id| !self.knows(id));
                    let why = if is_unknown {
                        Denial::AuthorityUnknown
                    } else {
                        Denial::AuthorityNotPrepared
                    };
                    return Err(OrderError::Denied(why));
                };
                Ok(Some(self.activate(kind, next, now.plus(policy.afterlife()))))
            }
            AuthorityOrder::Taint(id) => {
                let past = self.past(id)?;
                let known = std::mem::replace(&mut past.is_tainted, true);
                Ok((!known).then(|| RotationStep::Tainted(kind, id.clone())))
            }
            AuthorityOrder::Revoke(id) => {
                self.past(id)?;
                self.old.retain(|past| past.authority.key_id() != id);
                Ok(Some(RotationStep::Revoked(kind, id.clone())))
            }
        }
    }

    fn knows(&self, id: &str) -> bool {
        self.published().any(|(authority, _)| authority.key_id() == id)
    }

    /// The one of that name that has signed and does so no more.
    fn past(&mut self, id: &str) -> Result<&mut Past<A>, OrderError> {
        let why = if self.active.key_id() == id {
            Denial::AuthorityActive
        } else if self.knows(id) {
            Denial::AuthorityNotOld
        } else {
            Denial::AuthorityUnknown
        };
        let mut old = self.old.iter_mut();
        old.find(|past| past.authority.key_id() == id).ok_or(OrderError::Denied(why))
    }
}
