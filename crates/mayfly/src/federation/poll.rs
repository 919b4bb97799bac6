//! Follows one bundle endpoint for as long as the broker runs.
//!
//! The next fetch comes when the bundle in force says so, or after five minutes, and not sooner when
//! one has failed (SPIFFE Federation §5.1.4): a server that is down is not helped by being asked.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mayfly_core::SpiffeId;
use mayfly_serve::desk::Bundles;
use mayfly_verify::{Authorize, Bundle, Held, Party, Patience, View, X509Context};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    document::{BundleError, ForeignBundle},
    fetch::{FetchError, fetch},
    fetched,
};
use crate::{
    config::{BundleEndpoint, EndpointProfile, Federation},
    paths, tls,
};

/// How soon another bundle is looked for where none says so.
const REFRESH_DEFAULT: Duration = Duration::from_secs(300);
/// What a partner may ask for: neither a flood nor a bundle of last month.
const REFRESH_MIN: Duration = Duration::from_secs(1);
/// See [`REFRESH_MIN`].
const REFRESH_MAX: Duration = Duration::from_secs(24 * 3600);

/// Why a fetch changed nothing.
#[derive(Debug, thiserror::Error)]
enum PollError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("it is edition `{was}`, and `{is}` was seen before: an older one is not taken")]
    Older { was: u64, is: u64 },
    #[error("it cannot be kept: {0}")]
    Store(std::io::Error),
}

/// See the module.
#[derive(Debug)]
pub struct Poller {
    entry: Federation,
    endpoint: BundleEndpoint,
    store: PathBuf,
    /// What is in force for every trust domain; by it an SVID of an endpoint is judged.
    bundles: watch::Receiver<Arc<Bundles>>,
    latest: Option<ForeignBundle>,
}

impl Poller {
    /// Who follows the endpoint of `entry`, if it has one, and keeps what it gives in `dir`.
    #[must_use]
    pub fn new(
        entry: &Federation,
        dir: &Path,
        bundles: watch::Receiver<Arc<Bundles>>,
    ) -> Option<Self> {
        let endpoint = entry.endpoint.clone()?;
        let store = fetched(dir, &entry.trust_domain);
        let kept = [Some(&store), entry.bundle.as_ref()].into_iter().flatten();
        let latest = kept
            .filter_map(|path| ForeignBundle::read(path).ok())
            .reduce(|kept, told| if kept.is_older_than(&told) { told } else { kept });
        Some(Self { entry: entry.clone(), endpoint, store, bundles, latest })
    }

    /// Follows until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let _stopped = stop.run_until_cancelled(self.poll()).await;
    }

    async fn poll(&mut self) {
        loop {
            let trust_domain = self.entry.trust_domain.clone();
            match self.once().await {
                Ok(true) => tracing::info!(%trust_domain, "federated bundle fetched"),
                Ok(false) => tracing::debug!(%trust_domain, "federated bundle is as it was"),
                Err(error) => {
                    tracing::warn!(%trust_domain, %error, "no federated bundle was fetched");
                }
            }
            tokio::time::sleep(self.pause()).await;
        }
    }

    fn pause(&self) -> Duration {
        let hint = self.latest.as_ref().and_then(|bundle| bundle.refresh_hint);
        hint.map_or(REFRESH_DEFAULT, |seconds| {
            Duration::from_secs(seconds).clamp(REFRESH_MIN, REFRESH_MAX)
        })
    }

    /// Fetches once; `true` if there is something new.
    async fn once(&mut self) -> Result<bool, PollError> {
        let tls = known_by(self.endpoint.profile.clone(), &mut self.bundles).await?;
        let document = fetch(&self.endpoint.url, Arc::new(tls)).await?;
        self.take(&document)
    }

    fn take(&mut self, document: &[u8]) -> Result<bool, PollError> {
        let bundle = ForeignBundle::parse_document(document)?;
        if let Some(latest) = &self.latest {
            if bundle.is_older_than(latest) {
                let (was, is) = (bundle.sequence, latest.sequence);
                let (was, is) = (was.unwrap_or_default(), is.unwrap_or_default());
                return Err(PollError::Older { was, is });
            }
            if bundle == *latest && self.store.exists() {
                return Ok(false);
            }
        }
        // On disk it is where everybody looks; and a restart must not begin with an older one.
        if let Some(dir) = self.store.parent() {
            std::fs::create_dir_all(dir).map_err(PollError::Store)?;
        }
        paths::write_private(&self.store, document).map_err(PollError::Store)?;
        self.latest = Some(bundle);
        Ok(true)
    }
}

/// Believes servers that are known by `profile`, as far as `bundles` tell.
pub(crate) async fn known_by(
    profile: EndpointProfile,
    bundles: &mut watch::Receiver<Arc<Bundles>>,
) -> Result<ClientConfig, FetchError> {
    match profile {
        EndpointProfile::HttpsWeb { ca } => {
            let config = tokio::task::spawn_blocking(move || web(ca.as_deref())).await;
            config.map_err(|stopped| FetchError::Roots(stopped.to_string()))?
        }
        EndpointProfile::HttpsSpiffe { id } => {
            let bundle = bundle_of(&id, bundles).await?;
            spiffe(id, bundle)
        }
    }
}

