//! The configuration file, checked whole before anything is started.
//!
//! `RawConfig` is what stands in the file, [`Config`] what it means. Profiles stand in the same file
//! and are read by `mayfly-policy`, so they are cut out of the document here and left to it.

use std::path::{Path, PathBuf};

use mayfly_core::{Admission, PolicyEpoch, Span, TrustDomain, limits};
use mayfly_policy::{Profiles, Rights};
use mayfly_serve::sds::Names;
use serde::Deserialize;

use self::{
    admission::RawAdmission,
    attest::RawAttest,
    broker_api::RawBrokerApi,
    envoy::RawEnvoy,
    federation::RawFederation,
    oidc::RawOidc,
    ports::{RawBroker, RawHttp},
    roles::RawRole,
};
pub use self::{
    broker_api::BrokerApiPort,
    federation::{BundleEndpoint, EndpointProfile, Federation},
    oidc::{OidcIssuer, OidcRule, Subject},
    ports::{FeedPort, HttpPort, PortTls},
};

mod admission;
mod attest;
mod broker_api;
mod envoy;
mod federation;
mod oidc;
mod ports;
mod roles;

pub(crate) use self::federation::url as endpoint_url;

/// What may be wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML, or has unknown or missing keys.
    #[error("invalid configuration: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A value is out of range.
    #[error("invalid configuration: `{key}` {rule}")]
    Value {
        /// The key.
        key: String,
        /// What it has to be.
        rule: String,
    },
    /// A profile is wrong.
    #[error(transparent)]
    Profiles(#[from] mayfly_policy::InvalidProfiles),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    trust_domain: Option<String>,
    node: Option<String>,
    #[serde(default)]
    workload: RawWorkload,
    #[serde(default)]
    tasks: RawTasks,
    #[serde(default)]
    authority: RawAuthority,
    #[serde(default)]
    federation: Vec<RawFederation>,
    #[serde(default)]
    status: RawStatus,
    #[serde(default)]
    envoy: RawEnvoy,
    #[serde(default)]
    attest: RawAttest,
    #[serde(default)]
    admission: RawAdmission,
    http: Option<RawHttp>,
    broker: Option<RawBroker>,
    #[serde(default)]
    role: Vec<RawRole>,
    broker_api: Option<RawBrokerApi>,
    #[serde(default)]
    oidc: Vec<RawOidc>,
    // Read by mayfly-policy; named here so that a misspelt key beside it is an error.
    #[serde(default, rename = "profile")]
    _profile: Vec<toml::Table>,
    #[serde(default, rename = "owners")]
    _owners: Option<toml::Value>,
    #[serde(default, rename = "transfers")]
    _transfers: Option<toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWorkload {
    socket: Option<PathBuf>,
    mode: Option<String>,
    task_sockets: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTasks {
    socket: Option<PathBuf>,
    mode: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAuthority {
    storage: Option<String>,
    ca_ttl: Option<String>,
    jwt_key_ttl: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStatus {
    public_url: Option<String>,
}

/// Where authority keys live.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyStorage {
    /// In the data directory, 0600.
    Disk,
    /// In memory; a restart makes new ones and every SVID has to be fetched again.
    Memory,
}

/// A configuration that holds together.
#[derive(Debug)]
pub struct Config {
    /// The trust domain issued for.
    pub trust_domain: TrustDomain,
    /// What this machine is called.
    pub node: String,
    /// The Workload API's socket.
    pub workload_socket: PathBuf,
    /// Its permission bits. Attestation decides who gets what, so everyone may connect by default.
    pub workload_mode: u32,
    /// The directory of the tasks' own sockets, `None` for the data directory's.
    pub task_sockets: Option<PathBuf>,
    /// Where the Task API is served besides the data directory, which is private, and the permission
    /// bits there.
    pub tasks_socket: Option<(PathBuf, u32)>,
    /// Where authority keys live.
    pub key_storage: KeyStorage,
    /// Life of a certificate authority.
    pub ca_ttl: Span,
    /// Life of a JWT key.
    pub jwt_key_ttl: Span,
    /// Foreign trust domains.
    pub federation: Vec<Federation>,
    /// Where status lists are published, if anywhere.
    pub public_url: Option<String>,
    /// Under which names an Envoy asks for its default identity and for whom to trust.
    pub secret_names: Names,
    /// The D-Bus address behind which systemd is asked about units, `None` for the system bus.
    pub dbus: Option<String>,
    /// The socket of the container engine that is asked how containers ended, if any is.
    pub engine: Option<PathBuf>,
    /// How many credentials may be asked for at once.
    pub admission: Admission,
    /// Where documents are served over HTTPS, if anywhere.
    pub http: Option<HttpPort>,
    /// Where the feed is served to verifiers elsewhere, if anywhere.
    pub feed_port: Option<FeedPort>,
    /// Who may do what.
    pub rights: Rights,
    /// Where the Broker API is served and to whom, if at all.
    pub broker_api: Option<BrokerApiPort>,
    /// Whose tokens begin tasks of pipelines elsewhere.
    pub oidc: Vec<OidcIssuer>,
    /// The first edition of the profiles.
    pub profiles: Profiles,
}

/// The first edition of the profiles.
pub const FIRST_EPOCH: PolicyEpoch = PolicyEpoch(1);
/// The longest name of a machine: as long as a host's may be.
const NODE_BYTES_MAX: usize = 255;
const CA_TTL_DEFAULT: Span = Span::from_secs(24 * 3600);

impl Config {
    /// What holds without a file: the profile `dev` for `uid`, sockets under `data_dir`.
    ///
    /// # Errors
    /// When `trust_domain` is not one.
    pub fn built_in(data_dir: &Path, trust_domain: &str, uid: u32) -> Result<Self, ConfigError> {
        Ok(Self {
            trust_domain: domain("trust_domain", trust_domain)?,
            node: host_name(),
            workload_socket: data_dir.join("workload.sock"),
            workload_mode: 0o777,
            task_sockets: None,
            tasks_socket: None,
            key_storage: KeyStorage::Disk,
            ca_ttl: CA_TTL_DEFAULT,
            jwt_key_ttl: CA_TTL_DEFAULT,
            federation: Vec::new(),
            public_url: None,
            secret_names: Names::default(),
            dbus: None,
            engine: None,
            admission: Admission::default(),
            http: None,
            feed_port: None,
            rights: Rights::new(uid),
            broker_api: None,
            oidc: Vec::new(),
            profiles: Profiles::dev(uid).at_epoch(FIRST_EPOCH),
        })
    }

    /// Reads `path`. `trust_domain` from the command line wins over the file's.
    ///
    /// # Errors
    /// [`ConfigError`] names the key and the rule.
    pub fn read(
        path: &Path,
        data_dir: &Path,
        trust_domain: Option<&str>,
        uid: u32,
    ) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        let base = path.parent().unwrap_or_else(|| Path::new("."));
        Self::parse(&text, (base, data_dir), trust_domain, uid)
    }

    /// Reads a configuration's text; relative paths are relative to `base`.
    ///
    /// # Errors
    /// [`ConfigError`] names the key and the rule.
    pub fn parse(
        text: &str,
        (base, data_dir): (&Path, &Path),
        trust_domain: Option<&str>,
        uid: u32,
    ) -> Result<Self, ConfigError> {
        let raw: RawConfig = toml::from_str(text)?;
        let name = trust_domain.map(str::to_owned).or(raw.trust_domain);
        let built_in = Self::built_in(data_dir, name.as_deref().unwrap_or("example.org"), uid)?;
        let written = parse_profiles(text, &built_in.trust_domain, FIRST_EPOCH)?;
        let profiles = if raw._profile.is_empty() {
            built_in.profiles.with_owners_of(written)
        } else {
            written
        };
        let socket = raw.workload.socket.map(|socket| base.join(socket));
        let federation = federation::read(raw.federation, &built_in.trust_domain, base)?;
        let partners: Vec<_> = federation.iter().map(|entry| &entry.trust_domain).collect();
        let feed_port = raw.broker.map(|broker| broker.read(&partners)).transpose()?;
        let workload_socket = socket.unwrap_or(built_in.workload_socket);
        let taken = [&workload_socket, &data_dir.join("tasks.sock"), &data_dir.join("admin.sock")]
            .map(PathBuf::clone);
        let near = broker_api::Near {
            own: &built_in.trust_domain,
            partners: &partners,
            workload_socket: &workload_socket,
        };
        let broker_api = raw.broker_api.map(|raw| raw.read((base, data_dir), &near)).transpose()?;
        let known = (&built_in.trust_domain, federation.as_slice());
        let oidc = oidc::read(raw.oidc, known, raw.status.public_url.as_deref(), base)?;
        let has_rules = oidc.iter().any(|issuer| !issuer.rules.is_empty());
        if has_rules && raw.http.is_none() {
            return Err(value("oidc", "needs an [http] table: pipelines come to that port"));
        }
        let roles = roles::read(raw.role)?;
        let (dbus, engine) = raw.attest.read()?;
        oidc::check_roles(&oidc, &roles)?;
        Ok(Self {
            node: raw.node.map_or(Ok(built_in.node), node)?,
            workload_socket,
            workload_mode: mode("workload.mode", raw.workload.mode)?.unwrap_or(0o777),
            task_sockets: raw.workload.task_sockets.map(|dir| base.join(dir)),
            tasks_socket: tasks_socket(raw.tasks, base, &taken)?,
            key_storage: key_storage(raw.authority.storage.as_deref())?,
            ca_ttl: ttl("authority.ca_ttl", raw.authority.ca_ttl.as_deref())?,
            jwt_key_ttl: ttl("authority.jwt_key_ttl", raw.authority.jwt_key_ttl.as_deref())?,
            federation,
            public_url: raw.status.public_url,
            secret_names: raw.envoy.read()?,
            dbus,
            engine,
            admission: raw.admission.read()?,
            http: raw.http.map(|http| http.read(base)).transpose()?,
            feed_port,
            rights: built_in.rights.with(roles),
            broker_api,
            oidc,
            trust_domain: built_in.trust_domain,
            profiles,
        })
    }
}

/// Reads the profiles of a document that may hold other tables too.
///
/// # Errors
/// When it is not TOML or a profile is wrong.
pub fn parse_profiles(
    text: &str,
    trust_domain: &TrustDomain,
    epoch: PolicyEpoch,
) -> Result<Profiles, ConfigError> {
    Ok(Profiles::parse(text, trust_domain, epoch)?)
}

fn value(key: &str, rule: impl Into<String>) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), rule: rule.into() }
}

