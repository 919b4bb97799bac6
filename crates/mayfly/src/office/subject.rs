//! Subjects of tokens: who vouches for them, and whether this one is genuine, in date and meant for us.

use mayfly_core::{Denial, Principal};
use mayfly_serve::{asking::Bearer, office::Refusal};
use mayfly_verify::oidc::Unverified;

use super::{LocalOffice, refusal};

/// Longest subject of a token that has a role.
const SUBJECT_BYTES_MAX: usize = 512;

impl LocalOffice {
    /// Whom a token is about. It may be shown again until it expires, like a ticket and unlike one that
    /// begins a pipeline's task: what it is good for is each time what `[[role]]` lets its subject do.
    pub(super) async fn recognise(&self, token: &str) -> Result<Bearer, Refusal> {
        let invalid = || refusal(Denial::OidcTokenInvalid, "");
        let token = Unverified::read(token).map_err(|invalid_token| {
            tracing::info!(why = %invalid_token, "a token is refused");
            invalid()
        })?;
        let issuers = self.0.issuers.get().map_or(&[][..], Vec::as_slice);
        let issuer = issuers.iter().find(|issuer| issuer.config().issuer == token.issuer());
        let issuer = issuer.ok_or_else(invalid)?;
        let now = (self.0.clock)();
        let assertion = issuer.believe(token, now).await.map_err(|(denial, why)| {
            let why = why.map(|why| why.to_string()).unwrap_or_default();
            tracing::info!(issuer = issuer.config().issuer, why, "a token is refused");
            refusal(denial, "")
        })?;
        // It is written down wherever its subject does something.
        let fits = assertion.subject.len() <= SUBJECT_BYTES_MAX
            && !assertion.subject.chars().any(char::is_control);
        if !fits {
            return Err(invalid());
        }
        let lasts = assertion.forget_after.since((self.0.clock)());
        let (issuer, subject) = (assertion.issuer, assertion.subject);
        Ok(Bearer { principal: Principal::Oidc { issuer, subject }, lasts })
    }
}
