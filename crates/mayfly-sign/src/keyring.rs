//! The authorities of a trust domain, and their automatic rotation.
//!
//! Of each kind there is one active authority, at most one prepared successor, and the old ones whose
//! credentials may still be about. All of them are published. With a life of *T* for an authority and
//! at most *C* for a credential, where *T* ≥ 8 *C*:
//!
//! ```text
//!  born        T/2            3T/4                    3T/4 + C + margin      T
//!   │  signs    │ successor    │ successor signs,      │ no longer           │ notAfter
//!   │           │ published    │ this one is old       │ published           │
//! ```
//!
//! A successor is known for *T*/4 ≥ 2 *C*, four renewals at half life, before it signs. The last
//! credential that the old one signed ends at 3*T*/4 + *C* ≤ *T*, so no credential is cut short by its
//! authority, and the old one stays published until that credential has expired.
//!
//! The ring is a function of time: it says when it wants to be called ([`KeyRing::poll_timeout`]) and
//! what it did ([`KeyRing::handle_timeout`]). A ring that lives in a directory writes what it is about
//! to do before anyone can see it, so a crash never forgets a key that was published or has signed.

use std::{path::Path, sync::Arc};

use mayfly_core::{Kind, Span, Timestamp, TrustDomain};
use serde::Serialize;

use crate::{
    authority::{Jwk, JwtAuthority, X509Authority},
    crl,
    error::SignError,
    keydir::KeyDir,
    orders::{AuthorityOrder, OrderError},
    publisher::{Publisher, Signed},
    rotation::{Rotates, RotationPolicy, RotationStep, Standing, Track},
    signer::{PublicUrl, Signer},
};

/// How long to leave a disk alone that did not take a new key.
const RETRY: Span = Span::from_secs(1);

/// An authority, for listings.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuthorityView {
    /// Certificates or tokens.
    pub kind: Kind,
    /// Its key's name: the subject key identifier, or the `kid`.
    pub key_id: String,
    /// What it does.
    pub standing: Standing,
    /// When it was made.
    pub born: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
}

/// The authorities of both kinds, as they are stored and swapped: as a whole.
#[derive(Clone, Debug)]
pub(crate) struct Authorities {
    pub(crate) x509: Track<X509Authority>,
    pub(crate) jwt: Track<JwtAuthority>,
}

/// All authorities of one trust domain.
#[derive(Debug)]
pub struct KeyRing {
    trust_domain: TrustDomain,
    policy: RotationPolicy,
    public_url: Option<PublicUrl>,
    authorities: Authorities,
    home: Option<KeyDir>,
    retry_at: Option<Timestamp>,
    signer: Arc<Signer>,
}

impl KeyRing {
    /// New authorities that live in memory only.
    ///
    /// # Errors
    /// [`SignError`] if there is no randomness, or `now` is beyond the calendar.
    pub fn create(
        trust_domain: TrustDomain,
        policy: RotationPolicy,
        now: Timestamp,
    ) -> Result<Self, SignError> {
        let x509 = X509Authority::generate(&trust_domain, now, policy.ca_ttl)?;
        let authorities = Authorities {
            x509: Track::new(x509),
            jwt: Track::new(JwtAuthority::generate(now, policy.jwt_key_ttl)?),
        };
        Ok(Self::assemble(trust_domain, policy, authorities, None))
    }

    /// The authorities that live in `dir`; new ones if it is empty or not there.
    ///
    /// They may have slept for long: call [`handle_timeout`](Self::handle_timeout) before serving.
    ///
    /// # Errors
    /// [`SignError::KeyDir`] if what is there is not ours, not private or not sound. A directory that
    /// is not understood is never replaced by new keys: that would silently end every credential.
    pub fn open(
        dir: &Path,
        trust_domain: TrustDomain,
        policy: RotationPolicy,
        now: Timestamp,
    ) -> Result<Self, SignError> {
        let home = KeyDir::prepare(dir)?;
        if let Some(authorities) = home.load(&trust_domain)? {
            return Ok(Self::assemble(trust_domain, policy, authorities, Some(home)));
        }
        let mut ring = Self::create(trust_domain, policy, now)?;
        home.begin(&ring.trust_domain)?;
        home.save(&ring.trust_domain, &ring.authorities)?;
        ring.home = Some(home);
        Ok(ring)
    }

