//! Rough company: garbage, floods, crowds, and processes that are not what they seem.

use std::{
    io::{BufRead, BufReader, Write},
    os::{fd::AsFd, unix::net::UnixStream as Plain},
    process::{Child, Command, Stdio},
};

use mayfly_core::Closing;
use mayfly_proto::spiffe::workload::{
    X509svidRequest, spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tonic::{Code, metadata::MetadataValue, transport::Endpoint};

use crate::common::{Served, ask, channel, end, next, served, soon, task, until};

async fn is_well(served: &Served) {
    let mut client = served.client().await;
    let stream = soon(client.fetch_x509svid(ask(X509svidRequest {}))).await.expect("a stream");
    drop(next(&mut stream.into_inner()).await);
}

#[tokio::test]
async fn garbage_is_hung_up_on_and_others_are_served() {
    let served = served().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let frames: [&[u8]; 7] = [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &[0; 64],
        &[0xff; 4096],
        b"\xff\xff\xff\x01\x04\x00\x00\x00\x01",
        b"\x00\x00\x04\x01\x04\x00\x00\x00\x01\xff\xff\xff\xff",
        b"\x00\x00\x01\x09\x04\x00\x00\x00\x01\x41",
    ];
    for (number, garbage) in frames.into_iter().enumerate() {
        let mut socket = UnixStream::connect(&served.path).await.expect("somebody listens");
        if number > 2 {
            socket.write_all(preface).await.expect("they listen");
        }
        socket.write_all(garbage).await.expect("they listen");
        socket.shutdown().await.expect("we are done");
        let mut answer = Vec::new();
        let _reset_or_closed = soon(socket.read_to_end(&mut answer)).await;
        assert!(!answer.windows(4).any(|part| part == b"key "), "nothing is handed out");
    }
    is_well(&served).await;
    until("all of them are gone", || served.connections.taken() <= 1).await;
}

#[tokio::test]
async fn who_connects_and_says_nothing_is_hung_up_on_and_who_has_spoken_is_not() {
    let served = served().await;
    let mut mute = UnixStream::connect(&served.path).await.expect("somebody listens");
    let mut client = served.client().await;
    let stream = soon(client.fetch_x509svid(ask(X509svidRequest {}))).await.expect("a stream");
    let mut stream = stream.into_inner();
    drop(next(&mut stream).await);
    let begun = tokio::time::Instant::now();
    let mut answer = Vec::new();
    let _closed = soon(mute.read_to_end(&mut answer)).await;
    assert!(begun.elapsed() >= mayfly_serve::limits::SILENCE_MAX / 2);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    served.desk.close(task(1), Closing::Changed);
    drop(next(&mut stream).await);
}

#[tokio::test]
async fn two_megabytes_of_metadata_are_refused_and_not_kept() {
    let served = served().await;
    let mut client = served.client().await;
    let mut request = ask(X509svidRequest {});
    for number in 0..32 {
        let name = format!("x-{number}");
        let name = tonic::metadata::MetadataKey::from_bytes(name.as_bytes()).expect("a name");
        let value = MetadataValue::try_from("m".repeat(64 * 1024)).expect("a value");
        drop(request.metadata_mut().insert(name, value));
    }
    let answer = soon(client.fetch_x509svid(request)).await;
    let refused = match answer {
        Ok(stream) => end(&mut stream.into_inner()).await,
        Err(status) => status,
    };
    assert_ne!(refused.code(), Code::Ok);
    assert!(served.desk.met().is_empty());
    is_well(&served).await;
}

#[tokio::test]
async fn a_request_message_larger_than_any_honest_one_is_refused() {
    use mayfly_proto::spiffe::workload::ValidateJwtsvidRequest;
    let served = served().await;
    let mut client = served.client().await;
    let large = ValidateJwtsvidRequest { audience: "a".into(), svid: "t".repeat(2 << 20) };
    assert!(soon(client.validate_jwtsvid(ask(large))).await.is_err());
    assert!(served.desk.met().is_empty());
    is_well(&served).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_streams_are_carried_and_all_hear_of_the_end() {
    let served = served().await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        let channel = channel(&served.path).await;
        for _ in 0..100 {
            let mut client = SpiffeWorkloadApiClient::new(channel.clone());
            let stream = client.fetch_x509svid(ask(X509svidRequest {})).await.expect("a stream");
            streams.push(stream.into_inner());
        }
    }
    for stream in &mut streams {
        drop(next(stream).await);
    }
    assert_eq!((streams.len(), served.desk.issued()), (10_000, 10_000));
    is_well(&served).await;
    served.desk.close(task(1), Closing::Ended);
    for stream in &mut streams {
        assert_eq!(end(stream).await.code(), Code::PermissionDenied);
    }
}

/// Runs this test binary again in another role; see [`helper`].
fn play(role: &str, socket: &std::path::Path) -> Child {
    Command::new(std::env::current_exe().expect("we run"))
        .args(["--exact", "rough::helper", "--nocapture", "--test-threads=1"])
        .env("MAYFLY_TEST_ROLE", role)
        .env("MAYFLY_TEST_SOCKET", socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("we can be started")
}

fn say(word: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n@{word}").expect("somebody reads");
    out.flush().expect("somebody reads");
}

/// Other processes of the tests below. As a test of its own it does nothing.
#[test]
fn helper() {
    let Ok(role) = std::env::var("MAYFLY_TEST_ROLE") else { return };
    let socket = std::env::var_os("MAYFLY_TEST_SOCKET").expect("a socket is named");
    match role.as_str() {
        // Connects, has a child that inherits the connection, and leaves when told to.
        "connector" => {
            let connection = Plain::connect(socket).expect("somebody listens");
            let connection = connection.as_fd().try_clone_to_owned().expect("a descriptor");
            let mut child = Command::new(std::env::current_exe().expect("we run"));
            let child = child
                .args(["--exact", "rough::helper", "--nocapture", "--test-threads=1"])
                .env("MAYFLY_TEST_ROLE", "heir")
                .stdin(connection)
                .spawn();
            drop(child.expect("we can be started"));
            let _told = std::io::stdin().lock().read_line(&mut String::new());
            std::process::exit(0);
        }
        "heir" => {
            speak_over(Plain::from(std::io::stdin().as_fd().try_clone_to_owned().expect("ours")))
        }
        "alone" => speak_over(Plain::connect(socket).expect("somebody listens")),
        other => panic!("unknown role `{other}`"),
    }
}

/// Fetches over `connection`, tells how the stream ended, asks once more, tells that too.
#[tokio::main(flavor = "current_thread")]
async fn speak_over(connection: Plain) {
    connection.set_nonblocking(true).expect("a socket");
    let connection = UnixStream::from_std(connection).expect("a socket");
    let mut once = Some(connection);
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let connection = once.take().ok_or_else(|| std::io::Error::other("only once"));
            std::future::ready(connection.map(hyper_util::rt::TokioIo::new))
        }))
        .await
        .expect("somebody answers");
    let mut client = SpiffeWorkloadApiClient::new(channel);
    let stream = client.fetch_x509svid(ask(X509svidRequest {})).await.expect("a stream");
    let mut stream = stream.into_inner();
    drop(next(&mut stream).await);
    say("first");
    let status = end(&mut stream).await;
    say(&format!("{:?} {}", status.code(), status.message()));
    let again = client.fetch_x509svid(ask(X509svidRequest {})).await;
    say(&format!("{:?}", again.err().map(|status| status.code())));
}

