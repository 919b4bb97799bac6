//! The Broker API before a scripted desk. The handshake is left out: whoever comes is believed to be the
//! broker that the test says it is. Points are those of the SPIFFE checklist.

use std::{
    process::{Child, Command},
    sync::{Arc, PoisonError},
};

use mayfly_core::{Closing, Denial, SpiffeId};
use mayfly_proto::{
    google::rpc,
    mayfly::v1::TaskReference,
    spiffe::broker::{
        FetchJwtsvidRequest, SubscribeToJwtBundlesRequest, SubscribeToX509BundlesRequest,
        SubscribeToX509svidRequest, SubscribeToX509svidResponse, WorkloadPidReference,
        WorkloadReference, api_client::ApiClient,
    },
};
use mayfly_serve::{
    Allowance, BrokerApi, Brokers, Listener, Manner, Octets, Port, Secure, Secured, Securing,
    desk::{Named, Reference},
};
use prost::Message as _;
use tonic::{
    Code, Request, Status,
    metadata::{MetadataMap, MetadataValue},
    transport::{Channel, Endpoint},
};

use crate::common::{Served, TestDesk, channel, clock_of, end, identity, next, served, soon, task};

const PROCESS: &str = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";
const TASK: &str = "type.googleapis.com/mayfly.v1.TaskReference";

type Client = ApiClient<Channel>;

/// A handshake that believes everybody to be `spiffe://example.org/broker`.
struct Believing;

impl Secure for Believing {
    fn secure(&self, octets: Box<dyn Octets>) -> Securing {
        Box::pin(async move { Ok(Secured { octets, id: Some(broker()) }) })
    }
}

fn broker() -> SpiffeId {
    SpiffeId::parse("spiffe://example.org/broker").expect("a spiffe id")
}

fn everything() -> Allowance {
    Allowance { pid: true, task: true, within: None }
}

/// A desk, its Broker API for one broker that may do what `allowance` says, and a connection of that broker.
async fn brokered(allowance: Allowance) -> (Served, Client) {
    let served = served().await;
    let path = served.folder.path().join("b.sock");
    let listener = Listener::bind(&path, 0o600).expect("the path is free");
    served.doors.open_secured(listener, Arc::new(Believing), routes(&served, allowance));
    let client = Client::new(channel(&path).await);
    (served, client)
}

fn routes(served: &Served, allowance: Allowance) -> tonic::service::Routes {
    let options = mayfly_attest::CollectOptions::default();
    let eyes = mayfly_serve::LocalEyes::new(
        Arc::default(),
        Arc::new(move || options),
        clock_of(&served.desk),
    );
    let desk = Arc::new(TestDesk(Arc::clone(&served.desk)));
    let brokers = Brokers::from([(broker(), allowance)]);
    let api = BrokerApi::new(desk, Arc::new(eyes), clock_of(&served.desk), brokers);
    api.routes().expect("the descriptors are whole")
}

/// A workload that does nothing. Killed when it is dropped.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").spawn().expect("it starts"))
    }

    fn reference(&self) -> Option<WorkloadReference> {
        pid(i32::try_from(self.0.id()).expect("a pid"))
    }

    fn kill(&mut self) {
        self.0.kill().expect("it is ours");
        self.0.wait().expect("it is ours");
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is what stands in a request")]
fn packed(type_url: &str, value: Vec<u8>) -> Option<WorkloadReference> {
    let any = prost_types::Any { type_url: type_url.to_owned(), value };
    Some(WorkloadReference { reference: Some(any) })
}

fn pid(pid: i32) -> Option<WorkloadReference> {
    packed(PROCESS, WorkloadPidReference { pid }.encode_to_vec())
}

fn task_one(version: u32) -> Option<WorkloadReference> {
    let reference = TaskReference { id: task(1).to_string(), version };
    packed(TASK, reference.encode_to_vec())
}

fn ask<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("broker.spiffe.io", MetadataValue::from_static("true"));
    request
}

async fn x509(
    client: &mut Client,
    reference: Option<WorkloadReference>,
) -> Result<tonic::Streaming<SubscribeToX509svidResponse>, Status> {
    let request = ask(SubscribeToX509svidRequest { reference });
    soon(client.subscribe_to_x509svid(request)).await.map(tonic::Response::into_inner)
}

fn jwt(reference: Option<WorkloadReference>, audience: &[&str], id: &str) -> FetchJwtsvidRequest {
    let audience = audience.iter().map(|&one| one.to_owned()).collect();
    FetchJwtsvidRequest { reference, audience, spiffe_id: id.to_owned() }
}

