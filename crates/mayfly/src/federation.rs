//! Bundles of foreign trust domains, from files that somebody else keeps up to date.
//!
//! A file is read again when it changes. A file that cannot be read or understood leaves the bundle
//! that was there before in force and says so: an operator's slip must not cut off a whole domain.
//! To withdraw a domain, remove it from the configuration.

use std::{collections::BTreeMap, path::Path, time::SystemTime};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use mayfly_core::TrustDomain;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};

use crate::config::Federation;

/// Largest bundle file that is read, in bytes; clients take messages of 4 MiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a bundle file is not used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] std::io::Error),
    /// It is too long.
    #[error("it is longer than 1 MiB")]
    TooLong,
    /// It is neither a SPIFFE bundle nor PEM.
    #[error("it is neither a spiffe bundle document nor pem certificates: {0}")]
    Malformed(String),
    /// It has no key at all.
    #[error("it holds no key")]
    Empty,
}

/// What one trust domain's file says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ForeignBundle {
    /// Concatenated DER certificates; empty when the file has none.
    pub x509: Vec<u8>,
    /// A JWK Set of JWT keys alone; empty when the file has none.
    pub jwks: Vec<u8>,
}

impl ForeignBundle {
    /// Reads a SPIFFE bundle document (SPIFFE Trust Domain and Bundle §4) or PEM certificates.
    ///
    /// # Errors
    /// [`BundleError`] says what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, BundleError> {
        let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
        if first == Some(&b'{') { Self::parse_json(text) } else { Self::parse_pem(text) }
    }

    fn or_empty(self) -> Result<Self, BundleError> {
        let is_empty = self.x509.is_empty() && self.jwks.is_empty();
        if is_empty { Err(BundleError::Empty) } else { Ok(self) }
    }

    fn parse_pem(text: &[u8]) -> Result<Self, BundleError> {
        let mut x509 = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(text) {
            let certificate = certificate.map_err(|e| BundleError::Malformed(e.to_string()))?;
            x509.extend_from_slice(&certificate);
        }
        Self { x509, jwks: Vec::new() }.or_empty()
    }

    fn parse_json(text: &[u8]) -> Result<Self, BundleError> {
        let malformed = |why: &str| BundleError::Malformed(why.to_owned());
        let document: Value =
            serde_json::from_slice(text).map_err(|e| BundleError::Malformed(e.to_string()))?;
        let keys = document.get("keys").and_then(Value::as_array);
        let keys = keys.ok_or_else(|| malformed("`keys` is missing"))?;
        let used_for =
            |key: &Value, what: &str| key.get("use").and_then(Value::as_str) == Some(what);
        // §4.1.3: no keys at all is the withdrawal of all keys, and not a slip.
        if keys.is_empty() {
            return Ok(Self::default());
        }
        let mut x509 = Vec::new();
        for key in keys.iter().filter(|key| used_for(key, "x509-svid")) {
            let chain = key.get("x5c").and_then(Value::as_array);
            // §4.2: an entry without a certificate is ignored, and so is every one after the first.
            let Some(der) = chain.and_then(|chain| chain.first()).and_then(Value::as_str) else {
                continue;
            };
            let der = BASE64_STANDARD.decode(der);
            x509.extend(der.map_err(|_not_base64| malformed("an `x5c` is not base64"))?);
        }
        // An unknown kind of key would make some clients drop the whole set.
        let known = |key: &Value| {
            matches!(key.get("kty").and_then(Value::as_str), Some("EC" | "RSA"))
                && key.get("kid").and_then(Value::as_str).is_some_and(|kid| !kid.is_empty())
        };
        let jwt = keys.iter().filter(|key| used_for(key, "jwt-svid") && known(key));
        let jwt: Vec<_> = jwt.collect();
        let jwks =
            if jwt.is_empty() { Vec::new() } else { json!({ "keys": jwt }).to_string().into() };
        Self { x509, jwks }.or_empty()
    }
}

/// All foreign bundles, and when their files were last seen to change.
#[derive(Debug)]
pub struct Federations {
    entries: Vec<Federation>,
    seen: BTreeMap<TrustDomain, (SystemTime, u64)>,
    bundles: BTreeMap<TrustDomain, ForeignBundle>,
}

impl Federations {
    /// Nothing is read yet; call [`Self::reload`].
    #[must_use]
    pub const fn new(entries: Vec<Federation>) -> Self {
        Self { entries, seen: BTreeMap::new(), bundles: BTreeMap::new() }
    }

    /// The bundles in force.
    #[must_use]
    pub const fn bundles(&self) -> &BTreeMap<TrustDomain, ForeignBundle> {
        &self.bundles
    }

    /// Reads the files that have changed; `true` if a bundle did.
    pub fn reload(&mut self) -> bool {
        let mut changed = false;
        for entry in &self.entries {
            let domain = &entry.trust_domain;
            let stamp = std::fs::metadata(&entry.bundle)
                .and_then(|meta| Ok((meta.modified()?, meta.len())))
                .unwrap_or((SystemTime::UNIX_EPOCH, 0));
            if self.seen.insert(domain.clone(), stamp) == Some(stamp) {
                continue;
            }
            match read(&entry.bundle) {
                Ok(bundle) if self.bundles.get(domain) == Some(&bundle) => {}
                Ok(bundle) => {
                    tracing::info!(trust_domain = %domain, "federated bundle loaded");
                    self.bundles.insert(domain.clone(), bundle);
                    changed = true;
                }
                Err(error) => {
                    let path = entry.bundle.display();
                    tracing::error!(trust_domain = %domain, %path, %error, "federated bundle not used");
                }
            }
        }
        changed
    }
}

fn read(path: &Path) -> Result<ForeignBundle, BundleError> {
    if std::fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(BundleError::TooLong);
    }
    ForeignBundle::parse(&std::fs::read(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_document_is_split_by_use() {
        let document = br#"{"keys":[
            {"use":"x509-svid","kty":"EC","x5c":["AQID","BAUG"]},
            {"use":"x509-svid","kty":"EC","x5c":[]},
            {"use":"jwt-svid","kty":"EC","kid":"a"},
            {"use":"jwt-svid","kty":"OKP","kid":"b"},
            {"kty":"EC","kid":"c"}],"spiffe_sequence":1}"#;
        let bundle = ForeignBundle::parse(document).unwrap();
        assert_eq!(bundle.x509, [1, 2, 3]);
        let jwks: Value = serde_json::from_slice(&bundle.jwks).unwrap();
        assert_eq!(jwks["keys"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn point_65_no_keys_at_all_withdraw_the_domain() {
        assert_eq!(ForeignBundle::parse(br#"{"keys":[]}"#).unwrap(), ForeignBundle::default());
        assert!(matches!(ForeignBundle::parse(b""), Err(BundleError::Empty)));
    }

    #[test]
    fn a_broken_file_leaves_the_bundle_that_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle.json");
        let entry = Federation {
            trust_domain: TrustDomain::parse("other.org").unwrap(),
            bundle: path.clone(),
        };
        let mut federations = Federations::new(vec![entry]);
        assert!(!federations.reload());
        std::fs::write(&path, r#"{"keys":[{"use":"jwt-svid","kty":"EC","kid":"a"}]}"#).unwrap();
        assert!(federations.reload());
        std::fs::write(&path, "{").unwrap();
        assert!(!federations.reload());
        assert_eq!(federations.bundles().len(), 1);
    }
}
