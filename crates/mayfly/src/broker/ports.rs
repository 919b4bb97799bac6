//! The ports, of which there are none unless the configuration names them.
//!
//! They are bound and their certificates read before anything is decided or written, so that a start that
//! cannot succeed fails at once and changes nothing; they are served last, when everything behind them
//! is there.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mayfly_core::{Span, TrustDomain};
use mayfly_serve::{BrokerApi, Desk, Doors, Eyes, ListenError, Listener, Manner, Port};
use mayfly_verify::{Authorize, Endpoint, Follower, Party, Patience};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use super::{BrokerError, Running, inner::Seams};
use crate::{
    clock::Clock,
    config::{BrokerApiPort, Config, PortTls},
    own::{Own, OwnIdentity},
    tls::{self, Acceptor, Files},
};

/// How long a start waits for the first word of our own feed, which takes milliseconds.
const FEED_HEARD_MAX: Duration = Duration::from_secs(5);

/// What is bound and not served yet.
pub(super) struct Ports {
    pages: Option<(Port, Option<Arc<Files>>)>,
    streams: Option<Port>,
    /// Whose workloads may follow the feed: our own trust domain's, and those that were named.
    followers: Vec<TrustDomain>,
    brokers: Option<(Listener, Option<Port>, BrokerApiPort)>,
    /// Foreign trust domains whose workloads may come to one of these.
    federates_with: Vec<TrustDomain>,
}

/// What is served at the ports.
pub(super) struct Offer {
    /// Documents.
    pub(super) pages: Routes,
    /// The feed.
    pub(super) streams: Routes,
    /// What the Broker API asks.
    pub(super) desk: Arc<dyn Desk>,
    /// What it sees processes with.
    pub(super) eyes: Arc<dyn Eyes>,
}

/// Where the ports are, and what they rest on for as long as they are served.
#[derive(Debug, Default)]
pub(super) struct Served {
    pub(super) pages: Option<SocketAddr>,
    pub(super) streams: Option<SocketAddr>,
    pub(super) brokers: Option<(PathBuf, Option<SocketAddr>)>,
    pub(super) own: Option<OwnIdentity>,
    /// What the feed's port knows of those who come.
    _follower: Option<Follower>,
}

impl Served {
    /// Lets go of what is not needed to say goodbye.
    pub(super) fn close(self) -> Option<OwnIdentity> {
        self.own
    }
}

impl Ports {
    /// Takes the ports and reads the certificates.
    pub(super) fn bind(config: &Config) -> Result<Self, BrokerError> {
        let pages = config.http.as_ref().map(|http| {
            let files = match &http.tls {
                PortTls::Spiffe => None,
                PortTls::Files { cert, key } => Some(Files::open(cert, key)?),
            };
            Ok::<_, BrokerError>((Port::bind(http.listen)?, files))
        });
        let feed = config.feed_port.as_ref();
        let streams = feed.map(|feed| Port::bind(feed.listen)).transpose()?;
        let mut followers = feed.map(|feed| feed.federates_with.clone()).unwrap_or_default();
        let mut foreign: BTreeSet<_> = followers.iter().cloned().collect();
        followers.push(config.trust_domain.clone());
        let brokers = config.broker_api.clone().map(|told| {
            foreign.extend(told.foreign(&config.trust_domain));
            let port = told.listen.map(Port::bind).transpose()?;
            Ok::<_, BrokerError>((bind_private(&told.socket)?, port, told))
        });
        let brokers = brokers.transpose()?;
        let federates_with = foreign.into_iter().collect();
        Ok(Self { pages: pages.transpose()?, streams, followers, brokers, federates_with })
    }

