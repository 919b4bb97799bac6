//! The signing part of Mayfly: a grant goes in, an X.509-SVID or a JWT-SVID comes out.
//!
//! Nothing here decides. A [`Grant`](mayfly_core::Grant) is the core's permission to sign exactly one
//! credential, and [`x509::issue`] and [`jwt::issue`] use it up, so there is no way to sign something
//! that was not decided, and none to sign it twice. Nothing here reads a clock or waits: time is an
//! argument, and the only files are those of [`KeyRing`].
//!
//! Three things are worth knowing before reading on:
//!
//! - *Leaf certificates are written by hand, authorities and revocation lists by `rcgen`.* A leaf is
//!   a fixed form with five blanks, and filling it in costs a few percent on top of the signature,
//!   where the general way costs more than twice as much ([`x509`]). What makes that safe is
//!   [`lint`]: every certificate is parsed again by an independent parser and compared with its
//!   grant before it is released.
//! - *Rotation is a function of time.* [`KeyRing`] says when it wants to be called and what it did.
//!   A key is published before it signs, and stays published until the last credential that it
//!   signed has expired, so a rotation is never visible as a refusal.
//! - *What is told is on disk.* A ring that lives in a directory writes each step before it shows it.
#![forbid(unsafe_code)]

pub mod authority;
pub mod crl;
mod der;
pub mod error;
pub mod jwt;
mod keydir;
pub mod keyring;
pub mod keys;
pub mod lint;
pub mod orders;
pub mod publisher;
pub mod rotation;
pub mod seal;
pub mod shards;
pub mod signer;
pub mod status;
pub mod x509;

pub use authority::{JwtAuthority, X509Authority};
pub use crl::Reason;
pub use error::{KeyDirError, SignError};
pub use jwt::JwtSvid;
pub use keyring::{AuthorityView, KeyRing};
pub use keys::{KeyPool, LeafKey, PublicPoint};
pub use orders::{AuthorityOrder, OrderError};
pub use publisher::Publisher;
pub use rotation::{RotationPolicy, RotationStep, Standing};
pub use seal::Seal;
pub use signer::{PublicUrl, Signer};
pub use x509::{Certificate, X509Svid};
