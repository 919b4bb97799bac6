//! Who gets through a handshake, on both sides of it.

use std::{io, sync::Arc};

use crate::common::{Authority, CALM, NOW, delta, hold, party, serial, view};
use mayfly_core::{SpiffeId, Status, TrustDomain};
use mayfly_verify::{
    Authorize, Bundle, Held, Party, Patience, Refused, View, X509Context, no_server_name,
    peer_serial,
};
use rcgen::{CertificateParams, KeyUsagePurpose};
use rustls::{
    CertificateError, HandshakeKind,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    time::Duration,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// What a server with `server` says to a client with `client`, after both have heard a byte.
async fn meet(server: &Party, client: &Party) -> (io::Result<()>, io::Result<()>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    tokio::join!(
        async {
            let mut stream = server.accept(near, NOW).await?;
            stream.write_all(b"s").await?;
            stream.flush().await?;
            stream.read_exact(&mut [0]).await.map(|_| ())
        },
        async {
            let mut stream = client.connect(far, NOW).await?;
            stream.write_all(b"c").await?;
            stream.flush().await?;
            stream.read_exact(&mut [0]).await.map(|_| ())
        }
    )
}

/// Why a side refused, from within the layers of errors.
fn refused(outcome: io::Result<()>) -> Result<(), Refused> {
    let Err(error) = outcome else { return Ok(()) };
    let inner = error.get_ref().expect("a reason");
    if let Some(refused) = inner.downcast_ref::<Refused>() {
        return Err(refused.clone());
    }
    let Some(rustls::Error::InvalidCertificate(error)) = inner.downcast_ref() else {
        unreachable!("not about a certificate: {error}")
    };
    if let CertificateError::Other(other) = error {
        return Err(other.0.downcast_ref::<Refused>().expect("ours").clone());
    }
    let known = [
        (CertificateError::Revoked, Refused::Revoked),
        (CertificateError::Expired, Refused::OutOfDate),
        (CertificateError::UnknownIssuer, Refused::Chain(webpki::Error::UnknownIssuer)),
    ];
    let found = known.into_iter().find(|(tls, _)| tls == error);
    Err(found.expect("a known alert").1)
}

struct Stage {
    authority: Authority,
    view: Arc<View>,
}

impl Stage {
    fn new() -> Self {
        Self { authority: Authority::new("example.org"), view: view(CALM) }
    }

    fn party(&self, path: &str, slot: u32) -> Party {
        party(self.authority.context(path, serial(slot).as_bytes()), &self.view)
    }

    /// A peer whose certificate is signed by us and otherwise as given, unchecked by its own side.
    async fn server_meets(&self, params: &CertificateParams) -> Result<(), Refused> {
        let (der, key) = self.authority.issue(params);
        self.server_meets_chain(vec![der], &key).await
    }

    async fn server_meets_chain(
        &self,
        chain: Vec<rustls_pki_types::CertificateDer<'static>>,
        key: &rcgen::KeyPair,
    ) -> Result<(), Refused> {
        let server = self.party("/server", 1);
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Gullible))
            .with_client_auth_cert(chain, key.into())
            .expect("a key");
        let (near, far) = tokio::io::duplex(1 << 16);
        let (server, _client) = tokio::join!(
            // Dropped as soon as it is there, so that the other end does not wait for a byte.
            async { server.accept(near, NOW).await.map(drop) },
            async {
                let connector = TlsConnector::from(Arc::new(config));
                let mut stream = connector.connect(no_server_name(), far).await?;
                stream.read_exact(&mut [0]).await
            }
        );
        refused(server)
    }
}

#[tokio::test]
async fn two_workloads_of_one_trust_domain_talk() {
    let stage = Stage::new();
    let (server, client) = (stage.party("/a", 1), stage.party("/b", 2));
    let (on_server, on_client) = meet(&server, &client).await;
    on_server.unwrap();
    on_client.unwrap();
}

