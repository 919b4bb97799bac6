//! `[http]` and `[broker]`: ports, of which there are none unless they are asked for.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use mayfly_core::TrustDomain;
use serde::Deserialize;

use super::{ConfigError, domain, value};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHttp {
    listen: String,
    tls: toml::Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBroker {
    listen: String,
    #[serde(default)]
    federates_with: Vec<String>,
}

/// Which certificate a port shows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PortTls {
    /// The broker's own SVID.
    Spiffe,
    /// One that somebody else issues and renews: PEM, the leaf first.
    Files {
        /// The certificate and those between it and its root.
        cert: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
}

/// The port for documents. It asks nobody for a certificate (SPIFFE Federation §5.1).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HttpPort {
    /// Where.
    pub listen: SocketAddr,
    /// As whom.
    pub tls: PortTls,
}

/// The port for the feed: mutual TLS, both sides with an SVID.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FeedPort {
    /// Where.
    pub listen: SocketAddr,
    /// Foreign trust domains whose workloads may follow too.
    pub federates_with: Vec<TrustDomain>,
}

impl RawHttp {
    pub(super) fn read(self, base: &Path) -> Result<HttpPort, ConfigError> {
        Ok(HttpPort { listen: address("http.listen", &self.listen)?, tls: tls(&self.tls, base)? })
    }
}

impl RawBroker {
    /// `partners` are the trust domains whose bundles there are.
    pub(super) fn read(self, partners: &[&TrustDomain]) -> Result<FeedPort, ConfigError> {
        const KEY: &str = "broker.federates_with";
        let foreign = self.federates_with.iter().map(|name| {
            let foreign = domain(KEY, name)?;
            if partners.contains(&&foreign) {
                return Ok(foreign);
            }
            Err(value(KEY, format!("names `{foreign}`, which has no [[federation]] entry")))
        });
        let federates_with = foreign.collect::<Result<_, _>>()?;
        Ok(FeedPort { listen: address("broker.listen", &self.listen)?, federates_with })
    }
}

/// An address and a port; no name, because a name server would choose where we listen.
pub(super) fn address(key: &str, text: &str) -> Result<SocketAddr, ConfigError> {
    let rule = "has to be an IP address and a port such as \"127.0.0.1:8443\" or \"[::]:8443\"";
    text.parse().map_err(|_not_an_address| value(key, rule))
}

fn tls(told: &toml::Value, base: &Path) -> Result<PortTls, ConfigError> {
    let wrong = || value("http.tls", "has to be \"spiffe\" or { cert = \"FILE\", key = \"FILE\" }");
    if told.as_str() == Some("spiffe") {
        return Ok(PortTls::Spiffe);
    }
    let table = told.as_table().filter(|table| table.len() == 2).ok_or_else(wrong)?;
    let path = |key| table.get(key).and_then(toml::Value::as_str).map(|path| base.join(path));
    let (cert, key) = path("cert").zip(path("key")).ok_or_else(wrong)?;
    Ok(PortTls::Files { cert, key })
}
