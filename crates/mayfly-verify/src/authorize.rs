//! Whom we talk to, and for what.
//!
//! A SPIFFE ID says who somebody is and nothing about what it may do. So there is no default here: who
//! builds a [`Party`](crate::Party) or an [`Actions`](crate::Actions) table says whom it means, and
//! what is not said is refused.

use std::collections::BTreeSet;

use mayfly_core::{SpiffeId, TaskId, TrustDomain};

/// Whom we talk to.
///
/// A task's credentials carry its profile's path and, unless the profile asks for one stable name for
/// all of its tasks, `/task/<id>` below it. [`Self::Profile`] and [`Self::Task`] read that shape.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Authorize {
    /// Everybody whose trust domain's bundle we hold, federated ones included. To be written out:
    /// nothing in this library says it by itself.
    Any,
    /// Exactly this workload.
    Id(SpiffeId),
    /// Exactly these workloads.
    Ids(BTreeSet<SpiffeId>),
    /// Every workload of this trust domain.
    TrustDomain(TrustDomain),
    /// This SPIFFE ID and everything below it: `spiffe://td/a` allows `/a` and `/a/b`, not `/ab`.
    PathPrefix(SpiffeId),
    /// Every task of the profile with this path, and the profile's stable name: `spiffe://td/a` allows
    /// `/a` and `/a/task/<id>`, but neither `/a/b` nor a task of profile `/a/b`.
    Profile(SpiffeId),
    /// Exactly this task. It is named together with its trust domain, because another one may well
    /// call a task of its own the same. A task with a stable name cannot be told by its name, so it is
    /// not allowed by this.
    Task(TrustDomain, TaskId),
    /// Whom all of these allow. An empty list allows nobody: forgetting to fill it must not open a door.
    AllOf(Vec<Self>),
    /// Whom one of these allows. An empty list allows nobody.
    AnyOf(Vec<Self>),
}

impl Authorize {
    /// Whether `id` is one of them.
    #[must_use]
    pub fn allows(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Any => true,
            Self::Id(one) => one == id,
            Self::Ids(ids) => ids.contains(id),
            Self::TrustDomain(domain) => id.trust_domain() == domain,
            Self::PathPrefix(above) => {
                below(above, id).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Profile(profile) => below(profile, id)
                .is_some_and(|rest| rest.is_empty() || task_segment(rest).is_some()),
            Self::Task(domain, task) => {
                id.trust_domain() == domain && task_of(id).is_some_and(|named| named == *task)
            }
            Self::AllOf(all) => !all.is_empty() && all.iter().all(|one| one.allows(id)),
            Self::AnyOf(any) => any.iter().any(|one| one.allows(id)),
        }
    }
}

/// The task that a SPIFFE ID names with its last two segments, `/task/<id>`.
#[must_use]
pub fn task_of(id: &SpiffeId) -> Option<TaskId> {
    let path = id.path();
    path.rfind("/task/").and_then(|at| path.get(at..)).and_then(task_segment)
}

/// Reads `/task/<id>` and nothing else. The digits are lower case, as they are issued: an ID has one
/// spelling, or two strings would name one task.
fn task_segment(rest: &str) -> Option<TaskId> {
    let digits = rest.strip_prefix("/task/")?;
    let canonical = digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if canonical { TaskId::parse(digits).ok() } else { None }
}

fn below<'a>(above: &SpiffeId, id: &'a SpiffeId) -> Option<&'a str> {
    id.as_str().strip_prefix(above.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: &str = "00112233445566778899aabbccddeeff";

    fn id(path: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://{path}")).unwrap()
    }

    fn domain(name: &str) -> TrustDomain {
        TrustDomain::parse(name).unwrap()
    }

    #[test]
    fn a_profile_is_its_stable_name_and_its_tasks_and_nothing_else() {
        let profile = Authorize::Profile(id("td/ci/build"));
        assert!(profile.allows(&id("td/ci/build")));
        assert!(profile.allows(&id(&format!("td/ci/build/task/{TASK}"))));
        for other in [
            "td/ci/builder".to_owned(),
            "td/ci".to_owned(),
            format!("td/ci/task/{TASK}"),
            format!("td/ci/build/x/task/{TASK}"),
            format!("td/ci/build/task/{TASK}/x"),
            format!("td/ci/build/task/{}", TASK.to_uppercase()),
            "td/ci/build/task/short".to_owned(),
            format!("other/ci/build/task/{TASK}"),
        ] {
            assert!(!profile.allows(&id(&other)), "{other}");
        }
    }

    #[test]
    fn a_task_is_named_with_its_trust_domain() {
        let task = TaskId::parse(TASK).unwrap();
        let one = Authorize::Task(domain("td"), task);
        assert!(one.allows(&id(&format!("td/a/task/{TASK}"))));
        assert!(!one.allows(&id(&format!("other/a/task/{TASK}"))), "a namesake elsewhere");
        assert!(!one.allows(&id(&format!("td/a/task/{}", TASK.replace('0', "1")))));
        assert!(!one.allows(&id("td/a")), "a stable name names no task");
    }

    #[test]
    fn lists_that_were_left_empty_allow_nobody() {
        let anybody = id("td/a");
        for empty in [
            Authorize::AllOf(vec![]),
            Authorize::AnyOf(vec![]),
            Authorize::Ids(BTreeSet::new()),
            Authorize::AllOf(vec![Authorize::AllOf(vec![])]),
        ] {
            assert!(!empty.allows(&anybody), "{empty:?}");
        }
    }

    #[test]
    fn combinations_mean_what_they_say() {
        let both = Authorize::AllOf(vec![
            Authorize::TrustDomain(domain("td")),
            Authorize::PathPrefix(id("td/a")),
        ]);
        assert!(both.allows(&id("td/a/b")) && !both.allows(&id("td/b")));
        let either = Authorize::AnyOf(vec![
            Authorize::Ids(BTreeSet::from([id("td/x"), id("td/y")])),
            Authorize::Id(id("td/z")),
        ]);
        assert!(["td/x", "td/y", "td/z"].iter().all(|one| either.allows(&id(one))));
        assert!(!either.allows(&id("td/w")));
    }
}
