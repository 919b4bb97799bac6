//! Writes X.509-SVIDs: a fixed form with blanks.
//!
//! Every leaf of one authority is the same but for its serial, its dates, its key and its SPIFFE ID.
//! What does not change is encoded once, when the authority becomes active; a leaf is then four
//! blanks, a hash and the signature. No general encoder, no second parse of the key.
//!
//! The profile (X509-SVID §4, and what shipped clients demand beyond it):
//!
//! - *Subject* `O=Mayfly`, the same for all. It means nothing to SPIFFE, but an empty one would force
//!   the subject alternative name to be critical, and makes proxies that log or map the subject
//!   (nginx, PostgreSQL, Java's hostname code) treat the peer as nobody. It differs from every
//!   authority's name, so no leaf looks self-issued. Task and trust domain do not stand in it: a
//!   name has room for 64 characters, and there should be one place to read an identity from.
//! - *Basic constraints* are present though they say what is the default: the Python and the Rust
//!   client refuse a leaf without them.
//! - *Key usage* `digitalSignature` alone; with ECDHE nothing else is needed.
//! - *The task* is carried by the SPIFFE ID and by the serial, which is a place in the status
//!   bitmaps. No extension of our own: nobody else would read it.
//! - *A CRL distribution point* only if there is a public URL under which it can be fetched. It names
//!   one shard of the list, the same octets as in the shard's issuing distribution point.

use std::fmt;

use mayfly_core::{Grant, Kind, Serial, SpiffeId, Timestamp};
use zeroize::Zeroizing;

use crate::{
    authority::X509Authority,
    der::{
        CONTEXT_0, ECDSA_WITH_SHA256, INTEGER, OCTET_STRING, P256_SPKI_PREFIX, SEQUENCE, nest, put,
        put_bits, put_extension, put_header, put_time, value_bytes,
    },
    error::SignError,
    keys::{LeafKey, PublicPoint},
    lint, shards,
    signer::Signer,
};

/// `[0] { INTEGER 2 }`: version 3.
const VERSION_3: &[u8] = &[0xa0, 0x03, 0x02, 0x01, 0x02];
/// `O=Mayfly`.
pub(crate) const SUBJECT: &[u8] = &[
    0x30, 0x11, 0x31, 0x0f, 0x30, 0x0d, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x0c, 0x06, b'M', b'a', b'y',
    b'f', b'l', b'y',
];
/// Key usage, critical: `digitalSignature`.
const KEY_USAGE: &[u8] = &[
    0x30, 0x0e, 0x06, 0x03, 0x55, 0x1d, 0x0f, 0x01, 0x01, 0xff, 0x04, 0x04, 0x03, 0x02, 0x07, 0x80,
];
/// Extended key usage: `serverAuth`, `clientAuth`.
const EXTENDED_KEY_USAGE: &[u8] = &[
    0x30, 0x1d, 0x06, 0x03, 0x55, 0x1d, 0x25, 0x04, 0x16, 0x30, 0x14, 0x06, 0x08, 0x2b, 0x06, 0x01,
    0x05, 0x05, 0x07, 0x03, 0x01, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02,
];
/// Basic constraints, critical: not an authority.
const BASIC_CONSTRAINTS: &[u8] =
    &[0x30, 0x0c, 0x06, 0x03, 0x55, 0x1d, 0x13, 0x01, 0x01, 0xff, 0x04, 0x02, 0x30, 0x00];
/// The subject's key identifier, up to its 20 octets.
const KEY_IDENTIFIER_HEAD: &[u8] =
    &[0x30, 0x1d, 0x06, 0x03, 0x55, 0x1d, 0x0e, 0x04, 0x16, 0x04, 0x14];
