//! What the tests have in common: a usual configuration, and a client that checks tokens.

use mayfly_proto::mayfly::v1::begin_task_request::Holder;
use mayfly_verify::WorkloadError;
use tonic::{Code, Status};

use crate::common::{Broker, Operator, Site, own_uid, task_of};

/// The audience of every token.
pub(crate) const AUDIENCE: &str = "the-audience";
/// A user who is nobody's.
pub(crate) const STRANGER: u32 = 65_534;

/// A profile for each binding, for the user who runs the tests, and `more` of the same document.
pub(crate) fn configuration(more: &str) -> String {
    let uid = own_uid();
    format!(
        r#"trust_domain = "example.org"

[workload]
socket = "workload.sock"

[[profile]]
name = "met"
path = "/met"
selectors = ["unix:uid:{uid}"]
owner = "team"

[[profile]]
name = "job"
path = "/job"
selectors = ["unix:uid:{uid}"]
owner = "team"
binding = "lineage"

[[profile]]
name = "booth"
path = "/booth"
selectors = []
owner = "team"
binding = "socket"

[[profile]]
name = "errand"
path = "/errand"
selectors = ["unix:uid:{uid}"]
owner = "team"
binding = "lease"
{more}"#
    )
}

/// A broker with the usual configuration, and its operator.
pub(crate) async fn stand() -> (Site, Broker, Operator) {
    stand_with("").await
}

/// The same with more configuration.
pub(crate) async fn stand_with(more: &str) -> (Site, Broker, Operator) {
    let site = Site::new(&configuration(more));
    let broker = site.start().await;
    let operator = broker.operator().await;
    (site, broker, operator)
}

/// Begins a task that is held by the process `pid` and those below it.
pub(crate) async fn begin_on(operator: &mut Operator, pid: i32) -> String {
    let begun = operator.begin(task_of("job", Holder::LineagePid(pid))).await;
    begun.expect("the task begins").task
}

/// The status in an answer of the Workload API's client.
pub(crate) fn status(error: WorkloadError) -> Status {
    match error {
        WorkloadError::Status(status) => status,
        other @ (WorkloadError::Endpoint(_) | WorkloadError::Svid(_) | WorkloadError::Empty(_)) => {
            panic!("no status: {other}")
        }
    }
}

/// Whether the broker says that a token is good. A No has to be an invalid argument.
pub(crate) async fn is_valid(broker: &Broker, token: &str) -> bool {
    match broker.workload().validate_jwt(AUDIENCE, token).await {
        Ok(_) => true,
        Err(error) => {
            let status = status(error);
            assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
            false
        }
    }
}

/// Credentials that stand, over all tasks of a broker.
pub(crate) async fn live_credentials(operator: &mut Operator) -> usize {
    let now = mayfly::clock::now().0;
    let tasks = operator.list(false).await.expect("a list");
    let all = tasks.iter().flat_map(|task| &task.credentials);
    all.filter(|one| one.revoked_at_ms == 0 && one.not_after_ms > now).count()
}

/// Says loudly that a test could not be run here.
pub(crate) fn skip(why: &str) {
    use std::io::Write as _;
    writeln!(std::io::stderr(), "SKIPPED: {why}").expect("standard error is open");
}
