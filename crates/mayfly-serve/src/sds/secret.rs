//! Which secrets a client means by which names, and how they are written down for it.

use std::collections::BTreeMap;

use bytes::Bytes;
use mayfly_core::{Denial, Serial, SpiffeId, TrustDomain};
use mayfly_proto::envoy::{
    core::{DataSource, TypedExtensionConfig, data_source::Specifier},
    tls::{
        self, CertificateValidationContext, SpiffeCertValidatorConfig, TlsCertificate,
        spiffe_cert_validator_config,
    },
};
use prost::Message as _;
use prost_types::Any;

use super::node::Form;
use crate::{
    desk::{Bundles, Introduced, X509Svid},
    limits,
    pem::Pem,
    wire,
};

/// The type of what this service hands out.
pub(crate) const SECRET: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const VALIDATOR: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// The trust domain that an Envoy is left with when our revocation lists are too long for it. No peer
/// can be of it, so that all are refused; and whoever looks at the Envoy reads why.
const NOBODY: &str = "revocation-lists-too-long.invalid";

/// Counts the answers that leave an Envoy with nobody to trust, because the lists are too long.
const TOO_LONG: &str = "mayfly_sds_lists_too_long_total";

/// Names that stand for what they say, whoever asks. The defaults are SPIRE's, so that a configuration
/// for SPIRE works unchanged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Names {
    /// The caller's first identity.
    pub default: String,
    /// The authorities of the caller's own trust domain.
    pub root: String,
    /// Those of every trust domain that the caller may verify.
    pub all: String,
}

impl Default for Names {
    fn default() -> Self {
        Self { default: "default".into(), root: "ROOTCA".into(), all: "ALL".into() }
    }
}

/// What a name means.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Meaning {
    Default,
    Root,
    All,
    Domain(TrustDomain),
    Identity(SpiffeId),
}

/// What a client has asked for, each name once. None is everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Asked(Vec<(String, Meaning)>);

impl Asked {
    /// Reads the names of a request; `None` if one of them cannot name a secret.
    pub(crate) fn read(names: &Names, asked: Vec<String>) -> Option<Self> {
        let mut all: Vec<(String, Meaning)> = Vec::new();
        for text in asked {
            if all.iter().any(|(known, _)| *known == text) {
                continue;
            }
            if all.len() >= limits::SECRETS_MAX {
                return None;
            }
            let meaning = match &text {
                text if *text == names.default => Meaning::Default,
                text if *text == names.root => Meaning::Root,
                text if *text == names.all => Meaning::All,
                text => {
                    let id = SpiffeId::parse(text).ok()?;
                    let is_domain = id.path().is_empty();
                    if is_domain {
                        Meaning::Domain(id.trust_domain().clone())
                    } else {
                        Meaning::Identity(id)
                    }
                }
            };
            all.push((text, meaning));
        }
        Some(Self(all))
    }

    /// Whether the certificate of `one` may be needed. Which identity is the default one is not known
    /// before all have been introduced.
    pub(crate) fn wants(&self, one: &Introduced) -> bool {
        self.0.is_empty()
            || self.0.iter().any(|(_, meaning)| match meaning {
                Meaning::Default => true,
                Meaning::Identity(id) => *id == one.identity.spiffe_id,
                Meaning::Root | Meaning::All | Meaning::Domain(_) => false,
            })
    }
}

/// Why a secret is not handed out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Refusal {
    /// The caller holds nothing of this name.
    Name(String),
    /// The answer cannot be given.
    Denied(Denial),
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

/// What is handed out under one name. Two that are equal need not be sent twice.
#[derive(Clone, Eq, PartialEq)]
pub(crate) enum Secret {
    Certificate { serial: Serial, chain: Bytes, key: Bytes },
    Trust(Trust),
}

/// Whom to trust.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Trust {
    /// Sorted, as it is sent: the same bundles make the same message.
    domains: BTreeMap<TrustDomain, Bytes>,
    own: TrustDomain,
    crls: Vec<Bytes>,
    form: Form,
}

