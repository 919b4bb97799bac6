//! Tokens, bound to the workload that acts.
//!
//! A bearer token works for whoever holds it: that is what makes it worth stealing. [`Verifier`] says
//! that a token is genuine and its task going on; [`Bearer::presented_by`] adds that the peer of the
//! connection *is* the token's subject, so that a stolen one opens nothing (R4).
//!
//! What was found out is not handed out for keeping. [`Bearer`] gives its claims only after a new look
//! at the status, so an application that caches one does not outlive the end of the task (R18).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use http::{HeaderMap, header};
use mayfly_core::{Status, Timestamp, TrustDomain};
use tokio::{sync::watch, time::Instant};

use crate::{
    jwk::JwkSets,
    jwt::{self, Claims, Signed},
    patience::Patience,
    peer::{self, Peer},
    refused::Refused,
    report::{Misuse, Reporter, Use},
    status_list::{StatusLists, StatusReference},
    telemetry::{self, Place},
    view::View,
    workload::WorkloadClient,
};

/// How long an answer of the broker may be used. It is a Yes of a moment.
const ONLINE_ANSWER_MAX: Duration = Duration::from_secs(1);

/// Verifies tokens that are meant for one audience.
#[derive(Clone, Debug)]
pub struct Verifier {
    audience: Arc<str>,
    how: How,
    reporter: Option<Reporter>,
}

#[derive(Clone, Debug)]
enum How {
    Offline(Offline),
    Online(WorkloadClient),
}

/// What a verifier judges by when it asks nobody.
#[derive(Clone, Debug)]
struct Offline {
    keys: watch::Receiver<JwkSets>,
    view: Option<(TrustDomain, Arc<View>, Option<Patience>)>,
    lists: Option<Arc<StatusLists>>,
    until_expiry: BTreeSet<TrustDomain>,
}

impl Verifier {
    /// Verifies with the keys of `keys` (see [`KeySource`](crate::KeySource)) and asks nobody.
    ///
    /// By itself it refuses every token, because a signature says nothing about the task: add
    /// [`Self::with_view`], [`Self::with_lists`] or [`Self::until_expiry`].
    #[must_use]
    pub fn offline(audience: &str, keys: watch::Receiver<JwkSets>) -> Self {
        let none = BTreeSet::new();
        let offline = Offline { keys, view: None, lists: None, until_expiry: none };
        Self { audience: audience.into(), how: How::Offline(offline), reporter: None }
    }

    /// Asks the broker about each token (`ValidateJWTSVID`): nothing to follow, a call for each token.
    #[must_use]
    pub fn online(audience: &str, client: WorkloadClient) -> Self {
        Self { audience: audience.into(), how: How::Online(client), reporter: None }
    }

    /// Looks up tokens of `domain`, the one whose feed `view` follows, by the place in their `jti`.
    #[must_use]
    pub fn with_view(self, domain: TrustDomain, view: Arc<View>) -> Self {
        self.with(|offline| offline.view = Some((domain, view, None)))
    }

    /// Less patience with a silent feed than the view has.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        self.with(|offline| {
            if let Some((_, _, held)) = &mut offline.view {
                *held = Some(patience);
            }
        })
    }

    /// Looks up tokens in the status lists that they point to. The view, where there is one for the
    /// trust domain, is newer and is asked instead.
    #[must_use]
    pub fn with_lists(self, lists: Arc<StatusLists>) -> Self {
        self.with(|offline| offline.lists = Some(lists))
    }

    /// Believes tokens of `domain` until they expire, where neither view nor list tells more: for a
    /// partner who offers neither. An end of theirs is then learned with the token's expiry.
    #[must_use]
    pub fn until_expiry(self, domain: TrustDomain) -> Self {
        self.with(|offline| {
            offline.until_expiry.insert(domain);
        })
    }

    /// Tells the broker of tokens that are used after the end or by another than their subject.
    #[must_use]
    pub fn reporting(mut self, reporter: Reporter) -> Self {
        self.reporter = Some(reporter);
        self
    }

    /// An online verifier has nothing to look up in, and stays as it is.
    fn with(mut self, change: impl FnOnce(&mut Offline)) -> Self {
        if let How::Offline(offline) = &mut self.how {
            change(offline);
        }
        self
    }

    /// Whether `token` is genuine, meant for us, in date, and its task going on.
    ///
    /// # Errors
    /// [`Refused`] says why not.
    pub async fn verify(&self, token: &str, now: Timestamp) -> Result<Bearer, Refused> {
        let outcome = match &self.how {
            How::Offline(offline) => self.verify_offline(offline, token, now),
            How::Online(client) => self.verify_online(client, token, now).await,
        };
        outcome.inspect_err(|refused| telemetry::refused(Place::Token, refused, None))
    }

    fn verify_offline(
        &self,
        offline: &Offline,
        token: &str,
        now: Timestamp,
    ) -> Result<Bearer, Refused> {
        let (kid, claims) = {
            let keys = offline.keys.borrow();
            let signed = Signed::read_svid(token)?;
            let claims = jwt::validate_signed(&signed, &self.audience, &keys, now)?;
            (signed.kid().to_owned(), claims)
        };
        let bearer = Bearer { claims, by: By::Offline { kid }, verifier: self.clone() };
        bearer.check(now).inspect_err(|refused| bearer.report(refused, None, now))?;
        Ok(bearer)
    }

    async fn verify_online(
        &self,
        client: &WorkloadClient,
        token: &str,
        now: Timestamp,
    ) -> Result<Bearer, Refused> {
        let asked = Instant::now();
        let answer = client.validate_jwt(&self.audience, token).await;
        // No answer is a No.
        let id = answer.map_err(|error| Refused::NotConfirmed(error.to_string()))?;
        let signed = Signed::read_svid(token)?;
        let claims = Claims::read(signed.payload())?;
        if claims.id != id {
            return Err(Refused::NotConfirmed("it names another subject".to_owned()));
        }
        let bearer = Bearer { claims, by: By::Online { asked }, verifier: self.clone() };
        bearer.check(now)?;
        Ok(bearer)
    }
}

