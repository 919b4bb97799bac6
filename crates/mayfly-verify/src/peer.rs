//! Who is at the other end of a live connection, and whether it may still be talked to.
//!
//! A handshake judges once. A connection may live for days, and what it was judged by changes: the
//! peer's task ends, its certificate runs out, its trust domain is not trusted any more, the feed falls
//! silent, we lose our own identity. [`Standing`] is asked again at each use, by the stream below
//! ([`Guarded`](crate::Guarded)) and by the layer above ([`CheckLayer`](crate::CheckLayer)), so there is
//! one definition of "still".

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use mayfly_core::{Span, TaskId, Timestamp};
use tokio::{
    sync::watch,
    time::{Instant, Sleep},
};

use crate::{
    authorize::task_of,
    patience::{Patience, Sight},
    refused::Refused,
    report::{Reporter, Use},
    source::Held,
    view::{View, Watched},
    x509::Leaf,
};

/// The peer of a live connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Peer {
    /// Its certificate.
    pub leaf: Leaf,
    /// Whether it is of our own trust domain, so that our feed speaks of it.
    pub own: bool,
}

impl Peer {
    /// The task that its SPIFFE ID names. `None` where the profile asks for a stable name.
    #[must_use]
    pub fn task(&self) -> Option<TaskId> {
        task_of(&self.leaf.id)
    }
}

/// How the peer of one live connection stands at this moment. Cheap to clone; belongs to exactly one
/// connection.
#[derive(Clone, Debug)]
pub struct Standing(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    peer: Peer,
    /// Whose feed speaks of the peer; none for one of a trust domain that nobody follows.
    view: Option<Arc<View>>,
    held: watch::Receiver<Held>,
    patience: Patience,
    reporter: Option<Reporter>,
    began: (Timestamp, Instant),
    /// The certificate's end by the monotonic clock, so that a step of the wall clock does not move it.
    ends: Instant,
}

/// What a standing is judged by.
#[derive(Debug)]
pub(crate) struct Grounds {
    pub(crate) view: Option<Arc<View>>,
    pub(crate) held: watch::Receiver<Held>,
    pub(crate) patience: Patience,
    pub(crate) reporter: Option<Reporter>,
}

impl Standing {
    pub(crate) fn new(peer: Peer, grounds: Grounds, now: Timestamp) -> Self {
        let instant = Instant::now();
        let left = Duration::from_millis(peer.leaf.not_after.since(now).as_millis());
        let Grounds { view, held, patience, reporter } = grounds;
        let ends = later(instant, left);
        Self(Arc::new(Inner { peer, view, held, patience, reporter, began: (now, instant), ends }))
    }

    /// Who it is.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.0.peer
    }

    /// Whether it may still be talked to.
    ///
    /// # Errors
    /// [`Refused`] says why not.
    pub fn check(&self) -> Result<(), Refused> {
        self.check_with(self.0.patience)
    }

    /// [`Self::check`] with less patience for a silent feed than the party has. More is not given: what
    /// the party refuses stays refused.
    ///
    /// # Errors
    /// [`Refused`] says why not.
    pub fn check_with(&self, patience: Patience) -> Result<(), Refused> {
        let (inner, now) = (&*self.0, Instant::now());
        if now >= inner.ends {
            return Err(Refused::OutOfDate);
        }
        let leaf = &inner.peer.leaf;
        {
            let held = inner.held.borrow();
            let context = held.context().ok_or(Refused::NoIdentity)?;
            let domain = leaf.id.trust_domain();
            if !inner.peer.own && context.bundle(domain).is_none() {
                return Err(Refused::Untrusted(domain.clone()));
            }
        }
        let Some(view) = &inner.view else { return Ok(()) };
        let serial = leaf.serial.ok_or_else(|| Refused::ForeignSerial(leaf.id.clone()))?;
        view.admit_at(&serial, now)?;
        if is_blind(view, patience, now) || is_blind(view, inner.patience, now) {
            return Err(Refused::Dark);
        }
        Ok(())
    }

    /// The hour, by the clock that ran on since the handshake.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let (then, instant) = self.0.began;
        let passed = Instant::now().saturating_duration_since(instant).as_millis();
        then.plus(Span(u64::try_from(passed).unwrap_or(u64::MAX)))
    }

    /// Waits until the peer is not to be talked to any more, and says why.
    pub async fn ended(&self) -> Refused {
        let mut vigil = Vigil::over(self.clone(), None);
        std::future::poll_fn(|cx| vigil.poll_end(cx)).await
    }

    /// Tells the broker that the peer used what it should not, if there is a reporter.
    pub(crate) fn report(&self, refused: &Refused) {
        let reporter = self.0.reporter.as_ref().filter(|_| self.peer().own);
        if let (Some(reporter), Some(kind)) = (reporter, Use::of(refused)) {
            reporter.report_peer(kind, self.peer(), self.now());
        }
    }

    pub(crate) fn watch(&self) -> Option<Arc<Watched>> {
        let (view, serial) = self.0.view.as_ref().zip(self.peer().leaf.serial)?;
        Some(Arc::new(view.watch(serial)))
    }

    /// The next instant at which time alone may have changed the answer. Later than now whenever
    /// [`Self::check_with`] has just said yes.
    fn next_look(&self, patience: Patience) -> Instant {
        let limit = patience.limit().min(self.0.patience.limit());
        let heard = self.0.view.as_ref().and_then(|view| view.heard());
        let dark = heard.map(|heard| later(heard, limit));
        dark.map_or(self.0.ends, |dark| dark.min(self.0.ends))
    }
}

