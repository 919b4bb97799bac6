//! Ports: who may come in from elsewhere, how many, and how long they may take over it.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mayfly_core::SpiffeId;
use mayfly_proto::spiffe::workload::{
    X509svidRequest, spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use mayfly_serve::{
    Doors, ListenError, Manner, Octets, Port, Secure, Secured, Securing, quota::Quota,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::common::{ask, served, soon};

/// A handshake of one octet: `y` comes in, anything else does not, and silence takes for ever.
struct Password(Arc<AtomicBool>);

impl Secure for Password {
    fn secure(&self, mut stream: Box<dyn Octets>) -> Securing {
        let open = Arc::clone(&self.0);
        Box::pin(async move {
            let octet = if open.load(Ordering::SeqCst) { b'y' } else { stream.read_u8().await? };
            if octet != b'y' {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            let id = SpiffeId::parse("spiffe://example.org/caller").ok();
            Ok(Secured { octets: Box::new(stream), id })
        })
    }
}

fn anywhere() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn open_to_all() -> Arc<dyn Secure> {
    Arc::new(Password(Arc::new(AtomicBool::new(true))))
}

fn guarded() -> Arc<dyn Secure> {
    Arc::new(Password(Arc::default()))
}

/// Whether the other end has hung up without a word.
async fn is_turned_away(stream: &mut TcpStream) -> bool {
    matches!(soon(stream.read(&mut [0; 1])).await, Ok(0) | Err(_))
}

/// The first octets of HTTP/2, so that a connection is more than a silence.
async fn greet(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("the kernel accepts");
    stream.write_all(b"yPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("sent");
    stream
}

#[tokio::test]
async fn a_port_is_not_shared_and_is_free_again_when_it_is_let_go() {
    let port = Port::bind(anywhere()).expect("some port is free");
    let address = port.address();
    assert!(matches!(Port::bind(address), Err(ListenError::PortInUse(taken)) if taken == address));
    // A connection that lingers does not keep the port.
    let (client, server) = tokio::join!(TcpStream::connect(address), async { port });
    drop((server, client));
    Port::bind(address).expect("it is free");
    let elsewhere = Port::bind("192.0.2.1:1".parse().expect("an address"));
    let told = elsewhere.expect_err("it is not ours").to_string();
    assert!(told.starts_with("cannot listen on `192.0.2.1:1`: "), "{told}");
}

#[tokio::test]
async fn nobody_from_elsewhere_is_met_but_everybody_may_follow_and_ask_for_health() {
    let served = served().await;
    let port = Port::bind(anywhere()).expect("a port");
    let uri = format!("http://{}", port.address());
    // All services, as if somebody had wired the wrong ones.
    served.doors.open_port(port, open_to_all(), Manner::Streams, served.services.routes());
    let channel = soon(Endpoint::from_shared(uri).expect("a uri").connect()).await;
    let channel = channel.expect("it is served");
    let mut workload = SpiffeWorkloadApiClient::new(channel.clone());
    let stream = soon(workload.fetch_x509svid(ask(X509svidRequest {}))).await;
    let refused = match stream {
        Ok(stream) => soon(stream.into_inner().message()).await.expect_err("nobody is met"),
        Err(status) => status,
    };
    assert!(refused.message().starts_with("attestation_failed"), "{refused:?}");
    assert!(served.desk.met().is_empty());
    let mut health = HealthClient::new(channel);
    soon(health.check(HealthCheckRequest::default())).await.expect("it is in good health");

    let right = Port::bind(anywhere()).expect("a port");
    let uri = format!("http://{}", right.address());
    served.doors.open_port(right, open_to_all(), Manner::Streams, served.services.remote_routes());
    let channel = soon(Endpoint::from_shared(uri).expect("a uri").connect()).await;
    let mut workload = SpiffeWorkloadApiClient::new(channel.expect("it is served"));
    let status = soon(workload.fetch_x509svid(ask(X509svidRequest {}))).await;
    assert_eq!(status.expect_err("it is not offered").code(), Code::Unimplemented);
}

#[tokio::test]
async fn who_fails_the_handshake_or_is_one_too_many_is_not_spoken_to() {
    let served = served().await;
    let remote = Quota::new(8, 2);
    let doors = Doors::with_remote(Quota::new(8, 8), Arc::clone(&remote));
    let port = Port::bind(anywhere()).expect("a port");
    let address = port.address();
    doors.open_port(port, guarded(), Manner::Streams, served.services.remote_routes());
    let mut wrong = TcpStream::connect(address).await.expect("the kernel accepts");
    wrong.write_all(b"n").await.expect("sent");
    assert!(is_turned_away(&mut wrong).await);
    crate::common::until("its seat is free", || remote.taken() == 0).await;

    // Two of one host, then one too many; a handshake that goes on has its seat already.
    let mut first = greet(address).await;
    soon(first.read_u8()).await.expect("it is served");
    let second = TcpStream::connect(address).await.expect("the kernel accepts");
    crate::common::until("two are in", || remote.taken() == 2).await;
    let mut third = greet(address).await;
    assert!(is_turned_away(&mut third).await);
    drop(second);
    crate::common::until("one has left", || remote.taken() == 1).await;
    let mut fourth = greet(address).await;
    soon(fourth.read_u8()).await.expect("there is room again");
}

#[tokio::test]
async fn a_handshake_that_is_not_finished_in_time_keeps_neither_its_seat_nor_others_waiting() {
    let served = served().await;
    let remote = Quota::new(8, 8);
    let doors = Doors::with_remote(Quota::new(8, 8), Arc::clone(&remote));
    let port = Port::bind(anywhere()).expect("a port");
    let address = port.address();
    doors.open_port(port, guarded(), Manner::Pages, served.services.remote_routes());
    let mut silent = TcpStream::connect(address).await.expect("the kernel accepts");
    let mut quick = greet(address).await;
    quick.read_u8().await.expect("others are served meanwhile");
    let told = tokio::time::timeout(Duration::from_secs(60), silent.read(&mut [0; 1])).await;
    assert!(matches!(told, Ok(Ok(0) | Err(_))), "{told:?}");
}

#[tokio::test]
async fn a_port_closes_with_the_doors_and_nothing_opens_after() {
    let served = served().await;
    let doors = Doors::default();
    let port = Port::bind(anywhere()).expect("a port");
    let address = port.address();
    doors.open_port(port, open_to_all(), Manner::Streams, served.services.remote_routes());
    let mut lingering = TcpStream::connect(address).await.expect("it is open");
    lingering
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .expect("sent");
    soon(lingering.read_u8()).await.expect("it is served");
    soon(doors.shut()).await;
    let mut rest = Vec::new();
    let _goodbye = soon(lingering.read_to_end(&mut rest)).await;
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    let late = Port::bind(address).expect("it is free");
    doors.open_port(late, open_to_all(), Manner::Streams, served.services.remote_routes());
    assert!(TcpStream::connect(address).await.is_err(), "what is shut stays shut");
}
