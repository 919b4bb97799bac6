//! What a verifier counts, heard by a recorder such as a service would have.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::body::Body;
use http::Request;
use mayfly_core::Status;
use mayfly_verify::{Action, Actions, Authorize, CheckLayer, Party, Peer};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tokio::time::Instant;
use tower::{Layer as _, ServiceExt as _};

use crate::common::{Authority, CALM, NOW, delta, hold, serial, view};

/// Keeps every count by its name and labels.
#[derive(Default)]
struct Counts(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

impl Counts {
    fn of(&self, name: &str) -> u64 {
        let counts = self.0.lock().expect("not poisoned");
        counts.get(name).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

impl Recorder for Counts {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let labels = key.labels().map(|label| format!(" {}={}", label.key(), label.value()));
        let name = key.name().to_owned() + &labels.collect::<String>();
        let mut counts = self.0.lock().expect("not poisoned");
        Counter::from_arc(Arc::clone(counts.entry(name).or_default()))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[test]
fn refusals_are_counted_by_place_and_reason() {
    let counts = Counts::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&counts, || {
        runtime.block_on(async {
            let (authority, view) = (Authority::new("example.org"), view(CALM));
            let context = authority.context("/b", serial(2).as_bytes());
            let leaf = context.default_svid().unwrap().leaf.clone();
            let held = hold(context);
            let party = Party::new(held.subscribe(), Authorize::Any, Arc::clone(&view));
            let peer = Peer { leaf, own: true };
            let standing = party.standing(peer.clone(), NOW);
            let actions = Actions::none().allow(Action::any_method("/a"), Authorize::Any);
            let router = axum::Router::new().route("/a", axum::routing::get(async || "a"));
            let service = standing.introduce(CheckLayer::new(actions).layer(router));
            let ask = async |path: &str| {
                let request = Request::builder().uri(path).body(Body::empty()).unwrap();
                drop(service.clone().oneshot(request).await.unwrap());
            };
            ask("/a").await;
            ask("/b").await;
            let (stream, _far) = tokio::io::duplex(8);
            let mut stream = party.guard(stream, peer, NOW).unwrap();
            view.apply(&delta(1, 2, &[(2, Status::Revoked)]), Instant::now()).unwrap();
            ask("/a").await;
            ask("/a").await;
            for _ in 0..2 {
                tokio::io::AsyncReadExt::read(&mut stream, &mut [0]).await.unwrap_err();
            }
        });
    });
    let of = |place: &str, reason: &str| {
        counts.of(&format!("mayfly_verify_refusals_total place={place} reason={reason}"))
    };
    assert_eq!(of("request", "not_permitted"), 1);
    assert_eq!(of("request", "revoked"), 2);
    assert_eq!(of("connection", "revoked"), 1, "a connection is cut once");
    let places = counts.0.lock().unwrap().len();
    assert_eq!(places, 3, "and what was let in is not counted");
}
