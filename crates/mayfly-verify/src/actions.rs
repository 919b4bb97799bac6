//! Which peer may do what: a table that allows nothing by itself.
//!
//! An action is a method and a path, which for gRPC is `/package.Service/Method`. The rule with the
//! longest path that fits decides, so a wide rule at `/` does not open what a narrower one closes; what
//! no rule fits is denied. An identity alone therefore opens nothing (R3).

use http::Method;

use crate::{authorize::Authorize, peer::Peer};

/// Something that can be asked for: a path with everything below it, by one method or by any.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Action {
    method: Option<Method>,
    path: String,
}

impl Action {
    /// `path` and everything below it, by this method. `/a` means `/a` and `/a/b`, not `/ab`.
    #[must_use]
    pub fn new(method: Method, path: &str) -> Self {
        Self { method: Some(method), path: without_end(path) }
    }

    /// `path` and everything below it, by whatever method.
    #[must_use]
    pub fn any_method(path: &str) -> Self {
        Self { method: None, path: without_end(path) }
    }

    /// One method of a gRPC service, for example `grpc.health.v1.Health` and `Check`.
    #[must_use]
    pub fn grpc(service: &str, method: &str) -> Self {
        Self::new(Method::POST, &format!("/{service}/{method}"))
    }

    /// Every method of a gRPC service.
    #[must_use]
    pub fn grpc_service(service: &str) -> Self {
        Self::new(Method::POST, &format!("/{service}"))
    }

    /// What of `path` lies below the action's; `None` if it is not there.
    fn below<'a>(&self, path: &'a str) -> Option<&'a str> {
        let rest = path.strip_prefix(&self.path)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(rest)
    }

    fn fits(&self, method: &Method, path: &str) -> bool {
        self.method.as_ref().is_none_or(|own| own == method) && self.below(path).is_some()
    }

    /// A longer path before a shorter one, a named method before any.
    const fn rank(&self) -> (usize, bool) {
        (self.path.len(), self.method.is_some())
    }
}

/// `/a/` and `/a` are the same action, and `/` is everything.
fn without_end(path: &str) -> String {
    path.trim_end_matches('/').to_owned()
}

#[derive(Clone, Debug)]
struct Rule {
    action: Action,
    whom: Authorize,
    own_task: bool,
}

impl Rule {
    fn allows(&self, path: &str, peer: &Peer) -> bool {
        let named = || {
            let below = self.action.below(path)?.strip_prefix('/')?;
            below.split('/').next()
        };
        let is_own = || {
            let task = peer.task().filter(|_| peer.own);
            task.is_some_and(|task| named().is_some_and(|named| named == task.to_string()))
        };
        self.whom.allows(&peer.leaf.id) && (!self.own_task || is_own())
    }
}

/// Rules `action → whom`. What no rule fits is denied.
#[derive(Clone, Debug, Default)]
pub struct Actions(Vec<Rule>);

impl Actions {
    /// Nothing is allowed to anybody.
    #[must_use]
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// Allows an action to those whom `whom` allows.
    #[must_use]
    pub fn allow(self, action: Action, whom: Authorize) -> Self {
        self.with(Rule { action, whom, own_task: false })
    }

    /// Allows an action to those whom `whom` allows, each on its own task: the path's next segment
    /// names a task of our trust domain, and it has to be the peer's (R20). With `/tasks`, the task
    /// `T` may do the action on `/tasks/T` and below.
    #[must_use]
    pub fn allow_own_task(self, action: Action, whom: Authorize) -> Self {
        self.with(Rule { action, whom, own_task: true })
    }

    fn with(mut self, rule: Rule) -> Self {
        self.0.push(rule);
        self
    }

    /// Whether `peer` may do this. Rules of equal rank are alternatives.
    #[must_use]
    pub fn permit(&self, method: &Method, path: &str, peer: &Peer) -> bool {
        if !is_plain(path) {
            return false;
        }
        let fitting = || self.0.iter().filter(|rule| rule.action.fits(method, path));
        let Some(rank) = fitting().map(|rule| rule.action.rank()).max() else {
            return false;
        };
        fitting().any(|rule| rule.action.rank() == rank && rule.allows(path, peer))
    }
}

/// Whether every reader of this path reads the same: who serves it may resolve `..`, fold `//` or decode
/// `%2f`, and would then do another action than the one that was permitted.
fn is_plain(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    let mut segments = rest.split('/').peekable();
    let mut plain = !rest.contains('\\');
    while let Some(segment) = segments.next() {
        // Only the last one may be empty: `/a/`.
        let is_end = segments.peek().is_none();
        plain &= (is_end || !segment.is_empty()) && !matches!(segment, "." | "..");
    }
    let lower = rest.to_ascii_lowercase();
    plain && !["%2f", "%5c", "%2e", "%00"].iter().any(|hidden| lower.contains(hidden))
}

