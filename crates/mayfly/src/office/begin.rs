//! Beginning a task by name: what is asked before the registrar is.

use std::path::PathBuf;

use mayfly_core::{
    Author, Begin, Denial, Event, Holder, Registrar, SpiffeId, Task, TaskId, TaskVersion, Ticket,
    Timestamp,
};
use mayfly_policy::Profiles;
use mayfly_serve::office::{BeginWish, Begun, Order, Refusal, Standing};

use super::{
    LocalOffice,
    explain::{Sketch, unnamed_in},
    holder, refusal,
};
use crate::{clock, driver::No};

/// Which socket is for a task's workload.
#[derive(Clone, Copy, Debug)]
enum Meets {
    Nowhere,
    AtItsOwn,
    WithAll,
}

/// How a task is when it has begun.
#[derive(Debug)]
struct Start {
    task: TaskId,
    version: TaskVersion,
    spiffe_id: SpiffeId,
    meets: Meets,
    deadline: Option<Timestamp>,
    lease_until: Option<Timestamp>,
}

impl Start {
    fn of(task: &Task) -> Self {
        let meets = if task.holder == Holder::Job {
            Meets::Nowhere
        } else if task.holder.owns_socket() {
            Meets::AtItsOwn
        } else {
            Meets::WithAll
        };
        Self {
            task: task.id,
            version: task.version,
            spiffe_id: task.spiffe_id(),
            meets,
            deadline: task.deadline,
            lease_until: task.lease_until,
        }
    }
}

impl LocalOffice {
    pub(super) async fn begin(&self, wish: BeginWish, author: Author) -> Result<Begun, Refusal> {
        if let Some(begun) = self.begun_before(&wish).await? {
            return Ok(begun);
        }
        // A profile that is taken away meanwhile may not be begun behind its tasks' end.
        let _edition = self.0.applying.read().await;
        let profiles = self.0.policy.current();
        let terms = profiles.terms(&wish.profile).cloned().ok_or_else(|| {
            let known: Vec<_> = profiles.names().collect();
            let detail = format!("no profile `{}`; there are: {}", wish.profile, known.join(", "));
            refusal(Denial::ProfileUnknown, detail)
        })?;
        if let Some(owner) = wish.owner.as_ref().filter(|owner| !profiles.knows_owner(owner)) {
            return Err(refusal(Denial::OwnerUnknown, format!("nobody is called {owner:?}")));
        }
        if let Some(parent) = wish.parent {
            self.still_permitted(&profiles, &wish, parent).await?;
        }
        let holder = holder::find(wish.holder, &self.0.systemd).await?;
        let sketch = Sketch {
            terms: terms.clone(),
            parent: wish.parent,
            mandate: wish.mandate.clone(),
            owner: wish.owner.is_some(),
            deadline: wish.deadline,
        };
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
        let luck = clock::task_id((self.0.clock)());
        let first = Some(u64::from_be_bytes(clock::luck()));
        let asked = |ticket| Event::BeginAsked { ticket, begin, luck, first };
        match self.0.inbox.order_and(asked, |r, id, _| r.task(id).map(Start::of)).await {
            Ok(start) => self.begun(start.ok_or(Denial::TaskEnded)?).await,
            Err(No::Denied(denial)) => Err(self.explain_begin(denial, &sketch).await),
            Err(no @ No::Reconsider) => Err(no.into()),
        }
    }

