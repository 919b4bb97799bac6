//! Issuers of OIDC tokens: their keys, kept fresh, and which of their tokens were used already.
//!
//! Keys are fetched every five minutes with the client that fetches foreign bundles. A fetch that fails
//! leaves the keys that were there in force for a day, so that an issuer may be down; a token by a key
//! that is not known causes one more fetch, but not a flood of them, because anybody can name a key.

mod seen;

use std::{sync::Arc, time::Duration};

use http::Uri;
use mayfly_core::{Denial, Span, Timestamp};
use mayfly_serve::desk::Bundles;
use mayfly_verify::{
    InvalidJwks, JwkSet,
    oidc::{Assertion, InvalidAssertion, Unverified},
};
use serde::Deserialize;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

pub use seen::{Seen, SeenError, SeenFile, Taking};

use crate::{
    clock::Clock,
    config::{self, OidcIssuer},
    federation::{FetchError, fetch::fetch, known_by},
};

/// How often keys are fetched.
const REFRESH: Duration = Duration::from_secs(300);
/// The shortest pause between two fetches that strangers cause.
const FORCED_PAUSE: Span = Span::from_secs(10);
/// How long a caller waits for a fetch that its token caused.
const FORCED_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long keys are believed when nothing can be fetched.
const KEPT_MAX: Span = Span::from_secs(24 * 3600);

