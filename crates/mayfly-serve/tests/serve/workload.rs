//! Single answers of the Workload API.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use mayfly_attest::{AttestError, Peer};
use mayfly_core::{Denial, Evidence};
use mayfly_proto::spiffe::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, WitBundlesRequest, WitsvidRequest,
    X509BundlesRequest, X509svidRequest,
};
use mayfly_serve::{Eyes, guest::Sight};
use prost_types::value::Kind;
use tonic::{Code, Request, Status, metadata::MetadataValue};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::common::{
    Client, ask, bundles, channel, domain, end, identity, next, served, served_with, soon,
};

/// Eyes that count how often they were opened, and see nothing.
#[derive(Default)]
pub(crate) struct Closed(pub(crate) Arc<AtomicUsize>);

impl Eyes for Closed {
    fn look(&self, _: &Peer) -> Sight {
        self.0.fetch_add(1, Ordering::SeqCst);
        Box::pin(std::future::ready(Err(AttestError::Changed { what: "secret detail" })))
    }
}

/// Every method, once, with the metadata that `dress` puts on; the status of each.
async fn every_method(
    client: &mut Client,
    dress: impl Fn(&mut tonic::metadata::MetadataMap),
) -> Vec<Status> {
    fn plain<T>(message: T, dress: &impl Fn(&mut tonic::metadata::MetadataMap)) -> Request<T> {
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
    let unary = |answer: Option<Status>| answer.unwrap_or_else(|| Status::ok("answered"));
    let jwt = JwtsvidRequest { audience: vec!["a".into()], ..JwtsvidRequest::default() };
    let validate = ValidateJwtsvidRequest { audience: "a".into(), svid: "t".into() };
    vec![
        of(client.fetch_x509svid(plain(X509svidRequest {}, &dress)).await).await,
        of(client.fetch_x509_bundles(plain(X509BundlesRequest {}, &dress)).await).await,
        unary(client.fetch_jwtsvid(plain(jwt, &dress)).await.err()),
        of(client.fetch_jwt_bundles(plain(JwtBundlesRequest {}, &dress)).await).await,
        unary(client.validate_jwtsvid(plain(validate, &dress)).await.err()),
        of(client.fetch_witsvid(plain(WitsvidRequest::default(), &dress)).await).await,
        of(client.fetch_wit_bundles(plain(WitBundlesRequest {}, &dress)).await).await,
    ]
}

#[tokio::test]
async fn point_04_header_missing_is_invalid_argument_before_attestation() {
    let looks = Arc::new(AtomicUsize::new(0));
    let eyes = Closed(Arc::clone(&looks));
    let served = served_with(|_| Arc::new(eyes)).await;
    let mut client = served.client().await;
    let wrong: [&[&'static str]; 6] =
        [&[], &["True"], &["1"], &[""], &["true", "true"], &["true,true"]];
    for values in wrong {
        let statuses = every_method(&mut client, |metadata| {
            for value in values {
                metadata.append("workload.spiffe.io", MetadataValue::from_static(value));
            }
        });
        for status in soon(statuses).await {
            assert_eq!(status.code(), Code::InvalidArgument, "{values:?}");
            assert!(status.message().starts_with("header_missing"), "{status:?}");
        }
    }
    assert_eq!(looks.load(Ordering::SeqCst), 0);
    assert!(served.desk.met().is_empty());
}

#[tokio::test]
async fn point_05_health_and_reflection_need_no_header() {
    let served = served().await;
    let channel = channel(&served.path).await;
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "SpiffeWorkloadAPI", "mayfly.v1.RevocationFeed"] {
        let ask = HealthCheckRequest { service: service.into() };
        let answer = soon(health.check(ask)).await.expect("health answers").into_inner();
        assert_eq!(answer.status, 1, "{service}");
    }
    served.services.stop().await;
    let after = soon(health.check(HealthCheckRequest::default())).await;
    assert!(after.is_err(), "a stopping server is not healthy");
}

#[tokio::test]
async fn point_10_reflection_v1_names_the_services_and_finds_their_imports() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let served = served().await;
    let mut client = ServerReflectionClient::new(channel(&served.path).await);
    let requests = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("SpiffeWorkloadAPI".into()),
        MessageRequest::FileByFilename("google/protobuf/struct.proto".into()),
    ]
    .map(|one| ServerReflectionRequest { message_request: Some(one), ..Default::default() });
    let stream = client.server_reflection_info(tokio_stream::iter(requests)).await;
    let mut stream = stream.expect("reflection answers").into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        next(&mut stream).await.message_response
    else {
        panic!("not a list");
    };
    let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert!(names.contains(&"SpiffeWorkloadAPI".to_owned()), "{names:?}");
    assert!(names.contains(&"mayfly.v1.RevocationFeed".to_owned()), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("Operator")), "{names:?}");
    for _ in 0..2 {
        let answer = next(&mut stream).await.message_response;
        assert!(matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))), "{answer:?}");
    }
}

