//! Bounds of a profile file. Those of a credential are in [`mayfly_core::limits`].

use mayfly_core::{Span, limits};

/// Longest profile file, in bytes.
pub const FILE_BYTES_MAX: usize = 4 << 20;
/// Profiles in one file.
pub const PROFILES_MAX: usize = 10_000;
/// Problems that are told one by one; the rest is counted.
pub const PROBLEMS_MAX: usize = 100;
/// Longest profile name, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Selectors of one profile.
pub const SELECTORS_MAX: usize = 64;
/// Longest selector, in bytes: a kind and a path of the longest kind that Linux has.
pub const SELECTOR_BYTES_MAX: usize = 4096 + 64;
/// Longest hint, in bytes (SPIFFE Workload API §8).
pub const HINT_BYTES_MAX: usize = 1024;
/// Foreign trust domains of one profile. Clients take 200 bundles in one message.
pub const FEDERATES_MAX: usize = 128;
/// Profiles that the tasks of one profile may delegate to by name.
pub const DELEGATES_MAX: usize = 1024;
/// Attempts of one job.
pub const ATTEMPTS_MAX: u32 = 1_000_000;
/// Owners that are listed beside those of profiles, and transfers from one to another.
pub const OWNERS_MAX: usize = 10_000;
/// Longest cap on a task's life that can be written; leave the cap out for none.
pub const TASK_TTL_MAX: Span = Span::from_secs(366 * 24 * 3600);
/// Shortest cap: a task that lives for less could never hold a credential.
pub const TASK_TTL_MIN: Span = limits::CREDENTIAL_TTL_MIN;

const _: () = assert!(TASK_TTL_MIN.0 <= TASK_TTL_MAX.0);
const _: () = assert!(limits::CREDENTIAL_TTL_MAX.0 <= TASK_TTL_MAX.0);
