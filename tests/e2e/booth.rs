//! What a task with a Workload API socket of its own is given there.

use futures_util::future::join_all;
use mayfly_proto::mayfly::v1::{self as wire, holder_wish::Holder};

use crate::{
    api::wish,
    tasks::{socket_of, stage, token},
};

/// A stock client opens a stream to get started and another to stay. Those that come together, and whoever
/// comes later, have the certificate that the first was given when it was met.
#[tokio::test]
async fn streams_of_a_task_with_a_socket_of_its_own_share_one_certificate() {
    let (_site, _broker, _operator, api) = stage("").await;
    let begun = api.begin(wish("booth", Holder::Socket(true))).await.expect("begun");
    let certificate = async || {
        let update = socket_of(&begun).fetch_x509().await.expect("an X.509-SVID");
        update.svids[0].chain.clone()
    };
    let together = join_all((0..8).map(|_| certificate())).await;
    assert!(together.iter().all(|other| *other == together[0]), "of those that came together");
    assert_eq!(certificate().await, together[0], "and of one that came later");
}

#[tokio::test]
async fn the_first_certificate_at_a_socket_was_promised_with_the_beginning() {
    let (_site, _broker, _operator, api) = stage("").await;
    let begun = api.begin(wish("booth", Holder::Socket(true))).await.expect("begun");
    let update = socket_of(&begun).fetch_x509().await.expect("an X.509-SVID");
    let first = update.svids[0].leaf.serial.expect("one of ours");
    token(&begun).await.expect("a JWT-SVID");
    let story = wire::GetRequest { task: begun.task.clone(), timeline: true };
    let story = api.0.clone().get(story).await.expect("a story").into_inner().timeline;
    let words: Vec<_> = story.iter().map(|entry| entry.what.as_str()).collect();
    assert_eq!(words, ["began", "promised", "promised"], "{story:?}");
    assert_eq!(story[1].position, story[0].position + 1);
    assert_eq!(story[1].detail, format!("x509 {first}"));
}
