//! Reads what the feed says and believes none of it: a message counts only when the broker's key
//! vouches for it, when it is an answer to this request, and when it joins on to what was read before.
//!
//! No clock and no socket are in here, so everything that a network or a relay can do to a stream is a
//! sequence of calls to [`Reader::take`]. After the first message that does not hold, a reader takes no
//! more: what it stood at is still true, and another stream goes on from there.

use std::{fmt, io::Read as _};

use flate2::read::ZlibDecoder;
use mayfly_core::{
    Bitmap, Change, Delta, Position, RevocationSet, Sequence, Serial, Shard, Timestamp, Window,
    batch::{self, BATCH_LABEL, HASH_BYTES, OPENING_LABEL, SEAL_LABEL, SNAPSHOT_LABEL},
    limits::SLOTS_PER_WINDOW_MAX,
};
use mayfly_proto::mayfly::v1::{self as wire, follow_response::Content};
use prost::Message as _;
use ring::digest::{Context, SHA256, digest};

use crate::jwk::{Algorithm, JwkSet};

/// Bytes of a whole snapshot as it travels.
const SNAPSHOT_BYTES_MAX: usize = 256 << 20;
/// Windows in one snapshot. The longest credential life spans 145 of them.
const WINDOWS_MAX: usize = 512;
/// Credentials revoked on their own in one snapshot.
const SERIALS_MAX: usize = 4_000_000;
/// A window's statuses, unpacked.
const WINDOW_BYTES_MAX: usize = SLOTS_PER_WINDOW_MAX as usize / 4;

/// A place in the broker's chain of batches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Standing {
    /// The journal position.
    pub position: Position,
    /// The chain's hash there.
    pub hash: [u8; HASH_BYTES],
}

/// Keys that may vouch for the feed.
pub trait Vouch {
    /// Whether there is a key of that name.
    fn knows(&self, kid: &str) -> bool;
    /// Whether `signature` over `message` is that key's.
    fn vouches(&self, kid: &str, message: &[u8], signature: &[u8]) -> bool;
}

impl Vouch for JwkSet {
    fn knows(&self, kid: &str) -> bool {
        self.key(kid).is_some()
    }

    fn vouches(&self, kid: &str, message: &[u8], signature: &[u8]) -> bool {
        self.key(kid).is_some_and(|key| key.verifies(Algorithm::ES256, message, signature))
    }
}

/// What a message says. `at` is the broker's steady clock: so much is known up to then.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum News {
    /// The broker has answered this very request.
    Opened {
        /// Batches come next, from where the reader stood; else everything does.
        resumed: bool,
        /// When.
        at: Timestamp,
    },
    /// A part of something that is to be judged as a whole.
    Part,
    /// Everything that is revoked.
    Everything {
        /// As a set.
        set: RevocationSet,
        /// Up to when.
        at: Timestamp,
    },
    /// What has changed, each delta beginning where the one before it ended.
    Changes {
        /// In order.
        deltas: Vec<Delta>,
        /// Up to when.
        at: Timestamp,
    },
    /// Nothing has changed.
    Nothing {
        /// The position at which nothing has.
        position: Position,
        /// Up to when.
        at: Timestamp,
    },
}

/// Why a message does not hold. The stream is of no more use.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Flaw {
    /// It cannot be read.
    #[error("a message cannot be read: {0}")]
    Malformed(&'static str),
    /// Nobody vouches for it.
    #[error("a message has no seal")]
    Unsealed,
    /// It is sealed with a key that is not known, or not any more.
    #[error("the key `{0}` is not known")]
    UnknownKey(String),
    /// Its seal is not the key's.
    #[error("the seal is not that of `{0}`")]
    Forged(String),
    /// It answers another request, perhaps an old one.
    #[error("the opening does not answer this request")]
    NotOurs,
    /// It is not what has to come at this place.
    #[error("a message came out of turn: {0}")]
    OutOfTurn(&'static str),
    /// What the seal vouches for is something else.
    #[error("the content is not what was sealed")]
    Swapped,
    /// Something between was left out.
    #[error("a batch begins at `{}`, but `{}` was reached", from.sequence.0, at.sequence.0)]
    Gap {
        /// Where the reader stands.
        at: Position,
        /// Where the batch begins.
        from: Position,
    },
    /// The feed stands elsewhere.
    #[error("the feed stands at `{}`, but `{}` was reached", said.sequence.0, at.sequence.0)]
    Elsewhere {
        /// Where the reader stands.
        at: Position,
        /// Where the feed says it stands.
        said: Position,
    },
    /// Same position, another past.
    #[error("the feed has another past before `{}`", .0.sequence.0)]
    Fork(Position),
    /// A message before it did not hold.
    #[error("the stream was given up")]
    GivenUp,
}

/// See the module.
pub struct Reader {
    nonce: Vec<u8>,
    /// How far was shown, here or in an earlier stream: nothing before it is shown again.
    standing: Option<Standing>,
    /// How far was read, which may be less.
    read: Option<Standing>,
    resumes: bool,
    stage: Stage,
    opened_at: Timestamp,
    /// The keys that the opening brought, for those who have none.
    brought: Option<JwkSet>,
}

enum Stage {
    Opening,
    Everything(Parts),
    /// With what was told of everything, as long as that is older than the floor.
    Following(Option<RevocationSet>),
    GivenUp,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("standing", &self.standing).finish_non_exhaustive()
    }
}

