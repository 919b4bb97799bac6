//! Sockets in the file system, and the octets that pass through them.

use std::{
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mayfly_attest::Peer;
use mayfly_proto::spiffe::workload::{
    X509svidRequest, spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use mayfly_serve::{Doors, Eyes, ListenError, Listener, Mended, guest::Sight, quota::Quota};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tonic::Code;

use crate::{
    common::{ask, channel, end, next, served, soon, task},
    workload::Closed,
};

#[tokio::test]
async fn a_socket_has_its_mode_is_refused_twice_and_goes_with_its_listener() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("made/on/the/way/w.sock");
    for mode in [0o600, 0o666, 0o777] {
        let listener = Listener::bind(&path, mode).expect("the path is free");
        let found = std::fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(found & 0o777, mode);
        assert!(matches!(Listener::bind(&path, mode), Err(ListenError::InUse(_))));
        assert_eq!(listener.path(), path);
        drop(listener);
        assert!(!path.exists());
    }
    let left = std::fs::read_dir(path.parent().expect("a folder")).expect("it is there").count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_dead_socket_is_replaced_and_anything_else_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("w.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    assert!(path.exists(), "left by a process that died");
    drop(Listener::bind(&path, 0o600).expect("replaced"));
    std::fs::write(&path, "precious").expect("a file");
    assert!(matches!(Listener::bind(&path, 0o600), Err(ListenError::NotASocket(_))));
    assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
    let long = folder.path().join("x".repeat(120));
    assert!(matches!(Listener::bind(&long, 0o600), Ok(_) | Err(ListenError::Io { .. })));
    let root = std::path::Path::new("/");
    assert!(matches!(Listener::bind(root, 0o600), Err(ListenError::Path(_))));
}

#[tokio::test]
async fn a_listener_does_not_remove_its_successors_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("w.sock");
    let first = Listener::bind(&path, 0o600).expect("the path is free");
    std::fs::remove_file(&path).expect("somebody tidied up");
    let second = Listener::bind(&path, 0o600).expect("the path is free again");
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

#[tokio::test]
async fn whoever_comes_through_a_tasks_socket_stands_for_that_task_until_it_closes() {
    let served = served().await;
    let path = served.folder.path().join("tasks/1/w.sock");
    let listener = Listener::bind(&path, 0o600).expect("the path is free");
    served.doors.open(Some(task(1)), listener, served.services.routes());
    let mut client = SpiffeWorkloadApiClient::new(channel(&path).await);
    let stream = soon(client.fetch_x509svid(ask(X509svidRequest {}))).await.expect("a stream");
    let mut stream = stream.into_inner();
    drop(next(&mut stream).await);
    let mut everybody = served.client().await;
    let other = soon(everybody.fetch_x509svid(ask(X509svidRequest {}))).await.expect("a stream");
    let mut other = other.into_inner();
    drop(next(&mut other).await);
    let sockets: Vec<_> = served.desk.met().iter().map(|seen| seen.caller.socket).collect();
    assert_eq!(sockets, [Some(task(1)), None]);

    served.doors.close(task(1));
    let status = end(&mut stream).await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().starts_with("task_ended"));
    crate::common::until("the socket is gone", || !path.exists()).await;
    let still = tokio::time::timeout(Duration::from_millis(100), other.message()).await;
    assert!(still.is_err(), "the other door stays open");
    // The same task may open its door again, for example after a quarantine.
    let listener = Listener::bind(&path, 0o600).expect("the path is free");
    served.doors.open(Some(task(1)), listener, served.services.routes());
    drop(channel(&path).await);
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_the_next_is_served_when_there_is_room() {
    let served = served().await;
    let path = served.folder.path().join("small.sock");
    let quota = Quota::new(2, 2);
    let doors = Doors::new(Arc::clone(&quota));
    doors.open(None, Listener::bind(&path, 0o600).expect("free"), served.services.routes());
    let first = UnixStream::connect(&path).await.expect("room");
    let second = UnixStream::connect(&path).await.expect("room");
    crate::common::until("two are in", || quota.taken() == 2).await;
    let mut third = UnixStream::connect(&path).await.expect("the kernel accepts");
    let read = soon(third.read(&mut [0; 1])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    drop((first, second));
    crate::common::until("both are gone", || quota.taken() == 0).await;
    let mut client = SpiffeWorkloadApiClient::new(channel(&path).await);
    let stream = soon(client.fetch_x509svid(ask(X509svidRequest {}))).await.expect("a stream");
    drop(next(&mut stream.into_inner()).await);
}

#[tokio::test]
async fn whoever_comes_to_a_tasks_socket_is_seen_before_it_asks() {
    let served = served().await;
    let looks = Arc::new(AtomicUsize::new(0));
    let quota = Quota::new(2, 2);
    let doors = Doors::new(Arc::clone(&quota)).with_eyes(Arc::new(Closed(Arc::clone(&looks))));
    let [alone, shared] = ["alone.sock", "shared.sock"].map(|name| served.folder.path().join(name));
    for (socket, path) in [(None, &shared), (Some(task(1)), &alone)] {
        let listener = Listener::bind(path, 0o600).expect("the path is free");
        doors.open(socket, listener, served.services.routes());
    }
    let everybody = UnixStream::connect(&shared).await.expect("somebody listens");
    crate::common::until("one is in", || quota.taken() == 1).await;
    assert_eq!(looks.load(Ordering::SeqCst), 0, "it has not asked for anything");
    let workload = UnixStream::connect(&alone).await.expect("somebody listens");
    crate::common::until("it was seen", || looks.load(Ordering::SeqCst) == 1).await;
    drop((everybody, workload));
}

#[tokio::test]
async fn a_look_that_does_not_end_keeps_no_door_open() {
    let served = served().await;
    let looks = Arc::new(AtomicUsize::new(0));
    let doors = Doors::default().with_eyes(Arc::new(Staring(Arc::clone(&looks))));
    let path = served.folder.path().join("alone.sock");
    let listener = Listener::bind(&path, 0o600).expect("the path is free");
    doors.open(Some(task(1)), listener, served.services.routes());
    let workload = UnixStream::connect(&path).await.expect("somebody listens");
    crate::common::until("it is looked at", || looks.load(Ordering::SeqCst) == 1).await;
    drop(workload);
    soon(doors.shut()).await;
}

/// Eyes that count how often they were opened, and never see anything.
struct Staring(Arc<AtomicUsize>);

impl Eyes for Staring {
    fn look(&self, _: &Peer) -> Sight {
        self.0.fetch_add(1, Ordering::SeqCst);
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn after_shut_nothing_opens() {
    let served = served().await;
    soon(served.doors.shut()).await;
    let path = served.folder.path().join("late.sock");
    let listener = Listener::bind(&path, 0o600).expect("the path is free");
    served.doors.open(None, listener, served.services.routes());
    assert!(!path.exists());
}

/// What Python's gRPC sends on a unix socket: `:authority` with the escaped path in Huffman code.
fn python_request() -> Vec<u8> {
    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let mut all = length.get(1..).expect("four octets").to_vec();
        all.extend([kind, flags, 0, 0, 0, stream]);
        all.extend(payload);
        all
    }
    fn text(octets: &[u8]) -> Vec<u8> {
        let mut all = vec![u8::try_from(octets.len()).expect("short")];
        all.extend(octets);
        all
    }
    let escaped_path = [0x4d, 0x35, 0xaa, 0x2c, 0x35, 0xae, 0x83, 0x93, 0xaf];
    let mut block = vec![0x83, 0x86, 0x44];
    block.extend(text(b"/SpiffeWorkloadAPI/FetchX509SVID"));
    block.extend([0x41, 0x80 | 9]);
    block.extend(escaped_path);
    for (name, value) in
        [("te", "trailers"), ("content-type", "application/grpc"), ("workload.spiffe.io", "true")]
    {
        block.push(0x40);
        block.extend(text(name.as_bytes()));
        block.extend(text(value.as_bytes()));
    }
    let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    all.extend(frame(4, 0, 0, &[]));
    all.extend(frame(1, 4, 1, &block));
    all.extend(frame(0, 1, 1, &[0; 5]));
    all
}

/// The kind of the first frame that answers stream 1.
async fn first_answer(socket: &mut UnixStream) -> u8 {
    soon(async {
        loop {
            let mut header = [0; 9];
            let _nine = socket.read_exact(&mut header).await.expect("an answer");
            let [a, b, c, kind, _, _, _, _, stream] = header;
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            let _all = socket.read_exact(&mut vec![0; length]).await.expect("a whole frame");
            if stream == 1 && (kind == 1 || kind == 3) {
                return kind;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_python_client_is_served_in_one_piece_and_octet_by_octet() {
    let served = served().await;
    let request = python_request();
    for chunk in [request.len(), 1, 7] {
        let mut socket = UnixStream::connect(&served.path).await.expect("somebody listens");
        for part in request.chunks(chunk) {
            socket.write_all(part).await.expect("they listen");
            tokio::task::yield_now().await;
        }
        assert_eq!(first_answer(&mut socket).await, 1, "headers, not a reset");
    }
}

#[tokio::test]
async fn without_the_mend_h2_resets_a_python_client() {
    let served = served().await;
    let path = served.folder.path().join("plain.sock");
    let listener = tokio::net::UnixListener::bind(&path).expect("the path is free");
    let mut set = tokio::task::JoinSet::new();
    let routes = served.services.routes();
    let _server = set.spawn(async move {
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(incoming).await
    });
    let mut socket = UnixStream::connect(&path).await.expect("somebody listens");
    socket.write_all(&python_request()).await.expect("they listen");
    assert_eq!(first_answer(&mut socket).await, 3, "if h2 has become milder, the mend can go");
}

#[tokio::test]
async fn a_reader_with_room_for_one_octet_sees_the_same_as_one_with_room_for_all() {
    let request = python_request();
    let mut seen = Vec::new();
    for room in [1, 2, 3, 4096] {
        let mut mended = Mended::new(request.as_slice());
        let mut all: Vec<u8> = Vec::new();
        let mut part = vec![0; room];
        loop {
            let read = mended.read(&mut part).await.expect("a slice can be read");
            if read == 0 {
                break;
            }
            all.extend(part.get(..read).expect("no more than there is room for"));
        }
        assert_eq!(all.len(), request.len(), "room {room}");
        assert_ne!(all, request);
        seen.push(all);
    }
    assert!(seen.windows(2).all(|pair| pair.first() == pair.last()));
}
