//! Which records still matter: the fold of the log into rows.
//!
//! A registrar that replays the rows in the order of their records must come out like one that
//! replayed everything. So a record is dropped only where core would not miss it: a renewal or a
//! quarantine by the next one of its kind, a promise when its expiry window is forgotten, a task when
//! core has forgotten it. Core says when: for each task that a replay brings back too, should a crash have
//! taken what it said. Only where the log is folded without a core, all of it, are tasks swept by the clock, for
//! they would be all that there ever were.
//!
//! | key | value |
//! |---|---|
//! | `t` task, kind, (sequence) | a record about a task |
//! | `p` window, sequence | a record about a credential, promise or revocation |
//! | `w` window | the next free slot |
//! | `k` parent, child | nothing; a parent is kept as long as its children |
//! | `e` instant, task | nothing; a task to be looked at then, because core will not say that it has forgotten it |

use std::{ops::Range, sync::Arc};

use mayfly_audit::Entry;
use mayfly_core::{
    Cause, Fact, Holder, Record, Sequence, Serial, Snapshot, Span, TaskId, Terms, Timestamp,
    Window, limits,
};

use crate::{draft::Draft, index::IndexError};

/// To be raised when the meaning of rows changes: older indexes are rebuilt then.
pub(crate) const VERSION: u8 = 3;

/// Rows of a kind swept in one go, at least, and for each record that comes. The rest waits for the next: a
/// window of many goes at the pace at which it came, for sled holds on to every page that one batch has
/// changed.
const SWEEP_LEAST: usize = 256;
const SWEEP_EACH: usize = 2;
/// After an end, when the last credential of any task must have been forgotten by core.
const SWEEP_AFTER: Span = Span(limits::CREDENTIAL_TTL_MAX.0 + limits::FORGET_AFTER.0);
/// When an amendment can no longer be the one that revoked a living credential.
const AMENDED_FOR: Span = Span(SWEEP_AFTER.0 + limits::WINDOW.0);

const BEGAN: u8 = 0;
const ENDED: u8 = 1;
const QUARANTINE: u8 = 2;
const RENEWED: u8 = 3;
const AMENDED: u8 = 4;
const COUNTED: u8 = 5;
const TRANSFERRED: u8 = 6;

/// Folds one record in.
pub(crate) fn take(draft: &mut Draft<'_>, entry: &Entry) -> Result<(), IndexError> {
    let row = encode_row(entry);
    match &entry.record.fact {
        Fact::Began { task, parent, .. } => {
            if let Some(parent) = parent {
                draft.add(key(b'k', &[parent.as_bytes(), task.as_bytes()]), Vec::new());
            }
            draft.add(task_key(*task, BEGAN), row);
            Ok(())
        }
        Fact::Promised { task, serial, count, .. } => {
            reserve(draft, serial)?;
            if count.0 > 0 {
                // The last promise of a task that counts says how many there were, and stays for that
                // when its window is forgotten.
                put_if_known(draft, *task, task_key(*task, COUNTED), row.clone())?;
            }
            add_if_known(draft, *task, serial_key(serial, entry.sequence), row)
        }
        Fact::CredentialRevoked { task, serial, .. } => {
            add_if_known(draft, *task, serial_key(serial, entry.sequence), row)
        }
        Fact::Ended { task, cause, exit, .. } => {
            add_if_known(draft, *task, task_key(*task, ENDED), row)?;
            let sweeps = draft.is_alone
                && (*cause == Cause::Exited || exit.is_some() || has_no_process(draft, *task)?);
            if sweeps {
                let sweep_at = entry.record.at.plus(SWEEP_AFTER);
                draft.add(due_key(sweep_at, *task), Vec::new());
            }
            Ok(())
        }
        Fact::Suspended { task, .. } | Fact::Resumed { task, .. } => {
            put_if_known(draft, *task, task_key(*task, QUARANTINE), row)
        }
        Fact::Renewed { task, .. } => put_if_known(draft, *task, task_key(*task, RENEWED), row),
        Fact::Transferred { task, .. } => {
            put_if_known(draft, *task, task_key(*task, TRANSFERRED), row)
        }
        Fact::Amended { task, .. } => {
            let mut key = task_key(*task, AMENDED);
            key.extend(entry.sequence.0.to_be_bytes());
            put_if_known(draft, *task, key, row)?;
            drop_old_amendments(draft, *task, entry.record.at)
        }
        Fact::Refused { .. } | Fact::Misused { .. } | Fact::Noted { .. } => Ok(()),
    }
}

