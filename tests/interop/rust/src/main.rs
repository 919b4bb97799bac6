//! The interop workload in Rust: the `spiffe` and `spiffe-rustls` crates against Mayfly, in the
//! vocabulary of `../README.md`.
//!
//! Of the SDKs this one takes the end of a task most seriously: its source withdraws what it holds,
//! and `spiffe-rustls` then refuses new handshakes. Both are waited for here.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::{Value, json};
use spiffe::bundle::BundleSource as _;
use spiffe::workload_api::error::WorkloadApiError;
use spiffe::{JwtSource, JwtSvid, WorkloadApiClient, X509Bundle, X509Source, X509Svid};
use spiffe_rustls::{authorizer, mtls_client, mtls_server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

const AUDIENCE: &str = "interop";
const CALL: Duration = Duration::from_secs(10);

type Failure = Box<dyn std::error::Error>;

#[derive(Clone, Copy, Eq, PartialEq)]
enum Until {
    Once,
    Rotated,
    Ended,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say("error", json!({ "detail": error.to_string() }));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Failure> {
    let (until, patience) = arguments()?;
    let client = timeout(CALL, WorkloadApiClient::connect_env()).await??;
    fetch_x509(&client).await?;
    let token = fetch_jwt(&client).await?;
    let source = timeout(CALL, X509Source::new()).await??;
    let peer = mtls(&source).await?;
    say("mtls", json!({ "ok": true, "peer": peer }));
    match until {
        Until::Once => Ok(()),
        Until::Rotated => rotated(&client, patience).await,
        Until::Ended => ended(&client, &source, &token, patience).await,
    }
}

fn arguments() -> Result<(Until, Duration), Failure> {
    let mut until = None;
    let mut patience = Duration::from_secs(60);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--once" => until = Some(Until::Once),
            "--until-rotated" => until = Some(Until::Rotated),
            "--until-ended" => until = Some(Until::Ended),
            "--patience" => {
                let seconds = arguments.next().ok_or("`--patience` needs seconds")?;
                patience = Duration::try_from_secs_f64(seconds.parse()?)?;
            }
            other => return Err(format!("unknown argument `{other}`").into()),
        }
    }
    let until = until.ok_or("one of --once --until-rotated --until-ended is needed")?;
    Ok((until, patience))
}

async fn fetch_x509(client: &WorkloadApiClient) -> Result<(), Failure> {
    let context = timeout(CALL, client.fetch_x509_context()).await??;
    let svid = context.default_svid().ok_or("no default svid")?;
    say_x509(svid)?;
    for (domain, _) in context.bundle_set().iter() {
        say("bundle", json!({ "kind": "x509", "trust_domain": domain.as_ref() }));
    }
    let bundle = context
        .bundle_set()
        .bundle_for_trust_domain(svid.spiffe_id().trust_domain())?
        .ok_or("no bundle of the own trust domain")?;
    verify_chain(svid, &bundle)?;
    say("validated", json!({ "what": "x509" }));
    Ok(())
}

/// The crate has no chain check for a bare certificate; this is the one its TLS verifier builds on.
fn verify_chain(svid: &X509Svid, bundle: &X509Bundle) -> Result<(), Failure> {
    let der = |certificate: &spiffe::cert::Certificate| {
        CertificateDer::from(certificate.as_bytes().to_vec())
    };
    let chain: Vec<_> = svid.cert_chain().iter().map(der).collect();
    let authorities: Vec<_> = bundle.authorities().iter().map(der).collect();
    let anchors =
        authorities.iter().map(webpki::anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>()?;
    let (leaf, intermediates) = chain.split_first().ok_or("an empty chain")?;
    webpki::EndEntityCert::try_from(leaf)?.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        intermediates,
        UnixTime::now(),
        webpki::KeyUsage::client_auth(),
        None,
        None,
    )?;
    Ok(())
}

async fn fetch_jwt(client: &WorkloadApiClient) -> Result<String, Failure> {
    let source = timeout(CALL, JwtSource::new()).await??;
    let svid = timeout(CALL, source.fetch_jwt_svid([AUDIENCE])).await??;
    say(
        "jwt",
        json!({ "spiffe_id": svid.spiffe_id().to_string(), "exp": svid.expiry().unix_timestamp() }),
    );
    let bundle = source
        .bundle_for_trust_domain(svid.spiffe_id().trust_domain())?
        .ok_or("no bundle of the own trust domain")?;
    say("bundle", json!({ "kind": "jwt", "trust_domain": bundle.trust_domain().as_ref() }));
    JwtSvid::parse_and_validate(svid.token(), &source, &[AUDIENCE])?;
    say("validated", json!({ "what": "jwt" }));
    timeout(CALL, client.validate_jwt_token(AUDIENCE, svid.token())).await??;
    say("validated", json!({ "what": "jwt_online" }));
    source.shutdown().await;
    Ok(svid.token().to_owned())
}

