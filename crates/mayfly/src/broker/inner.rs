//! The deciding part: registrar and driver with their means, and the desk and office in front of them.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
};

use mayfly_attest::{CollectOptions, Collector, Engine, Systemd, Watcher};
use mayfly_core::{Event, Registrar, Shard, Span, TrustDomain, registrar::Charter};
use mayfly_serve::{
    Eyes, LocalEyes,
    desk::{Bundles, Desk as _},
    feed::hub::{self, Hub},
    http,
};
use mayfly_sign::{KeyPool, KeyRing};
use mayfly_store::{Committed, Committer};
use tokio::sync::{Notify, mpsc, watch};
use tonic::service::Routes;

use super::{
    BrokerError, Running,
    sights::{eyes, reconcile, report_sightings},
};
use crate::{
    board::Board,
    clock::{self, Clock},
    config::{Config, OidcIssuer},
    desk::{LocalDesk, Policy},
    driver::{Driver, Inbox, Letters, Message},
    federation::{Federations, Poller},
    keeper::{self, Keeper, Signed},
    means::{Machine, Settled, SocketOrders, SocketWork, Sought},
    measures::{self, Commits},
    office::{
        About, LocalOffice,
        policy::{changed, in_force},
    },
    oidc::{Issuer, SeenFile},
    pipelines::LocalPipelines,
    seal::FeedSeal,
    signers::{Keys, Signers},
    svids::Svids,
    witness::LocalWitness,
};

/// Eyes that may be open at once; each costs a file descriptor.
const EYES_MAX: usize = 1_000_000;
/// What was seen and waits for the driver.
const SIGHTINGS_MAX: usize = 4096;
/// Leaf keys made ahead, and how old they may get.
const POOL_MAX: usize = 256;
const POOL_AGE_MAX: Span = Span::from_secs(600);

/// The deciding part, running.
pub(super) struct Inner {
    inbox: Inbox,
    keys: Arc<Keys>,
    crl: Arc<Notify>,
    sought: Arc<Sought>,
    systemd: Systemd,
    svids: Arc<Svids>,
    feed: Arc<Hub>,
    bundles: watch::Sender<Arc<Bundles>>,
    board: Arc<Board>,
    sockets: Settled,
    socket_work: SocketWork,
}

/// What the sockets are served with.
pub(super) struct Seams {
    pub(super) desk: LocalDesk,
    pub(super) office: LocalOffice,
    pub(super) eyes: Arc<dyn Eyes>,
    pub(super) socket_work: SocketWork,
    pub(super) workload_mode: u32,
    pub(super) pages: Routes,
    pub(super) inbox: Inbox,
    pub(super) policy: Arc<Policy>,
}

impl Inner {
    pub(super) fn start(
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
            admission: config.admission,
        };
        let mut registrar = Registrar::replay(charter, Some(opened.snapshot), []);
        let revoked = registrar.revocations().clone();
        let held = in_force(&registrar);
        let gone = held.iter().filter(|(profile, _)| config.profiles.find(profile).is_none());
        let gone: BTreeSet<_> = gone.map(|(profile, _)| profile.clone()).collect();
        let left = config.profiles.left_of(held.iter().map(|(_, owner)| owner.as_str()));
        registrar.handle(now, changed(&config.profiles, gone.into_iter().collect(), left));
        let systemd = Systemd::new(config.dbus.clone());
        let asking = running.stop.clone().run_until_cancelled_owned(systemd.clone().run());
        drop(running.tasks.spawn(asking));
        let (watcher, sightings) = Watcher::new(EYES_MAX, SIGHTINGS_MAX);
        let engine = config.engine.clone().map(Engine::new);
        let watcher = watcher.with_systemd(systemd.clone()).with_engine(engine);
        let sought = Arc::new(Sought::default());
        let watcher = reconcile(&mut registrar, (watcher, &sought), now);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        registrar.handle(now, Event::NoteAsked { what: "started".to_owned(), detail: version });

