//! The handshakes of our ports, and of the socket for brokers.
//!
//! `serve` parses what strangers say and must not link a key, so it takes a handshake as something that
//! is brought along ([`Secure`]); these are the three there are. A port shows the broker's own SVID,
//! which is looked up for each handshake and so is never older than its last renewal, or a certificate
//! that somebody else keeps in files; and it may demand an SVID in return, which is then judged by
//! `mayfly-verify` like any peer's: by bundle, by name, and by whether its task goes on, in the handshake
//! and for as long as the connection lasts.
//!
//! Sessions are never resumed: a resumed one would ask nobody's name again, and would outlive a renewal.
//! Versions and suites are those of rustls, which are the ones of Mozilla's intermediate profile.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use mayfly_serve::{Octets, Secure, Secured, Securing};
use mayfly_verify::{Held, Party, X509Svid};
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// How often certificate files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Protocols for ALPN, the preferred one first.
pub type Protocols = &'static [&'static [u8]];
/// gRPC alone.
pub const STREAMS: Protocols = &[b"h2"];
/// Documents.
pub const PAGES: Protocols = &[b"h2", b"http/1.1"];

/// Why there is no handshake to offer.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("`{path}` holds no {what} in pem")]
    Nothing {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// Certificate and key are there and cannot be used.
    #[error("certificate `{cert}` and key `{key}` cannot be used: {source}")]
    Unfit {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// rustls' own.
    #[error("tls: {0}")]
    Tls(#[from] rustls::Error),
}

/// The handshake of a port.
pub struct Acceptor {
    acceptor: TlsAcceptor,
    party: Option<Party>,
    clock: Clock,
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").field("party", &self.party).finish_non_exhaustive()
    }
}

impl Acceptor {
    /// Shows the SVID in `held` and asks for nothing.
    ///
    /// # Errors
    /// rustls' own.
    pub fn showing(
        held: watch::Receiver<Held>,
        protocols: Protocols,
        clock: Clock,
    ) -> Result<Self, TlsError> {
        let shown = Arc::new(Shown { held, key: Mutex::default() });
        Ok(Self::new(anonymous(shown)?, protocols, (None, clock)))
    }

    /// Shows the certificate in `files` and asks for nothing.
    ///
    /// # Errors
    /// rustls' own.
    pub fn with_files(
        files: Arc<Files>,
        protocols: Protocols,
        clock: Clock,
    ) -> Result<Self, TlsError> {
        Ok(Self::new(anonymous(files)?, protocols, (None, clock)))
    }

    /// Shows the SVID of `party`, and lets in whom `party` talks to, for as long as it does.
    ///
    /// # Errors
    /// rustls' own.
    pub fn demanding(party: Party, protocols: Protocols, clock: Clock) -> Result<Self, TlsError> {
        Ok(Self::new(party.server_config()?, protocols, (Some(party), clock)))
    }

    fn new(
        mut config: ServerConfig,
        protocols: Protocols,
        (party, clock): (Option<Party>, Clock),
    ) -> Self {
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Self { acceptor: TlsAcceptor::from(Arc::new(config)), party, clock }
    }
}

impl Secure for Acceptor {
    fn secure(&self, stream: Box<dyn Octets>) -> Securing {
        let accepting = self.acceptor.accept(stream);
        let (party, clock) = (self.party.clone(), Arc::clone(&self.clock));
        Box::pin(async move {
            let stream = accepting.await?;
            let Some(party) = party else {
                return Ok(Secured { octets: Box::new(stream), id: None });
            };
            let peer = party.peer(stream.get_ref().1)?;
            let id = Some(peer.leaf.id.clone());
            Ok(Secured { octets: Box::new(party.guard(stream, peer, clock())?), id })
        })
    }
}

fn anonymous(shown: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(shown);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The SVID that is held at the moment of the handshake.
#[derive(Debug)]
struct Shown {
    held: watch::Receiver<Held>,
    /// rustls' form of the one that was shown last, made once per renewal.
    key: Mutex<Option<(Vec<CertificateDer<'static>>, Arc<CertifiedKey>)>>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let held = self.held.borrow().clone();
        let svid = held.context()?.default_svid()?;
        let mut kept = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((chain, key)) = kept.as_ref()
            && *chain == svid.chain
        {
            return Some(Arc::clone(key));
        }
        let key = Arc::new(certified(svid).ok()?);
        *kept = Some((svid.chain.clone(), Arc::clone(&key)));
        Some(key)
    }
}

fn certified(svid: &X509Svid) -> Result<CertifiedKey, rustls::Error> {
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.key.as_pkcs8()));
    let key = ring::sign::any_supported_type(&der)?;
    let certified = CertifiedKey::new(svid.chain.clone(), key);
    certified.keys_match()?;
    Ok(certified)
}

/// A certificate and its key in two files that somebody else renews.
///
/// They are read again when either changes. A pair that cannot be used leaves the one before in use and
/// says so: whoever renews writes one file before the other, and may fail between the two.
#[derive(Debug)]
pub struct Files {
    cert: PathBuf,
    key: PathBuf,
    used: Mutex<Used>,
}

#[derive(Debug)]
struct Used {
    stamps: [Stamp; 2],
    key: Arc<CertifiedKey>,
}

/// What changes when a file does.
type Stamp = Option<(SystemTime, u64, u64)>;

impl Files {
    /// Reads the pair.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub fn open(cert: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        let stamps = [stamp(cert), stamp(key)];
        let used = Mutex::new(Used { stamps, key: Arc::new(pair(cert, key)?) });
        Ok(Arc::new(Self { cert: cert.to_owned(), key: key.to_owned(), used }))
    }

    /// Reads the pair again if a file has changed; `true` if another certificate is shown from here on.
    pub fn reload(&self) -> bool {
        let stamps = [stamp(&self.cert), stamp(&self.key)];
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.stamps == stamps {
            return false;
        }
        used.stamps = stamps;
        match pair(&self.cert, &self.key) {
            Ok(key) => {
                tracing::info!(cert = %self.cert.display(), "certificate read again");
                used.key = Arc::new(key);
                true
            }
            Err(error) => {
                tracing::error!(%error, "the certificate before stays in use");
                false
            }
        }
    }

    /// Looks at the files until `stop`.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        while stop.run_until_cancelled(looks.tick()).await.is_some() {
            self.reload();
        }
    }
}

impl ResolvesServerCert for Files {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.used.lock().unwrap_or_else(PoisonError::into_inner).key))
    }
}

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len(), meta.ino()))
}

fn pair(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })
    };
    let nothing = |path: &Path, what| TlsError::Nothing { path: path.to_owned(), what };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(cert)?).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain = chain.ok_or_else(|| nothing(cert, "certificate"))?;
    let der = PrivateKeyDer::from_pem_slice(&read(key)?);
    let der = der.map_err(|_not_pem| nothing(key, "private key"))?;
    let unfit = |source| TlsError::Unfit { cert: cert.to_owned(), key: key.to_owned(), source };
    let key = ring::sign::any_supported_type(&der).map_err(unfit)?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(unfit)?;
    Ok(certified)
}
