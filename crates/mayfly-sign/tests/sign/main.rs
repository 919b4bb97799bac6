//! The signing crate from outside, one file per noun.
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

mod common;
mod jwt;
mod x509;
