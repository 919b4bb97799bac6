//! What strangers may send, and what comes of it: a clear code, and a broker that serves.

use std::{path::Path, time::Duration};

use mayfly_proto::spiffe::workload::{self as spiffe, spiffe_workload_api_client as api};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use tonic::Code;

use crate::{
    actor::with_header,
    common::{Broker, Operator, Site, within},
    stand::{AUDIENCE, configuration, is_valid, stand, stand_with, status},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// It lives, it serves, and its operator is heard.
async fn assert_serves(broker: &mut Broker, operator: &mut Operator) {
    assert!(broker.lives(), "the broker has died");
    within("a certificate", broker.workload().fetch_x509()).await.expect("it serves");
    assert!(within("a status", operator.status()).await.expect("a status").issuing);
}

/// Sends `bytes` and reads whatever comes until the other side hangs up.
async fn send(socket: &Path, bytes: &[u8]) {
    let mut stream = UnixStream::connect(socket).await.expect("it listens");
    // It may hang up before it has read everything, which is its right.
    drop(stream.write_all(bytes).await);
    drop(stream.shutdown().await);
    let mut answer = Vec::new();
    drop(within("the end of a bad connection", stream.read_to_end(&mut answer)).await);
    let leaked = answer.windows(11).any(|window| window == b"PRIVATE KEY");
    assert!(!leaked, "an answer to garbage holds a key");
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [head, payload.to_vec()].concat()
}

/// Garbage, and HTTP/2 that goes wrong at every stage, on both sockets.
#[tokio::test]
async fn garbage_on_either_socket_harms_nobody() {
    let (site, mut broker, mut operator) = stand().await;
    let settings = frame(4, 0, 0, &[]);
    let huge = [0xFF, 0xFF, 0xFF, 1, 4, 0, 0, 0, 1];
    let with_preface = |rest: &[u8]| [PREFACE, rest].concat();
    let mut luck = 1_u64;
    let mut noise = |length: usize| -> Vec<u8> {
        let mut byte = || {
            luck = luck.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            luck.to_be_bytes()[0]
        };
        (0..length).map(|_| byte()).collect()
    };
    let mut cases = vec![
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        Vec::new(),
        PREFACE[..10].to_vec(),
        with_preface(&huge),
        with_preface(&[settings.clone(), frame(1, 4, 1, &[0x80])].concat()),
        with_preface(&[settings.clone(), frame(1, 4, 1, &[0xFF; 64])].concat()),
        with_preface(&[settings.clone(), frame(1, 4, 2, &[0x82])].concat()),
        with_preface(&[settings.clone(), frame(0, 1, 1, b"no headers before")].concat()),
        with_preface(&[settings.clone(), frame(9, 4, 1, &[0x82])].concat()),
        with_preface(&[settings.clone(), frame(8, 0, 0, &[0; 4])].concat()),
        with_preface(&[settings.clone(), frame(5, 4, 1, &[0; 8])].concat()),
        with_preface(&frame(4, 0, 0, &[0; 7])),
        with_preface(&frame(6, 0, 0, &[0; 3])),
        // Settings and resets by the hundred, which have felled other servers.
        with_preface(&settings.repeat(2000)),
        with_preface(&[settings.clone(), frame(3, 0, 1, &[0; 4]).repeat(500)].concat()),
    ];
    for length in [1, 9, 100, 4096, 100_000] {
        cases.push(noise(length));
        let noise = noise(length);
        cases.push(with_preface(&noise));
        cases.push(with_preface(&[settings.clone(), noise].concat()));
    }
    for socket in [site.socket(), site.data().join("admin.sock")] {
        for case in &cases {
            send(&socket, case).await;
        }
        assert_serves(&mut broker, &mut operator).await;
    }
    assert!(!site.said().contains("panicked"), "{}", site.said());
}

/// Two megabytes of metadata are not kept, let alone read.
#[tokio::test]
async fn metadata_of_two_megabytes_is_refused() {
    let (site, mut broker, mut operator) = stand().await;
    let mut client = api::SpiffeWorkloadApiClient::new(broker.endpoint().channel());
    let mut request = with_header(spiffe::X509svidRequest {});
    request.metadata_mut().insert("x", "a".repeat(2 << 20).parse().expect("ascii"));
    let refused = within("an answer", client.fetch_x509svid(request)).await;
    let refused = refused.expect_err("too much");
    assert_ne!(refused.code(), Code::Ok);
    assert_serves(&mut broker, &mut operator).await;

    let mut request = with_header(spiffe::ValidateJwtsvidRequest {
        audience: "a".repeat(300 << 10),
        svid: String::new(),
    });
    request.set_timeout(Duration::from_secs(20));
    let mut client = api::SpiffeWorkloadApiClient::new(broker.endpoint().channel());
    let refused = within("an answer", client.validate_jwtsvid(request)).await;
    let code = refused.expect_err("too much").code();
    assert!(
        matches!(code, Code::OutOfRange | Code::ResourceExhausted | Code::InvalidArgument),
        "{code:?}"
    );
    assert_serves(&mut broker, &mut operator).await;
    assert!(!site.said().contains("panicked"));
}

/// A thousand streams that nobody reads cost memory within a bound, and nobody else their turn.
#[tokio::test]
async fn a_thousand_idle_streams_are_borne() {
    let (_site, mut broker, mut operator) = stand().await;
    let before = resident_kib(broker.pid);
    let mut streams = Vec::new();
    for _ in 0..10 {
        let client = api::SpiffeWorkloadApiClient::new(broker.endpoint().channel());
        for _ in 0..100 {
            let request = with_header(spiffe::X509svidRequest {});
            let stream = within("a stream", client.clone().fetch_x509svid(request)).await;
            streams.push(stream.expect("a stream").into_inner());
        }
    }
    assert_serves(&mut broker, &mut operator).await;
    let grown = resident_kib(broker.pid).saturating_sub(before);
    assert!(grown < 200 * 1024, "{grown} KiB for a thousand streams");
    // They are alive, all of them, and one task.
    for stream in &mut streams {
        let message = within("a message", stream.message()).await.expect("alive");
        assert!(!message.expect("no end").svids.is_empty());
    }
    assert_eq!(operator.list(false).await.expect("a list").len(), 1);
    drop(streams);
    assert_serves(&mut broker, &mut operator).await;
}

fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Tokens that are not good here: expired, for somebody else, from somewhere else, or no tokens.
#[tokio::test]
async fn tokens_that_are_not_good_are_invalid_arguments() {
    let short = "\n[[profile]]\nname = \"short\"\npath = \"/short\"\nselectors = []\n\
                 owner = \"team\"\nbinding = \"socket\"\njwt_ttl = \"2s\"\n";
    let (_site, mut broker, mut operator) = stand_with(short).await;
    let here = broker.workload();
    let token = here.fetch_jwt(&[AUDIENCE], None).await.expect("a token")[0].token.clone();
    assert!(is_valid(&broker, &token).await);
    let wrong = here.validate_jwt("somebody-else", &token).await.expect_err("wrong audience");
    assert_eq!(status(wrong).code(), Code::InvalidArgument);

    let elsewhere = Site::new(&configuration("").replace("example.org", "other.org"));
    let other = elsewhere.start().await;
    let foreign = other.workload().fetch_jwt(&[AUDIENCE], None).await.expect("a token");
    assert!(is_valid(&other, &foreign[0].token).await);
    assert!(!is_valid(&broker, &foreign[0].token).await, "another trust domain");

    let holder = mayfly_proto::mayfly::v1::begin_task_request::Holder::Socket(true);
    let begun = operator.begin(crate::common::task_of("short", holder)).await.expect("a task");
    let endpoint = mayfly_verify::Endpoint::parse(&format!("unix://{}", begun.socket));
    let client = mayfly_verify::WorkloadClient::new(&endpoint.expect("a path"));
    let brief = client.fetch_jwt(&[AUDIENCE], None).await.expect("a token")[0].token.clone();
    let expired = async || (!is_valid(&broker, &brief).await).then_some(());
    crate::common::until("its expiry", expired).await;
    let (task, _) = operator.show(&begun.task).await.expect("a task");
    assert_eq!(task.state, "active", "it expired by itself");

    let cut = token.get(..token.len() - 2).expect("ascii");
    let none = token.replacen(token.split('.').next().expect("a head"), "eyJhbGciOiJub25lIn0", 1);
    for bad in ["", ".", "..", "a.b.c", cut, &none, &format!("{token}."), &"x".repeat(100_000)] {
        assert!(!is_valid(&broker, bad).await, "{bad:.40}");
    }
    assert_serves(&mut broker, &mut operator).await;
}

/// Operators make mistakes, too.
#[tokio::test]
async fn operators_mistakes_are_answered_with_the_rule() {
    let (site, mut broker, mut operator) = stand().await;
    let unknown = "0".repeat(32);
    for (arguments, said) in [
        (vec!["task", "show", "nonsense"], "malformed"),
        (vec!["task", "show", &unknown], "task_unknown"),
        (vec!["task", "end", &unknown], "task_unknown"),
        (
            vec!["task", "end", &unknown, "--cause", "boredom"],
            "completed, failed, superseded or revoked",
        ),
        (vec!["revoke", "serial", "12"], "malformed"),
        (vec!["revoke", "jti", "0100000000000000000000000000000000"], "serial_unknown"),
        (vec!["doctor", "--pid", "999999999"], "attestation_failed"),
        (vec!["run", "--max-time", "never", "--as", "job", "--", "true"], "10m"),
    ] {
        let refused = site.mayfly(&arguments).await;
        assert_eq!(refused.status.code(), Some(1), "{arguments:?}: {refused:?}");
        let text = String::from_utf8_lossy(&refused.stderr);
        assert!(text.contains(said), "{arguments:?}: {text}");
        assert!(refused.stdout.is_empty(), "{refused:?}");
    }
    let mode = std::fs::metadata(site.data().join("admin.sock")).expect("a socket");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
    assert_serves(&mut broker, &mut operator).await;
}
