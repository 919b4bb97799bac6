//! One value of a profile each: what may stand there, and what to write instead.

use mayfly_core::{
    Binding, OnFailure, Part, Selector, Span, SpiffeId, Tier, TrustDomain, id,
    limits as core_limits,
};

use crate::{duration, file::is_near, limits, own};

/// A value that cannot be taken.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) why: String,
    pub(crate) remedy: String,
}

impl Fault {
    pub(crate) fn new(why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { why: why.into(), remedy: remedy.into() }
    }
}

type Checked<T> = Result<T, Fault>;

/// Shows a value in a message without letting it fill the screen or move the cursor.
pub(crate) fn quote(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

pub(crate) fn name(text: &str) -> Checked<String> {
    let fits = text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'));
    if text.is_empty() || !fits || text.len() > limits::NAME_BYTES_MAX {
        return Err(Fault::new(
            format!("{} is not a profile name", quote(text)),
            format!("use 1 to {} of a-z, 0-9, '-', '_' and '.'", limits::NAME_BYTES_MAX),
        ));
    }
    if text == own::PROFILE {
        return Err(Fault::new(
            format!("{} is the broker's own profile", quote(text)),
            "choose another name",
        ));
    }
    Ok(text.into())
}

/// A SPIFFE ID path that leaves room for the task's own part and cannot be mistaken for it.
pub(crate) fn path(text: &str, domain: &TrustDomain) -> Checked<String> {
    const REMEDY: &str = "write it like \"/team/service\"";
    if text.is_empty() {
        return Err(Fault::new("it is empty", REMEDY));
    }
    id::check_path(text)
        .map_err(|bad| Fault::new(format!("{}: {}", quote(text), bad.rule), REMEDY))?;
    // `/a/task/<id>` under a profile `/a/task/<id>` would name a task of profile `/a`.
    if text.split('/').any(|segment| segment == "task") {
        return Err(Fault::new(
            format!("{}: the segment `task` is reserved", quote(text)),
            "leave it out: the broker appends `/task/` and the task's id by itself",
        ));
    }
    // Whoever talks to the broker knows it by this path, and may take what lies below for its parts.
    if text.strip_prefix(own::PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
        return Err(Fault::new(
            format!("{} belongs to the broker itself", quote(text)),
            "choose a path that does not begin with it",
        ));
    }
    let longest = format!("{text}/task/{}", id::TaskId::from_bytes([0; 16]));
    SpiffeId::new(domain, &longest).map_err(|bad| {
        Fault::new(format!("with the trust domain and the task's part, {}", bad.rule), "shorten it")
    })?;
    Ok(text.into())
}

pub(crate) fn owner(text: &str) -> Checked<String> {
    let remedy = "name who answers for these tasks, for example \"team:payments\"";
    if text.trim().is_empty() {
        return Err(Fault::new("it is empty", remedy));
    }
    if text.len() > core_limits::OWNER_BYTES_MAX {
        return Err(Fault::new(
            format!("it is longer than {} bytes", core_limits::OWNER_BYTES_MAX),
            remedy,
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(Fault::new("it holds a control character", remedy));
    }
    Ok(text.into())
}

pub(crate) fn hint(text: &str) -> Checked<String> {
    if text.len() > limits::HINT_BYTES_MAX {
        return Err(Fault::new(
            format!("it is longer than {} bytes", limits::HINT_BYTES_MAX),
            "shorten it",
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(Fault::new(
            "it holds a control character",
            "write a short word such as \"internal\"",
        ));
    }
    Ok(text.into())
}

pub(crate) fn binding(text: &str) -> Checked<Binding> {
    Binding::parse(text).ok_or_else(|| {
        Fault::new(
            format!("{} is not a binding", quote(text)),
            "choose \"process\", \"lineage\", \"cgroup\", \"socket\" or \"lease\"",
        )
    })
}

/// Whether the identity is `stable`.
pub(crate) fn identity(text: &str) -> Checked<bool> {
    match text {
        "task" => Ok(false),
        "stable" => Ok(true),
        _ => Err(Fault::new(
            format!("{} is not an identity", quote(text)),
            "choose \"task\" for one SPIFFE ID per task, or \"stable\" for the path alone",
        )),
    }
}

/// What to write in place of `text`, if `words` are all that may stand there.
fn one_of(text: &str, words: &[&str]) -> String {
    match words.iter().find(|word| is_near(text, word)) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("the words are {}", words.join(", ")),
    }
}

/// Something that a task has to declare.
pub(crate) fn part(text: &str) -> Checked<Part> {
    Part::parse(text).ok_or_else(|| {
        let why = format!("{} is nothing that a task declares", quote(text));
        Fault::new(why, one_of(text, &Part::ALL.map(Part::name)))
    })
}

pub(crate) fn tier(text: &str) -> Checked<Tier> {
    Tier::parse(text).ok_or_else(|| {
        let why = format!("{} is not a risk", quote(text));
        Fault::new(why, one_of(text, &Tier::ALL.map(Tier::name)))
    })
}

pub(crate) fn on_failure(text: &str) -> Checked<OnFailure> {
    OnFailure::parse(text).ok_or_else(|| {
        let why = format!("{} is nothing that a failure can lead to", quote(text));
        let words = [OnFailure::End, OnFailure::Quarantine].map(OnFailure::name);
        Fault::new(why, one_of(text, &words))
    })
}

/// One name of a scope.
pub(crate) fn scope_name(text: &str) -> Checked<String> {
    let most = core_limits::SCOPE_NAME_BYTES_MAX;
    if !(1..=most).contains(&text.len()) {
        let why = format!("{} is empty or too long", quote(text));
        return Err(Fault::new(why, format!("use 1 to {most} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(Fault::new("it holds a control character", "write a name or a path"));
    }
    if text.strip_suffix('*').unwrap_or(text).contains('*') {
        return Err(Fault::new(
            format!("{} has a `*` before its end", quote(text)),
            "a `*` stands at the end, for everything that begins with what is before it",
        ));
    }
    Ok(text.into())
}

fn span(text: &str, least: Span, most: Span) -> Checked<Span> {
    let span = duration::parse(text).ok_or_else(|| {
        Fault::new(
            format!("{} is not a duration", quote(text)),
            "write it like \"5m\", \"30s\" or \"1h30m\"",
        )
    })?;
    if span < least || span > most {
        return Err(Fault::new(
            format!("{} is out of range", quote(text)),
            format!("choose from {} to {}", duration::format(least), duration::format(most)),
        ));
    }
    Ok(span)
}

/// The life of a credential.
pub(crate) fn ttl(text: &str) -> Checked<Span> {
    let ttl = span(text, core_limits::CREDENTIAL_TTL_MIN, core_limits::CREDENTIAL_TTL_MAX)?;
    // A certificate cannot say milliseconds; rounding would grant something else than was written.
    if !ttl.as_millis().is_multiple_of(1000) {
        return Err(Fault::new(
            format!("{} has a part of a second", quote(text)),
            "credentials count in whole seconds",
        ));
    }
    Ok(ttl)
}

pub(crate) fn task_ttl(text: &str) -> Checked<Span> {
    span(text, limits::TASK_TTL_MIN, limits::TASK_TTL_MAX)
}

pub(crate) fn trust_domain(text: &str) -> Checked<TrustDomain> {
    let bare = text.strip_prefix("spiffe://").unwrap_or(text);
    TrustDomain::parse(bare).map_err(|bad| {
        Fault::new(format!("{}: {}", quote(text), bad.rule), "write it like \"partner.example\"")
    })
}

/// A selector, and one that some caller could have: a spelling that the kernel never uses would
/// refuse everybody in silence.
pub(crate) fn selector(text: &str) -> Checked<Selector> {
    if text.len() > limits::SELECTOR_BYTES_MAX {
        return Err(Fault::new(
            format!("{} is too long", quote(text)),
            format!("use at most {} bytes", limits::SELECTOR_BYTES_MAX),
        ));
    }
    let selector = Selector::parse(text).map_err(|bad| {
        Fault::new(
            format!("{}: {}", quote(text), bad.rule),
            format!(
                "write it like \"unix:uid:1000\"; the kinds are {}",
                Selector::KINDS.join(", ")
            ),
        )
    })?;
    let value = selector.value();
    let unfit = match selector.kind() {
        "unix:uid" | "unix:gid" | "unix:supplementary_gid" => {
            let canonical = value.parse::<u32>().is_ok_and(|n| n.to_string() == value);
            (!canonical).then_some("write a plain number such as 1000")
        }
        "unix:sha256" => {
            let hex = |b| matches!(b, b'0'..=b'9' | b'a'..=b'f');
            (value.len() != 64 || !value.bytes().all(hex))
                .then_some("write 64 hexadecimal digits in lower case, as sha256sum prints them")
        }
        "unix:path" | "unix:cgroup" => {
            (!value.starts_with('/')).then_some("write an absolute path")
        }
        _ => None,
    };
    match unfit {
        Some(remedy) => Err(Fault::new(format!("{} can match nobody", quote(text)), remedy)),
        None => Ok(selector),
    }
}

/// Kinds of which a caller has exactly one, so that two of them in a profile contradict each other.
pub(crate) fn is_single(kind: &str) -> bool {
    matches!(
        kind,
        "unix:uid" | "unix:gid" | "unix:user" | "unix:group" | "unix:path" | "unix:sha256"
    )
}
