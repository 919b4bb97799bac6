//! Bundles of foreign trust domains: from files that somebody else keeps up to date, and from bundle
//! endpoints (SPIFFE Federation).
//!
//! Both come to the same place. What an endpoint gave is kept as a file in the data directory, so that
//! a restart has it, and files are read again when they change. A file that cannot be read or
//! understood leaves the bundle that was there before in force and says so: an operator's slip must not
//! cut off a whole domain. To withdraw a domain, remove it from the configuration; what was fetched for it
//! is removed with it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

use mayfly_core::TrustDomain;

use crate::config::Federation;

mod document;
pub(crate) mod fetch;
mod poll;

pub use document::{BUNDLE_BYTES_MAX, BundleError, ForeignBundle};
pub use fetch::FetchError;
pub use poll::Poller;
pub(crate) use poll::known_by;

/// Where the bundle that an endpoint gave for `domain` is kept.
#[must_use]
pub fn fetched(dir: &Path, domain: &TrustDomain) -> PathBuf {
    dir.join(format!("{domain}.json"))
}

/// All foreign bundles, and where they come from.
#[derive(Debug)]
pub struct Federations {
    entries: Vec<Entry>,
    bundles: BTreeMap<TrustDomain, ForeignBundle>,
}

#[derive(Debug)]
struct Entry {
    trust_domain: TrustDomain,
    /// What the operator told.
    told: Option<Source>,
    /// What its endpoint gave.
    fetched: Option<Source>,
}

/// A file, and what it said when it could be understood last.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    seen: Option<Stamp>,
    bundle: Option<ForeignBundle>,
}

/// What changes when a file does; the default is that of no file.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
}

impl Federations {
    /// Nothing is read yet; call [`Self::reload`]. What endpoints give is kept in `dir`, where what is
    /// left of relations that are over is removed.
    #[must_use]
    pub fn new(entries: &[Federation], dir: &Path) -> Self {
        let entries = entries.iter().map(|entry| Entry {
            trust_domain: entry.trust_domain.clone(),
            told: entry.bundle.clone().map(Source::new),
            fetched: entry
                .endpoint
                .as_ref()
                .map(|_| Source::new(fetched(dir, &entry.trust_domain))),
        });
        let federations = Self { entries: entries.collect(), bundles: BTreeMap::new() };
        if let Err(error) = federations.remove_others(dir) {
            tracing::error!(%error, "bundles of former partners could not be removed");
        }
        federations
    }

    /// The bundles in force.
    #[must_use]
    pub const fn bundles(&self) -> &BTreeMap<TrustDomain, ForeignBundle> {
        &self.bundles
    }

    /// Reads the files that have changed; `true` if a bundle did.
    pub fn reload(&mut self) -> bool {
        let mut changed = false;
        for entry in &mut self.entries {
            let domain = &entry.trust_domain;
            let sources = [&mut entry.told, &mut entry.fetched].into_iter().flatten();
            let news =
                sources.map(|source| source.reload(domain)).fold(false, |any, one| any | one);
            if !news {
                continue;
            }
            let Some(bundle) = entry.in_force() else { continue };
            if self.bundles.get(domain) != Some(bundle) {
                tracing::info!(trust_domain = %domain, "federated bundle loaded");
                self.bundles.insert(domain.clone(), bundle.clone());
                changed = true;
            }
        }
        changed
    }

