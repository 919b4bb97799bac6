//! How one kind of authority follows upon another, as a function of time.

use std::sync::Arc;

use mayfly_core::{Kind, Span, Timestamp, limits};

use crate::{
    authority::{JwtAuthority, X509Authority},
    error::SignError,
};

/// How long authorities live, and how long what they sign may live.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RotationPolicy {
    pub(crate) ca_ttl: Span,
    pub(crate) jwt_key_ttl: Span,
    pub(crate) credential_ttl_max: Span,
}

impl RotationPolicy {
    /// How many credential lives fit into an authority's life, at least.
    pub const CREDENTIALS_PER_AUTHORITY: u64 = 8;
    /// An authority's life where the configuration is silent.
    pub const AUTHORITY_TTL_DEFAULT: Span = Span::from_secs(24 * 3600);

    /// A policy, if the lives fit into each other.
    ///
    /// # Errors
    /// [`SignError::Policy`] if an authority would not live eight times as long as a credential.
    pub fn new(
        ca_ttl: Span,
        jwt_key_ttl: Span,
        credential_ttl_max: Span,
    ) -> Result<Self, SignError> {
        if credential_ttl_max < limits::CREDENTIAL_TTL_MIN {
            return Err(SignError::Policy("credentials live for less than two seconds"));
        }
        let least = credential_ttl_max.0.saturating_mul(Self::CREDENTIALS_PER_AUTHORITY);
        if ca_ttl.0.min(jwt_key_ttl.0) < least {
            return Err(SignError::Policy(
                "an authority has to live at least eight times as long as a credential",
            ));
        }
        Ok(Self { ca_ttl, jwt_key_ttl, credential_ttl_max })
    }

    /// The usual policy for credentials that live for at most `credential_ttl_max`: a day, or eight
    /// times as long as a credential if that is more.
    #[must_use]
    pub fn for_credentials(credential_ttl_max: Span) -> Self {
        let credential_ttl_max = credential_ttl_max.max(limits::CREDENTIAL_TTL_MIN);
        let least = credential_ttl_max.0.saturating_mul(Self::CREDENTIALS_PER_AUTHORITY);
        let ttl = Span(least).max(Self::AUTHORITY_TTL_DEFAULT);
        Self { ca_ttl: ttl, jwt_key_ttl: ttl, credential_ttl_max }
    }

    /// How long an old authority stays published: until its last credential has expired, and a
    /// margin for clocks that are behind and for a signature that was under way.
    pub(crate) fn afterlife(&self) -> Span {
        let margin = limits::FORGET_AFTER.min(self.credential_ttl_max);
        Span(self.credential_ttl_max.0.saturating_add(margin.0))
    }
}

/// One step of a rotation, with the key that it is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RotationStep {
    /// A successor was made. It is published from now on and signs nothing yet.
    Prepared(Kind, String),
    /// The successor signs.
    Activated(Kind, String),
    /// An old authority is no longer published: all it signed has expired.
    Retired(Kind, String),
    /// An operator distrusts an old authority: what it signed is made anew.
    Tainted(Kind, String),
    /// An operator has withdrawn an old authority: what it signed is refused.
    Revoked(Kind, String),
}

/// What an authority does at the moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// It signs.
    Active,
    /// It will sign next.
    Prepared,
    /// It has signed, and is published until the given instant.
    Old(Timestamp),
    /// The same, and nothing that it signed is to be used any longer than it takes to make it anew.
    Tainted(Timestamp),
}

/// What rotation has to know of an authority.
pub(crate) trait Rotates {
    fn key_id(&self) -> &str;
    fn born(&self) -> Timestamp;
    fn expires(&self) -> Timestamp;
}

impl Rotates for X509Authority {
    fn key_id(&self) -> &str {
        self.key_id()
    }
    fn born(&self) -> Timestamp {
        self.born()
    }
    fn expires(&self) -> Timestamp {
        self.not_after()
    }
}

impl Rotates for JwtAuthority {
    fn key_id(&self) -> &str {
        self.key_id()
    }
    fn born(&self) -> Timestamp {
        self.born()
    }
    fn expires(&self) -> Timestamp {
        self.expires()
    }
}

