//! The SPIFFE Broker API: credentials for workloads that somebody else names.
//!
//! A broker is a program that starts workloads or stands in front of them and gets their credentials for
//! them. It shows an X.509-SVID in the handshake, its operator has listed it by that name, and the list
//! says in which words it may refer to workloads ([`Brokers`]). What it says of a workload is a name and
//! nothing more: a process is looked at by our own eyes, a task is looked up in our own ledger.
//!
//! From there on everything is as if the workload had asked, with two differences. A stream lasts for as
//! long as the *workload* is there, and ends alone: the connection carries the streams of others. And
//! how it ends tells the broker what became of the workload: `NotFound` when it has finished,
//! `PermissionDenied` when it lives and has lost its rights, `Unavailable` when it should be asked again
//! ([`crate::status::of_reference`]).

mod reference;

use std::{collections::BTreeMap, fmt, sync::Arc};

use mayfly_attest::{AttestError, Peer};
use mayfly_core::{Denial, SpiffeId};
use mayfly_proto::{
    FILE_DESCRIPTOR_SET,
    spiffe::broker::{
        FetchJwtsvidRequest, FetchJwtsvidResponse, SubscribeToJwtBundlesRequest,
        SubscribeToJwtBundlesResponse, SubscribeToX509BundlesRequest,
        SubscribeToX509BundlesResponse, SubscribeToX509svidRequest, SubscribeToX509svidResponse,
        WorkloadReference,
        api_server::{Api, ApiServer},
    },
};
use tonic::{
    Request, Response, Status,
    service::{Routes, interceptor::InterceptedService},
};
use tonic_reflection::server::{Builder, Error};

use self::reference::Wanted;
use crate::{
    desk::{Clock, Desk, Within},
    guest::{Eyes, Guest, denial_of},
    limits,
    quota::Quota,
    status,
    svids::{BundleStream, SvidStream, tokens},
    visit::{House, Pulled, Visit, Whom, pull_as},
    wire,
    workload::says_once,
};

/// The header of the standard, and the only value that it may have.
const HEADER: (&str, &str) = ("broker.spiffe.io", "true");
/// The service's name on the wire.
const NAME: &str = "spiffe.broker.API";

/// What a broker may do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Allowance {
    /// Refer to processes of this machine.
    pub pid: bool,
    /// Refer to tasks.
    pub task: bool,
    /// Only workloads with one of these profiles; `None` is all of them.
    pub within: Within,
}

/// Who may act for workloads, by exact SPIFFE ID. Who is not listed may not.
pub type Brokers = BTreeMap<SpiffeId, Allowance>;

/// Lets a request pass that carries `broker.spiffe.io: true` exactly once.
///
/// # Errors
/// `InvalidArgument` for any other.
pub fn only_brokers(request: Request<()>) -> Result<Request<()>, Status> {
    if says_once(&request, HEADER) { Ok(request) } else { Err(status::broker_header_missing()) }
}

/// The service. Clones share everything.
#[derive(Clone)]
pub struct BrokerApi {
    house: House,
    brokers: Arc<Brokers>,
    calls: Arc<Quota>,
}

impl fmt::Debug for BrokerApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerApi").field("brokers", &self.brokers).finish_non_exhaustive()
    }
}

impl BrokerApi {
    /// A service for `brokers` that looks at processes with `eyes` and asks `desk`.
    #[must_use]
    pub fn new(desk: Arc<dyn Desk>, eyes: Arc<dyn Eyes>, clock: Clock, brokers: Brokers) -> Self {
        let calls = Quota::new(limits::CALLS_MAX, limits::CALLS_PER_USER_MAX);
        Self { house: House { desk, eyes, clock }, brokers: Arc::new(brokers), calls }
    }

    /// What to hand to [`crate::Doors::open_secured`]: the service and both generations of reflection,
    /// all of them behind the header.
    ///
    /// # Errors
    /// If the committed descriptors are broken.
    pub fn routes(self) -> Result<Routes, Error> {
        let api = ApiServer::new(self)
            .max_decoding_message_size(limits::REQUEST_BYTES_MAX)
            .max_encoding_message_size(limits::RESPONSE_BYTES_MAX);
        let (v1, v1alpha) = (reflection().build_v1()?, reflection().build_v1alpha()?);
        let routes = Routes::new(InterceptedService::new(api, only_brokers))
            .add_service(InterceptedService::new(v1, only_brokers))
            .add_service(InterceptedService::new(v1alpha, only_brokers));
        Ok(routes.prepare())
    }

