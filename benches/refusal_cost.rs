//! What it costs a verifier to ask whether a peer's task has ended, by the number of tasks that have.
//!
//! `cargo bench -p mayfly --bench refusal_cost` measures; add `--profile dev` and `-- --quick` for a
//! smoke run. Ours is a place in a bitmap. rustls' own way is a revocation list: it looks the serial up
//! in a map and verifies the list's signature again for each handshake, so the price grows with the
//! list. The last line is one JSON object.

#[expect(dead_code, reason = "nobody is waited for here, and no disk is asked")]
mod measure;

use std::{hint::black_box, sync::Arc};

use mayfly::clock;
use mayfly_core::{
    Bitmap, Place, Position, RevocationSet, Sequence, Serial, Shard, Slot, Status, Window,
};
use mayfly_proto::spiffe::workload as wire;
use mayfly_verify::{
    Authorize, Held, Party, Patience, Peer, Standing, View, X509Context, no_server_name,
};
use measure::{Fault, Foreign, is_quick, quantile, report, say};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls::{ClientConnection, ConnectionCommon, ServerConnection, SideData};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::{
    sync::watch,
    time::{Duration, Instant},
};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

const WINDOW: u32 = 3_000_000;
/// Milliseconds since 1970, when every certificate here is in date.
const NOW_MS: u64 = 1_800_000_000_000;
/// The slot of the one who asks. Its task goes on.
const ASKER: u32 = 7;

fn main() -> Result<(), Fault> {
    measure::headline("refusal_cost");
    let foreign = Foreign::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let _within = runtime.enter();
    let authority = Authority::new()?;
    let counts: &[u32] =
        if is_quick() { &[1_000, 10_000] } else { &[1_000, 10_000, 100_000, 1_000_000] };

    say("µs, median; each asks once about a peer whose task goes on:");
    say("   ended tasks   ours: look-up   ours: request   webpki: CRL check   CRL, bytes");
    let mut figures = Vec::new();
    for count in counts {
        let row = authority.row(*count)?;
        say(&format!(
            "  {count:>12}   {:>13.3}   {:>13.3}   {:>17.1}   {:>10}",
            row.lookup, row.request, row.crl, row.crl_bytes
        ));
        figures.push((format!("lookup_us_{count}"), row.lookup));
        figures.push((format!("request_us_{count}"), row.request));
        figures.push((format!("webpki_crl_us_{count}"), row.crl));
    }
    let handshake = authority.handshake(if is_quick() { 20 } else { 500 })?;
    say(&format!("  a whole handshake of both sides, for comparison: {handshake:.0} µs"));
    figures.push(("handshake_us".to_owned(), handshake));
    foreign.tell();
    report(&figures);
    Ok(())
}

struct Row {
    lookup: f64,
    request: f64,
    crl: f64,
    crl_bytes: usize,
}

