//! Everything that is revoked: how large it is on the wire, what it costs to write, and what it costs a
//! verifier to take.

use mayfly::clock;
use mayfly_core::{
    Change, Place, Position, RevocationSet, Sequence, Serial, Shard, Slot, Status, Window,
    batch::{Changes, OPENING_LABEL, SEAL_LABEL},
};
use mayfly_proto::mayfly::v1::{self as wire, FollowResponse, follow_response::Content};
use mayfly_serve::feed::snapshot::Snapshot;
use mayfly_verify::{
    Patience, View,
    reader::{News, Reader, Vouch},
};
use prost::Message as _;
use tokio::time::Instant;

use crate::measure::{Fault, ms, quantile, say};

const SLOTS: u32 = 1_000_000;
const ROUNDS: usize = 9;

#[expect(clippy::cast_precision_loss, reason = "counts of a bench are small")]
pub(crate) const fn float(number: usize) -> f64 {
    number as f64
}

/// One window of a million slots, a tenth of which has ended, nowhere near each other.
fn scattered() -> RevocationSet {
    let sequence = Sequence(9);
    let mut set = RevocationSet::at(Position { shard: Shard(0), sequence });
    let mut luck = 0x9e37_79b9_7f4a_7c15_u64;
    for slot in 0..SLOTS {
        luck ^= luck << 13;
        luck ^= luck >> 7;
        luck ^= luck << 17;
        if luck.is_multiple_of(10) {
            let place = Place { window: Window(3_000_000), slot: Slot(slot) };
            set.take(Change::Place(place, Status::Revoked));
        }
    }
    set
}

/// The signature of a snapshot is one of many messages'; what is measured here is the rest.
struct Anybody;

impl Vouch for Anybody {
    fn knows(&self, _kid: &str) -> bool {
        true
    }

    fn vouches(&self, _kid: &str, message: &[u8], _signature: &[u8]) -> bool {
        message.starts_with(SEAL_LABEL)
    }
}

fn sealed(snapshot: &Snapshot, nonce: Vec<u8>, digest: Vec<u8>) -> wire::Sealed {
    let head = wire::Head {
        shard: 0,
        position: snapshot.position.sequence.0,
        hash: snapshot.hash.to_vec(),
        at_ms: 1,
        nonce,
        digest,
    };
    wire::Sealed { head: head.encode_to_vec().into(), ..wire::Sealed::default() }
}

pub(crate) fn measure(figures: &mut Vec<(String, f64)>) -> Result<(), Fault> {
    let set = scattered();
    let (mut made, mut taken, mut bytes) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        let began = clock::monotonic_ns();
        let snapshot = Snapshot::of(&set, [7; 32]);
        made.push(ms(clock::monotonic_ns() - began));
        bytes = snapshot.bytes();
        taken.push(take(&snapshot, &set)?);
    }
    let (made, taken) = (quantile(&made, 0.5), quantile(&taken, 0.5));
    let kib = float(bytes) / 1024.0;
    say(&format!("{SLOTS} slots, a tenth of them ended, scattered:"));
    say(&format!("  a snapshot on the wire                         {kib:>8.1} KiB"));
    say(&format!("  writing it, once for all followers                 {made:>8.2} ms"));
    say(&format!("  reading and applying it                            {taken:>8.2} ms"));
    figures.push(("snapshot_kib".to_owned(), kib));
    figures.push(("snapshot_written_ms".to_owned(), made));
    figures.push(("snapshot_applied_ms".to_owned(), taken));

    let changes: Changes = set_changes().iter().collect();
    let encoded = changes.encode().len();
    say(&format!(
        "  10,000 ends next to each other in a batch      {:>8.1} KiB",
        float(encoded) / 1024.0
    ));
    figures.push(("batch_of_10000_kib".to_owned(), float(encoded) / 1024.0));
    Ok(())
}

fn set_changes() -> Vec<Change> {
    let place = |slot| Place { window: Window(3_000_000), slot: Slot(slot) };
    (0..10_000).map(|slot| Change::Place(place(slot), Status::Revoked)).collect()
}

/// Reads a stream that begins with `snapshot` into a view, and times it from the part's arrival on.
fn take(snapshot: &Snapshot, truth: &RevocationSet) -> Result<f64, Fault> {
    let nonce = vec![7; 16];
    let mut reader = Reader::new(nonce.clone(), None);
    let opening = wire::Opening::default().encode_to_vec();
    let label = [OPENING_LABEL, opening.as_slice()].concat();
    let digest = ring::digest::digest(&ring::digest::SHA256, &label).as_ref().to_vec();
    let content = Some(Content::Opening(opening.into()));
    reader.take(
        FollowResponse { sealed: Some(sealed(snapshot, nonce, digest)), content },
        Some(&Anybody),
    )?;
    let view = View::new(Patience::default());
    let began = clock::monotonic_ns();
    let last = snapshot.parts.len() - 1;
    for (at, part) in snapshot.parts.iter().enumerate() {
        let seal = sealed(snapshot, Vec::new(), snapshot.digest.to_vec());
        let content = Some(Content::Snapshot(part.clone()));
        let message = FollowResponse { sealed: (at == last).then_some(seal), content };
        if let News::Everything { set, .. } = reader.take(message, Some(&Anybody))? {
            view.replace(set, Instant::now())?;
        }
    }
    let took = ms(clock::monotonic_ns() - began);
    let place = Place { window: Window(3_000_000), slot: Slot(SLOTS - 1) };
    let serial = Serial::new(place, 1);
    if view.status(&serial) != truth.status(&serial)
        || *view.position().borrow() != truth.position()
    {
        return Err("the view is not what was sent".into());
    }
    Ok(took)
}