/// What the broker vouches for, its seal having been checked.
struct Head {
    at: Standing,
    clock: Timestamp,
    nonce: Vec<u8>,
    digest: Vec<u8>,
}

impl Reader {
    /// A reader of one stream. `nonce` is 16 to 64 bytes that were never used before; `standing` is
    /// where an earlier stream of the same feed was read to.
    #[must_use]
    pub const fn new(nonce: Vec<u8>, standing: Option<Standing>) -> Self {
        let resumes = standing.is_some();
        Self {
            nonce,
            standing,
            read: standing,
            resumes,
            stage: Stage::Opening,
            opened_at: Timestamp(0),
            brought: None,
        }
    }

    /// The same, but everything is to be told anew. It still does not go back behind where it stood.
    #[must_use]
    pub const fn starting_over(mut self) -> Self {
        self.resumes = false;
        self
    }

    /// What to ask for.
    #[must_use]
    pub fn request(&self, heartbeat_ms: u32, pace_ms: u32) -> wire::FollowRequest {
        let resume = self.standing.filter(|_| self.resumes).map(|standing| wire::Resume {
            shard: standing.position.shard.0.into(),
            position: standing.position.sequence.0,
            hash: standing.hash.to_vec(),
        });
        wire::FollowRequest { heartbeat_ms, pace_ms, nonce: self.nonce.clone(), resume }
    }

    /// How far it has shown. Another stream may go on from there.
    #[must_use]
    pub const fn standing(&self) -> Option<Standing> {
        self.standing
    }

    /// What the broker's steady clock showed in the opening.
    #[must_use]
    pub const fn opened_at(&self) -> Timestamp {
        self.opened_at
    }

    /// Takes the next message. Without `keys` those of the opening are used, which is enough where
    /// nobody stands between the reader and the broker.
    ///
    /// # Errors
    /// [`Flaw`]: nothing of the message counts, and nothing after it.
    pub fn take(
        &mut self,
        message: wire::FollowResponse,
        keys: Option<&dyn Vouch>,
    ) -> Result<News, Flaw> {
        match std::mem::replace(&mut self.stage, Stage::GivenUp) {
            Stage::Opening => self.open(message, keys),
            Stage::Everything(parts) => self.everything(parts, message, keys),
            Stage::Following(old) => self.follow(old, message, keys),
            Stage::GivenUp => Err(Flaw::GivenUp),
        }
    }

    fn open(
        &mut self,
        message: wire::FollowResponse,
        keys: Option<&dyn Vouch>,
    ) -> Result<News, Flaw> {
        let Some(Content::Opening(bytes)) = message.content else {
            return Err(Flaw::OutOfTurn("the first is not an opening"));
        };
        let opening = wire::Opening::decode(bytes.as_ref())
            .map_err(|_garbled| Flaw::Malformed("an opening"))?;
        if keys.is_none() {
            let brought = JwkSet::parse(&opening.jwks);
            self.brought = Some(brought.map_err(|_unusable| Flaw::Malformed("its keys"))?);
        }
        let head = self.unseal(message.sealed, keys)?;
        if head.nonce != self.nonce {
            return Err(Flaw::NotOurs);
        }
        if head.digest != hash(&[OPENING_LABEL, &bytes]) {
            return Err(Flaw::Swapped);
        }
        self.opened_at = head.clock;
        self.forward(head.at.position)?;
        if opening.resumed && !self.resumes {
            return Err(Flaw::OutOfTurn("a resumption that was not asked for"));
        }
        self.stage = if opening.resumed {
            Stage::Following(None)
        } else {
            Stage::Everything(Parts::default())
        };
        Ok(News::Opened { resumed: opening.resumed, at: head.clock })
    }

