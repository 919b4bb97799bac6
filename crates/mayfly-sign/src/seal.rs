//! The seal of the revocation feed: what the broker vouches for besides credentials.
//!
//! It is made with the key that signs tokens, because whoever verifies has that key already and follows
//! its rotation. A label of its own goes before what is signed, so that nothing that was sealed can be
//! shown as a token, and no token as a seal.

use mayfly_core::batch::SEAL_LABEL;

use crate::{error::SignError, signer::Signer};

/// A signature over a head of the feed, and whose it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seal {
    /// The key's name, as in the trust domain's JWK Set.
    pub kid: String,
    /// ES256: r and s, 32 octets each.
    pub signature: Vec<u8>,
}

impl Signer {
    /// Seals a head of the revocation feed, as it will travel.
    ///
    /// # Errors
    /// [`SignError::Crypto`] if there is no randomness.
    pub fn seal(&self, head: &[u8]) -> Result<Seal, SignError> {
        let jwt = self.jwt();
        let signature = jwt.key().sign(&[SEAL_LABEL, head].concat())?;
        Ok(Seal { kid: jwt.key_id().to_owned(), signature: signature.as_ref().to_vec() })
    }
}
