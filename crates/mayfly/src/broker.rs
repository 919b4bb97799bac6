//! The role `up`: broker and agent of one machine in one process.
//!
//! The order of a start is the third walk of the architecture: remember, look who died meanwhile, and
//! only then serve.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use mayfly_attest::{CollectOptions, Collector, Exit, Seen, Sighting, Watcher};
use mayfly_core::{Event, Holder, Registrar, Shard, Span, Timestamp, registrar::Charter};
use mayfly_proto::mayfly::v1::operator_server::OperatorServer;
use mayfly_serve::{
    Doors, Eyes, Listener, LocalEyes, Services, desk::Bundles, operator::OperatorService,
};
use mayfly_sign::{KeyPool, KeyRing, RotationPolicy};
use mayfly_store::{Committed, Committer, IndexReport, OpenOptions, OpenReport, Store, StoreError};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use crate::{
    clock::Clock,
    config::{Config, ConfigError, FIRST_EPOCH, KeyStorage, parse_profiles},
    desk::{LocalDesk, Policy},
    driver::{Driver, Inbox, Message},
    federation::Federations,
    keeper::Keeper,
    means::{Machine, SocketOrder},
    office::{About, LocalOffice},
    paths::{DataDirError, Paths},
    signers::{Keys, Signers},
    svids::Svids,
};

/// Eyes that may be open at once; each costs a file descriptor.
const EYES_MAX: usize = 1_000_000;
/// What was seen and waits for the driver.
const SIGHTINGS_MAX: usize = 4096;
/// Orders for task sockets that wait to be carried out: after a restart, one per task that has one.
const SOCKET_ORDERS_MAX: usize = mayfly_core::limits::TASKS_MAX;
/// Leaf keys made ahead, and how old they may get.
const POOL_MAX: usize = 256;
const POOL_AGE_MAX: Span = Span::from_secs(600);

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
    /// A socket.
    #[error(transparent)]
    Listen(#[from] mayfly_serve::ListenError),
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
        raise_descriptor_limit();
        let opened = open_store(&paths, &options, now).await?;
        let mut notices = notices(&opened.report);
        if config.public_url.is_some() {
            let why = "`status.public_url` is set, but nothing is served there by this version";
            notices.push(why.to_owned());
        }
        let config = with_applied_profiles(config, &paths, &mut notices)?;
        let (ring, authority_ttl) = open_keys(&config, &paths, now)?;
        let about = About {
            trust_domain: config.trust_domain.clone(),
            paths,
            workload_socket: config.workload_socket.clone(),
            started_at: now,
            notices: notices.clone(),
            authority_ttl,
        };
        let running = Running::default();
        let inner = Inner::start(&config, opened, &ring, (&clock, &running))?;
        let seams = inner.keep(config, ring, &about, (&clock, &running)).await;
        let services = Services::new(Arc::new(seams.desk), seams.eyes, clock)
            .await
            .map_err(|error| BrokerError::Services(error.to_string()))?;
        let doors = Arc::new(Doors::default());
        let routes = services.routes();
        let sockets =
            keep_sockets(seams.socket_orders, about.paths.clone(), Arc::clone(&doors), routes);
        drop(running.tasks.spawn(sockets));
        // Tasks that were there before have their sockets again before anybody is told to come.
        seams.office.sockets_settled().await;
        let office = OperatorService::new(Arc::new(seams.office));
        let admin = Routes::new(OperatorServer::new(office)).prepare();
        let workload = Listener::bind(&about.workload_socket, seams.workload_mode)?;
        doors.open(None, workload, services.routes());
        doors.open(None, Listener::bind(&about.paths.admin_socket(), 0o600)?, admin);
        Ok(Self { doors, services, running, workload_socket: about.workload_socket, notices })
    }

    /// Where workloads connect.
    #[must_use]
    pub fn workload_socket(&self) -> &Path {
        &self.workload_socket
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
        self.services.stop().await;
        self.doors.shut().await;
        self.running.stop().await;
    }
}

