//! Which files there are, and what stands in them. Pure: a set is made from what was heard.
//!
//! Two vocabularies lie side by side. The SPIFFE filesystem-delivery proposal (spiffe/spiffe #376,
//! still open) knows `credential-bundle.pem`, key first and then the chain, and one
//! `<trust domain>.spiffe-trust-bundle.pem` each; nginx, PostgreSQL and their kind want certificate,
//! key, authorities and revocation lists one by one.

use std::collections::BTreeMap;

use mayfly_core::Timestamp;
use mayfly_verify::{X509Context, X509Svid};
use zeroize::Zeroizing;

use super::follow::{Bundles, Token};
use crate::pem;

/// Ends the name of a trust domain's authorities.
const TRUST_BUNDLE: &str = ".spiffe-trust-bundle.pem";
/// All revocation lists.
const CRL: &str = "crl.pem";

/// What a file is about, so that a server can be told what is new.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Part {
    /// Certificate and key.
    Certificate,
    /// Authorities.
    Bundle,
    /// Revocation lists.
    Crl,
    /// Tokens.
    Jwt,
}

impl Part {
    /// Its name in reports and in the environment of commands.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Bundle => "bundle",
            Self::Crl => "crl",
            Self::Jwt => "jwt",
        }
    }
}

/// All files of one moment. Wiped when dropped: some are keys.
#[derive(Clone)]
pub struct FileSet {
    files: BTreeMap<String, (Part, Zeroizing<Vec<u8>>)>,
    spiffe_id: String,
    serial: String,
    not_after: Timestamp,
}

impl std::fmt::Debug for FileSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.files.keys()).finish()
    }
}

impl FileSet {
    /// The files for these identities, authorities and tokens.
    ///
    /// `None` if there is no identity, which no message of the Workload API can say.
    #[must_use]
    pub fn of<'a>(
        identities: &X509Context,
        bundles: &Bundles,
        tokens: impl IntoIterator<Item = (&'a str, &'a Token)>,
    ) -> Option<Self> {
        let first = identities.default_svid()?;
        let mut set = Self {
            files: BTreeMap::new(),
            spiffe_id: first.spiffe_id.to_string(),
            serial: first.leaf.serial.map(|serial| serial.to_string()).unwrap_or_default(),
            not_after: first.leaf.not_after,
        };
        for (at, svid) in identities.svids.iter().enumerate() {
            set.put_identity(at, svid, bundles);
        }
        for (domain, bundle) in &bundles.domains {
            set.put(
                format!("{domain}{TRUST_BUNDLE}"),
                Part::Bundle,
                authorities(&bundle.authorities),
            );
        }
        if !bundles.crls.is_empty() {
            set.put(CRL.to_owned(), Part::Crl, pem::blocks(pem::X509_CRL, &bundles.crls));
        }
        for (audience, token) in tokens {
            set.put(jwt_name(audience), Part::Jwt, token.text.to_string());
        }
        Some(set)
    }

    fn put_identity(&mut self, at: usize, svid: &X509Svid, bundles: &Bundles) {
        // The first is the default and has the plain names that everybody expects.
        let name =
            |what: &str| if at == 0 { format!("{what}.pem") } else { format!("{what}.{at}.pem") };
        let chain = pem::blocks(pem::CERTIFICATE, &svid.chain);
        let key = pem::block(pem::PRIVATE_KEY, svid.key.as_pkcs8());
        let mut both = Zeroizing::new(String::with_capacity(key.len() + chain.len()));
        both.push_str(&key);
        both.push_str(&chain);
        self.put(name("credential-bundle"), Part::Certificate, std::mem::take(&mut *both));
        self.put(name("svid_key"), Part::Certificate, key.to_string());
        self.put(name("svid"), Part::Certificate, chain);
        // The bundles' own stream is the fresher of the two; a certificate comes rarely.
        let own = bundles.domains.get(svid.spiffe_id.trust_domain()).unwrap_or(&svid.bundle);
        self.put(name("bundle"), Part::Bundle, authorities(&own.authorities));
    }

    fn put(&mut self, name: String, part: Part, text: String) {
        self.files.insert(name, (part, Zeroizing::new(text.into_bytes())));
    }

    /// Names and contents, by name.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|(name, (_, bytes))| (name.as_str(), bytes.as_slice()))
    }

    /// Whether there is a file with this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Whose default identity this is.
    #[must_use]
    pub fn spiffe_id(&self) -> &str {
        &self.spiffe_id
    }

    /// Its serial number, if Mayfly made it; else empty.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// When its certificate expires, and the set with it.
    #[must_use]
    pub const fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// The parts of which a file is new, gone or another than in `before`.
    #[must_use]
    pub fn changed_since(&self, before: Option<&Self>) -> Vec<Part> {
        let none = BTreeMap::new();
        let before = before.map_or(&none, |set| &set.files);
        let mine = self.files.iter().filter(|(name, file)| before.get(*name) != Some(file));
        let gone = before.iter().filter(|(name, _)| !self.files.contains_key(*name));
        let mut parts: Vec<Part> = mine.chain(gone).map(|(_, (part, _))| *part).collect();
        parts.sort_unstable();
        parts.dedup();
        parts
    }
}

fn authorities(all: &[impl AsRef<[u8]>]) -> String {
    pem::blocks(pem::CERTIFICATE, all)
}

/// The file of an audience's token: `jwt.<audience>.token`, with every character that could mean
/// something to a file system or a shell as `%` and its octets, so that no two audiences meet.
#[must_use]
pub fn jwt_name(audience: &str) -> String {
    let mut name = "jwt.".to_owned();
    for byte in audience.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-') {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    name + ".token"
}

/// Whether a file of this name can be one of ours. What cannot is never deleted.
#[must_use]
pub fn is_ours(name: &str) -> bool {
    if name == CRL || name.strip_suffix(TRUST_BUNDLE).is_some_and(|domain| !domain.is_empty()) {
        return true;
    }
    if name.strip_prefix("jwt.").and_then(|rest| rest.strip_suffix(".token")).is_some() {
        return true;
    }
    let Some(stem) = name.strip_suffix(".pem") else { return false };
    let (what, number) = stem.rsplit_once('.').map_or((stem, None), |(what, n)| (what, Some(n)));
    matches!(what, "credential-bundle" | "svid" | "svid_key" | "bundle")
        && number.is_none_or(|n| n.parse::<usize>().is_ok_and(|n| n > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_audiences_share_a_file_and_none_leaves_the_directory() {
        let audiences = ["a/b", "a_b", "a%2Fb", "..", "../x", "https://b:1/?q", "ä", "a b", ""];
        let names: Vec<String> = audiences.iter().map(|one| jwt_name(one)).collect();
        for (at, name) in names.iter().enumerate() {
            assert!(!names[..at].contains(name), "{name}");
            assert!(!name.contains('/') && is_ours(name), "{name}");
        }
        assert_eq!(names[0], "jwt.a%2Fb.token");
    }

    #[test]
    fn only_names_that_we_would_write_are_ours() {
        for name in [
            "credential-bundle.pem",
            "svid.pem",
            "svid.1.pem",
            "svid_key.12.pem",
            "bundle.pem",
            "crl.pem",
            "example.org.spiffe-trust-bundle.pem",
            "jwt.x.token",
        ] {
            assert!(is_ours(name), "{name}");
        }
        for name in [
            "nginx.conf",
            "svid.0.pem",
            "svid.x.pem",
            "server.pem",
            ".spiffe-trust-bundle.pem",
            "jwt.token",
            "svid",
            "svid.pem.bak",
        ] {
            assert!(!is_ours(name), "{name}");
        }
    }
}
