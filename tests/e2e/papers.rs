//! Certificates and revocation lists, read with other code than that which wrote them.

use std::path::Path;

use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

fn certificate(der: &[u8]) -> X509Certificate<'_> {
    X509Certificate::from_der(der).expect("a certificate").1
}

/// The public key in a certificate.
pub(crate) fn public_key(der: &[u8]) -> Vec<u8> {
    certificate(der).public_key().raw.to_vec()
}

/// Whether one of the authorities in `bundle` has signed `leaf`.
pub(crate) fn is_signed_by(leaf: &[u8], bundle: &[Vec<u8>]) -> bool {
    let leaf = certificate(leaf);
    bundle.iter().any(|authority| {
        let authority = certificate(authority);
        leaf.issuer() == authority.subject()
            && leaf.verify_signature(Some(authority.public_key())).is_ok()
    })
}

/// Whether every revocation list of a data directory names `serial`; there is at least one.
pub(crate) fn all_crls_name(data: &Path, serial: &str) -> bool {
    let entries = std::fs::read_dir(data.join("crl")).expect("lists are written");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let lists: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "crl"))
        // A list of an authority that was withdrawn may vanish between the two calls.
        .filter_map(|path| std::fs::read(path).ok())
        .collect();
    !lists.is_empty() && lists.iter().all(|der| names(der, serial))
}

fn names(der: &[u8], serial: &str) -> bool {
    let (_, list) = CertificateRevocationList::from_der(der).expect("a revocation list");
    let text = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    list.iter_revoked_certificates().any(|entry| text(entry.raw_serial()) == serial)
}
