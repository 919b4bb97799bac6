//! A line as the events that the registrar hears.

use mayfly_core::{
    Amendment, Ask, Author, Basis, Begin, Binding, Bounds, Budget, Caller, Cause, CgroupKey, Claim,
    Container, Event, Extent, Holder, Mandate, OnFailure, Place, Pod, PolicyEpoch, Registrar,
    RequestKey, Scope, Serial, Showing, Span, SpiffeId, TaskVersion, Terms, Ticket, Trigger, Unit,
    Verdict, Wish,
};

use super::{
    parse::Line,
    stage::{START, Stage, process, run, task},
};

impl Stage {
    pub(super) fn events(&mut self, line: &Line) -> Result<Vec<Event>, String> {
        let ticket = self.ticket();
        let one = |event| Ok(vec![event]);
        match line.verb.as_str() {
            "tick" => Ok(Vec::new()),
            "begin" => begin_asked(ticket, line).map(|event| vec![event]),
            "meet" => self.meet(line).map(|event| vec![event]),
            "ask" => self.ask(line).map(|event| vec![event]),
            "name" => self.call_by_name(line).map(|event| vec![event]),
            "heartbeat" => one(Event::HeartbeatHeard { ticket, task: task(line.word(0)?)? }),
            "amend" => {
                let intent = line.words.get(1).cloned().unwrap_or_default();
                let amendment = Amendment { intent: Some(intent), ..amendment(line)? };
                let (task, author) = (task(line.word(0)?)?, Author::default());
                one(Event::AmendAsked { ticket, task, amendment, author })
            }
            "end" => {
                let word = line.words.get(1).map_or("revoked", String::as_str);
                let cause = Cause::parse(word).ok_or_else(|| format!("`{word}` is no cause"))?;
                let (task, author) = (task(line.word(0)?)?, Author::default());
                one(Event::EndAsked { ticket, task, cause, author })
            }
            "exit" => {
                let code = line.words.get(1).map_or(Ok(0), |code| code.parse());
                let exit = Some(code.map_err(|_letters| "an exit code is a number")?);
                one(Event::HolderGone { task: task(line.word(0)?)?, exit })
            }
            "blind" => one(Event::WatcherBlinded { task: task(line.word(0)?)? }),
            "quarantine" => {
                let (task, author) = (task(line.word(0)?)?, Author::default());
                one(Event::QuarantineAsked { ticket, task, author })
            }
            "release" => {
                let (task, author) = (task(line.word(0)?)?, Author::default());
                one(Event::ReleaseAsked { ticket, task, author })
            }
            "revoke" => {
                let (serial, author) = (self.serial(line.word(0)?)?, Author::default());
                one(Event::RevokeAsked { ticket, serial, author })
            }
            "shown" => {
                let name = line.word(0)?;
                let stranger = || Some(Serial::new(Place::default(), 7));
                let serial = match name {
                    "nothing" => None,
                    "stranger" => stranger(),
                    name => Some(self.serial(name)?),
                };
                let by_another = line.words.get(1).is_some_and(|word| word == "by_another");
                let claim = if by_another { Claim::ByAnother } else { Claim::NotToBeUsed };
                let (presenter, verifier) = ("spiffe://story/p".into(), "spiffe://story/v".into());
                one(Event::Shown(Showing { serial, claim, presenter, verifier }))
            }
            "signed" => one(Event::Signed { ticket: self.signing(line.word(0)?)? }),
            "unsigned" => one(Event::SigningFailed { ticket: self.signing(line.word(0)?)? }),
            "flush" => one(Event::Journaled { upto: self.disk.sync(usize::MAX) }),
            "disk_fails" => {
                self.disk.fail();
                one(Event::JournalFailed)
            }
            "policy" => {
                self.epoch = PolicyEpoch(self.epoch.0 + 1);
                let gone = line.words.clone();
                let (left, transfers) = Default::default();
                one(Event::PolicyChanged { epoch: self.epoch, gone, left, transfers })
            }
            "leave" => self.leave(line).map(|event| vec![event]),
            other => Err(format!("`{other}` is nothing that can be done")),
        }
    }

    /// `leave OWNER heir=OTHER`: somebody is accountable for nothing any more.
    fn leave(&mut self, line: &Line) -> Result<Event, String> {
        self.epoch = PolicyEpoch(self.epoch.0 + 1);
        let owner = String::from(line.word(0)?);
        let heir = line.option("heir").map(|heir| (owner.clone(), heir.into()));
        let (gone, transfers) = (Vec::new(), heir.into_iter().collect());
        Ok(Event::PolicyChanged { epoch: self.epoch, gone, left: vec![owner], transfers })
    }

