//! What can go wrong: the grant does not fit the signer, the world failed, or the key directory is
//! not what it should be.

use std::{io, path::PathBuf};

use mayfly_core::{Kind, TrustDomain};

use crate::lint::Flaw;

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// A grant for a token was given to the certificate writer, or the other way round.
    #[error("the grant is for `{0:?}`")]
    WrongKind(Kind),
    /// The grant names an identity of somebody else's trust domain.
    #[error("the grant is for trust domain `{found}`, the signer's is `{ours}`")]
    WrongTrustDomain {
        /// The signer's.
        ours: TrustDomain,
        /// The grant's.
        found: TrustDomain,
    },
    /// The grant names the trust domain itself. Only an authority may carry that name (X509-SVID §3.1).
    #[error("the spiffe id `{0}` has no path")]
    NoPath(TrustDomain),
    /// A token for nobody is a token for everybody.
    #[error("the grant has no audience")]
    NoAudience,
    /// Clients refuse larger segments.
    #[error("the token's claims are `{0}` bytes long, clients accept `{max}`", max = crate::jwt::SEGMENT_BYTES_MAX)]
    TokenTooLarge(usize),
    /// The authority would not outlive the credential at all.
    #[error("the authority `{0}` has expired, or expires before the credential begins")]
    AuthorityExpired(String),
    /// X.509 cannot write the year.
    #[error("the time `{0}` ms is beyond the year 9999")]
    TimeOutOfRange(u64),
    /// A public key that is not an uncompressed point of P-256.
    #[error("the public key is not an uncompressed P-256 point: `{0}`")]
    InvalidPublicKey(&'static str),
    /// The read-back differs from the grant. It is we who are wrong, and nothing was released.
    #[error("the certificate was withheld")]
    Lint(#[from] Flaw),
    /// The cryptographic library refused, which for a sound key means no randomness.
    #[error("the cryptographic library failed to `{0}`")]
    Crypto(&'static str),
    /// `rcgen` could not write an authority's certificate or a revocation list.
    #[error("a certificate or revocation list could not be written")]
    Encode(#[from] rcgen::Error),
    /// The rotation policy contradicts itself.
    #[error("the rotation policy is unsound: {0}")]
    Policy(&'static str),
    /// A base URL that cannot stand in a certificate and a token as it is.
    #[error("the public url `{url}` is refused: {rule}")]
    PublicUrl {
        /// What was given.
        url: String,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The key directory.
    #[error(transparent)]
    KeyDir(#[from] KeyDirError),
}

/// Why a key directory is not used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyDirError {
    /// Others than the owner may read or write it.
    #[error(
        "`{path}` has mode `{mode:04o}`, wanted `{wanted:04o}`: run `chmod {wanted:o} {path}` if nobody else has read it"
    )]
    NotPrivate {
        /// Which file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they must be.
        wanted: u32,
    },
    /// It belongs to another user.
    #[error("`{path}` belongs to uid `{owner}`, this process runs as `{ours}`")]
    NotOurs {
        /// Which file or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are.
        ours: u32,
    },
    /// A link, a socket, a directory where a file should be, or the other way round.
    #[error("`{path}` is not a plain `{wanted}`")]
    WrongType {
        /// Where.
        path: PathBuf,
        /// What should be there.
        wanted: &'static str,
    },
    /// The state names a key that is not there.
    #[error("`{0}` is missing")]
    Missing(PathBuf),
    /// A private key that does not belong to what is written beside it.
    #[error("the key in `{path}` does not belong to authority `{key_id}`")]
    KeyMismatch {
        /// The key file.
        path: PathBuf,
        /// The authority it was written for.
        key_id: String,
    },
    /// Keys of another trust domain.
    #[error("`{path}` is for trust domain `{found}`, wanted `{wanted}`")]
    OtherTrustDomain {
        /// Where.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        wanted: TrustDomain,
    },
    /// It cannot be understood.
    #[error("`{path}` cannot be understood: {rule}")]
    Garbage {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        rule: String,
    },
    /// Written by a later Mayfly.
    #[error("`{path}` has format `{found}`, this version knows up to `{known}`")]
    FutureFormat {
        /// Where.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest that we know.
        known: u64,
    },
    /// The disk.
    #[error("`{path}` could not be read or written")]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
