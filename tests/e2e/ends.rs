//! How tasks end, and what is left of them: R14, R20, R41.

use std::collections::BTreeSet;

use mayfly_attest::{Cgroup, CgroupError};
use mayfly_proto::mayfly::v1::{self as wire, begin_task_request::Holder, revoke_request::Target};
use mayfly_verify::{Endpoint, WorkloadClient};
use nix::sys::signal::Signal;
use tonic::{Code, Status};

use crate::{
    actor::{Actor, Casting, Svid, X509Stream},
    common::{Broker, Operator, Site, task_of, until, within},
    papers,
    stand::{AUDIENCE, begin_on, is_valid, skip, stand, stand_with},
};

/// What a survivor still holds when its task is over.
struct Loot {
    task: String,
    svid: Svid,
    token: String,
}

/// Nothing of an ended task is good for anything any more, and the log says why it ended.
async fn assert_worthless(
    (site, broker, operator): &mut (Site, Broker, Operator),
    loot: &Loot,
    cause: &str,
) -> wire::TaskView {
    assert!(!is_valid(broker, &loot.token).await, "the token is refused");
    let view = operator.show(&loot.task).await.expect("it is remembered").0;
    assert_eq!((view.state.as_str(), view.cause.as_str()), ("ended", cause));
    // A No is heard before it is on disk, so the log may be a moment behind.
    let last = until("the entry in the log", async || {
        let (_, story) = operator.clone().show(&loot.task).await.expect("it is remembered");
        story.into_iter().find(|entry| entry.what == "ended")
    });
    let last = last.await;
    assert!(last.detail.starts_with(cause), "{last:?}");
    let data = site.data();
    // A list names certificates that could still be believed; where lease or deadline ended the task,
    // its certificates ended with it.
    if loot.svid.not_after_ms > view.ended_at_ms {
        let is_listed = async || papers::all_crls_name(&data, &loot.svid.serial).then_some(());
        until("lists that name its certificate", is_listed).await;
    }
    view
}

/// R14: the holder exits, fails or is killed, and a child of it survives with everything in its hands.
#[tokio::test]
async fn r14_the_holders_exit_ends_its_task() {
    let mut stand = stand().await;
    for (signal, exit) in [(Signal::SIGUSR1, 0), (Signal::SIGUSR2, 3), (Signal::SIGKILL, 137)] {
        let held = Casting { held: true, ..Casting::default() };
        let mut survivor = Actor::cast(&stand.0.socket(), held).await;
        let task = begin_on(&mut stand.2, survivor.pid).await;
        let svid = survivor.watch().await;
        let token = survivor.jwt(AUDIENCE).await.expect("a token");
        assert_eq!(svid.task(), task);
        assert!(is_valid(&stand.1, &token).await);

        survivor.signal(signal);
        survivor.reap().await;
        let end = survivor.stream_end().await;
        assert_eq!(end.code, Code::PermissionDenied as i32, "{end:?}");
        let loot = Loot { task, svid, token };
        let cause = if exit == 0 { "exited" } else { "failed" };
        let view = assert_worthless(&mut stand, &loot, cause).await;
        assert_eq!(view.exit, Some(exit));
        // The survivor belongs to nobody any more. Its user has a profile, under which it may be met
        // like anybody else; but it is not that task again.
        let met = survivor.x509().await.expect("met as itself");
        assert!(met.task() != loot.task && met.spiffe_id.contains("/met/"), "{met:?}");
    }
}