#[cfg(test)]
mod tests {
    use mayfly_core::{SpiffeId, Timestamp, TrustDomain};

    use super::*;
    use crate::x509::Leaf;

    const TASK: &str = "00112233445566778899aabbccddeeff";

    fn peer(path: &str) -> Peer {
        let id = SpiffeId::parse(&format!("spiffe://td{path}")).unwrap();
        let (not_before, not_after) = (Timestamp(0), Timestamp(u64::MAX));
        Peer { leaf: Leaf { id, serial: None, not_before, not_after }, own: true }
    }

    fn profile(path: &str) -> Authorize {
        Authorize::Profile(SpiffeId::parse(&format!("spiffe://td{path}")).unwrap())
    }

    #[test]
    fn nothing_is_allowed_unless_a_rule_says_so() {
        let someone = peer("/a");
        assert!(!Actions::none().permit(&Method::GET, "/", &someone));
        let table = Actions::none().allow(Action::new(Method::GET, "/orders"), Authorize::Any);
        for (method, path, allowed) in [
            (Method::GET, "/orders", true),
            (Method::GET, "/orders/7", true),
            (Method::GET, "/orders/", true),
            (Method::POST, "/orders", false),
            (Method::GET, "/", false),
            (Method::GET, "/orders2", false),
            (Method::OPTIONS, "*", false),
            (Method::CONNECT, "", false),
        ] {
            assert_eq!(table.permit(&method, path, &someone), allowed, "{method} {path}");
        }
    }

    #[test]
    fn the_narrowest_rule_decides_and_a_wide_one_does_not_open_it() {
        let table = Actions::none()
            .allow(Action::any_method("/"), Authorize::Any)
            .allow(Action::any_method("/admin"), profile("/root"))
            .allow(Action::new(Method::GET, "/admin"), profile("/auditor"));
        let permit = |method, path, who| table.permit(&method, path, &peer(who));
        assert!(permit(Method::GET, "/x", "/anybody"));
        assert!(!permit(Method::POST, "/admin/x", "/anybody"));
        assert!(permit(Method::POST, "/admin/x", "/root"));
        assert!(permit(Method::GET, "/admin/x", "/auditor"));
        assert!(!permit(Method::GET, "/admin/x", "/root"), "the named method is the narrower rule");
    }

    #[test]
    fn rules_of_one_rank_are_alternatives() {
        let action = || Action::grpc("p.S", "M");
        let table = Actions::none().allow(action(), profile("/a")).allow(action(), profile("/b"));
        for (who, allowed) in [("/a", true), ("/b", true), ("/c", false)] {
            assert_eq!(table.permit(&Method::POST, "/p.S/M", &peer(who)), allowed);
        }
        let whole = Actions::none().allow(Action::grpc_service("p.S"), profile("/a"));
        assert!(whole.permit(&Method::POST, "/p.S/N", &peer("/a")));
        assert!(!whole.permit(&Method::POST, "/p.S2/N", &peer("/a")));
    }

    /// R20: what a task may do with itself, it may not do with another.
    #[test]
    fn r20_a_task_acts_on_itself_only() {
        let table = Actions::none().allow_own_task(Action::any_method("/tasks"), profile("/a"));
        let own = peer(&format!("/a/task/{TASK}"));
        let other = TASK.replace('f', "e");
        for (path, allowed) in [
            (format!("/tasks/{TASK}"), true),
            (format!("/tasks/{TASK}/notes"), true),
            (format!("/tasks/{other}"), false),
            (format!("/tasks/{}", TASK.to_uppercase()), false),
            (format!("/tasks/{TASK}x"), false),
            ("/tasks".to_owned(), false),
            ("/tasks/".to_owned(), false),
        ] {
            assert_eq!(table.permit(&Method::GET, &path, &own), allowed, "{path}");
        }
        let namesake = Peer { own: false, ..own };
        let path = format!("/tasks/{TASK}");
        assert!(!table.permit(&Method::GET, &path, &namesake), "a foreign task of that name");
        let domain = TrustDomain::parse("td").unwrap();
        let stable = Peer { own: true, ..peer("/a") };
        assert!(Authorize::TrustDomain(domain).allows(&stable.leaf.id));
        assert!(!table.permit(&Method::GET, &path, &stable), "a stable name names no task");
    }

    #[test]
    fn a_path_that_can_be_read_in_two_ways_is_denied() {
        let table = Actions::none().allow(Action::any_method("/"), Authorize::Any);
        let someone = peer("/a");
        for path in ["/a/../b", "/./b", "//b", "/a//b", "/a%2fb", "/a%2E%2e/b", "/a\\b", "/a%5Cb"] {
            assert!(!table.permit(&Method::GET, path, &someone), "{path}");
        }
        for path in ["/", "/a/", "/a.b/c-d", "/a%20b", "/..a"] {
            assert!(table.permit(&Method::GET, path, &someone), "{path}");
        }
    }
}
