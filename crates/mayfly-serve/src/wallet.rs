//! The certificates that one stream hands out, and when they are to be renewed.

use std::sync::Arc;

use mayfly_core::{Closing, Denial, Span, Timestamp};
use tokio::sync::watch;

use crate::{
    desk::{Bundles, Introduced, Reply, X509Svid},
    limits,
    visit::{Visit, Wake, is_passing},
};

/// What a stream keeps for one identity: its certificate, or nothing where nobody asked for one.
pub(crate) trait Kept: Send {
    /// The certificate.
    fn svid(&self) -> Option<&X509Svid>;
}

impl Kept for X509Svid {
    fn svid(&self) -> Option<&X509Svid> {
        Some(self)
    }
}

impl Kept for Option<X509Svid> {
    fn svid(&self) -> Option<&X509Svid> {
        self.as_ref()
    }
}

/// See the module.
pub(crate) struct Wallet<T> {
    kept: Vec<(Introduced, T)>,
    /// When the next renewal is due; never where there is no certificate.
    due: Option<Timestamp>,
}

impl Wallet<X509Svid> {
    /// The certificate that a new task is served at once, or what [`Self::renew`] gets.
    pub(crate) async fn open(
        &mut self,
        visit: &Visit,
        ask: impl Fn(&Introduced) -> Reply<X509Svid>,
    ) -> Result<(), Denial> {
        match visit.first_x509().await? {
            Some(held) => self.keep(vec![held], visit.now()),
            None => self.renew(visit, ask).await?,
        }
        Ok(())
    }
}

impl<T: Kept> Wallet<T> {
    /// Nobody has been introduced yet.
    pub(crate) const fn new() -> Self {
        Self { kept: Vec::new(), due: None }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Every identity of the caller, the default one first.
    pub(crate) fn kept(&self) -> &[(Introduced, T)] {
        &self.kept
    }

    /// Looks, is introduced, and gets a fresh certificate for every identity.
    pub(crate) async fn renew(
        &mut self,
        visit: &Visit,
        ask: impl Fn(&Introduced) -> Reply<T>,
    ) -> Result<(), Denial> {
        let kept = visit.credentials(|_| true, ask).await?;
        self.keep(kept, visit.now());
        Ok(())
    }

    fn keep(&mut self, kept: Vec<(Introduced, T)>, now: Timestamp) {
        self.kept = kept;
        // Several streams may hold the same certificate, so its own moment counts and not the one at
        // which this stream came.
        let renew_at = self.svids().map(X509Svid::renew_at).min();
        self.due = renew_at.map(|at| now.plus(pause(at.since(now))));
    }

    /// Renews because it is time. What is held stays good for the rest of its life, so a desk that is out of
    /// breath, or a lease that waits for its heartbeat, is asked again at half of what is left.
    pub(crate) async fn renew_in_time(
        &mut self,
        visit: &Visit,
        ask: impl Fn(&Introduced) -> Reply<T>,
    ) -> Result<(), Denial> {
        let Err(denial) = self.renew(visit, ask).await else { return Ok(()) };
        let now = visit.now();
        let left = self.earliest_end().since(now);
        let may_wait =
            is_passing(denial) || matches!(denial, Denial::LeaseTooShort | Denial::DeadlineNear);
        // Certificates count in whole seconds, so the last one may expire a moment before its task
        // ends. That end is what the client is to hear, and it is near.
        let ends_soon = matches!(denial, Denial::LeaseTooShort | Denial::DeadlineNear);
        if !may_wait || (left == Span(0) && !ends_soon) || visit.check().is_err() {
            return Err(denial);
        }
        tracing::debug!(%denial, "a renewal has to wait");
        self.due = Some(now.plus(pause(Span(left.0 / 2))));
        Ok(())
    }

    /// Waits for a reason to speak again. The end of the caller's only task is an error.
    pub(crate) async fn wait(
        &mut self,
        visit: &Visit,
        bundles: &mut watch::Receiver<Arc<Bundles>>,
    ) -> Result<Wake, Denial> {
        let alone = self.kept.len() == 1;
        let who = self.kept.iter_mut().map(|(one, _)| one);
        let wake = visit.wait(who, bundles, self.due).await?;
        if let Wake::News(closing) = wake {
            the_end(closing, alone)?;
        }
        Ok(wake)
    }

    fn svids(&self) -> impl Iterator<Item = &X509Svid> {
        self.kept.iter().filter_map(|(_, kept)| kept.svid())
    }

    fn earliest_end(&self) -> Timestamp {
        self.svids().map(|svid| svid.not_after).min().unwrap_or_default()
    }
}

/// A pause that a desk with strange ideas of lifetimes cannot turn into a busy loop.
fn pause(span: Span) -> Span {
    let least = u64::try_from(limits::RENEWAL_MIN.as_millis()).unwrap_or(u64::MAX);
    span.max(Span(least))
}

/// The end of a caller's only task is the end of its stream, at once. A caller with several identities
/// is introduced again and keeps the others; what is missing from the next message is withdrawn.
pub(crate) fn the_end(closing: Closing, alone: bool) -> Result<(), Denial> {
    match closing {
        Closing::Ended if alone => Err(Denial::TaskEnded),
        Closing::Suspended if alone => Err(Denial::TaskQuarantined),
        Closing::Ended | Closing::Suspended | Closing::Changed => Ok(()),
    }
}