    /// Ending a relation is deleting what was kept for it (SPIFFE Federation §6.3).
    fn remove_others(&self, dir: &Path) -> std::io::Result<()> {
        let listed = match std::fs::read_dir(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            listed => listed?,
        };
        let kept = |path: &Path| {
            self.entries.iter().filter_map(|e| e.fetched.as_ref()).any(|source| source.path == path)
        };
        for file in listed {
            let path = file?.path();
            if !kept(&path) {
                std::fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

impl Entry {
    /// What was fetched, unless what was told is a later edition: then the operator has begun anew.
    fn in_force(&self) -> Option<&ForeignBundle> {
        let told = self.told.as_ref().and_then(|source| source.bundle.as_ref());
        let fetched = self.fetched.as_ref().and_then(|source| source.bundle.as_ref());
        match (told, fetched) {
            (Some(told), Some(fetched)) if fetched.is_older_than(told) => Some(told),
            (told, fetched) => fetched.or(told),
        }
    }
}

impl Source {
    const fn new(path: PathBuf) -> Self {
        Self { path, seen: None, bundle: None }
    }

    /// Reads the file if it has changed; `true` if it says something else.
    fn reload(&mut self, domain: &TrustDomain) -> bool {
        let stamp = std::fs::metadata(&self.path).map_or_else(
            |_absent| Stamp::default(),
            |meta| Stamp { modified: meta.modified().ok(), bytes: meta.len() },
        );
        if self.seen.replace(stamp) == Some(stamp) {
            return false;
        }
        match ForeignBundle::read(&self.path) {
            Ok(bundle) => {
                let changed = self.bundle.as_ref() != Some(&bundle);
                self.bundle = Some(bundle);
                changed
            }
            Err(error) => {
                let path = self.path.display();
                tracing::error!(trust_domain = %domain, %path, %error, "federated bundle not used");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other() -> TrustDomain {
        TrustDomain::parse("other.org").unwrap()
    }

    fn entry(told: Option<PathBuf>, fetched: bool) -> Federation {
        let endpoint = fetched.then(|| crate::config::BundleEndpoint {
            url: "https://other.org/".parse().unwrap(),
            profile: crate::config::EndpointProfile::HttpsWeb { ca: None },
        });
        Federation { trust_domain: other(), bundle: told, endpoint }
    }

    fn edition(sequence: u64) -> String {
        let key = format!(r#"{{"use":"jwt-svid","kty":"EC","kid":"of-{sequence}"}}"#);
        format!(r#"{{"keys":[{key}],"spiffe_sequence":{sequence}}}"#)
    }

    fn in_force(federations: &Federations) -> Option<u64> {
        federations.bundles().get(&other()).and_then(|bundle| bundle.sequence)
    }

    #[test]
    fn a_broken_file_leaves_the_bundle_that_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle.json");
        let entries = [entry(Some(path.clone()), false)];
        let mut federations = Federations::new(&entries, &dir.path().join("none"));
        assert!(!federations.reload());
        std::fs::write(&path, r#"{"keys":[{"use":"jwt-svid","kty":"EC","kid":"a"}]}"#).unwrap();
        assert!(federations.reload());
        std::fs::write(&path, "{").unwrap();
        assert!(!federations.reload());
        assert_eq!(federations.bundles().len(), 1);
    }

    #[test]
    fn point_83_what_was_fetched_goes_before_what_was_told_unless_it_is_older() {
        let dir = tempfile::tempdir().unwrap();
        let (told, kept) = (dir.path().join("told.json"), dir.path().join("kept"));
        std::fs::create_dir(&kept).unwrap();
        let entries = [entry(Some(told.clone()), true)];
        let mut federations = Federations::new(&entries, &kept);
        std::fs::write(&told, edition(5)).unwrap();
        assert!(federations.reload());
        assert_eq!(in_force(&federations), Some(5));
        std::fs::write(fetched(&kept, &other()), edition(70)).unwrap();
        assert!(federations.reload());
        assert_eq!(in_force(&federations), Some(70));
        std::fs::write(&told, edition(800)).unwrap();
        assert!(federations.reload());
        assert_eq!(in_force(&federations), Some(800));
    }

    #[test]
    fn point_85_what_was_fetched_is_there_after_a_restart() {
        let kept = tempfile::tempdir().unwrap();
        std::fs::write(fetched(kept.path(), &other()), edition(7)).unwrap();
        let mut federations = Federations::new(&[entry(None, true)], kept.path());
        assert!(federations.reload());
        assert_eq!(in_force(&federations), Some(7));
    }

    #[test]
    fn point_86_what_was_fetched_goes_with_its_relation() {
        let kept = tempfile::tempdir().unwrap();
        let file = fetched(kept.path(), &other());
        std::fs::write(&file, edition(7)).unwrap();
        // The same domain by file alone: what its endpoint gave is not used for it either.
        let mut federations =
            Federations::new(&[entry(Some(kept.path().join("../absent")), false)], kept.path());
        assert!(!file.exists());
        assert!(!federations.reload());
    }
}
