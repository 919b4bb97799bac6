//! The server API of SPIRE, as much of it as a comparison needs: the numbers of fields and the names of
//! calls, written down from its published interface.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http::uri::PathAndQuery;
use mayfly::clock;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use tonic::{Request, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use crate::{
    drive::Call,
    measure::{Fault, ms, say},
    words::{unix, word},
    workload::{connect, fetch_x509},
};

/// How long an entry may take to become a certificate, and the pause between two looks.
const PATIENCE: Duration = Duration::from_secs(30);
const BEAT: Duration = Duration::from_millis(5);

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct SpiffeId {
    #[prost(string, tag = "1")]
    trust_domain: String,
    #[prost(string, tag = "2")]
    path: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Selector {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Entry {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    spiffe_id: Option<SpiffeId>,
    #[prost(message, optional, tag = "3")]
    parent_id: Option<SpiffeId>,
    #[prost(message, repeated, tag = "4")]
    selectors: Vec<Selector>,
    #[prost(int32, tag = "5")]
    x509_svid_ttl: i32,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct CreateRequest {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Created {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(message, optional, tag = "2")]
    entry: Option<Entry>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct CreateResponse {
    #[prost(message, repeated, tag = "1")]
    results: Vec<Created>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct DeleteRequest {
    #[prost(string, repeated, tag = "1")]
    ids: Vec<String>,
}

/// Nobody looks at what became of it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct DeleteResponse {}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct MintRequest {
    #[prost(bytes = "vec", tag = "1")]
    csr: Vec<u8>,
    #[prost(int32, tag = "2")]
    ttl: i32,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Svid {
    #[prost(bytes = "vec", repeated, tag = "1")]
    cert_chain: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct MintResponse {
    #[prost(message, optional, tag = "1")]
    svid: Option<Svid>,
}

async fn ask<Q, A>(channel: Channel, path: &'static str, question: Q) -> Result<A, Fault>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut grpc = Grpc::new(channel);
    grpc.ready().await?;
    let codec = ProstCodec::<Q, A>::default();
    let path = PathAndQuery::from_static(path);
    Ok(grpc.unary(Request::new(question), path, codec).await?.into_inner())
}

/// A SPIRE server, by its private socket.
pub(crate) struct Spire {
    socket: Arc<PathBuf>,
    channel: Channel,
    domain: String,
}

impl Spire {
    pub(crate) async fn connect(socket: &str) -> Result<Self, Fault> {
        let socket = Arc::new(unix(socket)?);
        let channel = connect(&socket).await?;
        let domain = word("--spire-domain").unwrap_or_else(|| "example.org".to_owned());
        Ok(Self { socket, channel, domain })
    }

    /// `MintX509SVID` over so many connections.
    pub(crate) async fn minting(&self, connections: usize) -> Result<Mint, Fault> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let id = format!("spiffe://{}/agents/load", self.domain);
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        let csr = params.serialize_request(&key)?.der().to_vec();
        let mut channels = Vec::with_capacity(connections);
        for _ in 0..connections.max(1) {
            channels.push(connect(&self.socket).await?);
        }
        Ok(Mint { channels, csr })
    }

    /// From the wish for an entry until its certificate is at the agent's socket, some times.
    pub(crate) async fn entry_to_svid_ms(&self, is_short: bool) -> Result<Vec<f64>, Fault> {
        let (Some(socket), Some(parent)) = (word("--rival-socket"), word("--spire-parent")) else {
            say(
                "SKIPPED: entry → certificate needs `--rival-socket` and `--spire-parent spiffe://…`",
            );
            return Ok(Vec::new());
        };
        let socket = Arc::new(unix(&socket)?);
        let parent = parse(&parent)?;
        let mut waits = Vec::new();
        for n in 0..(if is_short { 2 } else { 10 }) {
            waits.push(self.entry_to_svid(&socket, (&parent, n)).await?);
        }
        Ok(waits)
    }

    async fn entry_to_svid(
        &self,
        socket: &Arc<PathBuf>,
        (parent, n): (&SpiffeId, u32),
    ) -> Result<f64, Fault> {
        let path = format!("/bench/{}-{n}", std::process::id());
        let id = format!("spiffe://{}{path}", self.domain);
        let value = format!("uid:{}", rustix::process::geteuid().as_raw());
        let entry = Entry {
            spiffe_id: Some(SpiffeId { trust_domain: self.domain.clone(), path }),
            parent_id: Some(parent.clone()),
            selectors: vec![Selector { kind: "unix".to_owned(), value }],
            x509_svid_ttl: 300,
            ..Entry::default()
        };
        let began = clock::monotonic_ns();
        let call = "/spire.api.server.entry.v1.Entry/BatchCreateEntry";
        let question = CreateRequest { entries: vec![entry] };
        let answer: CreateResponse = ask(self.channel.clone(), call, question).await?;
        let created = answer.results.into_iter().next().ok_or("no entry was created")?;
        let status = created.status.unwrap_or_default();
        if status.code != 0 {
            return Err(format!("no entry was created: {}", status.message).into());
        }
        let seen = tokio::time::timeout(PATIENCE, seen(socket, &id)).await;
        let wait = ms(clock::monotonic_ns() - began);
        let ids = created.entry.into_iter().map(|entry| entry.id).collect();
        let call = "/spire.api.server.entry.v1.Entry/BatchDeleteEntry";
        let _told: DeleteResponse = ask(self.channel.clone(), call, DeleteRequest { ids }).await?;
        seen.map_err(|_elapsed| "an entry did not become a certificate")?;
        Ok(wait)
    }
}

/// Asks until the identity is among those that are given.
async fn seen(socket: &Arc<PathBuf>, id: &String) {
    loop {
        // A No is an answer that changes.
        let given = match connect(socket).await {
            Ok(channel) => fetch_x509(channel).await.unwrap_or_default(),
            Err(_away) => Vec::new(),
        };
        if given.contains(id) {
            return;
        }
        tokio::time::sleep(BEAT).await;
    }
}

fn parse(id: &str) -> Result<SpiffeId, Fault> {
    let rest = id.strip_prefix("spiffe://").ok_or("not a SPIFFE ID")?;
    let (trust_domain, path) = rest.split_once('/').ok_or("a SPIFFE ID without a path")?;
    Ok(SpiffeId { trust_domain: trust_domain.to_owned(), path: format!("/{path}") })
}

/// `MintX509SVID` for one key over and over: that the caller proves it costs the server the same each time.
pub(crate) struct Mint {
    channels: Vec<Channel>,
    csr: Vec<u8>,
}

impl Call for Mint {
    async fn call(&self, worker: usize, due: u64) -> Result<u64, Fault> {
        let at = worker.checked_rem(self.channels.len()).unwrap_or(0);
        let channel = self.channels.get(at).cloned().ok_or("no connection")?;
        let question = MintRequest { csr: self.csr.clone(), ttl: 300 };
        let call = "/spire.api.server.svid.v1.SVID/MintX509SVID";
        let answer: MintResponse = ask(channel, call, question).await?;
        if answer.svid.is_none_or(|svid| svid.cert_chain.is_empty()) {
            return Err("an answer without a certificate".into());
        }
        Ok(clock::monotonic_ns() - due)
    }
}
