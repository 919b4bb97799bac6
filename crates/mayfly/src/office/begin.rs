//! Beginning a task by name: what is asked before the registrar is, and what a No of its is about.

use mayfly_core::{
    Author, Begin, Bounds, Denial, Event, Holder, Mandate, Registrar, Scope, Task, TaskId,
    TaskVersion, Terms, Ticket, Timestamp,
};
use mayfly_policy::Profiles;
use mayfly_serve::office::{BeginWish, Begun, Order, Refusal};

use super::{LocalOffice, holder, refusal};
use crate::{clock, driver::No};

/// What is kept of a wish to explain a No.
struct Sketch {
    terms: Terms,
    parent: Option<TaskId>,
    mandate: Mandate,
    owner: bool,
    deadline: Option<Timestamp>,
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
        let luck = clock::task_id();
        let asked = |ticket| Event::BeginAsked { ticket, begin, luck };
        match self.0.inbox.order(asked).await {
            Ok((task, _)) => self.begun(task).await,
            Err(No::Denied(denial)) => Err(self.explained(denial, &sketch).await),
            Err(no @ No::Reconsider) => Err(no.into()),
        }
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
        self.begun(task).await.map(Some)
    }

    async fn begun(&self, id: TaskId) -> Result<Begun, Refusal> {
        // A task can end in the instant after it began, but it is remembered for longer than that.
        let task = self.look(id).await?;
        let own_socket = task.holder.owns_socket();
        if own_socket {
            // Its workload is started with this answer, and finds the socket there.
            self.sockets_settled().await;
        }
        let about = &self.0.about;
        let shared = || about.workload_socket.clone();
        Ok(Begun {
            task: id,
            version: task.version,
            spiffe_id: task.spiffe_id,
            // Nobody can be a job's workload.
            socket: if task.holder == Holder::Job {
                std::path::PathBuf::new()
            } else if own_socket {
                about.paths.task_socket(id)
            } else {
                shared()
            },
            deadline: task.deadline,
            lease_until: task.lease_until,
        })
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

    /// Says what a No is about, where that is cheap to find.
    async fn explained(&self, denial: Denial, sketch: &Sketch) -> Refusal {
        let profile = &sketch.terms.profile;
        let bounds = &sketch.terms.bounds;
        let parent = match sketch.parent {
            Some(id) => self.look(id).await.ok(),
            None => None,
        };
        let detail = if denial == Denial::DeclarationMissing {
            let beside = (sketch.owner, sketch.deadline.is_some());
            let lacking = bounds.lacking(&sketch.mandate, beside).map(|part| part.name());
            let lacking: Vec<_> = lacking.collect();
            let lacking = if lacking.is_empty() { "deadline".into() } else { lacking.join(", ") };
            format!("the profile `{profile}` demands: {lacking}")
        } else if denial == Denial::ExceedsProfile {
            let wider = beyond_profile(sketch, parent.as_ref(), bounds);
            wider
                .map(|what| format!("{what}: wider than the profile `{profile}`"))
                .unwrap_or_default()
        } else if denial == Denial::ExceedsParent {
            let wider = parent.as_ref().map(|parent| beyond_parent(sketch, parent));
            wider.map(|what| format!("{what}: wider than the parent")).unwrap_or_default()
        } else if denial == Denial::DelegationNotPermitted {
            let above = parent.map(|parent| parent.terms.profile).unwrap_or_default();
            return unnamed_in(&above, profile);
        } else if denial == Denial::HolderUnfit {
            let binding = sketch.terms.binding.name();
            format!("tasks of the profile `{profile}` are bound by {binding}")
        } else if denial == Denial::DeadlineTooLate {
            let most = sketch.terms.task_ttl.map(mayfly_policy::duration::format);
            most.map(|most| format!("`max_task` of the profile `{profile}` is {most}"))
                .unwrap_or_default()
        } else {
            String::new()
        };
        refusal(denial, detail)
    }
}

fn unnamed_in(above: &str, profile: &str) -> Refusal {
    let why = format!("a task of the profile `{above}` may not delegate to `{profile}`");
    refusal(Denial::DelegationNotPermitted, why)
}

/// In what a wish goes beyond its profile.
fn beyond_profile(sketch: &Sketch, parent: Option<&Task>, bounds: &Bounds) -> Option<&'static str> {
    let inherited = parent.map_or_else(Scope::default, |parent| parent.mandate.scope.clone());
    let told = &sketch.mandate.scope;
    let scope = mayfly_core::Dimension::ALL.into_iter().find(|of| {
        let extent = told.extent(*of);
        let whole = if extent.is_told() { extent } else { inherited.extent(*of) };
        whole.is_told() && !whole.is_within(bounds.scope.extent(*of))
    });
    let budget = || {
        let budget = sketch.mandate.budget.or(&bounds.budget);
        (!budget.is_within(&bounds.budget)).then_some("budget")
    };
    let reach = || {
        let reach = sketch.mandate.reach.filter(|reach| !reach.is_within(&bounds.reach));
        reach.map(|_| "reach")
    };
    scope.map(|dimension| dimension.name()).or_else(budget).or_else(reach)
}

/// In what a wish goes beyond its parent.
fn beyond_parent(sketch: &Sketch, parent: &Task) -> &'static str {
    let (told, above) = (&sketch.mandate, &parent.mandate);
    let scope = mayfly_core::Dimension::ALL.into_iter().find(|of| {
        let extent = told.scope.extent(*of);
        extent.is_told() && !extent.is_within(above.scope.extent(*of))
    });
    if let Some(dimension) = scope {
        return dimension.name();
    }
    let depth = |reach: mayfly_core::Reach| reach.depth < parent.reach().depth;
    let wide = |reach: mayfly_core::Reach| reach.children <= parent.reach().children;
    if sketch.deadline.zip(parent.deadline).is_some_and(|(own, above)| own > above) {
        "deadline"
    } else if told.ttl.zip(above.ttl).is_some_and(|(own, above)| own > above) {
        "credential_ttl"
    } else if told.reach.is_some_and(|reach| !depth(reach) || !wide(reach)) {
        "reach"
    } else {
        "budget"
    }
}
