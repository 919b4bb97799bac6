//! Beginning tasks by name, and what becomes of them by word.

use mayfly_attest::Process;
use mayfly_core::{Author, Begin, Denial, Event, Holder, TaskId, TaskVersion, Ticket};
use mayfly_serve::office::{BeginWish, Begun, HolderWish, Order, Refusal};

use super::{LocalOffice, refusal};
use crate::clock;

impl LocalOffice {
    pub(super) async fn begin(&self, wish: BeginWish, author: Author) -> Result<Begun, Refusal> {
        let profiles = self.0.policy.current();
        let terms = profiles.terms(&wish.profile).cloned().ok_or_else(|| {
            let known: Vec<_> = profiles.names().collect();
            let detail = format!("no profile `{}`; there are: {}", wish.profile, known.join(", "));
            refusal(Denial::ProfileUnknown, detail)
        })?;
        if let Some(owner) = wish.owner.as_ref().filter(|owner| !profiles.knows_owner(owner)) {
            let detail = format!("nobody called `{owner}` is accountable here");
            return Err(refusal(Denial::OwnerUnknown, detail));
        }
        let holder = holder(wish.holder)?;
        let own_socket = holder.owns_socket();
        let begin = Begin {
            terms,
            holder,
            parent: wish.parent,
            delegated: wish.delegated,
            owner: wish.owner,
            mandate: wish.mandate,
            key: wish.key,
            author,
            deadline: wish.deadline,
            lease: wish.lease,
        };
        let luck = clock::task_id();
        let asked = |ticket| Event::BeginAsked { ticket, begin, luck };
        let (task, version) = self.0.inbox.order(asked).await?;
        self.hold_to_edition(profiles.epoch()).await?;
        let spiffe_id =
            self.0.inbox.read(move |r| r.task(task).map(|t| t.spiffe_id.clone())).await?;
        if own_socket {
            // Its workload is started with this answer, and finds the socket there.
            self.sockets_settled().await;
        }
        let paths = &self.0.about.paths;
        let shared = || self.0.about.workload_socket.clone();
        Ok(Begun {
            task,
            version,
            // A task can end in the instant after it began, but it is remembered for longer than that.
            spiffe_id: spiffe_id.ok_or(Denial::TaskUnknown)?,
            socket: if own_socket { paths.task_socket(task) } else { shared() },
        })
    }

    pub(super) async fn order(
        &self,
        task: TaskId,
        order: Order,
        author: Author,
    ) -> Result<TaskVersion, Refusal> {
        let event = move |ticket: Ticket| match order {
            Order::End(cause) => Event::EndAsked { ticket, task, cause, author },
            Order::Heartbeat => Event::HeartbeatHeard { ticket, task },
            Order::Amend(amendment) => Event::AmendAsked { ticket, task, amendment, author },
            Order::Quarantine => Event::QuarantineAsked { ticket, task, author },
            Order::Release => Event::ReleaseAsked { ticket, task, author },
        };
        Ok(self.0.inbox.order(event).await?.1)
    }
}

fn holder(wish: HolderWish) -> Result<Holder, Refusal> {
    let key = |pid| {
        let process = Process::open(pid);
        let process =
            process.map_err(|e| refusal(Denial::HolderUnfit, format!("process {pid}: {e}")));
        process.map(|process| process.key())
    };
    Ok(match wish {
        HolderWish::Lineage(pid) => Holder::Lineage(key(pid)?),
        HolderWish::Process(pid) => Holder::Process(key(pid)?),
        HolderWish::Cgroup(path) => Holder::Cgroup(path),
        HolderWish::Socket => Holder::Socket,
        HolderWish::Lease => Holder::Lease,
        HolderWish::Job => Holder::Job,
    })
}