/// R21: a token that is shown after the end is refused, and its use stands in the task's story, once.
/// A token that is in order leaves no trace of the kind.
#[tokio::test]
async fn r21_use_after_the_end_is_detected_and_testified() {
    let (site, broker, mut operator) = stand().await;
    let casting = Casting { held: true, ..Casting::default() };
    let mut survivor = Actor::cast(&site.socket(), casting).await;
    let task = begin_on(&mut operator, survivor.pid).await;
    survivor.watch().await;
    let token = survivor.jwt(AUDIENCE).await.expect("a token");
    for _ in 0..3 {
        assert!(is_valid(&broker, &token).await);
    }
    survivor.signal(Signal::SIGKILL);
    survivor.reap().await;
    survivor.stream_end().await;
    for _ in 0..3 {
        assert!(!is_valid(&broker, &token).await);
    }
    let alarms = until("the alarm in the log", async || {
        let (_, story) = operator.clone().show(&task).await.expect("it is remembered");
        let alarms = story.into_iter().filter(|entry| entry.what.starts_with("used_"));
        let alarms: Vec<_> = alarms.map(|entry| (entry.what, entry.detail)).collect();
        (!alarms.is_empty()).then_some(alarms)
    });
    let alarms = alarms.await;
    assert_eq!(alarms.len(), 1, "said once: {alarms:?}");
    assert_eq!(alarms[0].0, "used_after_end");
    assert!(alarms[0].1.contains("says spiffe://"), "it names who was shown it: {alarms:?}");
}

/// R14: the last process of a cgroup is gone.
#[tokio::test]
async fn r14_an_emptied_cgroup_ends_its_task() {
    let cgroup = match Cgroup::create(&format!("mayfly-e2e-{}", std::process::id())) {
        Ok(cgroup) => cgroup,
        Err(CgroupError::NoHierarchy | CgroupError::NotPermitted(_)) => {
            return skip("r14_an_emptied_cgroup_ends_its_task may not make a cgroup");
        }
        Err(error) => panic!("{error}"),
    };
    let mut stand = stand().await;
    let mut actor = Actor::start(&stand.0.socket()).await;
    cgroup.place(u32::try_from(actor.pid).expect("a pid")).expect("it is ours to move");
    let begun = stand.2.begin(task_of("job", Holder::Cgroup(cgroup.path().to_owned()))).await;
    let task = begun.expect("a task").task;
    let svid = actor.watch().await;
    assert_eq!(svid.task(), task);
    assert_eq!(actor.child_x509().await.expect("born in it").task(), task);
    let token = actor.jwt(AUDIENCE).await.expect("a token");
    actor.kill().await;
    let broker = &stand.1;
    until("a refusal", async || (!is_valid(broker, &token).await).then_some(())).await;
    // Its main process was killed, which is no good end.
    let view = assert_worthless(&mut stand, &Loot { task, svid, token }, "failed").await;
    assert_eq!(view.exit, Some(137));
    cgroup.remove().expect("it is empty");
}

/// A task with a socket of its own, and this process at it.
struct Booth {
    socket: std::path::PathBuf,
    stream: X509Stream,
    loot: Loot,
}

impl Booth {
    async fn open(operator: &mut Operator, wish: wire::BeginTaskRequest) -> Self {
        let begun = operator.begin(wish).await.expect("a task");
        let endpoint = Endpoint::parse(&format!("unix://{}", begun.socket)).expect("a path");
        let mut stream = X509Stream::open(&endpoint);
        let svid = Svid::of(&within("a message", stream.next()).await.expect("an identity"));
        let tokens = WorkloadClient::new(&endpoint).fetch_jwt(&[AUDIENCE], None).await;
        let token = tokens.expect("a token")[0].token.clone();
        let loot = Loot { task: begun.task, svid, token };
        Self { socket: begun.socket.into(), stream, loot }
    }

    /// Waits for the end of the stream; renewals may come before it.
    async fn stream_end(&mut self) -> Status {
        let end = async {
            loop {
                if let Err(status) = self.stream.next().await {
                    return status;
                }
            }
        };
        within("the stream's end", end).await
    }

    /// The task is over for `cause`, and its socket with it.
    async fn assert_closed(
        mut self,
        stand: &mut (Site, Broker, Operator),
        cause: &str,
    ) -> wire::TaskView {
        let end = self.stream_end().await;
        assert_eq!(end.code(), Code::PermissionDenied, "{end:?}");
        assert!(end.message().starts_with("task_ended"), "{end:?}");
        let socket = self.socket.clone();
        until("the socket's end", async || (!socket.exists()).then_some(())).await;
        assert_worthless(stand, &self.loot, cause).await
    }
}

fn booth() -> wire::BeginTaskRequest {
    task_of("booth", Holder::Socket(true))
}

