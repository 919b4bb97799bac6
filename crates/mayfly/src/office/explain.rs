//! What a No of the registrar's is about, where that is cheap to find.

use mayfly_core::{
    Amendment, Bounds, Denial, Dimension, Mandate, Registrar, Scope, State, Task, TaskId, Terms,
    Timestamp, limits,
};

use super::{LocalOffice, refusal};
use mayfly_serve::office::Refusal;

/// What is kept of a wish to explain a No.
pub(super) struct Sketch {
    pub(super) terms: Terms,
    pub(super) parent: Option<TaskId>,
    pub(super) mandate: Mandate,
    pub(super) owner: bool,
    pub(super) deadline: Option<Timestamp>,
}

impl LocalOffice {
    /// Says what a No to a beginning is about.
    pub(super) async fn explain_begin(&self, denial: Denial, sketch: &Sketch) -> Refusal {
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
            let above = parent.map(|parent| parent.terms.profile.clone()).unwrap_or_default();
            return unnamed_in(&above, profile);
        } else if denial == Denial::HolderUnfit {
            let binding = sketch.terms.binding.name();
            format!("tasks of the profile `{profile}` are bound by {binding}")
        } else if denial == Denial::DeadlineTooLate {
            let most = sketch.terms.task_ttl.map(mayfly_policy::duration::format);
            most.map(|most| format!("`max_task` of the profile `{profile}` is {most}"))
                .unwrap_or_default()
        } else if denial == Denial::Malformed {
            too_long(sketch).map(|what| format!("invalid {what}")).unwrap_or_default()
        } else {
            String::new()
        };
        refusal(denial, detail)
    }

    /// Says what a No to an order is about.
    pub(super) async fn explain_order(
        &self,
        denial: Denial,
        task: TaskId,
        told: Option<Amendment>,
    ) -> Refusal {
        let question = move |registrar: &Registrar| {
            let task = registrar.task(task)?;
            let parent = task.parent.and_then(|parent| registrar.task(parent));
            match (denial, told) {
                (Denial::ParentInactive, _) => parent.map(stopped_above),
                (Denial::Malformed, Some(told)) => Some(format!("invalid {}", too_much(&told))),
                (Denial::ExceedsProfile, Some(told)) => {
                    let wider = wider(&told, task, &task.terms.bounds.scope)?;
                    Some(format!("{wider}: wider than the profile `{}`", task.terms.profile))
                }
                (Denial::ExceedsParent, Some(told)) => {
                    let wider = wider(&told, task, &parent?.mandate.scope)?;
                    Some(format!("{wider}: wider than the parent"))
                }
                _ => None,
            }
        };
        let detail = self.0.inbox.read(question).await.ok().flatten();
        refusal(denial, detail.unwrap_or_default())
    }
}

/// In which dimension a task would be wider than `outer` after an amendment.
fn wider(told: &Amendment, task: &Task, outer: &Scope) -> Option<&'static str> {
    let scope = told.scope.clone().or(&task.mandate.scope);
    scope.exceeds(outer).map(Dimension::name)
}

/// Why a task does not go on before the one above it does.
fn stopped_above(parent: &Task) -> String {
    match parent.state {
        State::Quarantined { by } => {
            format!("it is stopped by the quarantine of {by}: release that")
        }
        State::Active | State::Ended { .. } => format!("its parent {} is over", parent.id),
    }
}

/// What of an amendment is too long, or holds what no name may.
fn too_much(told: &Amendment) -> &'static str {
    let intent = told.intent.as_ref().is_some_and(|it| it.len() > limits::INTENT_BYTES_MAX);
    if intent { "intent" } else { ill_formed(&told.scope).unwrap_or("scope") }
}

fn ill_formed(scope: &Scope) -> Option<&'static str> {
    Dimension::ALL.into_iter().find(|of| !scope.is_well_formed_in(*of)).map(Dimension::name)
}

/// What of a wish is too long or too short, or holds what no name may.
fn too_long(sketch: &Sketch) -> Option<&'static str> {
    let mandate = &sketch.mandate;
    let notes = [
        ("intent", &*mandate.intent),
        ("approval", &mandate.approval),
        ("telemetry", &mandate.telemetry),
        ("escalation", &mandate.escalation),
    ];
    let note = notes.into_iter().find(|(_, text)| text.len() > limits::INTENT_BYTES_MAX);
    let short = mandate.ttl.is_some_and(|ttl| ttl < limits::CREDENTIAL_TTL_MIN);
    note.map(|(name, _)| name)
        .or_else(|| ill_formed(&mandate.scope))
        .or_else(|| short.then_some("credential_ttl"))
}

pub(super) fn unnamed_in(above: &str, profile: &str) -> Refusal {
    let why = format!("a task of the profile `{above}` may not delegate to `{profile}`");
    refusal(Denial::DelegationNotPermitted, why)
}

/// In what a wish goes beyond its profile.
fn beyond_profile(sketch: &Sketch, parent: Option<&Task>, bounds: &Bounds) -> Option<&'static str> {
    let inherited = parent.map_or_else(Scope::default, |parent| parent.mandate.scope.clone());
    let told = &sketch.mandate.scope;
    let scope = Dimension::ALL.into_iter().find(|of| {
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
    let scope = Dimension::ALL.into_iter().find(|of| {
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
