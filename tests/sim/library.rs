//! The shipped feed and the shipped verifier as the simulator's post: `serve::feed`'s chain and
//! snapshots on one side, `verify`'s reader and view on the other, sealed messages between them.
//!
//! The seal is a digest, because a signature costs a hundred times as much as the rest of a world; that
//! signatures are checked is shown in `mayfly-verify`.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use mayfly_core::{
    Delta, Position, RevocationSet, Serial, Status, Timestamp,
    batch::{Changes, OPENING_LABEL},
};
use mayfly_proto::mayfly::v1::{self as wire, FollowResponse, follow_response::Content};
use mayfly_serve::feed::{
    chain::{Chain, Hash, Next, Told},
    snapshot::Snapshot,
};
use mayfly_sim::Post;
use mayfly_verify::{
    Patience, View,
    reader::{News, Reader, Vouch},
};
use prost::Message as _;
use ring::digest::{SHA256, digest};
use tokio::time::{Duration, Instant};

/// What has happened, so that a test in which nothing did is noticed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) flaws: usize,
    pub(crate) resumed: usize,
    pub(crate) snapshots: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.flaws += other.flaws;
        self.resumed += other.resumed;
        self.snapshots += other.snapshots;
    }
}

/// The broker's side and all followers.
#[derive(Debug)]
pub(crate) struct Library {
    chain: Chain,
    sent: Vec<FollowResponse>,
    followers: Vec<Follower>,
    /// Starts and connections so far: no two of them are alike.
    count: u64,
    tally: Rc<RefCell<Tally>>,
}

#[derive(Debug)]
struct Follower {
    reader: Reader,
    view: Arc<View>,
    /// A flaw was seen: the next stream begins with everything.
    flawed: bool,
}

/// Vouches for what [`sealed`] made.
struct Digest;

impl Vouch for Digest {
    fn knows(&self, kid: &str) -> bool {
        kid == "sim"
    }

    fn vouches(&self, _kid: &str, message: &[u8], signature: &[u8]) -> bool {
        digest(&SHA256, message).as_ref() == signature
    }
}

fn sealed(at: (Position, Hash), clock: u64, nonce: Vec<u8>, digested: &[u8]) -> wire::Sealed {
    let head = wire::Head {
        shard: at.0.shard.0.into(),
        position: at.0.sequence.0,
        hash: at.1.to_vec(),
        at_ms: clock,
        nonce,
        digest: digested.to_vec(),
    };
    let head = head.encode_to_vec();
    let message = [mayfly_core::batch::SEAL_LABEL, &head].concat();
    let signature = digest(&SHA256, &message).as_ref().to_vec().into();
    wire::Sealed { head: head.into(), kid: "sim".to_owned(), signature }
}

impl Library {
    pub(crate) fn new(tally: Rc<RefCell<Tally>>) -> Self {
        let chain = Chain::start(RevocationSet::default(), Timestamp(0));
        Self { chain, sent: Vec::new(), followers: Vec::new(), count: 0, tally }
    }

    pub(crate) fn of(mut self, followers: usize) -> Box<dyn Post> {
        let patience = Patience::Closed { after: Duration::from_secs(3600) };
        let follower = |_| Follower {
            reader: Reader::new(Vec::new(), None),
            view: View::new(patience),
            flawed: false,
        };
        self.followers = (0..followers).map(follower).collect();
        Box::new(self)
    }

    fn standing(&self) -> (Position, Hash) {
        (self.chain.position(), *self.chain.hash())
    }

