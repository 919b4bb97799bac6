//! The seam to whoever decides: what this crate asks, and in which words it is answered.
//!
//! In `mayfly up` the desk is a channel to the driver; in an agent it will be a stream to the broker.
//! It is a trait so that the code which parses strangers' bytes does not link to the signer.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    pin::Pin,
    sync::Arc,
};

use bytes::Bytes;
use mayfly_core::{
    Closing, Denial, Evidence, Identity, PolicyEpoch, Serial, Span, SpiffeId, TaskId, TaskVersion,
    Timestamp, TrustDomain,
};
use tokio::sync::watch;

use crate::feed::hub::Hub;

/// An answer that may take a while: a task is being opened, a record written, a signature made.
pub type Reply<T> = Pin<Box<dyn Future<Output = Result<T, Denial>> + Send>>;

/// What time it is. The one clock of the process is read by whoever wires it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Where callers' wishes go.
pub trait Desk: Send + Sync + 'static {
    /// Who this caller is. Never empty: nobody is [`Denial::NoIdentity`]. A caller whose task is being
    /// opened is held, not refused.
    fn introduce(&self, evidence: Evidence) -> Reply<Vec<Introduced>>;
    /// Who a workload is that somebody else refers to. Says of one that has no identity any more whether
    /// it has finished or was stopped.
    fn refer(&self, reference: Reference) -> Reply<Vec<Introduced>>;
    /// A fresh certificate with a key of its own.
    fn x509(&self, who: &Introduced) -> Reply<X509Svid>;
    /// Who this caller is, and what it wants if that leaves no choice: most callers have one identity
    /// and come for one token, and are spared the way back and forth.
    fn jwt_at_once(&self, evidence: Evidence, _wish: TokenWish) -> Reply<AtOnce<JwtSvid>> {
        let introduced = self.introduce(evidence);
        Box::pin(async move { introduced.await.map(AtOnce::Introduced) })
    }
    /// The same for the first certificate of a task whose workload has a socket of its own. Nobody is met
    /// where it has one already.
    fn x509_at_once(&self, _evidence: Evidence) -> Reply<AtOnce<X509Svid>> {
        Box::pin(async { Ok(AtOnce::Later) })
    }
    /// A fresh token for all of `audience`.
    fn jwt(&self, who: &Introduced, audience: Vec<String>) -> Reply<JwtSvid>;
    /// Whether `token` is good for `audience`, as far as the bundles of `who` can tell.
    fn validate(&self, who: Vec<Introduced>, audience: String, token: String) -> Reply<Validated>;
    /// The bundles as they are, and a wake-up whenever they change.
    fn bundles(&self) -> watch::Receiver<Arc<Bundles>>;
    /// What is revoked, and every change from there on.
    fn feed(&self) -> Arc<Hub>;
    /// A verifier has seen a credential used as it may not be. Answered once it is noted, not once
    /// anything was done about it.
    fn report(&self, report: Report) -> Reply<()>;
}

/// A token that a caller wants before it is known who it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TokenWish {
    /// Whom it is to name, where the caller says so.
    pub spiffe_id: Option<SpiffeId>,
    /// For whom it is.
    pub audience: Vec<String>,
}

/// What became of such a wish.
#[derive(Clone, Debug)]
pub enum AtOnce<T> {
    /// This is who it is, and what it wants.
    Served(Box<(Introduced, T)>),
    /// This is who it is; it has to choose.
    Introduced(Vec<Introduced>),
    /// It is to ask in two steps.
    Later,
}

/// A workload, in the words of somebody who acts for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reference {
    /// Which.
    pub named: Named,
    /// Profiles beyond which nothing is given; `None` is all of them.
    pub within: Within,
}

/// The names of the profiles that somebody may act for; `None` is all of them.
pub type Within = Option<Arc<BTreeSet<String>>>;

/// How a workload is named by somebody else.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Named {
    /// A process, as we saw it ourselves.
    Process(Evidence),
    /// A task, and which version of it where one is meant.
    Task(TaskId, Option<TaskVersion>),
}

/// What a verifier has seen of a credential. Whatever stands in it is the verifier's word, but for the
/// last two.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// The credential, if its name was seen.
    pub serial: Option<Serial>,
    /// Whom it names, if that was seen.
    pub spiffe_id: Option<SpiffeId>,
    /// How it was used.
    pub usage: Use,
    /// Who showed it, as far as the verifier can tell.
    pub presenter: String,
    /// When, by the verifier's clock.
    pub at: Timestamp,
    /// What the verifier calls itself.
    pub verifier: String,
    /// Whom the caller proved to be, where the door asks.
    pub sender: Option<SpiffeId>,
    /// Whose seat the caller takes: a user of this machine, or
    /// [`ELSEWHERE`](crate::guest::ELSEWHERE).
    pub user: u32,
}