    /// `meet P1 as T1 uid=1000 parent=P2 cgroup=/a bind=process`: a process asks who it is. `as` names
    /// the task that may be opened for it; without `uid` it has earned nothing. `unit=web#1`,
    /// `container=` and `pod=` say what it runs in, and which run of it.
    fn meet(&mut self, line: &Line) -> Result<Event, String> {
        let mut lineage = vec![process(line.word(0)?)?];
        lineage.extend(line.option("parent").map(process).transpose()?);
        let cgroup = line.option("cgroup").map(String::from);
        let socket = line.option("socket").map(task).transpose()?;
        let bind = line.option("bind").unwrap_or("process");
        let bind = Binding::parse(bind).ok_or_else(|| format!("`{bind}` is no binding"))?;
        let permits = line.option("uid").map(|uid| terms(uid, bind, line)).transpose()?;
        let luck = match line.words.get(1).map(String::as_str) {
            Some("as") => vec![task(line.word(2)?)?],
            _ => Vec::new(),
        };
        let ticket = self.ticket();
        Ok(Event::Met {
            ticket,
            caller: Caller {
                lineage,
                cgroup,
                socket,
                unit: line.option("unit").map(unit).transpose()?,
                container: line.option("container").map(container).transpose()?,
                pod: line.option("pod").map(pod).transpose()?,
            },
            verdict: Verdict { epoch: self.judged(line)?, permits: permits.into_iter().collect() },
            luck,
            wish: line.option("wants").map(|what| wish(what, line, ticket.0)).transpose()?,
        })
    }

    /// The edition of the profiles that a verdict rests on; `epoch=1` says which if it is not the
    /// newest.
    fn judged(&self, line: &Line) -> Result<PolicyEpoch, String> {
        let epoch = line.option("epoch").map(str::parse).transpose();
        let epoch = epoch.map_err(|_no_number| String::from("`epoch` is not a number"))?;
        Ok(epoch.map_or(self.epoch, PolicyEpoch))
    }

    /// `name T1`, `name T1 version=2`: somebody acts for a task.
    fn call_by_name(&mut self, line: &Line) -> Result<Event, String> {
        let version = version(line)?;
        let (task, epoch) = (task(line.word(0)?)?, self.judged(line)?);
        Ok(Event::TaskNamed { ticket: self.ticket(), task, version, epoch })
    }

    /// `ask T1 x509`, `ask T1 jwt audience=a,b`; `version=1` for an introduction to an old version.
    fn ask(&mut self, line: &Line) -> Result<Event, String> {
        let id = task(line.word(0)?)?;
        let known = self.registrar.as_ref().and_then(|registrar: &Registrar| registrar.task(id));
        if let (Some(known), Some(uid)) = (known, line.option("uid"))
            && known.terms.profile != format!("uid-{uid}")
        {
            return Err(format!("the task is not of uid {uid}"));
        }
        let current = known.map_or(TaskVersion(1), |task| task.version);
        let version = version(line)?.unwrap_or(current);
        let ask = ask(line.word(1)?, line)?;
        let basis = Basis { task: id, version, epoch: self.judged(line)? };
        let ticket = self.ticket();
        Ok(Event::Asked { ticket, basis, ask, luck: ticket.0 })
    }
}

fn ask(what: &str, line: &Line) -> Result<Ask, String> {
    match what {
        "x509" => Ok(Ask::X509),
        "jwt" => {
            let named = line.option("audience").unwrap_or("story");
            Ok(Ask::Jwt { audience: named.split(',').map(String::from).collect() })
        }
        other => Err(format!("`{other}` is neither `x509` nor `jwt`")),
    }
}

/// What a caller wants at once; `for=/agents/x` says that it wants it for one identity alone.
fn wish(what: &str, line: &Line, luck: u64) -> Result<Wish, String> {
    let id = |path| SpiffeId::parse(&format!("spiffe://example.org{path}"));
    let spiffe_id = line.option("for").map(id).transpose().map_err(|error| error.to_string())?;
    Ok(Wish { ask: ask(what, line)?, spiffe_id, luck })
}

fn version(line: &Line) -> Result<Option<TaskVersion>, String> {
    let version = line.option("version").map(str::parse).transpose();
    let version = version.map_err(|_no_number| String::from("`version` is not a number"))?;
    Ok(version.map(TaskVersion))
}

/// `begin T1 holder=socket first=7`: with `first` a certificate is promised along with it, by that chance.
fn begin_asked(ticket: Ticket, line: &Line) -> Result<Event, String> {
    let first = line.option("first").map(number).transpose()?;
    Ok(Event::BeginAsked { ticket, begin: begin(line)?, luck: task(line.word(0)?)?, first })
}

