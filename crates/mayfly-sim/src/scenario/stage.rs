//! The stage: a registrar, a disk that obeys, and the names by which the story calls things.

use std::collections::BTreeMap;

use mayfly_core::{
    Admission, Charter, Effect, Event, Fact, Holder, PolicyEpoch, ProcessKey, Registrar, Serial,
    Shard, Status, TaskId, TaskVersion, Ticket, Timestamp, TrustDomain, ledger::Place,
};

use super::parse::{Line, span};
use crate::disk::Disk;

/// Something that followed, in words: the short form, and a longer one that may be named instead.
#[derive(Debug)]
pub(super) struct Happened {
    short: String,
    long: String,
    quiet: bool,
}

impl Happened {
    fn loud(short: String, more: &str) -> Self {
        let long = if more.is_empty() { short.clone() } else { format!("{short} {more}") };
        Self { short, long, quiet: false }
    }

    fn quiet(short: String, more: &str) -> Self {
        Self { quiet: true, ..Self::loud(short, more) }
    }

    fn is(&self, expected: &str) -> bool {
        self.short == expected || self.long == expected
    }
}

/// Whether everything that was expected happened, and nothing loud besides.
pub(super) fn compare(expected: &[String], happened: &[Happened]) -> Result<(), String> {
    let mut left: Vec<&Happened> = happened.iter().collect();
    for one in expected {
        let Some(at) = left.iter().position(|happened| happened.is(one)) else {
            return Err(format!("`{one}` did not happen; this did: {}", list(happened)));
        };
        left.remove(at);
    }
    match left.iter().find(|happened| !happened.quiet) {
        Some(more) => Err(format!("`{}` happened besides", more.long)),
        None => Ok(()),
    }
}

fn list(happened: &[Happened]) -> String {
    let words: Vec<_> = happened.iter().map(|one| one.long.as_str()).collect();
    if words.is_empty() { "nothing".into() } else { words.join(", ") }
}

/// Where every story begins: a whole second, and the beginning of an expiry window.
pub(super) const START: Timestamp = Timestamp(1_800_000_000_000);

/// See the module's essay.
#[derive(Debug, Default)]
pub(super) struct Stage {
    pub(super) registrar: Option<Registrar>,
    pub(super) disk: Disk,
    pub(super) epoch: PolicyEpoch,
    pub(super) now: Timestamp,
    pub(super) dead: Vec<ProcessKey>,
    /// Runs of units, containers and pods in which nobody lives any more.
    pub(super) empty: Vec<u64>,
    tickets: u64,
    admission: Admission,
    serials: Vec<(Serial, TaskId, Timestamp)>,
    /// Who was promised what, until the answer.
    asked: BTreeMap<Ticket, Serial>,
    signing: BTreeMap<Ticket, Serial>,
}

impl Stage {
    /// Plays one line and says what followed.
    pub(super) fn play(&mut self, line: &Line) -> Result<Vec<Happened>, String> {
        self.now = START.plus(line.at);
        if self.registrar.is_none() && line.number > 0 && self.epoch == PolicyEpoch(0) {
            self.epoch = PolicyEpoch(1);
            if line.verb == "room" {
                self.admission = room(line)?;
            }
            self.registrar = Some(Registrar::new(self.charter()));
            if line.verb == "room" {
                return Ok(Vec::new());
            }
        }
        match line.verb.as_str() {
            "crash" => self.crash(line),
            "replay" => self.replay(line),
            "empties" => {
                self.empty.push(run(line.word(0)?)?);
                Ok(Vec::new())
            }
            "dies" => {
                self.dead.push(process(line.word(0)?)?);
                Ok(Vec::new())
            }
            "standing" | "status" | "expires" | "state" | "crl" => self.look(line),
            _ => {
                let events = self.events(line)?;
                let registrar = self.registrar.as_mut().ok_or("the broker is down")?;
                if line.verb == "tick" {
                    registrar.handle_timeout(self.now);
                }
                for event in events {
                    registrar.handle(self.now, event);
                }
                Ok(self.obey())
            }
        }
    }

