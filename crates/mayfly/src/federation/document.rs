//! What one foreign trust domain's bundle says, from whatever source.

use std::path::Path;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};

/// Largest bundle that is read, in bytes; clients take messages of 4 MiB.
pub const BUNDLE_BYTES_MAX: u64 = 1 << 20;

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
    /// Which edition this is, where it says so: a lower one is an older one.
    pub sequence: Option<u64>,
    /// How soon to look for another, in seconds, where it says so.
    pub refresh_hint: Option<u64>,
}

impl ForeignBundle {
    /// Reads a SPIFFE bundle document (SPIFFE Trust Domain and Bundle §4) or PEM certificates.
    ///
    /// # Errors
    /// [`BundleError`] says what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, BundleError> {
        let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
        if first == Some(&b'{') { Self::parse_document(text) } else { Self::parse_pem(text) }
    }

    /// Reads the file at `path`, as [`Self::parse`] does.
    ///
    /// # Errors
    /// [`BundleError`] says what is wrong with it.
    pub fn read(path: &Path) -> Result<Self, BundleError> {
        if std::fs::metadata(path)?.len() > BUNDLE_BYTES_MAX {
            return Err(BundleError::TooLong);
        }
        Self::parse(&std::fs::read(path)?)
    }

    /// Whether this is an edition before `other`, as far as both say.
    #[must_use]
    pub fn is_older_than(&self, other: &Self) -> bool {
        self.sequence.zip(other.sequence).is_some_and(|(own, others)| own < others)
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
        Self { x509, ..Self::default() }.or_empty()
    }

    /// Reads a SPIFFE bundle document and nothing else.
    ///
    /// # Errors
    /// [`BundleError`] says what is wrong with it.
    pub fn parse_document(text: &[u8]) -> Result<Self, BundleError> {
        let malformed = |why: &str| BundleError::Malformed(why.to_owned());
        let document: Value =
            serde_json::from_slice(text).map_err(|e| BundleError::Malformed(e.to_string()))?;
        let keys = document.get("keys").and_then(Value::as_array);
        let keys = keys.ok_or_else(|| malformed("`keys` is missing"))?;
        let used_for =
            |key: &Value, what: &str| key.get("use").and_then(Value::as_str) == Some(what);
        // §4.1.3: no keys at all is the withdrawal of all keys, and not a slip.
        let number = |name: &str| document.get(name).and_then(Value::as_u64);
        let (sequence, refresh_hint) = (number("spiffe_sequence"), number("spiffe_refresh_hint"));
        if keys.is_empty() {
            return Ok(Self { sequence, refresh_hint, ..Self::default() });
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
        Self { x509, jwks, sequence, refresh_hint }.or_empty()
    }
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
        let said = ForeignBundle::parse(br#"{"keys":[],"spiffe_sequence":18446744073709551615}"#);
        assert_eq!(said.unwrap().sequence, Some(u64::MAX));
        assert!(matches!(ForeignBundle::parse(b""), Err(BundleError::Empty)));
    }
}
