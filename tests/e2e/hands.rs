//! What only an operator does, as the tests ask for it.

use mayfly_proto::mayfly::v1::{self as wire, begin_task_request::Holder, revoke_request::Target};
use mayfly_verify::{Endpoint, WorkloadClient};
use tonic::Status;

use crate::{
    actor::{Svid, X509Stream},
    common::{Operator, task_of, within},
    stand::AUDIENCE,
};

impl Operator {
    /// Revokes on somebody's word, or only counts.
    pub(crate) async fn revoke_for(
        &mut self,
        target: Target,
        (dry_run, reason): (bool, &str),
    ) -> Result<(u64, u64), Status> {
        let (target, reason) = (Some(target), reason.to_owned());
        let request = wire::RevokeRequest { target, dry_run, reason };
        let revoked = self.0.revoke(request).await?.into_inner();
        Ok((revoked.tasks, revoked.credentials))
    }

    /// One page of the inventory.
    pub(crate) async fn page(
        &mut self,
        request: wire::InventoryRequest,
    ) -> Result<wire::InventoryResponse, Status> {
        Ok(self.0.inventory(request).await?.into_inner())
    }

    /// The whole inventory, a few at a time.
    pub(crate) async fn inventory(&mut self, page_size: u32) -> Vec<wire::Holding> {
        let mut request = wire::InventoryRequest { page_size, ..wire::InventoryRequest::default() };
        let mut all = Vec::new();
        loop {
            let page = self.page(request.clone()).await.expect("a page");
            assert!(page.holdings.len() <= page_size as usize, "no more than was asked for");
            all.extend(page.holdings);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return all;
            }
        }
    }

    pub(crate) async fn authority(
        &mut self,
        order: &str,
        (kind, id): (&str, &str),
    ) -> Result<wire::ChangeAuthorityResponse, Status> {
        let request = wire::ChangeAuthorityRequest {
            kind: kind.to_owned(),
            order: order.to_owned(),
            id: id.to_owned(),
            reason: "the test says so".to_owned(),
        };
        Ok(self.0.change_authority(request).await?.into_inner())
    }

    /// Puts the profiles of `text` in force.
    pub(crate) async fn apply(
        &mut self,
        text: &str,
    ) -> Result<wire::ApplyProfilesResponse, Status> {
        let request = wire::ApplyProfilesRequest { text: text.to_owned() };
        Ok(self.0.apply_profiles(request).await?.into_inner())
    }

    /// State and cause of a task.
    pub(crate) async fn state(&mut self, task: &str) -> (String, String) {
        let view = self.show(task).await.expect("it is remembered").0;
        (view.state, view.cause)
    }
}

/// A task with a socket of its own, this process at it, and all that can be had there.
pub(crate) struct Held {
    pub(crate) task: String,
    pub(crate) workload: WorkloadClient,
    pub(crate) stream: X509Stream,
    pub(crate) svid: Svid,
    pub(crate) token: String,
}

/// The wish for a task with a socket of its own, below `parent` unless that is empty.
pub(crate) fn below(profile: &str, parent: &str) -> wire::BeginTaskRequest {
    let parent = parent.to_owned();
    wire::BeginTaskRequest { parent, ..task_of(profile, Holder::Socket(true)) }
}

impl Held {
    pub(crate) async fn begin(operator: &mut Operator, profile: &str, parent: &str) -> Self {
        let begun = operator.begin(below(profile, parent)).await.expect("a task");
        let endpoint = Endpoint::parse(&format!("unix://{}", begun.socket)).expect("a path");
        let mut stream = X509Stream::open(&endpoint);
        let svid = Svid::of(&within("a message", stream.next()).await.expect("an identity"));
        let workload = WorkloadClient::new(&endpoint);
        let tokens = workload.fetch_jwt(&[AUDIENCE], None).await.expect("a token");
        let token = tokens[0].token.clone();
        Self { task: begun.task, workload, stream, svid, token }
    }

    /// Waits for the end of the stream, past what it says before.
    pub(crate) async fn stream_end(&mut self) -> Status {
        within("the stream's end", async {
            loop {
                if let Err(status) = self.stream.next().await {
                    return status;
                }
            }
        })
        .await
    }
}
