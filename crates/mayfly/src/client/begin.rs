//! What a task is begun with.

use std::{fmt::Write as _, time::Duration};

use mayfly_core::{Span, Timestamp};
use mayfly_proto::mayfly::v1::{self as wire, holder_wish};

use crate::clock;

/// A wish for a task. What its profile demands and it lacks is named in the refusal.
#[derive(Clone, Debug, PartialEq)]
pub struct Begin {
    request: wire::BeginRequest,
    declaration: wire::Declaration,
    max_time: Option<Duration>,
}

/// What holds a task.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Holder {
    /// Whoever reaches the task's own socket, for as long as its lease is renewed.
    Lease,
    /// Whoever reaches the task's own socket.
    Socket,
    /// Nobody: a job, whose attempts are tasks below it.
    Job,
    /// This process and those that descend from it.
    Lineage(i32),
    /// Exactly this process.
    Process(i32),
    /// Every process of this cgroup, by its absolute path.
    Cgroup(String),
    /// A systemd unit.
    Unit(String),
    /// A container, by its id.
    Container(String),
    /// A pod, by its uid.
    Pod(String),
}

impl From<Holder> for wire::HolderWish {
    fn from(holder: Holder) -> Self {
        use holder_wish::Holder as Wish;
        let holder = match holder {
            Holder::Lease => Wish::Lease(true),
            Holder::Socket => Wish::Socket(true),
            Holder::Job => Wish::Job(true),
            Holder::Lineage(pid) => Wish::LineagePid(pid),
            Holder::Process(pid) => Wish::ProcessPid(pid),
            Holder::Cgroup(path) => Wish::Cgroup(path),
            Holder::Unit(unit) => Wish::SystemdUnit(unit),
            Holder::Container(id) => Wish::ContainerId(id),
            Holder::Pod(uid) => Wish::PodUid(uid),
        };
        Self { holder: Some(holder) }
    }
}

