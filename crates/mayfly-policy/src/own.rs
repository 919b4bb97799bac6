//! The one profile that no file can define: the broker's own.
//!
//! It stands in no edition, so no caller is ever judged to have it, whatever process it is. The broker
//! alone brings these terms along when it meets itself.

use mayfly_core::{Binding, Bounds, Span, Terms, TrustDomain};

/// The profile's name.
pub const PROFILE: &str = "mayfly";
/// The SPIFFE ID's path. Stable, because it is what others know the broker by.
pub const PATH: &str = "/mayfly/broker";
/// Who answers for it.
pub const OWNER: &str = "mayfly";

/// What the broker grants to itself: certificates of `ttl`, and the bundles of `federates_with`.
#[must_use]
pub fn terms(ttl: Span, federates_with: Vec<TrustDomain>) -> Terms {
    Terms {
        profile: PROFILE.to_owned(),
        path: PATH.to_owned(),
        owner: OWNER.to_owned(),
        binding: Binding::Process,
        stable_identity: true,
        x509_ttl: ttl,
        jwt_ttl: ttl,
        task_ttl: None,
        hint: String::new(),
        federates_with,
        bounds: Bounds::default(),
    }
}
