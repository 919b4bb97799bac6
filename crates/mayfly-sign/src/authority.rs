//! The two kinds of authority: one signs certificates, the other tokens.
//!
//! An authority is a key and what is known of it, parsed once. It never changes: rotation replaces
//! it ([`KeyRing`](crate::KeyRing)).

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mayfly_core::{Span, Timestamp, TrustDomain, limits};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyUsagePurpose, SanType};
use ring::{
    digest,
    rand::{SecureRandom as _, SystemRandom},
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair,
        EcdsaSigningAlgorithm,
    },
};
use serde::Serialize;
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};
use zeroize::Zeroizing;

use crate::{
    der,
    error::SignError,
    keys::{LeafKey, PublicPoint},
};

/// A long-lived signing key.
pub(crate) struct AuthorityKey {
    pair: EcdsaKeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
    public: PublicPoint,
    rng: SystemRandom,
}

impl AuthorityKey {
    fn parse(
        algorithm: &'static EcdsaSigningAlgorithm,
        pkcs8: Zeroizing<Vec<u8>>,
    ) -> Result<Self, Unusable> {
        let rng = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, &pkcs8, &rng)
            .map_err(|rejected| Unusable::Garbage(format!("the key is refused: {rejected}")))?;
        let public = PublicPoint::of(&pair)
            .ok_or_else(|| Unusable::Garbage("the public key has a wrong length".to_owned()))?;
        Ok(Self { pair, pkcs8, public, rng })
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<ring::signature::Signature, SignError> {
        self.pair
            .sign(&self.rng, message)
            .map_err(|ring::error::Unspecified| SignError::Crypto("sign"))
    }

    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }
}

impl rcgen::PublicKeyData for AuthorityKey {
    fn der_bytes(&self) -> &[u8] {
        self.public.as_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for AuthorityKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.sign(message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_no_randomness| rcgen::Error::RemoteKeyError)
    }
}

/// Why a stored authority cannot be used.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// It cannot be understood, for this reason.
    Garbage(String),
    /// Key and certificate are strangers to each other.
    KeyMismatch,
    /// It is somebody else's.
    OtherTrustDomain(String),
}

impl From<Unusable> for SignError {
    fn from(_unusable: Unusable) -> Self {
        Self::Crypto("read back a key of its own making")
    }
}

/// Signs certificates: a self-signed P-256 authority of one trust domain.
pub struct X509Authority {
    key_id: String,
    identifier: [u8; 20],
    certificate: Vec<u8>,
    name: Vec<u8>,
    born: Timestamp,
    not_after: Timestamp,
    key: AuthorityKey,
}

impl X509Authority {
    /// Makes an authority that may sign leaves and revocation lists, and nothing below a leaf.
    ///
    /// Its name carries its key's identifier: several authorities of one trust domain are published
    /// at a time, and a verifier chooses the issuer of a certificate, and the revocation list that
    /// speaks for it, by that name.
    pub(crate) fn generate(
        trust_domain: &TrustDomain,
        born: Timestamp,
        ttl: Span,
    ) -> Result<Self, SignError> {
        let key = AuthorityKey::parse(
            &ECDSA_P256_SHA256_ASN1_SIGNING,
            LeafKey::generate()?.into_pkcs8(),
        )?;
        let identifier = *key.public.identifier();
        let mut params = CertificateParams::default();
        params.not_before = der::calendar(born.minus(limits::BACKDATE))?;
        params.not_after = der::calendar(born.plus(ttl))?;
        params.serial_number = Some(rcgen::SerialNumber::from_slice(&random_serial()?));
        params.subject_alt_names = vec![SanType::URI(trust_domain.uri().try_into()?)];
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Mayfly");
        params
            .distinguished_name
            .push(DnType::CommonName, format!("X.509 authority {}", hex(&identifier)));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(identifier.to_vec());
        let certificate = params.self_signed(&key)?.der().to_vec();
        Ok(Self::assemble(trust_domain, certificate, born, key)?)
    }

    /// Puts a stored authority together again, and checks that its parts belong together.
    pub(crate) fn restore(
        trust_domain: &TrustDomain,
        certificate: Vec<u8>,
        born: Timestamp,
        pkcs8: Zeroizing<Vec<u8>>,
    ) -> Result<Self, Unusable> {
        let key = AuthorityKey::parse(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8)?;
        Self::assemble(trust_domain, certificate, born, key)
    }