/// Drops what nobody needs at `now`, which is the latest instant in the log, after `count` records.
pub(crate) fn sweep(
    draft: &mut Draft<'_>,
    (now, count): (Timestamp, usize),
) -> Result<(), IndexError> {
    let most = SWEEP_LEAST.max(count.saturating_mul(SWEEP_EACH));
    // The first window that is still needed; see `Window::forget_at`.
    let live = Window::of(now.minus(limits::FORGET_AFTER)).0.to_be_bytes();
    for prefix in [b'p', b'w'] {
        for (key, value) in draft.rows(vec![prefix]..key(prefix, &[&live]), most)? {
            draft.drop_row(key, &value);
        }
    }
    let later = now.0.saturating_add(1).to_be_bytes();
    for (key, value) in draft.rows(vec![b'e']..key(b'e', &[&later]), most)? {
        let task = due_task(&key).ok_or_else(IndexError::bad_row)?;
        draft.drop_row(key, &value);
        forget(draft, task, now)?;
    }
    Ok(())
}

/// Drops what core has forgotten. Its promises stay until their windows go; they hold slots.
pub(crate) fn forget(
    draft: &mut Draft<'_>,
    task: TaskId,
    now: Timestamp,
) -> Result<(), IndexError> {
    if !draft.rows(below(key(b'k', &[task.as_bytes()])), 1)?.is_empty() {
        // Its children's depth and ancestors are read off it at a replay.
        return draft.put(due_key(now.plus(limits::FORGET_AFTER), task), Vec::new());
    }
    let rows = draft.rows(below(key(b't', &[task.as_bytes()])), usize::MAX)?;
    let began = rows.iter().find(|(key, _)| *key == task_key(task, BEGAN));
    let began = began.map(|(_, row)| decode_row(row)).transpose()?;
    if let Some(Fact::Began { parent: Some(parent), .. }) = began.map(|(_, record)| record.fact) {
        if is_open_job(draft, parent)? {
            // A job counts its attempts at a replay.
            return draft.put(due_key(now.plus(limits::FORGET_AFTER), task), Vec::new());
        }
        draft.remove(&key(b'k', &[parent.as_bytes(), task.as_bytes()]))?;
    }
    for (key, value) in rows {
        draft.drop_row(key, &value);
    }
    Ok(())
}

/// Collects rows, in any order, into a snapshot.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    next_slots: Vec<(Window, u32)>,
    records: Vec<(Sequence, Record)>,
    /// The terms of the row before: most are alike, and a million copies take memory and time.
    terms: Option<Arc<Terms>>,
}

impl Gather {
    pub(crate) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), IndexError> {
        match key.split_first() {
            Some((b't' | b'p', _)) => {
                let (sequence, mut record) = decode_row(value)?;
                self.share_terms(&mut record.fact);
                self.records.push((sequence, record));
            }
            Some((b'w', window)) => {
                let window = window.try_into().map_err(|_length| IndexError::bad_row())?;
                let next = value.try_into().map_err(|_length| IndexError::bad_row())?;
                let row = (Window(u32::from_be_bytes(window)), u32::from_le_bytes(next));
                self.next_slots.push(row);
            }
            Some((b'k' | b'e', _)) => {}
            Some(_) | None => return Err(IndexError::bad_row()),
        }
        Ok(())
    }

    fn share_terms(&mut self, fact: &mut Fact) {
        let Fact::Began { terms, .. } = fact else { return };
        match &self.terms {
            Some(before) if before == terms => *terms = Arc::clone(before),
            Some(_) | None => self.terms = Some(Arc::clone(terms)),
        }
    }

    /// Takes what was gathered from other rows.
    pub(crate) fn join(&mut self, other: Self) {
        self.next_slots.extend(other.next_slots);
        self.records.extend(other.records);
    }

    pub(crate) fn finish(mut self, position: Sequence, at: Timestamp) -> Snapshot {
        // Keys come sorted by task; replay needs the journal's order, parents before children. A million
        // large records are moved once.
        self.records.sort_by_cached_key(|(sequence, _)| *sequence);
        // A promise that counts stands in two rows for as long as its window is needed.
        self.records.dedup_by_key(|(sequence, _)| *sequence);
        let records = self.records.into_iter().map(|(_, record)| record).collect();
        Snapshot { position, at, next_slots: self.next_slots, records }
    }
}