/// The next word that a helper says.
fn hear(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> String {
    let word =
        |line: std::io::Result<String>| line.expect("text").strip_prefix('@').map(str::to_owned);
    lines.find_map(word).expect("the helper is gone")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_inherited_the_socket_is_denied_when_its_parent_is_gone() {
    let served = served().await;
    let mut connector = play("connector", &served.path);
    let heard = tokio::task::spawn_blocking(move || {
        let mut lines = BufReader::new(connector.stdout.take().expect("piped")).lines();
        let first = hear(&mut lines);
        writeln!(connector.stdin.take().expect("piped"), "go").expect("it listens");
        let _left = connector.wait();
        let words = (first, hear(&mut lines), hear(&mut lines));
        // The heir ends when all it said was heard.
        lines.for_each(drop);
        words
    });
    let (first, ended, again) = soon(heard).await.expect("no panic");
    assert_eq!(first, "first");
    assert!(ended.starts_with("PermissionDenied peer_gone"), "{ended}");
    assert_eq!(again, "Some(PermissionDenied)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_caller_leaves_nothing_behind() {
    let served = served().await;
    let mut caller = play("alone", &served.path);
    let killed = tokio::task::spawn_blocking(move || {
        let mut lines = BufReader::new(caller.stdout.take().expect("piped")).lines();
        assert_eq!(hear(&mut lines), "first");
        caller.kill().expect("it is ours");
        caller.wait().expect("it is ours")
    });
    let _by_signal = soon(killed).await.expect("no panic");
    until("its connection is gone", || served.connections.taken() == 0).await;
    is_well(&served).await;
}