    /// The authorities that live in `dir`, which has to hold some.
    ///
    /// # Errors
    /// As [`open`](Self::open), and if there are none.
    pub fn load(
        dir: &Path,
        trust_domain: TrustDomain,
        policy: RotationPolicy,
    ) -> Result<Self, SignError> {
        let home = KeyDir::existing(dir)?;
        let authorities = home.load(&trust_domain)?.ok_or_else(|| home.missing())?;
        Ok(Self::assemble(trust_domain, policy, authorities, Some(home)))
    }

    /// Writes the authorities to `dir`. A ring that was opened there does so by itself.
    ///
    /// # Errors
    /// [`SignError::KeyDir`] if `dir` is not ours or not private, or the disk does not take it.
    pub fn save(&self, dir: &Path) -> Result<(), SignError> {
        Ok(KeyDir::prepare(dir)?.save(&self.trust_domain, &self.authorities)?)
    }

    /// The same ring, whose credentials say under `url` where their revocation is published.
    #[must_use]
    pub fn with_public_url(mut self, url: Option<PublicUrl>) -> Self {
        self.public_url = url;
        self.renew_signer();
        self
    }

    fn assemble(
        trust_domain: TrustDomain,
        policy: RotationPolicy,
        authorities: Authorities,
        home: Option<KeyDir>,
    ) -> Self {
        let signer = Signer::new(
            trust_domain.clone(),
            Arc::clone(&authorities.x509.active),
            Arc::clone(&authorities.jwt.active),
            None,
        );
        Self {
            trust_domain,
            policy,
            public_url: None,
            authorities,
            home,
            retry_at: None,
            signer: Arc::new(signer),
        }
    }