#[tokio::test]
async fn a_peer_whose_task_has_ended_is_refused_on_either_side() {
    let stage = Stage::new();
    let (server, client) = (stage.party("/a", 1), stage.party("/b", 2));
    stage.view.apply(&delta(1, 2, &[(2, Status::Revoked)]), now()).unwrap();
    let (on_server, on_client) = meet(&server, &client).await;
    assert_eq!(refused(on_server), Err(Refused::Revoked));
    // The client learns by the alert that it was revoked.
    let alert = on_client.unwrap_err().to_string();
    assert!(alert.contains("CertificateRevoked"), "{alert}");

    let stage = Stage::new();
    let (server, client) = (stage.party("/a", 1), stage.party("/b", 2));
    stage.view.apply(&delta(1, 2, &[(1, Status::Revoked)]), now()).unwrap();
    let (_, on_client) = meet(&server, &client).await;
    assert_eq!(refused(on_client), Err(Refused::Revoked));
}

#[tokio::test]
async fn a_suspended_peer_is_refused_until_it_is_released() {
    let stage = Stage::new();
    let (server, client) = (stage.party("/a", 1), stage.party("/b", 2));
    stage.view.apply(&delta(1, 2, &[(2, Status::Suspended)]), now()).unwrap();
    assert_eq!(refused(meet(&server, &client).await.0), Err(Refused::Suspended));
    stage.view.apply(&delta(2, 3, &[(2, Status::Valid)]), now()).unwrap();
    assert_eq!(refused(meet(&server, &client).await.0), Ok(()));
}

#[tokio::test]
async fn a_view_that_has_heard_nothing_refuses_everybody() {
    let mut stage = Stage::new();
    stage.view = View::new(Patience::default());
    let (server, client) = (stage.party("/a", 1), stage.party("/b", 2));
    let (_, on_client) = meet(&server, &client).await;
    assert_eq!(refused(on_client), Err(Refused::Dark));
}

#[tokio::test(start_paused = true)]
async fn a_silent_feed_closes_the_door_when_patience_ends() {
    let mut stage = Stage::new();
    stage.view =
        view(Patience::Grace { after: Duration::from_secs(3), then: Duration::from_secs(7) });
    let (server, client) = (stage.party("/a", 1), stage.party("/b", 2));
    tokio::time::advance(Duration::from_millis(9_999)).await;
    assert_eq!(refused(meet(&server, &client).await.1), Ok(()));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(refused(meet(&server, &client).await.1), Err(Refused::Dark));
}

#[tokio::test]
async fn only_those_who_are_meant_are_let_in() {
    let stage = Stage::new();
    let id = |text| SpiffeId::parse(text).unwrap();
    let domain = |text| TrustDomain::parse(text).unwrap();
    for (authorize, allowed) in [
        (Authorize::Any, true),
        (Authorize::Id(id("spiffe://example.org/x/b")), true),
        (Authorize::Id(id("spiffe://example.org/x")), false),
        (Authorize::TrustDomain(domain("example.org")), true),
        (Authorize::TrustDomain(domain("other.org")), false),
        (Authorize::PathPrefix(id("spiffe://example.org/x")), true),
        (Authorize::PathPrefix(id("spiffe://example.org")), true),
        (Authorize::PathPrefix(id("spiffe://example.org/x/bc")), false),
        (Authorize::PathPrefix(id("spiffe://other.org/x")), false),
    ] {
        let held = hold(stage.authority.context("/a", serial(1).as_bytes()));
        let server = Party::new(held.subscribe(), authorize.clone(), stage.view.clone());
        let outcome = refused(meet(&server, &stage.party("/x/b", 2)).await.0);
        assert_eq!(outcome.is_ok(), allowed, "{authorize:?}");
    }
    let neighbour = Authorize::PathPrefix(id("spiffe://example.org/x"));
    assert!(!neighbour.allows(&id("spiffe://example.org/xy")));
}