/// R14: nobody sends a heartbeat, for a task that has a lease beside its socket or nothing but a lease.
#[tokio::test]
async fn r14_a_lapsed_lease_ends_its_task() {
    let mut stand = stand().await;
    for wish in [booth(), task_of("errand", Holder::LeaseOnly(true))] {
        let wish = wire::BeginTaskRequest { lease_ms: 3500, ..wish };
        let booth = Booth::open(&mut stand.2, wish).await;
        let view = booth.assert_closed(&mut stand, "lease_lapsed").await;
        assert!(view.ended_at_ms >= view.lease_until_ms, "not before its time");
    }
}

/// R14: its time is up.
#[tokio::test]
async fn r14_a_deadline_ends_its_task() {
    let mut stand = stand().await;
    let deadline_ms = mayfly::clock::now().0 + 3500;
    let booth = Booth::open(&mut stand.2, wire::BeginTaskRequest { deadline_ms, ..booth() }).await;
    let view = booth.assert_closed(&mut stand, "deadline").await;
    assert!(view.ended_at_ms >= deadline_ms, "not before its time");
}

/// R14: the task that it is a part of has ended.
#[tokio::test]
async fn r14_a_parents_end_ends_its_task() {
    let mut stand = stand().await;
    let lease = wire::BeginTaskRequest {
        lease_ms: 3_600_000,
        ..task_of("errand", Holder::LeaseOnly(true))
    };
    let parent = stand.2.begin(lease).await.expect("a parent").task;
    let wish = wire::BeginTaskRequest { parent: parent.clone(), ..booth() };
    let booth = Booth::open(&mut stand.2, wish).await;
    stand.2.end(&parent, "failed").await.expect("ended");
    booth.assert_closed(&mut stand, "parent_ended").await;
    assert_eq!(stand.2.show(&parent).await.expect("a task").0.cause, "failed");
}

/// R14: its orchestrator says so, on the command line; and somebody repeats it.
#[tokio::test]
async fn r14_an_operator_ends_a_task_once() {
    let mut stand = stand().await;
    let booth = Booth::open(&mut stand.2, booth()).await;
    let task = booth.loot.task.clone();
    let end = stand.0.mayfly(&["task", "end", &task]).await;
    assert!(end.status.success(), "{end:?}");
    let again = stand.0.mayfly(&["task", "end", &task, "--cause", "failed"]).await;
    assert!(again.status.success(), "{again:?}");
    booth.assert_closed(&mut stand, "completed").await;
    let (_, story) = stand.2.show(&task).await.expect("a task");
    assert_eq!(story.iter().filter(|entry| entry.what == "ended").count(), 1);
}

/// R14: everything of a profile is revoked at once, and nothing else.
#[tokio::test]
async fn r14_revoking_a_profile_ends_its_tasks_alone() {
    let mut stand = stand().await;
    let mut bystander = Actor::start(&stand.0.socket()).await;
    let other = bystander.x509().await.expect("met");
    let one = Booth::open(&mut stand.2, booth()).await;
    let two = Booth::open(&mut stand.2, booth()).await;
    let revoked = stand.2.revoke(Target::Profile("booth".to_owned())).await.expect("revoked");
    assert_eq!((revoked.tasks, revoked.credentials), (2, 4));
    one.assert_closed(&mut stand, "revoked").await;
    two.assert_closed(&mut stand, "revoked").await;
    assert_eq!(bystander.x509().await.expect("untouched"), other);
}

/// R20: a token is good for as long as its own task goes on, whoever else has the same name.
#[tokio::test]
async fn r20_a_token_of_an_ended_task_is_refused_although_its_name_lives_on() {
    let stable = "\n[[profile]]\nname = \"stable\"\npath = \"/stable\"\nselectors = []\n\
                  owner = \"team\"\nbinding = \"socket\"\nidentity = \"stable\"\n";
    let mut stand = stand_with(stable).await;
    let wish = || task_of("stable", Holder::Socket(true));
    let one = Booth::open(&mut stand.2, wish()).await;
    let two = Booth::open(&mut stand.2, wish()).await;
    assert_eq!(one.loot.svid.spiffe_id, two.loot.svid.spiffe_id);
    assert!(is_valid(&stand.1, &one.loot.token).await && is_valid(&stand.1, &two.loot.token).await);
    stand.2.end(&one.loot.task, "completed").await.expect("ended");
    assert!(!is_valid(&stand.1, &one.loot.token).await, "its task is over");
    assert!(is_valid(&stand.1, &two.loot.token).await, "its task goes on");

    // One task's claims under the other's signature.
    let part = |token: &str, at: usize| token.split('.').nth(at).expect("three parts").to_owned();
    let (old, new) = (&one.loot.token, &two.loot.token);
    for (a, b, c) in [(new, old, new), (old, new, old), (old, old, new)] {
        let forged = format!("{}.{}.{}", part(a, 0), part(b, 1), part(c, 2));
        assert!(!is_valid(&stand.1, &forged).await, "forged");
    }
}

