//! Follows the feed of a broker on another machine, over mutual TLS.
//!
//! The connection is made by SPIFFE's rules: the broker shows the SVID of its own, we show ours, and the
//! broker cuts us off when our task ends. What it cannot be judged by is the feed, which is about to be
//! heard for the first time; so whoever stole the key of a broker that is gone could still answer here.
//! It would gain nothing: what is told counts by the trust domain's seal and not by who passes it on.

use std::{fmt, sync::Arc};

use hyper_util::rt::TokioIo;
use mayfly_core::{SpiffeId, Timestamp};
use tokio::{net::TcpStream, sync::watch};
use tonic::transport::{Channel, Endpoint};

use crate::{
    authorize::Authorize,
    follower::{FollowOptions, Follower, Trust},
    jwk::JwkSets,
    patience::Patience,
    source::Held,
    tls::Party,
    view::View,
};

/// A broker elsewhere, and who we are to it.
#[derive(Clone)]
pub struct Remote {
    /// Its port for the feed: a host, by name or address, and a port.
    pub address: String,
    /// Its SPIFFE ID, exactly: `spiffe://<trust domain>/mayfly/broker`. The feed is of this trust domain,
    /// which may be another one than ours.
    pub broker: SpiffeId,
    /// Our own identities, and the bundles to know the broker by.
    pub held: watch::Receiver<Held>,
    /// The token keys that the feed is sealed with (see
    /// [`watch_jwt_bundles`](crate::WorkloadClient::watch_jwt_bundles)).
    pub keys: watch::Receiver<JwkSets>,
    /// The wall clock, for the certificates' dates.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("address", &self.address)
            .field("broker", &self.broker)
            .finish_non_exhaustive()
    }
}

impl Remote {
    /// Begins to follow. As [`Follower::open`] otherwise.
    #[must_use]
    pub fn follow(self, patience: Patience) -> Follower {
        let domain = self.broker.trust_domain().clone();
        let trust = Trust::Keys { domain, keys: self.keys.clone() };
        Follower::open(self.channel(), FollowOptions { patience, trust, ..Default::default() })
    }

    /// A channel that connects on its first call, and again whenever the connection is lost, which it is
    /// each time that our certificate has expired.
    fn channel(self) -> Channel {
        let broker = Authorize::Id(self.broker);
        let party = Party::unfollowed(self.held, broker, View::new(Patience::default()));
        let party = party.with_alpn(&[b"h2"]);
        let (address, clock): (Arc<str>, _) = (self.address.into(), self.clock);
        // The URI only fills `:authority`; the connector decides where to go.
        let endpoint = Endpoint::from_static("http://mayfly");
        endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let (party, address, clock) = (party.clone(), Arc::clone(&address), Arc::clone(&clock));
            async move {
                let stream = TcpStream::connect(&*address).await?;
                party.connect(stream, clock()).await.map(TokioIo::new)
            }
        }))
    }
}