#[tokio::test]
async fn point_10_reflection_v1alpha_names_the_services() {
    use tonic_reflection::pb::v1alpha::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let served = served().await;
    let mut client = ServerReflectionClient::new(channel(&served.path).await);
    let request = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let stream = client.server_reflection_info(tokio_stream::iter([request])).await;
    let answer = next(&mut stream.expect("reflection answers").into_inner()).await;
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("not a list");
    };
    assert!(list.service.iter().any(|service| service.name == "SpiffeWorkloadAPI"));
}

#[tokio::test]
async fn point_07_23_33_nobody_is_permission_denied_and_never_an_empty_list() {
    let served = served().await;
    let mut client = served.client().await;
    for who in [Err(Denial::NoIdentity), Err(Denial::NotBound), Ok(vec![])] {
        served.desk.tell(|script| script.who = who.clone());
        let statuses = every_method(&mut client, |metadata| {
            metadata.insert("workload.spiffe.io", MetadataValue::from_static("true"));
        });
        for status in soon(statuses).await.iter().take(5) {
            assert_eq!(status.code(), Code::PermissionDenied, "{who:?} {status:?}");
            assert!(status.message().contains("no identity issued"), "{status:?}");
        }
    }
}

#[test]
fn point_09_the_standards_service_has_the_standards_methods_and_no_others() {
    use prost::Message;
    let files = prost_types::FileDescriptorSet::decode(mayfly_proto::FILE_DESCRIPTOR_SET);
    let files = files.expect("the committed descriptors are whole").file;
    let service = files
        .iter()
        .flat_map(|file| &file.service)
        .find(|service| service.name() == "SpiffeWorkloadAPI")
        .expect("the service is described");
    let methods: Vec<_> = service.method.iter().map(|method| method.name()).collect();
    assert_eq!(
        methods,
        [
            "FetchX509SVID",
            "FetchX509Bundles",
            "FetchJWTSVID",
            "FetchJWTBundles",
            "ValidateJWTSVID",
            "FetchWITSVID",
            "FetchWITBundles"
        ]
    );
}

#[tokio::test]
async fn point_08_41_wit_methods_are_unimplemented() {
    let served = served().await;
    let mut client = served.client().await;
    let svid = soon(client.fetch_witsvid(ask(WitsvidRequest::default()))).await;
    let bundles = soon(client.fetch_wit_bundles(ask(WitBundlesRequest {}))).await;
    assert_eq!(svid.expect_err("not offered").code(), Code::Unimplemented);
    assert_eq!(bundles.expect_err("not offered").code(), Code::Unimplemented);
}

#[tokio::test]
async fn point_119_a_caller_that_cannot_be_seen_is_unavailable_and_learns_nothing() {
    let served = served_with(|_| Arc::new(Closed::default())).await;
    let mut client = served.client().await;
    let status = soon(client.fetch_x509svid(ask(X509svidRequest {}))).await.expect("a stream");
    let status = end(&mut status.into_inner()).await;
    assert_eq!(status.code(), Code::Unavailable);
    assert!(!status.message().contains("secret"), "{status:?}");
}

#[tokio::test]
async fn point_03_evidence_is_of_the_process_that_connected() {
    let served = served().await;
    let mut client = served.client().await;
    let stream = soon(client.fetch_x509svid(ask(X509svidRequest {}))).await.expect("a stream");
    drop(next(&mut stream.into_inner()).await);
    let met: Vec<Evidence> = served.desk.met();
    let first =
        met.first().and_then(|evidence| evidence.caller.lineage.first()).expect("a process");
    assert_eq!(u32::try_from(first.pid), Ok(std::process::id()));
}

#[tokio::test]
async fn point_14_24_26_first_message_comes_at_once_and_in_the_desks_order() {
    let served = served().await;
    let who = vec![identity(3, "c", &[]), identity(1, "a", &[]), identity(2, "b", &[])];
    served.desk.tell(|script| script.who = Ok(who));
    let mut client = served.client().await;
    for _ in 0..3 {
        let stream = soon(client.fetch_x509svid(ask(X509svidRequest {}))).await.expect("a stream");
        let message = next(&mut stream.into_inner()).await;
        let ids: Vec<_> = message.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect();
        let wanted = [3, 1, 2].map(|number| format!("spiffe://example.org/w/{number}"));
        assert_eq!(ids, wanted);
        for svid in &message.svids {
            assert!(
                svid.x509_svid.starts_with(b"\x30\x07chain")
                    && svid.x509_svid_key.starts_with(b"key")
            );
            assert_eq!(svid.bundle.as_ref(), b"x509 1");
        }
        assert_eq!(message.crl, vec![b"crl 1".as_slice()]);
    }
}