/// R20: what was issued for an older version of a task is refused.
#[tokio::test]
async fn r20_a_token_of_an_older_version_is_refused() {
    let mut stand = stand().await;
    let mut booth = Booth::open(&mut stand.2, booth()).await;
    let task = booth.loot.task.clone();
    assert_eq!(stand.2.amend(&task, "another purpose").await.expect("amended"), 2);
    assert!(!is_valid(&stand.1, &booth.loot.token).await, "issued for the first version");
    let next = within("a new certificate", booth.stream.next()).await.expect("pushed");
    assert_ne!(Svid::of(&next).serial, booth.loot.svid.serial);
    let endpoint = Endpoint::parse(&format!("unix://{}", booth.socket.display())).expect("a path");
    let tokens = WorkloadClient::new(&endpoint).fetch_jwt(&[AUDIENCE], None).await;
    assert!(is_valid(&stand.1, &tokens.expect("a token")[0].token).await);
}

/// R41: the end of a task is the end of everything below it, and of nothing beside it.
#[tokio::test]
async fn r41_a_tree_ends_with_its_root_and_leaves_its_siblings() {
    let mut stand = stand().await;
    let operator = &mut stand.2;
    let mut forest: Vec<(String, Option<usize>)> = Vec::new();
    let mut luck = 0x9E37_79B9_u64;
    for at in 0..120 {
        // Two roots, and whoever comes later hangs on anybody who is there.
        luck = luck.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let parent = (at >= 2).then(|| usize::try_from(luck >> 33).expect("small") % at);
        let wish = wire::BeginTaskRequest {
            lease_ms: 3_600_000,
            parent: parent.map(|at| forest[at].0.clone()).unwrap_or_default(),
            ..task_of("errand", Holder::LeaseOnly(true))
        };
        let task = operator.begin(wish).await.expect("a task").task;
        forest.push((task, parent));
    }
    let below = |root: usize| -> BTreeSet<String> {
        let is_below = |mut at: usize| loop {
            match forest[at].1 {
                _ if at == root => return true,
                Some(parent) => at = parent,
                None => return false,
            }
        };
        (0..forest.len()).filter(|at| is_below(*at)).map(|at| forest[at].0.clone()).collect()
    };
    // First a branch, then the whole tree above it.
    let branch = (2..forest.len()).max_by_key(|at| below(*at).len()).expect("a branch");
    let root = usize::from(!below(0).contains(&forest[branch].0));
    for end in [branch, root] {
        operator.end(&forest[end].0, "revoked").await.expect("ended");
        for task in operator.list(true).await.expect("a list") {
            let (gone, top) = (below(end).contains(&task.task), task.task == forest[end].0);
            let in_branch = below(branch).contains(&task.task) && end == root && !top;
            if in_branch {
                assert_eq!(task.state, "ended", "it ended before");
            } else if gone {
                let cause = if top { "revoked" } else { "parent_ended" };
                assert_eq!((task.state.as_str(), task.cause.as_str()), ("ended", cause));
            } else {
                assert_eq!(task.state, "active", "a sibling goes on");
            }
        }
    }
    assert!(below(branch).len() > 2 && below(root).len() < forest.len(), "the forest is one");
    let wish = wire::BeginTaskRequest {
        lease_ms: 60_000,
        parent: forest[root].0.clone(),
        ..task_of("errand", Holder::LeaseOnly(true))
    };
    let refused = operator.begin(wish).await.expect_err("its parent is over");
    assert!(refused.message().starts_with("parent_inactive"), "{refused:?}");
}