const OID_SUBJECT_ALT_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x11];
const OID_CRL_DISTRIBUTION_POINTS: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x1f];
const OID_AUTHORITY_KEY_IDENTIFIER: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x23];
/// `uniformResourceIdentifier [6]`, in a `GeneralName`.
const URI: u8 = 0x86;
/// `[0]` without content of its own.
const CONTEXT_0_PRIMITIVE: u8 = 0x80;
/// `extensions [3]`.
const CONTEXT_3: u8 = 0xa3;

/// A sequence whose length takes two octets, still to be set.
const LONG_SEQUENCE: [u8; 4] = [SEQUENCE, 0x82, 0, 0];

/// Octets of a leaf beyond its URIs; a bit more than it takes, so that no buffer has to grow.
const LEAF_BYTES: usize = 640;

/// A signed certificate, for a key that its owner holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Certificate {
    /// The leaf in DER. There is no intermediate: the authority itself is in the bundle.
    pub chain_der: Vec<u8>,
    /// Its name, and its place in the status bitmaps.
    pub serial: Serial,
    /// Its first second.
    pub not_before: Timestamp,
    /// Its last second: the grant's, or the authority's if that comes first.
    pub not_after: Timestamp,
    /// Whom it names.
    pub spiffe_id: SpiffeId,
}

/// A signed certificate with the key that was made for it.
pub struct X509Svid {
    /// The leaf in DER. There is no intermediate: the authority itself is in the bundle.
    pub chain_der: Vec<u8>,
    /// The private key, as an unencrypted PKCS#8 document.
    pub key_pkcs8: Zeroizing<Vec<u8>>,
    /// Its name, and its place in the status bitmaps.
    pub serial: Serial,
    /// Its first second.
    pub not_before: Timestamp,
    /// Its last second: the grant's, or the authority's if that comes first.
    pub not_after: Timestamp,
    /// Whom it names.
    pub spiffe_id: SpiffeId,
    /// The key id of the authority that signed it.
    pub authority: String,
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "X509Svid({}, {}, ..)", self.spiffe_id, self.serial)
    }
}

/// Signs a certificate for a key of our making. Uses up the grant and the key.
///
/// # Errors
/// [`SignError`] if the grant is not for this signer, or the certificate does not read back as
/// granted. Nothing is released then.
pub fn issue(grant: Grant, signer: &Signer, key: LeafKey) -> Result<X509Svid, SignError> {
    let certificate = issue_for_public_key(grant, signer, key.public())?;
    Ok(X509Svid {
        chain_der: certificate.chain_der,
        key_pkcs8: key.into_pkcs8(),
        serial: certificate.serial,
        not_before: certificate.not_before,
        not_after: certificate.not_after,
        spiffe_id: certificate.spiffe_id,
        authority: signer.x509().key_id().to_owned(),
    })
}

/// Signs a certificate for a key that somebody brought along. Uses up the grant.
///
/// # Errors
/// [`SignError`] if the grant is not for this signer, or the certificate does not read back as
/// granted. Nothing is released then.
pub fn issue_for_public_key(
    grant: Grant,
    signer: &Signer,
    key: &PublicPoint,
) -> Result<Certificate, SignError> {
    signer.admit(&grant, Kind::X509)?;
    let authority = signer.x509();
    // A chain is no longer valid than its shortest part, so the leaf says so itself. Rotation leaves
    // room for the longest leaf: this matters only after a machine has slept through a rotation.
    let not_after = grant.not_after().floor_to_second().min(authority.not_after());
    let blanks = Blanks {
        serial: grant.serial(),
        spiffe_id: grant.spiffe_id(),
        not_before: grant.not_before().floor_to_second(),
        not_after,
        key,
    };
    if blanks.not_before >= not_after {
        return Err(SignError::AuthorityExpired(authority.key_id().to_owned()));
    }
    let template = signer.template();
    let chain_der = template.fill(&blanks, authority)?;
    lint::check(&chain_der, &template.expect(&blanks, authority))?;
    Ok(Certificate {
        chain_der,
        serial: *grant.serial(),
        not_before: blanks.not_before,
        not_after,
        spiffe_id: grant.spiffe_id().clone(),
    })
}