    fn everything(
        &mut self,
        mut parts: Parts,
        message: wire::FollowResponse,
        keys: Option<&dyn Vouch>,
    ) -> Result<News, Flaw> {
        let Some(Content::Snapshot(part)) = message.content else {
            return Err(Flaw::OutOfTurn("the snapshot is not whole"));
        };
        parts.push(part)?;
        if message.sealed.is_none() {
            self.stage = Stage::Everything(parts);
            return Ok(News::Part);
        }
        let head = self.unseal_shared(message.sealed, keys)?;
        if head.digest != parts.digest() {
            return Err(Flaw::Swapped);
        }
        // Nothing is unpacked before somebody vouches for it.
        let set = parts.unpack(head.at.position)?;
        self.read = Some(head.at);
        Ok(self.show(set, head.clock))
    }

    /// Everything, unless it is older than what was shown before: brokers share one snapshot among many
    /// followers, and tell the rest as batches.
    fn show(&mut self, set: RevocationSet, at: Timestamp) -> News {
        if self.forward(set.position()).is_err() {
            self.stage = Stage::Following(Some(set));
            return News::Part;
        }
        self.stage = Stage::Following(None);
        self.standing = self.read;
        News::Everything { set, at }
    }

    fn follow(
        &mut self,
        old: Option<RevocationSet>,
        message: wire::FollowResponse,
        keys: Option<&dyn Vouch>,
    ) -> Result<News, Flaw> {
        let head = self.unseal_shared(message.sealed, keys)?;
        if !head.digest.is_empty() {
            return Err(Flaw::Swapped);
        }
        let standing = self.read.ok_or(Flaw::OutOfTurn("nothing was told before"))?;
        match message.content {
            None => {
                let position = standing.position;
                is_at(&head, standing)?;
                self.forward(position)?;
                self.stage = Stage::Following(None);
                Ok(News::Nothing { position, at: head.clock })
            }
            Some(Content::Batches(batches)) => {
                let mut reached = standing;
                let mut deltas = Vec::with_capacity(batches.bodies.len().min(1024));
                for body in &batches.bodies {
                    deltas.push(next(&mut reached, body)?);
                }
                is_at(&head, reached)?;
                if deltas.is_empty() {
                    return Err(Flaw::Malformed("batches without a batch"));
                }
                self.read = Some(reached);
                if let Some(mut set) = old {
                    // INVARIANT P3: each begins where the one before it ended, the first at the set.
                    let whole = deltas.iter().all(|delta| set.apply(delta));
                    debug_assert!(whole, "P3: a chain has no holes");
                    return Ok(self.show(set, head.clock));
                }
                self.stage = Stage::Following(None);
                self.standing = self.read;
                Ok(News::Changes { deltas, at: head.clock })
            }
            Some(Content::Opening(_)) => Err(Flaw::OutOfTurn("a second opening")),
            Some(Content::Snapshot(_)) => Err(Flaw::OutOfTurn("a second snapshot")),
        }
    }

    /// INVARIANT P9: a feed that stands behind what was read, or elsewhere, is not the one we read.
    fn forward(&self, said: Position) -> Result<(), Flaw> {
        match self.standing {
            Some(Standing { position: at, .. }) if at.shard != said.shard || said < at => {
                Err(Flaw::Elsewhere { at, said })
            }
            _ => Ok(()),
        }
    }

    /// A head that speaks to everybody. One with a nonce was made for the beginning of some stream.
    fn unseal_shared(
        &self,
        sealed: Option<wire::Sealed>,
        keys: Option<&dyn Vouch>,
    ) -> Result<Head, Flaw> {
        let head = self.unseal(sealed, keys)?;
        if head.nonce.is_empty() { Ok(head) } else { Err(Flaw::Swapped) }
    }

    fn unseal(&self, sealed: Option<wire::Sealed>, keys: Option<&dyn Vouch>) -> Result<Head, Flaw> {
        let sealed = sealed.ok_or(Flaw::Unsealed)?;
        let brought = self.brought.as_ref().map(|brought| brought as &dyn Vouch);
        let keys = keys.or(brought).ok_or(Flaw::Unsealed)?;
        if !keys.knows(&sealed.kid) {
            return Err(Flaw::UnknownKey(sealed.kid));
        }
        let message = [SEAL_LABEL, &sealed.head].concat();
        if !keys.vouches(&sealed.kid, &message, &sealed.signature) {
            return Err(Flaw::Forged(sealed.kid));
        }
        let head = wire::Head::decode(sealed.head.as_ref())
            .map_err(|_garbled| Flaw::Malformed("a head"))?;
        let hash = <[u8; HASH_BYTES]>::try_from(head.hash.as_slice())
            .map_err(|_length| Flaw::Malformed("a hash"))?;
        Ok(Head {
            at: Standing { position: position(head.shard, head.position)?, hash },
            clock: Timestamp(head.at_ms),
            nonce: head.nonce,
            digest: head.digest,
        })
    }
}