    pub(super) const fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    pub(super) fn serial(&self, name: &str) -> Result<Serial, String> {
        let number = number(name, 'S')?;
        let at = number.checked_sub(1).and_then(|at| usize::try_from(at).ok());
        let known = at.and_then(|at| self.serials.get(at)).map(|(serial, ..)| *serial);
        known.ok_or_else(|| format!("`{name}` was not promised"))
    }

    /// The caller whose credential is being signed.
    pub(super) fn signing(&self, name: &str) -> Result<Ticket, String> {
        let serial = self.serial(name)?;
        let mut found = self.signing.iter().filter(|(_, signing)| **signing == serial);
        found.next().map(|(ticket, _)| *ticket).ok_or_else(|| format!("`{name}` is not signed"))
    }

    fn charter(&self) -> Charter {
        let trust_domain = TrustDomain::parse("story.test").unwrap_or_else(|_| unreachable!());
        let (policy_epoch, admission) = (self.epoch, self.admission);
        Charter { trust_domain, shard: Shard(0), policy_epoch, admission }
    }

    fn crash(&mut self, line: &Line) -> Result<Vec<Happened>, String> {
        let kept = line.option("keeping").unwrap_or("0");
        let kept =
            kept.parse().map_err(|_no_number| format!("`{kept}` is not a number of records"))?;
        self.registrar = None;
        self.disk.crash_keeping(kept);
        self.signing.clear();
        self.asked.clear();
        Ok(Vec::new())
    }

    fn replay(&mut self, line: &Line) -> Result<Vec<Happened>, String> {
        let snapshot = match line.words.first().map(String::as_str) {
            None => None,
            Some("snapshot") => Some(self.disk.snapshot_of(self.disk.synced())),
            Some(other) => return Err(format!("`replay` knows `snapshot`, not `{other}`")),
        };
        let journal = self.disk.journal();
        let mut registrar = Registrar::replay(self.charter(), snapshot, journal);
        let held = registrar.reconcile();
        let gone = |holder: &Holder| match holder {
            Holder::Process(key) | Holder::Lineage(key) => self.dead.contains(key),
            Holder::Unit(it) => self.empty.contains(&it.cgroup.inode),
            Holder::Container(it) => self.empty.contains(&it.cgroup.inode),
            Holder::Pod(it) => self.empty.contains(&it.cgroup.inode),
            Holder::Cgroup(_) | Holder::Socket | Holder::Lease | Holder::Job => false,
        };
        let gone: Vec<_> = held.into_iter().filter(|(_, holder)| gone(holder)).collect();
        for (task, _) in gone {
            registrar.handle(self.now, Event::HolderGone { task, exit: None });
        }
        self.registrar = Some(registrar);
        Ok(self.obey())
    }

    fn look(&self, line: &Line) -> Result<Vec<Happened>, String> {
        let registrar = self.registrar.as_ref().ok_or("the broker is down")?;
        if line.verb == "crl" {
            let listed = registrar.revoked_certificates().map(|entry| self.name(entry.serial));
            return Ok(listed.map(|name| Happened::loud(name, "")).collect());
        }
        let seen = if line.verb == "state" {
            let state = registrar.task(task(line.word(0)?)?).map(|task| task.state.name());
            state.unwrap_or("forgotten").to_owned()
        } else {
            let serial = self.serial(line.word(0)?)?;
            let known = self.serials.iter().find(|(known, ..)| *known == serial);
            let (_, task, not_after) = known.ok_or("a serial without a promise")?;
            match line.verb.as_str() {
                "standing" => match registrar.standing(*task, &serial) {
                    Ok(_) => "valid".into(),
                    Err(denial) => denial.code().into(),
                },
                "expires" => expires(line, *not_after),
                _ => match registrar.revocations().status(&serial) {
                    Status::Valid => "valid".into(),
                    Status::Revoked => "revoked".into(),
                    Status::Suspended => "suspended".into(),
                },
            }
        };
        Ok(vec![Happened::loud(seen, "")])
    }