fn put_if_known(
    draft: &mut Draft<'_>,
    task: TaskId,
    key: Vec<u8>,
    row: Vec<u8>,
) -> Result<(), IndexError> {
    if draft.has(&task_key(task, BEGAN))? { draft.put(key, row) } else { Ok(()) }
}

/// The same for a key that was never there before: it has the record's place in it, or there is but one such
/// record of a task.
fn add_if_known(
    draft: &mut Draft<'_>,
    task: TaskId,
    key: Vec<u8>,
    row: Vec<u8>,
) -> Result<(), IndexError> {
    if draft.has(&task_key(task, BEGAN))? {
        draft.add(key, row);
    }
    Ok(())
}

fn reserve(draft: &mut Draft<'_>, serial: &Serial) -> Result<(), IndexError> {
    let place = serial.place();
    let key = key(b'w', &[&place.window.0.to_be_bytes()]);
    let before = draft.get(&key)?.and_then(|value| value.try_into().ok());
    let next = before.map_or(0, u32::from_le_bytes).max(place.slot.0.saturating_add(1));
    draft.put(key, next.to_le_bytes().to_vec())
}

fn began(draft: &Draft<'_>, task: TaskId) -> Result<Option<Fact>, IndexError> {
    let row = draft.get(&task_key(task, BEGAN))?;
    row.map(|row| decode_row(&row).map(|(_, record)| record.fact)).transpose()
}

fn has_no_process(draft: &Draft<'_>, task: TaskId) -> Result<bool, IndexError> {
    let began = began(draft, task)?;
    Ok(matches!(began, Some(Fact::Began { holder, .. }) if holder.is_nobody()))
}

fn is_open_job(draft: &mut Draft<'_>, task: TaskId) -> Result<bool, IndexError> {
    let is_job = matches!(began(draft, task)?, Some(Fact::Began { holder: Holder::Job, .. }));
    Ok(is_job && !draft.has(&task_key(task, ENDED))?)
}

/// Keeps the amendments that may have revoked something alive, and the one before them, which says
/// what version they came after.
fn drop_old_amendments(
    draft: &mut Draft<'_>,
    task: TaskId,
    now: Timestamp,
) -> Result<(), IndexError> {
    let mut rows = draft.rows(below(task_key(task, AMENDED)), usize::MAX)?.into_iter().peekable();
    while let Some((key, value)) = rows.next() {
        let Some((_, after)) = rows.peek() else { break };
        if decode_row(after)?.1.at.plus(AMENDED_FOR) > now {
            break;
        }
        draft.drop_row(key, &value);
    }
    Ok(())
}

fn encode_row(entry: &Entry) -> Vec<u8> {
    let mut row = entry.sequence.0.to_le_bytes().to_vec();
    row.extend(mayfly_audit::encode(&entry.record));
    row
}

fn decode_row(row: &[u8]) -> Result<(Sequence, Record), IndexError> {
    let (sequence, payload) = row.split_first_chunk().ok_or_else(IndexError::bad_row)?;
    let record = mayfly_audit::decode(payload).map_err(|_invalid| IndexError::bad_row())?;
    Ok((Sequence(u64::from_le_bytes(*sequence)), record))
}

fn key(prefix: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = vec![prefix];
    key.extend(parts.iter().copied().flatten());
    key
}

