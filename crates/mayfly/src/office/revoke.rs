//! Revoking: whom a target hits, and everybody's end in one go.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use mayfly_attest::Peer;
use mayfly_core::{
    Author, Cause, Denial, Event, Holder, Registrar, Selector, Task, TaskId, Timestamp,
};
use mayfly_serve::office::{Refusal, Revoked, Target};

use super::{LocalOffice, refusal};
use crate::driver::No;

/// Ends that are ordered before the first answer is waited for: one group commit and few deltas serve
/// them, and the driver's door has room for others beside them.
const AT_ONCE_MAX: usize = 16_384;
/// Holders that are looked at at the same time.
const LOOKS_AT_ONCE: usize = 64;
/// Processes of one cgroup that are looked at.
const MEMBERS_MAX: usize = 1024;

impl LocalOffice {
    pub(super) async fn revoke(
        &self,
        target: Target,
        dry_run: bool,
        author: Author,
    ) -> Result<Revoked, Refusal> {
        let now = (self.0.clock)();
        let aim = self.aim(target).await?;
        let counted = aim.clone();
        let (roots, revoked) = self.0.inbox.read(move |r| counted.hit(r, now)).await??;
        if dry_run {
            return Ok(revoked);
        }
        if let Aim::Serial(serial) = aim {
            let asked = |ticket| Event::RevokeAsked { ticket, serial, author };
            self.0.inbox.order(asked).await?;
            return Ok(revoked);
        }
        self.end_all(&roots, &author).await?;
        Ok(revoked)
    }

    async fn end_all(&self, roots: &[TaskId], author: &Author) -> Result<(), Refusal> {
        let mut outcome = Ok(());
        for some in roots.chunks(AT_ONCE_MAX) {
            let mut ends = Vec::with_capacity(some.len());
            for task in some {
                let (task, cause, author) = (*task, Cause::Revoked, author.clone());
                let asked = move |ticket| Event::EndAsked { ticket, task, cause, author };
                ends.push(self.0.inbox.order(asked));
            }
            for answer in join_all(ends).await {
                match answer {
                    // Ended and forgotten since it was counted.
                    Ok(_) | Err(No::Denied(Denial::TaskUnknown)) => {}
                    Err(no) => outcome = Err(no.into()),
                }
            }
        }
        outcome
    }

    /// Checks a target against what there is, and looks at holders where it is about what they show.
    async fn aim(&self, target: Target) -> Result<Aim, Refusal> {
        let profiles = self.0.policy.current();
        Ok(match target {
            Target::Task(task) => Aim::Task(task),
            Target::Tree(task) => Aim::Tree(task),
            Target::Serial(serial) => Aim::Serial(serial),
            Target::Profile(name) => {
                let is_known = profiles.find(&name).is_some();
                Aim::Profile { name, is_known }
            }
            Target::Owner(name) => {
                let is_known = profiles.knows_owner(&name);
                Aim::Owner { name, is_known }
            }
            Target::Node(name) if name == self.0.about.node => Aim::Node,
            Target::Node(name) => {
                let ours = &self.0.about.node;
                let detail = format!("no machine `{name}`; this one is `{ours}`");
                return Err(refusal(Denial::NodeUnknown, detail));
            }
            Target::Selector(selector) => {
                let asking = profiles.iter().filter(|one| one.selectors.contains(&selector));
                let profiles = asking.map(|one| one.terms.profile.clone()).collect();
                Aim::Selector { profiles, tasks: self.showing(&selector).await? }
            }
        })
    }

    /// Tasks whose holders show `selector` now.
    async fn showing(&self, selector: &Selector) -> Result<BTreeSet<TaskId>, Refusal> {
        let question = |r: &Registrar| {
            let live = r.tasks().filter(|task| is_ours_to_end(task));
            live.map(|task| (task.id, task.holder.clone())).collect::<Vec<_>>()
        };
        let live = self.0.inbox.read(question).await?;
        let mut showing = BTreeSet::new();
        for some in live.chunks(LOOKS_AT_ONCE) {
            let mut looks = Vec::with_capacity(some.len());
            for (_, holder) in some {
                looks.push(self.shows(holder, selector));
            }
            let answers = join_all(looks).await;
            let found = some.iter().zip(answers).filter(|(_, shows)| *shows);
            showing.extend(found.map(|((task, _), _)| *task));
        }
        Ok(showing)
    }

