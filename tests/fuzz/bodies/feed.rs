//! The feed: a batch reads one way only, and a reader that believes every signature still believes
//! nothing that does not join on.

use mayfly_core::batch;
use mayfly_proto::mayfly::v1 as wire;
use mayfly_verify::{
    Patience, View,
    reader::{Flaw, News, Reader, Vouch},
};
use prost::Message as _;
use tokio::time::{Duration, Instant};

const NONCE: &[u8] = b"a nonce of ours!";

/// A key that vouches for everything, so that what lies behind the seal is reached.
struct Anybody;

impl Vouch for Anybody {
    fn knows(&self, _kid: &str) -> bool {
        true
    }

    fn vouches(&self, _kid: &str, _message: &[u8], _signature: &[u8]) -> bool {
        true
    }
}

/// The input is a batch's changes as it stands; and it is a stream of messages, each behind two bytes
/// that say how long it is.
pub(crate) fn feed(input: &[u8]) {
    if let Ok(changes) = batch::decode(input) {
        assert_eq!(batch::encode(&changes), input, "two forms of one batch");
    }
    let mut reader = Reader::new(NONCE.to_vec(), None);
    let view = View::new(Patience::Closed { after: Duration::from_secs(1) });
    let mut gave_up = false;
    for message in messages(input) {
        let before = reader.standing();
        let taken = reader.take(message, Some(&Anybody));
        if gave_up {
            assert_eq!(taken, Err(Flaw::GivenUp), "a stream with a flaw went on");
        }
        let after = reader.standing();
        let forward = match (before, after) {
            (Some(before), Some(after)) => after.position >= before.position,
            (Some(_), None) => false,
            (None, _) => true,
        };
        assert!(forward, "P9: from {before:?} to {after:?}");
        let now = Instant::now();
        let shown = match taken {
            Err(_) => {
                gave_up = true;
                assert_eq!(before, after, "a message that does not hold was believed");
                continue;
            }
            Ok(News::Opened { .. } | News::Part) => continue,
            Ok(News::Everything { set, .. }) => view.replace(set, now),
            Ok(News::Changes { deltas, .. }) => view.apply_all(&deltas, now),
            Ok(News::Nothing { position, at }) => view.beat(position, at, now),
        };
        assert_eq!(shown, Ok(()), "what the reader has joined does not fit");
        assert_eq!(after.map(|standing| standing.position), Some(*view.position().borrow()));
    }
}

fn messages(mut input: &[u8]) -> Vec<wire::FollowResponse> {
    let mut messages = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (message, rest) = rest.split_at(length);
        input = rest;
        messages.extend(wire::FollowResponse::decode(message));
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The corpus reaches what it is there for; and with `MAYFLY_BLESS` it is written.
    #[test]
    fn an_honest_stream_is_reached_and_believed() {
        let stream = honest();
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/corpus/feed");
        if std::env::var_os("MAYFLY_BLESS").is_some() {
            std::fs::write(format!("{corpus}/honest"), &stream).expect("a file");
            std::fs::write(format!("{corpus}/batch"), changes()).expect("a file");
        }
        let mut reader = Reader::new(NONCE.to_vec(), None);
        let news = messages(&stream).into_iter().map(|one| reader.take(one, Some(&Anybody)));
        assert_eq!(news.filter(Result::is_ok).count(), 4, "the target tests nothing");
        let kept = std::fs::read(format!("{corpus}/honest")).expect("a file");
        assert_eq!(kept, stream, "run with MAYFLY_BLESS=1");
    }

    fn changes() -> Vec<u8> {
        use mayfly_core::{Change, Place, Serial, Slot, Status, Timestamp, Window};
        let place = |window, slot| Place { window: Window(window), slot: Slot(slot) };
        batch::encode(&[
            Change::Place(place(7, 1), Status::Revoked),
            Change::Place(place(7, 900), Status::Suspended),
            Change::Place(place(8, 3), Status::Valid),
            Change::Serial(Serial::new(place(7, 2), 5), Timestamp(77)),
        ])
    }

    /// An opening, everything, one change and a heartbeat.
    fn honest() -> Vec<u8> {
        use mayfly_core::{Position, RevocationSet, Sequence, Shard, Timestamp};
        use mayfly_serve::feed::{chain::Chain, snapshot::Snapshot};
        use wire::follow_response::Content;
        let at = |sequence| Position { shard: Shard(0), sequence: Sequence(sequence) };
        let mut set = RevocationSet::at(at(3));
        batch::decode(&changes()).expect("ours").into_iter().for_each(|one| set.take(one));
        let chain = Chain::start(set, Timestamp(1));
        let sealed = |position, hash: &[u8], nonce: &[u8], digest: &[u8]| {
            let head = wire::Head {
                shard: 0,
                position,
                hash: hash.to_vec(),
                at_ms: 1,
                nonce: nonce.to_vec(),
                digest: digest.to_vec(),
            };
            let head = head.encode_to_vec().into();
            wire::Sealed { head, kid: "one".to_owned(), ..wire::Sealed::default() }
        };
        let message = |sealed, content| wire::FollowResponse { sealed: Some(sealed), content };
        let opening = wire::Opening { jwks: Vec::new(), resumed: false }.encode_to_vec();
        let label = [batch::OPENING_LABEL, opening.as_slice()].concat();
        let digest = ring::digest::digest(&ring::digest::SHA256, &label);
        let whole = Snapshot::of(chain.set(), *chain.hash());
        let next = chain.draft(at(5), &Default::default());
        let bodies = vec![next.body.clone()];
        [
            message(
                sealed(3, chain.hash(), NONCE, digest.as_ref()),
                Some(Content::Opening(opening.into())),
            ),
            message(
                sealed(3, chain.hash(), &[], &whole.digest),
                whole.parts.first().cloned().map(Content::Snapshot),
            ),
            message(
                sealed(5, &next.hash, &[], &[]),
                Some(Content::Batches(wire::Batches { bodies })),
            ),
            message(sealed(5, &next.hash, &[], &[]), None),
        ]
        .iter()
        .flat_map(|message| {
            let bytes = message.encode_to_vec();
            let length = u16::try_from(bytes.len()).expect("short").to_be_bytes();
            [length.to_vec(), bytes].concat()
        })
        .collect()
    }
}
