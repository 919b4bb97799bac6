//! Fixtures: an authority that signs what it is told, and a feed that follows a script.

use std::sync::Arc;

use mayfly_core::{
    Bitmap, Change, Delta, Place, Position, RevocationSet, Sequence, Serial, Shard, Slot, Status,
    Timestamp, Window,
};
use mayfly_proto::spiffe::workload as wire;
use mayfly_verify::{Authorize, Held, Party, Patience, View, X509Context};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

pub(crate) const CALM: Patience = Patience::Closed { after: Duration::from_secs(3600) };

pub(crate) struct Authority {
    pub(crate) domain: String,
    pub(crate) der: CertificateDer<'static>,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(domain: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let params = authority_params(&format!("spiffe://{domain}"));
        let der = params.self_signed(&key).expect("signed").der().clone();
        Self { domain: domain.to_owned(), der, issuer: Issuer::new(params, key) }
    }

    /// An authority below this one.
    pub(crate) fn below(&self, usages: Vec<KeyUsagePurpose>) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = authority_params(&format!("spiffe://{}", self.domain));
        params.distinguished_name.push(rcgen::DnType::CommonName, "below");
        params.key_usages = usages;
        let der = params.signed_by(&key, &self.issuer).expect("signed");
        Self {
            domain: self.domain.clone(),
            der: der.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn issue(&self, params: &CertificateParams) -> (CertificateDer<'static>, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let der = params.signed_by(&key, &self.issuer).expect("signed");
        (der.der().clone(), key)
    }

    /// What a good leaf of this trust domain looks like.
    pub(crate) fn leaf(&self, path: &str, serial: &[u8]) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(SerialNumber::from_slice(serial));
        params.subject_alt_names = vec![uri(&format!("spiffe://{}{path}", self.domain))];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params
    }

    pub(crate) fn message(&self, path: &str, params: &CertificateParams) -> wire::X509svidResponse {
        let (der, key) = self.issue(params);
        wire::X509svidResponse {
            svids: vec![wire::X509svid {
                spiffe_id: format!("spiffe://{}{path}", self.domain),
                x509_svid: der.to_vec().into(),
                x509_svid_key: key.serialize_der().into(),
                bundle: self.der.to_vec().into(),
                hint: String::new(),
            }],
            ..Default::default()
        }
    }

    /// What a workload of this trust domain holds.
    pub(crate) fn context(&self, path: &str, serial: &[u8]) -> X509Context {
        let message = self.message(path, &self.leaf(path, serial));
        X509Context::parse(message).expect("a good message")
    }
}

fn authority_params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(id)];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ascii"))
}

pub(crate) fn hold(context: X509Context) -> watch::Sender<Held> {
    watch::Sender::new(Held::Context(Arc::new(context)))
}

pub(crate) fn party(context: X509Context, view: &Arc<View>) -> Party {
    Party::new(hold(context).subscribe(), Authorize::Any, view.clone())
}

pub(crate) fn place(slot: u32) -> Place {
    Place { window: Window(3_000_000), slot: Slot(slot) }
}

pub(crate) fn serial(slot: u32) -> Serial {
    Serial::new(place(slot), u64::from(slot))
}

pub(crate) fn at(sequence: u64) -> Position {
    Position { shard: Shard(0), sequence: Sequence(sequence) }
}

pub(crate) fn delta(from: u64, to: u64, changes: &[(u32, Status)]) -> Delta {
    Delta {
        from: at(from),
        to: at(to),
        changes: changes
            .iter()
            .map(|(slot, status)| Change::Place(place(*slot), *status))
            .collect(),
    }
}

/// A view that has heard an empty snapshot at position 1.
pub(crate) fn view(patience: Patience) -> Arc<View> {
    let view = View::new(patience);
    view.replace(RevocationSet::at(at(1)), Instant::now()).expect("the first snapshot");
    view
}

pub(crate) fn bitmap(slots: &[(u32, Status)]) -> Bitmap {
    let mut bitmap = Bitmap::default();
    for (slot, status) in slots {
        bitmap.set(Slot(*slot), *status);
    }
    bitmap
}

/// An instant at which every fixture is in date.
pub(crate) const NOW: Timestamp = Timestamp(1_800_000_000_000);
