//! Rights: by role, and of whoever holds a task over what is its own.
//!
//! What a right rests on does not move between the look and the deed: rules are read at the start, a
//! task's profile and its place in its tree are for ever, and a holder whose task ended meanwhile has lost
//! everything below it too, so core refuses what it asks.

use std::sync::{Mutex, PoisonError};

use mayfly_core::{Act, Denial, Event, Principal, Registrar, Task, TaskId};
use mayfly_policy::rights;
use mayfly_serve::{
    asking::{Asker, Object},
    office::Refusal,
};

use super::{LocalOffice, refusal};

/// Refused acts that are written to the log each second: whoever reaches a socket may ask.
const NOTES_PER_SECOND_MAX: u32 = 10;

/// Lets a bounded number of refusals a second into the log.
#[derive(Debug, Default)]
pub(super) struct Notes(Mutex<(u64, u32)>);

impl Notes {
    fn admits(&self, second: u64) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 != second {
            *state = (second, 0);
        }
        state.1 = state.1.saturating_add(1);
        state.1 <= NOTES_PER_SECOND_MAX
    }
}

impl LocalOffice {
    pub(super) async fn entitle(
        &self,
        who: Asker,
        act: Act,
        object: Object,
    ) -> Result<(), Refusal> {
        if self.may(&who, act, &object).await? {
            return Ok(());
        }
        self.note(&who.principal, act, &object).await;
        Err(Denial::NotEntitled.into())
    }

    /// Testifies to a refusal (R48): in our own log always, in the journal as often as the disk can bear.
    pub(super) async fn note(&self, who: &Principal, act: Act, object: &Object) {
        let (what, act) = (Denial::NotEntitled.code(), act.name());
        let object = match object {
            Object::Everything => "everything".to_owned(),
            Object::Profile(name) => format!("profile {name:?}"),
            Object::Task(task) => format!("task {task}"),
            Object::Child { parent, profile } => format!("profile {profile:?} below {parent}"),
        };
        tracing::warn!(principal = %who, act, object, "refused: no role covers it");
        if self.0.notes.admits((self.0.clock)().seconds()) {
            let detail: String = format!("{who} {act} {object}").chars().take(512).collect();
            // Where the driver is gone there is no log either.
            let _noted =
                self.0.inbox.tell(Event::NoteAsked { what: what.to_owned(), detail }).await;
        }
    }

    async fn may(&self, who: &Asker, act: Act, object: &Object) -> Result<bool, Refusal> {
        let rights = &self.0.rights;
        let everything = rights.judge(&who.principal, act, rights::Object::Everything).is_ok();
        if let (Act::Release, Object::Task(task)) = (act, object) {
            return Ok(everything && !self.is_inside(who, *task).await?);
        }
        if everything {
            return Ok(true);
        }
        match object {
            Object::Everything => Ok(false),
            Object::Profile(name) => Ok(self.has_profile(&who.principal, act, name)),
            Object::Task(task) => self.may_to(who, act, *task).await,
            Object::Child { parent, profile } => self.may_below(who, act, (*parent, profile)).await,
        }
    }

    /// Whether a rule covers `act` for the profile `name`. Of one that is not there, whoever may do so
    /// anywhere is told that it is not there.
    fn has_profile(&self, who: &Principal, act: Act, name: &str) -> bool {
        let rights = &self.0.rights;
        match self.0.policy.current().terms(name) {
            Some(terms) => {
                let object = rights::Object::Profile { name, path: &terms.path };
                rights.judge(who, act, object).is_ok()
            }
            None => rights.may_somewhere(who, act),
        }
    }

    async fn may_to(&self, who: &Asker, act: Act, id: TaskId) -> Result<bool, Refusal> {
        let known =
            self.0.inbox.read(move |registrar| registrar.task(id).map(name_and_path)).await?;
        let by_role = match known {
            Some((name, path)) => {
                let object = rights::Object::Profile { name: &name, path: &path };
                self.0.rights.judge(&who.principal, act, object).is_ok()
            }
            None => self.0.rights.may_somewhere(&who.principal, act),
        };
        // Its own task a holder reads and keeps alive; what is below it, it amends and ends too. It never
        // widens, ends or frees itself.
        let from = match act {
            Act::Read | Act::Heartbeat => 0,
            Act::Amend | Act::End => 1,
            Act::Begin
            | Act::Delegate
            | Act::ReadProfiles
            | Act::Revoke
            | Act::Quarantine
            | Act::Release
            | Act::ApplyProfiles
            | Act::ChangeAuthority
            | Act::Diagnose
            | Act::Approve => return Ok(by_role),
        };
        Ok(by_role || self.stands_above(who, id, from).await?)
    }