    /// Whether a holder shows `selector`: its process, or one of those in its cgroup.
    async fn shows(&self, holder: &Holder, selector: &Selector) -> bool {
        let (pids, wanted) = match holder {
            Holder::Process(key) | Holder::Lineage(key) => (vec![key.pid], Some(*key)),
            Holder::Cgroup(path) => (members(path), None),
            Holder::Unit(unit) => (members(&unit.cgroup.path), None),
            Holder::Container(container) => (members(&container.cgroup.path), None),
            Holder::Pod(pod) => (members(&pod.cgroup.path), None),
            Holder::Socket | Holder::Lease | Holder::Job => return false,
        };
        let names_it = selector.kind() == "unix:cgroup";
        if names_it && matches!(holder, Holder::Cgroup(path) if selector.value() == path) {
            return true;
        }
        for pid in pids {
            // Whoever is gone shows nothing, and a number that went to somebody else is not the holder.
            let Ok(peer) = Peer::of_pid(pid) else { continue };
            if wanted.is_some_and(|wanted| wanted != peer.key()) {
                continue;
            }
            match self.0.eyes.look(&peer).await {
                Ok(evidence) if evidence.selectors.contains(selector) => return true,
                Ok(_) => {}
                Err(error) => tracing::info!(pid, %error, "a holder could not be seen"),
            }
        }
        false
    }
}

fn members(path: &str) -> Vec<i32> {
    mayfly_attest::members(path, MEMBERS_MAX).unwrap_or_default()
}

/// A target that has been checked.
#[derive(Clone, Debug)]
enum Aim {
    Task(TaskId),
    Tree(TaskId),
    Serial(mayfly_core::Serial),
    Profile { name: String, is_known: bool },
    Owner { name: String, is_known: bool },
    Node,
    Selector { profiles: BTreeSet<String>, tasks: BTreeSet<TaskId> },
}

impl Aim {
    /// The tasks to end, and how much that is. A task brings everything below it along.
    fn hit(&self, registrar: &Registrar, now: Timestamp) -> Result<(Vec<TaskId>, Revoked), Denial> {
        let task = |id: &TaskId| registrar.task(*id).ok_or(Denial::TaskUnknown);
        let named: BTreeSet<TaskId> = match self {
            Self::Serial(serial) => {
                let mut all = registrar.tasks().flat_map(Task::credentials);
                let found = all.find(|c| c.serial == *serial).ok_or(Denial::SerialUnknown)?;
                let credentials = u64::from(found.revoked_at.is_none());
                return Ok((Vec::new(), Revoked { tasks: 0, credentials }));
            }
            Self::Task(id) => [task(id)?.id].into(),
            Self::Tree(id) => [task(id)?.root].into(),
            Self::Profile { name, is_known } => {
                let found = live(registrar, |task| task.terms.profile == *name);
                if found.is_empty() && !is_known {
                    return Err(Denial::ProfileUnknown);
                }
                found
            }
            Self::Owner { name, is_known } => {
                let found = live(registrar, |task| task.terms.owner == *name);
                if found.is_empty() && !is_known {
                    return Err(Denial::OwnerUnknown);
                }
                found
            }
            Self::Node => live(registrar, is_ours_to_end),
            Self::Selector { profiles, tasks } => live(registrar, |task| {
                profiles.contains(&task.terms.profile) || tasks.contains(&task.id)
            }),
        };
        let below = |id: &TaskId| {
            let above = std::iter::successors(registrar.task(*id)?.parent, |up| {
                registrar.task(*up).and_then(|task| task.parent)
            });
            above.into_iter().any(|up| named.contains(&up)).then_some(())
        };
        let roots: Vec<_> = named.iter().filter(|id| below(id).is_none()).copied().collect();
        let revoked = count(registrar, roots.clone(), now);
        Ok((roots, revoked))
    }
}

fn live(registrar: &Registrar, which: impl Fn(&Task) -> bool) -> BTreeSet<TaskId> {
    let live = registrar.tasks().filter(|task| !task.state.is_ended());
    live.filter(|task| which(task)).map(|task| task.id).collect()
}

/// Whether a task lives and is not the broker's own: that has to be named, because with it the broker's
/// ports close, and verifiers elsewhere would not hear of the others' end.
fn is_ours_to_end(task: &Task) -> bool {
    !task.state.is_ended() && task.terms.profile != mayfly_policy::own::PROFILE
}

fn count(registrar: &Registrar, mut next: Vec<TaskId>, now: Timestamp) -> Revoked {
    let mut revoked = Revoked::default();
    let mut seen = BTreeSet::new();
    while let Some(task) = next.pop().and_then(|id| registrar.task(id)) {
        if !seen.insert(task.id) || task.state.is_ended() {
            continue;
        }
        next.extend(&task.children);
        revoked.tasks += 1;
        let stands = |c: &mayfly_core::Credential| c.revoked_at.is_none() && c.not_after > now;
        revoked.credentials += task.credentials().filter(stands).count() as u64;
    }
    revoked
}