#[tokio::test]
async fn point_25_the_first_of_two_equal_hints_keeps_it_and_both_identities_stay() {
    let served = served().await;
    let who = vec![
        identity(1, "x", &[]),
        identity(2, "x", &[]),
        identity(3, "", &[]),
        identity(4, "", &[]),
    ];
    served.desk.tell(|script| script.who = Ok(who));
    let mut client = served.client().await;
    let stream = soon(client.fetch_x509svid(ask(X509svidRequest {}))).await.expect("a stream");
    let x509 = next(&mut stream.into_inner()).await;
    let hints: Vec<_> = x509.svids.iter().map(|svid| svid.hint.as_str()).collect();
    assert_eq!(hints, ["x", "", "", ""]);
    let request = JwtsvidRequest { audience: vec!["a".into()], ..JwtsvidRequest::default() };
    let jwt = soon(client.fetch_jwtsvid(ask(request))).await.expect("tokens").into_inner();
    let hints: Vec<_> = jwt.svids.iter().map(|svid| svid.hint.as_str()).collect();
    assert_eq!(hints, ["x", "", "", ""]);
}

#[tokio::test]
async fn point_29_30_31_36_bundles_are_the_own_one_and_those_of_friends_that_exist() {
    let served = served().await;
    let who = vec![identity(1, "", &["friend.org", "empty.org", "missing.org", "example.org"])];
    served.desk.tell(|script| script.who = Ok(who));
    let mut client = served.client().await;
    let stream = soon(client.fetch_x509svid(ask(X509svidRequest {}))).await.expect("a stream");
    let svids = next(&mut stream.into_inner()).await;
    let keys: Vec<_> = svids.federated_bundles.keys().map(String::as_str).collect();
    assert_eq!(keys, ["spiffe://friend.org"]);
    let stream =
        soon(client.fetch_x509_bundles(ask(X509BundlesRequest {}))).await.expect("a stream");
    let x509 = next(&mut stream.into_inner()).await;
    let keys: Vec<_> = x509.bundles.keys().map(String::as_str).collect();
    assert_eq!(keys, ["spiffe://example.org", "spiffe://friend.org"]);
    assert_eq!(x509.crl.len(), 1);
    let stream = soon(client.fetch_jwt_bundles(ask(JwtBundlesRequest {}))).await.expect("a stream");
    let jwt = next(&mut stream.into_inner()).await;
    let keys: Vec<_> = jwt.bundles.keys().map(String::as_str).collect();
    assert_eq!(keys, ["spiffe://example.org", "spiffe://friend.org"]);
    assert_eq!(
        jwt.bundles.get("spiffe://example.org").map(AsRef::as_ref),
        Some(b"jwt 1".as_slice())
    );
}

#[tokio::test]
async fn point_19_without_an_own_bundle_nothing_half_empty_is_sent() {
    let served = served().await;
    let mut without = bundles("1");
    drop(without.x509.remove(&domain("example.org")));
    drop(served.desk.bundles.send_replace(Arc::new(without)));
    let mut client = served.client().await;
    let stream = soon(client.fetch_x509svid(ask(X509svidRequest {}))).await.expect("a stream");
    assert_eq!(end(&mut stream.into_inner()).await.code(), Code::Unavailable);
}

