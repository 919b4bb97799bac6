//! What must hold for every input, however strange.
//!
//! A body does not only wait for a panic: each states what its parser promises, in words of its own,
//! and stops where an input breaks the promise.

mod authority;
mod feed;
mod journal;
mod jwt;
mod policy;
mod procfs;
mod spiffe;

/// A target: what it is called and what it does.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// Every target. The folders of `tests/corpus` have the same names.
pub(crate) const TARGETS: [Target; 7] = [
    ("authority_mend", authority::mend),
    ("feed", feed::feed),
    ("journal", journal::journal),
    ("jwt", jwt::jwt),
    ("procfs", procfs::procfs),
    ("profile", policy::profile),
    ("spiffe_id", spiffe::spiffe_id),
];