/// The deciding part, running.
struct Inner {
    inbox: Inbox,
    keys: Arc<Keys>,
    crl: Arc<Notify>,
    lineage: Arc<AtomicBool>,
    svids: Arc<Svids>,
    sockets: mpsc::WeakSender<SocketOrder>,
    socket_orders: mpsc::Receiver<SocketOrder>,
}

/// What the sockets are served with.
struct Seams {
    desk: LocalDesk,
    office: LocalOffice,
    eyes: Arc<dyn Eyes>,
    socket_orders: mpsc::Receiver<SocketOrder>,
    workload_mode: u32,
}

impl Inner {
    fn start(
        config: &Config,
        opened: mayfly_store::Opened,
        ring: &KeyRing,
        (clock, running): (&Clock, &Running),
    ) -> Result<Self, BrokerError> {
        let now = clock();
        let charter = Charter {
            trust_domain: config.trust_domain.clone(),
            shard: Shard(0),
            policy_epoch: config.profiles.epoch(),
        };
        let mut registrar = Registrar::replay(charter, Some(opened.snapshot), []);
        let gone = vanished_profiles(&registrar, &config.profiles);
        let epoch = config.profiles.epoch();
        registrar.handle(now, Event::PolicyChanged { epoch, gone });
        let (watcher, sightings) = Watcher::new(EYES_MAX, SIGHTINGS_MAX);
        let watcher = reconcile(&mut registrar, watcher, now);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        registrar.handle(now, Event::NoteAsked { what: "started".to_owned(), detail: version });
        let has_lineage = registrar.tasks().any(|task| matches!(task.holder, Holder::Lineage(_)));
        let lineage = Arc::new(AtomicBool::new(has_lineage));

        let (inbox, messages) = Inbox::open();
        let pool = KeyPool::new(POOL_MAX, POOL_AGE_MAX);
        let keys = Arc::new(Keys::new((ring.signer(), Arc::clone(clock)), pool));
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let crl = Arc::new(Notify::new());
        let svids = Arc::new(Svids::default());
        let (orders, socket_orders) = mpsc::channel(SOCKET_ORDERS_MAX);
        let sockets = orders.downgrade();
        let means = Machine {
            committer: start_committer(opened.journal, &inbox)?,
            store: opened.store,
            signers: Signers::start(threads, &keys, &inbox)?,
            watcher,
            crl: Arc::clone(&crl),
            sockets: orders,
            lineage: Arc::clone(&lineage),
            svids: Arc::clone(&svids),
        };
        let driver = Driver::new(registrar, Arc::clone(clock), means);
        // Dropped when the driver ends, also by a panic.
        let last_words = running.driver_gone.clone().drop_guard();
        let stop = running.stop.clone();
        let driver = running.tasks.spawn(async move {
            let _last_words = last_words;
            driver.run(messages, stop).await
        });
        *running.driver.lock().unwrap_or_else(PoisonError::into_inner) = Some(driver);
        let report = report_sightings(sightings, inbox.clone(), running.stop.clone());
        drop(running.tasks.spawn(report));
        Ok(Self { inbox, keys, crl, lineage, svids, sockets, socket_orders })
    }

    /// Publishes bundles, starts what acts by the clock, and puts desk and office in front.
    async fn keep(
        self,
        config: Config,
        ring: KeyRing,
        about: &About,
        (clock, running): (&Clock, &Running),
    ) -> Seams {
        let (bundles, bundles_seen) = watch::channel(Arc::new(Bundles::default()));
        let (authorities, authorities_seen) = watch::channel(Vec::new());
        let mut keeper = Keeper {
            ring,
            keys: self.keys,
            federations: Federations::new(config.federation),
            bundles,
            authorities,
            crl: self.crl,
            crl_dir: about.paths.crls(),
            inbox: self.inbox.clone(),
            clock: Arc::clone(clock),
        };
        keeper.prepare().await;
        drop(running.tasks.spawn(keeper.run(running.stop.clone())));
        let policy = Arc::new(Policy::new(config.profiles));
        let everything = Arc::new(CollectOptions::default);
        let all_seeing =
            LocalEyes::new(Arc::new(Collector::default()), everything, Arc::clone(clock));
        let office = LocalOffice::new(
            (self.inbox.clone(), self.sockets, Arc::clone(clock)),
            Arc::clone(&policy),
            Arc::new(all_seeing),
            authorities_seen,
            about.clone(),
        );
        Seams {
            office,
            eyes: eyes(&policy, self.lineage, clock),
            desk: LocalDesk::new(
                (self.inbox, Arc::clone(clock)),
                policy,
                bundles_seen,
                config.trust_domain,
                self.svids,
            ),
            socket_orders: self.socket_orders,
            workload_mode: config.workload_mode,
        }
    }
}

