//! What is there before anybody is served: profiles, store, keys, and what was noticed about them.

use mayfly_core::{Span, Timestamp};
use mayfly_sign::{KeyRing, RotationPolicy};
use mayfly_store::{IndexReport, OpenOptions, OpenReport, Store};

use super::{BrokerError, StartOptions};
use crate::{
    config::{Config, ConfigError, FIRST_EPOCH, KeyStorage, parse_profiles},
    paths::Paths,
};

/// Profiles that were applied live count until they are applied anew or their file is removed.
pub(super) fn with_applied_profiles(
    mut config: Config,
    paths: &Paths,
    notices: &mut Vec<String>,
) -> Result<Config, BrokerError> {
    let path = paths.applied_profiles();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(config),
        Err(source) => return Err(ConfigError::Unreadable { path, source }.into()),
    };
    config.profiles = parse_profiles(&text, &config.trust_domain, FIRST_EPOCH)?;
    notices.push(format!(
        "the profiles are those of the last `mayfly profile apply`; remove `{}` to go back to the \
         configuration's",
        path.display()
    ));
    Ok(config)
}

pub(super) async fn open_store(
    paths: &Paths,
    options: &StartOptions,
    now: Timestamp,
) -> Result<mayfly_store::Opened, BrokerError> {
    let mut open = OpenOptions::new(now);
    open.confirm_restored = options.accept_restored;
    open.sentinel_dir.clone_from(&options.sentinel_dir);
    let root = paths.root().to_owned();
    let opened = tokio::task::spawn_blocking(move || Store::open(&root, &open)).await;
    Ok(opened.map_err(|stopped| BrokerError::Thread(std::io::Error::other(stopped)))??)
}

pub(super) fn open_keys(
    config: &Config,
    paths: &Paths,
    now: Timestamp,
) -> Result<(KeyRing, Span), BrokerError> {
    let longest = config.profiles.iter().map(|p| p.terms.x509_ttl.max(p.terms.jwt_ttl)).max();
    let longest = longest.unwrap_or(mayfly_core::limits::X509_TTL_DEFAULT);
    let policy = RotationPolicy::new(config.ca_ttl, config.jwt_key_ttl, longest)?;
    let domain = config.trust_domain.clone();
    let ring = match config.key_storage {
        KeyStorage::Disk => KeyRing::open(&paths.keys(), domain, policy, now)?,
        KeyStorage::Memory => KeyRing::create(domain, policy, now)?,
    };
    let url = config.public_url.as_deref().map(mayfly_sign::PublicUrl::parse).transpose()?;
    Ok((ring.with_public_url(url), config.ca_ttl.min(config.jwt_key_ttl)))
}

pub(super) fn notices(report: &OpenReport) -> Vec<String> {
    let torn = report.torn.as_ref().map(|torn| {
        format!("a write that never finished was cut off after record {}", torn.after.0)
    });
    let index = match &report.index {
        IndexReport::Used(_) | IndexReport::Created => None,
        IndexReport::Rebuilt(why) => Some(format!("the index was rebuilt from the log: {why}")),
        IndexReport::Unusable(why) => Some(format!("no index can be kept: {why}")),
    };
    torn.into_iter().chain(index).chain(report.restored.clone()).collect()
}

/// Each stream, each watched process and each socket costs a descriptor, and the usual soft limit is
/// a thousand.
pub(super) fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
}
