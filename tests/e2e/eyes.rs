//! Units, containers and pods that hold tasks: R2 and R14 for them, and what a restart makes of them.
//!
//! There is no engine and no systemd here, but there are their cgroups, made where they make them, and
//! a bus with a small systemd on it.

use mayfly_proto::mayfly::v1::{self as wire, begin_task_request::Holder};
use mayfly_verify::{Endpoint, WorkloadClient};
use tonic::Code;

use crate::{
    actor::{Actor, Svid},
    common::{Broker, Operator, Site, task_of, until, within},
    den::Den,
    fake_systemd::{Bus, FakeSystemd},
    stand::{AUDIENCE, skip},
};

/// Profiles that ask for nothing but the binding's own evidence.
fn configuration(dbus: &str, profiles: &[(&str, &str, &str)]) -> String {
    let head = "trust_domain = \"example.org\"\n[workload]\nsocket = \"workload.sock\"\n";
    let attest = format!("[attest]\ndbus = \"{dbus}\"\n");
    let judge = "[[profile]]\nname = \"judge\"\npath = \"/judge\"\nowner = \"team\"\n\
                 binding = \"socket\"\n";
    let profile = |(name, selector, binding): &(&str, &str, &str)| {
        format!(
            "[[profile]]\nname = \"{name}\"\npath = \"/{name}\"\nselectors = [\"{selector}\"]\n\
             owner = \"team\"\nbinding = \"{binding}\"\n"
        )
    };
    let profiles: String = profiles.iter().map(profile).collect();
    format!("{head}{attest}{profiles}{judge}")
}

const NO_BUS: &str = "unix:path=/nonexistent/bus";
const CONTAINERS: &[(&str, &str, &str)] = &[("web", "container:engine:docker", "container")];

/// A container's id that nobody else on this machine has.
fn id(number: u8) -> String {
    format!("{:08x}{}", std::process::id(), format!("{number:02x}").repeat(28))
}

fn den(path: &str) -> Option<Den> {
    Den::make(path).inspect_err(|why| skip(why)).ok()
}

async fn start(config: &str) -> (Site, Broker, Operator) {
    let site = Site::new(config);
    let broker = site.start().await;
    let operator = broker.operator().await;
    (site, broker, operator)
}

/// A workload that was started in `den`.
async fn actor(site: &Site, den: &Den) -> Actor {
    let actor = Actor::start(&site.socket()).await;
    den.place(u32::try_from(actor.pid).expect("a pid"));
    actor
}

/// Waits until the task has ended, and nothing of it is good for anything.
async fn assert_over(
    stand: &mut (Site, Broker, Operator),
    task: &str,
    token: &str,
) -> wire::TaskView {
    let operator = &mut stand.2;
    until("a refusal", async || (!is_valid(operator, token).await).then_some(())).await;
    let view = operator.show(task).await.expect("it is remembered").0;
    let cause = if view.exit.is_some_and(|code| code != 0) { "failed" } else { "exited" };
    assert_eq!((view.state.as_str(), view.cause.as_str()), ("ended", cause));
    view
}

/// Whether a token is good, as a sandbox hears it: this process has no identity here to ask with.
async fn is_valid(operator: &Operator, token: &str) -> bool {
    let begun = operator.clone().begin(task_of("judge", Holder::Socket(true))).await;
    let endpoint = format!("unix://{}", begun.expect("a judge").socket);
    let client = WorkloadClient::new(&Endpoint::parse(&endpoint).expect("a path"));
    client.validate_jwt(AUDIENCE, token).await.is_ok()
}

/// R14: a container's end ends its task; R2: two containers of one image are two identities.
#[tokio::test]
async fn r14_a_containers_end_ends_its_task() {
    let Some(one) = den(&format!("/docker/{}", id(1))) else { return };
    let Some(two) = den(&format!("/system.slice/docker-{}.scope/inner", id(2))) else { return };
    let mut stand = start(&configuration(NO_BUS, CONTAINERS)).await;
    let mut first = actor(&stand.0, &one).await;
    let mut second = actor(&stand.0, &two).await;
    let mut beside = actor(&stand.0, &one).await;
    let svid = first.watch().await;
    let other = second.watch().await;
    assert_ne!((svid.task(), &svid.spiffe_id), (other.task(), &other.spiffe_id));
    assert_eq!(beside.x509().await.expect("the same container").task(), svid.task());
    assert_eq!(first.child_x509().await.expect("born in it").task(), svid.task());
    let view = stand.2.show(&svid.task()).await.expect("a task").0;
    assert_eq!((view.binding.as_str(), view.holder.as_str()), ("container", id(1).as_str()));
    let (token, kept) = (first.jwt(AUDIENCE).await, second.jwt(AUDIENCE).await);
    let (token, kept) = (token.expect("a token"), kept.expect("a token"));

    // One of two processes: the container goes on.
    beside.kill().await;
    assert!(is_valid(&stand.2, &token).await);
    one.kill();
    first.reap().await;
    assert_over(&mut stand, &svid.task(), &token).await;
    assert!(is_valid(&stand.2, &kept).await, "another container goes on");

    // Started anew it is another holder, and has nothing of the first.
    one.renew();
    let mut again = actor(&stand.0, &one).await;
    let svid_again = again.x509().await.expect("met as itself");
    assert_ne!(svid_again.task(), svid.task());
}

