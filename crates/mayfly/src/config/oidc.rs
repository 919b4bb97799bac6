//! `[[oidc]]`: issuers of tokens by which pipelines elsewhere begin tasks and what each token may begin, and
//! who vouches for the subjects of roles.
//!
//! Nothing is taken from a token that does not stand here: issuer, audience and subject are compared as
//! texts, and what no rule covers is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use http::Uri;
use mayfly_core::TrustDomain;
use mayfly_policy::rights;
use mayfly_verify::oidc::Assertion;
use serde::Deserialize;

use super::{
    ConfigError, EndpointProfile,
    federation::{self, Federation},
    value,
};

/// Longest issuer or audience, in bytes.
const NAME_BYTES_MAX: usize = 1024;
/// Issuers. Each costs a fetch every five minutes.
const ISSUERS_MAX: usize = 64;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOidc {
    issuer: String,
    audience: String,
    jwks_uri: Option<String>,
    profile: Option<toml::Value>,
    ca: Option<PathBuf>,
    #[serde(default)]
    rule: Vec<RawRule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    subject: String,
    #[serde(default)]
    claims: BTreeMap<String, String>,
    profile: String,
}

/// An issuer whose tokens may begin tasks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OidcIssuer {
    /// Exactly the `iss` of its tokens.
    pub issuer: String,
    /// What has to stand in their `aud`.
    pub audience: String,
    /// Where its keys are, if not where its discovery document says.
    pub jwks_uri: Option<Uri>,
    /// Its discovery document.
    pub discovery: Uri,
    /// How the server of either is known.
    pub server: EndpointProfile,
    /// What its tokens may begin; what none covers is refused.
    pub rules: Vec<OidcRule>,
}

/// Which tokens may begin tasks of which profile.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OidcRule {
    /// Whose.
    pub subject: Subject,
    /// What else has to stand in the token, text by text.
    pub claims: BTreeMap<String, String>,
    /// The profile.
    pub profile: String,
}

/// Which subjects a rule is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Subject {
    /// This one.
    Exactly(String),
    /// All that begin like this.
    Under(String),
}

impl Subject {
    /// Whether `subject` is one of them.
    #[must_use]
    pub fn covers(&self, subject: &str) -> bool {
        match self {
            Self::Exactly(one) => one == subject,
            Self::Under(start) => subject.starts_with(start),
        }
    }
}

impl OidcIssuer {
    /// Whether a token that says `assertion` may begin tasks of `profile`.
    #[must_use]
    pub fn permits(&self, assertion: &Assertion, profile: &str) -> bool {
        let has = |(name, wanted): (&String, &String)| assertion.text(name) == Some(wanted);
        let fits = |rule: &&OidcRule| {
            rule.subject.covers(&assertion.subject) && rule.claims.iter().all(has)
        };
        self.rules.iter().filter(|rule| rule.profile == profile).any(|rule| fits(&rule))
    }
}

/// `own` is the trust domain, `federation` whoever else's bundles there are, and `public_url` the name
/// under which our own tokens are issued.
pub(super) fn read(
    raw: Vec<RawOidc>,
    (own, federation): (&TrustDomain, &[Federation]),
    public_url: Option<&str>,
    base: &Path,
) -> Result<Vec<OidcIssuer>, ConfigError> {
    if raw.len() > ISSUERS_MAX {
        return Err(value("oidc", format!("is there more than {ISSUERS_MAX} times")));
    }
    let mut seen = BTreeSet::new();
    let mut issuers = Vec::with_capacity(raw.len());
    for raw in raw {
        let issuer = raw.read(base)?;
        if !seen.insert(issuer.issuer.clone()) {
            return Err(value("oidc.issuer", format!("names `{}` twice", issuer.issuer)));
        }
        if public_url.is_some_and(|url| url.trim_end_matches('/') == issuer.issuer) {
            let rule = "is our own `status.public_url`: who has an SVID of ours has a task already";
            return Err(value("oidc.issuer", rule));
        }
        if let EndpointProfile::HttpsSpiffe { id } = &issuer.server {
            let of = id.trust_domain();
            let known = of == own || federation.iter().any(|entry| entry.trust_domain == *of);
            if !known {
                let rule = format!("is known by `{id}`: `{of}` needs a [[federation]] entry");
                return Err(value("oidc.profile", rule));
            }
        }
        issuers.push(issuer);
    }
    Ok(issuers)
}