    pub(super) async fn order(
        &self,
        task: TaskId,
        order: Order,
        author: Author,
    ) -> Result<Standing, Refusal> {
        let told = match &order {
            Order::Amend(amendment) => Some(amendment.clone()),
            Order::End(_) | Order::Heartbeat | Order::Quarantine | Order::Release => None,
        };
        let event = move |ticket: Ticket| match order {
            Order::End(cause) => Event::EndAsked { ticket, task, cause, author },
            Order::Heartbeat => Event::HeartbeatHeard { ticket, task },
            Order::Amend(amendment) => Event::AmendAsked { ticket, task, amendment, author },
            Order::Quarantine => Event::QuarantineAsked { ticket, task, author },
            Order::Release => Event::ReleaseAsked { ticket, task, author },
        };
        let look = move |registrar: &Registrar, task, version| {
            let task = registrar.task(task)?;
            Some(Standing { version, state: task.state, lease_until: task.lease_until })
        };
        match self.0.inbox.order_and(event, look).await {
            Ok(standing) => Ok(standing.ok_or(Denial::TaskUnknown)?),
            Err(No::Denied(denial)) => Err(self.explain_order(denial, task, told).await),
            Err(no @ No::Reconsider) => Err(no.into()),
        }
    }

    /// What this very wish began before. Asked first of all: the answer stays the same when the process
    /// that it named is gone, or the profile.
    async fn begun_before(&self, wish: &BeginWish) -> Result<Option<Begun>, Refusal> {
        let Some(key) = wish.key else { return Ok(None) };
        let question =
            move |registrar: &Registrar| (registrar.told_before(key), registrar.last_sequence());
        let (told, position) = self.0.inbox.read(question).await?;
        let Some(told) = told else { return Ok(None) };
        let (task, _) = told?;
        self.0.board.durable(position).await?;
        let start = move |registrar: &Registrar| registrar.task(task).map(Start::of);
        // A task can end in the instant after it began, but it is remembered for longer than that.
        let start = self.0.inbox.read(start).await?.ok_or(Denial::TaskUnknown)?;
        self.begun(start).await.map(Some)
    }

    async fn begun(&self, start: Start) -> Result<Begun, Refusal> {
        let about = &self.0.about;
        let socket = match start.meets {
            // Nobody can be a job's workload.
            Meets::Nowhere => PathBuf::new(),
            Meets::AtItsOwn => {
                // Its workload is started with this answer, and finds the socket there.
                self.sockets_settled().await;
                about.paths.task_socket(start.task)
            }
            Meets::WithAll => about.workload_socket.clone(),
        };
        let Start { task, version, spiffe_id, deadline, lease_until, .. } = start;
        Ok(Begun { task, version, spiffe_id, socket, deadline, lease_until })
    }

    /// Whether the profiles in force still let the tasks above have such a child (R40): those tasks began
    /// under an edition that may be gone, and core holds them to that one.
    async fn still_permitted(
        &self,
        profiles: &Profiles,
        wish: &BeginWish,
        parent: TaskId,
    ) -> Result<(), Refusal> {
        let question = move |registrar: &Registrar| {
            let line = registrar.line_of(parent).map(|task| task.terms.profile.clone());
            let line: Vec<_> = line.collect();
            let parent = registrar.task(parent);
            parent.map(|task| (line, task.mandate.scope.clone(), task.holder == Holder::Job))
        };
        // Core says what there is to say about a parent that is not there.
        let Some((line, scope, is_job)) = self.0.inbox.read(question).await? else {
            return Ok(());
        };
        let scope = wish.mandate.scope.clone().or(&scope);
        for (step, above) in line.iter().enumerate() {
            let Some(bounds) = profiles.terms(above).map(|terms| &terms.bounds) else {
                let why = format!("the profile `{above}` is gone");
                return Err(refusal(Denial::DelegationNotPermitted, why));
            };
            let named = bounds.delegates_to.as_ref();
            let unnamed = named.is_some_and(|named| !named.contains(&wish.profile));
            if step == 0 && !is_job && unnamed {
                return Err(unnamed_in(above, &wish.profile));
            }
            if let Some(dimension) = scope.exceeds(&bounds.scope) {
                let why =
                    format!("{}: wider than the profile `{above}` above it", dimension.name());
                return Err(refusal(Denial::ExceedsProfile, why));
            }
        }
        Ok(())
    }
}
