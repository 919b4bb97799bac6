//! The revocation feed: an opening, everything unless the follower was there before, then every
//! change, and a heartbeat in silence.
//!
//! Whoever reaches a door may follow. What is revoked is no secret, and a verifier that is not told
//! accepts what it should not. What is said is signed, so whoever passes it on can neither change it
//! nor leave anything out; `docs/feed.md` has the format.

pub mod chain;
pub mod follower;
pub mod hub;
pub mod snapshot;

use std::{fmt, sync::Arc};

use mayfly_core::Denial;
use mayfly_proto::mayfly::v1::{
    FollowRequest, FollowResponse, ReportRequest, ReportResponse,
    revocation_feed_server::RevocationFeed,
};
use tonic::{Request, Response, Status};

use self::{follower::Follower, hub::Hub};
use crate::{
    desk::Desk,
    guest::Guest,
    limits,
    quota::{Quota, Seat},
    status,
    visit::{Pulled, Speaker, pull},
    wire,
};

/// The service. Clones share everything.
#[derive(Clone)]
pub struct Feed {
    desk: Arc<dyn Desk>,
    hub: Arc<Hub>,
    followers: Arc<Quota>,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("followers", &self.followers).finish_non_exhaustive()
    }
}

impl Feed {
    /// A feed of what `desk` publishes.
    #[must_use]
    pub fn new(desk: Arc<dyn Desk>) -> Self {
        let followers = Quota::new(limits::CALLS_MAX, limits::CALLS_PER_USER_MAX);
        let hub = desk.feed();
        Self { desk, hub, followers }
    }

    fn admit<T>(&self, request: &Request<T>) -> Result<(Arc<Guest>, Seat), Status> {
        let guest = request.extensions().get::<Arc<Guest>>();
        let guest = Arc::clone(guest.ok_or_else(|| status::of(Denial::AttestationFailed))?);
        guest.check().map_err(status::of)?;
        let seat = self.followers.take(guest.user());
        Ok((guest, seat.ok_or_else(|| status::of(Denial::Overloaded))?))
    }
}

#[tonic::async_trait]
impl RevocationFeed for Feed {
    type FollowStream = Pulled<FollowResponse>;

    async fn follow(
        &self,
        request: Request<FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let (guest, seat) = self.admit(&request)?;
        let follower = self.hub.follow(request.into_inner()).map_err(status::of)?;
        Ok(Response::new(pull(Guided { guest, _seat: seat, follower })))
    }

    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReportResponse>, Status> {
        let (guest, _seat) = self.admit(&request)?;
        let report = wire::report(request.into_inner(), &guest)
            .map_err(|invalid| status::of_field(&invalid))?;
        self.desk.report(report).await.map_err(status::of)?;
        Ok(Response::new(ReportResponse {}))
    }
}

/// A follower that hears no more once its process or its door is gone.
struct Guided {
    guest: Arc<Guest>,
    _seat: Seat,
    follower: Follower,
}

impl Speaker for Guided {
    type Message = FollowResponse;

    async fn next(&mut self) -> Result<FollowResponse, Denial> {
        let guest = Arc::clone(&self.guest);
        tokio::select! {
            biased;
            denial = guest.gone() => Err(denial),
            message = self.follower.next() => message,
        }
    }
}
