//! An orchestrator in Rust: crate `spiffe` with `broker-api`, and spiffe-rustls, against Mayfly's Broker API.

use std::{error::Error, process::Command, sync::Arc, time::Instant};

use hyper_util::rt::TokioIo;
use prost::{Message, Name as _};
use serde_json::json;
use spiffe::{
    X509Source,
    broker_api::{
        SecurityHeader,
        pb::spiffe::broker::{
            FetchJwtsvidRequest, Jwtsvid, SubscribeToJwtBundlesRequest,
            SubscribeToX509BundlesRequest, SubscribeToX509svidRequest, WorkloadPidReference,
            WorkloadReference, api_client::ApiClient,
        },
    },
};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

const SERVER: &str = "spiffe://example.org/mayfly/broker";
type Failure = Box<dyn Error + Send + Sync>;
type Client = ApiClient<InterceptedService<Channel, SecurityHeader>>;

/// Mayfly's own kind of reference, written by hand: the crate has none, as it should.
#[derive(Clone, PartialEq, Message)]
struct TaskReference {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(uint32, tag = "2")]
    version: u32,
}

#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
}

fn say(event: &str, mut fields: serde_json::Value) {
    fields["event"] = event.into();
    println!("{fields}");
}

fn expect(truth: bool, what: impl Into<String>) -> Result<(), Failure> {
    if truth { Ok(()) } else { Err(format!("not as it should be: {}", what.into()).into()) }
}

async fn channel() -> Result<Channel, Failure> {
    let source = X509Source::new().await?;
    say("own", json!({ "spiffe_id": source.svid()?.spiffe_id().to_string() }));
    let mut config = spiffe_rustls::mtls_client(source)
        .authorize(spiffe_rustls::authorizer::exact([SERVER])?)
        .build()?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let address = std::env::var("SPIFFE_BROKER_SOCKET")?;
    let path = address.strip_prefix("unix://").ok_or("no unix socket")?.to_owned();
    let connect = move |_| {
        let (connector, path) = (connector.clone(), path.clone());
        async move {
            let stream = UnixStream::connect(path).await?;
            // Any name: the SPIFFE ID is what counts.
            let name = rustls::pki_types::ServerName::try_from("mayfly").expect("a name");
            connector.connect(name, stream).await.map(TokioIo::new)
        }
    };
    let endpoint = Endpoint::from_static("http://localhost");
    Ok(endpoint.connect_with_connector(tower::service_fn(connect)).await?)
}

fn by_task(id: &str) -> WorkloadReference {
    let value = TaskReference { id: id.to_owned(), version: 0 }.encode_to_vec();
    let type_url = "type.googleapis.com/mayfly.v1.TaskReference".to_owned();
    WorkloadReference { reference: Some(prost_types::Any { type_url, value }) }
}

async fn token(client: &mut Client, reference: &WorkloadReference) -> Result<Jwtsvid, Status> {
    let request = FetchJwtsvidRequest {
        reference: Some(reference.clone()),
        audience: vec!["interop".to_owned()],
        spiffe_id: String::new(),
    };
    let answer = client.fetch_jwtsvid(request).await?.into_inner();
    answer.svids.into_iter().next().ok_or_else(|| Status::internal("no token"))
}

fn expect_not_found(status: &Status) -> Result<(), Failure> {
    let details = RpcStatus::decode(status.details())?;
    let info = details.details.first().ok_or("an error without details")?;
    let info = ErrorInfo::decode(info.value.as_slice())?;
    let right = status.code() == Code::NotFound
        && info.reason == "WORKLOAD_NOT_FOUND"
        && info.domain == "spiffe.io";
    expect(right, format!("{status:?} {info:?}"))
}

async fn run(pid: i32, task: &str, other: i32) -> Result<(), Failure> {
    let mut client = ApiClient::with_interceptor(channel().await?, SecurityHeader::new());
    let name = format!("spiffe://example.org/job/task/{task}");
    let by_pid = WorkloadReference::from(WorkloadPidReference { pid });
    expect(WorkloadPidReference::type_url().starts_with("type.googleapis.com/"), "a type url")?;
    let references = [("pid", by_pid), ("task", by_task(task))];
    let mut streams = Vec::new();
    for (how, reference) in &references {
        let request = SubscribeToX509svidRequest { reference: Some(reference.clone()) };
        let mut stream = client.subscribe_to_x509svid(request).await?.into_inner();
        let said = stream.message().await?.ok_or("a stream without a message")?;
        let svid = said.svids.first().ok_or("no svid")?;
        expect(svid.spiffe_id == name, format!("it names {}", svid.spiffe_id))?;
        // The crate's own reader: chain, leaf, key and their agreement.
        spiffe::X509Svid::parse_from_der(&svid.x509_svid, &svid.x509_svid_key)?;
        let token = token(&mut client, reference).await?;
        expect(token.spiffe_id == name, "a token for it")?;
        say("x509_and_jwt", json!({ "by": how, "spiffe_id": name }));
        streams.push((*how, stream));
    }
    let reference = || Some(references[0].1.clone());
    let request = SubscribeToX509BundlesRequest { reference: reference() };
    let said = client.subscribe_to_x509_bundles(request).await?.into_inner().message().await?;
    expect(said.is_some_and(|said| said.bundles.contains_key("spiffe://example.org")), "a bundle")?;
    let request = SubscribeToJwtBundlesRequest { reference: reference() };
    let said = client.subscribe_to_jwt_bundles(request).await?.into_inner().message().await?;
    expect(said.is_some_and(|said| said.bundles.contains_key("spiffe://example.org")), "keys")?;

    Command::new("kill").args(["-KILL", &pid.to_string()]).status()?;
    let killed = Instant::now();
    let mut ends = json!({});
    for (how, stream) in &mut streams {
        let status = stream.message().await.err().ok_or("a stream goes on or ends well")?;
        ends[*how] = (killed.elapsed().as_micros() as f64 / 1000.0).into();
        expect_not_found(&status)?;
    }
    for (_, reference) in &references {
        expect_not_found(
            &token(&mut client, reference).await.err().ok_or("a token for the dead")?,
        )?;
    }
    let other = WorkloadReference::from(WorkloadPidReference { pid: other });
    let served = token(&mut client, &other).await?.spiffe_id;
    expect(served != name, "another workload")?;
    say("ok", json!({ "kill_to_end_ms": ends, "connection": format!("still serves {served}") }));
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [pid, task, other] = arguments.as_slice() else { return Err("PID TASK OTHER".into()) };
    run(pid.parse()?, task, other.parse()?).await
}