    async fn may_below(
        &self,
        who: &Asker,
        act: Act,
        (parent, profile): (TaskId, &str),
    ) -> Result<bool, Refusal> {
        let known = move |registrar: &Registrar| registrar.task(parent).map(name_and_path);
        let above = self.0.inbox.read(known).await?;
        let above = above.is_none_or(|(name, path)| {
            let object = rights::Object::Profile { name: &name, path: &path };
            self.0.rights.judge(&who.principal, Act::Delegate, object).is_ok()
        });
        if above && self.has_profile(&who.principal, Act::Begin, profile) {
            return Ok(true);
        }
        if act != Act::Delegate {
            return Ok(false);
        }
        let held = self.stands_for(who).await?;
        let named = profile.to_owned();
        let roots = move |registrar: &Registrar| {
            let line = registrar.line_of(parent).filter(|task| held.contains(&task.id));
            let names = |task: &Task| {
                let to = task.terms.bounds.delegates_to.as_ref();
                (task.terms.profile.clone(), to.is_some_and(|to| to.contains(&named)))
            };
            line.map(names).collect::<Vec<_>>()
        };
        let roots = self.0.inbox.read(roots).await?;
        let profiles = self.0.policy.current();
        // By the edition under which it began and by the one in force: neither is reached past the other.
        let still = |own: &str| {
            let to = profiles.terms(own).and_then(|terms| terms.bounds.delegates_to.as_ref());
            to.is_some_and(|to| to.contains(profile))
        };
        match roots.first() {
            None => Ok(false),
            Some(_) if roots.iter().any(|(own, named)| *named && still(own)) => Ok(true),
            Some((own, _)) => {
                let why =
                    format!("the profile `{own}` does not name `{profile}` in `delegates_to`");
                Err(refusal(Denial::DelegationNotPermitted, why))
            }
        }
    }

    /// Whether the caller stands for `id` or one above it, `from` steps up and further.
    async fn stands_above(&self, who: &Asker, id: TaskId, from: usize) -> Result<bool, Refusal> {
        let held = self.stands_for(who).await?;
        if held.is_empty() {
            return Ok(false);
        }
        let question = move |registrar: &Registrar| {
            registrar.line_of(id).skip(from).any(|task| held.contains(&task.id))
        };
        Ok(self.0.inbox.read(question).await?)
    }

    /// Whether the caller is part of what `id` stands for, above it or below it: whatever its user may do,
    /// nothing that is suspended frees itself (R19).
    async fn is_inside(&self, who: &Asker, id: TaskId) -> Result<bool, Refusal> {
        let held = self.stands_for(who).await?;
        if held.is_empty() {
            return Ok(false);
        }
        let question = move |registrar: &Registrar| {
            let root = registrar.task(id).map(|task| task.root);
            let of = |held: &TaskId| registrar.task(*held).map(|task| task.root);
            root.is_some() && held.iter().any(|held| of(held) == root)
        };
        Ok(self.0.inbox.read(question).await?)
    }

    /// The tasks that the caller stands for: by the kernel's word on this machine, by its SVID elsewhere.
    pub(super) async fn stands_for(&self, who: &Asker) -> Result<Vec<TaskId>, Refusal> {
        if let Principal::Spiffe(id) = &who.principal {
            let Some(task) = id.path().rsplit('/').next().and_then(|id| TaskId::parse(id).ok())
            else {
                return Ok(Vec::new());
            };
            let id = id.clone();
            let question = move |registrar: &Registrar| {
                let task = registrar.task(task).filter(|task| !task.state.is_ended());
                // A name that several tasks share says of none that it is this one.
                task.is_some_and(|task| task.spiffe_id() == id && !task.terms.stable_identity)
            };
            let own = self.0.inbox.read(question).await?;
            return Ok(own.then_some(task).into_iter().collect());
        }
        let Some(peer) = &who.peer else { return Ok(Vec::new()) };
        let Ok(evidence) = self.0.near.look(peer).await else { return Ok(Vec::new()) };
        let permits = self.0.policy.current().judge(&evidence).permits;
        let question = move |registrar: &Registrar| {
            let mut held = registrar.held_by(&evidence.caller);
            held.retain(|id| {
                let profile = registrar.task(*id).map(|task| &task.terms.profile);
                profile.is_some_and(|profile| permits.iter().any(|one| one.profile == *profile))
            });
            held
        };
        Ok(self.0.inbox.read(question).await?)
    }
}

fn name_and_path(task: &Task) -> (String, String) {
    (task.terms.profile.clone(), task.terms.path.clone())
}
