//! One side of mutual TLS between workloads, for rustls 0.23.
//!
//! [`Party`] is who we are, whom we talk to, and how we learn that they have ended. What it asks in a
//! handshake stands in `handshake.rs`. Session resumption is off on both sides, because a resumed
//! session asks nothing.

use std::sync::{Arc, OnceLock};

use mayfly_core::{Serial, Timestamp, TrustDomain};
use rustls::{
    ClientConfig, CommonState, Error, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    server::{NoServerSessionStorage, danger::ClientCertVerifier},
};
use rustls_pki_types::ServerName;
use tokio::sync::watch;

use crate::{
    authorize::Authorize,
    handshake::Rules,
    patience::Patience,
    peer::{Grounds, Peer, Standing},
    refused::Refused,
    report::Reporter,
    source::Held,
    view::View,
    x509::{self, Leaf},
};

/// One side of mutual TLS: who we are, whom we talk to, and how we learn that they have ended. Cheap
/// to clone.
#[derive(Clone, Debug)]
pub struct Party {
    rules: Arc<Rules>,
    alpn: Vec<Vec<u8>>,
    server: OnceLock<Arc<ServerConfig>>,
    client: OnceLock<Arc<ClientConfig>>,
}

impl Party {
    /// A party with the identities of `held` (see [`X509Source::held`](crate::X509Source::held)).
    #[must_use]
    pub fn new(held: watch::Receiver<Held>, authorize: Authorize, view: Arc<View>) -> Self {
        Self::of(Rules::new(held, authorize, view), Vec::new())
    }

    /// A party that asks no feed about peers of its own trust domain: for the one connection over which
    /// the feed is to come.
    pub(crate) fn unfollowed(
        held: watch::Receiver<Held>,
        authorize: Authorize,
        view: Arc<View>,
    ) -> Self {
        Self::of(Rules::new(held, authorize, view).unfollowed(), Vec::new())
    }

    fn of(rules: Rules, alpn: Vec<Vec<u8>>) -> Self {
        let (server, client) = (OnceLock::new(), OnceLock::new());
        Self { rules: Arc::new(rules), alpn, server, client }
    }

    /// Less patience with a silent feed than the view has. More is not given: the view refuses first.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self::of(Arc::unwrap_or_clone(self.rules).with_patience(patience), self.alpn)
    }

    /// Peers of `domain`, another trust domain, are judged by what its own feed tells: `view` is of a
    /// [`Follower`](crate::Follower) of the broker over there. Without one they are believed until their
    /// certificates expire.
    #[must_use]
    pub fn with_foreign_view(self, domain: TrustDomain, view: Arc<View>) -> Self {
        Self::of(Arc::unwrap_or_clone(self.rules).with_foreign_view(domain, view), self.alpn)
    }

    /// Tells the broker of credentials that are shown although their time is over.
    #[must_use]
    pub fn reporting(self, reporter: Reporter) -> Self {
        Self::of(Arc::unwrap_or_clone(self.rules).reporting(reporter), self.alpn)
    }

    /// The protocols to agree on, for example `h2`: some peers insist.
    #[must_use]
    pub fn with_alpn(self, protocols: &[&[u8]]) -> Self {
        let alpn = protocols.iter().map(|one| one.to_vec()).collect();
        Self::of(Arc::unwrap_or_clone(self.rules), alpn)
    }

    /// A server's configuration: demands a client certificate, keeps no sessions, sends no tickets.
    ///
    /// # Errors
    /// rustls' own, if its provider offers no protocol version.
    pub fn server_config(&self) -> Result<ServerConfig, Error> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(self.rules.clone())
            .with_cert_resolver(self.rules.clone());
        // A resumed session is accepted without asking the verifier, so there are none.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols.clone_from(&self.alpn);
        Ok(config)
    }

    /// A client's configuration: shows its own certificate, resumes nothing, and tells nobody on the
    /// wire whom it calls, because the name in a SPIFFE handshake says nothing.
    ///
    /// # Errors
    /// rustls' own, if its provider offers no protocol version.
    pub fn client_config(&self) -> Result<ClientConfig, Error> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(self.rules.clone())
            .with_client_cert_resolver(self.rules.clone());
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        config.alpn_protocols.clone_from(&self.alpn);
        Ok(config)
    }

    /// What judges clients, for a server configuration of another make.
    ///
    /// Whoever uses it alone has to switch resumption off, as [`Self::server_config`] does, and to watch
    /// over live connections, as [`Self::guard`] and [`Self::standing`] do.
    #[must_use]
    pub fn client_verifier(&self) -> Arc<dyn ClientCertVerifier> {
        self.rules.clone()
    }

    /// Made once: what changes, the identity and the news, is asked for through it.
    pub(crate) fn shared_server_config(&self) -> Result<Arc<ServerConfig>, Error> {
        if let Some(config) = self.server.get() {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.server_config()?);
        Ok(Arc::clone(self.server.get_or_init(|| config)))
    }

    pub(crate) fn shared_client_config(&self) -> Result<Arc<ClientConfig>, Error> {
        if let Some(config) = self.client.get() {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.client_config()?);
        Ok(Arc::clone(self.client.get_or_init(|| config)))
    }

    /// What the feed has told.
    #[must_use]
    pub fn view(&self) -> &Arc<View> {
        &self.rules.view
    }

    /// Who is at the other end of a connection whose handshake is done.
    ///
    /// # Errors
    /// [`Refused::NotAnSvid`] if it showed no SVID, which the handshake would not have let pass.
    pub fn peer(&self, connection: &CommonState) -> Result<Peer, Refused> {
        let leaf = peer_leaf(connection)?;
        let own = self
            .rules
            .held
            .borrow()
            .context()
            .is_none_or(|context| context.is_own(leaf.id.trust_domain()));
        Ok(Peer { own, leaf })
    }

    /// How `peer` stands from here on, for a connection that this library does not carry. `now` is the
    /// wall clock's, for the certificate's end.
    #[must_use]
    pub fn standing(&self, peer: Peer, now: Timestamp) -> Standing {
        let rules = &self.rules;
        let grounds = Grounds {
            view: rules.view_of(&peer).cloned(),
            held: rules.held.clone(),
            patience: rules.patience,
            reporter: rules.reporter.clone(),
        };
        Standing::new(peer, grounds, now)
    }
}

/// The serial of the peer's certificate, if it is one of Mayfly's.
#[must_use]
pub fn peer_serial(connection: &CommonState) -> Option<Serial> {
    peer_leaf(connection).ok()?.serial
}

fn peer_leaf(connection: &CommonState) -> Result<Leaf, Refused> {
    let der =
        connection.peer_certificates().and_then(<[_]>::first).ok_or(x509::InvalidSvid::Chain)?;
    Ok(Leaf::parse(der)?)
}

/// The name to give to rustls for a SPIFFE peer. It is neither sent nor compared.
#[must_use]
pub fn no_server_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
