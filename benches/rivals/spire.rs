//! The server API of SPIRE, as much of it as a comparison needs: the numbers of fields and the names of
//! calls, written down from its published interface.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use http::uri::PathAndQuery;
use mayfly::clock;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use tonic::{Request, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use crate::{
    drive::Call,
    measure::Fault,
    words::{unix, word},
    workload::connect,
};

/// A user number that no process has: whoever is to have it, no agent gives anybody what is his.
const NOBODY: u32 = u32::MAX - 1;

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct SpiffeId {
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

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Deleted {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct DeleteResponse {
    #[prost(message, repeated, tag = "1")]
    results: Vec<Deleted>,
}

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

/// Whether what was asked of one entry was done.
fn done(status: Option<Status>) -> Result<(), Fault> {
    let status = status.ok_or("nothing is said about the entry")?;
    if status.code == 0 {
        return Ok(());
    }
    Err(format!("the server says of an entry: {}", status.message).into())
}

/// A SPIRE server, by its private socket.
#[derive(Clone)]
pub(crate) struct Spire {
    socket: Arc<PathBuf>,
    channel: Channel,
    domain: String,
    /// Entries that were made, so that no identity is asked for twice.
    made: Arc<AtomicU32>,
}

/// An entry that the server has, and its identity.
pub(crate) struct Registered {
    entry: String,
    pub(crate) id: String,
}

impl Spire {
    pub(crate) async fn connect(socket: &str) -> Result<Self, Fault> {
        let socket = Arc::new(unix(socket)?);
        let channel = connect(&socket).await?;
        let domain = word("--spire-domain").unwrap_or_else(|| "example.org".to_owned());
        Ok(Self { socket, channel, domain, made: Arc::default() })
    }

    /// Makes an entry of an identity of its own, for whoever has the number `uid`.
    pub(crate) async fn register(&self, parent: &SpiffeId, uid: u32) -> Result<Registered, Fault> {
        let n = self.made.fetch_add(1, Ordering::Relaxed);
        let path = format!("/bench/{}-{n}", std::process::id());
        let id = format!("spiffe://{}{path}", self.domain);
        let entry = Entry {
            spiffe_id: Some(SpiffeId { trust_domain: self.domain.clone(), path }),
            parent_id: Some(parent.clone()),
            selectors: vec![Selector { kind: "unix".to_owned(), value: format!("uid:{uid}") }],
            x509_svid_ttl: 300,
            ..Entry::default()
        };
        let call = "/spire.api.server.entry.v1.Entry/BatchCreateEntry";
        let question = CreateRequest { entries: vec![entry] };
        let answer: CreateResponse = ask(self.channel.clone(), call, question).await?;
        let created = answer.results.into_iter().next().ok_or("no entry was created")?;
        done(created.status)?;
        Ok(Registered { entry: created.entry.ok_or("an entry without a number")?.id, id })
    }

    pub(crate) async fn strike(&self, entry: Registered) -> Result<(), Fault> {
        let call = "/spire.api.server.entry.v1.Entry/BatchDeleteEntry";
        let question = DeleteRequest { ids: vec![entry.entry] };
        let answer: DeleteResponse = ask(self.channel.clone(), call, question).await?;
        done(answer.results.into_iter().next().and_then(|deleted| deleted.status))
    }

    /// `MintX509SVID` over so many connections; within the life of an entry if `entered`.
    pub(crate) async fn minting(&self, connections: usize, entered: bool) -> Result<Mint, Fault> {
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
        // No agent has this name, so none is busy with the entries.
        let parent = SpiffeId { trust_domain: self.domain.clone(), path: "/bench".to_owned() };
        Ok(Mint { channels, csr, entered: entered.then(|| (self.clone(), parent)) })
    }
}

pub(crate) fn parse(id: &str) -> Result<SpiffeId, Fault> {
    let rest = id.strip_prefix("spiffe://").ok_or("not a SPIFFE ID")?;
    let (trust_domain, path) = rest.split_once('/').ok_or("a SPIFFE ID without a path")?;
    Ok(SpiffeId { trust_domain: trust_domain.to_owned(), path: format!("/{path}") })
}

/// `MintX509SVID` for one key over and over: that the caller proves it costs the server the same each time.
pub(crate) struct Mint {
    channels: Vec<Channel>,
    csr: Vec<u8>,
    /// Whose entries, and below whom, if each certificate is to have one.
    entered: Option<(Spire, SpiffeId)>,
}

impl Mint {
    async fn mint(&self, worker: usize) -> Result<(), Fault> {
        let at = worker.checked_rem(self.channels.len()).unwrap_or(0);
        let channel = self.channels.get(at).cloned().ok_or("no connection")?;
        let question = MintRequest { csr: self.csr.clone(), ttl: 300 };
        let call = "/spire.api.server.svid.v1.SVID/MintX509SVID";
        let answer: MintResponse = ask(channel, call, question).await?;
        if answer.svid.is_none_or(|svid| svid.cert_chain.is_empty()) {
            return Err("an answer without a certificate".into());
        }
        Ok(())
    }
}

impl Call for Mint {
    async fn call(&self, worker: usize, due: u64) -> Result<u64, Fault> {
        let entry = match &self.entered {
            Some((spire, parent)) => Some((spire, spire.register(parent, NOBODY).await?)),
            None => None,
        };
        self.mint(worker).await?;
        let wait = clock::monotonic_ns() - due;
        if let Some((spire, entry)) = entry {
            spire.strike(entry).await?;
        }
        Ok(wait)
    }
}
