//! Envoy's secret discovery, spoken as Envoy speaks it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use mayfly_core::{Closing, Denial};
use mayfly_proto::envoy::{
    core::{BuildVersion, DataSource, Node, data_source::Specifier, node::UserAgentVersionType},
    discovery::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse},
    rpc,
    secret::secret_discovery_service_client::SecretDiscoveryServiceClient,
    tls::{self, CertificateValidationContext, SpiffeCertValidatorConfig, secret::Type},
    r#type::SemanticVersion,
};
use mayfly_serve::Bundles;
use prost::Message as _;
use prost_types::{Struct, Value, value::Kind};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::common::{
    Served, bundles, channel, der, domain, end, identity, next, served, soon, task,
};

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const ID: &str = "spiffe://example.org/w/1";

/// Bundles with the shape of DER: `example.org` has two authorities and a list for each.
fn trust(own: &str, lists: &[&str]) -> Bundles {
    let mut bundles = bundles("1");
    let authorities = [der("ca one"), der(own)].concat();
    bundles.x509 = BTreeMap::from([
        (domain("example.org"), authorities.into()),
        (domain("friend.org"), der("friend")),
        (domain("ally.org"), der("ally")),
        (domain("stranger.org"), der("stranger")),
    ]);
    bundles.crls = lists.iter().map(|list| der(list)).collect();
    bundles
}

/// Serves an identity that may verify two foreign trust domains.
async fn served_to_envoys() -> Served {
    let served = served().await;
    let who = vec![identity(1, "", &["friend.org", "ally.org"])];
    served.desk.tell(|script| script.who = Ok(who));
    publish(&served, trust("ca two", &["list one", "list two"]));
    served
}

fn publish(served: &Served, bundles: Bundles) {
    drop(served.desk.bundles.send_replace(Arc::new(bundles)));
}

/// One stream of an Envoy.
struct Envoy {
    asks: mpsc::Sender<DiscoveryRequest>,
    hears: Streaming<DiscoveryResponse>,
}

/// A first request.
fn asking(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        node: Some(Node { id: "envoy".into(), ..Node::default() }),
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        type_url: SECRET.into(),
        ..DiscoveryRequest::default()
    }
}

impl Envoy {
    async fn silent(served: &Served) -> Self {
        let mut client = client(served).await;
        let (asks, asked) = mpsc::channel(8);
        let stream = soon(client.stream_secrets(ReceiverStream::new(asked))).await;
        Self { asks, hears: stream.expect("a stream").into_inner() }
    }

    async fn open(served: &Served, names: &[&str]) -> Self {
        Self::open_with(served, asking(names)).await
    }

    async fn open_with(served: &Served, request: DiscoveryRequest) -> Self {
        let envoy = Self::silent(served).await;
        envoy.ask(request).await;
        envoy
    }

    async fn ask(&self, request: DiscoveryRequest) {
        self.asks.send(request).await.expect("the stream is open");
    }

    async fn hear(&mut self) -> DiscoveryResponse {
        next(&mut self.hears).await
    }

    /// What Envoy answers to a response, perhaps with other names.
    async fn acknowledge(&self, response: &DiscoveryResponse, names: &[&str]) {
        let request = DiscoveryRequest {
            version_info: response.version_info.clone(),
            response_nonce: response.nonce.clone(),
            node: None,
            ..asking(names)
        };
        self.ask(request).await;
    }

    async fn hears_nothing(&mut self) {
        let heard = tokio::time::timeout(Duration::from_millis(200), self.hears.message()).await;
        assert!(heard.is_err(), "something was said without a reason: {heard:?}");
    }
}

async fn client(served: &Served) -> SecretDiscoveryServiceClient<Channel> {
    SecretDiscoveryServiceClient::new(channel(&served.path).await)
        .max_decoding_message_size(mayfly_serve::limits::SECRETS_BYTES_MAX)
}

/// How a stream ends that asks for `names`.
async fn end_of(served: &Served, request: DiscoveryRequest) -> Status {
    end(&mut Envoy::open_with(served, request).await.hears).await
}