/// The reason of the standard and our own code that stand in an error's details.
fn reason(status: &Status) -> (String, String) {
    let details = rpc::Status::decode(status.details()).expect("a status");
    let info = details.details.first().expect("details");
    let mut info = rpc::ErrorInfo::decode(info.value.as_slice()).expect("an error info");
    assert_eq!(info.domain, "spiffe.io");
    (info.reason, info.metadata.remove("code").unwrap_or_default())
}

fn assert_no(status: &Status, code: Code, wanted: &str, denial: Denial) {
    assert_eq!(status.code(), code, "{status:?}");
    assert_eq!(reason(status), (wanted.to_owned(), denial.code().to_owned()), "{status:?}");
}

/// Every method, once; the status of each.
async fn every_method(
    client: &mut Client,
    reference: &Option<WorkloadReference>,
    dress: impl Fn(&mut MetadataMap),
) -> Vec<Status> {
    fn plain<T>(message: T, dress: &impl Fn(&mut MetadataMap)) -> Request<T> {
        let mut request = Request::new(message);
        dress(request.metadata_mut());
        request
    }
    async fn of<T>(stream: Result<tonic::Response<tonic::Streaming<T>>, Status>) -> Status {
        match stream {
            Ok(stream) => end(&mut stream.into_inner()).await,
            Err(status) => status,
        }
    }
    let reference = || reference.clone();
    let (one, two, three) = (
        SubscribeToX509svidRequest { reference: reference() },
        SubscribeToX509BundlesRequest { reference: reference() },
        SubscribeToJwtBundlesRequest { reference: reference() },
    );
    let token = client.fetch_jwtsvid(plain(jwt(reference(), &["a"], ""), &dress)).await;
    vec![
        of(client.subscribe_to_x509svid(plain(one, &dress)).await).await,
        of(client.subscribe_to_x509_bundles(plain(two, &dress)).await).await,
        token.err().unwrap_or_else(|| Status::ok("answered")),
        of(client.subscribe_to_jwt_bundles(plain(three, &dress)).await).await,
    ]
}

fn dressed(metadata: &mut MetadataMap) {
    metadata.insert("broker.spiffe.io", MetadataValue::from_static("true"));
}

#[tokio::test]
async fn point_88_header_missing_is_invalid_argument_for_every_method_and_for_reflection() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    };
    let (served, mut client) = brokered(everything()).await;
    let workload = Sleeper::start();
    let wrong: [&[&'static str]; 6] =
        [&[], &["True"], &["1"], &[""], &["true", "true"], &["true,true"]];
    for values in wrong {
        let dress = |metadata: &mut MetadataMap| {
            for value in values {
                metadata.append("broker.spiffe.io", MetadataValue::from_static(value));
            }
            metadata.insert("workload.spiffe.io", MetadataValue::from_static("true"));
        };
        for status in soon(every_method(&mut client, &workload.reference(), dress)).await {
            assert_eq!(status.code(), Code::InvalidArgument, "{values:?}");
            assert!(status.message().starts_with("header_missing"), "{status:?}");
        }
    }
    assert!(served.desk.met().is_empty());
    let mut reflection =
        ServerReflectionClient::new(channel(&served.folder.path().join("b.sock")).await);
    let asked = tokio_stream::iter([ServerReflectionRequest::default()]);
    let status = soon(reflection.server_reflection_info(asked)).await.expect_err("no header");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
}

#[tokio::test]
async fn point_92_the_endpoint_shows_the_broker_api_and_nothing_else() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let (served, _client) = brokered(everything()).await;
    let path = served.folder.path().join("b.sock");
    let mut reflection = ServerReflectionClient::new(channel(&path).await);
    let list = MessageRequest::ListServices(String::new());
    let asked = ServerReflectionRequest { message_request: Some(list), ..Default::default() };
    let stream = soon(reflection.server_reflection_info(ask(tokio_stream::iter([asked])))).await;
    let answer = next(&mut stream.expect("reflection answers").into_inner()).await;
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("not a list");
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    assert!(names.contains(&"spiffe.broker.API".to_owned()), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("Workload")), "{names:?}");
    let mut workload =
        mayfly_proto::spiffe::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient::new(
            channel(&path).await,
        );
    let asked = crate::common::ask(mayfly_proto::spiffe::workload::X509svidRequest {});
    let status = soon(workload.fetch_x509svid(asked)).await.expect_err("brokers are no workloads");
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
}

#[tokio::test]
async fn points_94_and_96_a_reference_that_names_nothing_is_invalid_for_every_method() {
    let (served, mut client) = brokered(everything()).await;
    let other = "type.googleapis.com/spiffe.broker.KubernetesObjectReference";
    let empty = Some(WorkloadReference { reference: None });
    for wrong in [None, empty, pid(0), pid(-7), packed(other, Vec::new()), packed(TASK, vec![1])] {
        for status in soon(every_method(&mut client, &wrong, dressed)).await {
            let reason = "WORKLOAD_REFERENCE_INVALID";
            assert_no(&status, Code::InvalidArgument, reason, Denial::ReferenceInvalid);
        }
    }
    assert!(served.desk.met().is_empty());
}