/// Both ends of one `spiffe-rustls` connection, each asking the other for a certificate; the name
/// of the peer as the client saw it.
async fn mtls(source: &X509Source) -> Result<String, Failure> {
    let own = source.svid()?.spiffe_id().trust_domain().to_string();
    let server = mtls_server(source.clone())
        .authorize(authorizer::trust_domains([own.as_str()])?)
        .build()?;
    let client = mtls_client(source.clone())
        .authorize(authorizer::trust_domains([own.as_str()])?)
        .build()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serve = async {
        let (tcp, _) = listener.accept().await?;
        let mut tls = TlsAcceptor::from(Arc::new(server)).accept(tcp).await?;
        let byte = tls.read_u8().await?;
        tls.write_u8(byte).await?;
        tls.flush().await
    };
    let dial = async {
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").map_err(std::io::Error::other)?;
        let mut tls = TlsConnector::from(Arc::new(client)).connect(name, tcp).await?;
        tls.write_u8(b'm').await?;
        tls.flush().await?;
        tls.read_u8().await?;
        let leaf = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
        leaf.ok_or_else(|| std::io::Error::other("the server showed no certificate"))
    };
    let ((), leaf) = timeout(CALL, async { tokio::try_join!(serve, dial) }).await??;
    Ok(spiffe::cert::spiffe_id_from_der(&leaf)?.to_string())
}

/// A rotation is a second certificate on one and the same stream.
async fn rotated(client: &WorkloadApiClient, patience: Duration) -> Result<(), Failure> {
    let mut stream = timeout(CALL, client.stream_x509_contexts()).await??;
    let mut first = None;
    let next = timeout(patience, async {
        loop {
            let context = stream.next().await.ok_or("the stream came to an end")??;
            let svid = Arc::clone(context.default_svid().ok_or("no default svid")?);
            let serial = serial(&svid)?;
            if *first.get_or_insert_with(|| serial.clone()) != serial {
                return Ok::<_, Failure>(svid);
            }
        }
    })
    .await
    .map_err(|_| format!("no rotation within {patience:?}"))??;
    say_x509(&next)?;
    say("rotated", json!({ "serial": serial(&next)? }));
    Ok(())
}

async fn ended(
    client: &WorkloadApiClient,
    source: &X509Source,
    token: &str,
    patience: Duration,
) -> Result<(), Failure> {
    let mut updates = source.updated();
    let mut stream = timeout(CALL, client.stream_x509_contexts()).await??;
    timeout(CALL, stream.next()).await?.ok_or("the stream brought nothing")??;
    say("waiting", json!({}));
    // The bare stream gives the code, the source shows what an application would feel.
    let both = timeout(patience, async {
        let error = loop {
            match stream.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break Some(error),
                None => break None,
            }
        };
        while source.state().withdrawal().is_none() {
            updates.changed().await?;
        }
        Ok::<_, Failure>(error)
    });
    let Ok(error) = both.await else {
        say("unseen", json!({}));
        return Ok(());
    };
    match error? {
        Some(error) => say(
            "ended",
            json!({ "code": code(&error), "detail": format!("{error}; X509Source withdrew its SVIDs") }),
        ),
        None => say("ended", json!({ "code": "OK", "detail": "end of stream" })),
    }
    refused("jwt", timeout(CALL, client.fetch_jwt_svid([AUDIENCE], None)).await?);
    refused("jwt_online", timeout(CALL, client.validate_jwt_token(AUDIENCE, token)).await?);
    match mtls(source).await {
        Ok(_) => say("error", json!({ "detail": "a handshake still succeeded after the end" })),
        Err(error) => say(
            "refused",
            json!({ "what": "handshake", "code": "UNAVAILABLE", "detail": error.to_string() }),
        ),
    }
    Ok(())
}

fn refused<T>(what: &str, answer: Result<T, WorkloadApiError>) {
    match answer {
        Ok(_) => {
            say("error", json!({ "detail": format!("{what} was still granted after the end") }))
        }
        Err(error) => say(
            "refused",
            json!({ "what": what, "code": code(&error), "detail": error.to_string() }),
        ),
    }
}

/// The crate folds the two texts of a PermissionDenied into two variants of its own.
fn code(error: &WorkloadApiError) -> String {
    match error {
        WorkloadApiError::NoIdentityIssued | WorkloadApiError::PermissionDenied(_) => {
            "PERMISSION_DENIED".to_owned()
        }
        error if error.is_invalid_argument() => "INVALID_ARGUMENT".to_owned(),
        _ => "UNKNOWN".to_owned(),
    }
}

fn serial(svid: &X509Svid) -> Result<String, Failure> {
    let (_, leaf) = x509_parser::parse_x509_certificate(svid.leaf().as_bytes())?;
    Ok(leaf.serial.to_str_radix(16))
}

fn say_x509(svid: &X509Svid) -> Result<(), Failure> {
    let (_, leaf) = x509_parser::parse_x509_certificate(svid.leaf().as_bytes())?;
    let not_after = leaf.validity().not_after.timestamp();
    say(
        "x509",
        json!({ "spiffe_id": svid.spiffe_id().to_string(), "serial": serial(svid)?, "not_after": not_after }),
    );
    Ok(())
}

fn say(event: &str, mut fields: Value) {
    fields["event"] = Value::from(event);
    println!("{fields}");
}