    /// Begins a call about the workload that is referred to. The argument is read before anything is
    /// looked at, and the broker's rights before the workload.
    fn visit(
        &self,
        guest: Option<Arc<Guest>>,
        reference: Option<WorkloadReference>,
    ) -> Result<Visit, Denial> {
        let wanted = reference::read(reference)?;
        // Absent only if somebody serves this over a listener that asks nobody's name.
        let guest = guest.ok_or(Denial::ReferenceDenied)?;
        guest.check()?;
        let broker = guest.id().ok_or(Denial::ReferenceDenied)?;
        let allowance = self.brokers.get(broker).ok_or(Denial::ReferenceDenied)?;
        let within = allowance.within.clone();
        let seat = self.calls.take(guest.user()).ok_or(Denial::Overloaded)?;
        tracing::debug!(%broker, ?wanted, "a broker asks");
        match wanted {
            // A number means another process on another machine (Broker API §3.1.2).
            Wanted::Process(_) if !allowance.pid || guest.address().is_some() => {
                Err(Denial::ReferenceDenied)
            }
            Wanted::Task(..) if !allowance.task => Err(Denial::ReferenceDenied),
            Wanted::Process(pid) => {
                let peer = Peer::of_pid(pid).map_err(|error| match error {
                    AttestError::PeerGone => Denial::WorkloadGone,
                    other @ (AttestError::ForeignNamespace
                    | AttestError::Changed { .. }
                    | AttestError::Malformed { .. }
                    | AttestError::Io { .. }) => {
                        tracing::info!(pid, error = %other, "a workload could not be seen");
                        denial_of(&other)
                    }
                })?;
                let workload = Arc::new(guest.speaking_for(peer));
                Ok(Visit::new(self.house.clone(), workload, seat).about(Whom::Process(within)))
            }
            Wanted::Task(task, version) => {
                let visit = Visit::new(self.house.clone(), guest, seat);
                Ok(visit.about(Whom::Task(task, version, within)))
            }
        }
    }
}

/// The connection's other end, and what it says.
fn parts<T>(request: Request<T>) -> (Option<Arc<Guest>>, T) {
    let guest = request.extensions().get::<Arc<Guest>>().cloned();
    (guest, request.into_inner())
}

fn reflection() -> Builder<'static> {
    Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .with_service_name(NAME)
}

#[tonic::async_trait]
impl Api for BrokerApi {
    type SubscribeToX509SVIDStream = Pulled<SubscribeToX509svidResponse>;
    type SubscribeToX509BundlesStream = Pulled<SubscribeToX509BundlesResponse>;
    type SubscribeToJWTBundlesStream = Pulled<SubscribeToJwtBundlesResponse>;

    async fn subscribe_to_x509svid(
        &self,
        request: Request<SubscribeToX509svidRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDStream>, Status> {
        let (guest, asked) = parts(request);
        let visit = self.visit(guest, asked.reference).map_err(status::of_reference)?;
        let stream = SvidStream::new(visit);
        Ok(Response::new(pull_as(stream, wire::brokered_x509, status::of_reference)))
    }

    async fn subscribe_to_x509_bundles(
        &self,
        request: Request<SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        let (guest, asked) = parts(request);
        let visit = self.visit(guest, asked.reference).map_err(status::of_reference)?;
        let stream = BundleStream::new(visit, wire::x509_bundles);
        Ok(Response::new(pull_as(stream, wire::brokered_x509_bundles, status::of_reference)))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<FetchJwtsvidRequest>,
    ) -> Result<Response<FetchJwtsvidResponse>, Status> {
        let (guest, asked) = parts(request);
        let wanted = wire::wanted_id(&asked.spiffe_id).map_err(|rule| status::of_field(&rule))?;
        let audience = wire::audience(asked.audience).map_err(status::of_reference)?;
        let visit = self.visit(guest, asked.reference).map_err(status::of_reference)?;
        let held = tokens(&visit, audience, wanted).await.map_err(status::of_reference)?;
        Ok(Response::new(wire::brokered_jwt(held)))
    }

    async fn subscribe_to_jwt_bundles(
        &self,
        request: Request<SubscribeToJwtBundlesRequest>,
    ) -> Result<Response<Self::SubscribeToJWTBundlesStream>, Status> {
        let (guest, asked) = parts(request);
        let visit = self.visit(guest, asked.reference).map_err(status::of_reference)?;
        let stream = BundleStream::new(visit, wire::jwt_bundles);
        Ok(Response::new(pull_as(stream, wire::brokered_jwt_bundles, status::of_reference)))
    }
}
