//! Relying parties in Rust, which run in this process: mayfly-verify, and rustls with webpki alone.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use mayfly::{clock, pem};
use mayfly_verify::{Authorize, JwkSets, Party as Ours, View, jwt};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring::default_provider},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    house::{AUDIENCE, House},
    measure::Fault,
    relying::{Door, Party},
};

/// Three ways to verify with rustls.
pub(crate) async fn parties(house: &House) -> Result<Vec<Party>, Fault> {
    let version = "rustls 0.23, webpki 0.103";
    let mut parties = Vec::new();
    for (name, check) in
        [("rustls with webpki, as it comes", false), ("rustls with webpki's CRLs", true)]
    {
        let files = Files { keys: house.keys(), check };
        let (listener, address) = listen().await?;
        serve(async move {
            let mut connections = JoinSet::new();
            while let Ok((plain, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                // The files are read for each connection, so nobody has to be woken.
                let Ok(config) = files.config() else { continue };
                connections.spawn(async move {
                    let acceptor = TlsAcceptor::from(Arc::new(config));
                    if let Ok(stream) = acceptor.accept(plain).await {
                        echo(stream).await;
                    }
                });
            }
        })?;
        let mut party = Party::local(name, version, address);
        party.hears_of_ends = check;
        parties.push(party);
    }
    parties.insert(0, ours(house).await?);
    Ok(parties)
}

async fn ours(house: &House) -> Result<Party, Fault> {
    let view = Arc::clone(house.follower.view());
    let party = Ours::new(house.source.held(), Authorize::Any, Arc::clone(&view));
    let (listener, address) = listen().await?;
    let keys = house.client.fetch_jwt_bundles().await?;
    serve(async move {
        let mut connections = JoinSet::new();
        while let Ok((plain, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            let party = party.clone();
            connections.spawn(async move {
                if let Ok(stream) = party.accept(plain, clock::now()).await {
                    echo(stream).await;
                }
            });
        }
    })?;
    let mut party = Party::local("**mayfly-verify** (rustls)", "rustls 0.23", address);
    party.hears_of_ends = true;
    party.hears_of_tokens = true;
    party.cuts = true;
    party.token_name = "mayfly-verify, offline with its view".to_owned();
    party.token = Some(Door::Ours(Tokens { keys, view }));
    Ok(party)
}

/// Tokens, checked offline and looked up in what the feed has told.
pub(crate) struct Tokens {
    keys: JwkSets,
    view: Arc<View>,
}

impl Tokens {
    pub(crate) fn accept(&self, token: &str) -> bool {
        let claims = jwt::validate(token, AUDIENCE, &self.keys, clock::now());
        let serial = claims.ok().and_then(|claims| claims.serial);
        serial.is_some_and(|serial| self.view.admit(&serial).is_ok())
    }
}

async fn listen() -> Result<(TcpListener, SocketAddr), Fault> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// On a thread and a runtime of its own, as a process of its own would be.
fn serve(work: impl Future<Output = ()> + Send + 'static) -> Result<(), Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Ends with the bench.
    drop(std::thread::Builder::new().spawn(move || runtime.block_on(work))?);
    Ok(())
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut octet = [0];
    while stream.read_exact(&mut octet).await.is_ok() && stream.write_all(&octet).await.is_ok() {}
}

/// The sidecar's files, as rustls wants them.
struct Files {
    keys: PathBuf,
    check: bool,
}

impl Files {
    fn config(&self) -> Result<ServerConfig, Fault> {
        // One moment: the link is read once.
        let now = self.keys.join(std::fs::read_link(self.keys.join("..data"))?);
        let read = |label, name: &str| blocks(label, &now.join(name));
        let mut roots = RootCertStore::empty();
        for authority in read(pem::CERTIFICATE, "bundle.pem")? {
            roots.add(CertificateDer::from(authority))?;
        }
        let provider = Arc::new(default_provider());
        let mut verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        if self.check {
            verifier =
                verifier.with_crls(read(pem::X509_CRL, "crl.pem")?.into_iter().map(Into::into));
        }
        let chain = read(pem::CERTIFICATE, "svid.pem")?.into_iter().map(Into::into).collect();
        let key = read(pem::PRIVATE_KEY, "svid_key.pem")?.pop().ok_or("no key")?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier.build()?)
            .with_single_cert(chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)))?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

fn blocks(label: &str, path: &Path) -> Result<Vec<Vec<u8>>, Fault> {
    let text = std::fs::read_to_string(path)?;
    let end = format!("-----END {label}-----\n");
    Ok(text.split_inclusive(&end).filter_map(|block| pem::first(label, block)).collect())
}

/// A client that shows what `party` holds and believes every server.
pub(crate) fn thief(party: &Ours) -> Result<ClientConfig, Fault> {
    let mut config = party.client_config()?;
    config.dangerous().set_certificate_verifier(Arc::new(Gullible(default_provider())));
    Ok(config)
}

#[derive(Debug)]
struct Gullible(CryptoProvider);

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
