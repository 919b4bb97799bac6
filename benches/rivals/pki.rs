//! Certificates of OpenBao's PKI, like ours: P-256, a SPIFFE ID, five minutes.

use hyper::Method;
use mayfly::clock;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::{
    drive::Call,
    measure::Fault,
    openbao::{Line, OpenBao},
};

/// What is left of a certificate when it was issued, which is what its end can be made of.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Nothing.
    Plain,
    /// The certificate.
    Stored,
    /// The certificate and a lease.
    Leased,
    /// The same, and the lease is revoked at once.
    Revoked,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Plain, Self::Stored, Self::Leased, Self::Revoked];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Stored => "stored",
            Self::Leased => "leased",
            Self::Revoked => "revoked",
        }
    }

    pub(crate) const fn what(self) -> &'static str {
        match self {
            Self::Plain => "not kept",
            Self::Stored => "stored",
            Self::Leased => "stored and leased",
            Self::Revoked => "leased, then revoked",
        }
    }

    const fn is_stored(self) -> bool {
        !matches!(self, Self::Plain)
    }

    const fn is_leased(self) -> bool {
        matches!(self, Self::Leased | Self::Revoked)
    }
}

/// `pki/issue`, the server making the key, as ours does.
pub(crate) struct Issue {
    lines: Vec<Mutex<Line>>,
    path: String,
    revokes: bool,
}

impl Issue {
    /// Makes the role and `count` connections.
    pub(crate) async fn open(rival: &OpenBao, kind: Kind, count: usize) -> Result<Self, Fault> {
        let mut lines = Vec::with_capacity(count);
        for _ in 0..count.max(1) {
            lines.push(Mutex::new(Line::connect(rival).await?));
        }
        let role = json!({
            "allow_any_name": true, "require_cn": false,
            "allowed_uri_sans": ["spiffe://example.org/*"],
            "key_type": "ec", "key_bits": 256, "ttl": "300s", "max_ttl": "300s",
            "no_store": !kind.is_stored(), "generate_lease": kind.is_leased(),
        });
        let path = format!("pki/roles/{}", kind.name());
        Line::connect(rival).await?.ask(Method::POST, &path, &role).await?;
        let revokes = matches!(kind, Kind::Revoked);
        Ok(Self { lines, path: format!("pki/issue/{}", kind.name()), revokes })
    }
}

impl Call for Issue {
    async fn call(&self, worker: usize, due: u64) -> Result<u64, Fault> {
        let at = worker.checked_rem(self.lines.len()).unwrap_or(0);
        let mut line = self.lines.get(at).ok_or("no connection")?.lock().await;
        let wish = json!({ "uri_sans": "spiffe://example.org/agents/load" });
        let answer = line.ask(Method::POST, &self.path, &wish).await?;
        let wait = clock::monotonic_ns() - due;
        if answer.pointer("/data/certificate").and_then(Value::as_str).is_none() {
            return Err("an answer without a certificate".into());
        }
        if self.revokes {
            let lease = answer.get("lease_id").ok_or("no lease")?;
            let end = json!({ "lease_id": lease, "sync": true });
            line.ask(Method::PUT, "sys/leases/revoke", &end).await?;
        }
        Ok(wait)
    }
}
