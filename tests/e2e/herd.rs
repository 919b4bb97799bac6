//! Thousands that ask at the same time: after a crash everybody comes back at once, and new tasks come in
//! between. Here an orchestrator holds the streams of tasks that have no process on this machine.

use std::{sync::Arc, time::Duration};

use mayfly_core::Timestamp;
use mayfly_proto::{
    mayfly::v1::{self as tasks, holder_wish::Holder, wish::Wish},
    spiffe::broker::WorkloadReference,
};
use mayfly_verify::{retry_hint, x509};
use tokio::{sync::Barrier, task::JoinSet};
use tonic::{Code, Status};

use crate::{
    api::{Api, Outcome, wish},
    broker_api::{Client, ORCHESTRATOR, Orchestrator, Svids, by_task, socket, with_broker_api},
    common::{Site, within},
    dial::was_torn,
};

const CONNECTIONS: usize = 40;
const TASKS: usize = 10_000;
/// Tasks that are begun while the others come back.
const NEW: usize = 100;
/// Longer than a test may take: nobody is in need by the time that it comes back.
const TTL: &str = "2m";

/// A broker that does little at once, so that a herd of this size finds its bounds.
fn narrow() -> Site {
    let lease = format!("binding = \"lease\"\nx509_ttl = \"{TTL}\"");
    let config = with_broker_api(ORCHESTRATOR, "").replace("binding = \"lease\"", &lease);
    Site::new(&format!("{config}\n[admission]\nsigning = 8\nwaiting = 1000\n"))
}

async fn begin(api: &Api, count: usize) -> Vec<String> {
    let lease = || tasks::BeginRequest { lease_ms: 600_000, ..wish("errand", Holder::Lease(true)) };
    let wishes = (0..count).map(|_| Wish::Begin(lease())).collect();
    let outcomes = api.batch(wishes).await.expect("a batch").into_iter();
    outcomes
        .map(|outcome| match outcome {
            Outcome::Begun(begun) => begun.task,
            other => panic!("not begun: {other:?}"),
        })
        .collect()
}

/// What became of the calls for one task.
#[derive(Default)]
struct Tale {
    /// Until when its newest certificate lasts.
    not_after: Timestamp,
    /// How often it was told that there is no room.
    turned_away: usize,
}

/// A task's stream and the way to another.
struct Member {
    client: Arc<Client>,
    reference: WorkloadReference,
    stream: Option<Svids>,
    tale: Tale,
}

impl Member {
    fn new(client: &Arc<Client>, task: &str) -> Self {
        let (client, reference) = (Arc::clone(client), by_task(task, 0));
        Self { client, reference, stream: None, tale: Tale::default() }
    }

    /// Asks until there is a certificate, as a client does that keeps to what it is told.
    async fn open(&mut self) {
        let certificate = within("a certificate", async {
            loop {
                match self.client.watch(&self.reference).await {
                    Ok((svid, stream)) => {
                        self.stream = Some(stream);
                        break svid;
                    }
                    Err(status) => self.wait_after(&status).await,
                }
            }
        });
        let svid = certificate.await;
        let before = std::mem::replace(&mut self.tale.not_after, end_of(&svid.x509_svid));
        let in_time = before == Timestamp(0) || mayfly::clock::now() < before;
        assert!(in_time, "there is another certificate before the old one has expired");
    }

    /// The only bad news there are is that the broker is gone, or that it has no room.
    async fn wait_after(&mut self, status: &Status) {
        assert!(is_fair(status), "{status:?}");
        let hint = retry_hint(status);
        assert_eq!(hint.is_some(), status.message().starts_with("overloaded: "), "{status:?}");
        self.tale.turned_away += usize::from(hint.is_some());
        // A broker that is not there gives no sign when it is again.
        tokio::time::sleep(hint.unwrap_or(Duration::from_millis(50))).await;
    }

    /// The broker dies, and nobody else ends the stream.
    async fn torn(&mut self) {
        let mut stream = self.stream.take().expect("it is open");
        let end = within("the end of the broker", async {
            loop {
                match stream.message().await {
                    Ok(Some(renewed)) => {
                        let svid = renewed.svids.into_iter().next().expect("never empty");
                        self.tale.not_after = end_of(&svid.x509_svid);
                    }
                    Ok(None) => panic!("a stream never ends well"),
                    Err(status) => break status,
                }
            }
        });
        let end = end.await;
        assert!(is_fair(&end) && retry_hint(&end).is_none(), "{end:?}");
    }
}

fn is_fair(status: &Status) -> bool {
    status.code() == Code::Unavailable || was_torn(status)
}

fn end_of(chain: &[u8]) -> Timestamp {
    let leaf = x509::split(chain).expect("a chain");
    x509::Leaf::parse(leaf.first().expect("a leaf")).expect("an svid").not_after
}

/// Opens all at the same moment.
async fn open(members: Vec<Member>) -> Vec<Member> {
    let gate = Arc::new(Barrier::new(members.len()));
    let mut opening = JoinSet::new();
    for mut member in members {
        let gate = Arc::clone(&gate);
        opening.spawn(async move {
            gate.wait().await;
            member.open().await;
            member
        });
    }
    opening.join_all().await
}

fn turned_away(members: &[Member]) -> usize {
    members.iter().map(|member| member.tale.turned_away).sum()
}

/// A herd without a queue would be served in the order in which it came, and one without a bound would fill the
/// memory. Whoever is turned away knows when to come again, and in the end everybody has a certificate: twice,
/// once when all are new, and once when the broker has died under them and all come back while others begin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_a_herd_gets_its_certificates_and_new_tasks_do_not_wait_for_it() {
    let site = narrow();
    let broker = site.start().await;
    let orchestrator = Orchestrator::start(&broker).await;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = orchestrator.unix(&socket(&site)).await.expect("it is listed");
        clients.push(Arc::new(client));
    }
    let api = Api::of(&site);
    let mut all = Vec::new();
    for _ in 0..TASKS / 1000 {
        all.extend(begin(&api, 1000).await);
    }
    let client = |at: usize| &clients[at % CONNECTIONS];
    let members = all.iter().enumerate().map(|(at, task)| Member::new(client(at), task));
    let mut members = open(members.collect()).await;
    assert!(turned_away(&members) > 0, "{TASKS} callers find no room at once");

    broker.kill().await;
    for member in &mut members {
        member.torn().await;
        member.tale.turned_away = 0;
    }
    let broker = site.start().await;
    let api = Api::of(&site);
    let newcomers = async {
        let begun = begin(&api, NEW).await;
        let new = begun.iter().enumerate().map(|(at, task)| Member::new(client(at), task));
        open(new.collect()).await
    };
    let (back, new) = tokio::join!(open(members), newcomers);
    assert!(turned_away(&back) > 0, "{TASKS} callers find no room at once");
    // More may wait than are new, and each of them is needier than all that come back with certificates.
    assert_eq!((turned_away(&new), new.len()), (0, NEW), "new tasks do not wait behind renewals");
    assert_eq!(back.len(), TASKS);
    let living =
        api.list(tasks::Filter { profile: "errand".to_owned(), ..Default::default() }).await;
    assert_eq!(living.len(), TASKS + NEW, "and no task is over");
    assert_eq!(broker.stop().await, Some(0));
}
