//! What may go wrong between a broker and those who verify: R18. Nobody who was told of an end accepts
//! that task again, whatever dies and whatever the clocks say, and whoever sees nothing says so.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mayfly_core::Serial;
use mayfly_proto::mayfly::v1::begin_task_request::Holder;
use mayfly_verify::{
    Endpoint, Follower, Patience, Refused, Sight, View, WorkloadClient, x509::Leaf,
};
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::Instant,
};

use crate::{
    common::{Operator, Site, task_of, until, within},
    stand::{configuration, skip, stand},
};

/// Short enough for the dark to be seen in a test, long enough for a busy machine's heartbeats.
const PATIENCE: Patience = Patience::Closed { after: Duration::from_secs(2) };
/// How often everything is killed.
const ROUNDS: usize = 3;

/// Passes bytes on, until it is dropped.
struct Relay {
    _connections: JoinSet<()>,
    path: PathBuf,
}

impl Relay {
    fn start(path: PathBuf, to: PathBuf) -> Self {
        let listener = UnixListener::bind(&path).expect("a socket");
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut passing = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let to = to.clone();
                passing.spawn(async move {
                    let Ok(mut far) = UnixStream::connect(to).await else { return };
                    // Either side may leave; then there is nothing more to pass on.
                    drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                });
            }
        });
        Self { _connections: connections, path }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).expect("its socket is there");
    }
}

fn endpoint(socket: &Path) -> Endpoint {
    Endpoint::parse(&format!("unix://{}", socket.display())).expect("an absolute path")
}

/// Begins a task and says what its certificate is called.
async fn begin(operator: &mut Operator) -> (String, Serial) {
    let begun = operator.begin(task_of("booth", Holder::Socket(true))).await.expect("it begins");
    let context = WorkloadClient::new(&endpoint(Path::new(&begun.socket))).fetch_x509().await;
    let context = context.expect("an identity");
    let chain = &context.default_svid().expect("one").chain;
    let serial = Leaf::parse(&chain[0]).expect("a leaf").serial.expect("one of ours");
    (begun.task, serial)
}

async fn refuses(view: &View, serial: Serial, with: &Refused) {
    until("a refusal", async || (view.admit(&serial).err().as_ref() == Some(with)).then_some(()))
        .await;
}

async fn admits(view: &View, serial: Serial) {
    until("a verifier that sees again", async || view.admit(&serial).ok()).await;
}

/// Asks all the time whether the dead are accepted, and counts.
fn pester(views: Vec<Arc<View>>, dead: Serial) -> (JoinSet<()>, Arc<[AtomicU64; 2]>) {
    let counts: Arc<[AtomicU64; 2]> = Arc::default();
    let told = Arc::clone(&counts);
    let mut asking = JoinSet::new();
    asking.spawn(async move {
        loop {
            for view in &views {
                let accepted = usize::from(view.admit(&dead).is_ok());
                told[accepted].fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    (asking, counts)
}

/// R18: broker and relay are killed, again and again; the dead stay dead, the living come back, and in
/// between nobody is accepted.
#[tokio::test]
async fn r18_no_crash_brings_an_ended_task_back_to_those_who_were_told() {
    let (site, mut broker, mut operator) = stand().await;
    let passage = site.root().join("relay.sock");
    let mut relay = Relay::start(passage.clone(), site.socket());
    let near = Follower::connect(&endpoint(&site.socket()), PATIENCE);
    let far = Follower::connect(&endpoint(&passage), PATIENCE);
    let views = [Arc::clone(near.view()), Arc::clone(far.view())];
    let (_living_task, living) = begin(&mut operator).await;
    let (dead_task, dead) = begin(&mut operator).await;
    for view in &views {
        admits(view, dead).await;
    }
    operator.end(&dead_task, "revoked").await.expect("it ends");
    for view in &views {
        refuses(view, dead, &Refused::Revoked).await;
    }
    let (asking, counts) = pester(views.to_vec(), dead);
    for _ in 0..ROUNDS {
        drop(relay);
        let far_view = &views[1];
        refuses(far_view, living, &Refused::Dark).await;
        assert_eq!(far_view.sight(Instant::now()), Sight::Dark, "it says so");
        admits(&views[0], living).await;
        broker.kill().await;
        refuses(&views[0], living, &Refused::Dark).await;
        broker = site.start().await;
        relay = Relay::start(passage.clone(), site.socket());
        for view in &views {
            admits(view, living).await;
            refuses(view, dead, &Refused::Revoked).await;
        }
    }
    drop(asking);
    let [refused, accepted] = [0, 1].map(|at: usize| counts[at].load(Ordering::Relaxed));
    assert_eq!(accepted, 0, "an ended task was accepted");
    assert!(refused > 100, "it was asked {refused} times");
}

/// Where Debian keeps the library that shows a process another time.
const FAKE_CLOCK: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// R18: the broker's wall clock steps by an hour, forwards and backwards; who was told stays told, and
/// goes on being told.
#[tokio::test]
async fn r18_a_clock_that_steps_an_hour_brings_nobody_back() {
    if !Path::new(FAKE_CLOCK).exists() {
        return skip("no libfaketime here, so no clock can be stepped: apt-get install faketime");
    }
    let site = Site::new(&configuration(""));
    let clock = site.root().join("clock");
    let step = |by: &str| std::fs::write(&clock, by).expect("a clock");
    step("+0");
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(&clock, open).expect("it is ours");
    let environment = [
        ("LD_PRELOAD", FAKE_CLOCK.to_owned()),
        ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    let broker = site.start_with(&environment).await;
    let mut operator = broker.operator().await;
    let follower = Follower::connect(&broker.endpoint(), PATIENCE);
    within("a snapshot", follower.ready()).await;
    let (task, dead) = begin(&mut operator).await;
    operator.end(&task, "revoked").await.expect("it ends");
    refuses(follower.view(), dead, &Refused::Revoked).await;
    let (asking, counts) = pester(vec![Arc::clone(follower.view())], dead);
    for by in ["+3600", "-3600", "+3600", "+0"] {
        step(by);
        let shown = operator.status().await.expect("it serves");
        assert!(shown.issuing);
        let (task, next) = begin(&mut operator).await;
        admits(follower.view(), next).await;
        operator.end(&task, "revoked").await.expect("it ends");
        refuses(follower.view(), next, &Refused::Revoked).await;
        refuses(follower.view(), dead, &Refused::Revoked).await;
    }
    drop(asking);
    assert_eq!(counts[1].load(Ordering::Relaxed), 0, "an ended task was accepted");
}