/// Which of a connection's two directions waits: each has a waker of its own.
#[derive(Clone, Copy, Debug)]
enum Half {
    Reader,
    Writer,
}

/// Somebody who waits and wants to be told when the peer's time is over.
#[derive(Debug)]
pub(crate) struct Vigil {
    standing: Standing,
    patience: Patience,
    half: Half,
    /// Registered with the view from the first wait on, or before if the connection was.
    watched: Option<Arc<Watched>>,
    next: Option<Pin<Box<Sleep>>>,
}

impl Vigil {
    pub(crate) fn over(standing: Standing, watched: Option<Arc<Watched>>) -> Self {
        let patience = standing.0.patience;
        Self { standing, patience, half: Half::Reader, watched, next: None }
    }

    /// The one for the other direction of the same connection.
    pub(crate) fn other_half(&self) -> Self {
        let (standing, watched) = (self.standing.clone(), self.watched.clone());
        Self { half: Half::Writer, ..Self::over(standing, watched) }
    }

    pub(crate) const fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    pub(crate) const fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Whether it is over, without waiting.
    pub(crate) fn look(&self) -> Result<(), Refused> {
        // What was shut stays shut, also when a quarantine was lifted meanwhile.
        if let Some(reason) = self.watched.as_ref().and_then(|watched| watched.refused()) {
            return Err(reason);
        }
        self.standing.check_with(self.patience)
    }

    /// Whether it is over; if not, whoever polls is woken when it is.
    pub(crate) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Refused> {
        if self.watched.is_none() {
            self.watched = self.standing.watch();
        }
        if let Some(watched) = &self.watched {
            // Registered before the look, so that news between the two is not missed.
            match self.half {
                Half::Reader => watched.wake_reader(cx.waker()),
                Half::Writer => watched.wake_writer(cx.waker()),
            }
        }
        loop {
            if let Err(reason) = self.look() {
                return Poll::Ready(reason);
            }
            let next = self.standing.next_look(self.patience);
            let sleep = self.next.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next)));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            // The feed has spoken since the timer was set: it is set again.
            sleep.as_mut().reset(next);
        }
    }
}

/// Whether somebody with this patience cannot see any more. The view's own patience is judged by
/// [`View::admit`]; this is for those who have less of it.
pub(crate) fn is_blind(view: &View, patience: Patience, now: Instant) -> bool {
    let silence = view.heard().map(|heard| now.saturating_duration_since(heard));
    silence.is_none_or(|silence| patience.sight(silence) == Sight::Dark)
}

/// `from` and `span` more; the far future where that cannot be said.
pub(crate) fn later(from: Instant, span: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    from.checked_add(span.min(FAR)).unwrap_or(from)
}