    fn name(&self, serial: Serial) -> String {
        let at = self.serials.iter().position(|(known, ..)| *known == serial);
        at.map_or_else(|| serial.to_string(), |at| format!("S{}", at + 1))
    }

    fn obey(&mut self) -> Vec<Happened> {
        let mut happened = Vec::new();
        while let Some(effect) = self.registrar.as_mut().and_then(Registrar::poll_effect) {
            happened.extend(self.obey_one(effect));
        }
        happened
    }

    fn obey_one(&mut self, effect: Effect) -> Option<Happened> {
        let (loud, quiet) = (Happened::loud, Happened::quiet);
        Some(match effect {
            Effect::Journal(sequence, record) => {
                if let Fact::Promised { serial, task, not_after, .. } = record.fact {
                    self.serials.push((serial, task, not_after));
                    self.asked.insert(asked_for(&serial), serial);
                }
                let told = self.fact(&record.fact);
                if !self.disk.append(sequence, record) {
                    return Some(loud("lost a record".into(), ""));
                }
                return told;
            }
            Effect::Recognise { identity, .. } => {
                loud(format!("recognised {}", task_name(identity.task)), "")
            }
            Effect::Introduce { identities, .. } => {
                let names: Vec<_> = identities.iter().map(|one| task_name(one.task)).collect();
                loud(format!("introduced {}", names.join(" ")), "")
            }
            Effect::Reconsider { .. } => loud("reconsidered".into(), ""),
            Effect::Sign { ticket, grant } => {
                self.signing.insert(ticket, *grant.serial());
                loud(format!("signing {}", self.name(*grant.serial())), "")
            }
            Effect::Release { ticket } => match self.signing.remove(&ticket) {
                Some(serial) => loud(format!("released {}", self.name(serial)), ""),
                None => loud("released what was not signed".into(), ""),
            },
            Effect::Withhold { ticket, denial } => {
                self.signing.remove(&ticket);
                match self.asked.remove(&ticket) {
                    Some(serial) => loud(format!("withheld {} {denial}", self.name(serial)), ""),
                    None => loud(format!("withheld {denial}"), ""),
                }
            }
            Effect::Acknowledge { task, version: TaskVersion(version), .. } => {
                loud(format!("acknowledged {}", task_name(task)), &format!("v{version}"))
            }
            Effect::Publish(delta) => loud(self.published(&delta.changes), ""),
            Effect::RefreshCrl => quiet("crl".into(), ""),
            Effect::Watch { task, .. } => quiet(format!("watching {}", task_name(task)), ""),
            Effect::Close { task, why } => {
                let why = format!("{why:?}").to_lowercase();
                quiet(format!("closed {}", task_name(task)), &why)
            }
            Effect::OpenSocket { task } => quiet(format!("socket {}", task_name(task)), ""),
            Effect::CloseSocket { task } => quiet(format!("no_socket {}", task_name(task)), ""),
            Effect::Alert { finding, .. } => quiet(format!("alert {}", finding.code()), ""),
            Effect::Forget { task } => quiet(format!("forgot {}", task_name(task)), ""),
        })
    }