/// Profiles that were applied live count until they are applied anew or their file is removed.
fn with_applied_profiles(
    mut config: Config,
    paths: &Paths,
    notices: &mut Vec<String>,
) -> Result<Config, BrokerError> {
    let path = paths.applied_profiles();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(config),
        Err(source) => return Err(ConfigError::Unreadable { path, source }.into()),
    };
    config.profiles = parse_profiles(&text, &config.trust_domain, FIRST_EPOCH)?;
    notices.push(format!(
        "the profiles are those of the last `mayfly profile apply`; remove `{}` to go back to the \
         configuration's",
        path.display()
    ));
    Ok(config)
}

async fn open_store(
    paths: &Paths,
    options: &StartOptions,
    now: Timestamp,
) -> Result<mayfly_store::Opened, BrokerError> {
    let mut open = OpenOptions::new(now);
    open.confirm_restored = options.accept_restored;
    open.sentinel_dir.clone_from(&options.sentinel_dir);
    let root = paths.root().to_owned();
    let opened = tokio::task::spawn_blocking(move || Store::open(&root, &open)).await;
    Ok(opened.map_err(|stopped| BrokerError::Thread(std::io::Error::other(stopped)))??)
}

fn open_keys(
    config: &Config,
    paths: &Paths,
    now: Timestamp,
) -> Result<(KeyRing, Span), BrokerError> {
    let longest = config.profiles.iter().map(|p| p.terms.x509_ttl.max(p.terms.jwt_ttl)).max();
    let longest = longest.unwrap_or(mayfly_core::limits::X509_TTL_DEFAULT);
    let policy = RotationPolicy::new(config.ca_ttl, config.jwt_key_ttl, longest)?;
    let domain = config.trust_domain.clone();
    let ring = match config.key_storage {
        KeyStorage::Disk => KeyRing::open(&paths.keys(), domain, policy, now)?,
        KeyStorage::Memory => KeyRing::create(domain, policy, now)?,
    };
    let url = config.public_url.as_deref().map(mayfly_sign::PublicUrl::parse).transpose()?;
    Ok((ring.with_public_url(url), config.ca_ttl.min(config.jwt_key_ttl)))
}

/// Profiles of live tasks that are no longer in the configuration.
fn vanished_profiles(registrar: &Registrar, profiles: &mayfly_policy::Profiles) -> Vec<String> {
    let live = registrar.tasks().filter(|task| !task.state.is_ended());
    let names = live.map(|task| &task.terms.profile);
    let gone: BTreeSet<_> = names.filter(|name| profiles.find(name).is_none()).cloned().collect();
    gone.into_iter().collect()
}

/// Watches every holder that is alive, and ends the tasks of those that died while nobody looked.
fn reconcile(registrar: &mut Registrar, mut watcher: Watcher, now: Timestamp) -> Watcher {
    for (task, holder) in registrar.reconcile() {
        let event = match mayfly_attest::is_alive(&holder) {
            Ok(true) => {
                watcher.watch(task, holder, None).err().map(|_blind| Event::WatcherBlinded { task })
            }
            Ok(false) => Some(Event::HolderGone { task, exit: None }),
            // Not known is not alive: a task that nobody can see must not go on.
            Err(_) => Some(Event::WatcherBlinded { task }),
        };
        if let Some(event) = event {
            if registrar.task(task).is_some_and(|task| !task.state.is_ended()) {
                tracing::info!(%task, "its holder is gone since the last run");
            }
            registrar.handle(now, event);
        }
    }
    watcher
}

