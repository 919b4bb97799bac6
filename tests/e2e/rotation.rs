//! R12: rotation of certificates, tokens and authorities under load.

use std::time::Duration;

use mayfly_core::Timestamp;
use mayfly_proto::mayfly::v1 as wire;
use mayfly_verify::{JwkSets, WorkloadClient, jwt};

use crate::{
    actor::{Svid, X509Stream},
    common::{Site, own_uid, within},
    papers,
    stand::AUDIENCE,
};

const X509_TTL: Duration = Duration::from_secs(3);
const RUN: Duration = Duration::from_secs(61);

fn active(status: &wire::GetStatusResponse) -> Vec<String> {
    let active = status.authorities.iter().filter(|one| one.state == "active");
    active.map(|one| one.id.clone()).collect()
}

/// Everything that a stream said, checked against what it said before.
#[derive(Debug, Default)]
struct Watched {
    last: Option<Svid>,
    renewals: usize,
}

impl Watched {
    fn take(&mut self, next: Svid, now: Timestamp) {
        assert!(papers::is_signed_by(&next.leaf(), &next.bundle()), "by its own bundle");
        assert!(next.not_after_ms > now.0, "it is good on arrival");
        if let Some(last) = self.last.take() {
            assert!(last.not_after_ms > now.0, "there was never a moment without a good one");
            // A peer whose message is on its way holds the older bundle, or the newer one.
            assert!(papers::is_signed_by(&next.leaf(), &last.bundle()), "by the older bundle");
            assert!(papers::is_signed_by(&last.leaf(), &next.bundle()), "by the newer bundle");
            assert_eq!(next.spiffe_id, last.spiffe_id);
            self.renewals += usize::from(next.serial != last.serial);
        }
        self.last = Some(next);
    }
}

async fn watch(stream: &mut X509Stream, watched: &mut Watched) {
    loop {
        let context = stream.next().await.expect("a stream that never ends");
        watched.take(Svid::of(&context), mayfly::clock::now());
    }
}

/// A call every tenth of a second: each succeeds, and its token is good for those who fetched the keys
/// a while ago as well as for the broker.
async fn call(client: &WorkloadClient, calls: &mut usize) {
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let mut keys: JwkSets = client.fetch_jwt_bundles().await.expect("keys");
    loop {
        tick.tick().await;
        let tokens = client.fetch_jwt(&[AUDIENCE], None).await.expect("no call fails");
        let token = &tokens[0].token;
        let now = mayfly::clock::now();
        jwt::validate(token, AUDIENCE, &keys, now).expect("good with the older keys");
        client.validate_jwt(AUDIENCE, token).await.expect("good with the broker");
        *calls += 1;
        if calls.is_multiple_of(10) {
            keys = client.fetch_jwt_bundles().await.expect("keys");
        }
    }
}

/// R12: twenty lives of a certificate, with authorities that rotate meanwhile, and no call fails.
#[tokio::test]
async fn r12_twenty_lifetimes_with_rotating_authorities_fail_no_call() {
    let uid = own_uid();
    let site = Site::new(&format!(
        r#"[workload]
socket = "workload.sock"

[authority]
ca_ttl = "24s"
jwt_key_ttl = "24s"

[[profile]]
name = "met"
path = "/met"
selectors = ["unix:uid:{uid}"]
owner = "team"
x509_ttl = "3s"
jwt_ttl = "3s"
"#
    ));
    let broker = site.start().await;
    let mut operator = broker.operator().await;
    let before = active(&operator.status().await.expect("a status"));
    let (mut stream, client) = (X509Stream::open(&broker.endpoint()), broker.workload());
    let (mut watched, mut calls) = (Watched::default(), 0);
    let work = async { tokio::join!(watch(&mut stream, &mut watched), call(&client, &mut calls)) };
    // The run is bounded by the clock, which is what it is about.
    assert!(tokio::time::timeout(RUN, work).await.is_err(), "neither ends by itself");

    let after = active(&operator.status().await.expect("a status"));
    assert_eq!((before.len(), after.len()), (2, 2), "one for certificates, one for tokens");
    assert!(before.iter().all(|id| !after.contains(id)), "both kinds were replaced");
    let lives = usize::try_from(RUN.as_secs() / X509_TTL.as_secs()).expect("small");
    assert!(watched.renewals >= lives, "{} renewals in {lives} lives", watched.renewals);
    assert!(calls >= 100, "{calls} calls are no traffic");

    // Each renewal and each token is a decision of its own, and the log has them all.
    let task = watched.last.expect("a certificate").task();
    let (_, story) = within("the story", operator.show(&task)).await.expect("a task");
    let promised = |kind: &str| {
        story.iter().filter(|e| e.what == "promised" && e.detail.starts_with(kind)).count()
    };
    assert!(promised("x509") > watched.renewals, "{} certificates", promised("x509"));
    assert!(promised("jwt") >= calls, "{} tokens", promised("jwt"));
}