fn domain(key: &str, name: &str) -> Result<TrustDomain, ConfigError> {
    TrustDomain::parse(name).map_err(|invalid| value(key, format!("`{name}`: {}", invalid.rule)))
}

/// What the system calls this machine.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

fn node(name: String) -> Result<String, ConfigError> {
    let fits = (1..=NODE_BYTES_MAX).contains(&name.len())
        && !name.chars().any(|c| c.is_control() || c.is_whitespace());
    let rule = format!("has to be a name of 1 to {NODE_BYTES_MAX} bytes without spaces");
    if fits { Ok(name) } else { Err(value("node", rule)) }
}

fn mode(key: &str, text: Option<String>) -> Result<Option<u32>, ConfigError> {
    let Some(text) = text else { return Ok(None) };
    let wrong = || value(key, "has to be an octal number such as \"0770\"");
    let mode = u32::from_str_radix(&text, 8).map_err(|_not_octal| wrong())?;
    if mode > 0o777 { Err(wrong()) } else { Ok(Some(mode)) }
}

fn tasks_socket(
    raw: RawTasks,
    base: &Path,
    taken: &[PathBuf],
) -> Result<Option<(PathBuf, u32)>, ConfigError> {
    let mode = mode("tasks.mode", raw.mode)?;
    let Some(socket) = raw.socket.map(|socket| base.join(socket)) else {
        let alone = || Err(value("tasks.mode", "is that of `tasks.socket`, which is missing"));
        return mode.map_or(Ok(None), |_| alone());
    };
    if taken.contains(&socket) {
        return Err(value("tasks.socket", "has to be a path of its own"));
    }
    Ok(Some((socket, mode.unwrap_or(0o666))))
}

fn key_storage(name: Option<&str>) -> Result<KeyStorage, ConfigError> {
    match name {
        None | Some("disk") => Ok(KeyStorage::Disk),
        Some("memory") => Ok(KeyStorage::Memory),
        Some(_) => Err(value("authority.storage", "has to be \"disk\" or \"memory\"")),
    }
}

/// A key has to live long enough to be prepared and activated around the credentials that it signs.
fn ttl(key: &str, text: Option<&str>) -> Result<Span, ConfigError> {
    let Some(text) = text else { return Ok(CA_TTL_DEFAULT) };
    let span = mayfly_policy::duration::parse(text)
        .ok_or_else(|| value(key, "has to be a duration such as \"24h\""))?;
    if span < limits::CREDENTIAL_TTL_MIN {
        return Err(value(key, format!("has to be at least {}", limits::CREDENTIAL_TTL_MIN)));
    }
    Ok(span)
}