/// An authority that has signed.
#[derive(Debug)]
pub(crate) struct Past<A> {
    pub(crate) authority: Arc<A>,
    /// When it is withdrawn.
    pub(crate) until: Timestamp,
    pub(crate) is_tainted: bool,
}

impl<A> Clone for Past<A> {
    fn clone(&self) -> Self {
        Self { authority: Arc::clone(&self.authority), ..*self }
    }
}

/// The authorities of one kind.
#[derive(Debug)]
pub(crate) struct Track<A> {
    pub(crate) active: Arc<A>,
    pub(crate) prepared: Option<Arc<A>>,
    /// Newest first.
    pub(crate) old: Vec<Past<A>>,
}

impl<A> Clone for Track<A> {
    fn clone(&self) -> Self {
        Self {
            active: Arc::clone(&self.active),
            prepared: self.prepared.clone(),
            old: self.old.clone(),
        }
    }
}

impl<A: Rotates> Track<A> {
    pub(crate) fn new(active: A) -> Self {
        Self { active: Arc::new(active), prepared: None, old: Vec::new() }
    }

    /// All that is published, active first.
    pub(crate) fn published(&self) -> impl Iterator<Item = (&Arc<A>, Standing)> {
        let old = self.old.iter().map(|past| {
            let Past { authority, until, is_tainted } = past;
            let standing = if *is_tainted { Standing::Tainted } else { Standing::Old };
            (authority, standing(*until))
        });
        [(&self.active, Standing::Active)]
            .into_iter()
            .chain(self.prepared.iter().map(|next| (next, Standing::Prepared)))
            .chain(old)
    }

    /// A part of the active one's life, counted from its birth.
    fn quarters(&self, quarters: u64) -> Timestamp {
        let life = self.active.expires().since(self.active.born());
        self.active.born().plus(Span(life.0 / 4 * quarters))
    }

    /// When the successor takes over: late enough to be known everywhere, early enough that what
    /// the active one signs until then does not outlive it. If both cannot be had, because the
    /// broker was not running, the second counts: a caller is connected, and hears of the new
    /// authority before its next certificate.
    fn activate_at(&self, next: &A, policy: &RotationPolicy) -> Timestamp {
        let known = next.born().plus(policy.credential_ttl_max);
        let wish = self.quarters(3).max(known);
        let latest = self.active.expires().minus(policy.credential_ttl_max);
        wish.min(latest).max(next.born())
    }

    pub(crate) fn poll_timeout(&self, policy: &RotationPolicy) -> Timestamp {
        let turn = match &self.prepared {
            Some(next) => self.activate_at(next, policy),
            None => self.quarters(2),
        };
        self.old.iter().map(|past| past.until).fold(turn, Timestamp::min)
    }

    /// Takes all the steps that are due.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Timestamp,
        (kind, policy): (Kind, &RotationPolicy),
        steps: &mut Vec<RotationStep>,
        make: impl FnOnce() -> Result<A, SignError>,
    ) -> Result<(), SignError> {
        if self.prepared.is_none() && now >= self.quarters(2) {
            steps.push(self.prepare(kind, make()?));
        }
        let due = self.prepared.as_ref().is_some_and(|next| now >= self.activate_at(next, policy));
        if let Some(next) = self.prepared.take_if(|_| due) {
            steps.push(self.activate(kind, next, now.plus(policy.afterlife())));
        }
        self.old.retain(|past| {
            let stays = now < past.until;
            if !stays {
                steps.push(RotationStep::Retired(kind, past.authority.key_id().to_owned()));
            }
            stays
        });
        Ok(())
    }

    /// Publishes a successor.
    pub(crate) fn prepare(&mut self, kind: Kind, next: A) -> RotationStep {
        let step = RotationStep::Prepared(kind, next.key_id().to_owned());
        self.prepared = Some(Arc::new(next));
        step
    }

    /// Lets `next` sign; the one before stays published until `until`.
    pub(crate) fn activate(&mut self, kind: Kind, next: Arc<A>, until: Timestamp) -> RotationStep {
        let step = RotationStep::Activated(kind, next.key_id().to_owned());
        let authority = std::mem::replace(&mut self.active, next);
        self.old.insert(0, Past { authority, until, is_tainted: false });
        step
    }
}