/// What differs between the leaves of one authority.
struct Blanks<'a> {
    serial: &'a Serial,
    spiffe_id: &'a SpiffeId,
    not_before: Timestamp,
    not_after: Timestamp,
    key: &'a PublicPoint,
}

/// The parts that all leaves of one authority share, encoded once.
pub(crate) struct Template {
    /// Signature algorithm and issuer.
    head: Vec<u8>,
    /// The extensions before the name: the authority's key identifier.
    before_name: Vec<u8>,
    /// What leaves without a distribution point have between the name and the key's identifier.
    plain: Tail,
    /// What the leaves of each shard of the revocation list have there; none without a public URL.
    pointed: Vec<Tail>,
}

/// The extensions between the name and the key's identifier: usages, and the distribution point.
struct Tail {
    after_name: Vec<u8>,
    crl_url: Option<String>,
}

impl Tail {
    fn new(crl_url: Option<String>) -> Self {
        let mut after_name = [KEY_USAGE, EXTENDED_KEY_USAGE].concat();
        if let Some(url) = &crl_url {
            put_extension(&mut after_name, OID_CRL_DISTRIBUTION_POINTS, |out| {
                put_distribution_point(out, url);
            });
        }
        Self { after_name, crl_url }
    }
}

impl Template {
    /// `crl_urls` are the distribution points, one for each shard, or none at all.
    pub(crate) fn new(authority: &X509Authority, crl_urls: Vec<String>) -> Self {
        let mut head = ECDSA_WITH_SHA256.to_vec();
        head.extend_from_slice(authority.name_der());
        let mut before_name = Vec::new();
        put_authority_key_identifier(&mut before_name, authority);
        let pointed = crl_urls.into_iter().map(|url| Tail::new(Some(url))).collect();
        Self { head, before_name, plain: Tail::new(None), pointed }
    }

    fn tail(&self, serial: &Serial) -> &Tail {
        self.pointed.get(usize::from(shards::of(serial))).unwrap_or(&self.plain)
    }

    /// Fills in the blanks and signs. One allocation: what is signed is written to where the
    /// certificate has it, and the two outer lengths, of fixed width, are set when they are known.
    fn fill(&self, blanks: &Blanks<'_>, authority: &X509Authority) -> Result<Vec<u8>, SignError> {
        let tail = self.tail(blanks.serial);
        let name = blanks.spiffe_id.as_str().as_bytes();
        let mut out = Vec::with_capacity(LEAF_BYTES + name.len() + tail.after_name.len());
        out.extend_from_slice(&LONG_SEQUENCE);
        out.extend_from_slice(&LONG_SEQUENCE);
        out.extend_from_slice(VERSION_3);
        // The serial's first octet is 1: positive, and of fixed length.
        put(&mut out, INTEGER, blanks.serial.as_bytes());
        out.extend_from_slice(&self.head);
        put_validity(&mut out, blanks)?;
        out.extend_from_slice(SUBJECT);
        out.extend_from_slice(P256_SPKI_PREFIX);
        out.extend_from_slice(blanks.key.as_bytes());
        self.put_extensions(&mut out, (name, tail), blanks.key);
        set_length(&mut out, LONG_SEQUENCE.len());
        let body = out.get(LONG_SEQUENCE.len()..).unwrap_or_default();
        let signature = authority.key().sign(body)?;
        out.extend_from_slice(ECDSA_WITH_SHA256);
        put_bits(&mut out, signature.as_ref());
        set_length(&mut out, 0);
        Ok(out)
    }

    /// A leaf that says what is expected, for the tests of the reader.
    #[cfg(test)]
    pub(crate) fn sign_for_test(&self, expected: &lint::Expected<'_>) -> Vec<u8> {
        let blanks = Blanks {
            serial: expected.serial,
            spiffe_id: expected.spiffe_id,
            not_before: expected.not_before,
            not_after: expected.not_after,
            key: expected.key,
        };
        self.fill(&blanks, expected.issuer).unwrap_or_default()
    }

