//! The relying party's part of Mayfly: it refuses what has ended.
//!
//! A credential is only as dead as its verifiers know. Standard verifiers look at dates, so a stolen
//! certificate works until it expires; this library asks in addition whether the task that the
//! certificate belongs to is still going on, and it asks locally, without a call to anybody.
//!
//! - [`Follower`] keeps a [`View`] of the broker's status bitmaps, from a feed of snapshot, deltas and
//!   heartbeats. A gap leads to a new snapshot, never to a guess.
//! - [`Party`] is one side of mutual TLS: SPIFFE's rules, whom we talk to, and the view. It gives
//!   configurations for rustls 0.23, with session resumption off, and a stream of [`Incoming`]
//!   connections.
//! - [`Guarded`] wraps a live connection and cuts it when the news comes; [`CheckLayer`] checks each
//!   request over it, for tonic, axum and every other tower service. Both ask the connection's
//!   [`Standing`], which is the one definition of "may still be talked to".
//! - [`Actions`] say who may do what. An identity alone opens nothing: what no rule allows is denied.
//! - [`jwt::Verifier`] checks tokens, offline by view or status list or online at the broker, and binds
//!   them to the peer who shows them.
//! - [`oidc`] checks tokens of foreign issuers, by which pipelines begin tasks.
//! - [`Reporter`] tells the broker of credentials that are used although their time is over.
//! - [`WorkloadClient`] fetches and renews our own identities and the keys of others.
//!
//! Three things are to be decided, and none of them has a silent default: whom we mean ([`Authorize`]),
//! what each may do ([`Actions`]), and what to do when the feed is silent ([`Patience`], by [`Tier`] of
//! risk). Silence is never taken for "nobody has ended", and a view that has not heard its first
//! snapshot refuses everybody. What is refused is counted and logged by a stable code
//! (`docs/telemetry.md`).
//!
//! A service, as `examples/axum_mtls` has it whole:
//!
//! ```no_run
//! # async fn doc(clock: fn() -> mayfly_core::Timestamp) -> Result<(), Box<dyn std::error::Error>> {
//! use mayfly_core::SpiffeId;
//! use mayfly_verify::{
//!     Action, Actions, Authorize, CheckLayer, Endpoint, Follower, Party, Tier, Tiers,
//!     WorkloadClient,
//! };
//!
//! let endpoint = Endpoint::from_env()?;
//! let source = WorkloadClient::new(&endpoint).watch_x509();
//! let tiers = Tiers::default();
//! let follower = Follower::connect(&endpoint, tiers.together());
//!
//! let clients = || SpiffeId::parse("spiffe://example.org/client").map(Authorize::Profile);
//! let party = Party::new(source.held(), clients()?, follower.view().clone());
//! let actions = Actions::none()
//!     .allow(Action::grpc("shop.v1.Orders", "List"), clients()?)
//!     .allow_own_task(Action::any_method("/notes"), clients()?);
//! let checks = CheckLayer::new(actions).with_patience(tiers.of(Tier::High));
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:7443").await?;
//! let incoming = party.incoming(listener, clock);
//! // tonic::transport::Server::builder().layer(checks).serve_with_incoming(incoming)
//! # drop((checks, incoming)); Ok(())
//! # }
//! ```
//!
//! Where a certificate is of a federated trust domain, its bundle is used and no other. Our feed does
//! not speak of foreign tasks, so a foreign peer is believed until its certificate expires, or until its
//! bundle is withdrawn, which ends its live connections too. Who follows the broker over there as well,
//! by [`Remote`], refuses its ended tasks like our own ([`Party::with_foreign_view`]). [`Remote`] is also
//! the way to the feed for those who have no broker on their machine.
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
pub mod oidc;
mod patience;
mod peer;
pub mod reader;
mod refused;
mod remote;
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
pub use backoff::retry_hint;
pub use endpoint::{Endpoint, InvalidEndpoint, SOCKET_VARIABLE};
pub use follower::{FollowOptions, Follower, Trust};
pub use incoming::{Accepted, Incoming};
pub use jwk::{InvalidJwks, JwkSet, JwkSets};
pub use layer::{CheckLayer, Checked, CheckedFuture, Introduced};
pub use live::Guarded;
pub use patience::{Patience, Sight, Tier, Tiers};
pub use peer::{Peer, Standing};
pub use refused::Refused;
pub use remote::Remote;
pub use report::{Misuse, Reporter, Use};
pub use source::{Held, KeySource, X509Source};
pub use status_list::{ListError, STATUS_LIST_TYPE, StatusList, StatusLists, StatusReference};
pub use svid::{Bundle, PrivateKey, X509Context, X509Svid};
pub use tls::{Party, no_server_name, peer_serial};
pub use view::{Hole, View};
pub use workload::{JwtSvid, WorkloadClient, WorkloadError};
