//! Mutual TLS between workloads, by SPIFFE's rules and the feed's news, for rustls 0.23.
//!
//! A handshake asks three questions in this order: does the certificate lead to its *own* trust
//! domain's bundle and keep the leaf's rules; is its SPIFFE ID one we talk to; is its task going on?
//! Session resumption is off on both sides, because a resumed session asks none of them.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use mayfly_core::{Serial, SpiffeId, TrustDomain};
use rustls::{
    ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature,
        verify_tls13_signature,
    },
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::sync::watch;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use crate::{
    refused::Refused,
    source::Held,
    svid::X509Context,
    view::View,
    x509::{self, Leaf},
};

/// Whom we talk to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Authorize {
    /// Everybody whose trust domain's bundle we hold, federated ones included.
    Any,
    /// Exactly this workload.
    Id(SpiffeId),
    /// Every workload of this trust domain.
    TrustDomain(TrustDomain),
    /// This SPIFFE ID and everything below it: `spiffe://td/a` allows `/a` and `/a/b`, not `/ab`.
    PathPrefix(SpiffeId),
}

impl Authorize {
    /// Whether `id` is one of them.
    #[must_use]
    pub fn allows(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Any => true,
            Self::Id(one) => one == id,
            Self::TrustDomain(domain) => id.trust_domain() == domain,
            Self::PathPrefix(above) => id
                .as_str()
                .strip_prefix(above.as_str())
                .is_some_and(|below| below.is_empty() || below.starts_with('/')),
        }
    }
}

/// One side of mutual TLS: who we are, whom we talk to, and how we learn that they have ended.
#[derive(Clone, Debug)]
pub struct Party {
    rules: Arc<Rules>,
}

struct Rules {
    held: watch::Receiver<Held>,
    authorize: Authorize,
    view: Arc<View>,
    algorithms: WebPkiSupportedAlgorithms,
    /// rustls' form of the identity in use, made once per renewal instead of once per handshake.
    key: Mutex<Option<(Arc<X509Context>, Arc<CertifiedKey>)>>,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("authorize", &self.authorize).finish_non_exhaustive()
    }
}

impl Party {
    /// A party with the identities of `held` (see [`X509Source::held`](crate::X509Source::held)).
    #[must_use]
    pub fn new(held: watch::Receiver<Held>, authorize: Authorize, view: Arc<View>) -> Self {
        Self {
            rules: Arc::new(Rules {
                held,
                authorize,
                view,
                algorithms: ring::default_provider().signature_verification_algorithms,
                key: Mutex::new(None),
            }),
        }
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
        Ok(config)
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
}

/// The peer of a live connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Peer {
    /// Its certificate.
    pub leaf: Leaf,
    /// Whether it is of our own trust domain, so that our feed speaks of it.
    pub own: bool,
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

impl Rules {
    /// The three questions.
    fn judge(
        &self,
        chain: (&CertificateDer<'_>, &[CertificateDer<'_>]),
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Refused> {
        let (end_entity, intermediates) = chain;
        let leaf = Leaf::parse(end_entity)?;
        let held = self.held.borrow().clone();
        let context = held.context().ok_or(Refused::NoIdentity)?;
        let domain = leaf.id.trust_domain();
        let bundle = context.bundle(domain).ok_or_else(|| Refused::Untrusted(domain.clone()))?;
        if intermediates.len() >= x509::CHAIN_MAX {
            return Err(x509::InvalidSvid::Chain.into());
        }
        EndEntityCert::try_from(end_entity)
            .and_then(|certificate| {
                certificate
                    .verify_for_usage(
                        self.algorithms.all,
                        bundle.anchors(),
                        intermediates,
                        now,
                        usage,
                        None,
                        Some(&check_intermediates),
                    )
                    .map(|_path| ())
            })
            .map_err(refused_by_path)?;
        if !self.authorize.allows(&leaf.id) {
            return Err(Refused::Unauthorized(leaf.id));
        }
        self.check_task(context, &leaf)
    }

    /// The feed speaks of our own trust domain only. Two trust domains use the same places for
    /// different tasks, so a foreign serial is not looked up.
    fn check_task(&self, context: &X509Context, leaf: &Leaf) -> Result<(), Refused> {
        if !context.is_own(leaf.id.trust_domain()) {
            return Ok(());
        }
        let serial = leaf.serial.ok_or_else(|| Refused::ForeignSerial(leaf.id.clone()))?;
        self.view.admit(&serial)
    }

    fn identity(&self) -> Option<Arc<CertifiedKey>> {
        let held = self.held.borrow().clone();
        let context = held.context()?;
        let mut cached = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, key)) = cached.as_ref()
            && Arc::ptr_eq(of, context)
        {
            return Some(Arc::clone(key));
        }
        let key = Arc::new(context.default_svid()?.certified_key().ok()?);
        *cached = Some((Arc::clone(context), Arc::clone(&key)));
        Some(key)
    }

    fn tls12(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn tls13(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }
}

/// webpki asks intermediates for `cA`; SPIFFE also asks for `keyCertSign` (X509-SVID §4.3).
fn check_intermediates(path: &VerifiedPath<'_>) -> Result<(), webpki::Error> {
    let ours = path
        .intermediate_certificates()
        .all(|certificate| x509::may_sign_certificates(&certificate.der()));
    ours.then_some(()).ok_or(webpki::Error::EndEntityUsedAsCa)
}

fn refused_by_path(error: webpki::Error) -> Refused {
    if matches!(error, webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. }) {
        return Refused::OutOfDate;
    }
    Refused::Chain(error)
}

fn logged<T>(side: &'static str, outcome: Result<(), Refused>, yes: T) -> Result<T, Error> {
    match outcome {
        Ok(()) => Ok(yes),
        Err(refused) => {
            tracing::info!(side, reason = %refused, "peer refused");
            Err(refused.into())
        }
    }
}

impl ServerCertVerifier for Rules {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let outcome = self.judge((end_entity, intermediates), now, KeyUsage::server_auth());
        logged("server", outcome, ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls12(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Rules {
    /// No hints: the client has one identity per trust domain and needs no help to choose.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let outcome = self.judge((end_entity, intermediates), now, KeyUsage::client_auth());
        logged("client", outcome, ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls12(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ResolvesServerCert for Rules {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.identity()
    }
}

impl ResolvesClientCert for Rules {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.identity()
    }

    fn has_certs(&self) -> bool {
        self.held.borrow().context().is_some()
    }
}