/// A caller, its certificates and what it may verify.
pub(crate) struct Caller<'a> {
    kept: &'a [(Introduced, Option<X509Svid>)],
    known: BTreeMap<TrustDomain, Bytes>,
    own: &'a TrustDomain,
    crls: &'a [Bytes],
    form: Form,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(
        kept: &'a [(Introduced, Option<X509Svid>)],
        bundles: &'a Bundles,
        form: Form,
    ) -> Result<Self, Denial> {
        let who: Vec<_> = kept.iter().map(|(one, _)| one).collect();
        let known = wire::all_bundles(&bundles.x509, &who)?;
        let own = who.first().ok_or(Denial::NoIdentity)?.identity.spiffe_id.trust_domain();
        Ok(Self { kept, known, own, crls: &bundles.crls, form })
    }

    /// Everything that was asked for, under the names that were used.
    pub(crate) fn secrets(&self, asked: &Asked) -> Result<Vec<(String, Secret)>, Refusal> {
        if asked.0.is_empty() {
            return self.everything();
        }
        let one = |(name, meaning): &(String, Meaning)| {
            let secret = match meaning {
                Meaning::Default => self.certificate(|_| true),
                Meaning::Identity(id) => self.certificate(|one| one.identity.spiffe_id == *id),
                Meaning::Root => self.trust_in(self.own)?,
                Meaning::Domain(domain) => self.trust_in(domain)?,
                // Bundles of several trust domains must not be pooled, and the plain form could only do that.
                Meaning::All if self.form == Form::Plain => None,
                Meaning::All => Some(self.trust(self.known.clone())?),
            };
            Ok((name.clone(), secret.ok_or_else(|| Refusal::Name(name.clone()))?))
        };
        asked.0.iter().map(one).collect()
    }

    fn everything(&self) -> Result<Vec<(String, Secret)>, Refusal> {
        let mut all = Vec::new();
        for domain in self.known.keys() {
            if let Some(trust) = self.trust_in(domain)? {
                all.push((domain.uri(), trust));
            }
        }
        for (one, _) in self.kept {
            let id = &one.identity.spiffe_id;
            if let Some(certificate) = self.certificate(|one| one.identity.spiffe_id == *id) {
                all.push((id.as_str().to_owned(), certificate));
            }
        }
        Ok(all)
    }

    /// The first certificate of a kind.
    fn certificate(&self, which: impl Fn(&Introduced) -> bool) -> Option<Secret> {
        let (_, svid) = self.kept.iter().find(|(one, _)| which(one))?;
        let svid = svid.as_ref()?;
        Some(Secret::Certificate {
            serial: svid.serial,
            chain: svid.chain.clone(),
            key: svid.key.clone(),
        })
    }

    fn trust_in(&self, domain: &TrustDomain) -> Result<Option<Secret>, Denial> {
        let Some(bundle) = self.known.get(domain) else { return Ok(None) };
        self.trust([(domain.clone(), bundle.clone())].into()).map(Some)
    }

    fn trust(&self, domains: BTreeMap<TrustDomain, Bytes>) -> Result<Secret, Denial> {
        let is_own = domains.contains_key(self.own);
        let crls = if is_own { self.crls.to_vec() } else { Vec::new() };
        // Without a list an Envoy would not ask for one. Each authority has one from its first moment.
        if is_own && crls.is_empty() {
            tracing::error!("there is no revocation list yet; no envoy is told whom to trust");
            return Err(Denial::NotServing);
        }
        Ok(Secret::Trust(Trust { domains, own: self.own.clone(), crls, form: self.form }))
    }
}

