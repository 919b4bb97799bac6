//! What is asked of the other side in a handshake, by SPIFFE's rules and the feed's news.
//!
//! Three questions, in this order: does the certificate lead to its *own* trust domain's bundle and keep
//! the leaf's rules; is its task going on; is its SPIFFE ID one we talk to? The task comes before the
//! name, so that a credential that is used after its end is seen even where it would not have been
//! welcome.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use mayfly_core::{Timestamp, TrustDomain};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    server::{
        ClientHello, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{sync::watch, time::Instant};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use crate::{
    authorize::Authorize,
    patience::Patience,
    peer::{self, Peer},
    refused::Refused,
    report::{Reporter, Use},
    source::Held,
    svid::X509Context,
    telemetry::{self, Place},
    view::View,
    x509::{self, Leaf},
};

/// rustls' form of an identity, beside the one that it was made of.
type Shown = Option<(Arc<X509Context>, Arc<CertifiedKey>)>;

#[derive(Clone)]
pub(crate) struct Rules {
    pub(crate) held: watch::Receiver<Held>,
    authorize: Authorize,
    pub(crate) view: Arc<View>,
    /// Whether peers of our own trust domain are judged by it.
    followed: bool,
    /// What the feeds of other trust domains have told, where somebody follows them.
    foreign: BTreeMap<TrustDomain, Arc<View>>,
    pub(crate) patience: Patience,
    pub(crate) reporter: Option<Reporter>,
    algorithms: WebPkiSupportedAlgorithms,
    /// Made once per renewal instead of once per handshake.
    key: Arc<Mutex<Shown>>,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("authorize", &self.authorize).finish_non_exhaustive()
    }
}

impl Rules {
    pub(crate) fn new(held: watch::Receiver<Held>, authorize: Authorize, view: Arc<View>) -> Self {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        let patience = view.patience();
        Self {
            held,
            authorize,
            view,
            followed: true,
            foreign: BTreeMap::new(),
            patience,
            reporter: None,
            algorithms,
            key: Arc::default(),
        }
    }

    pub(crate) fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    pub(crate) fn unfollowed(self) -> Self {
        Self { followed: false, ..self }
    }

    pub(crate) fn with_foreign_view(mut self, domain: TrustDomain, view: Arc<View>) -> Self {
        self.foreign.insert(domain, view);
        self
    }

    /// What is known of those who have ended in the peer's trust domain. Two trust domains use the same
    /// places for different tasks, so each is asked by its own feed or by none.
    pub(crate) fn view_of(&self, peer: &Peer) -> Option<&Arc<View>> {
        if peer.own {
            return Some(&self.view).filter(|_| self.followed);
        }
        self.foreign.get(peer.leaf.id.trust_domain())
    }

    pub(crate) fn reporting(self, reporter: Reporter) -> Self {
        Self { reporter: Some(reporter), ..self }
    }

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
        let own = context.is_own(domain);
        let peer = Peer { leaf, own };
        self.check_task(&peer).inspect_err(|refused| self.report(refused, &peer, now))?;
        if !self.authorize.allows(&peer.leaf.id) {
            return Err(Refused::Unauthorized(peer.leaf.id));
        }
        Ok(())
    }

    fn report(&self, refused: &Refused, peer: &Peer, now: UnixTime) {
        // Our broker can judge what is shown of its own tasks only.
        let reporter = self.reporter.as_ref().filter(|_| peer.own);
        if let (Some(reporter), Some(kind)) = (reporter, Use::of(refused)) {
            reporter.report_peer(kind, peer, Timestamp(now.as_secs().saturating_mul(1000)));
        }
    }

    /// A peer of a trust domain whose feed nobody follows is believed for as long as its certificate
    /// says.
    fn check_task(&self, peer: &Peer) -> Result<(), Refused> {
        let Some(view) = self.view_of(peer) else { return Ok(()) };
        let foreign = || Refused::ForeignSerial(peer.leaf.id.clone());
        view.admit(&peer.leaf.serial.ok_or_else(foreign)?)?;
        if peer::is_blind(view, self.patience, Instant::now()) {
            return Err(Refused::Dark);
        }
        Ok(())
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

/// The leaf is read again for the log: a refusal may take its time.
fn told<T>(outcome: Result<(), Refused>, leaf: &CertificateDer<'_>, yes: T) -> Result<T, Error> {
    let Err(refused) = outcome else { return Ok(yes) };
    let peer = Leaf::parse(leaf).ok().map(|leaf| Peer { leaf, own: false });
    telemetry::refused(Place::Handshake, &refused, peer.as_ref());
    Err(refused.into())
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
        told(outcome, end_entity, ServerCertVerified::assertion())
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
        told(outcome, end_entity, ClientCertVerified::assertion())
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
