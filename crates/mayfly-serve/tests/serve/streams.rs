//! Streams over time: renewed, corrected, withdrawn and ended.

use std::{sync::Arc, time::Duration};

use mayfly_core::{Closing, Denial};
use mayfly_proto::spiffe::workload::{
    JwtBundlesRequest, X509BundlesRequest, X509svidRequest, X509svidResponse,
};
use tonic::{Code, Streaming};

use crate::common::{Served, ask, bundles, domain, end, identity, next, served, soon, task};

async fn svids(served: &Served) -> Streaming<X509svidResponse> {
    let mut client = served.client().await;
    soon(client.fetch_x509svid(ask(X509svidRequest {}))).await.expect("a stream").into_inner()
}

fn ids(message: &X509svidResponse) -> Vec<&str> {
    message.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect()
}

/// Nothing arrives for a while that is long for this server.
async fn silence<T>(stream: &mut Streaming<T>) {
    let heard = tokio::time::timeout(Duration::from_millis(200), stream.message()).await;
    assert!(heard.is_err(), "something was said without a reason");
}

#[tokio::test]
async fn point_16_a_certificate_is_renewed_at_half_its_life_and_the_caller_looked_at_again() {
    let served = served().await;
    served.desk.tell(|script| script.ttl_ms = 1_400);
    let mut stream = svids(&served).await;
    let first = next(&mut stream).await;
    let begun = tokio::time::Instant::now();
    let second = next(&mut stream).await;
    let took = begun.elapsed();
    assert!((Duration::from_millis(500)..Duration::from_millis(1_300)).contains(&took), "{took:?}");
    assert_ne!(first.svids, second.svids);
    assert_eq!(ids(&first), ids(&second));
    assert_eq!(served.desk.met().len(), 2);
}

#[tokio::test]
async fn point_117_a_caller_whose_task_is_being_opened_is_held_and_not_refused() {
    let served = served().await;
    let (hold, holds) = tokio::sync::watch::channel(true);
    served.desk.tell(|script| script.holds = holds);
    let mut stream = svids(&served).await;
    until_met(&served, 1).await;
    silence(&mut stream).await;
    let _was_held = hold.send_replace(false);
    assert_eq!(ids(&next(&mut stream).await), ["spiffe://example.org/w/1"]);
}

#[tokio::test]
async fn a_held_caller_is_told_when_the_server_stops() {
    let served = served().await;
    let (hold, holds) = tokio::sync::watch::channel(true);
    served.desk.tell(|script| script.holds = holds);
    let mut stream = svids(&served).await;
    until_met(&served, 1).await;
    let (status, ()) = tokio::join!(end(&mut stream), soon(served.doors.shut()));
    assert_eq!(status.code(), Code::Unavailable);
    drop(hold);
}

#[tokio::test]
async fn a_new_bundle_is_pushed_with_the_same_certificates_and_costs_no_signature() {
    let served = served().await;
    served.desk.tell(|script| script.who = Ok(vec![identity(1, "", &["friend.org"])]));
    let mut stream = svids(&served).await;
    let first = next(&mut stream).await;
    drop(served.desk.bundles.send_replace(Arc::new(bundles("2"))));
    let second = next(&mut stream).await;
    let leaf =
        |message: &X509svidResponse| message.svids.first().map(|svid| svid.x509_svid.clone());
    assert_eq!(leaf(&first), leaf(&second));
    assert_eq!(second.svids.first().map(|svid| svid.bundle.as_ref()), Some(b"x509 2".as_slice()));

    let mut without_friend = bundles("2");
    drop(without_friend.x509.remove(&domain("friend.org")));
    drop(served.desk.bundles.send_replace(Arc::new(without_friend)));
    assert!(next(&mut stream).await.federated_bundles.is_empty());
    assert_eq!(served.desk.issued(), 1);
}