fn secrets(response: &DiscoveryResponse) -> Vec<(String, Type)> {
    assert_eq!(response.type_url, SECRET);
    let unpack = |any: &prost_types::Any| {
        assert_eq!(any.type_url, SECRET);
        let secret = tls::Secret::decode(any.value.as_slice()).expect("a secret");
        (secret.name, secret.r#type.expect("a secret of some type"))
    };
    response.resources.iter().map(unpack).collect()
}

fn names(response: &DiscoveryResponse) -> Vec<String> {
    secrets(response).into_iter().map(|(name, _)| name).collect()
}

fn text(source: Option<&DataSource>) -> String {
    let inline = match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => Some(bytes.clone()),
        Some(Specifier::Filename(_) | Specifier::InlineString(_)) | None => None,
    };
    String::from_utf8(inline.expect("inline bytes")).expect("PEM is text")
}

fn pem(label: &str, der: &Bytes) -> String {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let body = BASE64_STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

/// The only secret of a response, which says whom to trust.
fn context(response: &DiscoveryResponse) -> CertificateValidationContext {
    let context = match secrets(response).pop() {
        Some((_, Type::ValidationContext(context))) => Some(context),
        Some((_, Type::TlsCertificate(_))) | None => None,
    };
    context.expect("a validation context")
}

/// What the SPIFFE validator is told: trust domains and their bundles.
fn validator(context: &CertificateValidationContext) -> Vec<(String, String)> {
    assert_eq!((&context.trusted_ca, &context.crl), (&None, &None));
    let custom = context.custom_validator_config.as_ref().expect("a custom validator");
    assert_eq!(custom.name, "envoy.tls.cert_validator.spiffe");
    let config = custom.typed_config.as_ref().expect("its configuration");
    let url =
        "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
    assert_eq!(config.type_url, url);
    let config = SpiffeCertValidatorConfig::decode(config.value.as_slice()).expect("a config");
    let one = |domain: &tls::spiffe_cert_validator_config::TrustDomain| {
        (domain.name.clone(), text(domain.trust_bundle.as_ref()))
    };
    config.trust_domains.iter().map(one).collect()
}

fn domains(response: &DiscoveryResponse) -> Vec<String> {
    validator(&context(response)).into_iter().map(|(name, _)| name).collect()
}

#[tokio::test]
async fn point_109_each_name_brings_its_secret_under_the_name_that_was_used() {
    let served = served_to_envoys().await;
    for name in ["default", ID] {
        let response = Envoy::open(&served, &[name]).await.hear().await;
        assert_eq!(names(&response), [name]);
        assert!(matches!(secrets(&response).pop(), Some((_, Type::TlsCertificate(_)))));
    }
    for (name, trusted) in [
        ("ROOTCA", ["example.org"].as_slice()),
        ("spiffe://example.org", &["example.org"]),
        ("spiffe://friend.org", &["friend.org"]),
        ("ALL", &["ally.org", "example.org", "friend.org"]),
    ] {
        let response = Envoy::open(&served, &[name]).await.hear().await;
        assert_eq!(names(&response), [name]);
        assert_eq!(domains(&response), trusted);
    }
}

#[tokio::test]
async fn point_109_several_names_in_one_request_bring_them_all_and_each_once() {
    let served = served_to_envoys().await;
    let mut envoy = Envoy::open(&served, &["ROOTCA", ID, "spiffe://friend.org", ID]).await;
    assert_eq!(names(&envoy.hear().await), ["ROOTCA", ID, "spiffe://friend.org"]);
}

#[tokio::test]
async fn point_109_default_is_the_first_identity_and_the_second_has_its_own_name() {
    let served = served_to_envoys().await;
    served.desk.tell(|script| script.who = Ok(vec![identity(2, "", &[]), identity(1, "", &[])]));
    let response = Envoy::open(&served, &["default", ID]).await.hear().await;
    let all = secrets(&response);
    let [(_, Type::TlsCertificate(first)), (_, Type::TlsCertificate(second))] = all.as_slice()
    else {
        panic!("two certificates: {all:?}")
    };
    assert_eq!(text(first.certificate_chain.as_ref()), pem("CERTIFICATE", &der("chain 0")));
    assert_eq!(text(second.certificate_chain.as_ref()), pem("CERTIFICATE", &der("chain 1")));
}

#[tokio::test]
async fn point_110_no_names_bring_everything() {
    let served = served_to_envoys().await;
    let response = Envoy::open(&served, &[]).await.hear().await;
    let all = ["spiffe://ally.org", "spiffe://example.org", "spiffe://friend.org", ID];
    assert_eq!(names(&response), all);
}

#[tokio::test]
async fn point_110_a_name_that_is_not_the_callers_ends_the_stream_with_invalid_argument() {
    let served = served_to_envoys().await;
    for name in [
        "spiffe://example.org/w/2",
        "spiffe://stranger.org",
        "spiffe://nowhere.org",
        "spiffe://example.org/w/1/",
        "rootca",
        "something",
        "",
    ] {
        let status = end_of(&served, asking(&["ROOTCA", name])).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
        assert!(status.message().starts_with("secret_unknown"), "{status:?}");
    }
    let other = DiscoveryRequest { type_url: "type.googleapis.com/x".into(), ..asking(&["ALL"]) };
    assert_eq!(end_of(&served, other).await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn point_110_a_request_with_more_names_than_anybody_holds_is_not_even_read() {
    let served = served_to_envoys().await;
    let many: Vec<_> = (0..600).map(|n| format!("spiffe://example.org/w/{n}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert_eq!(end_of(&served, asking(&many)).await.code(), Code::InvalidArgument);
    assert!(served.desk.met().is_empty());
}

#[tokio::test]
async fn point_111_certificate_key_authorities_and_lists_are_pem() {
    let served = served_to_envoys().await;
    let response = Envoy::open(&served, &["default"]).await.hear().await;
    let Some((_, Type::TlsCertificate(certificate))) = secrets(&response).pop() else {
        panic!("no certificate")
    };
    let chain = text(certificate.certificate_chain.as_ref());
    assert_eq!(chain, pem("CERTIFICATE", &der("chain 0")));
    let key = text(certificate.private_key.as_ref());
    assert_eq!(key, pem("PRIVATE KEY", &Bytes::from_static(b"key 0")));

    let response = Envoy::open(&served, &["ROOTCA"]).await.hear().await;
    let bundle = [
        pem("CERTIFICATE", &der("ca one")),
        pem("CERTIFICATE", &der("ca two")),
        pem("X509 CRL", &der("list one")),
        pem("X509 CRL", &der("list two")),
    ];
    assert_eq!(validator(&context(&response)), [("example.org".to_owned(), bundle.concat())]);
}

#[tokio::test]
async fn point_112_only_our_own_trust_domain_has_our_revocation_lists() {
    let served = served_to_envoys().await;
    let response = Envoy::open(&served, &["ALL"]).await.hear().await;
    for (name, bundle) in validator(&context(&response)) {
        assert_eq!(bundle.contains("X509 CRL"), name == "example.org", "{name}");
    }
}

#[tokio::test]
async fn point_112_the_plain_form_has_one_trust_domain_and_its_lists_in_their_own_field() {
    let served = served_to_envoys().await;
    let plain = Value { kind: Some(Kind::StringValue("true".into())) };
    let fields = [("disable_spiffe_cert_validation".to_owned(), plain)].into();
    let by_metadata = Node { metadata: Some(Struct { fields }), ..Node::default() };
    let version = Some(SemanticVersion { major_number: 1, minor_number: 17, patch: 4 });
    let build = UserAgentVersionType::UserAgentBuildVersion(BuildVersion { version });
    let by_age = Node { user_agent_version_type: Some(build), ..Node::default() };
    for node in [by_metadata, by_age] {
        let ask = |name| DiscoveryRequest { node: Some(node.clone()), ..asking(&[name]) };
        let own = context(&Envoy::open_with(&served, ask("ROOTCA")).await.hear().await);
        assert_eq!(own.custom_validator_config, None);
        let authorities = [pem("CERTIFICATE", &der("ca one")), pem("CERTIFICATE", &der("ca two"))];
        assert_eq!(text(own.trusted_ca.as_ref()), authorities.concat());
        let lists = [pem("X509 CRL", &der("list one")), pem("X509 CRL", &der("list two"))];
        assert_eq!(text(own.crl.as_ref()), lists.concat());

        let friend = Envoy::open_with(&served, ask("spiffe://friend.org")).await.hear().await;
        let friend = context(&friend);
        assert_eq!(text(friend.trusted_ca.as_ref()), pem("CERTIFICATE", &der("friend")));
        assert_eq!(friend.crl, None);
        // Pooled bundles would let each of them speak for all of them.
        assert_eq!(end_of(&served, ask("ALL")).await.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn point_113_versions_rise_and_nonces_are_fresh_also_from_stream_to_stream() {
    let served = served_to_envoys().await;
    let (mut versions, mut nonces) = (Vec::new(), std::collections::BTreeSet::new());
    for _ in 0..2 {
        let mut envoy = Envoy::open(&served, &["ALL"]).await;
        for own in ["ca three", "ca four", "ca five"] {
            let response = envoy.hear().await;
            versions.push(response.version_info.parse::<u64>().expect("a number"));
            assert!(nonces.insert(response.nonce.clone()), "a nonce came twice");
            envoy.acknowledge(&response, &["ALL"]).await;
            publish(&served, trust(own, &["list"]));
        }
    }
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
}

#[tokio::test]
async fn point_113_an_acknowledgement_is_not_answered_and_other_names_are() {
    let served = served_to_envoys().await;
    let mut envoy = Envoy::open(&served, &["ROOTCA"]).await;
    let first = envoy.hear().await;
    envoy.acknowledge(&first, &["ROOTCA"]).await;
    envoy.hears_nothing().await;
    envoy.acknowledge(&first, &["ROOTCA", "default"]).await;
    let second = envoy.hear().await;
    assert_eq!(names(&second), ["ROOTCA", "default"]);
    envoy.acknowledge(&second, &["default"]).await;
    assert_eq!(names(&envoy.hear().await), ["default"]);
}

#[tokio::test]
async fn point_113_a_request_with_a_stale_nonce_is_ignored() {
    let served = served_to_envoys().await;
    let mut envoy = Envoy::open(&served, &["ROOTCA"]).await;
    let first = envoy.hear().await;
    publish(&served, trust("ca three", &["list"]));
    let second = envoy.hear().await;
    envoy.acknowledge(&first, &["default"]).await;
    envoy.ask(asking(&["default"])).await;
    envoy.hears_nothing().await;
    envoy.acknowledge(&second, &["default"]).await;
    assert_eq!(names(&envoy.hear().await), ["default"]);
}

#[tokio::test]
async fn point_113_a_refused_response_is_not_sent_again_and_the_next_change_is() {
    let served = served_to_envoys().await;
    let mut envoy = Envoy::open(&served, &["ROOTCA"]).await;
    let first = envoy.hear().await;
    let refusal = DiscoveryRequest {
        version_info: String::new(),
        response_nonce: first.nonce.clone(),
        error_detail: Some(rpc::Status {
            code: 3,
            message: "no\nsuch thing".into(),
            details: Vec::new(),
        }),
        ..asking(&["ROOTCA"])
    };
    envoy.ask(refusal).await;
    envoy.hears_nothing().await;
    publish(&served, trust("ca three", &["list"]));
    assert_eq!(names(&envoy.hear().await), ["ROOTCA"]);
}

#[tokio::test]
async fn point_113_a_request_that_comes_before_the_data_is_answered_when_they_are_there() {
    let served = served_to_envoys().await;
    let (hold, holds) = tokio::sync::watch::channel(true);
    served.desk.tell(|script| script.holds = holds);
    let mut envoy = Envoy::open(&served, &["default"]).await;
    envoy.hears_nothing().await;
    let _was_held = hold.send_replace(false);
    assert_eq!(names(&envoy.hear().await), ["default"]);
}

#[tokio::test]
async fn point_113_the_node_of_the_first_request_counts_for_the_whole_stream() {
    let served = served_to_envoys().await;
    let plain = Value { kind: Some(Kind::BoolValue(true)) };
    let fields = [("disable_spiffe_cert_validation".to_owned(), plain)].into();
    let node = Node { metadata: Some(Struct { fields }), ..Node::default() };
    let request = DiscoveryRequest { node: Some(node), ..asking(&["ROOTCA"]) };
    let mut envoy = Envoy::open_with(&served, request).await;
    let first = envoy.hear().await;
    envoy.acknowledge(&first, &["spiffe://example.org"]).await;
    assert!(context(&envoy.hear().await).trusted_ca.is_some());
}

#[tokio::test]
async fn point_113_a_certificate_is_pushed_anew_at_half_its_life() {
    let served = served_to_envoys().await;
    served.desk.tell(|script| script.ttl_ms = 1_400);
    let mut envoy = Envoy::open(&served, &["default"]).await;
    let first = envoy.hear().await;
    let begun = tokio::time::Instant::now();
    let second = envoy.hear().await;
    let took = begun.elapsed();
    assert!((Duration::from_millis(500)..Duration::from_millis(1_300)).contains(&took), "{took:?}");
    assert_ne!(secrets(&first), secrets(&second));
}

#[tokio::test]
async fn point_114_a_stream_for_whom_to_trust_costs_no_signature() {
    let served = served_to_envoys().await;
    let mut trusts = Envoy::open(&served, &["ALL"]).await;
    drop(trusts.hear().await);
    assert_eq!(served.desk.issued(), 0);
    let mut certificate = Envoy::open(&served, &["default"]).await;
    drop(certificate.hear().await);
    assert_eq!(served.desk.issued(), 1);
}

#[tokio::test]
async fn point_114_incremental_discovery_is_not_offered() {
    let served = served_to_envoys().await;
    let requests = tokio_stream::once(DeltaDiscoveryRequest {});
    let answer = soon(client(&served).await.delta_secrets(requests)).await;
    assert_eq!(answer.expect_err("no stream").code(), Code::Unimplemented);
}

#[tokio::test]
async fn point_115_the_end_of_the_task_ends_its_streams_and_it_is_not_served_again() {
    for (why, denial) in
        [(Closing::Ended, Denial::TaskEnded), (Closing::Suspended, Denial::TaskQuarantined)]
    {
        let served = served_to_envoys().await;
        let mut certificate = Envoy::open(&served, &["default"]).await;
        drop(certificate.hear().await);
        let mut trusts = Envoy::open(&served, &["ALL"]).await;
        drop(trusts.hear().await);
        served.desk.close(task(1), why);
        for envoy in [&mut certificate, &mut trusts] {
            let status = end(&mut envoy.hears).await;
            assert_eq!(status.code(), Code::PermissionDenied);
            assert!(status.message().starts_with(denial.code()), "{status:?}");
        }
        served.desk.tell(|script| script.who = Err(denial));
        let again = end_of(&served, asking(&["default"])).await;
        assert_eq!(again.code(), Code::PermissionDenied);
        assert_eq!(served.desk.issued(), 1, "nothing is issued for a task that is over");
    }
}

#[tokio::test]
async fn point_115_an_identity_that_is_lost_is_denied_and_not_called_a_wrong_name() {
    let served = served_to_envoys().await;
    served.desk.tell(|script| script.who = Ok(vec![identity(1, "", &[]), identity(2, "", &[])]));
    let mut envoy = Envoy::open(&served, &[ID]).await;
    drop(envoy.hear().await);
    served.desk.tell(|script| script.who = Ok(vec![identity(2, "", &[])]));
    served.desk.close(task(1), Closing::Ended);
    let status = end(&mut envoy.hears).await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().starts_with(Denial::IdentityNotHeld.code()), "{status:?}");
}

#[tokio::test]
async fn point_116_a_stopping_server_says_unavailable_and_a_client_that_asks_no_more_is_still_told()
{
    let served = served_to_envoys().await;
    let Envoy { asks, mut hears } = Envoy::open(&served, &["ALL"]).await;
    drop(next(&mut hears).await);
    drop(asks);
    publish(&served, trust("ca three", &["list"]));
    drop(next(&mut hears).await);
    let mut silent = Envoy::silent(&served).await;
    let (first, second, ()) =
        tokio::join!(end(&mut hears), end(&mut silent.hears), soon(served.doors.shut()));
    assert_eq!((first.code(), second.code()), (Code::Unavailable, Code::Unavailable));
}

#[tokio::test]
async fn point_117_a_caller_without_an_identity_is_denied() {
    let served = served_to_envoys().await;
    served.desk.tell(|script| script.who = Err(Denial::NoIdentity));
    assert_eq!(end_of(&served, asking(&["default"])).await.code(), Code::PermissionDenied);
    served.desk.tell(|script| script.who = Err(Denial::Overloaded));
    assert_eq!(end_of(&served, asking(&["default"])).await.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_new_revocation_list_is_pushed_at_once_and_certificates_are_left_alone() {
    let served = served_to_envoys().await;
    let mut trusts = Envoy::open(&served, &["ALL"]).await;
    drop(trusts.hear().await);
    let mut certificate = Envoy::open(&served, &["default"]).await;
    drop(certificate.hear().await);
    let begun = tokio::time::Instant::now();
    publish(&served, trust("ca two", &["list one", "longer list two"]));
    let pushed = context(&trusts.hear().await);
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    let lists: String = validator(&pushed).into_iter().map(|(_, bundle)| bundle).collect();
    assert!(lists.contains(&pem("X509 CRL", &der("longer list two"))));
    certificate.hears_nothing().await;
}

#[tokio::test]
async fn without_a_revocation_list_no_envoy_is_told_whom_to_trust() {
    let served = served_to_envoys().await;
    publish(&served, trust("ca two", &[]));
    for name in ["ALL", "ROOTCA", "spiffe://example.org"] {
        assert_eq!(end_of(&served, asking(&[name])).await.code(), Code::Unavailable, "{name}");
    }
    let friend = Envoy::open(&served, &["spiffe://friend.org"]).await.hear().await;
    assert_eq!(domains(&friend), ["friend.org"]);
}

#[tokio::test]
async fn revocation_lists_that_are_too_long_leave_nobody_to_trust() {
    let served = served_to_envoys().await;
    let mut envoy = Envoy::open(&served, &["ALL"]).await;
    drop(envoy.hear().await);
    let mut longest = trust("ca two", &[]);
    let list = |bytes: usize| vec![Bytes::from(vec![0; bytes])];
    longest.crls = list(mayfly_serve::limits::SECRET_CRL_BYTES_MAX);
    publish(&served, longest.clone());
    assert_eq!(domains(&envoy.hear().await), ["ally.org", "example.org", "friend.org"]);

    longest.crls = list(mayfly_serve::limits::SECRET_CRL_BYTES_MAX + 1);
    publish(&served, longest);
    let nobody = ["ally.org", "friend.org", "revocation-lists-too-long.invalid"];
    assert_eq!(domains(&envoy.hear().await), nobody);

    let plain = Value { kind: Some(Kind::BoolValue(true)) };
    let fields = [("disable_spiffe_cert_validation".to_owned(), plain)].into();
    let node = Node { metadata: Some(Struct { fields }), ..Node::default() };
    let request = DiscoveryRequest { node: Some(node), ..asking(&["ROOTCA"]) };
    assert_eq!(end_of(&served, request).await.code(), Code::Unavailable);
}

#[tokio::test]
async fn fetching_once_brings_the_same_and_the_same_refusals() {
    let served = served_to_envoys().await;
    let mut client = client(&served).await;
    let response = soon(client.fetch_secrets(asking(&["default", "ALL"]))).await;
    assert_eq!(names(response.expect("an answer").get_ref()), ["default", "ALL"]);
    let refused = soon(client.fetch_secrets(asking(&["spiffe://stranger.org"]))).await;
    assert_eq!(refused.expect_err("refused").code(), Code::InvalidArgument);
    served.desk.tell(|script| script.who = Err(Denial::TaskEnded));
    let ended = soon(client.fetch_secrets(asking(&["default"]))).await;
    assert_eq!(ended.expect_err("over").code(), Code::PermissionDenied);
}