    /// Everything that a broker says to a new follower before it has to wait.
    fn stream(&self, request: wire::FollowRequest) -> Vec<FollowResponse> {
        let resume = request.resume.as_ref().and_then(|resume| {
            let hash = Hash::try_from(resume.hash.as_slice()).ok()?;
            let mut position = self.chain.position();
            position.sequence.0 = resume.position;
            self.chain.remembers(position, &hash).then_some(position)
        });
        let opening = wire::Opening { jwks: Vec::new(), resumed: resume.is_some() }.encode_to_vec();
        let hash = digest(&SHA256, &[OPENING_LABEL, opening.as_slice()].concat());
        let seal = sealed(self.standing(), self.count, request.nonce, hash.as_ref());
        let mut messages = vec![message(seal, Some(Content::Opening(opening.into())))];
        match resume {
            Some(position) => {
                self.tally.borrow_mut().resumed += 1;
                if let Next::Batches(told) = self.chain.next(position) {
                    let bodies = told.iter().map(|told| told.batch.body.clone()).collect();
                    let content = Content::Batches(wire::Batches { bodies });
                    let seal = told.last().map(|told| told.sealed.clone()).unwrap_or_default();
                    messages.push(message(seal, Some(content)));
                }
            }
            None => {
                self.tally.borrow_mut().snapshots += 1;
                let whole = Snapshot::of(self.chain.set(), *self.chain.hash());
                let seal = sealed(self.standing(), self.count, Vec::new(), &whole.digest);
                let last = whole.parts.len() - 1;
                for (at, part) in whole.parts.into_iter().enumerate() {
                    let sealed = (at == last).then(|| seal.clone());
                    let content = Some(Content::Snapshot(part));
                    messages.push(FollowResponse { sealed, content });
                }
            }
        }
        let beat = sealed(self.standing(), self.count, Vec::new(), &[]);
        messages.push(message(beat, None));
        messages
    }
}

const fn message(sealed: wire::Sealed, content: Option<Content>) -> FollowResponse {
    FollowResponse { sealed: Some(sealed), content }
}

impl Follower {
    fn take(&mut self, message: FollowResponse) -> bool {
        let Ok(news) = self.reader.take(message, Some(&Digest)) else { return false };
        let now = Instant::now();
        match news {
            News::Opened { .. } | News::Part => true,
            News::Everything { set, .. } => self.view.replace(set, now).is_ok(),
            News::Changes { deltas, .. } => self.view.apply_all(&deltas, now).is_ok(),
            // The world forgets by its own clock.
            News::Nothing { position, .. } => self.view.beat(position, Timestamp(0), now).is_ok(),
        }
    }

    fn position(&self) -> Position {
        *self.view.position().borrow()
    }
}

impl Post for Library {
    fn start(&mut self, published: &RevocationSet) {
        self.count += 1;
        self.chain = Chain::start(published.clone(), Timestamp(self.count));
    }

    fn publish(&mut self, delta: &Delta) -> usize {
        let changes: Changes = delta.changes.iter().collect();
        let batch = self.chain.draft(delta.to, &changes);
        let seal = sealed((batch.to, batch.hash), self.count, Vec::new(), &[]);
        let bodies = vec![batch.body.clone()];
        let at = Timestamp(self.count);
        self.chain.append(Told { batch, sealed: seal.clone(), at }, &changes);
        self.sent.push(message(seal, Some(Content::Batches(wire::Batches { bodies }))));
        self.sent.len() - 1
    }

    fn deliver(&mut self, follower: usize, message: usize) -> bool {
        let (Some(message), Some(follower)) =
            (self.sent.get(message), self.followers.get_mut(follower))
        else {
            return false;
        };
        let taken = follower.take(message.clone());
        follower.flawed |= !taken;
        self.tally.borrow_mut().flaws += usize::from(!taken);
        taken
    }

    fn connect(&mut self, follower: usize, _published: &RevocationSet) -> bool {
        self.count += 1;
        let nonce = self.count.to_be_bytes().repeat(2);
        let Some(one) = self.followers.get_mut(follower) else { return false };
        let reader = Reader::new(nonce, one.reader.standing());
        one.reader = if std::mem::take(&mut one.flawed) { reader.starting_over() } else { reader };
        let request = one.reader.request(1000, 0);
        let messages = self.stream(request);
        self.followers
            .get_mut(follower)
            .is_some_and(|one| messages.into_iter().all(|message| one.take(message)))
    }

    fn status(&self, follower: usize, serial: &Serial) -> Status {
        self.followers.get(follower).map_or(Status::Revoked, |one| one.view.status(serial))
    }

    fn position(&self, follower: usize) -> Position {
        self.followers.get(follower).map(Follower::position).unwrap_or_default()
    }

    fn forget(&mut self, follower: usize, now: Timestamp) {
        if let Some(one) = self.followers.get(follower) {
            // A broker's clock may be off; the view keeps what it holds for some hours longer.
            let _a_hole_is_seen_elsewhere =
                one.view.beat(one.position(), now, Instant::now()).is_err();
        }
    }
}
