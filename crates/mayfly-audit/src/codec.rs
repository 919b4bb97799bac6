//! Records of the core as protobuf, the form in which they are hashed, stored and shown to others.
//!
//! Reading is strict: a field that cannot be what the core once wrote is an error with the field's
//! name. Guessing a default here would be guessing what was decided.

use std::sync::Arc;

use mayfly_core::{
    Binding, Cause, CgroupKey, Container, Denial, Fact, Finding, Holder, Kind, Pod, ProcessKey,
    Record, Serial, Span, TaskId, TaskVersion, Terms, Timestamp, TrustDomain, Unit,
};
use mayfly_proto::mayfly::v1 as proto;
use prost::Message as _;

use self::mandate::{
    parse_author, parse_bounds, parse_key, parse_mandate, parse_scope, spell_author, spell_bounds,
    spell_mandate, spell_scope,
};

mod mandate;

/// A record that does not say what a record must say, with the field that is wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("invalid record: `{0}`")]
pub struct InvalidRecord(pub &'static str);

/// Spells a record.
#[must_use]
pub fn encode(record: &Record) -> Vec<u8> {
    proto::Record { at_ms: record.at.0, fact: Some(spell(&record.fact)) }.encode_to_vec()
}

/// Reads a record.
///
/// # Errors
/// [`InvalidRecord`] names the field that is missing or malformed.
pub fn decode(bytes: &[u8]) -> Result<Record, InvalidRecord> {
    let record = proto::Record::decode(bytes).map_err(|_not_proto| InvalidRecord("record"))?;
    Ok(Record {
        at: Timestamp(record.at_ms),
        fact: parse(record.fact.ok_or(InvalidRecord("fact"))?)?,
    })
}

fn spell(fact: &Fact) -> proto::record::Fact {
    use proto::record::Fact as Out;
    let name = |task: &TaskId| task.as_bytes().to_vec();
    match fact {
        Fact::Began { .. } => Out::Began(spell_began(fact)),
        Fact::Promised { task, version, kind, serial, not_after, count } => {
            Out::Promised(proto::Promised {
                task: name(task),
                version: version.0,
                kind: match kind {
                    Kind::X509 => proto::Kind::X509.into(),
                    Kind::Jwt => proto::Kind::Jwt.into(),
                },
                serial: serial.as_bytes().to_vec(),
                not_after_ms: not_after.0,
                issued: count.0,
                in_minute: count.1,
            })
        }
        Fact::Ended { task, cause, exit, author } => Out::Ended(proto::Ended {
            task: name(task),
            cause: cause.code().into(),
            exit: *exit,
            author: spell_author(author),
        }),
        Fact::Suspended { task, by, cause, author } => Out::Suspended(proto::Suspended {
            task: name(task),
            by: name(by),
            cause: cause.map(|cause| cause.code().into()).unwrap_or_default(),
            author: spell_author(author),
        }),
        Fact::Resumed { task, author } => {
            Out::Resumed(proto::Resumed { task: name(task), author: spell_author(author) })
        }
        Fact::Transferred { task, owner } => Out::Transferred(transferred(task, owner)),
        Fact::Renewed { task, lease_until } => {
            Out::Renewed(proto::Renewed { task: name(task), lease_until_ms: lease_until.0 })
        }
        Fact::Amended { task, version, intent, scope, author } => Out::Amended(proto::Amended {
            task: name(task),
            version: version.0,
            intent: intent.clone(),
            scope: spell_scope(scope),
            author: spell_author(author),
        }),
        Fact::CredentialRevoked { task, serial, author } => {
            Out::CredentialRevoked(proto::CredentialRevoked {
                task: name(task),
                serial: serial.as_bytes().to_vec(),
                author: spell_author(author),
            })
        }
        Fact::Refused { denial, task, profile } => Out::Refused(proto::Refused {
            denial: denial.code().into(),
            task: task.as_ref().map(name).unwrap_or_default(),
            profile: profile.clone(),
        }),
        Fact::Misused { finding, serial, task, presenter, verifier } => {
            Out::Misused(proto::Misused {
                finding: finding.code().into(),
                serial: serial.map(|serial| serial.as_bytes().to_vec()).unwrap_or_default(),
                task: task.as_ref().map(name).unwrap_or_default(),
                presenter: presenter.clone(),
                verifier: verifier.clone(),
            })
        }
        Fact::Noted { what, detail } => {
            Out::Noted(proto::Noted { what: what.clone(), detail: detail.clone() })
        }
    }
}

fn transferred(task: &TaskId, owner: &str) -> proto::Transferred {
    proto::Transferred { task: task.as_bytes().to_vec(), owner: owner.to_owned() }
}

/// Only called for [`Fact::Began`]; apart from [`spell`] because it is as long as the rest.
fn spell_began(fact: &Fact) -> proto::Began {
    let Fact::Began { task, terms, holder, parent, mandate, deadline, lease, declared, .. } = fact
    else {
        return proto::Began::default();
    };
    let Fact::Began { key, author, .. } = fact else { return proto::Began::default() };
    proto::Began {
        task: task.as_bytes().to_vec(),
        terms: Some(spell_terms(terms)),
        holder: Some(spell_holder(holder)),
        parent: parent.map(|id| id.as_bytes().to_vec()).unwrap_or_default(),
        intent: mandate.intent.clone(),
        deadline_ms: deadline.map(|at| at.0),
        lease_ms: lease.map(|span| span.0),
        declared: *declared,
        mandate: Some(spell_mandate(mandate)),
        request_key: key.map(|wish| wish.key.to_vec()).unwrap_or_default(),
        request_body: key.map(|wish| wish.body.to_vec()).unwrap_or_default(),
        author: spell_author(author),
    }
}

fn spell_terms(terms: &Terms) -> proto::Terms {
    let binding = match terms.binding {
        Binding::Process => proto::Binding::Process,
        Binding::Lineage => proto::Binding::Lineage,
        Binding::Cgroup => proto::Binding::Cgroup,
        Binding::Systemd => proto::Binding::Systemd,
        Binding::Container => proto::Binding::Container,
        Binding::Pod => proto::Binding::Pod,
        Binding::Socket => proto::Binding::Socket,
        Binding::Lease => proto::Binding::Lease,
    };
    proto::Terms {
        profile: terms.profile.clone(),
        spiffe_id_path: terms.path.clone(),
        owner: terms.owner.clone(),
        binding: binding.into(),
        stable_identity: terms.stable_identity,
        x509_ttl_ms: terms.x509_ttl.0,
        jwt_ttl_ms: terms.jwt_ttl.0,
        task_ttl_ms: terms.task_ttl.map(|span| span.0),
        hint: terms.hint.clone(),
        federates_with: terms.federates_with.iter().map(|domain| domain.as_str().into()).collect(),
        bounds: spell_bounds(&terms.bounds),
    }
}

fn spell_holder(holder: &Holder) -> proto::Holder {
    use proto::holder::Holder as Out;
    let process = |key: &ProcessKey| proto::Process {
        boot: key.boot.to_vec(),
        inode: key.inode,
        pid: key.pid,
    };
    let holder = match holder {
        Holder::Process(key) => Out::Process(process(key)),
        Holder::Lineage(key) => Out::Lineage(process(key)),
        Holder::Cgroup(path) => Out::Cgroup(path.clone()),
        Holder::Unit(unit) => Out::Unit(proto::Unit {
            name: unit.name.clone(),
            invocation: unit.invocation.to_vec(),
            cgroup: Some(spell_cgroup(&unit.cgroup)),
        }),
        Holder::Container(container) => Out::Container(proto::Container {
            id: container.id.clone(),
            cgroup: Some(spell_cgroup(&container.cgroup)),
        }),
        Holder::Pod(pod) => {
            Out::Pod(proto::Pod { uid: pod.uid.clone(), cgroup: Some(spell_cgroup(&pod.cgroup)) })
        }
        Holder::Socket => Out::Socket(proto::Nobody {}),
        Holder::Lease => Out::Lease(proto::Nobody {}),
        Holder::Job => Out::Job(proto::Nobody {}),
    };
    proto::Holder { holder: Some(holder) }
}

fn spell_cgroup(key: &CgroupKey) -> proto::CgroupKey {
    proto::CgroupKey { boot: key.boot.to_vec(), inode: key.inode, path: key.path.clone() }
}

fn parse(fact: proto::record::Fact) -> Result<Fact, InvalidRecord> {
    use proto::record::Fact as In;
    Ok(match fact {
        In::Began(began) => parse_began(began)?,
        In::Promised(promised) => Fact::Promised {
            task: parse_task(&promised.task)?,
            version: TaskVersion(promised.version),
            kind: match proto::Kind::try_from(promised.kind) {
                Ok(proto::Kind::X509) => Kind::X509,
                Ok(proto::Kind::Jwt) => Kind::Jwt,
                Ok(proto::Kind::Unspecified) | Err(_) => return Err(InvalidRecord("kind")),
            },
            serial: parse_serial(&promised.serial)?,
            not_after: Timestamp(promised.not_after_ms),
            count: (promised.issued, promised.in_minute),
        },
        In::Ended(ended) => Fact::Ended {
            task: parse_task(&ended.task)?,
            cause: Cause::parse(&ended.cause).ok_or(InvalidRecord("cause"))?,
            exit: ended.exit,
            author: parse_author(ended.author),
        },
        In::Suspended(it) => Fact::Suspended {
            task: parse_task(&it.task)?,
            by: parse_task(&it.by)?,
            cause: match it.cause.as_str() {
                "" => None,
                code => Some(Cause::parse(code).ok_or(InvalidRecord("cause"))?),
            },
            author: parse_author(it.author),
        },
        In::Resumed(it) => {
            Fact::Resumed { task: parse_task(&it.task)?, author: parse_author(it.author) }
        }
        In::Transferred(it) => Fact::Transferred { task: parse_task(&it.task)?, owner: it.owner },
        In::Renewed(it) => {
            Fact::Renewed { task: parse_task(&it.task)?, lease_until: Timestamp(it.lease_until_ms) }
        }
        In::Amended(it) => Fact::Amended {
            task: parse_task(&it.task)?,
            version: TaskVersion(it.version),
            intent: it.intent,
            scope: Box::new(parse_scope(it.scope)),
            author: parse_author(it.author),
        },
        In::CredentialRevoked(it) => Fact::CredentialRevoked {
            task: parse_task(&it.task)?,
            serial: parse_serial(&it.serial)?,
            author: parse_author(it.author),
        },
        In::Refused(it) => Fact::Refused {
            denial: Denial::parse(&it.denial).ok_or(InvalidRecord("denial"))?,
            task: parse_optional_task(&it.task)?,
            profile: it.profile,
        },
        In::Misused(it) => Fact::Misused {
            finding: Finding::parse(&it.finding).ok_or(InvalidRecord("finding"))?,
            serial: parse_optional_serial(&it.serial)?,
            task: parse_optional_task(&it.task)?,
            presenter: it.presenter,
            verifier: it.verifier,
        },
        In::Noted(it) => Fact::Noted { what: it.what, detail: it.detail },
    })
}

fn parse_began(began: proto::Began) -> Result<Fact, InvalidRecord> {
    Ok(Fact::Began {
        task: parse_task(&began.task)?,
        terms: Arc::new(parse_terms(began.terms.ok_or(InvalidRecord("terms"))?)?),
        holder: parse_holder(began.holder)?,
        parent: parse_optional_task(&began.parent)?,
        mandate: Arc::new(parse_mandate(began.intent, began.mandate)?),
        deadline: began.deadline_ms.map(Timestamp),
        lease: began.lease_ms.map(Span),
        declared: began.declared,
        key: parse_key(&began.request_key, &began.request_body)?,
        author: parse_author(began.author),
    })
}

fn parse_terms(terms: proto::Terms) -> Result<Terms, InvalidRecord> {
    Ok(Terms {
        binding: match proto::Binding::try_from(terms.binding) {
            Ok(proto::Binding::Process) => Binding::Process,
            Ok(proto::Binding::Lineage) => Binding::Lineage,
            Ok(proto::Binding::Cgroup) => Binding::Cgroup,
            Ok(proto::Binding::Systemd) => Binding::Systemd,
            Ok(proto::Binding::Container) => Binding::Container,
            Ok(proto::Binding::Pod) => Binding::Pod,
            Ok(proto::Binding::Socket) => Binding::Socket,
            Ok(proto::Binding::Lease) => Binding::Lease,
            Ok(proto::Binding::Unspecified) | Err(_) => return Err(InvalidRecord("binding")),
        },
        profile: terms.profile,
        path: terms.spiffe_id_path,
        owner: terms.owner,
        stable_identity: terms.stable_identity,
        x509_ttl: Span(terms.x509_ttl_ms),
        jwt_ttl: Span(terms.jwt_ttl_ms),
        task_ttl: terms.task_ttl_ms.map(Span),
        hint: terms.hint,
        bounds: parse_bounds(terms.bounds)?,
        federates_with: terms
            .federates_with
            .iter()
            .map(|name| {
                TrustDomain::parse(name).map_err(|_invalid| InvalidRecord("federates_with"))
            })
            .collect::<Result<_, _>>()?,
    })
}

fn parse_holder(holder: Option<proto::Holder>) -> Result<Holder, InvalidRecord> {
    use proto::holder::Holder as In;
    let process = |process: proto::Process| {
        Ok(ProcessKey {
            boot: process.boot.try_into().map_err(|_length| InvalidRecord("boot"))?,
            inode: process.inode,
            pid: process.pid,
        })
    };
    Ok(match holder.and_then(|holder| holder.holder).ok_or(InvalidRecord("holder"))? {
        In::Process(key) => Holder::Process(process(key)?),
        In::Lineage(key) => Holder::Lineage(process(key)?),
        In::Cgroup(path) => Holder::Cgroup(path),
        In::Unit(unit) => Holder::Unit(Box::new(Unit {
            name: unit.name,
            invocation: unit
                .invocation
                .try_into()
                .map_err(|_length| InvalidRecord("invocation"))?,
            cgroup: parse_cgroup(unit.cgroup)?,
        })),
        In::Container(container) => Holder::Container(Box::new(Container {
            id: container.id,
            cgroup: parse_cgroup(container.cgroup)?,
        })),
        In::Pod(pod) => {
            Holder::Pod(Box::new(Pod { uid: pod.uid, cgroup: parse_cgroup(pod.cgroup)? }))
        }
        In::Socket(proto::Nobody {}) => Holder::Socket,
        In::Lease(proto::Nobody {}) => Holder::Lease,
        In::Job(proto::Nobody {}) => Holder::Job,
    })
}

fn parse_cgroup(key: Option<proto::CgroupKey>) -> Result<CgroupKey, InvalidRecord> {
    let key = key.ok_or(InvalidRecord("cgroup"))?;
    Ok(CgroupKey {
        boot: key.boot.try_into().map_err(|_length| InvalidRecord("boot"))?,
        inode: key.inode,
        path: key.path,
    })
}

fn parse_task(bytes: &[u8]) -> Result<TaskId, InvalidRecord> {
    bytes.try_into().map(TaskId::from_bytes).map_err(|_length| InvalidRecord("task"))
}

fn parse_optional_task(bytes: &[u8]) -> Result<Option<TaskId>, InvalidRecord> {
    if bytes.is_empty() {
        return Ok(None);
    }
    parse_task(bytes).map(Some)
}

fn parse_optional_serial(bytes: &[u8]) -> Result<Option<Serial>, InvalidRecord> {
    if bytes.is_empty() {
        return Ok(None);
    }
    parse_serial(bytes).map(Some)
}

fn parse_serial(bytes: &[u8]) -> Result<Serial, InvalidRecord> {
    Serial::from_bytes(bytes).map_err(|_invalid| InvalidRecord("serial"))
}
