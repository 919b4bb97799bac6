//! What a verifier knows at this moment, shared by everything in the process that verifies.
//!
//! The set is changed in place under a lock that is held for one delta, so a reader never sees half of
//! one and a million ended tasks are never copied. Live connections are kept by their place in the
//! status bitmap: an end wakes the connections of that task and no others.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
    },
    task::Waker,
};

use futures_util::task::AtomicWaker;
use mayfly_core::{
    Bitmap, Change, Delta, Place, Position, RevocationSet, Serial, Slot, Status, Timestamp,
    time::Span,
};
use tokio::{sync::watch, time::Instant};

use crate::{patience::Patience, patience::Sight, refused::Refused};

/// How long after the broker's own clock says that a window is over it is still kept. A clock that
/// steps forward by an hour must not bring the dead back.
const KEEP_LONGER: Span = Span::from_secs(2 * 3600);

/// The state of one feed, as far as it has been heard.
#[derive(Debug)]
pub struct View {
    patience: Patience,
    set: RwLock<Option<RevocationSet>>,
    /// When the feed last spoke; `None` until there has been a snapshot.
    heard: watch::Sender<Option<Instant>>,
    position: watch::Sender<Position>,
    gates: Mutex<BTreeMap<Place, Vec<Arc<Gate>>>>,
}

/// Why a message of the feed cannot be taken. Each of them asks for a new snapshot.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Hole {
    /// A delta does not begin where the view stands.
    #[error("a delta begins at `{}`, but the view stands at `{}`", from.sequence.0, at.sequence.0)]
    Gap {
        /// Where the view stands.
        at: Position,
        /// Where the delta begins.
        from: Position,
    },
    /// The feed says that it stands elsewhere.
    #[error("the feed stands at `{}`, but the view stands at `{}`", said.sequence.0, at.sequence.0)]
    Elsewhere {
        /// Where the view stands.
        at: Position,
        /// Where the feed says it stands.
        said: Position,
    },
    /// Nothing may come before the first snapshot.
    #[error("the feed did not begin with a snapshot")]
    NoSnapshot,
}

impl View {
    /// A view that has heard nothing, and therefore refuses everybody.
    #[must_use]
    pub fn new(patience: Patience) -> Arc<Self> {
        Arc::new(Self {
            patience,
            set: RwLock::new(None),
            heard: watch::Sender::new(None),
            position: watch::Sender::new(Position::default()),
            gates: Mutex::new(BTreeMap::new()),
        })
    }

    /// Whether the holder of this serial is to be accepted now. This is the whole cost of
    /// verification: two look-ups, whatever the number of ended tasks.
    ///
    /// # Errors
    /// [`Refused::Revoked`], [`Refused::Suspended`] or [`Refused::Dark`].
    pub fn admit(&self, serial: &Serial) -> Result<(), Refused> {
        self.admit_at(serial, Instant::now())
    }

    /// [`Self::admit`] at an instant of the monotonic clock.
    ///
    /// # Errors
    /// As there.
    pub fn admit_at(&self, serial: &Serial, now: Instant) -> Result<(), Refused> {
        match self.status(serial) {
            Status::Revoked => Err(Refused::Revoked),
            Status::Suspended => Err(Refused::Suspended),
            Status::Valid if self.is_dark(now) => Err(Refused::Dark),
            Status::Valid => Ok(()),
        }
    }

    /// What was heard of a serial, however long ago.
    #[must_use]
    pub fn status(&self, serial: &Serial) -> Status {
        self.read().as_ref().map_or(Status::Valid, |set| set.status(serial))
    }

    /// How well this view sees at `now`. It is computed here and not by the follower's timer, so a
    /// follower that is starved or gone makes the view dark as surely as a broker that is.
    #[must_use]
    pub fn sight(&self, now: Instant) -> Sight {
        self.heard()
            .map_or(Sight::Dark, |heard| self.patience.sight(now.saturating_duration_since(heard)))
    }

    /// Whether nobody is to be accepted at `now`.
    #[must_use]
    pub fn is_dark(&self, now: Instant) -> bool {
        self.sight(now) == Sight::Dark
    }

