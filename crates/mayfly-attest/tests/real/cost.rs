//! What a look costs, roughly; `cargo test -- --nocapture cost` shows it.

use std::os::unix::net::UnixStream;

use mayfly_attest::{CollectOptions, Collector, Peer};
use tokio::time::Instant;

use crate::role::MUCH_LATER;

const ROUNDS: u32 = 2_000;

#[tokio::test]
async fn a_look_costs_microseconds() {
    let (one, _other) = UnixStream::pair().expect("a pair");
    let collector = Collector::default();
    let all = CollectOptions::default();
    let least = CollectOptions { names: false, sha256: false, lineage: false, ..all };
    let start = Instant::now();
    for _ in 0..ROUNDS {
        Peer::of(&one).expect("we live");
    }
    let accepted = start.elapsed() / ROUNDS;
    let peer = Peer::of(&one).expect("we live");
    let mut costs = Vec::new();
    for options in [least, CollectOptions { lineage: true, ..least }, all] {
        collector.collect(&peer, options, MUCH_LATER).await.expect("we live");
        let start = Instant::now();
        for _ in 0..ROUNDS {
            collector.collect(&peer, options, MUCH_LATER).await.expect("we live");
        }
        costs.push(start.elapsed() / ROUNDS);
    }
    let start = Instant::now();
    for _ in 0..ROUNDS {
        peer.still_there().expect("we live");
    }
    let again = start.elapsed() / ROUNDS;
    eprintln!("peer {accepted:?}, collect least/lineage/all {costs:?}, still_there {again:?}");
    // Generous for a busy machine; without the cache of digests it would be tens of milliseconds.
    assert!(costs.iter().all(|cost| cost.as_micros() < 5_000), "{costs:?}");
}
