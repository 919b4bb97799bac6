//! Speaks: the SPIFFE Workload API and Mayfly's own services, over gRPC on unix sockets.
//!
//! This crate parses the bytes of strangers, so it holds nothing worth stealing: it cannot name a
//! signing key or a database, and asks a [`Desk`] for everything it hands out. What it does itself is
//! to know who asks. The kernel names a caller before its first byte is read ([`Doors`]), every call
//! looks at the caller anew ([`Eyes`]), and every answer is preceded by one more glance at whether the
//! caller still lives.
//!
//! Streams carry the state and never a difference, and they are pulled: a message is made when the
//! client has room for it, so that a slow reader gets the latest state and costs no queue. They end
//! with `PermissionDenied` when the task has ended and with `Unavailable` when the daemon stops, because
//! those are the two endings that every shipped SPIFFE client survives in the way that is meant
//! ([`status`]).
//!
//! Stock Python and Java clients put a socket path into `:authority`, which h2 refuses; [`authority`]
//! mends that on the way in.
//!
//! Read [`workload`] next, then `svids` and `visit` for the streams, `doors` and `listen` for sockets and
//! ports.
#![forbid(unsafe_code)]

pub mod asking;
#[doc(hidden)]
pub mod authority;
mod bearer;
pub mod broker_api;
mod connection;
pub mod desk;
pub mod doors;
pub mod feed;
pub mod guest;
pub mod http;
pub mod limits;
pub mod listen;
pub mod office;
pub mod operator;
mod pem;
pub mod quota;
pub mod sds;
pub mod services;
pub mod status;
mod story;
mod svids;
pub mod tasks;
mod view;
mod visit;
mod wallet;
mod wire;
pub mod workload;

pub use broker_api::{Allowance, BrokerApi, Brokers};
pub use connection::Mended;
pub use desk::{Bundles, Clock, Desk, Introduced, JwtSvid, Reply, Validated, X509Svid};
pub use doors::{Doors, Manner, Octets, Secure, Secured, Securing};
pub use feed::Feed;
pub use guest::{Eyes, Guest, LocalEyes};
pub use listen::{ListenError, Listener, Port};
pub use sds::Sds;
pub use services::Services;
pub use workload::Workload;
