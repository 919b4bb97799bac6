//! `mayfly task begin`, `delegate` and `amend`.

use clap::Args;
use mayfly_core::Span;
use mayfly_proto::mayfly::v1 as wire;
use serde_json::json;

use crate::{
    cli::{CliError, Context, output},
    client::{Begin, Client, Holder},
    clock,
};

/// Arguments of `mayfly task begin`.
#[derive(Args, Debug)]
pub(super) struct BeginArgs {
    /// The task that this one is a part of; it ends when that ends. An attempt names its job here
    #[arg(long, value_name = "TASK", env = "MAYFLY_TASK")]
    parent: Option<String>,
    #[command(flatten)]
    wish: Wish,
}

/// Arguments of `mayfly task delegate`.
#[derive(Args, Debug)]
pub(super) struct DelegateArgs {
    /// The task that delegates
    #[arg(value_name = "PARENT")]
    parent: String,
    #[command(flatten)]
    wish: Wish,
}

/// What both have in common.
#[derive(Args, Debug)]
struct Wish {
    /// The profile of the task
    #[arg(long = "as", value_name = "PROFILE")]
    profile: String,
    /// What holds it: lease, socket, job, pid:N, process:N, cgroup:PATH, unit:NAME, container:ID, pod:UID
    /// [default: lease with `--lease`, else socket]
    #[arg(long, value_parser = holder)]
    holder: Option<Holder>,
    /// Who is accountable [default: the profile's owner]
    #[arg(long)]
    owner: Option<String>,
    /// What it is for, in your words
    #[arg(long, value_name = "TEXT")]
    intent: Option<String>,
    #[command(flatten)]
    scope: ScopeArgs,
    /// End it after this time, for example 10m
    #[arg(long, value_name = "DURATION", value_parser = span)]
    deadline: Option<Span>,
    /// End it when nothing is heard for so long
    #[arg(long, value_name = "DURATION", value_parser = span)]
    lease: Option<Span>,
    #[command(flatten)]
    terms: TermsArgs,
    /// What this wish is known by: told twice, it begins one task [default: random]
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    key: Option<String>,
}

/// What a task may do.
#[derive(Args, Debug)]
struct ScopeArgs {
    /// Something that it may do, and nothing else; `NAME*` is a prefix, '' alone is nothing at all
    #[arg(long = "action", value_name = "NAME")]
    actions: Vec<String>,
    /// Something that it may do it to
    #[arg(long = "resource", value_name = "NAME")]
    resources: Vec<String>,
    /// Somebody whom its tokens may be for
    #[arg(long = "audience", value_name = "NAME")]
    audiences: Vec<String>,
    /// A tool that it may use
    #[arg(long = "tool", value_name = "NAME")]
    tools: Vec<String>,
}

/// Under which conditions.
#[derive(Args, Debug)]
struct TermsArgs {
    /// low, medium or high
    #[arg(long)]
    risk: Option<String>,
    /// What is to end it: holder_exit, failure, lease, deadline, parent, owner, policy, risk, budget
    #[arg(long = "trigger", value_name = "NAME")]
    triggers: Vec<String>,
    /// How many credentials it may be issued
    #[arg(long, value_name = "N")]
    issuances: Option<u64>,
    /// How many of them in a minute
    #[arg(long, value_name = "N")]
    per_minute: Option<u32>,
    /// How many attempts a job has
    #[arg(long, value_name = "N")]
    attempts: Option<u32>,
    /// How many steps below it may be delegated
    #[arg(long, value_name = "N", requires = "children")]
    depth: Option<u32>,
    /// How many children it may have at a time
    #[arg(long, value_name = "N", requires = "depth")]
    children: Option<u32>,
    /// The longest life of its credentials
    #[arg(long, value_name = "DURATION", value_parser = span)]
    ttl: Option<Span>,
    /// Under which conditions somebody has to approve what it does
    #[arg(long, value_name = "TEXT")]
    approval: Option<String>,
    /// What it reports of itself
    #[arg(long, value_name = "TEXT")]
    telemetry: Option<String>,
    /// Who is called when it goes wrong
    #[arg(long, value_name = "WHO")]
    escalation: Option<String>,
}

/// Arguments of `mayfly task amend`.
#[derive(Args, Debug)]
pub(super) struct AmendArgs {
    /// The task's id
    task: String,
    /// What it is for from here on
    #[arg(long, value_name = "TEXT")]
    intent: Option<String>,
    #[command(flatten)]
    scope: ScopeArgs,
    /// Only if this is the version that holds
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    if_version: u32,
    /// Why, for the log
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
}

fn span(text: &str) -> Result<Span, String> {
    mayfly_policy::duration::parse(text)
        .ok_or_else(|| "write a duration such as 10m or 1h30m".to_owned())
}

fn holder(text: &str) -> Result<Holder, String> {
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    let pid = || rest.parse().map_err(|_no_number| format!("`{rest}` is not a process id"));
    let named = |make: fn(String) -> Holder| {
        if rest.is_empty() { Err(format!("write {kind}:NAME")) } else { Ok(make(rest.to_owned())) }
    };
    match (kind, rest) {
        ("lease", "") => Ok(Holder::Lease),
        ("socket", "") => Ok(Holder::Socket),
        ("job", "") => Ok(Holder::Job),
        ("pid", _) => pid().map(Holder::Lineage),
        ("process", _) => pid().map(Holder::Process),
        ("cgroup", _) => named(Holder::Cgroup),
        ("unit", _) => named(Holder::Unit),
        ("container", _) => named(Holder::Container),
        ("pod", _) => named(Holder::Pod),
        _ => Err("it is one of lease, socket, job, pid:N, process:N, cgroup:PATH, unit:NAME, \
                  container:ID, pod:UID"
            .to_owned()),
    }
}