    /// What the operator chose for a silent feed.
    #[must_use]
    pub const fn patience(&self) -> Patience {
        self.patience
    }

    /// How far this view has heard; the receiver is told of every step.
    #[must_use]
    pub fn position(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }

    /// How many live connections are being watched.
    #[must_use]
    pub fn guarded(&self) -> usize {
        self.lock_gates().values().map(Vec::len).sum()
    }

    /// When the feed last spoke.
    pub(crate) fn heard(&self) -> Option<Instant> {
        *self.heard.borrow()
    }

    /// Tells when the feed speaks.
    pub(crate) fn heard_changes(&self) -> watch::Receiver<Option<Instant>> {
        self.heard.subscribe()
    }

    /// Takes a snapshot, unless it is older than what is known.
    ///
    /// What was heard as revoked stays revoked even if the snapshot does not say so: a broker that
    /// was cut short, restored or replaced cannot bring anybody back.
    ///
    /// # Errors
    /// [`Hole::Elsewhere`] if it is older, or another shard's.
    pub fn replace(&self, snapshot: RevocationSet, now: Instant) -> Result<(), Hole> {
        let position = snapshot.position();
        let mut snapshot = snapshot;
        {
            let mut held = self.write();
            if let Some(held) = held.as_ref() {
                let at = held.position();
                if at.shard != position.shard || at > position {
                    return Err(Hole::Elsewhere { at, said: position });
                }
                keep_revoked(held, &mut snapshot);
            }
            *held = Some(snapshot);
        }
        self.hear(position, now);
        self.cut_refused(None);
        Ok(())
    }

    /// Takes the next delta, and cuts the live connections of those who end with it.
    ///
    /// # Errors
    /// [`Hole`] if something between was lost: only a snapshot helps.
    pub fn apply(&self, delta: &Delta, now: Instant) -> Result<(), Hole> {
        self.apply_all(std::slice::from_ref(delta), now)
    }

