//! Records in the words of a timeline.

use mayfly_core::{Fact, Holder, Kind};

/// A stable word for what happened, and the rest as text.
pub(crate) fn tell(fact: &Fact) -> (&'static str, String) {
    match fact {
        Fact::Began { terms, holder, declared, .. } => {
            let how = if *declared { "declared" } else { "observed" };
            ("began", format!("{how}, profile {}, held by {}", terms.profile, held_by(holder)))
        }
        Fact::Promised { kind: Kind::X509, serial, .. } => ("promised", format!("x509 {serial}")),
        Fact::Promised { kind: Kind::Jwt, serial, .. } => ("promised", format!("jwt {serial}")),
        Fact::Ended { cause, exit, .. } => {
            let exit = exit.map(|code| format!(", exit {code}")).unwrap_or_default();
            ("ended", format!("{cause}{exit}"))
        }
        Fact::Suspended { task, by } if task == by => ("quarantined", String::new()),
        Fact::Suspended { by, .. } => ("quarantined", format!("with {by}")),
        Fact::Resumed { .. } => ("released", String::new()),
        Fact::Renewed { lease_until, .. } => ("renewed", format!("until {} ms", lease_until.0)),
        Fact::Amended { version, intent, .. } => {
            ("amended", format!("version {}, {intent}", version.0))
        }
        Fact::CredentialRevoked { serial, .. } => ("credential_revoked", serial.to_string()),
        Fact::Refused { denial, .. } => ("refused", denial.to_string()),
        Fact::Misused { finding, presenter, verifier, .. } => (
            finding.code(),
            format!("shown by {}, says {}", or_unknown(presenter), or_unknown(verifier)),
        ),
        Fact::Noted { what, detail } => ("noted", format!("{what} {detail}")),
    }
}

fn or_unknown(name: &str) -> &str {
    if name.is_empty() { "somebody" } else { name }
}

fn held_by(holder: &Holder) -> String {
    match holder {
        Holder::Process(key) => format!("pid {}", key.pid),
        Holder::Lineage(key) => format!("pid {} and below", key.pid),
        Holder::Cgroup(path) => format!("cgroup {path}"),
        Holder::Unit(unit) => format!("unit {}", unit.name),
        Holder::Container(container) => format!("container {}", container.id),
        Holder::Pod(pod) => format!("pod {}", pod.uid),
        Holder::Socket => "its own socket".to_owned(),
        Holder::Lease => "its lease".to_owned(),
    }
}
