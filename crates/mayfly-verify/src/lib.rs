//! The relying party's part of Mayfly: it refuses what has ended.
//!
//! A credential is only as dead as its verifiers know. Standard verifiers look at dates, so a stolen
//! certificate works until it expires; this library asks in addition whether the task that the
//! certificate belongs to is still going on, and it asks locally, without a call to anybody.
//!
//! - [`Follower`] keeps a [`View`] of the broker's status bitmaps, from a feed of snapshot, deltas and
//!   heartbeats. A gap leads to a new snapshot, never to a guess.
//! - [`Party`] is one side of mutual TLS: SPIFFE's rules, whom we talk to, and the view. It gives
//!   configurations for rustls 0.23, with session resumption off.
//! - [`Guarded`] wraps a live connection and cuts it when the news comes.
//! - [`jwt::validate`] checks tokens offline; [`View::admit`] then says whether the task goes on.
//! - [`WorkloadClient`] fetches and renews our own identities from the Workload API.
//!
//! The one thing to decide is [`Patience`]: what to do when the feed is silent. Silence is never taken
//! for "nobody has ended", and a view that has not heard its first snapshot refuses everybody.
//!
//! ```no_run
//! # async fn doc() -> Result<(), Box<dyn std::error::Error>> {
//! use mayfly_verify::{Authorize, Endpoint, Follower, Party, Patience, WorkloadClient};
//!
//! let endpoint = Endpoint::from_env()?;
//! let source = WorkloadClient::new(&endpoint).watch_x509();
//! let follower = Follower::connect(&endpoint, Patience::default());
//! let party = Party::new(source.held(), Authorize::Any, follower.view().clone());
//! let server_config = party.server_config()?;
//! # drop(server_config); Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod actions;
mod answer;
mod authorize;
mod backoff;
mod endpoint;
mod follower;
mod handshake;
mod incoming;
mod jwk;
pub mod jwt;
mod layer;
mod live;
mod patience;
mod peer;
pub mod reader;
mod refused;
mod report;
mod source;
mod status_list;
mod svid;
mod telemetry;
mod tls;
mod view;
mod workload;
pub mod x509;

pub use actions::{Action, Actions};
pub use answer::{LiveBody, REFUSED_HEADER};
pub use authorize::{Authorize, task_of};
pub use endpoint::{Endpoint, InvalidEndpoint, SOCKET_VARIABLE};
pub use follower::{FollowOptions, Follower, Trust};
pub use incoming::{Accepted, Incoming};
pub use jwk::{InvalidJwks, JwkSet, JwkSets};
pub use layer::{CheckLayer, Checked, CheckedFuture, Introduced};
pub use live::Guarded;
pub use patience::{Patience, Sight, Tier, Tiers};
pub use peer::{Peer, Standing};
pub use refused::Refused;
pub use report::{Misuse, Reporter, Use};
pub use source::{Held, KeySource, X509Source};
pub use status_list::{ListError, STATUS_LIST_TYPE, StatusList, StatusLists, StatusReference};
pub use svid::{Bundle, PrivateKey, X509Context, X509Svid};
pub use tls::{Party, no_server_name, peer_serial};
pub use view::{Hole, View};
pub use workload::{JwtSvid, WorkloadClient, WorkloadError};
