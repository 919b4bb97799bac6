//! What is offered on a workload socket, put together.

use std::{fmt, sync::Arc};

use mayfly_proto::{
    FILE_DESCRIPTOR_SET,
    envoy::secret::secret_discovery_service_server::SecretDiscoveryServiceServer,
    mayfly::v1::{
        operator_server::OperatorServer, revocation_feed_server::RevocationFeedServer,
        tasks_server::TasksServer,
    },
    spiffe::workload::spiffe_workload_api_server::SpiffeWorkloadApiServer,
};
use tonic::service::{Routes, interceptor::InterceptedService};
use tonic_health::{ServingStatus, server::HealthReporter};
use tonic_reflection::server::{Builder, Error};

use crate::{
    desk::{Clock, Desk},
    feed::Feed,
    guest::Eyes,
    limits,
    office::Office,
    operator::OperatorService,
    sds::{Names, Sds},
    tasks::TasksService,
    workload::{Workload, only_spiffe},
};

/// The names under which the services stand on the wire; the empty one is the server as a whole.
const NAMES: [&str; 4] = ["", "SpiffeWorkloadAPI", SECRETS, "mayfly.v1.RevocationFeed"];
const SECRETS: &str = "envoy.service.secret.v3.SecretDiscoveryService";

/// The services of a workload socket. Clones share everything, quotas included.
#[derive(Clone)]
pub struct Services {
    routes: Routes,
    remote: Routes,
    health: HealthReporter,
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services").finish_non_exhaustive()
    }
}

impl Services {
    /// Workload API, Envoy's secret discovery with its `names`, revocation feed, health and both
    /// generations of reflection.
    ///
    /// # Errors
    /// If the committed descriptors are broken.
    pub async fn new(
        desk: Arc<dyn Desk>,
        eyes: Arc<dyn Eyes>,
        clock: Clock,
        names: Names,
    ) -> Result<Self, Error> {
        let workload = Workload::new(Arc::clone(&desk), eyes, clock);
        let secrets = SecretDiscoveryServiceServer::new(Sds::new(workload.clone(), names))
            .max_decoding_message_size(limits::REQUEST_BYTES_MAX)
            .max_encoding_message_size(limits::SECRETS_BYTES_MAX);
        let workload = SpiffeWorkloadApiServer::new(workload)
            .max_decoding_message_size(limits::REQUEST_BYTES_MAX)
            .max_encoding_message_size(limits::RESPONSE_BYTES_MAX);
        let (health, health_service) = tonic_health::server::health_reporter();
        for name in NAMES {
            health.set_service_status(name, ServingStatus::Serving).await;
        }
        let feed = RevocationFeedServer::new(Feed::new(desk))
            .max_decoding_message_size(limits::REQUEST_BYTES_MAX);
        // Nobody from elsewhere is attested here, so nothing is offered that would need it.
        let remote = Routes::new(feed.clone()).add_service(health_service.clone());
        // The header is asked for on the Workload API alone: Envoy, reflection and health clients, and
        // the feed's own, do not know it.
        let routes = Routes::new(InterceptedService::new(workload, only_spiffe))
            .add_service(secrets)
            .add_service(feed)
            .add_service(health_service)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        Ok(Self { routes: routes.prepare(), remote: remote.prepare(), health })
    }

    /// What to hand to [`crate::Doors::open`].
    #[must_use]
    pub fn routes(&self) -> Routes {
        self.routes.clone()
    }

    /// What to hand to [`crate::Doors::open_port`]: the feed and health, for verifiers elsewhere.
    #[must_use]
    pub fn remote_routes(&self) -> Routes {
        self.remote.clone()
    }

    /// The same, and what orchestrators and operators elsewhere ask of `office`.
    #[must_use]
    pub fn remote_routes_with(&self, office: &Arc<dyn Office>) -> Routes {
        let (tasks, operator) = offices(office);
        self.remote_routes().add_service(tasks).add_service(operator)
    }

    /// What is offered on the sockets of orchestrators and operators. Who may do what there is a question
    /// of rights and not of the socket.
    ///
    /// # Errors
    /// If the committed descriptors are broken.
    pub fn office_routes(office: &Arc<dyn Office>) -> Result<Routes, Error> {
        let (tasks, operator) = offices(office);
        let described = || reflection_of(&[TASKS, OPERATOR]);
        let routes = Routes::new(tasks)
            .add_service(operator)
            .add_service(described().build_v1()?)
            .add_service(described().build_v1alpha()?);
        Ok(routes.prepare())
    }

    /// Tells health checks that the end is near; said before [`crate::Doors::shut`]. Watchers of health
    /// are sent away, or they would hold every door open for as long as doors wait.
    pub async fn stop(&self) {
        let mut health = self.health.clone();
        for name in NAMES {
            health.set_service_status(name, ServingStatus::NotServing).await;
            health.clear_service_status(name).await;
        }
    }
}

const TASKS: &str = "mayfly.v1.Tasks";
const OPERATOR: &str = "mayfly.v1.Operator";

fn offices(
    office: &Arc<dyn Office>,
) -> (TasksServer<TasksService>, OperatorServer<OperatorService>) {
    let tasks = TasksServer::new(TasksService::new(Arc::clone(office)))
        .max_decoding_message_size(limits::WISHES_BYTES_MAX)
        .max_encoding_message_size(limits::RESPONSE_BYTES_MAX);
    let operator = OperatorServer::new(OperatorService::new(Arc::clone(office)))
        .max_decoding_message_size(limits::WISHES_BYTES_MAX);
    (tasks, operator)
}

fn reflection() -> Builder<'static> {
    reflection_of(&["SpiffeWorkloadAPI", SECRETS, "mayfly.v1.RevocationFeed"])
}

fn reflection_of(names: &[&str]) -> Builder<'static> {
    let builder = Builder::configure().register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET);
    names.iter().fold(builder, |builder, name| builder.with_service_name(*name))
}
