//! `[broker_api]`: the SPIFFE Broker API, which nobody is offered unless this table names brokers.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use mayfly_core::{SpiffeId, TrustDomain};
use mayfly_serve::{Allowance, Brokers};
use serde::Deserialize;

use super::{ConfigError, ports::address, value};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBrokerApi {
    socket: Option<PathBuf>,
    listen: Option<String>,
    #[serde(default)]
    broker: Vec<RawAllowance>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAllowance {
    spiffe_id: String,
    references: Vec<String>,
    profiles: Option<BTreeSet<String>>,
}

/// Where the Broker API is served, and to whom.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BrokerApiPort {
    /// The unix socket, in a folder that workloads have no business in.
    pub socket: PathBuf,
    /// The TCP port, if any.
    pub listen: Option<SocketAddr>,
    /// Who may come.
    pub brokers: Brokers,
}

impl BrokerApiPort {
    /// Foreign trust domains of those who may come.
    #[must_use]
    pub fn foreign(&self, own: &TrustDomain) -> BTreeSet<TrustDomain> {
        let domains = self.brokers.keys().map(SpiffeId::trust_domain);
        domains.filter(|domain| *domain != own).cloned().collect()
    }
}

/// What the rest of the file says that matters here.
pub(super) struct Near<'a> {
    pub(super) own: &'a TrustDomain,
    /// Trust domains whose bundles there are.
    pub(super) partners: &'a [&'a TrustDomain],
    pub(super) workload_socket: &'a Path,
}

impl RawBrokerApi {
    pub(super) fn read(
        self,
        (base, data_dir): (&Path, &Path),
        near: &Near<'_>,
    ) -> Result<BrokerApiPort, ConfigError> {
        let told = self.socket.map(|socket| base.join(socket));
        let socket = told.unwrap_or_else(|| data_dir.join("broker").join("broker.sock"));
        if socket.parent() == near.workload_socket.parent() {
            let rule =
                "has to be in another folder than the workload socket: brokers are not workloads";
            return Err(value("broker_api.socket", rule));
        }
        if self.broker.is_empty() {
            return Err(value("broker_api.broker", "has to name at least one broker"));
        }
        let mut brokers = Brokers::new();
        for raw in self.broker {
            let (id, allowance) = raw.read(near)?;
            if let Some(_taken) = brokers.insert(id.clone(), allowance) {
                return Err(value(ID, format!("names `{id}` twice")));
            }
        }
        let listen = self.listen.map(|text| address("broker_api.listen", &text)).transpose()?;
        Ok(BrokerApiPort { socket, listen, brokers })
    }
}

const ID: &str = "broker_api.broker.spiffe_id";
const REFERENCES: &str = "broker_api.broker.references";
const PROFILES: &str = "broker_api.broker.profiles";

impl RawAllowance {
    fn read(self, near: &Near<'_>) -> Result<(SpiffeId, Allowance), ConfigError> {
        let name = &self.spiffe_id;
        let id = SpiffeId::parse(name)
            .map_err(|invalid| value(ID, format!("`{name}`: {}", invalid.rule)))?;
        if id.path().is_empty() {
            return Err(value(ID, format!("`{id}` names a trust domain, not a broker")));
        }
        let domain = id.trust_domain();
        if domain != near.own && !near.partners.contains(&domain) {
            return Err(value(ID, format!("names `{domain}`, which has no [[federation]] entry")));
        }
        let mut allowance = Allowance::default();
        for kind in &self.references {
            match kind.as_str() {
                "pid" => allowance.pid = true,
                "task" => allowance.task = true,
                other => {
                    return Err(value(
                        REFERENCES,
                        format!("knows \"pid\" and \"task\", not `{other}`"),
                    ));
                }
            }
        }
        if self.references.is_empty() {
            return Err(value(REFERENCES, "has to name \"pid\", \"task\" or both"));
        }
        if self.profiles.as_ref().is_some_and(BTreeSet::is_empty) {
            return Err(value(PROFILES, "has to name a profile; leave it out to mean all"));
        }
        allowance.within = self.profiles.map(Arc::new);
        Ok((id, allowance))
    }
}