/// R14: what ended stays ended for whoever still lives in it.
#[tokio::test]
async fn r14_a_container_whose_task_was_ended_gets_no_other() {
    let Some(den) = den(&format!("/docker/{}", id(3))) else { return };
    let mut stand = start(&configuration(NO_BUS, CONTAINERS)).await;
    let mut actor = actor(&stand.0, &den).await;
    let svid = actor.x509().await.expect("met");
    stand.2.end(&svid.task(), "revoked").await.expect("ended");
    for refused in [actor.x509().await, actor.child_x509().await] {
        let no = refused.expect_err("its task is over");
        assert!(no.message.starts_with("task_ended"), "{no:?}");
    }
}

/// R14: a pod's end ends its task, and the end of one of its containers does not.
#[tokio::test]
async fn r14_a_pods_end_ends_its_task() {
    let uid = format!("{:08x}-1f6e-4c0b-9d5e-7c1d2e3f4a5b", std::process::id());
    let above = "/kubepods.slice/kubepods-burstable.slice";
    let pod = format!("{above}/kubepods-burstable-pod{}.slice", uid.replace('-', "_"));
    let Some(app) = den(&format!("{pod}/cri-containerd-{}.scope", id(4))) else { return };
    let Some(helper) = den(&format!("{pod}/cri-containerd-{}.scope", id(5))) else { return };
    let selector = format!("k8s:pod-uid:{uid}");
    let mut stand = start(&configuration(NO_BUS, &[("pod", &selector, "pod")])).await;
    let (mut main, mut side) = (actor(&stand.0, &app).await, actor(&stand.0, &helper).await);
    let svid = main.watch().await;
    assert_eq!(side.x509().await.expect("the same pod").task(), svid.task());
    let view = stand.2.show(&svid.task()).await.expect("a task").0;
    assert_eq!((view.binding.as_str(), view.holder.as_str()), ("pod", uid.as_str()));
    let token = main.jwt(AUDIENCE).await.expect("a token");
    helper.kill();
    side.reap().await;
    assert!(is_valid(&stand.2, &token).await, "one container of it goes on");
    app.kill();
    main.reap().await;
    assert_over(&mut stand, &svid.task(), &token).await;
}

/// A bus, a systemd, and a broker that asks it about the unit `name`.
async fn unit(name: &str) -> Option<(Den, Bus, FakeSystemd, (Site, Broker, Operator))> {
    let den = den(&format!("/system.slice/{name}"))?;
    let bus = Bus::start().await.inspect_err(|why| skip(why)).ok()?;
    let manager = FakeSystemd::start(&bus).await;
    manager.run(name, [1; 16]).await;
    let selector = format!("systemd:unit:{name}");
    let stand = start(&configuration(&bus.address(), &[("unit", &selector, "systemd")])).await;
    Some((den, bus, manager, stand))
}

async fn met(actor: &mut Actor) -> (Svid, String) {
    let svid = actor.watch().await;
    (svid, actor.jwt(AUDIENCE).await.expect("a token"))
}

/// R14: a unit's end ends its task, with the exit code that systemd tells; a unit that was started anew
/// is another holder.
#[tokio::test]
async fn r14_a_units_end_ends_its_task() {
    let name = "mayfly-e2e-ends.service";
    let Some((den, _bus, manager, mut stand)) = unit(name).await else { return };
    let mut first = actor(&stand.0, &den).await;
    let (svid, token) = met(&mut first).await;
    let view = stand.2.show(&svid.task()).await.expect("a task").0;
    assert_eq!((view.binding.as_str(), view.holder.as_str()), ("systemd", name));
    manager.change(name, ("failed", "failed"), (1, 3)).await;
    let view = assert_over(&mut stand, &svid.task(), &token).await;
    assert_eq!(view.exit, Some(3));
    let end = first.stream_end().await;
    assert_eq!(end.code, Code::PermissionDenied as i32, "{end:?}");

    // What is left of the old run lives in the new one's cgroup, as it does for systemd.
    manager.rerun(name, [2; 16]).await;
    manager.change(name, ("active", "running"), (0, 0)).await;
    let mut second = actor(&stand.0, &den).await;
    let (again, token) = met(&mut second).await;
    assert_ne!(again.task(), svid.task());
    manager.rerun(name, [3; 16]).await;
    assert_over(&mut stand, &again.task(), &token).await;
}

