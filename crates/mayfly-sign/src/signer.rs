//! What a signing thread holds: the two active authorities, ready to sign.

use std::{fmt, sync::Arc};

use mayfly_core::{Grant, Kind, TrustDomain, Window};

use crate::{
    authority::{JwtAuthority, X509Authority},
    error::SignError,
    shards,
    x509::Template,
};

/// Where the outside world reaches this broker over HTTP, such as `https://mayfly.example.org`.
///
/// It ends up in certificates (as an IA5String) and in tokens, so it is held to printable ASCII.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PublicUrl(String);

impl PublicUrl {
    /// Longest base URL: it stands in every credential.
    const BYTES_MAX: usize = 512;

    /// Parses an `http` or `https` URL without query and fragment. A trailing `/` is dropped.
    ///
    /// # Errors
    /// [`SignError::PublicUrl`] names the rule that is broken.
    pub fn parse(url: &str) -> Result<Self, SignError> {
        let refuse = |rule| Err(SignError::PublicUrl { url: url.to_owned(), rule });
        let base = url.trim_end_matches('/');
        let Some(rest) = base.strip_prefix("https://").or_else(|| base.strip_prefix("http://"))
        else {
            return refuse("it does not start with `https://` or `http://`");
        };
        if rest.is_empty() || rest.starts_with('/') {
            return refuse("it has no host");
        }
        if base.len() > Self::BYTES_MAX {
            return refuse("it is longer than 512 bytes");
        }
        if !base.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'<' | b'>')) {
            return refuse("it has characters that do not belong into a url");
        }
        if base.contains(['?', '#', '@']) {
            return refuse("it has a query, a fragment or a user");
        }
        Ok(Self(base.to_owned()))
    }

    /// The URL itself: the issuer of tokens.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where the full revocation list of an authority is served.
    #[must_use]
    pub fn crl(&self, key_id: &str) -> String {
        format!("{}/crl/{key_id}.crl", self.0)
    }

    /// Where one shard of it is served: the distribution point in certificates and in the shard itself.
    #[must_use]
    pub fn crl_shard(&self, key_id: &str, shard: u8) -> String {
        format!("{}/crl/{key_id}/{shard}", self.0)
    }

    /// Where the status list of an expiry window is served.
    #[must_use]
    pub fn status_list(&self, window: Window) -> String {
        format!("{}/status/{}", self.0, window.0)
    }

    /// Where all status lists are named.
    #[must_use]
    pub fn status_lists(&self) -> String {
        format!("{}/status", self.0)
    }

    /// Where the keys of tokens are served.
    #[must_use]
    pub fn keys(&self) -> String {
        format!("{}/keys", self.0)
    }

    /// Where tokens are introspected.
    #[must_use]
    pub fn introspection(&self) -> String {
        format!("{}/introspect", self.0)
    }
}

/// The active authorities of a trust domain. Cheap to share: signing takes no lock.
pub struct Signer {
    trust_domain: TrustDomain,
    x509: Arc<X509Authority>,
    jwt: Arc<JwtAuthority>,
    template: Template,
    public_url: Option<PublicUrl>,
}

impl Signer {
    pub(crate) fn new(
        trust_domain: TrustDomain,
        x509: Arc<X509Authority>,
        jwt: Arc<JwtAuthority>,
        public_url: Option<PublicUrl>,
    ) -> Self {
        let urls = public_url
            .as_ref()
            .map(|url| shards::all().map(|shard| url.crl_shard(x509.key_id(), shard)).collect());
        let template = Template::new(&x509, urls.unwrap_or_default());
        Self { template, trust_domain, x509, jwt, public_url }
    }

    /// Whose credentials it signs.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The authority that signs certificates.
    #[must_use]
    pub fn x509(&self) -> &X509Authority {
        &self.x509
    }

    /// The authority that signs tokens.
    #[must_use]
    pub fn jwt(&self) -> &JwtAuthority {
        &self.jwt
    }

    /// Where lists are served, if anywhere.
    pub(crate) const fn public_url(&self) -> Option<&PublicUrl> {
        self.public_url.as_ref()
    }

    pub(crate) const fn template(&self) -> &Template {
        &self.template
    }

    /// Refuses a grant that this signer may not or cannot fulfil.
    pub(crate) fn admit(&self, grant: &Grant, kind: Kind) -> Result<(), SignError> {
        if grant.kind() != kind {
            return Err(SignError::WrongKind(grant.kind()));
        }
        let found = grant.spiffe_id().trust_domain();
        if *found != self.trust_domain {
            return Err(SignError::WrongTrustDomain {
                ours: self.trust_domain.clone(),
                found: found.clone(),
            });
        }
        if grant.spiffe_id().path().is_empty() {
            return Err(SignError::NoPath(self.trust_domain.clone()));
        }
        Ok(())
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("trust_domain", &self.trust_domain)
            .field("x509", &self.x509)
            .field("jwt", &self.jwt)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_url_is_a_plain_base() {
        let url = PublicUrl::parse("https://m.example.org:8443/x/").unwrap();
        assert_eq!(url.crl("ab"), "https://m.example.org:8443/x/crl/ab.crl");
        assert_eq!(url.crl_shard("ab", 7), "https://m.example.org:8443/x/crl/ab/7");
        assert_eq!(url.status_list(Window(7)), "https://m.example.org:8443/x/status/7");
        for bad in [
            "",
            "https://",
            "https:///x",
            "ftp://h",
            "https://h?q",
            "https://h/#f",
            "https://u@h",
            "https://h/ x",
            "https://h/\"",
            "https://h/é",
            "h",
        ] {
            assert!(PublicUrl::parse(bad).is_err(), "{bad}");
        }
        assert!(PublicUrl::parse(&format!("https://{}", "h".repeat(600))).is_err());
    }
}
