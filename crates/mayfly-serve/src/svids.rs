//! What the Workload API says, and the Broker API in other words: certificates renewed in time,
//! tokens and bundles.

use std::sync::Arc;

use mayfly_core::{Denial, SpiffeId};
use mayfly_proto::spiffe::workload::{JwtsvidResponse, X509svidResponse};
use prost::Message;
use tokio::sync::watch;

use crate::{
    desk::{Bundles, Introduced, TokenWish, X509Svid},
    limits,
    visit::{Speaker, Visit, Wake},
    wallet::{Wallet, the_end},
    wire,
};

/// `FetchX509SVID`.
pub(crate) struct SvidStream {
    visit: Visit,
    bundles: watch::Receiver<Arc<Bundles>>,
    wallet: Wallet<X509Svid>,
    said: Option<X509svidResponse>,
}

impl SvidStream {
    pub(crate) fn new(visit: Visit) -> Self {
        let bundles = visit.desk().bundles();
        Self { visit, bundles, wallet: Wallet::new(), said: None }
    }
}

impl Speaker for SvidStream {
    type Message = X509svidResponse;

    async fn next(&mut self) -> Result<X509svidResponse, Denial> {
        let Self { visit, bundles, wallet, said } = self;
        let ask = |one: &Introduced| visit.desk().x509(one);
        loop {
            if wallet.is_empty() {
                wallet.open(visit, ask).await?;
            }
            let current = Arc::clone(&bundles.borrow_and_update());
            let message = wire::x509_svids(wallet.kept(), &current)?;
            // A new revocation list alone is no news here: no client reads it, and all would reload.
            let is_news = said.as_ref().is_none_or(|said| {
                said.svids != message.svids || said.federated_bundles != message.federated_bundles
            });
            if is_news {
                visit.check()?;
                check_size(&message)?;
                *said = Some(message.clone());
                return Ok(message);
            }
            match wallet.wait(visit, bundles).await? {
                Wake::Due => wallet.renew_in_time(visit, ask).await?,
                Wake::News(_) => wallet.renew(visit, ask).await?,
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

/// A token for all of `audience` for each identity, or for the one that is `wanted`.
pub(crate) async fn tokens(
    visit: &Visit,
    audience: Vec<String>,
    wanted: Option<SpiffeId>,
) -> Result<JwtsvidResponse, Denial> {
    let keep =
        |one: &Introduced| wanted.as_ref().is_none_or(|wanted| one.identity.spiffe_id == *wanted);
    let wish = TokenWish { spiffe_id: wanted.clone(), audience: audience.clone() };
    let held = match visit.at_once(wish).await? {
        Some(held) => vec![held],
        None => visit.credentials(keep, |one| visit.desk().jwt(one, audience.clone())).await?,
    };
    visit.check()?;
    Ok(wire::jwt_svids(held))
}

/// Clients refuse a message of more than 4 MiB, and some end their watch over it for good.
fn check_size(message: &impl Message) -> Result<(), Denial> {
    if message.encoded_len() <= limits::RESPONSE_BYTES_MAX {
        return Ok(());
    }
    tracing::error!(bytes = message.encoded_len(), "a response is larger than clients accept");
    Err(Denial::Overloaded)
}