#[tokio::test]
async fn a_new_revocation_list_alone_is_news_for_bundle_streams_only() {
    let served = served().await;
    let mut certificates = svids(&served).await;
    drop(next(&mut certificates).await);
    let mut client = served.client().await;
    let stream = soon(client.fetch_x509_bundles(ask(X509BundlesRequest {}))).await;
    let mut x509 = stream.expect("a stream").into_inner();
    drop(next(&mut x509).await);
    let stream = soon(client.fetch_jwt_bundles(ask(JwtBundlesRequest {}))).await;
    let mut jwt = stream.expect("a stream").into_inner();
    drop(next(&mut jwt).await);

    let mut longer = bundles("1");
    longer.crls.push(b"crl 2".as_slice().into());
    drop(served.desk.bundles.send_replace(Arc::new(longer)));
    assert_eq!(next(&mut x509).await.crl.len(), 2);
    silence(&mut certificates).await;
    silence(&mut jwt).await;
}

#[tokio::test]
async fn point_16_the_same_bundles_again_are_no_news() {
    let served = served().await;
    let mut stream = svids(&served).await;
    drop(next(&mut stream).await);
    drop(served.desk.bundles.send_replace(Arc::new(bundles("1"))));
    silence(&mut stream).await;
}

#[tokio::test]
async fn point_20_the_end_of_the_only_task_ends_every_kind_of_stream_with_permission_denied() {
    for (why, code) in [(Closing::Ended, "task_ended"), (Closing::Suspended, "task_quarantined")] {
        let served = served().await;
        let mut certificates = svids(&served).await;
        drop(next(&mut certificates).await);
        let mut client = served.client().await;
        let x509 = soon(client.fetch_x509_bundles(ask(X509BundlesRequest {}))).await;
        let mut x509 = x509.expect("a stream").into_inner();
        drop(next(&mut x509).await);
        let jwt = soon(client.fetch_jwt_bundles(ask(JwtBundlesRequest {}))).await;
        let mut jwt = jwt.expect("a stream").into_inner();
        drop(next(&mut jwt).await);
        served.desk.close(task(1), why);
        for status in [end(&mut certificates).await, end(&mut x509).await, end(&mut jwt).await] {
            assert_eq!(status.code(), Code::PermissionDenied);
            assert!(status.message().starts_with(code), "{status:?}");
        }
        assert_eq!(served.desk.issued(), 1, "nothing is issued for a task that is over");
    }
}

#[tokio::test]
async fn point_17_one_of_two_tasks_ends_and_the_next_message_is_without_it() {
    let served = served().await;
    let both = vec![identity(1, "", &[]), identity(2, "", &[])];
    served.desk.tell(|script| script.who = Ok(both));
    let mut stream = svids(&served).await;
    assert_eq!(ids(&next(&mut stream).await).len(), 2);
    served.desk.tell(|script| script.who = Ok(vec![identity(2, "", &[])]));
    served.desk.close(task(1), Closing::Ended);
    assert_eq!(ids(&next(&mut stream).await), ["spiffe://example.org/w/2"]);
}