    fn fact(&self, fact: &Fact) -> Option<Happened> {
        let (loud, quiet) = (Happened::loud, Happened::quiet);
        Some(match fact {
            Fact::Began { task, .. } => loud(format!("began {}", task_name(*task)), ""),
            Fact::Promised { serial, .. } => loud(format!("promised {}", self.name(*serial)), ""),
            Fact::Ended { task, cause, .. } => {
                loud(format!("ended {}", task_name(*task)), cause.code())
            }
            Fact::Suspended { task, by, .. } => {
                let by = format!("by {}", task_name(*by));
                loud(format!("suspended {}", task_name(*task)), &by)
            }
            Fact::Transferred { task, owner } => {
                loud(format!("transferred {}", task_name(*task)), owner)
            }
            Fact::Resumed { task, .. } => loud(format!("resumed {}", task_name(*task)), ""),
            Fact::Renewed { task, .. } => loud(format!("renewed {}", task_name(*task)), ""),
            Fact::Amended { task, version, .. } => {
                loud(format!("amended {}", task_name(*task)), &format!("v{}", version.0))
            }
            Fact::CredentialRevoked { serial, .. } => {
                loud(format!("revoked {}", self.name(*serial)), "")
            }
            Fact::Refused { .. } => return None, // The answer says it already.
            Fact::Misused { finding, serial, .. } => {
                let name = serial.map_or_else(|| "nothing".into(), |serial| self.name(serial));
                loud(format!("{} {name}", finding.code()), "")
            }
            Fact::Noted { what, .. } => quiet(format!("noted {what}"), ""),
        })
    }

    /// The tasks and credentials of a delta.
    fn published(&self, changes: &[mayfly_core::Change]) -> String {
        let at = |place: &Place| self.serials.iter().find(|(serial, ..)| serial.place() == *place);
        let mut names: Vec<_> = changes
            .iter()
            .map(|change| match change {
                mayfly_core::Change::Place(place, _) => {
                    at(place).map_or_else(|| "a stranger".into(), |(_, task, _)| task_name(*task))
                }
                mayfly_core::Change::Serial(serial, _) => self.name(*serial),
            })
            .collect();
        names.sort();
        names.dedup();
        format!("published {}", names.join(" "))
    }
}

fn expires(line: &Line, not_after: Timestamp) -> String {
    // The expected time is compared as a time: `60s` and `1m` are the same.
    let lasts = not_after.since(START);
    let same = line.expected.iter().flatten().find(|text| span(text) == Ok(lasts));
    same.cloned().unwrap_or_else(|| lasts.to_string())
}

pub(super) fn number(name: &str, kind: char) -> Result<u64, String> {
    let number = name.strip_prefix(kind).and_then(|number| number.parse().ok());
    number.ok_or_else(|| format!("`{name}` is not a name such as `{kind}1`"))
}

/// The task that the story calls `name`.
pub(super) fn task(name: &str) -> Result<TaskId, String> {
    let number = number(name, 'T')?;
    Ok(TaskId::from_bytes(u128::from(number).to_be_bytes()))
}

fn task_name(task: TaskId) -> String {
    format!("T{}", u128::from_be_bytes(*task.as_bytes()))
}

/// The number of a run such as `web#2`.
pub(super) fn run(name: &str) -> Result<u64, String> {
    let number = name.split_once('#').and_then(|(_, number)| number.parse().ok());
    number.ok_or_else(|| format!("`{name}` does not say which run"))
}

/// The process that the story calls `name`.
pub(super) fn process(name: &str) -> Result<ProcessKey, String> {
    let inode = number(name, 'P')?;
    let pid = i32::try_from(inode).map_err(|_too_long| format!("`{name}` is too high"))?;
    Ok(ProcessKey { boot: [0; 16], inode, pid })
}

/// `room signing=1 waiting=2 task=1`, as the first line: how many may ask at once.
fn room(line: &Line) -> Result<Admission, String> {
    let number = |name: &str, or: usize| match line.option(name).map(str::parse) {
        None => Ok(or),
        Some(number) => number.map_err(|_letters| format!("`{name}` is not a number")),
    };
    let Admission { signing_max, waiting_max, per_task_max } = Admission::default();
    Ok(Admission {
        signing_max: number("signing", signing_max)?,
        waiting_max: number("waiting", waiting_max)?,
        per_task_max: number("task", per_task_max)?,
    })
}

/// Who was promised a credential: the luck of an ask is its ticket's number.
fn asked_for(serial: &Serial) -> Ticket {
    let luck = serial.as_bytes().iter().skip(Serial::BYTES - 8);
    Ticket(luck.fold(0, |sum, byte| (sum << 8) | u64::from(*byte)))
}