/// R14: an end is not lost with the bus, whether it is heard of before or after.
#[tokio::test]
async fn r14_a_unit_ends_without_a_bus_too() {
    let name = "mayfly-e2e-silent.service";
    let Some((den, mut bus, _manager, mut stand)) = unit(name).await else { return };
    let mut first = actor(&stand.0, &den).await;
    let (svid, token) = met(&mut first).await;
    bus.kill().await;
    assert!(is_valid(&stand.2, &token).await, "a lost bus is no end");
    den.kill();
    first.reap().await;
    assert_over(&mut stand, &svid.task(), &token).await;

    bus.again().await;
    let manager = FakeSystemd::start(&bus).await;
    manager.run(name, [2; 16]).await;
    let mut second = actor(&stand.0, &den).await;
    let svid = within("systemd is heard again", async {
        loop {
            // Refused at once for as long as the bus is being joined again.
            if let Ok(svid) = second.x509().await {
                return svid;
            }
        }
    });
    let svid = svid.await;
    den.kill();
    second.reap().await;
    manager.change(name, ("failed", "failed"), (2, 9)).await;
    let operator = stand.2.clone();
    let view = until("its end", || {
        let (mut operator, task) = (operator.clone(), svid.task());
        async move {
            let view = operator.show(&task).await.ok()?.0;
            (view.state == "ended").then_some(view)
        }
    });
    assert_eq!(view.await.exit, Some(128 + 9));
}

/// A bus that is not there is no error, and is said.
#[tokio::test]
async fn a_missing_bus_is_said_only_where_it_matters() {
    let units = [("unit", "systemd:unit:web.service", "systemd")];
    for (profiles, said) in [(&units[..], 1), (CONTAINERS, 0)] {
        let mut stand = start(&configuration(NO_BUS, profiles)).await;
        let notices = stand.2.status().await.expect("a status").notices;
        let silent = notices.iter().filter(|notice| notice.starts_with("systemd cannot be asked"));
        assert_eq!(silent.count(), said, "{notices:?}");
    }
}

/// R14: begun by name; what does not run holds nothing, and what holds a task holds no second one.
#[tokio::test]
async fn r14_a_running_container_can_be_given_a_task_by_its_id() {
    let Some(den) = den(&format!("/docker/{}", id(6))) else { return };
    let mut stand = start(&configuration(NO_BUS, CONTAINERS)).await;
    let begin = || task_of("web", Holder::ContainerId(id(6)));
    let unfit = stand.2.begin(begin()).await.expect_err("nobody lives there");
    assert!(unfit.message().starts_with("holder_unfit"), "{unfit:?}");
    let mut actor = actor(&stand.0, &den).await;
    let begun = stand.2.begin(begin()).await.expect("it runs");
    let taken = stand.2.begin(begin()).await.expect_err("it has one");
    assert!(taken.message().starts_with("holder_taken"), "{taken:?}");
    let (svid, token) = met(&mut actor).await;
    assert_eq!(svid.task(), begun.task);
    for wish in [
        Holder::ContainerId(id(7)),
        Holder::PodUid("3a5b2a0c-1f6e-4c0b-9d5e-7c1d2e3f4a5b".to_owned()),
        Holder::SystemdUnit("mayfly-e2e-nothing.service".to_owned()),
    ] {
        let unfit = stand.2.begin(task_of("web", wish)).await.expect_err("no such thing");
        assert!(unfit.message().starts_with("holder_unfit"), "{unfit:?}");
    }
    den.kill();
    actor.reap().await;
    assert_over(&mut stand, &begun.task, &token).await;
}

/// R14: who ended while the broker was down is found out, also if somebody of its name lives there now.
#[tokio::test]
async fn r14_a_container_started_anew_while_the_broker_was_down_is_another() {
    let Some(stays) = den(&format!("/docker/{}", id(8))) else { return };
    let Some(goes) = den(&format!("/docker/{}", id(9))) else { return };
    let (site, broker, _) = start(&configuration(NO_BUS, CONTAINERS)).await;
    let (mut one, mut two) = (actor(&site, &stays).await, actor(&site, &goes).await);
    let kept = one.x509().await.expect("met").task();
    let lost = two.x509().await.expect("met").task();
    broker.kill().await;
    goes.kill();
    two.reap().await;
    goes.renew();
    let mut three = actor(&site, &goes).await;
    let broker = site.start().await;
    let mut operator = broker.operator().await;
    assert_eq!(operator.show(&kept).await.expect("remembered").0.state, "active");
    assert_eq!(operator.show(&lost).await.expect("remembered").0.state, "ended");
    assert_eq!(one.x509().await.expect("still itself").task(), kept);
    assert_ne!(three.x509().await.expect("met as itself").task(), lost);
}
