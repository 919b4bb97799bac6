//! The Workload API client against a server that follows a script.

use std::sync::{Arc, Mutex};

use mayfly_core::SpiffeId;
use mayfly_proto::spiffe::workload::{
    self as wire,
    spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
};
use mayfly_verify::{Endpoint, Held, WorkloadClient, WorkloadError};
use tokio::{
    net::UnixListener,
    sync::mpsc,
    task::JoinSet,
    time::{Duration, timeout},
};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Code, Request, Response, Status, transport::Server};

use crate::common::{Authority, serial};

const LONG: Duration = Duration::from_secs(20);

type Answer = Result<wire::X509svidResponse, Status>;
type Stream<T> = ReceiverStream<Result<T, Status>>;

/// Hands out one scripted stream per call, in order; refuses when there are none left.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Vec<mpsc::Receiver<Answer>>>>);

impl Script {
    fn next_stream(&self) -> mpsc::Sender<Answer> {
        let (sender, receiver) = mpsc::channel(16);
        self.0.lock().expect("not poisoned").insert(0, receiver);
        sender
    }
}

fn checked<T>(request: &Request<T>) -> Result<(), Status> {
    let said: Vec<_> = request.metadata().get_all("workload.spiffe.io").iter().collect();
    if said == ["true"] {
        return Ok(());
    }
    Err(Status::invalid_argument("security header missing"))
}

fn one<T>(message: T) -> Response<Stream<T>> {
    let (sender, receiver) = mpsc::channel(1);
    let _sent = sender.try_send(Ok(message)).is_ok();
    Response::new(ReceiverStream::new(receiver))
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Script {
    type FetchX509SVIDStream = Stream<wire::X509svidResponse>;
    type FetchX509BundlesStream = Stream<wire::X509BundlesResponse>;
    type FetchJWTBundlesStream = Stream<wire::JwtBundlesResponse>;
    type FetchWITSVIDStream = Stream<wire::WitsvidResponse>;
    type FetchWITBundlesStream = Stream<wire::WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<wire::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        checked(&request)?;
        let stream = self.0.lock().expect("not poisoned").pop();
        let stream = stream.ok_or_else(|| Status::permission_denied("no identity issued"))?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<wire::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        checked(&request)?;
        let der = Authority::new("example.org").der.to_vec();
        let bundles = [
            ("spiffe://example.org".to_owned(), der.into()),
            ("spiffe://broken.org".to_owned(), b"x".to_vec().into()),
        ];
        Ok(one(wire::X509BundlesResponse { bundles: bundles.into(), ..Default::default() }))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<wire::JwtsvidRequest>,
    ) -> Result<Response<wire::JwtsvidResponse>, Status> {
        checked(&request)?;
        let asked = request.into_inner();
        let svids = vec![wire::Jwtsvid {
            spiffe_id: asked.spiffe_id,
            svid: asked.audience.join("+"),
            hint: String::new(),
        }];
        Ok(Response::new(wire::JwtsvidResponse { svids }))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<wire::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        checked(&request)?;
        let keys = br#"{"keys":[]}"#.to_vec();
        let bundles = [("spiffe://example.org".to_owned(), keys.into())];
        Ok(one(wire::JwtBundlesResponse { bundles: bundles.into() }))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<wire::ValidateJwtsvidRequest>,
    ) -> Result<Response<wire::ValidateJwtsvidResponse>, Status> {
        checked(&request)?;
        Err(Status::invalid_argument("task_ended"))
    }

    async fn fetch_witsvid(
        &self,
        _: Request<wire::WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<wire::WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct Stage {
    script: Script,
    client: WorkloadClient,
    authority: Authority,
    _server: JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("workload.sock");
        let listener = UnixListenerStream::new(UnixListener::bind(&path).expect("a socket"));
        let script = Script::default();
        let service = SpiffeWorkloadApiServer::new(script.clone());
        let mut server = JoinSet::new();
        server.spawn(async move {
            let server = Server::builder().add_service(service);
            server.serve_with_incoming(listener).await.expect("the server runs");
        });
        let uri = format!("unix://{}", path.display());
        let client = WorkloadClient::new(&Endpoint::parse(&uri).expect("an address"));
        let authority = Authority::new("example.org");
        Self { script, client, authority, _server: server, _dir: dir }
    }

    fn message(&self, slot: u32) -> wire::X509svidResponse {
        let params = self.authority.leaf("/a", serial(slot).as_bytes());
        self.authority.message("/a", &params)
    }
}

fn slot_is(held: &Held, slot: u32) -> bool {
    held.context()
        .and_then(|context| context.default_svid())
        .is_some_and(|svid| svid.leaf.serial == Some(serial(slot)))
}

#[tokio::test]
async fn every_call_says_that_it_means_to_be_one_and_reads_the_answer() {
    let stage = Stage::new();
    let stream = stage.script.next_stream();
    stream.send(Ok(stage.message(1))).await.unwrap();
    let context = stage.client.fetch_x509().await.unwrap();
    assert_eq!(context.svids.len(), 1);

    let bundles = stage.client.fetch_x509_bundles().await.unwrap();
    assert_eq!(bundles.len(), 1, "the malformed one is left out");
    assert_eq!(stage.client.fetch_jwt_bundles().await.unwrap().iter().count(), 1);
    let id = SpiffeId::parse("spiffe://example.org/a").unwrap();
    let tokens = stage.client.fetch_jwt(&["x", "y"], Some(&id)).await.unwrap();
    assert_eq!(tokens[0].token, "x+y");
    let refused = stage.client.validate_jwt("x", "token").await.unwrap_err();
    let WorkloadError::Status(status) = refused else { unreachable!("{refused}") };
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "task_ended"));
}

#[tokio::test]
async fn renewals_are_followed_lost_streams_reopened_and_a_no_withdraws() {
    let stage = Stage::new();
    let stream = stage.script.next_stream();
    stream.send(Ok(stage.message(1))).await.unwrap();
    let source = stage.client.watch_x509();
    timeout(LONG, source.ready()).await.unwrap().unwrap();
    let mut held = source.held();
    stream.send(Ok(stage.message(2))).await.unwrap();
    timeout(LONG, held.wait_for(|held| slot_is(held, 2))).await.unwrap().unwrap();

    // The broker restarts: what is held stays, and the next stream brings what is new.
    let next = stage.script.next_stream();
    stream.send(Err(Status::unavailable("restarting"))).await.unwrap();
    next.send(Ok(stage.message(3))).await.unwrap();
    let never_withdrawn = held.wait_for(|held| {
        assert!(held.context().is_some());
        slot_is(held, 3)
    });
    timeout(LONG, never_withdrawn).await.unwrap().unwrap();

    // The task ends: the identity is gone at once, and comes back only if it is given again.
    next.send(Err(Status::permission_denied("task_ended"))).await.unwrap();
    let withdrawn = held.wait_for(|held| matches!(held, Held::Withdrawn));
    timeout(LONG, withdrawn).await.unwrap().unwrap();
    let again = stage.script.next_stream();
    again.send(Ok(stage.message(4))).await.unwrap();
    timeout(LONG, held.wait_for(|held| slot_is(held, 4))).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_source_that_is_refused_says_so_instead_of_waiting_for_ever() {
    let stage = Stage::new();
    let source = stage.client.watch_x509();
    assert!(timeout(LONG, source.ready()).await.unwrap().is_none());
}
