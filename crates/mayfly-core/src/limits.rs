//! Every bound of the deciding part, with the relations that must hold between them.

use crate::time::Span;

/// SPIFFE-ID §2.3: implementations must support and should not exceed 2048 bytes.
pub const SPIFFE_ID_BYTES_MAX: usize = 2048;
/// SPIFFE-ID §2.1.
pub const TRUST_DOMAIN_BYTES_MAX: usize = 255;
/// Longest X.509-SVID or JWT-SVID life that a profile may ask for.
pub const CREDENTIAL_TTL_MAX: Span = Span::from_secs(24 * 3600);
/// Shortest credential life: certificates and tokens count in seconds, and renewal is shortly before half life.
pub const CREDENTIAL_TTL_MIN: Span = Span::from_secs(2);
/// X.509-SVID life where the profile is silent.
pub const X509_TTL_DEFAULT: Span = Span::from_secs(300);
/// JWT-SVID life where the profile is silent.
pub const JWT_TTL_DEFAULT: Span = Span::from_secs(120);
/// How far `notBefore` lies in the past, for verifiers whose clock is behind (SPIRE does the same).
pub const BACKDATE: Span = Span::from_secs(10);
/// Width of an expiry window: one status bitmap each, retired whole.
pub const WINDOW: Span = Span::from_secs(600);
/// How long after its last expiry a window's bitmap and its serials are remembered, for verifiers
/// whose clock is behind or which allow a minute's leeway.
pub const FORGET_AFTER: Span = Span::from_secs(120);
/// Slots in one window. A 24-bit index keeps one window's bitmap under 4 MiB at two bits a slot.
pub const SLOTS_PER_WINDOW_MAX: u32 = 1 << 24;
/// Changes in one batch of the feed. Whatever ends more at once is cheaper to tell as a snapshot.
pub const CHANGES_PER_BATCH_MAX: usize = 65_536;
/// Tasks in one shard, ended ones that are still remembered included.
pub const TASKS_MAX: usize = 2_000_000;
/// Credentials that are promised and not signed yet, at once. More than the disk and the signers have
/// under way at their best; whoever asks beyond that waits in order of need.
pub const SIGNING_MAX: usize = 512;
/// Asks that wait for their turn.
pub const ASKS_WAITING_MAX: usize = 16_384;
/// Those of them that are of one task.
pub const ASKS_WAITING_PER_TASK_MAX: usize = 64;
/// How long an ask waits for its turn. A full queue is worked off in it where 3,300 credentials are signed
/// a second.
pub const ASK_WAIT_MAX: Span = Span::from_secs(5);
/// How long before the end of what it holds a task is as needy as one that holds nothing. Whoever asked
/// before that has left the queue, in one way or the other, well before the end.
pub const RENEWAL_MARGIN: Span = Span::from_secs(10);
/// How long a certificate that was promised with a task's beginning waits for whoever it is for, at most.
pub const AHEAD_MAX: Span = Span::from_secs(10);
/// The part of its life for which it waits, where that is less: one sixteenth.
pub const AHEAD_SHARE: u64 = 16;
/// Records that wait for the disk.
pub const RECORDS_IN_FLIGHT_MAX: usize = 262_144;
/// Identities that one caller may hold at once; clients cap a response at 100.
pub const IDENTITIES_PER_CALLER_MAX: usize = 100;
/// Unexpired credentials of one task.
pub const CREDENTIALS_PER_TASK_MAX: usize = 100_000;
/// How deep a tree of tasks may be.
pub const DEPTH_MAX: u32 = 32;
/// Direct children of one task that live at the same time.
pub const CHILDREN_MAX: u32 = 10_000;
/// Longest life of a credential whose task is of the medium tier.
pub const TTL_MEDIUM_MAX: Span = Span::from_secs(3600);
/// Longest life of a credential whose task is of the high tier.
pub const TTL_HIGH_MAX: Span = Span::from_secs(300);
/// Names in one dimension of a scope.
pub const SCOPE_NAMES_MAX: usize = 64;
/// Longest name in a scope, in bytes.
pub const SCOPE_NAME_BYTES_MAX: usize = 256;
/// Attempts of a job for which nothing else was said.
pub const ATTEMPTS_DEFAULT: u32 = 3;
/// Attempts that a job may have.
pub const ATTEMPTS_MAX: u32 = 10_000;
/// Longest word of who and why, in bytes.
pub const AUTHOR_BYTES_MAX: usize = 1024;
/// Longest lease.
pub const LEASE_MAX: Span = Span::from_secs(24 * 3600);
/// Shortest lease that can be kept by a heartbeat.
pub const LEASE_MIN: Span = Span(100);
/// Longest intent text, in bytes.
pub const INTENT_BYTES_MAX: usize = 1024;
/// Longest owner name, in bytes.
pub const OWNER_BYTES_MAX: usize = 256;
/// Audiences in one JWT-SVID (the Rust client refuses more).
pub const AUDIENCES_MAX: usize = 32;
/// Longest single audience, in bytes.
pub const AUDIENCE_BYTES_MAX: usize = 1024;
/// Refusals that are written to the journal each second; a stranger who is refused more often than
/// that must not be able to fill the disk.
pub const REFUSALS_JOURNALED_PER_SECOND_MAX: u32 = 100;

/// Misuses of credentials that are written to the journal each second: reports are strangers' words.
pub const MISUSES_JOURNALED_PER_SECOND_MAX: u32 = 100;
/// Misuses that are remembered for a minute, so that each is testified once.
pub const SHOWINGS_REMEMBERED_MAX: usize = 4096;

const _: () = assert!(X509_TTL_DEFAULT.0 <= CREDENTIAL_TTL_MAX.0);
const _: () = assert!(JWT_TTL_DEFAULT.0 <= CREDENTIAL_TTL_MAX.0);
const _: () = assert!(CREDENTIAL_TTL_MIN.0 <= JWT_TTL_DEFAULT.0);
const _: () =
    assert!(TTL_HIGH_MAX.0 <= TTL_MEDIUM_MAX.0 && TTL_MEDIUM_MAX.0 <= CREDENTIAL_TTL_MAX.0);
const _: () = assert!(LEASE_MIN.0 < LEASE_MAX.0);
const _: () = assert!(BACKDATE.0 < FORGET_AFTER.0);
const _: () = assert!(IDENTITIES_PER_CALLER_MAX < SIGNING_MAX);
const _: () = assert!(SIGNING_MAX < ASKS_WAITING_MAX && ASKS_WAITING_MAX < RECORDS_IN_FLIGHT_MAX);
const _: () = assert!(ASKS_WAITING_PER_TASK_MAX < ASKS_WAITING_MAX / 100);
const _: () =
    assert!(2 * ASK_WAIT_MAX.0 <= RENEWAL_MARGIN.0 && RENEWAL_MARGIN.0 < X509_TTL_DEFAULT.0 / 2);
