//! What the Workload API hands out, checked and typed.

use std::{collections::BTreeMap, fmt};

use mayfly_core::{SpiffeId, TrustDomain};
use mayfly_proto::spiffe::workload as wire;
use rustls::{crypto::ring::sign::any_supported_type, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, TrustAnchor};
use zeroize::Zeroize as _;

use crate::x509::{self, InvalidSvid, Leaf};

/// One message of the X.509 stream: everything that the caller has at this moment.
#[derive(Clone, Debug)]
pub struct X509Context {
    /// The caller's identities; the first is its default. Never empty.
    pub svids: Vec<X509Svid>,
    /// Authorities of foreign trust domains.
    pub federated: BTreeMap<TrustDomain, Bundle>,
    /// Revocation lists, DER, as they came.
    pub crls: Vec<Vec<u8>>,
}

/// An X.509-SVID with its key.
#[derive(Clone, Debug)]
pub struct X509Svid {
    /// Who this is.
    pub spiffe_id: SpiffeId,
    /// The leaf first, then intermediates; never empty.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key.
    pub key: PrivateKey,
    /// The authorities of its own trust domain.
    pub bundle: Bundle,
    /// Tells several identities apart.
    pub hint: String,
    /// What the leaf says.
    pub leaf: Leaf,
}

/// A private key, PKCS#8 DER. Wiped when dropped (the message that
/// brought it is not: its buffer belongs to the HTTP/2 stack); says nothing to a log.
#[derive(Clone)]
pub struct PrivateKey(Vec<u8>);

impl PrivateKey {
    /// The PKCS#8 bytes.
    #[must_use]
    pub fn as_pkcs8(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// A trust domain's X.509 authorities.
#[derive(Clone, Debug, Default)]
pub struct Bundle {
    /// As DER.
    pub authorities: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl Bundle {
    /// Reads concatenated DER. Empty means that nobody of the trust domain is trusted.
    ///
    /// # Errors
    /// [`InvalidSvid::Encoding`] if anything else than certificates is found.
    pub fn parse(der: &[u8]) -> Result<Self, InvalidSvid> {
        let authorities = x509::split(der)?;
        let anchors = authorities
            .iter()
            .map(|der| webpki::anchor_from_trusted_cert(der).map(|anchor| anchor.to_owned()))
            .collect::<Result<_, _>>()
            .map_err(|_malformed| InvalidSvid::Encoding)?;
        Ok(Self { authorities, anchors })
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}

impl X509Svid {
    /// Checks what came over the wire: the leaf's rules, its name, its key, the chain's length.
    ///
    /// # Errors
    /// [`InvalidSvid`] names the first rule that is broken.
    pub fn parse(message: wire::X509svid) -> Result<Self, InvalidSvid> {
        let key = PrivateKey(message.x509_svid_key.to_vec());
        let chain = x509::split(&message.x509_svid)?;
        let Some(first) = chain.first().filter(|_| chain.len() <= x509::CHAIN_MAX) else {
            return Err(InvalidSvid::Chain);
        };
        let leaf = Leaf::parse(first)?;
        if SpiffeId::parse(&message.spiffe_id).ok().as_ref() != Some(&leaf.id) {
            return Err(InvalidSvid::OtherId);
        }
        let svid = Self {
            spiffe_id: leaf.id.clone(),
            bundle: Bundle::parse(&message.bundle)?,
            chain,
            key,
            hint: message.hint,
            leaf,
        };
        svid.certified_key()?;
        Ok(svid)
    }

    /// Chain and key in rustls' shape.
    pub(crate) fn certified_key(&self) -> Result<CertifiedKey, InvalidSvid> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.as_pkcs8()));
        let key = any_supported_type(&der).map_err(|_not_pkcs8| InvalidSvid::Key)?;
        let certified = CertifiedKey::new(self.chain.clone(), key);
        certified.keys_match().map_err(|_mismatch| InvalidSvid::Key)?;
        Ok(certified)
    }
}

impl X509Context {
    /// Checks a whole message. A message without identities is an error, because a server that has none
    /// ends the stream instead (Workload API §5.2.1).
    ///
    /// # Errors
    /// [`InvalidSvid`] of the first identity that is malformed. A malformed foreign bundle is left
    /// out, and its trust domain with it: one partner's mistake must not stop everybody else.
    pub fn parse(message: wire::X509svidResponse) -> Result<Self, InvalidSvid> {
        if message.svids.is_empty() {
            return Err(InvalidSvid::Chain);
        }
        let svids = message.svids.into_iter().map(X509Svid::parse).collect::<Result<_, _>>()?;
        Ok(Self {
            svids,
            federated: bundles(message.federated_bundles),
            crls: message.crl.iter().map(|crl| crl.to_vec()).collect(),
        })
    }

    /// The default identity.
    #[must_use]
    pub fn default_svid(&self) -> Option<&X509Svid> {
        self.svids.first()
    }

    /// The authorities of a trust domain: our own, or a foreign one. Never pooled.
    #[must_use]
    pub fn bundle(&self, domain: &TrustDomain) -> Option<&Bundle> {
        self.svids
            .iter()
            .find(|svid| svid.spiffe_id.trust_domain() == domain)
            .map(|svid| &svid.bundle)
            .or_else(|| self.federated.get(domain))
    }

    /// Whether the trust domain is that of one of our identities, hence of the feed.
    pub(crate) fn is_own(&self, domain: &TrustDomain) -> bool {
        self.svids.iter().any(|svid| svid.spiffe_id.trust_domain() == domain)
    }
}

/// Reads a map of bundles by trust domain ID.
pub(crate) fn bundles(
    map: impl IntoIterator<Item = (String, impl AsRef<[u8]>)>,
) -> BTreeMap<TrustDomain, Bundle> {
    map.into_iter()
        .filter_map(|(id, der)| {
            let read = trust_domain(&id).zip(Bundle::parse(der.as_ref()).ok());
            if read.is_none() {
                tracing::warn!(trust_domain = %id, "bundle left out, it is malformed");
            }
            read
        })
        .collect()
}

/// Reads a map's key, which is a trust domain's SPIFFE ID.
pub(crate) fn trust_domain(id: &str) -> Option<TrustDomain> {
    let id = SpiffeId::parse(id).ok()?;
    id.path().is_empty().then(|| id.trust_domain().clone())
}
