//! The signing crate from outside, one file per noun.
#![expect(
    clippy::expect_used,
    clippy::unwrap_in_result,
    reason = "a test that cannot run should stop"
)]

mod common;
mod cost;
mod crl;
mod jwt;
mod keydir;
mod openssl;
mod publisher;
mod rotation;
mod status;
mod x509;
