//! Everything that is revoked, in parts that clients accept, made once for all who start over.

use std::io::Write as _;

use bytes::Bytes;
use flate2::{Compression, write::ZlibEncoder};
use mayfly_core::{Position, RevocationSet, batch::SNAPSHOT_LABEL};
use mayfly_proto::mayfly::v1 as wire;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::chain::Hash;
use crate::limits;

/// A snapshot as it travels.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Where it stands.
    pub position: Position,
    /// The chain's hash there.
    pub hash: Hash,
    /// Over all parts.
    pub digest: Hash,
    /// `SnapshotPart`s, at least one.
    pub parts: Vec<Bytes>,
}

impl Snapshot {
    /// Writes `set`, which stands at `hash` in its chain. Takes milliseconds for each megabyte.
    #[must_use]
    pub fn of(set: &RevocationSet, hash: Hash) -> Self {
        let parts: Vec<Bytes> =
            parts(set).into_iter().map(|part| part.encode_to_vec().into()).collect();
        Self { position: set.position(), hash, digest: digest(&parts), parts }
    }

    /// How many bytes travel.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }
}

fn digest(parts: &[Bytes]) -> Hash {
    let mut hash = Sha256::new();
    hash.update(SNAPSHOT_LABEL);
    for part in parts {
        // A part is far below 4 GiB.
        hash.update(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn parts(set: &RevocationSet) -> Vec<wire::SnapshotPart> {
    let mut parts = Parts::default();
    for (window, bitmap) in set.windows() {
        let statuses: Bytes = zlib(bitmap.as_packed()).into();
        parts.make_room(statuses.len());
        parts.last.windows.push(wire::Window { window: window.0, statuses });
    }
    for (serial, until) in set.serials() {
        let serial = serial.as_bytes().to_vec();
        parts.make_room(serial.len());
        parts.last.serials.push(wire::RevokedSerial { serial, until_ms: until.0 });
    }
    parts.done.push(parts.last);
    parts.done
}

#[derive(Default)]
struct Parts {
    done: Vec<wire::SnapshotPart>,
    last: wire::SnapshotPart,
    bytes: usize,
}

impl Parts {
    /// Begins another part if `bytes` more do not fit into this one. A window is never divided.
    fn make_room(&mut self, bytes: usize) {
        // Field headers, and a serial's instant.
        let bytes = bytes + 16;
        if self.bytes > 0 && self.bytes + bytes > limits::SNAPSHOT_PART_BYTES_MAX {
            self.last.more = true;
            self.done.push(std::mem::take(&mut self.last));
            self.bytes = 0;
        }
        self.bytes += bytes;
    }
}

/// The level that costs a tenth of the best one and is a tenth larger.
fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(6));
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    // Memory does not refuse to be written to.
    written.unwrap_or_default()
}