#[tokio::test]
async fn a_trust_domain_vouches_for_its_own_names_only() {
    let stage = Stage::new();
    let other = Authority::new("other.org");
    let bundle = Bundle::parse(&other.der).unwrap();
    let mut context = stage.authority.context("/a", serial(1).as_bytes());
    let unknown = context.clone();
    context.federated.insert(TrustDomain::parse("other.org").unwrap(), bundle);

    let server = party(context, &stage.view);
    // A foreign peer: its place means another task here, so our feed does not speak of it.
    stage.view.apply(&delta(1, 2, &[(2, Status::Revoked)]), now()).unwrap();
    let mut foreign = other.context("/b", serial(2).as_bytes());
    foreign.federated.insert(
        TrustDomain::parse("example.org").unwrap(),
        Bundle::parse(&stage.authority.der).unwrap(),
    );
    assert_eq!(refused(meet(&server, &party(foreign.clone(), &stage.view)).await.0), Ok(()));

    let refuses = meet(&party(unknown, &stage.view), &party(foreign, &stage.view)).await.0;
    assert!(refused(refuses).is_err(), "no bundle, no trust");

    // The other domain's authority signs one of our names.
    let mut forged = stage.authority.leaf("/b", serial(3).as_bytes());
    forged.distinguished_name.push(rcgen::DnType::CommonName, "forged");
    let (der, key) = other.issue(&forged);
    let outcome = stage.server_meets_chain(vec![der], &key).await;
    assert!(matches!(outcome, Err(Refused::Chain(_))), "{outcome:?}");
}

#[tokio::test]
async fn certificates_outside_the_rules_are_refused_in_the_handshake() {
    let stage = Stage::new();
    let good = || stage.authority.leaf("/b", serial(2).as_bytes());
    assert_eq!(stage.server_meets(&good()).await, Ok(()));

    let mut expired = good();
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    assert_eq!(stage.server_meets(&expired).await, Err(Refused::OutOfDate));
    let mut early = good();
    early.not_before = rcgen::date_time_ymd(4000, 1, 1);
    assert_eq!(stage.server_meets(&early).await, Err(Refused::OutOfDate));
    let mut server_only = good();
    server_only.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    assert!(stage.server_meets(&server_only).await.is_err());

    let foreign_serial = stage.authority.leaf("/b", &[2; 16]);
    let outcome = stage.server_meets(&foreign_serial).await;
    assert!(matches!(outcome, Err(Refused::ForeignSerial(_))), "{outcome:?}");
}