#[tokio::test]
async fn point_95_a_process_is_seen_by_us_and_one_that_is_not_there_is_not_found() {
    let (served, mut client) = brokered(everything()).await;
    let mut workload = Sleeper::start();
    let reference = workload.reference();
    next(&mut x509(&mut client, reference.clone()).await.expect("a stream")).await;
    let met = served.desk.met();
    let seen: Vec<_> = met.iter().flat_map(|evidence| &evidence.caller.lineage).collect();
    let own = i32::try_from(workload.0.id()).expect("a pid");
    assert_eq!(seen.first().map(|key| key.pid), Some(own), "{seen:?}");
    served.desk.tell(|script| script.who = Err(Denial::NoIdentity));
    for status in soon(every_method(&mut client, &reference, dressed)).await {
        let reason = "WORKLOAD_NOT_ENTITLED";
        assert_no(&status, Code::PermissionDenied, reason, Denial::NoIdentity);
    }
    workload.kill();
    for status in soon(every_method(&mut client, &reference, dressed)).await {
        assert_no(&status, Code::NotFound, "WORKLOAD_NOT_FOUND", Denial::WorkloadGone);
    }
}

#[tokio::test]
async fn point_97_a_pid_means_nothing_over_tcp_and_a_task_does() {
    let served = served().await;
    let port = Port::bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let address = port.address();
    let routes = routes(&served, everything());
    served.doors.open_port(port, Arc::new(Believing), Manner::Brokers, routes);
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let mut client = Client::new(endpoint.connect().await.expect("somebody listens"));
    let workload = Sleeper::start();
    for status in soon(every_method(&mut client, &workload.reference(), dressed)).await {
        let reason = "WORKLOAD_NOT_ENTITLED";
        assert_no(&status, Code::PermissionDenied, reason, Denial::ReferenceDenied);
    }
    assert!(served.desk.met().is_empty());
    next(&mut x509(&mut client, task_one(0)).await.expect("a stream")).await;
}

#[tokio::test]
async fn point_99_a_broker_refers_only_as_it_was_permitted_to() {
    let within = Some(Arc::new(["job".to_owned()].into()));
    let (served, mut client) =
        brokered(Allowance { task: true, within: within.clone(), pid: false }).await;
    let workload = Sleeper::start();
    let status = x509(&mut client, workload.reference()).await.expect_err("not by pid");
    let reason = "WORKLOAD_NOT_ENTITLED";
    assert_no(&status, Code::PermissionDenied, reason, Denial::ReferenceDenied);
    next(&mut x509(&mut client, task_one(3)).await.expect("a stream")).await;
    let referred = served.desk.referred.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let named = Named::Task(task(1), Some(mayfly_core::TaskVersion(3)));
    assert_eq!(referred, [Reference { named, within }]);
    let (_served, mut client) = brokered(Allowance { pid: true, ..Allowance::default() }).await;
    let status = x509(&mut client, task_one(0)).await.expect_err("not by task");
    assert_no(&status, Code::PermissionDenied, reason, Denial::ReferenceDenied);
    next(&mut x509(&mut client, workload.reference()).await.expect("a stream")).await;
}

#[tokio::test]
async fn points_101_to_103_the_first_message_comes_at_once_and_is_the_workloads_alone() {
    let (served, mut client) = brokered(everything()).await;
    let two = vec![identity(2, "b", &["friend.org"]), identity(1, "b", &["empty.org"])];
    served.desk.tell(|script| script.who = Ok(two));
    let said = next(&mut x509(&mut client, task_one(0)).await.expect("a stream")).await;
    let ids: Vec<_> =
        said.svids.iter().map(|svid| (svid.spiffe_id.as_str(), svid.hint.as_str())).collect();
    assert_eq!(ids, [("spiffe://example.org/w/2", "b"), ("spiffe://example.org/w/1", "")]);
    assert!(said.svids.iter().all(|svid| !svid.x509_svid.is_empty() && !svid.bundle.is_empty()));
    assert_eq!(said.federated_bundles.keys().collect::<Vec<_>>(), ["spiffe://friend.org"]);
    let both = ["spiffe://example.org", "spiffe://friend.org"];
    let request = ask(SubscribeToX509BundlesRequest { reference: task_one(0) });
    let stream = soon(client.subscribe_to_x509_bundles(request)).await.expect("a stream");
    let bundles = next(&mut stream.into_inner()).await.bundles;
    assert_eq!(bundles.keys().collect::<Vec<_>>(), both);
    let request = ask(SubscribeToJwtBundlesRequest { reference: task_one(0) });
    let stream = soon(client.subscribe_to_jwt_bundles(request)).await.expect("a stream");
    let bundles = next(&mut stream.into_inner()).await.bundles;
    assert_eq!(bundles.keys().collect::<Vec<_>>(), both);
    assert!(bundles.values().all(|bundle| bundle.starts_with(b"jwt ")), "{bundles:?}");
}

