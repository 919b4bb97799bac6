//! A draft: changes to the index's rows before they are made, all in one batch.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
};

use crate::{index::IndexError, tally::Tally};

/// A key and its value.
pub(crate) type Row = (Vec<u8>, Vec<u8>);

/// Changes that are about to be made, and what the rows look like with them.
pub(crate) struct Draft<'a> {
    rows: &'a sled::Tree,
    pub(crate) changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    pub(crate) tally: Tally,
    /// Keys that were found among the rows: the records of a lot are about few tasks.
    found: HashSet<Vec<u8>>,
    /// Whether there is no core that says what it has forgotten.
    pub(crate) is_alone: bool,
}

impl<'a> Draft<'a> {
    /// No changes yet to `rows`, which add up to `tally`.
    pub(crate) fn over(rows: &'a sled::Tree, tally: Tally) -> Self {
        let (changes, found) = (BTreeMap::new(), HashSet::new());
        Self { rows, changes, tally, found, is_alone: false }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        match self.changes.get(key) {
            Some(change) => Ok(change.clone()),
            None => Ok(self.rows.get(key)?.map(|value| value.to_vec())),
        }
    }

    pub(crate) fn has(&mut self, key: &[u8]) -> Result<bool, IndexError> {
        if let Some(change) = self.changes.get(key) {
            return Ok(change.is_some());
        }
        if self.found.contains(key) {
            return Ok(true);
        }
        let is_there = self.rows.contains_key(key)?;
        if is_there {
            self.found.insert(key.to_vec());
        }
        Ok(is_there)
    }

    /// Puts in a row of which it is known that it is not there.
    pub(crate) fn add(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.tally.add(&key, &value);
        self.changes.insert(key, Some(value));
    }

    pub(crate) fn put(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), IndexError> {
        if let Some(old) = self.get(&key)? {
            self.tally.subtract(&key, &old);
        }
        self.add(key, value);
        Ok(())
    }

    pub(crate) fn remove(&mut self, key: &[u8]) -> Result<(), IndexError> {
        if let Some(old) = self.get(key)? {
            self.drop_row(key.to_vec(), &old);
        }
        Ok(())
    }

    /// Takes out a row of which it is known that it is there, and what it holds.
    pub(crate) fn drop_row(&mut self, key: Vec<u8>, value: &[u8]) {
        self.tally.subtract(&key, value);
        self.changes.insert(key, None);
    }

    /// The first `most` rows in `range`, in order.
    pub(crate) fn rows(&self, range: Range<Vec<u8>>, most: usize) -> Result<Vec<Row>, IndexError> {
        let mut rows = Vec::new();
        let mut stored = self.rows.range(range.clone()).filter(|row| {
            !row.as_ref().is_ok_and(|(key, _)| self.changes.contains_key(key.as_ref()))
        });
        let drafted = self.changes.range(range);
        let mut drafted = drafted.filter_map(|(key, value)| Some((key, value.as_ref()?)));
        let mut next_stored = stored.next().transpose()?;
        let mut next_drafted = drafted.next();
        while rows.len() < most {
            match (&next_stored, next_drafted) {
                (Some((left, value)), right)
                    if right.is_none_or(|(right, _)| left.as_ref() < right.as_slice()) =>
                {
                    rows.push((left.to_vec(), value.to_vec()));
                    next_stored = stored.next().transpose()?;
                }
                (_, Some((right, value))) => {
                    rows.push((right.clone(), value.clone()));
                    next_drafted = drafted.next();
                }
                (_, None) => break,
            }
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_knows_what_is_there_with_its_changes() {
        let dir = tempfile::tempdir().unwrap();
        let db = sled::open(dir.path()).unwrap();
        db.insert(b"stored", &b""[..]).unwrap();
        let mut draft = Draft::over(&db, Tally::default());
        assert!(!draft.has(b"never").unwrap());
        for _ in ["looked up", "recalled"] {
            assert!(draft.has(b"stored").unwrap());
        }
        draft.remove(b"stored").unwrap();
        assert!(!draft.has(b"stored").unwrap(), "what was found before it was removed");
        draft.put(b"stored".to_vec(), Vec::new()).unwrap();
        draft.add(b"new".to_vec(), Vec::new());
        assert!(draft.has(b"stored").unwrap() && draft.has(b"new").unwrap());
    }

    #[test]
    fn rows_come_each_once_and_in_order_wherever_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let db = sled::open(dir.path()).unwrap();
        for key in ["b", "d", "f", "h", "past the end"] {
            db.insert(key, "stored").unwrap();
        }
        let mut draft = Draft::over(&db, Tally::default());
        for key in ["a", "c", "i"] {
            draft.add(key.into(), b"drafted".to_vec());
        }
        draft.put(b"d".to_vec(), b"changed".to_vec()).unwrap();
        draft.remove(b"f").unwrap();
        let rows = |draft: &Draft<'_>, most| {
            let rows = draft.rows(b"a".to_vec()..b"j".to_vec(), most).unwrap();
            let told = |(key, value)| [key, value].map(|part| String::from_utf8(part).unwrap());
            rows.into_iter().map(told).map(|told| told.join(" ")).collect::<Vec<_>>()
        };
        let all = ["a drafted", "b stored", "c drafted", "d changed", "h stored", "i drafted"];
        for most in 0..=all.len() {
            assert_eq!(rows(&draft, most), all[..most]);
        }
        draft.drop_row(b"c".to_vec(), b"drafted");
        draft.drop_row(b"h".to_vec(), b"stored");
        assert_eq!(rows(&draft, usize::MAX), ["a drafted", "b stored", "d changed", "i drafted"]);
    }
}
