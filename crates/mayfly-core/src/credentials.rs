//! A task's credentials: a few certificates, and as many tokens as it asked for.
//!
//! The two stand apart because the end of a task has to name each certificate and no token. So an end costs the
//! same whether the task has had one token or ten thousand.

use alloc::{boxed::Box, vec::Vec};

use crate::{
    ledger::{Credential, Kind, Serial},
    time::Timestamp,
};

/// See the module. A task that has none pays for a pointer.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Credentials(Option<Box<Kinds>>);

#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Kinds {
    certificates: Vec<Credential>,
    tokens: Vec<Credential>,
    /// When the last of them expires.
    latest: Timestamp,
}

impl Kinds {
    const fn of(&mut self, kind: Kind) -> &mut Vec<Credential> {
        match kind {
            Kind::X509 => &mut self.certificates,
            Kind::Jwt => &mut self.tokens,
        }
    }
}

impl Credentials {
    pub(crate) fn push(&mut self, credential: Credential) {
        let kinds = self.0.get_or_insert_default();
        kinds.latest = kinds.latest.max(credential.not_after);
        kinds.of(credential.kind).push(credential);
    }

    /// Those of one kind, the newest last.
    pub(crate) fn of(&self, kind: Kind) -> &[Credential] {
        match (&self.0, kind) {
            (None, _) => &[],
            (Some(kinds), Kind::X509) => &kinds.certificates,
            (Some(kinds), Kind::Jwt) => &kinds.tokens,
        }
    }

    pub(crate) fn of_mut(&mut self, kind: Kind) -> &mut [Credential] {
        self.0.as_mut().map_or(&mut [], |kinds| kinds.of(kind))
    }

    /// All of them, certificates first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Credential> {
        self.of(Kind::X509).iter().chain(self.of(Kind::Jwt))
    }

    /// The one of that name. The newest are asked about most.
    pub(crate) fn find(&self, serial: &Serial) -> Option<&Credential> {
        let mut newest_first =
            [Kind::X509, Kind::Jwt].iter().flat_map(|kind| self.of(*kind).iter().rev());
        newest_first.find(|credential| credential.serial == *serial)
    }

    pub(crate) fn find_mut(&mut self, serial: &Serial) -> Option<&mut Credential> {
        let kinds = self.0.as_mut()?;
        let mut all = kinds.certificates.iter_mut().chain(&mut kinds.tokens);
        all.find(|credential| credential.serial == *serial)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.of(Kind::X509).len() + self.of(Kind::Jwt).len()
    }

    /// When the last of them expires.
    pub(crate) fn latest(&self) -> Option<Timestamp> {
        self.0.as_ref().map(|kinds| kinds.latest)
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&Credential) -> bool) {
        if let Some(kinds) = &mut self.0 {
            kinds.certificates.retain(&keep);
            kinds.tokens.retain(&keep);
        }
        let latest = self.iter().map(|credential| credential.not_after).max();
        match (&mut self.0, latest) {
            (Some(kinds), Some(latest)) => kinds.latest = latest,
            (kinds, _) => *kinds = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::TaskVersion, ledger::Place};

    fn one(kind: Kind, luck: u64, not_after: u64) -> Credential {
        Credential {
            serial: Serial::new(Place::default(), luck),
            kind,
            version: TaskVersion(1),
            not_after: Timestamp(not_after),
            revoked_at: None,
        }
    }

    #[test]
    fn what_is_left_is_like_what_never_had_more() {
        let (old, kept) = (one(Kind::Jwt, 1, 900), one(Kind::X509, 2, 500));
        let mut less = Credentials::default();
        less.push(old);
        less.push(kept);
        assert_eq!((less.len(), less.latest()), (2, Some(Timestamp(900))));
        assert_eq!(less.find(&old.serial), Some(&old));
        less.retain(|credential| credential.not_after < Timestamp(600));
        let mut never = Credentials::default();
        never.push(kept);
        assert_eq!(less, never);
        less.retain(|_| false);
        assert_eq!((less.latest(), less), (None, Credentials::default()));
    }
}
