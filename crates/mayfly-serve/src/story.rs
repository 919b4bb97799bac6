//! Records in the words of a timeline.

use mayfly_core::{Author, Dimension, Extent, Fact, Holder, Kind, Scope, Span, Timestamp};

/// A stable word for what happened at `at`, and the rest as text.
pub(crate) fn tell(fact: &Fact, at: Timestamp) -> (&'static str, String) {
    match fact {
        Fact::Began { terms, holder, declared, author, .. } => {
            let how = if *declared { "declared" } else { "observed" };
            let (profile, holder) = (&terms.profile, held_by(holder));
            ("began", format!("{how}, profile {profile}, held by {holder}{}", said_by(author)))
        }
        Fact::Promised { kind: Kind::X509, serial, .. } => ("promised", format!("x509 {serial}")),
        Fact::Promised { kind: Kind::Jwt, serial, .. } => ("promised", format!("jwt {serial}")),
        Fact::Ended { cause, exit, author, .. } => {
            let exit = exit.map(|code| format!(", exit {code}")).unwrap_or_default();
            ("ended", format!("{cause}{exit}{}", said_by(author)))
        }
        Fact::Suspended { task, by, cause, author } => {
            let cause = cause.map(|cause| cause.to_string());
            let with = (task != by).then(|| format!("with {by}"));
            let what: Vec<_> = cause.into_iter().chain(with).collect();
            ("quarantined", alone(&format!("{}{}", what.join(" "), said_by(author))))
        }
        Fact::Resumed { author, .. } => ("released", alone(&said_by(author))),
        Fact::Transferred { owner, .. } => ("transferred", format!("to {owner}")),
        Fact::Renewed { lease_until, .. } => {
            let more = Span(lease_until.0.saturating_sub(at.0));
            ("renewed", format!("for {more} more"))
        }
        Fact::Amended { version, intent, scope, author, .. } => {
            let now = [scoped(scope), intent.clone()].into_iter().filter(|text| !text.is_empty());
            let now: Vec<_> = [format!("version {}", version.0)].into_iter().chain(now).collect();
            ("amended", format!("{}{}", now.join(", "), said_by(author)))
        }
        Fact::CredentialRevoked { serial, author, .. } => {
            ("credential_revoked", format!("{serial}{}", said_by(author)))
        }
        Fact::Refused { denial, .. } => ("refused", denial.to_string()),
        Fact::Misused { finding, presenter, verifier, .. } => (
            finding.code(),
            format!("shown by {}, says {}", or_unknown(presenter), or_unknown(verifier)),
        ),
        Fact::Noted { what, detail } => ("noted", format!("{what} {detail}")),
    }
}

/// What a scope is limited to; nothing where it is not.
fn scoped(scope: &Scope) -> String {
    let told = Dimension::ALL.into_iter().filter_map(|dimension| {
        let Extent::Only(names) = scope.extent(dimension) else { return None };
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        Some(format!("{} [{}]", dimension.name(), names.join(" ")))
    });
    told.collect::<Vec<_>>().join(", ")
}

/// What stands alone, and so is not joined to anything.
fn alone(text: &str) -> String {
    text.trim_start_matches([',', ':', ' ']).to_owned()
}

/// On whose word, and why, where somebody's it was.
fn said_by(author: &Author) -> String {
    match (author.by.as_str(), author.why.as_str()) {
        ("", "") => String::new(),
        (by, "") => format!(", by {by}"),
        ("", why) => format!(": {why}"),
        (by, why) => format!(", by {by}: {why}"),
    }
}

fn or_unknown(name: &str) -> &str {
    if name.is_empty() { "somebody" } else { name }
}

/// What holds a task, in words.
pub(crate) fn held_by(holder: &Holder) -> String {
    match holder {
        Holder::Process(key) => format!("pid {}", key.pid),
        Holder::Lineage(key) => format!("pid {} and below", key.pid),
        Holder::Cgroup(path) => format!("cgroup {path}"),
        Holder::Unit(unit) => format!("unit {}", unit.name),
        Holder::Container(container) => format!("container {}", container.id),
        Holder::Pod(pod) => format!("pod {}", pod.uid),
        Holder::Socket => "its own socket".to_owned(),
        Holder::Lease => "its lease".to_owned(),
        Holder::Job => "its window".to_owned(),
    }
}
