//! The streams of the Workload API: certificates renewed at half life, and bundles.

use std::sync::Arc;

use mayfly_core::{Closing, Denial, Span, Timestamp};
use mayfly_proto::spiffe::workload::X509svidResponse;
use prost::Message;
use tokio::sync::watch;

use crate::{
    desk::{Bundles, Introduced, X509Svid},
    limits,
    visit::{Speaker, Visit, Wake, is_passing},
    wire,
};

/// `FetchX509SVID`.
pub(crate) struct SvidStream {
    visit: Visit,
    bundles: watch::Receiver<Arc<Bundles>>,
    held: Vec<(Introduced, X509Svid)>,
    /// When the next renewal is due; nothing is held before the first.
    due: Timestamp,
    said: Option<X509svidResponse>,
}

impl SvidStream {
    pub(crate) fn new(visit: Visit) -> Self {
        let bundles = visit.desk().bundles();
        Self { visit, bundles, held: Vec::new(), due: Timestamp(0), said: None }
    }

    /// Looks, is introduced, and gets a fresh certificate for every identity.
    async fn renew(&mut self) -> Result<(), Denial> {
        let visit = &self.visit;
        self.held = visit.credentials(|_| true, |one| visit.desk().x509(one)).await?;
        // Several streams may hold the same certificate, so its own half life counts and not the
        // moment at which this stream came.
        let now = self.visit.now();
        let half = self.held.iter().map(|(_, svid)| svid.half_life()).min().unwrap_or_default();
        self.due = now.plus(pause(half.since(now)));
        Ok(())
    }

    /// Renews because it is time. What is held stays good for its other half, so a desk that is out of
    /// breath, or a lease that waits for its heartbeat, is asked again at half of what is left.
    async fn renew_in_time(&mut self) -> Result<(), Denial> {
        let Err(denial) = self.renew().await else { return Ok(()) };
        let now = self.visit.now();
        let left = self.earliest_end().since(now);
        let may_wait =
            is_passing(denial) || matches!(denial, Denial::LeaseTooShort | Denial::DeadlineNear);
        // Certificates count in whole seconds, so the last one may expire a moment before its task
        // ends. That end is what the client is to hear, and it is near.
        let ends_soon = matches!(denial, Denial::LeaseTooShort | Denial::DeadlineNear);
        if !may_wait || (left == Span(0) && !ends_soon) || self.visit.check().is_err() {
            return Err(denial);
        }
        tracing::debug!(%denial, "a renewal has to wait");
        self.due = now.plus(pause(Span(left.0 / 2)));
        Ok(())
    }

    fn earliest_end(&self) -> Timestamp {
        self.held.iter().map(|(_, svid)| svid.not_after).min().unwrap_or_default()
    }
}

/// A pause that a desk with strange ideas of lifetimes cannot turn into a busy loop.
fn pause(span: Span) -> Span {
    let least = u64::try_from(limits::RENEWAL_MIN.as_millis()).unwrap_or(u64::MAX);
    span.max(Span(least))
}

impl Speaker for SvidStream {
    type Message = X509svidResponse;

    async fn next(&mut self) -> Result<X509svidResponse, Denial> {
        loop {
            if self.held.is_empty() {
                self.renew().await?;
            }
            let bundles = Arc::clone(&self.bundles.borrow_and_update());
            let message = wire::x509_svids(&self.held, &bundles)?;
            // A new revocation list alone is no news here: no client reads it, and all would reload.
            let is_news = self.said.as_ref().is_none_or(|said| {
                said.svids != message.svids || said.federated_bundles != message.federated_bundles
            });
            if is_news {
                self.visit.check()?;
                check_size(&message)?;
                self.said = Some(message.clone());
                return Ok(message);
            }
            let who = self.held.iter_mut().map(|(one, _)| one);
            let alone = who.len() == 1;
            match self.visit.wait(who, &mut self.bundles, Some(self.due)).await? {
                Wake::Due => self.renew_in_time().await?,
                Wake::News(closing) => {
                    the_end(closing, alone)?;
                    self.renew().await?;
                }
                Wake::Bundles => {}
            }
        }
    }
}

/// What one kind of bundle stream says.
pub(crate) type Say<M> = fn(&[Introduced], &Bundles) -> Result<M, Denial>;

/// `FetchX509Bundles` and `FetchJWTBundles`.
pub(crate) struct BundleStream<M> {
    visit: Visit,
    bundles: watch::Receiver<Arc<Bundles>>,
    say: Say<M>,
    who: Vec<Introduced>,
    said: Option<M>,
}

impl<M> BundleStream<M> {
    pub(crate) fn new(visit: Visit, say: Say<M>) -> Self {
        let bundles = visit.desk().bundles();
        Self { visit, bundles, say, who: Vec::new(), said: None }
    }
}

impl<M: Message + Clone + PartialEq + 'static> Speaker for BundleStream<M> {
    type Message = M;

    async fn next(&mut self) -> Result<M, Denial> {
        loop {
            if self.who.is_empty() {
                self.who = self.visit.introduce().await?;
            }
            let bundles = Arc::clone(&self.bundles.borrow_and_update());
            let message = (self.say)(&self.who, &bundles)?;
            if self.said.as_ref() != Some(&message) {
                self.visit.check()?;
                check_size(&message)?;
                self.said = Some(message.clone());
                return Ok(message);
            }
            let alone = self.who.len() == 1;
            match self.visit.wait(self.who.iter_mut(), &mut self.bundles, None).await? {
                Wake::News(closing) => {
                    the_end(closing, alone)?;
                    self.who.clear();
                }
                Wake::Bundles => self.who.clear(),
                Wake::Due => {}
            }
        }
    }
}

/// The end of a caller's only task is the end of its stream, at once. A caller with several identities
/// is introduced again and keeps the others; what is missing from the next message is withdrawn.
fn the_end(closing: Closing, alone: bool) -> Result<(), Denial> {
    match closing {
        Closing::Ended if alone => Err(Denial::TaskEnded),
        Closing::Suspended if alone => Err(Denial::TaskQuarantined),
        Closing::Ended | Closing::Suspended | Closing::Changed => Ok(()),
    }
}

/// Clients refuse a message of more than 4 MiB, and some end their watch over it for good.
fn check_size(message: &impl Message) -> Result<(), Denial> {
    if message.encoded_len() <= limits::RESPONSE_BYTES_MAX {
        return Ok(());
    }
    tracing::error!(bytes = message.encoded_len(), "a response is larger than clients accept");
    Err(Denial::Overloaded)
}
