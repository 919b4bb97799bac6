//! What is signed or written for everybody: lists and documents about all published authorities.
//!
//! A [`Publisher`] is a snapshot of the ring. It can be taken to a thread of its own, where signing a
//! long list holds nobody up, while the ring goes on.

use std::{fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mayfly_core::{TrustDomain, Window};
use serde::Serialize;
use serde_json::json;

use crate::{
    authority::{Jwk, JwtAuthority, X509Authority},
    crl,
    error::SignError,
    signer::PublicUrl,
    status,
};

/// The published authorities of one trust domain, the active ones first.
#[derive(Clone)]
pub struct Publisher {
    trust_domain: TrustDomain,
    x509: Vec<Arc<X509Authority>>,
    jwt: Vec<Arc<JwtAuthority>>,
    public_url: Option<PublicUrl>,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("trust_domain", &self.trust_domain)
            .field("x509", &self.x509)
            .field("jwt", &self.jwt)
            .finish_non_exhaustive()
    }
}

/// A list, with the key id of the authority that signed it.
pub type Signed = (String, Vec<u8>);

/// One key of a document. A document mixes keys of several uses, so each says its own.
#[derive(Serialize)]
struct Key<'a> {
    #[serde(rename = "use")]
    used_for: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    alg: Option<&'static str>,
    #[serde(flatten)]
    jwk: &'a Jwk,
    #[serde(skip_serializing_if = "Option::is_none")]
    x5c: Option<[String; 1]>,
}

impl Publisher {
    pub(crate) const fn new(
        trust_domain: TrustDomain,
        x509: Vec<Arc<X509Authority>>,
        jwt: Vec<Arc<JwtAuthority>>,
        public_url: Option<PublicUrl>,
    ) -> Self {
        Self { trust_domain, x509, jwt, public_url }
    }

    /// Whose authorities these are.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Where the outside world reaches this broker, if anywhere.
    #[must_use]
    pub const fn public_url(&self) -> Option<&PublicUrl> {
        self.public_url.as_ref()
    }

    /// The key ids of all that sign certificates, then of all that sign tokens. Whatever was published
    /// under other ones has to be published again.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        let x509 = self.x509.iter().map(|authority| authority.key_id());
        x509.chain(self.jwt.iter().map(|authority| authority.key_id()))
    }

    /// A full revocation list by each authority.
    ///
    /// # Errors
    /// As [`crl::issue`].
    pub fn crls(&self, contents: &crl::Contents<'_>) -> Result<Vec<Signed>, SignError> {
        let sign = |authority: &Arc<X509Authority>| {
            Ok((authority.key_id().to_owned(), crl::issue(authority, contents)?))
        };
        self.x509.iter().map(sign).collect()
    }

    /// One shard of those lists by each authority; none without a public URL, because no certificate
    /// points to one then.
    ///
    /// # Errors
    /// As [`crl::issue_shard`].
    pub fn shard(&self, shard: u8, contents: &crl::Contents<'_>) -> Result<Vec<Signed>, SignError> {
        let Some(url) = &self.public_url else { return Ok(Vec::new()) };
        let sign = |authority: &Arc<X509Authority>| {
            let id = authority.key_id();
            let list = crl::issue_shard(authority, contents, &url.crl_shard(id, shard))?;
            Ok((id.to_owned(), list))
        };
        self.x509.iter().map(sign).collect()
    }

    /// The status list of one window, by the key that signs tokens; none without a public URL, because
    /// no token points to one then. `contents` are completed by the places where lists are served.
    ///
    /// # Errors
    /// As [`status::issue`].
    pub fn status_list(
        &self,
        window: Window,
        contents: status::Contents<'_>,
    ) -> Result<Option<String>, SignError> {
        let (Some(url), Some(authority)) = (&self.public_url, self.jwt.first()) else {
            return Ok(None);
        };
        let (uri, aggregation) = (url.status_list(window), url.status_lists());
        let contents = status::Contents { uri: &uri, aggregation: &aggregation, ..contents };
        status::issue(authority, &contents).map(Some)
    }

    /// The SPIFFE bundle document (Trust Domain and Bundle §4): X.509 authorities without a `kid` and
    /// with exactly one certificate, keys of tokens with one.
    ///
    /// `sequence` rises with every change of the content; `refresh_hint` is in seconds.
    #[must_use]
    pub fn bundle(&self, sequence: u64, refresh_hint: u64) -> Vec<u8> {
        #[derive(Serialize)]
        struct Document<'a> {
            keys: Vec<Key<'a>>,
            spiffe_sequence: u64,
            spiffe_refresh_hint: u64,
        }
        let x509: Vec<Jwk> = self.x509.iter().map(|authority| authority.jwk()).collect();
        let x509 = self.x509.iter().zip(&x509).map(|(authority, jwk)| Key {
            used_for: "x509-svid",
            alg: None,
            jwk,
            x5c: Some([STANDARD.encode(authority.certificate_der())]),
        });
        let jwt = self.jwt.iter().map(|authority| Key {
            used_for: "jwt-svid",
            alg: None,
            jwk: authority.jwk(),
            x5c: None,
        });
        written(&Document {
            keys: x509.chain(jwt).collect(),
            spiffe_sequence: sequence,
            spiffe_refresh_hint: refresh_hint,
        })
    }

    /// The keys of tokens as OIDC relying parties want them: with `alg`, and `use` in OIDC's words.
    #[must_use]
    pub fn oidc_keys(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Document<'a> {
            keys: Vec<Key<'a>>,
        }
        let keys = self.jwt.iter().map(|authority| Key {
            used_for: "sig",
            alg: Some("ES256"),
            jwk: authority.jwk(),
            x5c: None,
        });
        written(&Document { keys: keys.collect() })
    }

    /// The OIDC discovery document (Discovery §3), for those who federate with token issuers by it.
    /// There is no authorization endpoint: nobody logs in here.
    #[must_use]
    pub fn discovery(&self) -> Option<Vec<u8>> {
        let url = self.public_url.as_ref()?;
        Some(written(&json!({
            "issuer": url.as_str(),
            "jwks_uri": url.keys(),
            "introspection_endpoint": url.introspection(),
            "status_list_aggregation_endpoint": url.status_lists(),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "claims_supported":
                ["iss", "sub", "aud", "exp", "iat", "jti", "act", "status", "mayfly:task"],
        })))
    }

    /// Where the status lists of `windows` are (status list §9.3).
    #[must_use]
    pub fn aggregation(&self, windows: impl IntoIterator<Item = Window>) -> Option<Vec<u8>> {
        let url = self.public_url.as_ref()?;
        let lists: Vec<_> = windows.into_iter().map(|window| url.status_list(window)).collect();
        Some(written(&json!({ "status_lists": lists })))
    }
}

/// Strings into memory: there is nothing that could fail.
fn written(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).unwrap_or_default()
}