fn start_committer(
    journal: mayfly_store::LogJournal,
    inbox: &Inbox,
) -> Result<Committer, BrokerError> {
    let inbox = inbox.clone();
    let notify = move |committed| {
        let event = match committed {
            Committed::Upto(upto) => Event::Journaled { upto },
            Committed::Failed(error) => {
                tracing::error!(%error, "the journal has failed; nothing is issued until a restart");
                Event::JournalFailed
            }
        };
        // The driver goes last, and by then there is nothing left to tell it.
        let _driver_lives = inbox.tell_blocking(Message::Event(event));
    };
    Ok(Committer::start(journal, notify)?)
}

async fn report_sightings(
    mut sightings: mpsc::Receiver<Sighting>,
    inbox: Inbox,
    stop: CancellationToken,
) {
    while let Some(Some(sighting)) = stop.run_until_cancelled(sightings.recv()).await {
        let task = sighting.task;
        let event = match sighting.what {
            Seen::ProcessExited { exit } => {
                let code = |exit| match exit {
                    Exit::Code(code) => code,
                    Exit::Signal(signal) => 128 + signal,
                };
                Event::HolderGone { task, exit: exit.map(code) }
            }
            Seen::CgroupEmptied => Event::HolderGone { task, exit: None },
            Seen::Blinded => Event::WatcherBlinded { task },
        };
        if !inbox.tell(event).await {
            return;
        }
    }
}

/// Eyes that look at what the profiles in force ask for, and no further: it is paid for at each call.
fn eyes(policy: &Arc<Policy>, lineage: Arc<AtomicBool>, clock: &Clock) -> Arc<dyn Eyes> {
    let policy = Arc::clone(policy);
    let options = move || {
        let profiles = policy.current();
        CollectOptions {
            names: profiles.needs_names(),
            sha256: profiles.needs_sha256(),
            lineage: lineage.load(Ordering::Relaxed),
            ..CollectOptions::default()
        }
    };
    let collector = Arc::new(Collector::default());
    Arc::new(LocalEyes::new(collector, Arc::new(options), Arc::clone(clock)))
}

/// Opens and closes the tasks' own sockets, in the order in which it was told to.
async fn keep_sockets(
    mut orders: mpsc::Receiver<SocketOrder>,
    paths: Paths,
    doors: Arc<Doors>,
    routes: Routes,
) {
    // Ends with the driver, which holds the only sender.
    while let Some(order) = orders.recv().await {
        match order {
            SocketOrder::Open(task) => {
                let path = paths.task_socket(task);
                let bound = prepare_dir(&path)
                    .map_err(BrokerError::from)
                    .and_then(|()| Ok(Listener::bind(&path, 0o777)?));
                match bound {
                    Ok(listener) => doors.open(Some(task), listener, routes.clone()),
                    Err(error) => tracing::error!(%task, %error, "the task has no socket"),
                }
            }
            // Whoever asked may have left.
            SocketOrder::Report(done) => drop(done.send(())),
            SocketOrder::Close(task) => {
                doors.close(task);
                if let Some(dir) = paths.task_socket(task).parent() {
                    // The listener removes its own file; one that was there from another run goes too.
                    drop(std::fs::remove_dir_all(dir));
                }
            }
        }
    }
}

fn prepare_dir(socket: &Path) -> std::io::Result<()> {
    socket.parent().map_or(Ok(()), std::fs::create_dir_all)
}

fn notices(report: &OpenReport) -> Vec<String> {
    let torn = report.torn.as_ref().map(|torn| {
        format!("a write that never finished was cut off after record {}", torn.after.0)
    });
    let index = match &report.index {
        IndexReport::Used(_) | IndexReport::Created => None,
        IndexReport::Rebuilt(why) => Some(format!("the index was rebuilt from the log: {why}")),
        IndexReport::Unusable(why) => Some(format!("no index can be kept: {why}")),
    };
    torn.into_iter().chain(index).chain(report.restored.clone()).collect()
}

/// Each stream, each watched process and each socket costs a descriptor, and the usual soft limit is
/// a thousand.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
}