fn task_key(task: TaskId, kind: u8) -> Vec<u8> {
    key(b't', &[task.as_bytes(), &[kind]])
}

/// In the order in which they come, within a window: sled then writes where it wrote last.
fn serial_key(serial: &Serial, sequence: Sequence) -> Vec<u8> {
    let window = serial.place().window.0.to_be_bytes();
    key(b'p', &[&window, &sequence.0.to_be_bytes()])
}

fn due_key(at: Timestamp, task: TaskId) -> Vec<u8> {
    key(b'e', &[&at.0.to_be_bytes(), task.as_bytes()])
}

fn due_task(key: &[u8]) -> Option<TaskId> {
    key.get(9..)?.try_into().ok().map(TaskId::from_bytes)
}

/// All keys that begin with `prefix`.
fn below(prefix: Vec<u8>) -> Range<Vec<u8>> {
    let mut end = prefix.clone();
    while end.pop_if(|byte| *byte == u8::MAX).is_some() {}
    if let Some(byte) = end.last_mut() {
        *byte += 1;
    }
    prefix..end
}

#[cfg(test)]
mod tests {
    use mayfly_core::Author;

    use super::*;
    use crate::{compaction::tests as compaction_tests, index::Index};

    #[test]
    fn what_expired_together_goes_at_the_pace_at_which_records_come() {
        let dir = tempfile::tempdir().unwrap();
        let (index, _) = Index::open(&dir.path().join("index")).unwrap();
        let mut draft = index.draft();
        let window = Window(7);
        for number in 0..1_000_u64 {
            let name = [&window.0.to_be_bytes()[..], &number.to_be_bytes()];
            draft.put(key(b'p', &name), Vec::new()).unwrap();
        }
        let mut left = |now, count| {
            sweep(&mut draft, (now, count)).unwrap();
            draft.rows(vec![b'p']..vec![b'q'], usize::MAX).unwrap().len()
        };
        assert_eq!(left(window.forget_at().minus(Span(1)), 1), 1_000);
        assert_eq!(left(window.forget_at(), 1), 1_000 - SWEEP_LEAST);
        assert_eq!(left(window.forget_at(), 300), 1_000 - SWEEP_LEAST - 300 * SWEEP_EACH);
        assert_eq!(left(window.forget_at(), 1), 0);
    }

    /// The keys that are left of a task that began, ended and was forgotten by core; days later too.
    fn left(is_alone: bool) -> [usize; 2] {
        let dir = tempfile::tempdir().unwrap();
        let (mut index, _) = Index::open(&dir.path().join("index")).unwrap();
        let task = TaskId::from_bytes([7; 16]);
        let ended =
            Fact::Ended { task, cause: Cause::Exited, exit: Some(0), author: Author::default() };
        let noted = Fact::Noted { what: "later".into(), detail: String::new() };
        let began = compaction_tests::began(task);
        let day = 86_400_000;
        let mut next = 0;
        let mut entry = |at: u64, fact| {
            next += 1;
            let record = Record { at: Timestamp(at), fact };
            Entry { sequence: Sequence(next), record, chain: mayfly_audit::Chain::GENESIS }
        };
        let (story, later) = ([entry(0, began), entry(1, ended)], [entry(9 * day, noted)]);
        let keys = |index: &Index| {
            let (all, none) = (vec![0]..vec![u8::MAX], vec![b'm']);
            let rows = index.draft().rows(all, usize::MAX).unwrap();
            rows.iter().filter(|(key, _)| *key != none).count()
        };
        if is_alone {
            index.apply_alone(story).unwrap();
            let before = keys(&index);
            index.apply_alone(later).unwrap();
            [before, keys(&index)]
        } else {
            index.apply(story.map(Ok)).unwrap();
            let before = keys(&index);
            index.forget(&[task]).unwrap();
            [before, keys(&index)]
        }
    }

    #[test]
    fn nothing_is_left_of_a_task_when_core_says_so_or_when_nobody_could() {
        assert_eq!(left(false), [2, 0], "its begin and its end");
        assert_eq!(left(true), [3, 0], "and when to look at it");
    }
}
