//! The role `up`: broker and agent of one machine in one process.
//!
//! The order of a start is the third walk of the architecture: remember, look who died meanwhile, and
//! only then serve.

use std::{
    iter,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use mayfly_serve::{Desk, Doors, Listener, Services, office::Office};
use mayfly_store::StoreError;
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    inner::Inner,
    opening::{
        notices, open_keys, open_store, raise_descriptor_limit, silent_bus, unfit_rules,
        with_applied_profiles,
    },
    ports::{Offer, Ports, Served},
    sockets::{keep_sockets, sweep},
};
use crate::{
    clock::Clock,
    config::{Config, ConfigError},
    means::Machine,
    office::About,
    paths::{DataDirError, Paths},
};

mod inner;
mod opening;
mod ports;
mod sights;
mod sockets;

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The profiles that were applied.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The keys.
    #[error(transparent)]
    Keys(#[from] mayfly_sign::SignError),
    /// What remembers used tokens.
    #[error("cannot remember which tokens of OIDC issuers were used: {0}")]
    Tokens(#[source] std::io::Error),
    /// A socket.
    #[error(transparent)]
    Listen(#[from] mayfly_serve::ListenError),
    /// A port's certificate.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// The broker's own identity.
    #[error(transparent)]
    Own(#[from] crate::own::OwnError),
    /// A port wants to show an identity that the broker has not.
    #[error("the broker has no identity to show")]
    Nobody,
    /// The system gave no thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The generated descriptors are broken.
    #[error("cannot describe the services: {0}")]
    Services(String),
}

/// How to start.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// An operator has confirmed that a restored backup may serve.
    pub accept_restored: bool,
    /// Where the sentinel is kept, if not in the data directory.
    pub sentinel_dir: Option<PathBuf>,
}

/// A running broker.
#[derive(Debug)]
pub struct Broker {
    doors: Arc<Doors>,
    services: Services,
    running: Running,
    served: Served,
    workload_socket: PathBuf,
    notices: Vec<String>,
}

/// What runs beside the sockets, and how it is told to stop.
#[derive(Debug, Default)]
struct Running {
    tasks: TaskTracker,
    stop: CancellationToken,
    driver: Mutex<Option<JoinHandle<Machine>>>,
    driver_gone: CancellationToken,
}

impl Running {
    /// Stops everything, the driver included, and writes down what is left to write.
    async fn stop(self) {
        self.stop.cancel();
        let driver = self.driver.into_inner().unwrap_or_else(PoisonError::into_inner);
        let machine = match driver {
            Some(driver) => driver.await.ok(),
            None => None,
        };
        if let Some(machine) = machine {
            let closed = tokio::task::spawn_blocking(move || machine.committer.close()).await;
            if let Ok(Err(error)) = closed {
                tracing::error!(%error, "the journal was not closed in order");
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Broker {
    /// Starts everything; when this returns, callers are served.
    ///
    /// # Errors
    /// [`BrokerError`], and nothing is left running.
    pub async fn start(
        config: Config,
        options: StartOptions,
        clock: Clock,
    ) -> Result<Self, BrokerError> {
        let now = clock();
        let uid = rustix::process::geteuid().as_raw();
        let paths = Paths::prepare(&options.data_dir, uid)?;
        let paths = match &config.task_sockets {
            Some(dir) => paths.with_task_sockets(dir, uid)?,
            None => paths,
        };
        raise_descriptor_limit();
        let opened = open_store(&paths, &options, now).await?;
        let mut notices = notices(&opened.report);
        if config.public_url.is_some() && config.http.is_none() {
            let why =
                "`status.public_url` is set, but `http` is not: nothing is served there by us";
            notices.push(why.to_owned());
        }
        let config = with_applied_profiles(config, &paths, &mut notices)?;
        notices.extend(unfit_rules(&config));
        let (ring, authority_ttl) = open_keys(&config, &paths, now)?;
        let ports = Ports::bind(&config)?;
        notices.extend(silent_bus(&config).await);
        let about = About {
            trust_domain: config.trust_domain.clone(),
            node: config.node.clone(),
            paths,
            workload_socket: config.workload_socket.clone(),
            started_at: now,
            notices: notices.clone(),
            authority_ttl,
        };
        let names = config.secret_names.clone();
        let elsewhere = config.tasks_socket.clone();
        let running = Running::default();
        // A start that fails from here on leaves nothing running.
        let unless_started = running.stop.clone().drop_guard();
        let inner = Inner::start(&config, opened, &ring, (&clock, &running))?;
        let seams = inner.keep(config, ring, &about, (&clock, &running)).await?;
        let own = ports.identity(&seams, authority_ttl, (&clock, &running)).await?;
        let (desk, eyes): (Arc<dyn Desk>, _) = (Arc::new(seams.desk), seams.eyes);
        let services =
            Services::new(Arc::clone(&desk), Arc::clone(&eyes), Arc::clone(&clock), names)
                .await
                .map_err(|error| BrokerError::Services(error.to_string()))?;
        let doors = Arc::new(Doors::default().with_eyes(Arc::clone(&eyes)));
        let routes = services.routes();
        let sockets =
            keep_sockets(seams.socket_work, about.paths.clone(), Arc::clone(&doors), routes);
        drop(running.tasks.spawn(sockets));
        // Tasks that were there before have their sockets again before anybody is told to come.
        seams.office.sockets_settled().await;
        sweep(&about.paths, &doors);
        let office: Arc<dyn Office> = Arc::new(seams.office);
        let offices = Services::office_routes(&office)
            .map_err(|error| BrokerError::Services(error.to_string()))?;
        let workload = Listener::bind(&about.workload_socket, seams.workload_mode)?;
        doors.open(None, workload, services.routes());
        doors.open(None, Listener::bind(&about.paths.admin_socket(), 0o600)?, offices.clone());
        // Who may connect is not yet somebody who may do something.
        let near = (about.paths.tasks_socket(), 0o666);
        for (socket, mode) in iter::once(near).chain(elsewhere) {
            doors.open(None, Listener::bind(&socket, mode)?, offices.clone());
        }
        let streams = services.remote_routes_with(&office);
        let offer = Offer { pages: seams.pages, streams, desk, eyes };
        let behind = (&clock, &running.tasks, &running.stop);
        let served = ports.open(&doors, (own, &about.workload_socket), offer, behind).await?;
        let workload_socket = about.workload_socket;
        drop(unless_started.disarm());
        Ok(Self { doors, services, running, served, workload_socket, notices })
    }

    /// Where workloads connect.
    #[must_use]
    pub fn workload_socket(&self) -> &Path {
        &self.workload_socket
    }

    /// Where documents are served over HTTPS, if anywhere.
    #[must_use]
    pub const fn http_address(&self) -> Option<SocketAddr> {
        self.served.pages
    }

    /// Where verifiers elsewhere follow the feed, if anywhere.
    #[must_use]
    pub const fn feed_address(&self) -> Option<SocketAddr> {
        self.served.streams
    }

    /// Where brokers connect, if anywhere.
    #[must_use]
    pub fn broker_socket(&self) -> Option<&Path> {
        self.served.brokers.as_ref().map(|(socket, _)| socket.as_path())
    }

    /// Where brokers connect by TCP, if anywhere.
    #[must_use]
    pub fn broker_address(&self) -> Option<SocketAddr> {
        self.served.brokers.as_ref().and_then(|(_, address)| *address)
    }

    /// What was noticed at the start.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Waits for the driver to end by itself, which it does only when core found one of its own laws
    /// broken. What is on disk is right, so the process has to be started again and replay it.
    pub async fn broken(&self) {
        self.running.driver_gone.cancelled().await;
    }

    /// Sends everybody away and writes down what is left to write.
    pub async fn stop(self) {
        let Self { doors, services, running, served, .. } = self;
        services.stop().await;
        doors.shut().await;
        // Ended in order, after those who were told goodbye with it: the next run begins another.
        if let Some(own) = served.close() {
            own.end().await;
        }
        running.stop().await;
    }
}
