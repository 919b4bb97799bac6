//! What is served to everybody: ready-made, whole, and replaced as a whole.

use std::{collections::BTreeMap, fmt, time::Duration};

use axum::http::HeaderValue;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// The media types of what is published.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Media {
    /// JSON, and nothing behind it: clouds compare this header as a whole.
    Json,
    /// One revocation list in DER (RFC 5280).
    Crl,
    /// Revocation lists in PEM.
    Pem,
    /// A token status list (draft-ietf-oauth-status-list).
    StatusList,
}

impl Media {
    /// The value of `Content-Type`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Crl => "application/pkix-crl",
            Self::Pem => "application/x-pem-file",
            Self::StatusList => "application/statuslist+jwt",
        }
    }
}

/// One document, ready to be sent.
#[derive(Clone, Eq, PartialEq)]
pub struct Asset {
    body: Bytes,
    media: Media,
    etag: HeaderValue,
    cache: HeaderValue,
}

impl Asset {
    /// A document that caches may keep for `fresh_for` before they ask again.
    ///
    /// Its tag is a digest of its octets, so that it survives a restart, and two brokers that publish
    /// the same agree.
    #[must_use]
    pub fn new(body: impl Into<Bytes>, media: Media, fresh_for: Duration) -> Self {
        let body = body.into();
        let digest: String =
            Sha256::digest(&body).iter().take(16).map(|octet| format!("{octet:02x}")).collect();
        let cache = format!("public, max-age={}, must-revalidate", fresh_for.as_secs());
        // Hexadecimal digits and the like: there is nothing that a header could not carry.
        let value = |text: &str| {
            HeaderValue::from_str(text)
                .unwrap_or_else(|_never| HeaderValue::from_static("no-cache"))
        };
        Self { body, media, etag: value(&format!("\"{digest}\"")), cache: value(&cache) }
    }

    /// The octets.
    #[must_use]
    pub const fn body(&self) -> &Bytes {
        &self.body
    }

    /// Their type.
    #[must_use]
    pub const fn media(&self) -> Media {
        self.media
    }

    pub(super) const fn etag(&self) -> &HeaderValue {
        &self.etag
    }

    pub(super) const fn cache(&self) -> &HeaderValue {
        &self.cache
    }
}

impl fmt::Debug for Asset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (media, bytes) = (self.media, self.body.len());
        f.debug_struct("Asset")
            .field("media", &media)
            .field("bytes", &bytes)
            .finish_non_exhaustive()
    }
}

/// Everything that is published at one moment. What is not there is not found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Published {
    /// The OIDC discovery document; only with a public URL, which is its issuer.
    pub discovery: Option<Asset>,
    /// The keys of tokens, as OIDC wants them.
    pub keys: Option<Asset>,
    /// The SPIFFE bundle document.
    pub bundle: Option<Asset>,
    /// The full revocation list of the authority that signs at present.
    pub crl: Option<Asset>,
    /// The full lists of all authorities, in PEM: what OpenSSL, nginx and Envoy read.
    pub crl_pem: Option<Asset>,
    /// The full list of each authority, by its key id.
    pub crls: BTreeMap<String, Asset>,
    /// Shards of those lists; only with a public URL, which stands in certificates.
    pub shards: BTreeMap<String, BTreeMap<u32, Asset>>,
    /// Where the status lists are.
    pub aggregation: Option<Asset>,
    /// Status lists by expiry window; only with a public URL, which stands in tokens.
    pub statuses: BTreeMap<u32, Asset>,
}