    /// In the order in which rcgen writes them, so that the two can be compared octet by octet.
    fn put_extensions(&self, out: &mut Vec<u8>, (name, tail): (&[u8], &Tail), key: &PublicPoint) {
        // From the inside out: the URI, the list of names, the octets around it, the extension.
        let uri = value_bytes(name.len());
        let names = value_bytes(uri);
        let alt_name = OID_SUBJECT_ALT_NAME.len() + value_bytes(names);
        let key_identifier = KEY_IDENTIFIER_HEAD.len() + key.identifier().len();
        let others = self.before_name.len() + tail.after_name.len() + BASIC_CONSTRAINTS.len();
        let all = others + value_bytes(alt_name) + key_identifier;
        put_header(out, CONTEXT_3, value_bytes(all));
        put_header(out, SEQUENCE, all);
        out.extend_from_slice(&self.before_name);
        put_header(out, SEQUENCE, alt_name);
        out.extend_from_slice(OID_SUBJECT_ALT_NAME);
        put_header(out, OCTET_STRING, names);
        put_header(out, SEQUENCE, uri);
        put(out, URI, name);
        out.extend_from_slice(&tail.after_name);
        out.extend_from_slice(KEY_IDENTIFIER_HEAD);
        out.extend_from_slice(key.identifier());
        out.extend_from_slice(BASIC_CONSTRAINTS);
    }

    /// What the reader must find.
    fn expect<'a>(
        &'a self,
        blanks: &Blanks<'a>,
        authority: &'a X509Authority,
    ) -> lint::Expected<'a> {
        lint::Expected {
            serial: blanks.serial,
            spiffe_id: blanks.spiffe_id,
            not_before: blanks.not_before,
            not_after: blanks.not_after,
            key: blanks.key,
            issuer: authority,
            crl_url: self.tail(blanks.serial).crl_url.as_deref(),
        }
    }
}

/// `Validity { notBefore, notAfter }`.
fn put_validity(out: &mut Vec<u8>, blanks: &Blanks<'_>) -> Result<(), SignError> {
    let mut failed = None;
    nest(out, SEQUENCE, |out| {
        let written = put_time(out, blanks.not_before);
        failed = written.and_then(|()| put_time(out, blanks.not_after)).err();
    });
    failed.map_or(Ok(()), Err)
}

/// Sets the length of a [`LONG_SEQUENCE`] that begins at `start` and ends with `out`. What it holds is
/// longer than 255 octets, for the keys alone take more than half of that, and shorter than 65,536,
/// for names and URLs are bounded.
fn set_length(out: &mut [u8], start: usize) {
    let length = out.len().saturating_sub(start + LONG_SEQUENCE.len());
    let octets = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    if let Some(place) = out.get_mut(start + 2..start + 4) {
        place.copy_from_slice(&octets);
    }
}

/// One distribution point with one full name (RFC 5280 §4.2.1.13).
fn put_distribution_point(out: &mut Vec<u8>, url: &str) {
    nest(out, SEQUENCE, |points| {
        nest(points, SEQUENCE, |point| put_full_name(point, url));
    });
}

/// The name of a distribution point: one URI. The list's own says the same, octet by octet.
pub(crate) fn put_full_name(out: &mut Vec<u8>, url: &str) {
    nest(out, CONTEXT_0, |name| {
        nest(name, CONTEXT_0, |full_name| put(full_name, URI, url.as_bytes()));
    });
}

/// The key of whoever signs, as leaves and lists name it (RFC 5280 §4.2.1.1).
pub(crate) fn put_authority_key_identifier(out: &mut Vec<u8>, authority: &X509Authority) {
    put_extension(out, OID_AUTHORITY_KEY_IDENTIFIER, |out| {
        nest(out, SEQUENCE, |out| put(out, CONTEXT_0_PRIMITIVE, authority.identifier()));
    });
}