fn names<S: Into<String>>(names: impl IntoIterator<Item = S>) -> wire::Names {
    wire::Names { names: names.into_iter().map(Into::into).collect() }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl Begin {
    /// A task of this profile, held by a socket of its own unless something else is said.
    #[must_use]
    pub fn profile(profile: impl Into<String>) -> Self {
        let key = clock::luck::<16>().iter().fold(String::new(), |mut key, byte| {
            // Writing to a string cannot fail.
            write!(key, "{byte:02x}").unwrap_or_default();
            key
        });
        let request = wire::BeginRequest {
            profile: profile.into(),
            holder: Some(Holder::Socket.into()),
            idempotency_key: key,
            ..wire::BeginRequest::default()
        };
        Self { request, declaration: wire::Declaration::default(), max_time: None }
    }

    /// What holds it.
    #[must_use]
    pub fn held_by(mut self, holder: Holder) -> Self {
        self.request.holder = Some(holder.into());
        self
    }

    /// A Workload API socket of its own: whoever reaches it holds the task.
    #[must_use]
    pub fn socket(self) -> Self {
        self.held_by(Holder::Socket)
    }

    /// A job: nothing is issued to it, but to its [attempts](crate::client::Work::attempt).
    #[must_use]
    pub fn job(self) -> Self {
        self.held_by(Holder::Job)
    }

    /// How long it lives without a word from us. Held by a socket, it becomes a task of the lease.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.request.lease_ms = millis(lease);
        if self.request.holder == Some(Holder::Socket.into()) {
            return self.held_by(Holder::Lease);
        }
        self
    }

    /// The task that it is a part of, by id.
    #[must_use]
    pub fn under(mut self, parent: impl Into<String>) -> Self {
        self.request.parent = parent.into();
        self
    }

    /// Who is accountable, if not the profile's owner.
    #[must_use]
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.request.owner = owner.into();
        self
    }

    /// What it is for, in words.
    #[must_use]
    pub fn intent(mut self, intent: impl Into<String>) -> Self {
        self.declaration.intent = intent.into();
        self
    }

    fn scope(&mut self) -> &mut wire::Scope {
        self.declaration.scope.get_or_insert_default()
    }

    /// What it may do, and nothing else. A name that ends in `*` is a prefix, here and below.
    #[must_use]
    pub fn actions<S: Into<String>>(mut self, actions: impl IntoIterator<Item = S>) -> Self {
        self.scope().actions = Some(names(actions));
        self
    }

    /// What it may do it to.
    #[must_use]
    pub fn resources<S: Into<String>>(mut self, resources: impl IntoIterator<Item = S>) -> Self {
        self.scope().resources = Some(names(resources));
        self
    }

    /// Whom its tokens may be for.
    #[must_use]
    pub fn audiences<S: Into<String>>(mut self, audiences: impl IntoIterator<Item = S>) -> Self {
        self.scope().audiences = Some(names(audiences));
        self
    }

    /// Which tools it may use.
    #[must_use]
    pub fn tools<S: Into<String>>(mut self, tools: impl IntoIterator<Item = S>) -> Self {
        self.scope().tools = Some(names(tools));
        self
    }

    /// `low`, `medium` or `high`.
    #[must_use]
    pub fn risk(mut self, risk: impl Into<String>) -> Self {
        self.declaration.risk = risk.into();
        self
    }

    /// What is to end it: holder_exit, failure, lease, deadline, parent, owner, policy, risk, budget.
    #[must_use]
    pub fn triggers<S: Into<String>>(mut self, triggers: impl IntoIterator<Item = S>) -> Self {
        self.declaration.triggers = triggers.into_iter().map(Into::into).collect();
        self
    }

    fn budget(&mut self) -> &mut wire::Budget {
        self.declaration.budget.get_or_insert_default()
    }

    /// How many credentials it may be issued, its children's included.
    #[must_use]
    pub fn issuances(mut self, issuances: u64) -> Self {
        self.budget().issuances = Some(issuances);
        self
    }

    /// How many credentials it may be issued in a minute.
    #[must_use]
    pub fn per_minute(mut self, issuances: u32) -> Self {
        self.budget().per_minute = Some(issuances);
        self
    }

    /// How many attempts a job has.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.budget().attempts = Some(attempts);
        self
    }

    /// How far it may delegate: steps below it, and direct children at a time.
    #[must_use]
    pub fn reach(mut self, depth: u32, children: u32) -> Self {
        self.declaration.reach = Some(wire::Reach { depth, children });
        self
    }

    /// The longest life of its credentials.
    #[must_use]
    pub fn credential_ttl(mut self, ttl: Duration) -> Self {
        self.declaration.credential_ttl_ms = millis(ttl);
        self
    }

    /// When it ends at the latest.
    #[must_use]
    pub const fn deadline(mut self, deadline: Timestamp) -> Self {
        self.request.deadline_ms = deadline.0;
        self
    }

    /// How long it lasts at the most, counted from when it is begun. Two wishes with one key and this
    /// differ, because their deadlines do: where the key is to outlive the process, say
    /// [`deadline`](Self::deadline).
    #[must_use]
    pub const fn max_time(mut self, span: Duration) -> Self {
        self.max_time = Some(span);
        self
    }

    /// What the same wish is known by, also after a restart of ours or the broker's; random if it is not
    /// set.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.request.idempotency_key = key.into();
        self
    }

    /// Everything else that can be declared.
    #[must_use]
    pub fn declare(mut self, change: impl FnOnce(&mut wire::Declaration)) -> Self {
        change(&mut self.declaration);
        self
    }

    pub(crate) fn into_request(self, now: Timestamp) -> wire::BeginRequest {
        let mut request = self.request;
        if let Some(span) = self.max_time {
            request.deadline_ms = now.plus(Span(millis(span))).0;
        }
        request.declaration = Some(self.declaration);
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_makes_a_lease_task_and_leaves_other_holders_alone() {
        let second = Duration::from_secs(1);
        let holder = |begin: Begin| begin.into_request(Timestamp(0)).holder;
        let lease = Begin::profile("p").lease(second);
        assert_eq!(holder(lease), Some(Holder::Lease.into()));
        let process = Begin::profile("p").held_by(Holder::Process(7)).lease(second);
        assert_eq!(holder(process), Some(Holder::Process(7).into()));
    }

    #[test]
    fn what_is_not_said_is_left_open_and_no_two_wishes_have_one_key() {
        let one = Begin::profile("p").into_request(Timestamp(5));
        let other = Begin::profile("p").max_time(Duration::from_secs(2));
        let other = other.into_request(Timestamp(5));
        assert_eq!((one.deadline_ms, other.deadline_ms), (0, 2005));
        assert_ne!(one.idempotency_key, other.idempotency_key);
        let scope = Begin::profile("p").tools(Vec::<String>::new()).into_request(Timestamp(5));
        let scope = scope.declaration.and_then(|declaration| declaration.scope).unwrap();
        assert_eq!((scope.actions, scope.tools), (None, Some(wire::Names::default())));
    }
}
