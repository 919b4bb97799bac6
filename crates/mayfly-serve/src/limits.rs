//! Every bound of what strangers may ask of this process. Full is an answer (`Unavailable`), not a
//! wait.

use std::time::Duration;

/// Open connections over all sockets.
pub const CONNECTIONS_MAX: usize = 16_384;
/// Open connections of one user.
pub const CONNECTIONS_PER_USER_MAX: usize = 12_288;
/// Open connections over all ports.
pub const PORT_CONNECTIONS_MAX: usize = 4096;
/// Open connections of one host.
pub const PORT_CONNECTIONS_PER_HOST_MAX: usize = 1024;
/// How long a handshake may take.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// HTTP/2 streams of one connection from elsewhere. A follower needs one.
pub const STREAMS_PER_PORT_CONNECTION_MAX: u32 = 64;
/// How often a caller from elsewhere is asked whether it is there, and how long it may take to answer.
pub const PORT_KEEPALIVE: Duration = Duration::from_secs(20);
/// See [`PORT_KEEPALIVE`].
pub const PORT_KEEPALIVE_ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long a connection may last on which documents are fetched, however slowly.
pub const PAGES_CONNECTION_MAX: Duration = Duration::from_mins(5);
/// Calls and streams in progress over all sockets.
pub const CALLS_MAX: usize = 65_536;
/// Calls and streams in progress of one user.
pub const CALLS_PER_USER_MAX: usize = 49_152;
/// HTTP/2 streams of one connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 1024;
/// Bytes of metadata in one request, as HTTP/2 counts them. More is answered 431 and not kept.
pub const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// One request message. The largest honest one is a token to be validated.
pub const REQUEST_BYTES_MAX: usize = 256 * 1024;
/// One response message: clients refuse more than 4 MiB.
pub const RESPONSE_BYTES_MAX: usize = 4 * 1024 * 1024 - 1;
/// Trust domains in one response, the caller's own included (the Rust client refuses more).
pub const TRUST_DOMAINS_PER_RESPONSE_MAX: usize = 200;
/// A hint that clients accept.
pub const HINT_BYTES_MAX: usize = 1024;
/// How often a call starts over because its task was amended while it ran.
pub const INTRODUCTIONS_MAX: usize = 3;
/// The shortest pause between two renewals of one stream, whatever lifetimes the desk hands out.
pub const RENEWAL_MIN: Duration = Duration::from_millis(500);
/// The longest nap of a stream that waits for half life: a clock that was set is noticed by then.
pub const NAP_MAX: Duration = Duration::from_mins(1);
/// How long a new connection may be silent. An honest client speaks first, and at once.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How long a socket that closes waits for its streams to end.
pub const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Callers that the kernel lets wait at a socket.
pub const BACKLOG: u32 = 1024;
/// The pause after the kernel had no descriptor left for a new connection.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Silence on the feed before a heartbeat, where the follower does not say.
pub const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(1);
/// The shortest silence that a follower may ask for.
pub const HEARTBEAT_MIN: Duration = Duration::from_millis(100);
/// The longest silence that a follower may ask for.
pub const HEARTBEAT_MAX: Duration = Duration::from_mins(1);
/// Changes put together into one message for a slow follower.
pub const CHANGES_PER_DELTA_MAX: usize = 65_536;
/// Bytes of bitmaps in one part of a snapshot.
pub const SNAPSHOT_PART_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Revocation lists in one answer of the Workload API, in bytes, all authorities together. Some 10,000
/// entries; beyond that the lists cost every stream more than anybody gains by them.
pub const CRL_BYTES_MAX: usize = 512 * 1024;

const _: () = assert!(CONNECTIONS_PER_USER_MAX < CONNECTIONS_MAX);
const _: () = assert!(PORT_CONNECTIONS_PER_HOST_MAX < PORT_CONNECTIONS_MAX);
const _: () = assert!(CALLS_PER_USER_MAX < CALLS_MAX);
const _: () = assert!(REQUEST_BYTES_MAX > 3 * 64 * 1024);
const _: () = assert!(HEARTBEAT_MIN.as_millis() <= HEARTBEAT_DEFAULT.as_millis());
const _: () = assert!(HEARTBEAT_DEFAULT.as_millis() <= HEARTBEAT_MAX.as_millis());
const _: () = assert!(CRL_BYTES_MAX < RESPONSE_BYTES_MAX / 2);