#[tokio::test]
async fn an_identity_that_is_refused_drops_out_and_the_others_are_served() {
    let served = served().await;
    served.desk.tell(|script| {
        script.who = Ok(vec![identity(1, "", &[]), identity(2, "", &[])]);
        let _none = script.x509_of.insert(task(1), Denial::TaskEnded);
    });
    let mut stream = svids(&served).await;
    assert_eq!(ids(&next(&mut stream).await), ["spiffe://example.org/w/2"]);
    served.desk.tell(|script| script.x509 = Some(Denial::TaskEnded));
    let mut stream = svids(&served).await;
    assert_eq!(end(&mut stream).await.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn an_amended_task_gets_new_certificates_at_once() {
    let served = served().await;
    let mut stream = svids(&served).await;
    let first = next(&mut stream).await;
    served.desk.close(task(1), Closing::Changed);
    let second = next(&mut stream).await;
    assert_ne!(first.svids, second.svids);
    served.desk.tell(|script| script.x509 = Some(Denial::TaskVersion));
    served.desk.close(task(1), Closing::Changed);
    assert_eq!(end(&mut stream).await.code(), Code::Unavailable, "asked again, but not for ever");
}

#[tokio::test]
async fn a_desk_out_of_breath_at_half_life_is_asked_again_while_the_certificate_lasts() {
    let served = served().await;
    served.desk.tell(|script| script.ttl_ms = 2_400);
    let mut stream = svids(&served).await;
    let first = next(&mut stream).await;
    served.desk.tell(|script| script.x509 = Some(Denial::Overloaded));
    until_met(&served, 2).await;
    served.desk.tell(|script| script.x509 = None);
    assert_ne!(next(&mut stream).await.svids, first.svids);

    served.desk.tell(|script| script.x509 = Some(Denial::Overloaded));
    assert_eq!(end(&mut stream).await.code(), Code::Unavailable, "once it has expired");
}

/// A stream that gets nothing ends, and says on the wire when there may be room.
#[tokio::test]
async fn whoever_finds_no_room_is_told_when_to_come_again() {
    let served = served().await;
    served.desk.tell(|script| script.x509 = Some(Denial::Overloaded));
    let mut told = std::collections::BTreeSet::new();
    for _ in 0..5 {
        let end = end(&mut svids(&served).await).await;
        assert_eq!(end.code(), Code::Unavailable);
        let hint = end.metadata().get("grpc-retry-pushback-ms").expect("a hint");
        let hint: u64 = hint.to_str().expect("digits").parse().expect("a number");
        assert!((500..5000).contains(&hint), "{hint}");
        told.insert(hint);
    }
    assert_eq!(told.len(), 5, "everybody is told another moment");
    served.desk.tell(|script| script.x509 = Some(Denial::SigningFailed));
    let end = end(&mut svids(&served).await).await;
    assert_eq!(
        (end.code(), end.metadata().get("grpc-retry-pushback-ms")),
        (Code::Unavailable, None)
    );
}

async fn until_met(served: &Served, times: usize) {
    crate::common::until("the desk was asked again", || served.desk.met().len() >= times).await;
}

#[tokio::test]
async fn a_no_at_half_life_ends_the_stream() {
    let served = served().await;
    served.desk.tell(|script| script.ttl_ms = 1_000);
    let mut stream = svids(&served).await;
    drop(next(&mut stream).await);
    served.desk.tell(|script| script.who = Err(Denial::NoIdentity));
    assert_eq!(end(&mut stream).await.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn point_06_116_shutdown_ends_every_stream_with_unavailable_and_never_ok_or_cancelled() {
    let served = served().await;
    let mut certificates = svids(&served).await;
    drop(next(&mut certificates).await);
    let mut client = served.client().await;
    let stream = soon(client.fetch_x509_bundles(ask(X509BundlesRequest {}))).await;
    let mut x509 = stream.expect("a stream").into_inner();
    drop(next(&mut x509).await);
    served.services.stop().await;
    let begun = tokio::time::Instant::now();
    let (a, b, ()) =
        tokio::join!(end(&mut certificates), end(&mut x509), soon(served.doors.shut()));
    assert_eq!((a.code(), b.code()), (Code::Unavailable, Code::Unavailable));
    assert!(begun.elapsed() < Duration::from_secs(1), "nobody had to be cut off");
    assert!(!served.path.exists());
}

#[tokio::test]
async fn point_16_a_slow_reader_gets_the_latest_state_and_not_every_state() {
    const CHANGES: usize = 300;
    let served = served().await;
    let mut client = served.client().await;
    let stream = soon(client.fetch_x509_bundles(ask(X509BundlesRequest {}))).await;
    let mut stream = stream.expect("a stream").into_inner();
    drop(next(&mut stream).await);
    for number in 1..=CHANGES {
        // Large enough that a few fill every buffer between the two ends.
        let own = format!("{number} {}", "b".repeat(200_000));
        drop(served.desk.bundles.send_replace(Arc::new(bundles(&own))));
        tokio::task::yield_now().await;
    }
    let last = format!("x509 {CHANGES} ");
    for read in 1..=20 {
        let message = next(&mut stream).await;
        let own = message.bundles.get("spiffe://example.org").expect("the own bundle");
        if own.starts_with(last.as_bytes()) {
            assert!(read < 20);
            return;
        }
    }
    panic!("the reader was sent states that had been overtaken");
}

#[tokio::test]
async fn a_hundred_streams_of_one_connection_are_all_renewed() {
    let served = served().await;
    let mut client = served.client().await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        let stream = soon(client.fetch_x509svid(ask(X509svidRequest {}))).await;
        streams.push(stream.expect("a stream").into_inner());
    }
    for stream in &mut streams {
        drop(next(stream).await);
    }
    served.desk.close(task(1), Closing::Changed);
    for stream in &mut streams {
        drop(next(stream).await);
    }
    assert_eq!(served.desk.issued(), 200);
}
