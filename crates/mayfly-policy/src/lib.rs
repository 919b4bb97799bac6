//! The judge: which identities does this evidence earn, and on whose word?
//!
//! An operator writes profiles into a file. [`Profiles::parse`] reads it once and either accepts the
//! whole file or names everything that is wrong with it, line by line; a broker with half of its
//! profiles would hand out half of the identities and look healthy. What is accepted is a value that
//! does not change: [`Profiles::judge`] looks at [`Evidence`](mayfly_core::Evidence) and nothing
//! else, so it can run on any thread, as often as it likes, and be right about the edition of the
//! profiles that its [`Verdict`](mayfly_core::Verdict) names.
//!
//! A profile matches if *all* of its selectors are among the evidence. There is no negation and no
//! wildcard, which is what makes the law below true by construction rather than by care:
//!
//! **P8.** Silence is No, and less evidence never grants more. An attestor that fails halfway can
//! only take identities away.
//!
//! A No has to be explainable, or people widen selectors until it stops: [`Profiles::explain`] lists
//! the profiles nearest to the evidence, with the selectors that were missing and what the caller
//! had in their place.
//!
//! The rules of a profile are all the policy there is so far. Cedar will judge beside them, behind
//! the same two types.
#![forbid(unsafe_code)]

mod diff;
pub mod duration;
mod explain;
mod field;
mod file;
mod invalid;
pub mod limits;
pub mod own;
mod owners;
mod profiles;
pub mod rights;

pub use diff::Difference;
pub use explain::{Explanation, Missing};
pub use invalid::{InvalidProfiles, Problem};
pub use profiles::{Profile, Profiles};
pub use rights::{Rights, Role};