fn is_at(head: &Head, reached: Standing) -> Result<(), Flaw> {
    let (at, said) = (reached.position, head.at.position);
    if at != said {
        return Err(Flaw::Elsewhere { at, said });
    }
    if reached.hash == head.at.hash { Ok(()) } else { Err(Flaw::Fork(at)) }
}

/// Reads the batch that joins on to `reached`, and moves on to its end.
fn next(reached: &mut Standing, body: &[u8]) -> Result<Delta, Flaw> {
    let batch = wire::Batch::decode(body).map_err(|_garbled| Flaw::Malformed("a batch"))?;
    let from = position(batch.shard, batch.from)?;
    let to = position(batch.shard, batch.to)?;
    if from != reached.position {
        return Err(Flaw::Gap { at: reached.position, from });
    }
    if batch.prev_hash != reached.hash.as_slice() {
        return Err(Flaw::Fork(from));
    }
    if to <= from {
        return Err(Flaw::Malformed("a batch that leads nowhere"));
    }
    let changes = batch::decode(&batch.changes).map_err(|_rule| Flaw::Malformed("changes"))?;
    *reached = Standing { position: to, hash: hash(&[BATCH_LABEL, body]) };
    Ok(Delta { from, to, changes })
}

fn position(shard: u32, sequence: u64) -> Result<Position, Flaw> {
    let shard = u16::try_from(shard).map_err(|_too_large| Flaw::Malformed("a shard"))?;
    Ok(Position { shard: Shard(shard), sequence: Sequence(sequence) })
}

fn hash(pieces: &[&[u8]]) -> [u8; HASH_BYTES] {
    let digest = digest(&SHA256, &pieces.concat());
    // INVARIANT: SHA-256 has 32 octets; a shorter one would match nothing.
    digest.as_ref().try_into().unwrap_or([0; HASH_BYTES])
}

/// A snapshot that is not whole yet: bytes that nobody has vouched for.
#[derive(Default)]
struct Parts {
    parts: Vec<bytes::Bytes>,
    bytes: usize,
}

impl Parts {
    fn push(&mut self, part: bytes::Bytes) -> Result<(), Flaw> {
        // An empty part still costs its place in the list.
        self.bytes += part.len() + 64;
        if self.bytes > SNAPSHOT_BYTES_MAX {
            return Err(Flaw::Malformed("a snapshot that is too long"));
        }
        self.parts.push(part);
        Ok(())
    }

    fn digest(&self) -> Vec<u8> {
        let mut context = Context::new(&SHA256);
        context.update(SNAPSHOT_LABEL);
        for part in &self.parts {
            context.update(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            context.update(part);
        }
        context.finish().as_ref().to_vec()
    }

    fn unpack(self, position: Position) -> Result<RevocationSet, Flaw> {
        let mut set = RevocationSet::at(position);
        let (mut windows, mut serials) = (0, 0);
        for part in self.parts {
            let part = wire::SnapshotPart::decode(part)
                .map_err(|_garbled| Flaw::Malformed("a snapshot"))?;
            windows += part.windows.len();
            serials += part.serials.len();
            if windows > WINDOWS_MAX || serials > SERIALS_MAX {
                return Err(Flaw::Malformed("a snapshot of too much"));
            }
            for one in part.windows {
                set.insert_window(Window(one.window), inflate(&one.statuses)?);
            }
            for one in part.serials {
                let serial = Serial::from_bytes(&one.serial);
                let serial = serial.map_err(|_rule| Flaw::Malformed("a serial"))?;
                set.take(Change::Serial(serial, Timestamp(one.until_ms)));
            }
        }
        Ok(set)
    }
}

fn inflate(packed: &[u8]) -> Result<Bitmap, Flaw> {
    let mut bytes = Vec::new();
    // One byte more than there may be, so that too many are noticed.
    let mut bounded = ZlibDecoder::new(packed).take(WINDOW_BYTES_MAX as u64 + 1);
    bounded.read_to_end(&mut bytes).map_err(|_broken| Flaw::Malformed("a window"))?;
    Bitmap::from_packed(bytes).ok_or(Flaw::Malformed("a window that is too long"))
}