    /// Who the broker is, if it has to be somebody. Where nobody asks it has no identity, like
    /// everything else that nobody asked for.
    pub(super) async fn identity(
        &self,
        seams: &Seams,
        authority_ttl: Span,
        (clock, running): (&Clock, &Running),
    ) -> Result<Option<OwnIdentity>, BrokerError> {
        let is_asked = self.streams.is_some() || self.brokers.is_some();
        if !is_asked && !matches!(self.pages, Some((_, None))) {
            return Ok(None);
        }
        let own = Own::new(
            (seams.inbox.clone(), seams.desk.clone()),
            Arc::clone(&seams.policy),
            Arc::clone(clock),
            (authority_ttl, self.federates_with.clone()),
        )?;
        let (own, keep) = own.begin(running.stop.clone()).await?;
        drop(running.tasks.spawn(keep));
        Ok(Some(own))
    }

    /// Serves them. `socket` is our own Workload API, which must be served by now: who comes to the
    /// feed's port is judged by the feed.
    pub(super) async fn open(
        self,
        doors: &Doors,
        (own, socket): (Option<OwnIdentity>, &Path),
        offer: Offer,
        (clock, tasks, stop): (&Clock, &TaskTracker, &CancellationToken),
    ) -> Result<Served, BrokerError> {
        let mut served = Served::default();
        if let Some((port, files)) = self.pages {
            let acceptor = match (files, &own) {
                (Some(files), _) => {
                    drop(tasks.spawn(Arc::clone(&files).watch(stop.clone())));
                    Acceptor::with_files(files, tls::PAGES, Arc::clone(clock))?
                }
                (None, Some(own)) => {
                    Acceptor::showing(own.held.clone(), tls::PAGES, Arc::clone(clock))?
                }
                (None, None) => return Err(BrokerError::Nobody),
            };
            served.pages = Some(port.address());
            doors.open_port(port, Arc::new(acceptor), Manner::Pages, offer.pages);
        }
        if self.streams.is_some() || self.brokers.is_some() {
            let own = own.as_ref().ok_or(BrokerError::Nobody)?;
            let follower = follow(socket).await;
            let demanding = |authorize| {
                let party = Party::new(own.held.clone(), authorize, Arc::clone(follower.view()));
                Acceptor::demanding(party, tls::STREAMS, Arc::clone(clock)).map(Arc::new)
            };
            if let Some(port) = self.streams {
                let domains = self.followers.into_iter().map(Authorize::TrustDomain);
                let acceptor = demanding(Authorize::AnyOf(domains.collect()))?;
                served.streams = Some(port.address());
                doors.open_port(port, acceptor, Manner::Streams, offer.streams);
            }
            if let Some((listener, port, told)) = self.brokers {
                // Who is not listed does not get through the handshake.
                let listed = told.brokers.keys().cloned().collect();
                let acceptor = demanding(Authorize::Ids(listed))?;
                let api = BrokerApi::new(offer.desk, offer.eyes, Arc::clone(clock), told.brokers);
                let routes = api.routes();
                let routes = routes.map_err(|error| BrokerError::Services(error.to_string()))?;
                let address = port.as_ref().map(Port::address);
                served.brokers = Some((listener.path().to_owned(), address));
                doors.open_secured(listener, Arc::<Acceptor>::clone(&acceptor), routes.clone());
                if let Some(port) = port {
                    doors.open_port(port, acceptor, Manner::Brokers, routes);
                }
            }
            served._follower = Some(follower);
        }
        served.own = own;
        Ok(served)
    }
}

/// What our own feed tells of those who come.
async fn follow(socket: &Path) -> Follower {
    let socket = Endpoint::Unix(socket.to_owned());
    let follower = Follower::connect(&socket, Patience::default());
    if tokio::time::timeout(FEED_HEARD_MAX, follower.ready()).await.is_err() {
        // Until it is heard everybody is refused, which is safe and has to be noticed.
        tracing::error!("our own feed is not heard: the port refuses everybody until it is");
    }
    follower
}

/// Listens in a folder that only our user and its group may enter.
fn bind_private(socket: &Path) -> Result<Listener, BrokerError> {
    let failed = |source| ListenError::Io { path: socket.to_owned(), source };
    if let Some(folder) = socket.parent().filter(|folder| !folder.exists()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o770)).map_err(failed)?;
    }
    Ok(Listener::bind(socket, 0o660)?)
}