/// Why an issuer's keys are not known.
#[derive(Debug, thiserror::Error)]
enum KeysError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the discovery document is malformed: {0}")]
    Discovery(#[from] serde_json::Error),
    #[error("the discovery document is `{0}`'s")]
    Issuer(String),
    #[error("the discovery document's `jwks_uri` {0}")]
    JwksUri(&'static str),
    #[error("the keys are malformed: {0}")]
    Jwks(#[from] InvalidJwks),
    #[error("there is no key that can verify a token")]
    Empty,
}

/// The part of a discovery document that is used (OpenID Connect Discovery §3).
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

/// Keys, and when they were fetched.
#[derive(Clone, Debug)]
struct Known {
    keys: Arc<JwkSet>,
    at: Timestamp,
}

/// What a fetch needs, held by whoever fetches.
#[derive(Debug)]
struct Fetching {
    bundles: watch::Receiver<Arc<Bundles>>,
    begun: Option<Timestamp>,
}

/// An issuer and its keys.
pub struct Issuer {
    config: OidcIssuer,
    /// Never steps back, or a clock that is set would stop the fetching.
    steady: Clock,
    known: watch::Sender<Option<Known>>,
    fetching: Mutex<Fetching>,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Issuer {
    /// An issuer of which nothing was fetched yet.
    #[must_use]
    pub fn new(
        config: OidcIssuer,
        steady: Clock,
        bundles: watch::Receiver<Arc<Bundles>>,
    ) -> Arc<Self> {
        let (known, _) = watch::channel(None);
        let fetching = Mutex::new(Fetching { bundles, begun: None });
        Arc::new(Self { config, steady, known, fetching })
    }

    /// What is configured about it.
    #[must_use]
    pub const fn config(&self) -> &OidcIssuer {
        &self.config
    }

    /// Keeps the keys fresh until `stop`.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let following = async {
            loop {
                let mut fetching = self.fetching.lock().await;
                self.fetch(&mut fetching).await;
                drop(fetching);
                tokio::time::sleep(REFRESH).await;
            }
        };
        let _stopped = stop.run_until_cancelled(following).await;
    }

    /// Believes a token, or says why not.
    ///
    /// # Errors
    /// [`Denial::OidcIssuerUnavailable`], or [`Denial::OidcTokenInvalid`] whatever is wrong with it.
    pub async fn believe(
        &self,
        token: Unverified<'_>,
        now: Timestamp,
    ) -> Result<Assertion, (Denial, Option<InvalidAssertion>)> {
        let keys = match self.keys() {
            Some(keys) if token.is_by_one_of(&keys) => Some(keys),
            Some(_) | None => {
                // A caller that has waited long enough is answered by what is known.
                let _late = tokio::time::timeout(FORCED_WAIT_MAX, self.refresh()).await;
                self.keys()
            }
        };
        let keys = keys.ok_or((Denial::OidcIssuerUnavailable, None))?;
        let OidcIssuer { issuer, audience, .. } = &self.config;
        let believed = token.verify((issuer, &keys), audience, now);
        believed.map_err(|invalid| (Denial::OidcTokenInvalid, Some(invalid)))
    }

    fn keys(&self) -> Option<Arc<JwkSet>> {
        let now = (self.steady)();
        let known = self.known.borrow();
        let fresh = known.as_ref().filter(|known| now.since(known.at) < KEPT_MAX);
        fresh.map(|known| Arc::clone(&known.keys))
    }

    /// Fetches, unless somebody did a moment ago. All who wait here wait for the same fetch.
    async fn refresh(&self) {
        let mut fetching = self.fetching.lock().await;
        let now = (self.steady)();
        if fetching.begun.is_none_or(|begun| now.since(begun) >= FORCED_PAUSE) {
            self.fetch(&mut fetching).await;
        }
    }

    async fn fetch(&self, fetching: &mut Fetching) {
        let now = (self.steady)();
        // Before the fetch: one that is given up counts like one that fails.
        fetching.begun = Some(now);
        let issuer = &self.config.issuer;
        match self.fetched(&mut fetching.bundles).await {
            Ok(keys) => {
                tracing::debug!(%issuer, keys = keys.len(), "an issuer's keys are fetched");
                self.known.send_replace(Some(Known { keys: Arc::new(keys), at: now }));
            }
            Err(error) => tracing::warn!(%issuer, %error, "an issuer's keys are not fetched"),
        }
    }

    async fn fetched(
        &self,
        bundles: &mut watch::Receiver<Arc<Bundles>>,
    ) -> Result<JwkSet, KeysError> {
        let tls = Arc::new(known_by(self.config.server.clone(), bundles).await?);
        let jwks = match &self.config.jwks_uri {
            Some(told) => told.clone(),
            None => {
                let document = fetch(&self.config.discovery, Arc::clone(&tls)).await?;
                discovered(&self.config.issuer, &document)?
            }
        };
        let keys = JwkSet::parse(&fetch(&jwks, tls).await?)?;
        if keys.is_empty() { Err(KeysError::Empty) } else { Ok(keys) }
    }
}

fn discovered(issuer: &str, document: &[u8]) -> Result<Uri, KeysError> {
    let Discovery { issuer: found, jwks_uri } = serde_json::from_slice(document)?;
    // §4.3: otherwise one issuer could speak for another.
    if found != issuer {
        return Err(KeysError::Issuer(found));
    }
    config::endpoint_url(&jwks_uri).map_err(KeysError::JwksUri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discovery_document_is_its_own_issuers_and_leads_to_https() {
        let document = |issuer: &str, uri: &str| {
            format!(r#"{{"issuer":"{issuer}","jwks_uri":"{uri}","more":[1]}}"#).into_bytes()
        };
        let found = |issuer: &str, uri: &str| discovered("https://a.org", &document(issuer, uri));
        assert_eq!(found("https://a.org", "https://b.org/k").unwrap(), "https://b.org/k");
        for (issuer, uri) in [
            ("https://a.org/", "https://b.org/k"),
            ("https://b.org", "https://b.org/k"),
            ("https://a.org", "http://b.org/k"),
            ("https://a.org", "https://u:p@b.org/k"),
            ("https://a.org", "k"),
        ] {
            assert!(found(issuer, uri).is_err(), "{issuer} {uri}");
        }
        assert!(discovered("https://a.org", b"{}").is_err());
        assert!(discovered("https://a.org", b"").is_err());
    }
}
