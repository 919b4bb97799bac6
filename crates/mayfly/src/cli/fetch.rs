//! `mayfly fetch`: what a workload would get, as this process.

use std::{
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::{Args, Subcommand};
use mayfly_verify::{Endpoint, WorkloadClient, X509Context};
use serde_json::{Value, json};

use super::{CliError, Context, output};
use crate::{admin, pem};

/// Arguments of `mayfly fetch`.
#[derive(Args, Debug)]
pub(crate) struct FetchArgs {
    /// The Workload API's address, for example unix:///run/mayfly/workload.sock
    /// [default: that of the broker of the data directory]
    #[arg(long, global = true, env = "SPIFFE_ENDPOINT_SOCKET", value_name = "URI")]
    socket: Option<String>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// X.509-SVIDs
    X509 {
        /// Write certificate, key and bundle of each identity as PEM files into this directory
        #[arg(long, value_name = "DIR")]
        write: Option<PathBuf>,
    },
    /// JWT-SVIDs
    Jwt {
        /// Whom the token is meant for; may be given several times
        #[arg(long, required = true)]
        audience: Vec<String>,
        /// Only for this one of the caller's identities
        #[arg(long)]
        spiffe_id: Option<String>,
        /// Write each token into this directory
        #[arg(long, value_name = "DIR")]
        write: Option<PathBuf>,
    },
    /// The authorities of the own and of federated trust domains
    Bundle {
        /// Write one PEM file per trust domain into this directory
        #[arg(long, value_name = "DIR")]
        write: Option<PathBuf>,
    },
}

pub(crate) async fn fetch(context: &Context, args: &FetchArgs) -> Result<(), CliError> {
    let client = WorkloadClient::new(&endpoint(context, args.socket.as_deref()).await?);
    match &args.what {
        What::X509 { write } => x509(context, &client, write.as_deref()).await,
        What::Jwt { audience, spiffe_id, write } => {
            let id = spiffe_id.as_deref().map(mayfly_core::SpiffeId::parse).transpose();
            let id = id.map_err(|e| CliError::Other(e.to_string()))?;
            let audience: Vec<_> = audience.iter().map(String::as_str).collect();
            let tokens = client.fetch_jwt(&audience, id.as_ref()).await?;
            jwt(context, &tokens, write.as_deref())
        }
        What::Bundle { write } => bundle(context, &client, write.as_deref()).await,
    }
}

/// The Workload API that was named, else that of the data directory's broker.
pub(super) async fn endpoint(context: &Context, named: Option<&str>) -> Result<Endpoint, CliError> {
    let uri = match named {
        Some(uri) => uri.to_owned(),
        None => {
            let mut admin = admin::connect(&context.data_dir).await?;
            let request = mayfly_proto::mayfly::v1::GetStatusRequest {};
            let status = admin.get_status(request).await.map_err(admin::AdminError::from)?;
            format!("unix://{}", status.into_inner().workload_socket)
        }
    };
    Ok(Endpoint::parse(&uri).map_err(mayfly_verify::WorkloadError::from)?)
}

async fn x509(
    context: &Context,
    client: &WorkloadClient,
    write: Option<&Path>,
) -> Result<(), CliError> {
    let identities = client.fetch_x509().await?;
    if let Some(dir) = write {
        write_x509(dir, &identities)?;
    }
    if context.output.is_data() {
        let svid = |svid: &mayfly_verify::X509Svid| {
            json!({
                "spiffe_id": svid.spiffe_id.as_str(),
                "serial": serial(svid),
                "not_after": output::instant(svid.leaf.not_after.0),
                "hint": svid.hint,
                "certificates": svid.chain.iter().map(|der| BASE64_STANDARD.encode(der)).collect::<Vec<_>>(),
            })
        };
        output::data(context.output, &Value::Array(identities.svids.iter().map(svid).collect()));
    } else {
        for svid in &identities.svids {
            output::line(&format!("spiffe id  {}", svid.spiffe_id));
            output::line(&format!("serial     {}", serial(svid)));
            output::line(&format!("expires    {}", output::instant(svid.leaf.not_after.0)));
            if !svid.hint.is_empty() {
                output::line(&format!("hint       {}", svid.hint));
            }
        }
    }
    Ok(())
}

/// The serial number, if Mayfly made it.
fn serial(svid: &mayfly_verify::X509Svid) -> String {
    svid.leaf.serial.map(|serial| serial.to_string()).unwrap_or_default()
}

fn write_x509(dir: &Path, identities: &X509Context) -> Result<(), CliError> {
    for (at, svid) in identities.svids.iter().enumerate() {
        // The first is the default and has the plain names that everybody expects.
        let name = |what: &str| {
            if at == 0 { format!("{what}.pem") } else { format!("{what}.{at}.pem") }
        };
        write(dir, &name("svid"), &pem::blocks(pem::CERTIFICATE, &svid.chain))?;
        write(dir, &name("svid_key"), &pem::block(pem::PRIVATE_KEY, svid.key.as_pkcs8()))?;
        let bundle = pem::blocks(pem::CERTIFICATE, &svid.bundle.authorities);
        write(dir, &name("bundle"), &bundle)?;
    }
    Ok(())
}

fn jwt(
    context: &Context,
    tokens: &[mayfly_verify::JwtSvid],
    write_to: Option<&Path>,
) -> Result<(), CliError> {
    if let Some(dir) = write_to {
        for (at, token) in tokens.iter().enumerate() {
            let name = if at == 0 { "jwt.token".to_owned() } else { format!("jwt.{at}.token") };
            write(dir, &name, &token.token)?;
        }
        return Ok(());
    }
    if context.output.is_data() {
        let token = |one: &mayfly_verify::JwtSvid| json!({ "spiffe_id": one.spiffe_id.as_str(), "token": one.token, "hint": one.hint });
        output::data(context.output, &Value::Array(tokens.iter().map(token).collect()));
    } else {
        tokens.iter().for_each(|token| output::line(&token.token));
    }
    Ok(())
}

async fn bundle(
    context: &Context,
    client: &WorkloadClient,
    write_to: Option<&Path>,
) -> Result<(), CliError> {
    let bundles = client.fetch_x509_bundles().await?;
    let mut values = Vec::new();
    for (domain, bundle) in &bundles {
        let text = pem::blocks(pem::CERTIFICATE, &bundle.authorities);
        if let Some(dir) = write_to {
            write(dir, &format!("{domain}.pem"), &text)?;
        } else if context.output.is_data() {
            values.push(json!({ "trust_domain": domain.as_str(), "x509": text }));
        } else {
            output::line(&format!("# {domain}\n{}", text.trim_end()));
        }
    }
    if write_to.is_none() && context.output.is_data() {
        output::data(context.output, &Value::Array(values));
    }
    Ok(())
}

/// Writes a file that only its owner can read, whole or not at all.
fn write(dir: &Path, name: &str, text: &str) -> Result<(), CliError> {
    let path = dir.join(name);
    let temporary = dir.join(format!(".{name}.tmp"));
    let written = std::fs::create_dir_all(dir).and_then(|()| {
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&temporary, &path)
    });
    written.map_err(CliError::io(format!("cannot write `{}`", path.display())))
}