    fn renew_signer(&mut self) {
        self.signer = Arc::new(Signer::new(
            self.trust_domain.clone(),
            Arc::clone(&self.authorities.x509.active),
            Arc::clone(&self.authorities.jwt.active),
            self.public_url.clone(),
        ));
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do next. May be in the past.
    #[must_use]
    pub fn poll_timeout(&self) -> Timestamp {
        let x509 = self.authorities.x509.poll_timeout(&self.policy);
        let jwt = self.authorities.jwt.poll_timeout(&self.policy);
        x509.min(jwt).max(self.retry_at.unwrap_or_default())
    }

    /// Takes all the steps that are due at `now`, in the order in which they are to be told.
    ///
    /// After any step the bundle has changed; after `Activated`, [`signer`](Self::signer) has too.
    /// Credentials that were signed before remain valid, so nobody has to be called back.
    ///
    /// # Errors
    /// [`SignError`] if a key could not be made or stored. Then nothing has changed, the active
    /// authorities go on signing, and [`poll_timeout`](Self::poll_timeout) asks for another try.
    pub fn handle_timeout(&mut self, now: Timestamp) -> Result<Vec<RotationStep>, SignError> {
        let outcome = self.rotate(now);
        self.retry_at = outcome.is_err().then(|| now.plus(RETRY));
        outcome
    }

    fn rotate(&mut self, now: Timestamp) -> Result<Vec<RotationStep>, SignError> {
        let mut next = self.authorities.clone();
        let mut steps = Vec::new();
        let policy = &self.policy;
        next.x509.handle_timeout(now, (Kind::X509, policy), &mut steps, || {
            X509Authority::generate(&self.trust_domain, now, policy.ca_ttl)
        })?;
        next.jwt.handle_timeout(now, (Kind::Jwt, policy), &mut steps, || {
            JwtAuthority::generate(now, policy.jwt_key_ttl)
        })?;
        self.adopt(next, !steps.is_empty())?;
        Ok(steps)
    }

    /// Carries out what an operator orders, and says which step that took; none if it was so already.
    ///
    /// # Errors
    /// [`OrderError`], and nothing has changed.
    pub fn order(
        &mut self,
        kind: Kind,
        order: &AuthorityOrder,
        now: Timestamp,
    ) -> Result<Option<RotationStep>, OrderError> {
        let mut next = self.authorities.clone();
        let policy = &self.policy;
        let step = match kind {
            Kind::X509 => next.x509.obey(now, (kind, policy), order, || {
                X509Authority::generate(&self.trust_domain, now, policy.ca_ttl)
            })?,
            Kind::Jwt => next.jwt.obey(now, (kind, policy), order, || {
                JwtAuthority::generate(now, policy.jwt_key_ttl)
            })?,
        };
        self.adopt(next, step.is_some())?;
        Ok(step)
    }

    /// Puts `next` in the place of what is, if it is different.
    fn adopt(&mut self, next: Authorities, is_different: bool) -> Result<(), SignError> {
        if !is_different {
            return Ok(());
        }
        // On disk first: a key that was shown and then forgotten could not be published again.
        if let Some(home) = &self.home {
            home.save(&self.trust_domain, &next)?;
        }
        self.authorities = next;
        self.renew_signer();
        Ok(())
    }

    /// The active authorities. Cheap; a signature under way keeps the ones it began with.
    #[must_use]
    pub fn signer(&self) -> Arc<Signer> {
        Arc::clone(&self.signer)
    }

    /// Whose authorities these are.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The X.509 bundle: certificates in DER, the active one first, then prepared, then old.
    #[must_use]
    pub fn x509_bundle(&self) -> Vec<Vec<u8>> {
        self.authorities
            .x509
            .published()
            .map(|(authority, _)| authority.certificate_der().to_vec())
            .collect()
    }

    /// The JWT bundle: a JWK Set (RFC 7517 §5) in the same order.
    ///
    /// `kty`, `kid`, `crv`, `x`, `y` and nothing else, which is what SPIRE's Workload API sends and
    /// all clients have seen. A `use` is for SPIFFE bundle documents, which mix keys of two uses.
    #[must_use]
    pub fn jwks(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct JwkSet<'a> {
            keys: Vec<&'a Jwk>,
        }
        let keys = self.authorities.jwt.published().map(|(authority, _)| authority.jwk()).collect();
        // Strings into memory: there is nothing that could fail.
        serde_json::to_vec(&JwkSet { keys }).unwrap_or_default()
    }

    /// Everything that is published, for listings.
    #[must_use]
    pub fn authorities(&self) -> Vec<AuthorityView> {
        let x509 = self.authorities.x509.published().map(|(a, s)| view(Kind::X509, &**a, s));
        let jwt = self.authorities.jwt.published().map(|(a, s)| view(Kind::Jwt, &**a, s));
        x509.chain(jwt).collect()
    }

    /// A revocation list by each published X.509 authority, in the order of the bundle, with the
    /// authority's key id.
    ///
    /// # Errors
    /// As [`crl::issue`].
    pub fn crls(&self, contents: &crl::Contents<'_>) -> Result<Vec<Signed>, SignError> {
        self.publisher().crls(contents)
    }

    /// All published authorities as they are at present, to be taken to another thread.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        let x509 = self.authorities.x509.published();
        let jwt = self.authorities.jwt.published();
        Publisher::new(
            self.trust_domain.clone(),
            x509.map(|(authority, _)| Arc::clone(authority)).collect(),
            jwt.map(|(authority, _)| Arc::clone(authority)).collect(),
            self.public_url.clone(),
        )
    }

    /// How often other trust domains should look for new keys: five times between the publication of a
    /// key and its first signature (Federation §4.1 advises three to five), and at least every five
    /// minutes.
    #[must_use]
    pub fn refresh_hint(&self) -> Span {
        let life = self.policy.ca_ttl.min(self.policy.jwt_key_ttl);
        let seconds = life.as_millis() / 1000 / (4 * 5);
        Span::from_secs(seconds.clamp(1, 300))
    }
}

fn view(kind: Kind, authority: &impl Rotates, standing: Standing) -> AuthorityView {
    AuthorityView {
        kind,
        key_id: authority.key_id().to_owned(),
        standing,
        born: authority.born(),
        expires: authority.expires(),
    }
}
