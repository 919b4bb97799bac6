//! What happened, as one number for comparing and, on demand, as text for reading.

use mayfly_core::{Effect, Event, TaskId};

use crate::rng::mix;

/// The story of one world.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// A trace that keeps its lines.
    #[must_use]
    pub const fn in_words() -> Self {
        Self { hash: 0, lines: Some(Vec::new()) }
    }

    /// Two runs with the same seed end with the same hash.
    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// The lines so far, if they are kept.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }

    /// Notes numbers that a second run has to repeat.
    pub(crate) fn mark(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.hash = mix(self.hash.rotate_left(7) ^ number);
        }
    }

    /// Adds a line, if lines are kept.
    pub(crate) fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(line());
        }
    }

    pub(crate) fn event(&mut self, now: u64, event: &Event) {
        let (name, one, two) = event_words(event);
        self.mark(&[now, word(name), one, two]);
        self.say(|| format!("{now:>12} {name} {}", numbers(one, two)));
    }

    pub(crate) fn effect(&mut self, effect: &Effect) {
        let (name, one, two) = effect_words(effect);
        self.mark(&[word(name), one, two]);
        self.say(|| match effect {
            Effect::Journal(sequence, record) => {
                format!("{:14} journal {} {:?}", "", sequence.0, record.fact)
            }
            Effect::Withhold { ticket, denial } => {
                format!("{:14} withhold #{} {denial}", "", ticket.0)
            }
            Effect::Publish(delta) => format!("{:14} publish {delta:?}", ""),
            Effect::Sign { .. }
            | Effect::Recognise { .. }
            | Effect::Introduce { .. }
            | Effect::Reconsider { .. }
            | Effect::Release { .. }
            | Effect::Acknowledge { .. }
            | Effect::RefreshCrl
            | Effect::Watch { .. }
            | Effect::Close { .. }
            | Effect::OpenSocket { .. }
            | Effect::CloseSocket { .. }
            | Effect::Alert { .. }
            | Effect::Forget { .. } => format!("{:14} {name} {}", "", numbers(one, two)),
        });
    }
}

fn numbers(one: u64, two: u64) -> String {
    let show = |n: u64| if n > 0xFFFF_FFFF { format!("{n:016x}") } else { format!("#{n}") };
    format!("{} {}", show(one), show(two))
}

fn word(name: &str) -> u64 {
    name.bytes().fold(0, |sum, byte| (sum << 5) ^ (sum >> 59) ^ u64::from(byte))
}

/// The first half of a task's name: enough to tell tasks apart in one world.
pub(crate) fn half(task: TaskId) -> u64 {
    task.as_bytes().iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

fn event_words(event: &Event) -> (&'static str, u64, u64) {
    match event {
        Event::Met { ticket, verdict, .. } => ("met", ticket.0, verdict.permits.len() as u64),
        Event::TaskNamed { ticket, task, .. } => ("task_named", ticket.0, half(*task)),
        Event::Asked { ticket, basis, .. } => ("asked", ticket.0, half(basis.task)),
        Event::BeginAsked { ticket, luck, .. } => ("begin_asked", ticket.0, half(*luck)),
        Event::HeartbeatHeard { ticket, task } => ("heartbeat", ticket.0, half(*task)),
        Event::AmendAsked { ticket, task, .. } => ("amend_asked", ticket.0, half(*task)),
        Event::EndAsked { ticket, task, .. } => ("end_asked", ticket.0, half(*task)),
        Event::HolderGone { task, .. } => ("holder_gone", 0, half(*task)),
        Event::WatcherBlinded { task } => ("watcher_blinded", 0, half(*task)),
        Event::QuarantineAsked { ticket, task, .. } => ("quarantine_asked", ticket.0, half(*task)),
        Event::ReleaseAsked { ticket, task, .. } => ("release_asked", ticket.0, half(*task)),
        Event::RevokeAsked { ticket, serial, .. } => ("revoke_asked", ticket.0, luck(serial)),
        Event::Signed { ticket } => ("signed", ticket.0, 0),
        Event::SigningFailed { ticket } => ("signing_failed", ticket.0, 0),
        Event::Journaled { upto } => ("journaled", upto.0, 0),
        Event::JournalFailed => ("journal_failed", 0, 0),
        Event::PolicyChanged { epoch, gone, .. } => ("policy_changed", epoch.0, gone.len() as u64),
        Event::Shown(_) => ("shown", 0, 0),
        Event::NoteAsked { .. } => ("note_asked", 0, 0),
    }
}

fn luck(serial: &mayfly_core::Serial) -> u64 {
    serial.as_bytes().iter().skip(9).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

fn effect_words(effect: &Effect) -> (&'static str, u64, u64) {
    match effect {
        Effect::Journal(sequence, record) => {
            ("journal", sequence.0, record.fact.task().map_or(record.at.0, half))
        }
        Effect::Recognise { ticket, identity } => ("recognise", ticket.0, half(identity.task)),
        Effect::Introduce { ticket, identities } => {
            ("introduce", ticket.0, identities.len() as u64)
        }
        Effect::Reconsider { ticket } => ("reconsider", ticket.0, 0),
        Effect::Sign { ticket, grant } => ("sign", ticket.0, luck(grant.serial())),
        Effect::Release { ticket } => ("release", ticket.0, 0),
        Effect::Withhold { ticket, denial } => ("withhold", ticket.0, *denial as u64),
        Effect::Acknowledge { ticket, task, .. } => ("acknowledge", ticket.0, half(*task)),
        Effect::Publish(delta) => ("publish", delta.to.sequence.0, delta.changes.len() as u64),
        Effect::RefreshCrl => ("refresh_crl", 0, 0),
        Effect::Watch { task, .. } => ("watch", 0, half(*task)),
        Effect::Close { task, why } => ("close", *why as u64, half(*task)),
        Effect::OpenSocket { task } => ("open_socket", 0, half(*task)),
        Effect::CloseSocket { task } => ("close_socket", 0, half(*task)),
        Effect::Alert { finding, .. } => ("alert", 0, *finding as u64),
        Effect::Forget { task } => ("forget", 0, half(*task)),
    }
}
