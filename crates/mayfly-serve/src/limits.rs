//! Every bound of what strangers may ask of this process. Full is an answer (`Unavailable`), not a
//! wait.

use std::time::Duration;

use mayfly_core::Span;

/// Open connections over all sockets.
pub const CONNECTIONS_MAX: usize = 16_384;
/// Open connections of one user.
pub const CONNECTIONS_PER_USER_MAX: usize = 12_288;
/// Open connections over all ports.
pub const PORT_CONNECTIONS_MAX: usize = 4096;
/// Open connections of one host.
pub const PORT_CONNECTIONS_PER_HOST_MAX: usize = 1024;
/// Handshakes at one socket that go on at once. Others wait in the backlog.
pub const HANDSHAKES_MAX: usize = 256;
/// How long a handshake may take.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// HTTP/2 streams of one connection from elsewhere. A follower needs one. Few, so that one host cannot
/// take half of the seats that all callers from elsewhere share.
pub const STREAMS_PER_PORT_CONNECTION_MAX: u32 = 16;
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
/// The soonest that somebody is told to come again after being turned away for want of room.
pub const RETRY_MIN: Span = Span(500);
/// The latest. As long as a full queue may take.
pub const RETRY_MAX: Span = mayfly_core::limits::ASK_WAIT_MAX;
/// How often a call starts over because its task was amended while it ran.
pub const INTRODUCTIONS_MAX: usize = 3;
/// The shortest pause between two renewals of one stream, whatever lifetimes the desk hands out.
pub const RENEWAL_MIN: Duration = Duration::from_millis(500);
/// The longest nap of a stream that waits for its renewal: a clock that was set is noticed by then.
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
/// How old a heartbeat may be that several followers share.
pub const BEAT_AGE_MAX: Span = Span(100);
/// The longest time between two messages that a follower may ask for.
pub const PACE_MAX: Duration = Duration::from_mins(1);
/// What each follower that wants every change at once adds to the least time between two messages to
/// any of them: together they are sent 100,000 messages a second.
pub const PACE_PER_FOLLOWER: Duration = Duration::from_micros(10);
/// A follower's nonce.
pub const NONCE_BYTES_MIN: usize = 16;
/// A follower's nonce.
pub const NONCE_BYTES_MAX: usize = 64;
/// Bytes of batches that are kept for followers that were away: a minute of 100,000 ends a second.
pub const HISTORY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Batches that are kept for them: two minutes of 500 a second.
pub const HISTORY_BATCHES_MAX: usize = 65_536;
/// How long a batch is kept for them. Whoever was away for longer is told everything.
pub const HISTORY_FOR: Span = Span::from_secs(300);
/// How often the feed looks for windows that are over, where nobody comes to follow: a walk over all of them.
pub const FORGET_EACH: Span = Span::from_secs(60);
/// Bytes of batches in one message, unless one alone is larger.
pub const BATCHES_BYTES_MAX: usize = 1024 * 1024;
/// Longest name in a report.
pub const REPORT_NAME_BYTES_MAX: usize = 2048;
/// Bytes of bitmaps in one part of a snapshot.
pub const SNAPSHOT_PART_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Revocation lists in one answer about bundles, in bytes, all authorities together. Some 10,000 entries;
/// beyond that the lists cost every stream more than anybody gains by them.
pub const CRL_BYTES_MAX: usize = 512 * 1024;
/// The same beside certificates: some 300 entries. Each new task gets one such answer, no client in use
/// reads its lists, and where hundreds of tasks end a second they would be a hundred times its size.
pub const SVID_CRL_BYTES_MAX: usize = 16 * 1024;
/// Names in one request of an Envoy: more than anybody can hold.
pub const SECRETS_MAX: usize = 512;
/// Revocation lists that are sent to an Envoy, in bytes of DER, all authorities together. Some 170,000
/// entries, which is 500 ends a second at a lifetime of five minutes. Beyond that an Envoy is told to
/// trust nobody, because half a list looks exactly like a whole one.
pub const SECRET_CRL_BYTES_MAX: usize = 8 * 1024 * 1024;
/// One response to an Envoy. Unlike the clients of the Workload API it sets no bound of its own.
pub const SECRETS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Wishes in one batch.
pub const WISHES_MAX: usize = 1000;
/// Tasks on one page.
pub const PAGE_MAX: u32 = 1000;
/// Tasks on a page of which no size was said.
pub const PAGE_DEFAULT: u32 = 100;
/// Tasks on one page, in bytes, unless one alone is longer.
pub const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Longest idempotency key, in bytes.
pub const KEY_BYTES_MAX: usize = 128;
/// One request of an orchestrator or operator: a full batch whose wishes declare a good deal each.
pub const WISHES_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What is told in words of a refusal, in characters: it travels in a header.
pub const DETAIL_CHARS_MAX: usize = 1024;
/// What is kept of a text that a client sent for us to read.
pub const CLIENT_TEXT_CHARS_MAX: usize = 256;

/// One request of a pipeline: a few names.
pub const PIPELINE_REQUEST_BYTES_MAX: usize = 48 * 1024;
/// How long a pipeline's task lives without a renewal, where it does not say.
pub const PIPELINE_LEASE_DEFAULT: Span = Span::from_secs(60);
/// The shortest lease that a job elsewhere can keep.
pub const PIPELINE_LEASE_MIN: Span = Span::from_secs(5);
/// How long a pipeline's task lives at the longest, where it does not say.
pub const PIPELINE_DEADLINE_DEFAULT: Span = Span::from_secs(3600);
/// How long a pipeline's task may live.
pub const PIPELINE_DEADLINE_MAX: Span = Span::from_secs(24 * 3600);

const _: () = assert!(RETRY_MIN.0 < RETRY_MAX.0);
const _: () = assert!(BATCHES_BYTES_MAX < HISTORY_BYTES_MAX);
// A follower that is as slow as it may be is not taken for one that was away.
const _: () = assert!(PACE_MAX.as_millis() < HISTORY_FOR.0 as u128);
// The largest batch is all serials, 27 bytes each.
const _: () = assert!(mayfly_core::limits::CHANGES_PER_BATCH_MAX * 27 < RESPONSE_BYTES_MAX / 2);
const _: () = assert!(CONNECTIONS_PER_USER_MAX < CONNECTIONS_MAX);
const _: () = assert!(PORT_CONNECTIONS_PER_HOST_MAX < PORT_CONNECTIONS_MAX);
const _: () = assert!(
    PORT_CONNECTIONS_PER_HOST_MAX * (STREAMS_PER_PORT_CONNECTION_MAX as usize)
        < CALLS_PER_USER_MAX / 2
);
const _: () = assert!(CALLS_PER_USER_MAX < CALLS_MAX);
const _: () = assert!(REQUEST_BYTES_MAX > 3 * 64 * 1024);
const _: () = assert!(HEARTBEAT_MIN.as_millis() <= HEARTBEAT_DEFAULT.as_millis());
const _: () = assert!(HEARTBEAT_DEFAULT.as_millis() <= HEARTBEAT_MAX.as_millis());
const _: () = assert!(SVID_CRL_BYTES_MAX < CRL_BYTES_MAX && CRL_BYTES_MAX < RESPONSE_BYTES_MAX / 2);
// PEM is a good third longer than DER, and the bundles need room beside the lists.
const _: () = assert!(SECRET_CRL_BYTES_MAX / 2 * 3 + RESPONSE_BYTES_MAX <= SECRETS_BYTES_MAX);
const _: () = assert!(PAGE_DEFAULT <= PAGE_MAX && PAGE_BYTES_MAX < RESPONSE_BYTES_MAX);
