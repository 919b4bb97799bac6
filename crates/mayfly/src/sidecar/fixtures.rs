//! Identities out of thin air, for the tests of this module.

use std::sync::Arc;

use mayfly_core::{SpiffeId, Timestamp};
use mayfly_proto::spiffe::workload as wire;
use mayfly_verify::{Bundle, X509Context};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use zeroize::Zeroizing;

use super::{
    follow::{Bundles, Heard, Token},
    set::FileSet,
};

/// Far from any clock that matters.
pub(crate) const LATER: Timestamp = Timestamp(4_000_000_000_000);

/// An authority of `example.org`.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("signed"))
    }

    /// What the Workload API says of one task whose certificate ends at `not_after`.
    pub(crate) fn identities(&self, not_after: Timestamp) -> Arc<X509Context> {
        let id = "spiffe://example.org/web/task/1";
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = vec![SanType::URI(id.try_into().expect("ascii"))];
        let seconds = i64::try_from(not_after.seconds()).expect("a date");
        params.not_after = time::OffsetDateTime::from_unix_timestamp(seconds).expect("a date");
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.0).expect("signed");
        let svid = wire::X509svid {
            spiffe_id: id.to_owned(),
            x509_svid: leaf.der().to_vec().into(),
            x509_svid_key: key.serialize_der().into(),
            bundle: self.0.der().to_vec().into(),
            ..wire::X509svid::default()
        };
        let message =
            wire::X509svidResponse { svids: vec![svid], ..wire::X509svidResponse::default() };
        Arc::new(X509Context::parse(message).expect("it keeps the rules"))
    }

    /// Authorities of `domains`, which are all this one, and `crls`.
    pub(crate) fn bundles(&self, domains: &[&str], crls: &[&[u8]]) -> Arc<Bundles> {
        let domains = domains.iter().map(|domain| {
            let id = SpiffeId::parse(&format!("spiffe://{domain}/x")).expect("an id");
            (id.trust_domain().clone(), Bundle::parse(self.0.der()).expect("an authority"))
        });
        let crls = crls.iter().map(|crl| crl.to_vec()).collect();
        Arc::new(Bundles { domains: domains.collect(), crls })
    }

    /// Everything for one certificate that ends at `not_after`.
    pub(crate) fn heard(&self, not_after: Timestamp) -> Heard {
        Heard {
            identities: Some(self.identities(not_after)),
            bundles: Some(self.bundles(&["example.org"], &[b"list"])),
            ..Heard::default()
        }
    }

    /// A set of the usual files.
    pub(crate) fn set(&self) -> FileSet {
        let heard = self.heard(LATER);
        FileSet::of(&heard.identities.expect("one"), &heard.bundles.expect("one"), [])
            .expect("an identity")
    }

    /// A set with the authorities of another trust domain.
    pub(crate) fn federated_set(&self) -> FileSet {
        let bundles = self.bundles(&["example.org", "partner.example"], &[b"list"]);
        FileSet::of(&self.identities(LATER), &bundles, []).expect("an identity")
    }
}

/// A token that ends at `expires_at`.
pub(crate) fn token(expires_at: Timestamp) -> Token {
    let text = Zeroizing::new("a.b.c".to_owned());
    Token { text, expires_at, renew_at: expires_at }
}
