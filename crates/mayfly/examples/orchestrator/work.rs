//! What the orchestrator does, each part with what it has to show for it.

use std::time::Duration;

use mayfly::client::{Begin, Client, ClientError, Holder, Outcome};
use mayfly_verify::{Endpoint, WorkloadClient, WorkloadError};
use serde_json::{Value, json};

/// Why it came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Tasks(#[from] ClientError),
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    #[error(transparent)]
    Endpoint(#[from] mayfly_verify::InvalidEndpoint),
}

/// Work that is renewed for as long as we live, and a step of it that may do less.
pub(crate) async fn agent(client: &Client) -> Result<Value, Error> {
    let begin = Begin::profile("agent")
        .intent("report the sales of May")
        .audiences(["warehouse", "mail"])
        .lease(Duration::from_secs(6));
    let agent = client.begin(begin).await?;

    let tool = Begin::profile("tool").intent("read the sales").audiences(["warehouse"]);
    let call = agent.delegate(tool).await?;
    // Usually a sandbox of its own is given this endpoint; here we are the tool ourselves.
    let workload = WorkloadClient::new(&Endpoint::parse(&call.endpoint())?);
    let tokens = workload.fetch_jwt(&["warehouse"], None).await?.len();
    let beyond = workload.fetch_jwt(&["mail"], None).await.is_ok();
    let (agent_id, call_id) = (agent.id().to_owned(), call.id().to_owned());
    call.end(Outcome::Completed).await?;

    let cause = agent.end(Outcome::Completed).await?.cause;
    Ok(json!({
        "agent": agent_id, "call": call_id, "tokens": tokens, "beyond": beyond, "cause": cause,
    }))
}

/// A job that survives a failed attempt.
pub(crate) async fn job(client: &Client) -> Result<Value, Error> {
    let begin = Begin::profile("batch").intent("nightly export").job().attempts(3);
    let job = client.begin(begin.max_time(Duration::from_mins(10))).await?;
    let own = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
    for outcome in [Outcome::Failed, Outcome::Completed] {
        let attempt = Begin::profile("batch").held_by(Holder::Process(own));
        job.attempt(attempt).await?.end_because(outcome, "as the example wants it").await?;
    }
    let job = client.get(job.id()).await?;
    Ok(json!({
        "job": job.task, "attempts": job.attempts, "state": job.state, "cause": job.cause,
    }))
}