impl ScopeArgs {
    fn scope(self) -> Option<wire::Scope> {
        let names = |names: Vec<String>| {
            let said = !names.is_empty();
            // An empty name alone is how "none" is said on a command line.
            let names = names.into_iter().filter(|name| !name.is_empty()).collect();
            said.then_some(wire::Names { names })
        };
        let scope = wire::Scope {
            actions: names(self.actions),
            resources: names(self.resources),
            audiences: names(self.audiences),
            tools: names(self.tools),
        };
        (scope != wire::Scope::default()).then_some(scope)
    }
}

impl TermsArgs {
    fn declare(self, declaration: &mut wire::Declaration) {
        declaration.risk = self.risk.unwrap_or_default();
        declaration.triggers = self.triggers;
        declaration.budget = Some(wire::Budget {
            issuances: self.issuances,
            per_minute: self.per_minute,
            attempts: self.attempts,
        });
        let reach = self.depth.zip(self.children);
        declaration.reach = reach.map(|(depth, children)| wire::Reach { depth, children });
        declaration.credential_ttl_ms = self.ttl.map_or(0, |ttl| ttl.0);
        declaration.approval = self.approval.unwrap_or_default();
        declaration.telemetry = self.telemetry.unwrap_or_default();
        declaration.escalation = self.escalation.unwrap_or_default();
    }
}

impl Wish {
    fn begin(self) -> Begin {
        let mut begin = Begin::profile(self.profile);
        if let Some(lease) = self.lease {
            begin = begin.lease(clock::duration(lease));
        }
        if let Some(holder) = self.holder {
            begin = begin.held_by(holder);
        }
        if let Some(owner) = self.owner {
            begin = begin.owner(owner);
        }
        if let Some(span) = self.deadline {
            begin = begin.max_time(clock::duration(span));
        }
        if let Some(key) = self.key {
            begin = begin.key(key);
        }
        let (intent, scope, terms) = (self.intent, self.scope, self.terms);
        begin.declare(|declaration| {
            declaration.intent = intent.unwrap_or_default();
            declaration.scope = scope.scope();
            terms.declare(declaration);
        })
    }
}

pub(super) async fn begin(
    context: &Context,
    client: &Client,
    args: BeginArgs,
) -> Result<(), CliError> {
    let mut request = args.wish.begin().into_request(clock::now());
    request.parent = args.parent.unwrap_or_default();
    print(context, &client.begin_once(request).await?);
    Ok(())
}

pub(super) async fn delegate(
    context: &Context,
    client: &Client,
    args: DelegateArgs,
) -> Result<(), CliError> {
    let child = args.wish.begin().into_request(clock::now());
    print(context, &client.delegate_once(args.parent, child).await?);
    Ok(())
}

fn print(context: &Context, begun: &wire::BeginResponse) {
    let socket =
        if begun.socket.is_empty() { String::new() } else { format!("unix://{}", begun.socket) };
    if context.output.is_data() {
        let value = json!({
            "task": begun.task,
            "version": begun.version,
            "spiffe_id": begun.spiffe_id,
            "socket": output::maybe(&socket),
            "deadline": output::maybe_instant(begun.deadline_ms),
            "lease_until": output::maybe_instant(begun.lease_until_ms),
        });
        return output::data(context.output, &value);
    }
    output::fields(&[
        ("task", begun.task.clone()),
        ("spiffe id", begun.spiffe_id.clone()),
        ("socket", socket),
        ("deadline", output::instant(begun.deadline_ms)),
        ("lease until", output::instant(begun.lease_until_ms)),
    ]);
}

pub(super) async fn amend(
    context: &Context,
    client: &Client,
    args: AmendArgs,
) -> Result<(), CliError> {
    let (task, scope) = (args.task, args.scope.scope());
    if args.intent.is_none() && scope.is_none() {
        let what = "nothing to amend: say `--intent`, `--action`, `--resource`, `--audience` or \
                    `--tool`";
        return Err(CliError::Usage(what.to_owned()));
    }
    let request = wire::AmendRequest {
        task: task.clone(),
        intent: args.intent,
        scope,
        if_version: args.if_version,
        reason: args.reason,
    };
    let version = client.amend_once(request).await?.version;
    if context.output.is_data() {
        output::data(context.output, &json!({ "task": task, "version": version }));
    } else {
        output::line(&format!("{task} is at version {version}; what older ones hold is refused"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_read_and_others_are_named() {
        for (text, is) in [
            ("lease", Holder::Lease),
            ("pid:7", Holder::Lineage(7)),
            ("cgroup:/a:b", Holder::Cgroup("/a:b".to_owned())),
            ("unit:x.service", Holder::Unit("x.service".to_owned())),
        ] {
            assert_eq!(holder(text), Ok(is));
        }
        for text in ["", "lease:1", "pid", "pid:x", "cgroup", "pod:", "host:1"] {
            assert!(holder(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_empty_name_alone_permits_nothing_and_no_name_bounds_nothing() {
        let said = |tools: &[&str]| {
            let tools = tools.iter().map(|name| (*name).to_owned()).collect();
            let (actions, resources, audiences) = Default::default();
            ScopeArgs { actions, resources, audiences, tools }.scope()
        };
        assert_eq!(said(&[]), None);
        assert_eq!(said(&[""]).unwrap().tools.unwrap().names, Vec::<String>::new());
        assert_eq!(said(&["search", ""]).unwrap().tools.unwrap().names, ["search"]);
    }
}