        let (inbox, letters) = Inbox::open();
        let pool = KeyPool::new(POOL_MAX, POOL_AGE_MAX);
        let keys = Arc::new(Keys::new((ring.signer(), Arc::clone(clock)), pool));
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let crl = Arc::new(Notify::new());
        let svids = Arc::new(Svids::default());
        let (bundles, bundles_seen) = watch::channel(Arc::new(Bundles::default()));
        let seal = FeedSeal {
            keys: Arc::clone(&keys),
            bundles: bundles_seen,
            trust_domain: config.trust_domain.clone(),
        };
        measures::begin();
        let commits = Commits::default();
        let feed = feed(revoked, seal, clock);
        let (orders, socket_work, sockets) = SocketOrders::new();
        let means = Machine {
            committer: start_committer(opened.journal, &inbox, commits.clone())?,
            commits,
            store: opened.store,
            signers: Signers::start(threads, &keys, &inbox)?,
            watcher,
            feed: Arc::clone(&feed),
            crl: Arc::clone(&crl),
            sockets: orders,
            sought: Arc::clone(&sought),
            svids: Arc::clone(&svids),
        };
        let (board, poster) = Board::new(registrar.durable_sequence());
        let driver = Driver::new(registrar, Arc::clone(clock), (means, poster));
        let report = report_sightings(sightings, inbox.clone(), running.stop.clone());
        running.decide((driver, letters), report, Arc::clone(&feed))?;
        Ok(Self {
            inbox,
            keys,
            crl,
            sought,
            systemd,
            svids,
            feed,
            bundles,
            board,
            sockets,
            socket_work,
        })
    }

    /// Publishes bundles, starts what acts by the clock, and puts desk and office in front.
    pub(super) async fn keep(
        self,
        config: Config,
        ring: KeyRing,
        about: &About,
        (clock, running): (&Clock, &Running),
    ) -> Result<Seams, BrokerError> {
        let (bundles, bundles_seen) = (self.bundles.clone(), self.bundles.subscribe());
        let (authorities, authorities_seen) = watch::channel(Vec::new());
        let (orders, orders_heard) = mpsc::channel(keeper::ORDERS_MAX);
        let (published, published_seen) = watch::channel(Arc::default());
        let mut keeper = Keeper {
            ring,
            keys: self.keys,
            federations: Federations::new(&config.federation, &about.paths.bundles()),
            bundles,
            authorities,
            crl: self.crl,
            crl_dir: about.paths.crls(),
            published,
            orders: orders_heard,
            svids: Arc::clone(&self.svids),
            inbox: self.inbox.clone(),
            clock: Arc::clone(clock),
            signed: Signed::default(),
        };
        keeper.prepare().await;
        drop(running.tasks.spawn(keeper.run(running.stop.clone())));
        for entry in &config.federation {
            let poller = Poller::new(entry, &about.paths.bundles(), bundles_seen.clone());
            if let Some(poller) = poller {
                drop(running.tasks.spawn(poller.run(running.stop.clone())));
            }
        }
        let policy = Arc::new(Policy::new(config.profiles));
        let everything = Arc::new(CollectOptions::default);
        let all_seeing = Collector::default().with_systemd(self.systemd.clone());
        let all_seeing = LocalEyes::new(Arc::new(all_seeing), everything, Arc::clone(clock));
        let near = eyes(&policy, self.sought, self.systemd.clone(), clock);
        let office = LocalOffice::new(
            (self.inbox.clone(), self.sockets, Arc::clone(clock)),
            (Arc::clone(&policy), Arc::new(config.rights)),
            (Arc::new(all_seeing), Arc::clone(&near), self.systemd),
            (authorities_seen, orders, self.board),
            about.clone(),
        );
        let witness = LocalWitness::new(
            (self.inbox.clone(), Arc::clone(clock)),
            (bundles_seen.clone(), Arc::clone(&self.feed)),
            config.trust_domain.clone(),
            config.public_url.as_deref(),
        );
        let desk = LocalDesk::new(
            (self.inbox.clone(), Arc::clone(clock)),
            Arc::clone(&policy),
            (bundles_seen, self.feed),
            config.trust_domain.clone(),
            self.svids,
        );
        let seams = Seams {
            office,
            pages: http::router(published_seen, Arc::new(witness)).into(),
            eyes: near,
            desk,
            socket_work: self.socket_work,
            workload_mode: config.workload_mode,
            inbox: self.inbox,
            policy,
        };
        seams.with_pipelines((config.oidc, config.trust_domain), about, (clock, running))
    }
}

impl Seams {
    /// Lets the issuers in `issuers` vouch for pipelines, if there are any.
    fn with_pipelines(
        mut self,
        (issuers, own): (Vec<OidcIssuer>, TrustDomain),
        about: &About,
        (clock, running): (&Clock, &Running),
    ) -> Result<Self, BrokerError> {
        if issuers.is_empty() {
            return Ok(self);
        }
        let now = clock();
        let seen = SeenFile::open(&about.paths.oidc_seen(), now).map_err(BrokerError::Tokens)?;
        let (steady, bundles) = (clock::steady(now), self.desk.bundles());
        let issuer = |issuer| Issuer::new(issuer, Arc::clone(&steady), bundles.clone());
        let issuers: Vec<_> = issuers.into_iter().map(issuer).collect();
        for issuer in &issuers {
            drop(running.tasks.spawn(Arc::clone(issuer).follow(running.stop.clone())));
        }
        self.office.recognise_by(issuers.clone());
        let pipelines = LocalPipelines::new(
            (self.office.clone(), self.desk.clone()),
            (self.inbox.clone(), Arc::clone(clock)),
            Arc::clone(&self.policy),
            (issuers, Arc::new(seen)),
            own,
        );
        let pages = self.pages.into_axum_router();
        self.pages = pages.merge(http::ci::router(Arc::new(pipelines))).into();
        Ok(self)
    }
}

/// Begins the feed with what was revoked before.
fn feed(revoked: mayfly_core::RevocationSet, seal: FeedSeal, clock: &Clock) -> Arc<Hub> {
    let means = hub::Means {
        seal: Arc::new(seal),
        steady: clock::steady(clock()),
        wall: Arc::clone(clock),
    };
    Hub::new(revoked, means)
}

impl Running {
    /// Starts the thread that decides, hears what the eyes see, and tells the followers. It has a
    /// runtime to itself: an end that was seen may not wait behind a thousand callers.
    fn decide(
        &self,
        (driver, letters): (Driver<Machine>, Letters),
        sightings: impl Future<Output = ()> + Send + 'static,
        feed: Arc<Hub>,
    ) -> Result<(), BrokerError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Dropped when the driver ends, also by a panic.
        let last_words = self.driver_gone.clone().drop_guard();
        let stop = self.stop.clone();
        let thread = self.tasks.spawn_blocking(move || {
            let _last_words = last_words;
            let driving = driver.run(letters, stop.clone());
            let all = async { tokio::join!(driving, sightings, feed.run(stop)) };
            let (machine, (), ()) = runtime.block_on(all);
            machine
        });
        *self.driver.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }
}

fn start_committer(
    journal: mayfly_store::LogJournal,
    inbox: &Inbox,
    commits: Commits,
) -> Result<Committer, BrokerError> {
    let inbox = inbox.clone();
    let notify = move |committed| {
        let event = match committed {
            Committed::Upto(upto) => {
                commits.synced(upto);
                Event::Journaled { upto }
            }
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