/// A token that was verified, by what it was verified.
#[derive(Clone, Debug)]
enum By {
    Offline { kid: String },
    Online { asked: Instant },
}

/// A token that was good when it was verified. Whether it still is, each look at it asks anew.
#[derive(Clone, Debug)]
pub struct Bearer {
    claims: Claims,
    by: By,
    verifier: Verifier,
}

impl Bearer {
    /// What the token says, if it is still good.
    ///
    /// # Errors
    /// [`Refused`] if it is not: its task has ended, it has expired, its key was withdrawn, or the
    /// broker's answer is too old.
    pub fn claims(&self, now: Timestamp) -> Result<&Claims, Refused> {
        self.check(now).inspect_err(|refused| {
            telemetry::refused(Place::Token, refused, None);
            self.report(refused, None, now);
        })?;
        Ok(&self.claims)
    }

    /// What the token says, if it is still good and `peer` is the one whom it is about.
    ///
    /// # Errors
    /// [`Refused::NotTheSubject`], which names both, or as for [`Self::claims`].
    pub fn presented_by(&self, peer: &Peer, now: Timestamp) -> Result<&Claims, Refused> {
        let outcome = self.check(now).and_then(|()| self.check_subject(peer));
        outcome.inspect_err(|refused| {
            telemetry::refused(Place::Token, refused, Some(peer));
            self.report(refused, Some(peer), now);
        })?;
        Ok(&self.claims)
    }

    fn check_subject(&self, peer: &Peer) -> Result<(), Refused> {
        if peer.leaf.id == self.claims.id {
            return Ok(());
        }
        let (subject, presenter) = (self.claims.id.clone(), peer.leaf.id.clone());
        Err(Refused::NotTheSubject { subject, presenter })
    }

    fn check(&self, now: Timestamp) -> Result<(), Refused> {
        self.claims.check(&self.verifier.audience, now)?;
        match (&self.verifier.how, &self.by) {
            (How::Offline(offline), By::Offline { kid }) => offline.check(&self.claims, kid, now),
            (_, By::Online { asked }) if asked.elapsed() < ONLINE_ANSWER_MAX => Ok(()),
            (How::Offline(_) | How::Online(_), _) => Err(Refused::Stale),
        }
    }

    fn report(&self, refused: &Refused, peer: Option<&Peer>, at: Timestamp) {
        let Some((reporter, kind)) = self.verifier.reporter.as_ref().zip(Use::of(refused)) else {
            return;
        };
        let spiffe_id = self.claims.id.clone();
        let presenter = peer.map_or_else(|| spiffe_id.clone(), |peer| peer.leaf.id.clone());
        reporter.report(Misuse { kind, serial: self.claims.serial, spiffe_id, presenter, at });
    }
}

impl Offline {
    /// Whether the token's key is still its trust domain's, and its task going on.
    fn check(&self, claims: &Claims, kid: &str, now: Timestamp) -> Result<(), Refused> {
        let domain = claims.id.trust_domain();
        {
            let keys = self.keys.borrow();
            let set =
                keys.of(domain).ok_or_else(|| jwt::InvalidToken::Untrusted(domain.clone()))?;
            set.key(kid).ok_or_else(|| jwt::InvalidToken::UnknownKey(kid.to_owned()))?;
        }
        match &self.view {
            Some((own, view, patience)) if own == domain => {
                let id = || Refused::ForeignSerial(claims.id.clone());
                view.admit(&claims.serial.ok_or_else(id)?)?;
                let blind = |patience: Patience| peer::is_blind(view, patience, Instant::now());
                if patience.is_some_and(blind) { Err(Refused::Dark) } else { Ok(()) }
            }
            Some(_) | None => self.check_list(claims, now),
        }
    }

    fn check_list(&self, claims: &Claims, now: Timestamp) -> Result<(), Refused> {
        let domain = claims.id.trust_domain();
        // A token that points to a list is judged by it, or not at all.
        let reference = StatusReference::of(&claims.map);
        if let (Some(lists), Ok(reference)) = (&self.lists, &reference) {
            return match lists.status(domain, reference, now)? {
                Status::Valid => Ok(()),
                Status::Revoked => Err(Refused::Revoked),
                Status::Suspended => Err(Refused::Suspended),
            };
        }
        if self.until_expiry.contains(domain) {
            return Ok(());
        }
        Err(Refused::NoStatus(domain.clone()))
    }
}

/// The one bearer token among a request's headers.
///
/// # Errors
/// [`Refused::NoToken`] if there is none, or more than one could be meant.
pub fn bearer(headers: &HeaderMap) -> Result<&str, Refused> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(Refused::NoToken);
    };
    let text = value.to_str().map_err(|_not_text| Refused::NoToken)?;
    let (scheme, token) = text.split_once(' ').ok_or(Refused::NoToken)?;
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(Refused::NoToken);
    }
    Ok(token)
}