#[tokio::test]
async fn point_18_34_audiences_are_between_one_and_thirty_two_and_not_empty() {
    let served = served().await;
    let mut client = served.client().await;
    let long = "a".repeat(1025);
    let bad = [
        vec![],
        vec![String::new()],
        vec!["a".into(), String::new()],
        vec![long],
        vec!["a".into(); 33],
    ];
    for audience in bad {
        let request = JwtsvidRequest { audience, ..JwtsvidRequest::default() };
        let status = soon(client.fetch_jwtsvid(ask(request))).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
    assert!(served.desk.met().is_empty(), "a wrong question is not worth a look at the caller");
    let request = JwtsvidRequest { audience: vec!["a".into(), "b".into()], ..Default::default() };
    let answer = soon(client.fetch_jwtsvid(ask(request))).await.expect("a token").into_inner();
    assert_eq!(answer.svids.first().map(|svid| svid.svid.as_str()), Some("token for a b"));
}

#[tokio::test]
async fn point_35_a_token_for_each_identity_or_for_the_one_that_is_named() {
    let served = served().await;
    served.desk.tell(|script| script.who = Ok(vec![identity(1, "", &[]), identity(2, "", &[])]));
    let mut client = served.client().await;
    let wanted = [
        ("", Ok(2)),
        ("spiffe://example.org/w/2", Ok(1)),
        ("SPIFFE://Example.org/w/2", Ok(1)),
        ("spiffe://example.org/w/9", Err(Code::PermissionDenied)),
        ("spiffe://example.org/w/", Err(Code::InvalidArgument)),
        ("spiffe://example.org/%41", Err(Code::InvalidArgument)),
        ("spiffe://", Err(Code::InvalidArgument)),
        ("https://example.org/w", Err(Code::InvalidArgument)),
        ("w", Err(Code::InvalidArgument)),
    ];
    for (spiffe_id, wanted) in wanted {
        let request = JwtsvidRequest { audience: vec!["a".into()], spiffe_id: spiffe_id.into() };
        let answer = soon(client.fetch_jwtsvid(ask(request))).await;
        let got =
            answer.map(|answer| answer.into_inner().svids.len()).map_err(|status| status.code());
        assert_eq!(got, wanted, "{spiffe_id}");
    }
}

#[tokio::test]
async fn point_38_39_validation_returns_claims_or_invalid_argument() {
    let served = served().await;
    let mut client = served.client().await;
    let good = || ValidateJwtsvidRequest { audience: "a".into(), svid: "t".into() };
    let answer = soon(client.validate_jwtsvid(ask(good()))).await.expect("valid").into_inner();
    assert_eq!(answer.spiffe_id, "spiffe://example.org/w/1");
    let claims = answer.claims.expect("claims").fields;
    let kind = |name: &str| claims.get(name).and_then(|value| value.kind.clone());
    assert_eq!(kind("sub"), Some(Kind::StringValue("spiffe://example.org/w/1".into())));
    assert_eq!(kind("exp"), Some(Kind::NumberValue(1_800_000_000.0)));
    assert!(matches!(kind("aud"), Some(Kind::ListValue(list)) if list.values.len() == 1));
    assert!(matches!(kind("deep"), Some(Kind::StructValue(_))));
    for denial in [Denial::TokenInvalid, Denial::TaskEnded, Denial::CredentialRevoked] {
        served.desk.tell(|script| script.token = Some(denial));
        let status = soon(client.validate_jwtsvid(ask(good()))).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{denial}");
        assert!(status.message().starts_with(denial.code()), "{status:?}");
    }
    for (audience, svid) in [("", "t"), ("a", "")] {
        let bad = ValidateJwtsvidRequest { audience: audience.into(), svid: svid.into() };
        let status = soon(client.validate_jwtsvid(ask(bad))).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn point_118_a_response_stays_within_what_clients_accept() {
    let served = served().await;
    let many: Vec<_> = (0..=150).map(|number| identity(number, "", &[])).collect();
    served.desk.tell(|script| script.who = Ok(many));
    let mut client = served.client().await;
    let stream = soon(client.fetch_x509svid(ask(X509svidRequest {}))).await.expect("a stream");
    assert_eq!(next(&mut stream.into_inner()).await.svids.len(), 100);

    let names: Vec<_> = (0..300).map(|number| format!("f{number}.org")).collect();
    let friends: Vec<_> = names.iter().map(String::as_str).collect();
    served.desk.tell(|script| script.who = Ok(vec![identity(1, "", &friends)]));
    let mut all = bundles("1");
    all.x509.extend(names.iter().map(|name| (domain(name), vec![b'b'; 100].into())));
    drop(served.desk.bundles.send_replace(Arc::new(all.clone())));
    let stream =
        soon(client.fetch_x509_bundles(ask(X509BundlesRequest {}))).await.expect("a stream");
    let message = next(&mut stream.into_inner()).await;
    assert_eq!(message.bundles.len(), 200);
    assert!(message.bundles.contains_key("spiffe://example.org"));

    all.x509.extend(names.iter().map(|name| (domain(name), vec![b'b'; 50_000].into())));
    drop(served.desk.bundles.send_replace(Arc::new(all)));
    let stream =
        soon(client.fetch_x509_bundles(ask(X509BundlesRequest {}))).await.expect("a stream");
    assert_eq!(end(&mut stream.into_inner()).await.code(), Code::Unavailable);
}
