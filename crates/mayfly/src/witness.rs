//! What the HTTP doors ask of the broker for each request: who somebody is, whether a token stands,
//! whether credentials are issued, and how much of everything there is.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use mayfly_core::{Claim, Denial, Event, Serial, Showing, SpiffeId, Status, TrustDomain};
use mayfly_serve::{
    Reply,
    desk::Bundles,
    feed::hub::Hub,
    http::{Caller, Presented, Witness},
};
use mayfly_verify::{JwkSet, JwkSets, jwt};
use serde_json::{Map, Value};
use tokio::sync::watch;

use crate::{clock::Clock, desk, driver::Inbox, measures};

/// See the module.
#[derive(Clone)]
pub struct LocalWitness {
    inbox: Inbox,
    bundles: watch::Receiver<Arc<Bundles>>,
    feed: Arc<Hub>,
    clock: Clock,
    own: TrustDomain,
    /// What a caller's own token has to name as its audience: any one of them.
    audiences: Vec<String>,
}

impl std::fmt::Debug for LocalWitness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalWitness").field("own", &self.own).finish_non_exhaustive()
    }
}

impl LocalWitness {
    /// A witness beside the driver behind `inbox`. Callers' tokens are for the broker if they name its
    /// SPIFFE ID or its public URL.
    #[must_use]
    pub fn new(
        (inbox, clock): (Inbox, Clock),
        (bundles, feed): (watch::Receiver<Arc<Bundles>>, Arc<Hub>),
        own: TrustDomain,
        public_url: Option<&str>,
    ) -> Self {
        let id = format!("{}{}", own.uri(), mayfly_policy::own::PATH);
        let url = public_url.map(|url| url.trim_end_matches('/').to_owned());
        let audiences = [id].into_iter().chain(url).collect();
        Self { inbox, bundles, feed, clock, own, audiences }
    }

    /// Whether a certificate that was good at its handshake still is.
    async fn certificate(&self, presented: Presented) -> Result<SpiffeId, Denial> {
        if *presented.spiffe_id.trust_domain() != self.own {
            return Err(Denial::NoIdentity);
        }
        if let Some(serial) = presented.serial {
            let status = self.inbox.read(move |r| r.revocations().status(&serial)).await?;
            if status != Status::Valid {
                return Err(Denial::CredentialRevoked);
            }
        }
        Ok(presented.spiffe_id)
    }

    async fn bearer(&self, token: &str) -> Result<SpiffeId, Denial> {
        let (keys, now) = (self.keys(), (self.clock)());
        let valid = |audience: &String| jwt::validate(token, audience, &keys, now).ok();
        let claims = self.audiences.iter().find_map(valid).ok_or(Denial::TokenInvalid)?;
        self.standing(&claims).await?;
        Ok(claims.id)
    }

    /// A token's audience is not known to whoever introspects it, so the token's own first one is asked
    /// for; all else about it is checked as strictly as ever.
    async fn check(&self, who: SpiffeId, token: &str) -> Result<Map<String, Value>, Denial> {
        let audience = first_audience(token).ok_or(Denial::TokenInvalid)?;
        let claims = jwt::validate(token, &audience, &self.keys(), (self.clock)());
        let claims = claims.map_err(|_invalid| Denial::TokenInvalid)?;
        if let Err(denial) = self.standing(&claims).await {
            self.report_use(&who, claims.serial).await;
            return Err(denial);
        }
        Ok(claims.map)
    }

    /// Only our own tokens: of what others have ended, nobody here knows.
    async fn standing(&self, claims: &jwt::Claims) -> Result<(), Denial> {
        if *claims.id.trust_domain() != self.own {
            return Err(Denial::TokenInvalid);
        }
        let (task, serial) = desk::task_and_serial(claims).ok_or(Denial::TokenInvalid)?;
        self.inbox.read(move |registrar| registrar.standing(task, &serial).map(|_| ())).await?
    }

    /// A token that is genuine and in date, and over: whoever asks about it was shown it by somebody.
    async fn report_use(&self, who: &SpiffeId, serial: Option<Serial>) {
        let (claim, presenter) = (Claim::NotToBeUsed, String::new());
        let showing = Showing { serial, claim, presenter, verifier: who.to_string() };
        self.inbox.tell(Event::Shown(showing)).await;
    }

    fn keys(&self) -> JwkSets {
        let bundles = self.bundles.borrow();
        let mut keys = JwkSets::default();
        let own = bundles.jwt.get(&self.own);
        if let Some(set) = own.and_then(|json| JwkSet::parse(json).ok()) {
            keys.insert(self.own.clone(), set);
        }
        keys
    }
}

impl Witness for LocalWitness {
    fn caller(&self, caller: Caller) -> Reply<SpiffeId> {
        let witness = self.clone();
        Box::pin(async move {
            match caller {
                Caller::Svid(presented) => witness.certificate(presented).await,
                Caller::Bearer(token) => witness.bearer(&token).await,
            }
        })
    }

    fn introspect(&self, who: SpiffeId, token: String) -> Reply<Option<Map<String, Value>>> {
        let witness = self.clone();
        Box::pin(async move {
            match witness.check(who, &token).await {
                Ok(claims) => Ok(Some(claims)),
                // That nobody can say at present is no answer about the token.
                Err(denial @ (Denial::NotServing | Denial::Overloaded)) => Err(denial),
                Err(_over) => Ok(None),
            }
        })
    }

    fn ready(&self) -> Reply<()> {
        let inbox = self.inbox.clone();
        Box::pin(async move {
            let halted = inbox.read(mayfly_core::Registrar::is_halted).await?;
            if halted { Err(Denial::JournalFailed) } else { Ok(()) }
        })
    }

    fn metrics(&self) -> Reply<String> {
        let (inbox, feed) = (self.inbox.clone(), Arc::clone(&self.feed));
        Box::pin(async move {
            let mut census = inbox.read(measures::Census::of).await?;
            census.followers = feed.followers() as u64;
            Ok(measures::render(&census))
        })
    }
}

/// The first audience that a token claims, believed by nobody yet.
fn first_audience(token: &str) -> Option<String> {
    let payload = token.split('.').nth(1).filter(|part| part.len() <= jwt::SEGMENT_BYTES_MAX)?;
    let claims = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    let audience = claims.get("aud")?;
    let first = audience.as_array().map_or(Some(audience), |list| list.first())?;
    first.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audience_is_read_off_whatever_claims_to_be_a_token() {
        let token = |claims: &str| format!("h.{}.s", BASE64_URL_SAFE_NO_PAD.encode(claims));
        for (claims, wanted) in [
            (r#"{"aud":["a","b"]}"#, Some("a")),
            (r#"{"aud":"a"}"#, Some("a")),
            (r#"{"aud":[]}"#, None),
            (r#"{"aud":7}"#, None),
            ("[]", None),
            ("", None),
        ] {
            assert_eq!(first_audience(&token(claims)).as_deref(), wanted, "{claims}");
        }
        assert_eq!(first_audience("no token at all"), None);
    }
}