/// The bundle by which the endpoint's SVID is judged: the latest of the trust domain that its ID
/// names, which is the one being fetched, another partner's or our own. Waits until there is one.
async fn bundle_of(
    id: &SpiffeId,
    bundles: &mut watch::Receiver<Arc<Bundles>>,
) -> Result<Bundle, FetchError> {
    let domain = id.trust_domain();
    let known = bundles.wait_for(|bundles| bundles.x509.contains_key(domain)).await;
    let known = known.map_err(|_stopping| FetchError::Roots("the broker stops".to_owned()))?;
    let der = known.x509.get(domain).cloned().unwrap_or_default();
    drop(known);
    Bundle::parse(&der).map_err(|invalid| FetchError::Roots(invalid.to_string()))
}

/// Believes whom the web believes, or whom the file `ca` names.
fn web(ca: Option<&Path>) -> Result<ClientConfig, FetchError> {
    let mut roots = RootCertStore::empty();
    let found = match ca {
        Some(path) => {
            let wrong = |error: String| FetchError::Roots(format!("`{}`: {error}", path.display()));
            let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            found.map_err(|error| wrong(error.to_string()))?
        }
        None => rustls_native_certs::load_native_certs().certs,
    };
    // A system's store may well hold some that rustls cannot use.
    let (usable, _unusable) = roots.add_parsable_certificates(found);
    if usable == 0 {
        return Err(FetchError::Roots("there is none that can be used".to_owned()));
    }
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(plain(config))
}

/// Believes exactly `id`, by the bundle of its own trust domain. Shows nothing: an endpoint is for those
/// who are not known yet.
fn spiffe(id: SpiffeId, bundle: Bundle) -> Result<ClientConfig, FetchError> {
    let federated = [(id.trust_domain().clone(), bundle)].into();
    let context = X509Context { svids: Vec::new(), federated, crls: Vec::new() };
    let (_kept_nowhere, held) = watch::channel(Held::Context(Arc::new(context)));
    let view = View::new(Patience::default());
    let mut config = Party::new(held, Authorize::Id(id), view).client_config()?;
    // The name in the URL is the server's address and not compared; it may still have to be said.
    config.enable_sni = true;
    Ok(plain(config))
}

fn plain(mut config: ClientConfig) -> ClientConfig {
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(sequence: u64, hint: &str) -> Vec<u8> {
        let key = r#"{"use":"jwt-svid","kty":"EC","kid":"a"}"#;
        format!(r#"{{"keys":[{key}],"spiffe_sequence":{sequence}{hint}}}"#).into_bytes()
    }

    fn poller(dir: &Path) -> Poller {
        let entry = Federation {
            trust_domain: mayfly_core::TrustDomain::parse("other.org").unwrap(),
            bundle: None,
            endpoint: Some(BundleEndpoint {
                url: "https://other.org/".parse().unwrap(),
                profile: EndpointProfile::HttpsWeb { ca: None },
            }),
        };
        let (_sender, bundles) = watch::channel(Arc::default());
        Poller::new(&entry, dir, bundles).unwrap()
    }

    #[test]
    fn point_85_an_older_edition_is_not_taken_and_the_newest_is_kept_for_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = poller(dir.path());
        assert!(first.take(&document(2, "")).unwrap());
        assert!(!first.take(&document(2, "")).unwrap(), "the same again is no news");
        assert!(matches!(first.take(&document(1, "")), Err(PollError::Older { was: 1, is: 2 })));
        assert!(matches!(first.take(b"{"), Err(PollError::Bundle(_))));
        assert_eq!(std::fs::read(&first.store).unwrap(), document(2, ""));
        let mut second = poller(dir.path());
        assert!(matches!(second.take(&document(1, "")), Err(PollError::Older { .. })));
        assert!(second.take(&document(3, "")).unwrap());
    }

    #[test]
    fn point_85_the_bundle_says_when_to_look_again_and_its_silence_means_five_minutes() {
        let dir = tempfile::tempdir().unwrap();
        let mut poller = poller(dir.path());
        assert_eq!(poller.pause(), REFRESH_DEFAULT);
        for (hint, pause) in [
            (r#","spiffe_refresh_hint":60"#, Duration::from_secs(60)),
            (r#","spiffe_refresh_hint":0"#, REFRESH_MIN),
            (r#","spiffe_refresh_hint":99999999"#, REFRESH_MAX),
            ("", REFRESH_DEFAULT),
        ] {
            let next = poller.latest.as_ref().and_then(|latest| latest.sequence).unwrap_or(0) + 1;
            assert!(poller.take(&document(next, hint)).unwrap());
            assert_eq!(poller.pause(), pause, "{hint}");
        }
    }

    #[test]
    fn point_65_an_empty_bundle_is_taken_because_it_withdraws_everything() {
        let dir = tempfile::tempdir().unwrap();
        let mut poller = poller(dir.path());
        assert!(poller.take(&document(1, "")).unwrap());
        assert!(poller.take(br#"{"keys":[],"spiffe_sequence":2}"#).unwrap());
    }
}
