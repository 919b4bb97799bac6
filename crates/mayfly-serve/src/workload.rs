//! The SPIFFE Workload API.
//!
//! Every method goes the same way: the metadata is checked before anything else ([`only_spiffe`]), the
//! arguments before the caller, the caller before the desk is asked.

use std::{fmt, sync::Arc};

use mayfly_core::Denial;
use mayfly_proto::spiffe::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse, WitsvidRequest,
    WitsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
    spiffe_workload_api_server::SpiffeWorkloadApi,
};
use tonic::{Request, Response, Status};

use crate::{
    desk::{Clock, Desk},
    guest::{Eyes, Guest},
    limits,
    quota::Quota,
    status,
    svids::{BundleStream, SvidStream, tokens},
    visit::{House, Pulled, Visit, pull},
    wire,
};

/// The header of the standard, and the only value that it may have.
const HEADER: (&str, &str) = ("workload.spiffe.io", "true");

/// Lets a request pass that carries `workload.spiffe.io: true` exactly once. Server-side request forgery
/// can make a victim connect, but hardly send this (Workload Endpoint §3).
///
/// # Errors
/// `InvalidArgument` for any other.
pub fn only_spiffe(request: Request<()>) -> Result<Request<()>, Status> {
    if says_once(&request, HEADER) { Ok(request) } else { Err(status::header_missing()) }
}

/// Whether a request carries a header exactly once and with exactly this value.
pub(crate) fn says_once(request: &Request<()>, (name, value): (&str, &str)) -> bool {
    let mut values = request.metadata().get_all(name).iter();
    let is_said = values.next().is_some_and(|said| said.as_bytes() == value.as_bytes());
    is_said && values.next().is_none()
}

/// The service. Clones share everything.
#[derive(Clone)]
pub struct Workload {
    house: House,
    calls: Arc<Quota>,
}

impl fmt::Debug for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workload").field("calls", &self.calls).finish_non_exhaustive()
    }
}

impl Workload {
    /// A service that looks with `eyes` and asks `desk`.
    #[must_use]
    pub fn new(desk: Arc<dyn Desk>, eyes: Arc<dyn Eyes>, clock: Clock) -> Self {
        let calls = Quota::new(limits::CALLS_MAX, limits::CALLS_PER_USER_MAX);
        Self { house: House { desk, eyes, clock }, calls }
    }

    /// Begins a call.
    pub(crate) fn visit<T>(&self, request: &Request<T>) -> Result<Visit, Status> {
        // Absent only if somebody serves this over another listener than ours.
        let guest = request.extensions().get::<Arc<Guest>>();
        let guest = guest.ok_or_else(|| status::of(Denial::AttestationFailed))?;
        guest.check().map_err(status::of)?;
        let seat = self.calls.take(guest.user());
        let seat = seat.ok_or_else(|| status::of(Denial::Overloaded))?;
        Ok(Visit::new(self.house.clone(), Arc::clone(guest), seat))
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Workload {
    type FetchX509SVIDStream = Pulled<X509svidResponse>;
    type FetchX509BundlesStream = Pulled<X509BundlesResponse>;
    type FetchJWTBundlesStream = Pulled<JwtBundlesResponse>;
    type FetchWITSVIDStream = Pulled<WitsvidResponse>;
    type FetchWITBundlesStream = Pulled<WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        Ok(Response::new(pull(SvidStream::new(self.visit(&request)?))))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let visit = self.visit(&request)?;
        Ok(Response::new(pull(BundleStream::new(visit, wire::x509_bundles))))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let visit = self.visit(&request)?;
        let asked = request.into_inner();
        let wanted = wire::wanted_id(&asked.spiffe_id).map_err(|rule| status::of_field(&rule))?;
        let audience = wire::audience(asked.audience).map_err(status::of)?;
        tokens(&visit, audience, wanted).await.map(Response::new).map_err(status::of)
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let visit = self.visit(&request)?;
        Ok(Response::new(pull(BundleStream::new(visit, wire::jwt_bundles))))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let visit = self.visit(&request)?;
        let asked = request.into_inner();
        let mut audience = wire::audience(vec![asked.audience]).map_err(status::of)?;
        let audience = audience.pop().unwrap_or_default();
        if asked.svid.is_empty() {
            return Err(status::of_token(Denial::TokenInvalid));
        }
        let who = visit.introduce().await.map_err(status::of)?;
        let validated = visit.desk().validate(who, audience, asked.svid).await;
        visit.check().map_err(status::of)?;
        Ok(Response::new(wire::validated(validated.map_err(status::of_token)?)))
    }

    async fn fetch_witsvid(
        &self,
        _: Request<WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(status::unimplemented())
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(status::unimplemented())
    }
}