#[tokio::test]
async fn an_intermediate_must_be_allowed_to_sign_certificates() {
    let stage = Stage::new();
    for (usages, works) in [
        (vec![KeyUsagePurpose::KeyCertSign], true),
        (vec![KeyUsagePurpose::CrlSign], false),
        (vec![], false),
    ] {
        let below = stage.authority.below(usages.clone());
        let (der, key) = below.issue(&below.leaf("/b", serial(2).as_bytes()));
        let outcome = stage.server_meets_chain(vec![der, below.der.clone()], &key).await;
        assert_eq!(outcome.is_ok(), works, "{usages:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_renewed_identity_is_shown_from_the_next_handshake_on() {
    let stage = Stage::new();
    let held = hold(stage.authority.context("/a", serial(1).as_bytes()));
    let server = Party::new(held.subscribe(), Authorize::Any, stage.view.clone());
    let client = stage.party("/b", 2);
    for slot in [1, 7] {
        held.send_replace(Held::Context(Arc::new(
            stage.authority.context("/a", serial(slot).as_bytes()),
        )));
        let (near, far) = tokio::io::duplex(1 << 16);
        let (server, client) = tokio::join!(server.accept(near, NOW), client.connect(far, NOW));
        drop(server.unwrap());
        assert_eq!(client.unwrap().peer().leaf.serial, Some(serial(slot)));
    }
    held.send_replace(Held::Withdrawn);
    let (on_server, on_client) = meet(&server, &client).await;
    assert!(on_server.is_err() && on_client.is_err(), "nothing to show, nothing to judge by");
}

/// Two connections with one pair of configurations; the client is revoked in between. With resumption
/// the second would pass without anybody being asked.
#[tokio::test]
async fn no_session_is_resumed_in_either_version_of_tls() {
    for version in [&TLS12, &TLS13] {
        let stage = Stage::new();
        let acceptor = TlsAcceptor::from(Arc::new(stage.party("/a", 1).server_config().unwrap()));
        // A client that would like to resume, so that the server's refusal is what is seen.
        let eager = eager_client(&stage, version);
        let connector = TlsConnector::from(Arc::new(eager));
        for _ in 0..2 {
            let (server, client) = connect(&acceptor, &connector).await;
            let (server, client) = (server.unwrap(), client.unwrap());
            assert_eq!(server.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(client.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(peer_serial(server.get_ref().1), Some(serial(2)));
        }
        stage.view.apply(&delta(1, 2, &[(2, Status::Revoked)]), now()).unwrap();
        let (server, _) = connect(&acceptor, &connector).await;
        assert_eq!(refused(server.map(|_| ())), Err(Refused::Revoked), "{version:?}");
    }
}

/// What the two tests around this one guard against: where both sides would, the verifier is not
/// asked, and a peer that was revoked in between gets in.
#[tokio::test]
async fn with_resumption_a_revoked_peer_would_get_in() {
    for version in [&TLS12, &TLS13] {
        let stage = Stage::new();
        let mut generous = stage.party("/a", 1).server_config().unwrap();
        generous.session_storage = rustls::server::ServerSessionMemoryCache::new(16);
        generous.send_tls13_tickets = 4;
        let acceptor = TlsAcceptor::from(Arc::new(generous));
        let connector = TlsConnector::from(Arc::new(eager_client(&stage, version)));
        let (_, client) = connect(&acceptor, &connector).await;
        drop(client.unwrap());
        stage.view.apply(&delta(1, 2, &[(2, Status::Revoked)]), now()).unwrap();
        let (server, _client) = connect(&acceptor, &connector).await;
        let kind = server.unwrap().get_ref().1.handshake_kind();
        assert_eq!(kind, Some(HandshakeKind::Resumed), "{version:?}");
    }
}

/// The other half: our client does not resume with a server that offers it.
#[tokio::test]
async fn our_client_asks_again_even_where_a_server_offers_to_resume() {
    let stage = Stage::new();
    let mut generous = stage.party("/a", 1).server_config().unwrap();
    generous.session_storage = rustls::server::ServerSessionMemoryCache::new(16);
    generous.send_tls13_tickets = 4;
    let acceptor = TlsAcceptor::from(Arc::new(generous));
    let connector = TlsConnector::from(Arc::new(stage.party("/b", 2).client_config().unwrap()));
    for _ in 0..2 {
        let (server, client) = connect(&acceptor, &connector).await;
        drop(server);
        assert_eq!(client.unwrap().get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
    stage.view.apply(&delta(1, 2, &[(1, Status::Revoked)]), now()).unwrap();
    let (_, client) = connect(&acceptor, &connector).await;
    assert_eq!(refused(client.map(|_| ())), Err(Refused::Revoked));
}

type Ends =
    (io::Result<server::TlsStream<DuplexStream>>, io::Result<client::TlsStream<DuplexStream>>);

async fn connect(acceptor: &TlsAcceptor, connector: &TlsConnector) -> Ends {
    let (near, far) = tokio::io::duplex(1 << 16);
    tokio::join!(
        async {
            let mut stream = acceptor.accept(near).await?;
            stream.write_all(b"s").await?;
            stream.flush().await?;
            Ok(stream)
        },
        async {
            let mut stream = connector.connect(no_server_name(), far).await?;
            // Tickets come after the handshake: they are read with the first byte.
            stream.read_exact(&mut [0]).await?;
            Ok(stream)
        }
    )
}

fn eager_client(
    stage: &Stage,
    version: &'static rustls::SupportedProtocolVersion,
) -> rustls::ClientConfig {
    let context: X509Context = stage.authority.context("/b", serial(2).as_bytes());
    let svid = context.default_svid().expect("one");
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(svid.key.as_pkcs8().to_vec());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("the version")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_client_auth_cert(svid.chain.clone(), key.into())
        .expect("a key");
    config.resumption = rustls::client::Resumption::in_memory_sessions(16);
    config
}

fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// Believes every server, so that only the other side's judgement is tested.
#[derive(Debug)]
struct Gullible;

impl rustls::client::danger::ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
