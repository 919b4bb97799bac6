//! What a look costs: `cargo test -p mayfly-attest -- --nocapture cost` shows it.

use std::{os::unix::net::UnixStream, time::Duration};

use mayfly_attest::{CollectOptions, Collector, Peer, lineage};
use rustix::time::{ClockId, clock_gettime};

use crate::role::MUCH_LATER;

const ROUNDS: u32 = 2_000;

/// Processor time of this thread: unlike the hour, it does not depend on who else is busy.
fn spent() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("time spent is not negative")
}

#[tokio::test]
async fn a_look_costs_microseconds() {
    let (one, _other) = UnixStream::pair().expect("a pair");
    let peer = Peer::of(&one).expect("we live");
    let start = spent();
    for _ in 0..ROUNDS {
        Peer::of(&one).expect("we live");
    }
    let accepted = (spent() - start) / ROUNDS;
    let start = spent();
    for _ in 0..ROUNDS {
        peer.still_there().expect("we live");
    }
    let again = (spent() - start) / ROUNDS;
    eprintln!("Peer::of {accepted:?}, still_there {again:?}");

    let depth = lineage(peer.process()).expect("we live").len();
    let collector = Collector::default();
    let all = CollectOptions::default();
    let least = CollectOptions { names: false, sha256: false, lineage: false, ..all };
    for (what, options) in [
        ("least", least),
        ("with names and a known digest", CollectOptions { lineage: false, ..all }),
        ("with lineage", CollectOptions { lineage: true, ..least }),
    ] {
        collector.collect(&peer, options, MUCH_LATER).await.expect("we live");
        let start = spent();
        for _ in 0..ROUNDS {
            collector.collect(&peer, options, MUCH_LATER).await.expect("we live");
        }
        let cost = (spent() - start) / ROUNDS;
        eprintln!("collect {what} ({depth} deep): {cost:?}");
        // Generous; without the memory of digests it would be tens of milliseconds.
        assert!(cost.as_micros() < 2_000, "{what}: {cost:?}");
    }
}