/// How a credential was used that may not be used, or not like that.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Use {
    /// Its task has ended, or it was revoked.
    AfterEnd,
    /// Its task is in quarantine.
    WhileSuspended,
    /// A token was shown by a peer that is not its subject.
    ByAnother,
    /// No task of this broker ever had it.
    Unknown,
}

/// One identity of a caller, and how to hear about its task.
#[derive(Clone, Debug)]
pub struct Introduced {
    /// Task, version, SPIFFE ID, hint, federation.
    pub identity: Identity,
    /// The edition of the profiles that this introduction rests on.
    pub epoch: PolicyEpoch,
    /// Wakes the streams of the task. It was marked as seen when the introduction was made, so that
    /// what happened since is not missed.
    pub news: watch::Receiver<Option<Closing>>,
}

/// How early a certificate may be renewed, as a part of its life: between two fifths of it and half.
const EARLY: u64 = 10;

/// A certificate, ready to be handed out.
#[derive(Clone)]
pub struct X509Svid {
    /// Whom it names: the same as the leaf's URI SAN.
    pub spiffe_id: SpiffeId,
    /// Concatenated DER, leaf first, without the root.
    pub chain: Bytes,
    /// PKCS#8 DER.
    pub key: Bytes,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
    /// Its name.
    pub serial: Serial,
}

impl X509Svid {
    /// When it is to be renewed: shortly before half of its life, each at another moment, because those
    /// that were issued together would be renewed together for ever. The moment is in the serial's luck,
    /// so that everybody who holds the certificate knows the same one.
    #[must_use]
    pub fn renew_at(&self) -> Timestamp {
        let issued = self.not_before.plus(mayfly_core::limits::BACKDATE);
        let life = self.not_after.since(issued).as_millis();
        let luck = self.serial.as_bytes().iter().rev().take(2);
        let luck = luck.fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
        let early = (life / EARLY) * luck / u64::from(u16::MAX);
        issued.plus(Span((life / 2).saturating_sub(early)))
    }
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Svid")
            .field("spiffe_id", &self.spiffe_id)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// A token, ready to be handed out.
#[derive(Clone)]
pub struct JwtSvid {
    /// Its subject.
    pub spiffe_id: SpiffeId,
    /// JWS compact serialisation.
    pub token: String,
    /// Until when it is valid.
    pub not_after: Timestamp,
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvid")
            .field("spiffe_id", &self.spiffe_id)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// What a good token says.
#[derive(Clone, Debug)]
pub struct Validated {
    /// Its subject.
    pub spiffe_id: SpiffeId,
    /// Its claims: `sub`, `aud` (a list) and `exp` at least.
    pub claims: serde_json::Map<String, serde_json::Value>,
}

/// The authorities of every trust domain that this one knows, its own included.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Bundles {
    /// Concatenated DER authorities.
    pub x509: BTreeMap<TrustDomain, Bytes>,
    /// JWK Sets.
    pub jwt: BTreeMap<TrustDomain, Bytes>,
    /// Our own revocation lists, DER.
    pub crls: Vec<Bytes>,
}

#[cfg(test)]
mod tests {
    use mayfly_core::{Place, TrustDomain, limits};

    use super::*;

    fn svid(luck: u64, life_ms: u64) -> X509Svid {
        let issued = Timestamp(1_700_000_000_000);
        let domain = TrustDomain::parse("example.org").unwrap();
        X509Svid {
            spiffe_id: SpiffeId::new(&domain, "/w").unwrap(),
            chain: Bytes::new(),
            key: Bytes::new(),
            not_before: issued.minus(limits::BACKDATE),
            not_after: issued.plus(Span(life_ms)),
            serial: Serial::new(Place::default(), luck),
        }
    }

    #[test]
    fn certificates_of_one_instant_are_renewed_one_after_the_other_and_never_late() {
        for life in [2_000, 300_000, 24 * 3_600_000] {
            let moment =
                |luck: u64| svid(luck, life).renew_at().since(Timestamp(1_700_000_000_000));
            // The extremes, and a thousand lucks that are far from random.
            assert_eq!((moment(0).0, moment(u64::MAX).0), (life / 2, life / 2 - life / 10));
            let mut tenths = [0; 10];
            for luck in 0..1000_u64 {
                let at = moment(luck.wrapping_mul(0x9E37_79B9_7F4A_7C15)).0;
                assert!((life * 2 / 5..=life / 2).contains(&at), "{at} of {life}");
                tenths[usize::try_from((at - life * 2 / 5) * 100 / life).unwrap().min(9)] += 1;
            }
            assert!(tenths.iter().all(|count| (60..140).contains(count)), "{tenths:?} of {life}");
        }
    }
}