    fn assemble(
        trust_domain: &TrustDomain,
        certificate: Vec<u8>,
        born: Timestamp,
        key: AuthorityKey,
    ) -> Result<Self, Unusable> {
        let garbage = |rule: &str| Unusable::Garbage(rule.to_owned());
        let (rest, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|error| Unusable::Garbage(format!("not a certificate: {error}")))?;
        if !rest.is_empty() {
            return Err(garbage("octets follow the certificate"));
        }
        if *parsed.public_key().subject_public_key.data != *key.public.as_bytes() {
            return Err(Unusable::KeyMismatch);
        }
        let domain = bare_trust_domain(&parsed)?;
        if domain != trust_domain.uri() {
            return Err(Unusable::OtherTrustDomain(domain));
        }
        let is_ca = parsed.is_ca()
            && parsed
                .key_usage()
                .ok()
                .flatten()
                .is_some_and(|usage| usage.value.key_cert_sign() && usage.value.crl_sign());
        if !is_ca || parsed.subject() != parsed.issuer() {
            return Err(garbage(
                "it is not a self-signed authority for leaves and revocation lists",
            ));
        }
        parsed.verify_signature(None).map_err(|_refused| garbage("its signature is wrong"))?;
        let not_after = u64::try_from(parsed.validity().not_after.timestamp())
            .map_err(|_negative| garbage("it expired before 1970"))?;
        let name = parsed.subject().as_raw().to_vec();
        let identifier = *key.public.identifier();
        Ok(Self {
            key_id: hex(&identifier),
            identifier,
            name,
            born,
            not_after: Timestamp(not_after.saturating_mul(1000)),
            key,
            certificate,
        })
    }

    /// Its key's identifier in hexadecimal, as it stands in each leaf's authority key identifier.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    /// Its last second.
    #[must_use]
    pub const fn not_after(&self) -> Timestamp {
        self.not_after
    }

    pub(crate) const fn born(&self) -> Timestamp {
        self.born
    }

    pub(crate) fn name_der(&self) -> &[u8] {
        &self.name
    }

    /// Its public key, without a name: bundle documents know it by its certificate.
    pub(crate) fn jwk(&self) -> Jwk {
        Jwk::of(&self.key.public)
    }

    pub(crate) const fn identifier(&self) -> &[u8; 20] {
        &self.identifier
    }

    pub(crate) const fn key(&self) -> &AuthorityKey {
        &self.key
    }
}

impl fmt::Debug for X509Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "X509Authority({}, ..)", self.key_id)
    }
}

/// A public key as a JSON Web Key. The order of the fields is that of a thumbprint (RFC 7638 §3.2),
/// which leaves the others out.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Jwk {
    crv: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    kty: &'static str,
    x: String,
    y: String,
}

impl Jwk {
    /// A key that has no name yet.
    fn of(public: &PublicPoint) -> Self {
        let (x, y) = public.coordinates();
        Self {
            crv: "P-256",
            kid: None,
            kty: "EC",
            x: URL_SAFE_NO_PAD.encode(x),
            y: URL_SAFE_NO_PAD.encode(y),
        }
    }
}

/// Signs tokens: an ES256 key with a name.
pub struct JwtAuthority {
    jwk: Jwk,
    kid: String,
    header: String,
    born: Timestamp,
    expires: Timestamp,
    key: AuthorityKey,
}

impl JwtAuthority {
    pub(crate) fn generate(born: Timestamp, ttl: Span) -> Result<Self, SignError> {
        let pkcs8 = LeafKey::generate()?.into_pkcs8();
        Ok(Self::restore(pkcs8, born, born.plus(ttl))?)
    }

    /// Puts a stored key together again. Its name follows from the key itself.
    pub(crate) fn restore(
        pkcs8: Zeroizing<Vec<u8>>,
        born: Timestamp,
        expires: Timestamp,
    ) -> Result<Self, Unusable> {
        let key = AuthorityKey::parse(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8)?;
        let mut jwk = Jwk::of(&key.public);
        let canonical =
            serde_json::to_vec(&jwk).map_err(|error| Unusable::Garbage(error.to_string()))?;
        let kid = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &canonical));
        jwk.kid = Some(kid.clone());
        // base64url needs no escaping, and clients refuse any header but these three.
        let header =
            URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"ES256","kid":"{kid}","typ":"JWT"}}"#));
        Ok(Self { jwk, kid, header, born, expires, key })
    }

    /// The name under which verifiers find the key: its JWK thumbprint.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.kid
    }

    pub(crate) const fn born(&self) -> Timestamp {
        self.born
    }

    pub(crate) const fn expires(&self) -> Timestamp {
        self.expires
    }

    pub(crate) const fn jwk(&self) -> &Jwk {
        &self.jwk
    }

    /// The encoded header that all its tokens share.
    pub(crate) fn header(&self) -> &str {
        &self.header
    }

    pub(crate) const fn key(&self) -> &AuthorityKey {
        &self.key
    }
}

impl fmt::Debug for JwtAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JwtAuthority({}, ..)", self.kid)
    }
}

/// The one URI that an authority's certificate names.
fn bare_trust_domain(parsed: &X509Certificate<'_>) -> Result<String, Unusable> {
    let names = parsed
        .subject_alternative_name()
        .ok()
        .flatten()
        .map(|extension| extension.value.general_names.as_slice());
    match names {
        Some([GeneralName::URI(uri)]) => Ok((*uri).to_owned()),
        _ => Err(Unusable::Garbage("it does not name exactly one URI".to_owned())),
    }
}

/// Sixteen octets of luck, positive and of fixed length. A leaf's serial has seventeen, so the two
/// cannot meet.
fn random_serial() -> Result<[u8; 16], SignError> {
    let mut octets = [0; 16];
    SystemRandom::new()
        .fill(&mut octets)
        .map_err(|ring::error::Unspecified| SignError::Crypto("draw a serial"))?;
    if let Some(first) = octets.first_mut() {
        *first = (*first & 0x3f) | 0x40;
    }
    Ok(octets)
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}