fn begin(line: &Line) -> Result<Begin, String> {
    let lease = line.span("lease")?;
    let (kind, name) = match line.option("holder") {
        Some(holder) => holder.split_once(':').unwrap_or((holder, "")),
        None if lease.is_some() => ("lease", ""),
        None => ("socket", ""),
    };
    let (holder, binding) = match kind {
        "process" => (Holder::Process(process(name)?), Binding::Process),
        "lineage" => (Holder::Lineage(process(name)?), Binding::Lineage),
        "cgroup" => (Holder::Cgroup(name.into()), Binding::Cgroup),
        "unit" => (Holder::Unit(unit(name)?), Binding::Systemd),
        "container" => (Holder::Container(container(name)?), Binding::Container),
        "pod" => (Holder::Pod(pod(name)?), Binding::Pod),
        "socket" => (Holder::Socket, Binding::Socket),
        "lease" => (Holder::Lease, Binding::Lease),
        "job" => (Holder::Job, Binding::Lease),
        other => return Err(format!("`{other}` holds nothing")),
    };
    Ok(Begin {
        parent: line.option("parent").map(task).transpose()?,
        delegated: line.option("delegated").is_some(),
        owner: line.option("owner").map(String::from),
        mandate: mandate(line)?,
        deadline: line.span("deadline")?.map(|span| START.plus(span)),
        lease,
        key: line.option("key").map(request_key),
        ..Begin::new(terms(line.option("uid").unwrap_or("0"), binding, line)?, holder)
    })
}

/// A wish of the name before the `/`, for whatever is behind it.
fn request_key(text: &str) -> RequestKey {
    let (name, wish) = text.split_once('/').unwrap_or((text, ""));
    let digest = |text: &str| {
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        bytes
    };
    RequestKey { key: digest(name), body: digest(wish) }
}

fn scope(line: &Line) -> Scope {
    let extent = |name: &str| match line.option(name) {
        None => Extent::Any,
        Some("-") => Extent::only([""; 0]),
        Some(names) => Extent::only(names.split(',')),
    };
    Scope {
        actions: extent("actions"),
        resources: extent("resources"),
        audiences: extent("audiences"),
        tools: extent("tools"),
    }
}

fn amendment(line: &Line) -> Result<Amendment, String> {
    let version = line.option("version").map(number::<u32>).transpose()?;
    Ok(Amendment { intent: None, scope: scope(line), if_version: version.map(TaskVersion) })
}

fn mandate(line: &Line) -> Result<Mandate, String> {
    let spent = line.option("spent").is_some_and(|what| what == "ends");
    Ok(Mandate {
        scope: scope(line),
        triggers: spent.then_some(Trigger::Budget).into_iter().collect(),
        budget: Budget {
            issuances: line.option("issuances").map(number).transpose()?,
            per_minute: line.option("per_minute").map(number).transpose()?,
            attempts: line.option("attempts").map(number).transpose()?,
        },
        ..Mandate::default()
    })
}

fn number<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_letters| format!("`{text}` is no number"))
}

/// `web#1` is the first run of what is called `web`, and lives in `/web`.
fn dwelling(text: &str) -> Result<(String, CgroupKey), String> {
    let name = text.split('#').next().unwrap_or_default();
    let cgroup = CgroupKey { boot: [0; 16], inode: run(text)?, path: format!("/{name}") };
    Ok((name.into(), cgroup))
}

fn unit(text: &str) -> Result<Box<Unit>, String> {
    let (name, cgroup) = dwelling(text)?;
    let invocation = u128::from(cgroup.inode).to_be_bytes();
    Ok(Box::new(Unit { name, invocation, cgroup }))
}

fn container(text: &str) -> Result<Box<Container>, String> {
    dwelling(text).map(|(id, cgroup)| Box::new(Container { id, cgroup }))
}

fn pod(text: &str) -> Result<Box<Pod>, String> {
    dwelling(text).map(|(uid, cgroup)| Box::new(Pod { uid, cgroup }))
}

fn terms(uid: &str, binding: Binding, line: &Line) -> Result<Terms, String> {
    let ttl = line.span("ttl")?.unwrap_or(Span::from_secs(300));
    Ok(Terms {
        profile: format!("uid-{uid}"),
        path: format!("/uid-{uid}"),
        owner: "story".into(),
        binding,
        stable_identity: false,
        x509_ttl: ttl,
        jwt_ttl: ttl,
        task_ttl: None,
        hint: String::new(),
        federates_with: Vec::new(),
        bounds: Bounds {
            on_failure: match line.option("on_failure") {
                None => OnFailure::End,
                Some(word) => OnFailure::parse(word).ok_or("`end` or `quarantine`")?,
            },
            ..Bounds::default()
        },
    })
}