impl Secret {
    /// Writes the secret down as a message.
    pub(crate) fn pack(&self, name: &str) -> Result<Any, Denial> {
        let content = match self {
            Self::Certificate { chain, key, .. } => {
                tls::secret::Type::TlsCertificate(TlsCertificate {
                    certificate_chain: Some(inline(certificates(chain)?.finish())),
                    private_key: Some(inline(Pem::one("PRIVATE KEY", key))),
                })
            }
            Self::Trust(trust) => tls::secret::Type::ValidationContext(match trust.form {
                Form::Spiffe => trust.spiffe()?,
                Form::Plain => trust.plain()?,
            }),
        };
        let secret = tls::Secret { name: name.to_owned(), r#type: Some(content) };
        Ok(Any { type_url: SECRET.to_owned(), value: secret.encode_to_vec() })
    }
}

impl Trust {
    /// The SPIFFE validator reads revocation lists from the bundle and from nowhere else, and then wants
    /// one for every authority of a chain.
    fn spiffe(&self) -> Result<CertificateValidationContext, Denial> {
        let mut trust_domains = Vec::with_capacity(self.domains.len());
        for (domain, authorities) in &self.domains {
            let is_own = *domain == self.own;
            let mut pem = certificates(authorities)?;
            let mut name = domain.as_str();
            if is_own && self.fits() {
                add_lists(&mut pem, &self.crls);
            } else if is_own {
                self.complain();
                name = NOBODY;
            }
            trust_domains.push(spiffe_cert_validator_config::TrustDomain {
                name: name.to_owned(),
                trust_bundle: Some(inline(pem.finish())),
            });
        }
        trust_domains.sort_by(|a, b| a.name.cmp(&b.name));
        let config = SpiffeCertValidatorConfig { trust_domains };
        let typed_config = Any { type_url: VALIDATOR.to_owned(), value: config.encode_to_vec() };
        Ok(CertificateValidationContext {
            custom_validator_config: Some(TypedExtensionConfig {
                name: "envoy.tls.cert_validator.spiffe".to_owned(),
                typed_config: Some(typed_config),
            }),
            ..CertificateValidationContext::default()
        })
    }

    /// There is one trust domain in a plain context, and no way to say nobody in it: when the lists do
    /// not fit, the client keeps what it has until its lists expire, and a new one gets nothing.
    fn plain(&self) -> Result<CertificateValidationContext, Denial> {
        if !self.fits() {
            self.complain();
            return Err(Denial::Overloaded);
        }
        let mut trusted = Pem::default();
        for authorities in self.domains.values() {
            add_certificates(&mut trusted, authorities)?;
        }
        let mut lists = Pem::default();
        add_lists(&mut lists, &self.crls);
        Ok(CertificateValidationContext {
            trusted_ca: Some(inline(trusted.finish())),
            crl: (!self.crls.is_empty()).then(|| inline(lists.finish())),
            ..CertificateValidationContext::default()
        })
    }

    fn fits(&self) -> bool {
        self.crls.iter().map(Bytes::len).sum::<usize>() <= limits::SECRET_CRL_BYTES_MAX
    }

    fn complain(&self) {
        let bytes: usize = self.crls.iter().map(Bytes::len).sum();
        let bytes_max = limits::SECRET_CRL_BYTES_MAX;
        tracing::error!(
            bytes,
            bytes_max,
            "revocation lists too long: envoy is told to trust nobody"
        );
        metrics::counter!(TOO_LONG).increment(1);
    }
}

fn certificates(concatenated: &[u8]) -> Result<Pem, Denial> {
    let mut pem = Pem::default();
    add_certificates(&mut pem, concatenated)?;
    Ok(pem)
}

fn add_certificates(pem: &mut Pem, concatenated: &[u8]) -> Result<(), Denial> {
    pem.add_all("CERTIFICATE", concatenated).ok_or_else(|| {
        tracing::error!("certificates of a bundle or chain are not der");
        Denial::SigningFailed
    })
}

fn add_lists(pem: &mut Pem, lists: &[Bytes]) {
    for list in lists {
        pem.add("X509 CRL", list);
    }
}

fn inline(pem: Vec<u8>) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(pem)) }
}
