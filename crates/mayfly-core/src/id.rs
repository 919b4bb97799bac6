//! Names that cannot be confused: each identifier is its own type, parsed once at the edge.

use alloc::{format, string::String, sync::Arc};
use core::fmt;

use crate::limits;

/// A malformed identifier, with the rule that it breaks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InvalidId {
    /// What was to be parsed, for example `trust domain`.
    pub what: &'static str,
    /// The rule that was broken, as a sentence without a full stop.
    pub rule: &'static str,
}

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid {}: {}", self.what, self.rule)
    }
}

impl core::error::Error for InvalidId {}

const fn invalid(what: &'static str, rule: &'static str) -> InvalidId {
    InvalidId { what, rule }
}

/// A SPIFFE trust domain name: 1–255 bytes of `a-z 0-9 . - _` (SPIFFE-ID §2.1).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a bare name such as `example.org`. Upper case is normalised, because the authority of
    /// a URI is case-insensitive on input and lower case on output.
    ///
    /// # Errors
    /// [`InvalidId`] names the rule that is broken.
    pub fn parse(name: &str) -> Result<Self, InvalidId> {
        const WHAT: &str = "trust domain";
        if name.is_empty() {
            return Err(invalid(WHAT, "it is empty"));
        }
        if name.len() > limits::TRUST_DOMAIN_BYTES_MAX {
            return Err(invalid(WHAT, "it is longer than 255 bytes"));
        }
        let lower = name.to_ascii_lowercase();
        if !lower.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')) {
            return Err(invalid(WHAT, "only a-z, 0-9, '.', '-' and '_' are allowed"));
        }
        Ok(Self(lower.into()))
    }

    /// The bare name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain's own SPIFFE ID, `spiffe://name`.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("spiffe://{}", self.0)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SPIFFE ID: `spiffe://` trust domain, then an optional path (SPIFFE-ID §2). Cheap to clone.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SpiffeId {
    uri: Arc<str>,
    domain: TrustDomain,
}

impl SpiffeId {
    /// Parses a URI of at most 2048 bytes. The scheme and the trust domain are case-insensitive and
    /// normalised; the path is taken as it is.
    ///
    /// # Errors
    /// [`InvalidId`] names the rule that is broken.
    pub fn parse(uri: &str) -> Result<Self, InvalidId> {
        const WHAT: &str = "spiffe id";
        if uri.len() > limits::SPIFFE_ID_BYTES_MAX {
            return Err(invalid(WHAT, "it is longer than 2048 bytes"));
        }
        let (scheme, rest) =
            uri.split_once("://").ok_or(invalid(WHAT, "it does not start with 'spiffe://'"))?;
        if !scheme.eq_ignore_ascii_case("spiffe") {
            return Err(invalid(WHAT, "its scheme is not 'spiffe'"));
        }
        let (domain, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        Self::new(&TrustDomain::parse(domain)?, path)
    }

    /// Joins a trust domain and a path, which is empty or starts with `/`.
    ///
    /// # Errors
    /// [`InvalidId`] names the rule that is broken.
    pub fn new(domain: &TrustDomain, path: &str) -> Result<Self, InvalidId> {
        check_path(path)?;
        let uri = format!("spiffe://{domain}{path}");
        if uri.len() > limits::SPIFFE_ID_BYTES_MAX {
            return Err(invalid("spiffe id", "it is longer than 2048 bytes"));
        }
        Ok(Self { uri: uri.into(), domain: domain.clone() })
    }

    /// The whole URI.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The path, empty or starting with `/`.
    #[must_use]
    pub fn path(&self) -> &str {
        self.uri.get("spiffe://".len() + self.domain.as_str().len()..).unwrap_or("")
    }
}

impl SpiffeId {
    /// The ID of a task below `path`, which has been checked: written by hand, because every credential has one.
    pub(crate) fn of_task(domain: &TrustDomain, path: &str, task: Option<TaskId>) -> Self {
        const SCHEME: &str = "spiffe://";
        const TASK: &str = "/task/";
        let length = SCHEME.len() + domain.as_str().len() + path.len() + TASK.len() + 32;
        let mut uri = String::with_capacity(length);
        uri.push_str(SCHEME);
        uri.push_str(domain.as_str());
        uri.push_str(path);
        if let Some(task) = task {
            uri.push_str(TASK);
            let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
            for octet in task.as_bytes() {
                uri.push(digit(octet >> 4));
                uri.push(digit(octet & 15));
            }
        }
        Self { uri: uri.into(), domain: domain.clone() }
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

/// Checks a path by SPIFFE-ID §2.2: empty, or `/` and segments that are neither empty nor `.` nor `..`.
///
/// # Errors
/// [`InvalidId`] names the rule that is broken.
pub fn check_path(path: &str) -> Result<(), InvalidId> {
    const WHAT: &str = "spiffe id path";
    if path.is_empty() {
        return Ok(());
    }
    let Some(rest) = path.strip_prefix('/') else {
        return Err(invalid(WHAT, "it does not start with '/'"));
    };
    for segment in rest.split('/') {
        if segment.is_empty() {
            return Err(invalid(WHAT, "it has an empty segment or ends with '/'"));
        }
        if segment == "." || segment == ".." {
            return Err(invalid(WHAT, "'.' and '..' are not allowed as segments"));
        }
        if !segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) {
            return Err(invalid(WHAT, "only a-z, A-Z, 0-9, '.', '-' and '_' are allowed"));
        }
    }
    Ok(())
}

/// A task's name, never used twice: 16 octets that nobody can guess. Written as 32 lower-case hexadecimal
/// digits. The shell makes UUIDs of version 7 (RFC 9562 §5.7), so that mostly a later task has the greater name;
/// nothing here relies on it.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TaskId([u8; 16]);

impl TaskId {
    /// Wraps 16 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Parses 32 hexadecimal digits.
    ///
    /// # Errors
    /// [`InvalidId`] if it is anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        const RULE: InvalidId = invalid("task id", "it is not 32 hexadecimal digits");
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(RULE);
        }
        u128::from_str_radix(text, 16).map(|n| Self(n.to_be_bytes())).map_err(|_not_hex| RULE)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// How often a task has been amended, from 1. Credentials of an older version are refused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TaskVersion(pub u32);

/// Which edition of the profiles a verdict rests on.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PolicyEpoch(pub u64);

/// A caller's place in the queue: what an answer is addressed to. Chosen by the shell, unique while
/// the answer is outstanding.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ticket(pub u64);

/// The part of all tasks that one broker owns at a time.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Shard(pub u16);

/// A record's place in its shard's journal, from 1 and without gaps.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The one after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Where a fact stands: never a counter in memory, because such a counter differs after a crash (P9).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Position {
    /// Whose journal.
    pub shard: Shard,
    /// Where in it.
    pub sequence: Sequence,
}
