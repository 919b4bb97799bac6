//! The feed's seal: `serve` says what is to be signed, and the keys are here.

use std::sync::Arc;

use bytes::Bytes;
use mayfly_core::TrustDomain;
use mayfly_serve::{
    desk::Bundles,
    feed::hub::{Seal, Signature},
};
use tokio::sync::watch;

use crate::signers::Keys;

/// Signs heads of the feed with the key that signs tokens.
#[derive(Debug)]
pub struct FeedSeal {
    /// The keys in use.
    pub keys: Arc<Keys>,
    /// What is published of them.
    pub bundles: watch::Receiver<Arc<Bundles>>,
    /// Whose feed it is.
    pub trust_domain: TrustDomain,
}

impl Seal for FeedSeal {
    fn kid(&self) -> String {
        self.keys.signer().jwt().key_id().to_owned()
    }

    fn seal(&self, head: &[u8]) -> Option<Signature> {
        let sealed = self.keys.signer().seal(head);
        let sealed = sealed.inspect_err(|error| tracing::error!(%error, "the feed is not sealed"));
        sealed.ok().map(|seal| Signature { kid: seal.kid, bytes: seal.signature })
    }

    fn jwks(&self) -> Bytes {
        self.bundles.borrow().jwt.get(&self.trust_domain).cloned().unwrap_or_default()
    }
}
