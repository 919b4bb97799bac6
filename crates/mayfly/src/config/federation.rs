//! `[[federation]]`: foreign trust domains, and where their bundles come from.
//!
//! Trust domain, URL and profile are told one by one and none is taken from another (SPIFFE Federation
//! §7.2): a URL that looks like a trust domain would otherwise decide whose keys are believed.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use http::Uri;
use mayfly_core::{SpiffeId, TrustDomain};
use serde::Deserialize;

use super::{ConfigError, domain, value};

const ENDPOINT: &str = "federation.bundle_endpoint";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFederation {
    trust_domain: String,
    bundle: Option<PathBuf>,
    bundle_endpoint: Option<RawEndpoint>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEndpoint {
    url: String,
    profile: toml::Value,
    ca: Option<PathBuf>,
}

/// A foreign trust domain and where its bundle comes from: a file, an endpoint, or both.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Federation {
    /// Whose bundle.
    pub trust_domain: TrustDomain,
    /// A SPIFFE bundle document (JSON) or PEM certificates. With an endpoint it is what is believed until
    /// something has been fetched.
    pub bundle: Option<PathBuf>,
    /// Where newer ones are fetched.
    pub endpoint: Option<BundleEndpoint>,
}

/// A bundle endpoint (SPIFFE Federation §5).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BundleEndpoint {
    /// `https`, without user information.
    pub url: Uri,
    /// How its server is known.
    pub profile: EndpointProfile,
}

/// How the server of a bundle endpoint is known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EndpointProfile {
    /// By a name in a certificate of the web's authorities, or of those in a file of ours.
    HttpsWeb {
        /// PEM; none is the system's own store.
        ca: Option<PathBuf>,
    },
    /// By this SPIFFE ID in an X.509-SVID.
    HttpsSpiffe {
        /// Exactly this one.
        id: SpiffeId,
    },
}

pub(super) fn read(
    raw: Vec<RawFederation>,
    own: &TrustDomain,
    base: &Path,
) -> Result<Vec<Federation>, ConfigError> {
    let mut seen = BTreeSet::from([own.clone()]);
    let mut entries = Vec::with_capacity(raw.len());
    for entry in raw {
        let trust_domain = domain("federation.trust_domain", &entry.trust_domain)?;
        if !seen.insert(trust_domain.clone()) {
            let rule = format!("names `{trust_domain}` twice, or the own trust domain");
            return Err(value("federation.trust_domain", rule));
        }
        let endpoint = entry.bundle_endpoint.map(|raw| raw.read(base)).transpose()?;
        let bundle = entry.bundle.map(|path| base.join(path));
        if bundle.is_none() && endpoint.is_none() {
            let rule =
                format!("of `{trust_domain}` needs a `bundle`, a `bundle_endpoint`, or both");
            return Err(value("federation", rule));
        }
        entries.push(Federation { trust_domain, bundle, endpoint });
    }
    entries.iter().try_for_each(|entry| check_bootstrap(entry, &seen))?;
    Ok(entries)
}

/// Whoever is to be known by an SVID needs a bundle to be known by, before anything was fetched.
fn check_bootstrap(entry: &Federation, known: &BTreeSet<TrustDomain>) -> Result<(), ConfigError> {
    let Some(BundleEndpoint { profile: EndpointProfile::HttpsSpiffe { id }, .. }) = &entry.endpoint
    else {
        return Ok(());
    };
    let of = id.trust_domain();
    let rule = if *of == entry.trust_domain {
        // It serves itself: the first fetch is believed by the bundle of the file (§5.2.3).
        entry.bundle.is_none().then(|| {
            format!("of `{of}` is known by its own SVID: a `bundle` to begin with has to be told")
        })
    } else {
        (!known.contains(of)).then(|| {
            format!("is known by `{id}`: `{of}` has to be the own trust domain or another entry")
        })
    };
    rule.map_or(Ok(()), |rule| Err(value(ENDPOINT, rule)))
}

impl RawEndpoint {
    fn read(self, base: &Path) -> Result<BundleEndpoint, ConfigError> {
        let url = url(&self.url).map_err(|rule| value(&format!("{ENDPOINT}.url"), rule))?;
        let ca = self.ca.map(|path| base.join(path));
        Ok(BundleEndpoint { url, profile: profile(&self.profile, ca, ENDPOINT)? })
    }
}

/// Reads a bundle endpoint's URL (§5.1.2), or says which rule it breaks.
///
/// # Errors
/// The rule, to be put behind whatever the URL is called.
pub(crate) fn url(text: &str) -> Result<Uri, &'static str> {
    let url: Uri = text.parse().map_err(|_malformed| "is not a URL")?;
    if url.scheme_str() != Some("https") {
        return Err("has to begin with `https://`");
    }
    match url.authority() {
        Some(authority) if authority.as_str().contains('@') => {
            Err("may hold neither user nor password")
        }
        Some(authority) if !authority.host().is_empty() => Ok(url),
        Some(_) | None => Err("has no host"),
    }
}

/// How a server is known, as `profile` and `ca` of the table `table` say.
pub(super) fn profile(
    told: &toml::Value,
    ca: Option<PathBuf>,
    table: &str,
) -> Result<EndpointProfile, ConfigError> {
    let key = format!("{table}.profile");
    if told.as_str() == Some("https_web") {
        return Ok(EndpointProfile::HttpsWeb { ca });
    }
    let id = told.as_table().filter(|table| table.len() == 1);
    let id = id.and_then(|table| table.get("https_spiffe")).and_then(toml::Value::as_str);
    let Some(id) = id else {
        return Err(value(&key, "has to be \"https_web\" or { https_spiffe = \"spiffe://...\" }"));
    };
    if ca.is_some() {
        let rule = "is for the profile \"https_web\" alone: an SVID is believed by a bundle";
        return Err(value(&format!("{table}.ca"), rule));
    }
    let id = SpiffeId::parse(id)
        .map_err(|invalid| value(&key, format!("`{id}` is not a SPIFFE ID: {}", invalid.rule)))?;
    if id.path().is_empty() {
        return Err(value(&key, format!("`{id}` names a trust domain, not a server")));
    }
    Ok(EndpointProfile::HttpsSpiffe { id })
}