    /// Takes deltas that belong together: nobody sees some of them without the others.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn apply_all(&self, deltas: &[Delta], now: Instant) -> Result<(), Hole> {
        let Some(last) = deltas.last() else { return Ok(()) };
        {
            let mut held = self.write();
            let set = held.as_mut().ok_or(Hole::NoSnapshot)?;
            for delta in deltas {
                let at = set.position();
                if !set.apply(delta) {
                    return Err(Hole::Gap { at, from: delta.from });
                }
            }
        }
        self.hear(last.to, now);
        for change in deltas.iter().flat_map(|delta| &delta.changes) {
            match change {
                Change::Place(place, _) => self.cut_refused(Some(*place)),
                Change::Serial(serial, _) => self.cut_refused(Some(serial.place())),
            }
        }
        Ok(())
    }

    /// Takes a heartbeat. One that stands further on than the view means that a delta was lost.
    ///
    /// # Errors
    /// [`Hole`] then: only a snapshot helps.
    pub fn beat(&self, said: Position, clock: Timestamp, now: Instant) -> Result<(), Hole> {
        {
            let mut held = self.write();
            let set = held.as_mut().ok_or(Hole::NoSnapshot)?;
            let at = set.position();
            if said != at {
                return Err(Hole::Elsewhere { at, said });
            }
            set.forget(clock.minus(KEEP_LONGER));
        }
        self.hear(said, now);
        Ok(())
    }

    fn hear(&self, position: Position, now: Instant) {
        self.position.send_if_modified(|held| {
            let moved = position > *held;
            *held = (*held).max(position);
            moved
        });
        // A message that was made earlier and came later does not make the view older.
        self.heard.send_modify(|heard| *heard = (*heard).max(Some(now)));
    }

    /// Nobody follows any more: dark from here on, and every live connection ends.
    pub(crate) fn abandon(&self) {
        self.heard.send_replace(None);
        self.cut_all(&Refused::Dark);
    }

    /// Cuts every live connection.
    pub(crate) fn cut_all(&self, reason: &Refused) {
        for gate in self.lock_gates().values().flatten() {
            gate.cut(reason.clone());
        }
    }

    /// Cuts the live connections at `place`, or anywhere, whose credential is not valid any more.
    fn cut_refused(&self, place: Option<Place>) {
        let gates = self.lock_gates();
        let check = |gate: &Arc<Gate>| match self.status(&gate.serial) {
            Status::Valid => {}
            Status::Revoked => gate.cut(Refused::Revoked),
            Status::Suspended => gate.cut(Refused::Suspended),
        };
        match place {
            Some(place) => gates.get(&place).into_iter().flatten().for_each(check),
            None => gates.values().flatten().for_each(check),
        }
    }

    /// Watches a connection of this serial's holder.
    ///
    /// The gate is registered before the status is looked up: an end between the two is seen twice
    /// instead of never.
    pub(crate) fn watch(self: &Arc<Self>, serial: Serial) -> Watched {
        let gate = Arc::new(Gate {
            serial,
            reason: OnceLock::new(),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
        });
        self.lock_gates().entry(serial.place()).or_default().push(Arc::clone(&gate));
        if let Err(reason) = self.admit(&serial) {
            gate.cut(reason);
        }
        Watched { view: Arc::clone(self), gate }
    }

    // A poisoned lock means that a thread died while it held it. The set is changed by assignments
    // that cannot be observed half done, so its content still holds.
    fn read(&self) -> RwLockReadGuard<'_, Option<RevocationSet>> {
        self.set.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Option<RevocationSet>> {
        self.set.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_gates(&self) -> MutexGuard<'_, BTreeMap<Place, Vec<Arc<Gate>>>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Carries what is revoked from `old` into `new`.
fn keep_revoked(old: &RevocationSet, new: &mut RevocationSet) {
    for (window, bitmap) in old.windows() {
        for slot in revoked_slots(bitmap) {
            new.take(Change::Place(Place { window, slot }, Status::Revoked));
        }
    }
    for (serial, until) in old.serials() {
        new.take(Change::Serial(serial, until));
    }
}

fn revoked_slots(bitmap: &Bitmap) -> impl Iterator<Item = Slot> {
    let bytes = (0_u32..).zip(bitmap.as_packed()).filter(|(_, byte)| **byte != 0);
    bytes
        .flat_map(|(at, _)| (at * 4..at * 4 + 4).map(Slot))
        .filter(|slot| bitmap.get(*slot) == Status::Revoked)
}

/// One live connection's gate. It is shut once and never opened: a connection that was cut is gone,
/// and a released task's peer makes a new one.
#[derive(Debug)]
struct Gate {
    serial: Serial,
    reason: OnceLock<Refused>,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Gate {
    fn cut(&self, reason: Refused) {
        if self.reason.set(reason).is_ok() {
            self.reader.wake();
            self.writer.wake();
        }
    }
}

/// A live connection's place in the view; gives it back when dropped.
#[derive(Debug)]
pub(crate) struct Watched {
    view: Arc<View>,
    gate: Arc<Gate>,
}

impl Watched {
    /// Why the connection is over, if it is. A look that asks for the clock, so that a stalled
    /// follower does not keep a connection open.
    pub(crate) fn refused(&self) -> Option<Refused> {
        if let Some(reason) = self.gate.reason.get() {
            return Some(reason.clone());
        }
        self.view.is_dark(Instant::now()).then_some(Refused::Dark)
    }

    /// Wakes this reader when the gate shuts.
    pub(crate) fn wake_reader(&self, waker: &Waker) {
        self.gate.reader.register(waker);
    }

    /// Wakes this writer when the gate shuts.
    pub(crate) fn wake_writer(&self, waker: &Waker) {
        self.gate.writer.register(waker);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut gates = self.view.lock_gates();
        let place = self.gate.serial.place();
        if let Some(at_place) = gates.get_mut(&place) {
            at_place.retain(|gate| !Arc::ptr_eq(gate, &self.gate));
            if at_place.is_empty() {
                gates.remove(&place);
            }
        }
    }
}