struct Authority {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn serial(slot: u32) -> Serial {
    Serial::new(Place { window: Window(WINDOW), slot: Slot(slot) }, u64::from(slot))
}

fn uri(text: &str) -> Result<SanType, Fault> {
    Ok(SanType::URI(text.try_into()?))
}

impl Authority {
    fn new() -> Result<Self, Fault> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri("spiffe://example.org")?];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let der = params.self_signed(&key)?.der().clone();
        Ok(Self { der, issuer: Issuer::new(params, key) })
    }

    fn leaf(&self, path: &str, slot: u32) -> Result<(CertificateDer<'static>, KeyPair), Fault> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(SerialNumber::from_slice(serial(slot).as_bytes()));
        params.subject_alt_names = vec![uri(&format!("spiffe://example.org{path}"))?];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.der().clone(), key))
    }

    fn context(&self, path: &str, slot: u32) -> Result<X509Context, Fault> {
        let (der, key) = self.leaf(path, slot)?;
        let svid = wire::X509svid {
            spiffe_id: format!("spiffe://example.org{path}"),
            x509_svid: der.to_vec().into(),
            x509_svid_key: key.serialize_der().into(),
            bundle: self.der.to_vec().into(),
            hint: String::new(),
        };
        let message = wire::X509svidResponse { svids: vec![svid], ..Default::default() };
        Ok(X509Context::parse(message)?)
    }

    fn party(&self, path: &str, slot: u32, view: &Arc<View>) -> Result<Party, Fault> {
        let held = Held::Context(Arc::new(self.context(path, slot)?));
        let held = watch::Sender::new(held).subscribe();
        Ok(Party::new(held, Authorize::Any, Arc::clone(view)))
    }

    fn row(&self, count: u32) -> Result<Row, Fault> {
        let (view, asker) = (view(count)?, serial(ASKER));
        let lookup = median_us(200, 1_000, || drop(black_box(view.admit(black_box(&asker)))));
        let standing = self.standing(&view)?;
        let request = median_us(200, 1_000, || drop(black_box(black_box(&standing).check())));
        let crl = self.crl(count)?;
        let (crl_bytes, list) = (crl.len(), OwnedCertRevocationList::from_der(&crl)?);
        drop(crl);
        let checks = if count > 10_000 { 40 } else { 400 };
        let crl = self.webpki_check(&list.into(), checks)?;
        Ok(Row { lookup, request, crl, crl_bytes })
    }

    /// A live connection's peer, as each request asks about it.
    fn standing(&self, view: &Arc<View>) -> Result<Standing, Fault> {
        let context = self.context("/asker", ASKER)?;
        let leaf = context.default_svid().ok_or("no identity")?.leaf.clone();
        let party = self.party("/service", ASKER + 2, view)?;
        Ok(party.standing(Peer { leaf, own: true }, mayfly_core::Timestamp(NOW_MS)))
    }

    fn crl(&self, count: u32) -> Result<Vec<u8>, Fault> {
        let date = rcgen::date_time_ymd(2026, 1, 1);
        let entry = |slot: u32| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial(slot).as_bytes()),
            revocation_time: date,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date,
            next_update: rcgen::date_time_ymd(2036, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: ended(count).map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.der().to_vec())
    }

    /// What webpki takes longer with the list than without it.
    fn webpki_check(&self, list: &CertRevocationList<'_>, checks: usize) -> Result<f64, Fault> {
        let (leaf, _key) = self.leaf("/asker", ASKER)?;
        let leaf = EndEntityCert::try_from(&leaf)?;
        let anchors = [webpki::anchor_from_trusted_cert(&self.der)?];
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        let lists = [list];
        let now = UnixTime::since_unix_epoch(Duration::from_millis(NOW_MS));
        let verify = |with_list: bool| -> Result<(), webpki::Error> {
            let options = RevocationOptionsBuilder::new(&lists)
                .map_err(|_empty| webpki::Error::UnknownRevocationStatus)?
                .with_depth(RevocationCheckDepth::EndEntity)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build();
            let options = with_list.then_some(options);
            let usage = KeyUsage::client_auth();
            leaf.verify_for_usage(algorithms.all, &anchors, &[], now, usage, options, None)
                .map(drop)
        };
        // A list that does not let the asker in would be measured at nothing.
        verify(true)?;
        verify(false)?;
        let with = median_us(checks, 1, || drop(black_box(verify(true))));
        let without = median_us(checks, 1, || drop(black_box(verify(false))));
        Ok((with - without).max(0.0))
    }

    /// Both sides of a handshake in memory, keys, signatures and look-ups included.
    fn handshake(&self, times: usize) -> Result<f64, Fault> {
        let view = view(1_000)?;
        let server = Arc::new(self.party("/service", ASKER, &view)?.server_config()?);
        let client = Arc::new(self.party("/asker", ASKER + 2, &view)?.client_config()?);
        let mut samples = Vec::with_capacity(times);
        for _ in 0..times {
            let began = clock::monotonic_ns();
            let mut near = ServerConnection::new(Arc::clone(&server))?;
            let mut far = ClientConnection::new(Arc::clone(&client), no_server_name())?;
            while near.is_handshaking() || far.is_handshaking() {
                carry(&mut far, &mut near)?;
                carry(&mut near, &mut far)?;
            }
            samples.push(micros(clock::monotonic_ns() - began));
        }
        Ok(quantile(&samples, 0.5))
    }
}

/// What one side has to say, into the other side's ear.
fn carry<A: SideData, B: SideData>(
    from: &mut ConnectionCommon<A>,
    to: &mut ConnectionCommon<B>,
) -> Result<(), Fault> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes)?;
    }
    let mut bytes = bytes.as_slice();
    while !bytes.is_empty() {
        to.read_tls(&mut bytes)?;
        to.process_new_packets()?;
    }
    Ok(())
}

/// Every second slot's task has ended, so that the asker is between them.
fn ended(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|n| n * 2)
}

fn view(count: u32) -> Result<Arc<View>, Fault> {
    let mut bitmap = Bitmap::default();
    ended(count).for_each(|slot| bitmap.set(Slot(slot), Status::Revoked));
    let mut set = RevocationSet::at(Position { shard: Shard(0), sequence: Sequence(1) });
    set.insert_window(Window(WINDOW), bitmap);
    let view = View::new(Patience::Closed { after: Duration::from_secs(3_600) });
    view.replace(set, Instant::now())?;
    Ok(view)
}

/// The median of `rounds`, each of `calls`, for one call.
fn median_us(rounds: usize, calls: u32, mut work: impl FnMut()) -> f64 {
    let samples: Vec<f64> = (0..rounds)
        .map(|_| {
            let began = clock::monotonic_ns();
            (0..calls).for_each(|_| work());
            micros(clock::monotonic_ns() - began) / f64::from(calls)
        })
        .collect();
    quantile(&samples, 0.5)
}

fn micros(ns: u64) -> f64 {
    measure::ms(ns) * 1e3
}