/// An issuer that nothing is asked of is a mistake, and so is a role of subjects that nobody vouches for.
pub(super) fn check_roles(
    issuers: &[OidcIssuer],
    roles: &[rights::Rule],
) -> Result<(), ConfigError> {
    let subjects = || roles.iter().flat_map(|rule| &rule.subjects);
    let named = |issuer: &str| {
        subjects().any(
            |subject| matches!(subject, rights::Subject::Oidc { issuer: of, .. } if of == issuer),
        )
    };
    if let Some(idle) = issuers.iter().find(|it| it.rules.is_empty() && !named(&it.issuer)) {
        let rule = "has no [[oidc.rule]] and no [[role]] names its subjects";
        return Err(value("oidc", format!("of `{}` {rule}", idle.issuer)));
    }
    for subject in subjects() {
        if let rights::Subject::Oidc { issuer, .. } = subject
            && !issuers.iter().any(|known| known.issuer == *issuer)
        {
            let rule = format!("names subjects of `{issuer}`, which has no [[oidc]] entry");
            return Err(value("role.subjects", rule));
        }
    }
    Ok(())
}

impl RawOidc {
    fn read(self, base: &Path) -> Result<OidcIssuer, ConfigError> {
        let url = |key: &str, text: &str| {
            let url = federation::url(text).map_err(|rule| value(key, format!("`{text}` {rule}")));
            url.and_then(|url: Uri| match url.query() {
                Some(_) if key == "oidc.issuer" => Err(value(key, "may have no query")),
                Some(_) | None => Ok(url),
            })
        };
        url("oidc.issuer", &self.issuer)?;
        fits("oidc.issuer", &self.issuer)?;
        fits("oidc.audience", &self.audience)?;
        let at = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let discovery = url("oidc.issuer", &at)?;
        let jwks_uri = self.jwks_uri.map(|text| url("oidc.jwks_uri", &text)).transpose()?;
        let web = toml::Value::String("https_web".to_owned());
        let ca = self.ca.map(|path| base.join(path));
        let server = federation::profile(self.profile.as_ref().unwrap_or(&web), ca, "oidc")?;
        let rules = self.rule.into_iter().map(RawRule::read).collect::<Result<_, _>>()?;
        let (issuer, audience) = (self.issuer, self.audience);
        Ok(OidcIssuer { issuer, audience, jwks_uri, discovery, server, rules })
    }
}

impl RawRule {
    fn read(self) -> Result<OidcRule, ConfigError> {
        fits("oidc.rule.subject", &self.subject)?;
        let subject = match self.subject.strip_suffix('*') {
            // Of a large provider that would be the whole world.
            Some("") => return Err(value("oidc.rule.subject", "may not be everybody")),
            Some(start) => Subject::Under(start.to_owned()),
            None => Subject::Exactly(self.subject),
        };
        let starred = match &subject {
            Subject::Exactly(text) | Subject::Under(text) => text.contains('*'),
        };
        if starred {
            return Err(value("oidc.rule.subject", "may have a `*` at its end alone"));
        }
        fits("oidc.rule.profile", &self.profile)?;
        Ok(OidcRule { subject, claims: self.claims, profile: self.profile })
    }
}

fn fits(key: &str, text: &str) -> Result<(), ConfigError> {
    if (1..=NAME_BYTES_MAX).contains(&text.len()) {
        return Ok(());
    }
    Err(value(key, format!("has to be a text of 1 to {NAME_BYTES_MAX} bytes")))
}