#[tokio::test]
async fn point_102_a_token_for_each_identity_or_for_the_one_that_is_named() {
    let (served, mut client) = brokered(everything()).await;
    let two = vec![identity(2, "", &[]), identity(1, "", &[])];
    served.desk.tell(|script| script.who = Ok(two));
    let mut fetch = async |audience: &[&str], id: &str| {
        let request = ask(jwt(task_one(0), audience, id));
        let answer = soon(client.fetch_jwtsvid(request)).await?.into_inner();
        Ok::<_, Status>(
            answer.svids.into_iter().map(|svid| (svid.spiffe_id, svid.svid)).collect::<Vec<_>>(),
        )
    };
    assert_eq!(fetch(&["a", "b"], "").await.expect("tokens").len(), 2);
    let one = ("spiffe://example.org/w/1".to_owned(), "token for a b".to_owned());
    assert_eq!(fetch(&["a", "b"], &one.0).await.expect("a token"), [one]);
    for (audience, id, code) in [
        (&[] as &[&str], "", Code::InvalidArgument),
        (&[""], "", Code::InvalidArgument),
        (&["a"], "no id", Code::InvalidArgument),
        (&["a"], "spiffe://example.org/w/9", Code::PermissionDenied),
    ] {
        let status = fetch(audience, id).await.expect_err("nothing to give");
        assert_eq!(status.code(), code, "{status:?}");
    }
}

#[tokio::test]
async fn points_104_and_105_the_end_of_a_process_ends_its_streams_and_the_connection_stays() {
    let (_served, mut client) = brokered(everything()).await;
    let (mut one, other) = (Sleeper::start(), Sleeper::start());
    let mut ending = x509(&mut client, one.reference()).await.expect("a stream");
    let mut staying = x509(&mut client, other.reference()).await.expect("a stream");
    next(&mut ending).await;
    next(&mut staying).await;
    one.kill();
    let status = end(&mut ending).await;
    assert_no(&status, Code::NotFound, "WORKLOAD_NOT_FOUND", Denial::WorkloadGone);
    let later = x509(&mut client, one.reference()).await.expect_err("it is gone");
    assert_no(&later, Code::NotFound, "WORKLOAD_NOT_FOUND", Denial::WorkloadGone);
    let silence = std::time::Duration::from_millis(100);
    assert!(tokio::time::timeout(silence, staying.message()).await.is_err(), "nothing to tell");
    let request = ask(jwt(other.reference(), &["a"], ""));
    soon(client.fetch_jwtsvid(request)).await.expect("the same connection still serves");
}

#[tokio::test]
async fn points_106_and_108_the_code_says_what_became_of_the_workload() {
    let (served, mut client) = brokered(everything()).await;
    for (closing, denial, code, wanted) in [
        (Closing::Ended, Denial::TaskEnded, Code::NotFound, "WORKLOAD_NOT_FOUND"),
        (Closing::Ended, Denial::TaskRevoked, Code::PermissionDenied, "WORKLOAD_NOT_ENTITLED"),
        (
            Closing::Suspended,
            Denial::TaskQuarantined,
            Code::PermissionDenied,
            "WORKLOAD_NOT_ENTITLED",
        ),
        (Closing::Changed, Denial::VersionUnmatched, Code::NotFound, "WORKLOAD_NOT_FOUND"),
    ] {
        served.desk.tell(|script| script.who = Ok(vec![identity(1, "", &[])]));
        let mut svids = x509(&mut client, task_one(1)).await.expect("a stream");
        let request = ask(SubscribeToJwtBundlesRequest { reference: task_one(1) });
        let bundles = soon(client.subscribe_to_jwt_bundles(request)).await.expect("a stream");
        let mut bundles = bundles.into_inner();
        next(&mut svids).await;
        next(&mut bundles).await;
        served.desk.tell(|script| script.who = Err(denial));
        served.desk.close(task(1), closing);
        assert_no(&end(&mut svids).await, code, wanted, denial);
        assert_no(&end(&mut bundles).await, code, wanted, denial);
    }
    served.desk.tell(|script| script.who = Ok(vec![identity(1, "", &[])]));
    let mut svids = x509(&mut client, task_one(0)).await.expect("a stream");
    next(&mut svids).await;
    let shutting = served.doors.shut();
    let (status, ()) = tokio::join!(end(&mut svids), shutting);
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}
