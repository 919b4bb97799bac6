//! Two revocation lists that let the revoked in, shown against rustls as it comes, and against ours.
//!
//! rustls' verifier takes the first list that it holds authoritative and asks no other. With a stale
//! list beside the fresh one, or with shards and a leaf that names none of them, the first one may be
//! the wrong one. Our verifier asks for a place in one bitmap, so there is nothing to mix up.

use std::sync::Arc;

use mayfly_core::Status;
use mayfly_verify::Refused;
use rcgen::{
    CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint,
    KeyIdMethod, RevokedCertParams, SerialNumber,
};
use rustls::{CertificateError, RootCertStore, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use tokio::time::{Duration, Instant};

use crate::common::{Authority, CALM, NOW, delta, serial, view};

type Crl = CertificateRevocationListDer<'static>;

struct Stage {
    authority: Authority,
    leaf: CertificateDer<'static>,
}

impl Stage {
    fn new() -> Self {
        let authority = Authority::new("example.org");
        let (leaf, _key) = authority.issue(&authority.leaf("/b", serial(2).as_bytes()));
        Self { authority, leaf }
    }

    /// A list, of one shard if it has an address, that names the leaf or not.
    fn crl(&self, number: u64, shard: Option<&str>, names_it: bool) -> Crl {
        let date = rcgen::date_time_ymd(2026, 1, 1);
        let entry = RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial(2).as_bytes()),
            revocation_time: date,
            reason_code: None,
            invalidity_date: None,
        };
        let point = |uri: &str| CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint { uris: vec![uri.to_owned()] },
            scope: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date,
            next_update: rcgen::date_time_ymd(2036, 1, 1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: shard.map(point),
            revoked_certs: if names_it { vec![entry] } else { vec![] },
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.authority.issuer).expect("signed").der().clone()
    }

    /// What rustls' own verifier says of the leaf with these lists.
    fn webpki(&self, crls: Vec<Crl>) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der.clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .with_crls(crls)
            .build()
            .expect("a verifier");
        let now = UnixTime::since_unix_epoch(Duration::from_millis(NOW.0));
        verifier.verify_client_cert(&self.leaf, &[], now).map(drop)
    }

    /// What ours says, in the same handshake, once the task has ended.
    fn ours(&self) -> Result<(), rustls::Error> {
        let view = view(CALM);
        let context = self.authority.context("/a", serial(1).as_bytes());
        let verifier = crate::common::party(context, &view).client_verifier();
        let now = UnixTime::since_unix_epoch(Duration::from_millis(NOW.0));
        verifier.verify_client_cert(&self.leaf, &[], now).expect("before the end");
        view.apply(&delta(1, 2, &[(2, Status::Revoked)]), Instant::now()).expect("the next delta");
        verifier.verify_client_cert(&self.leaf, &[], now).map(drop)
    }
}

fn revoked() -> Result<(), rustls::Error> {
    Err(rustls::Error::InvalidCertificate(CertificateError::Revoked))
}

#[test]
fn a_stale_list_beside_the_fresh_one_lets_the_revoked_in_and_ours_does_not() {
    let stage = Stage::new();
    let (stale, fresh) = (stage.crl(1, None, false), stage.crl(2, None, true));
    assert_eq!(stage.webpki(vec![fresh.clone()]), revoked());
    assert_eq!(stage.webpki(vec![fresh.clone(), stale.clone()]), revoked());
    assert_eq!(stage.webpki(vec![stale, fresh]), Ok(()), "the trap: the order decides");
    assert_eq!(stage.ours(), revoked());
    assert_eq!(rustls::Error::from(Refused::Revoked), revoked().unwrap_err());
}

#[test]
fn shards_and_a_leaf_without_distribution_point_let_the_revoked_in_and_ours_does_not() {
    let stage = Stage::new();
    let (one, other) = (
        stage.crl(1, Some("https://example.org/crl/1"), false),
        stage.crl(1, Some("https://example.org/crl/2"), true),
    );
    assert_eq!(stage.webpki(vec![other.clone(), one.clone()]), revoked());
    assert_eq!(stage.webpki(vec![one, other]), Ok(()), "the trap: another shard answers for it");
    assert_eq!(stage.ours(), revoked());
}
