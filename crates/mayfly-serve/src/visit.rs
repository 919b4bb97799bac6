//! One call, from the look at the caller to the wait for the next reason to speak.
//!
//! Every call looks at its caller anew, and every answer is preceded by a check that the caller still
//! lives and its door is open. In between stands the desk, and whatever it says can be overtaken: a
//! task that was amended meanwhile is introduced again.

use std::{sync::Arc, time::Duration};

use futures_util::{
    Stream,
    future::{join_all, select_all},
    stream,
};
use mayfly_core::{Closing, Denial, Evidence, TaskId, TaskVersion, Timestamp};
use tokio::sync::watch;

use crate::{
    desk::{
        AtOnce, Bundles, Clock, Desk, Introduced, JwtSvid, Named, Reference, Reply, TokenWish,
        Within, X509Svid,
    },
    guest::{Eyes, Guest, denial_of},
    limits,
    quota::Seat,
};

/// What every call of this process shares.
#[derive(Clone)]
pub(crate) struct House {
    pub(crate) desk: Arc<dyn Desk>,
    pub(crate) eyes: Arc<dyn Eyes>,
    pub(crate) clock: Clock,
}

/// Whom a call is about.
#[derive(Clone, Debug)]
pub(crate) enum Whom {
    /// Whoever calls.
    Caller,
    /// The guest, for whom somebody else calls.
    Process(Within),
    /// A task, for which the guest calls.
    Task(TaskId, Option<TaskVersion>, Within),
}

/// One call.
pub(crate) struct Visit {
    house: House,
    /// Who has to be there for as long as the call lasts.
    guest: Arc<Guest>,
    whom: Whom,
    _seat: Seat,
}

/// Why a stream should look up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wake {
    /// The time it named has come.
    Due,
    /// Something happened to one of its tasks.
    News(Closing),
    /// The bundles or revocation lists have changed.
    Bundles,
}

impl Visit {
    pub(crate) const fn new(house: House, guest: Arc<Guest>, seat: Seat) -> Self {
        Self { house, guest, whom: Whom::Caller, _seat: seat }
    }

    /// The same call about `whom`.
    pub(crate) fn about(self, whom: Whom) -> Self {
        Self { whom, ..self }
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.house.clock)()
    }

    pub(crate) fn desk(&self) -> &dyn Desk {
        &*self.house.desk
    }

    /// Asked before every answer: a dead process gets none, however far its call has come.
    pub(crate) fn check(&self) -> Result<(), Denial> {
        self.guest.check()
    }

    /// Looks at the caller and asks the desk who it is. Never empty.
    pub(crate) async fn introduce(&self) -> Result<Vec<Introduced>, Denial> {
        self.unless_gone(self.meet()).await
    }

    async fn meet(&self) -> Result<Vec<Introduced>, Denial> {
        let refer =
            |named, within: &Within| self.desk().refer(Reference { named, within: within.clone() });
        let mut who = match &self.whom {
            Whom::Caller => self.desk().introduce(self.look().await?).await?,
            Whom::Process(within) => refer(Named::Process(self.look().await?), within).await?,
            Whom::Task(task, version, within) => {
                refer(Named::Task(*task, *version), within).await?
            }
        };
        who.truncate(mayfly_core::limits::IDENTITIES_PER_CALLER_MAX);
        if who.is_empty() { Err(Denial::NoIdentity) } else { Ok(who) }
    }

    async fn look(&self) -> Result<Evidence, Denial> {
        // Nobody from elsewhere can be seen, and this house introduces nobody whom it did not see.
        let peer = self.guest.peer().ok_or(Denial::AttestationFailed)?;
        let mut evidence = self.house.eyes.look(peer).await.map_err(|error| {
            tracing::info!(pid = peer.key().pid, %error, "a caller could not be seen");
            denial_of(&error)
        })?;
        evidence.caller.socket = self.guest.socket();
        Ok(evidence)
    }

    /// The token that a caller wants and whom it names, if it wants it for itself and there is but one
    /// that it can be.
    pub(crate) async fn at_once(
        &self,
        wish: TokenWish,
    ) -> Result<Option<(Introduced, JwtSvid)>, Denial> {
        if self.is_for_another() {
            return Ok(None);
        }
        let work = async { self.desk().jwt_at_once(self.look().await?, wish).await };
        served(self.unless_gone(work).await)
    }

    /// The first certificate of a caller that has a socket of its own.
    pub(crate) async fn first_x509(&self) -> Result<Option<(Introduced, X509Svid)>, Denial> {
        if self.is_for_another() || self.guest.socket().is_none() {
            return Ok(None);
        }
        let work = async { self.desk().x509_at_once(self.look().await?).await };
        served(self.unless_gone(work).await)
    }

    /// Asks the desk for one credential per identity, all at once. An identity whose task is over
    /// drops out; when none is left, the first reason is the answer.
    pub(crate) async fn credentials<T>(
        &self,
        keep: impl Fn(&Introduced) -> bool,
        ask: impl Fn(&Introduced) -> Reply<T>,
    ) -> Result<Vec<(Introduced, T)>, Denial> {
        // One watch over the whole of it: each costs a place in two queues.
        self.unless_gone(self.ask_for_all(keep, ask)).await
    }

    async fn ask_for_all<T>(
        &self,
        keep: impl Fn(&Introduced) -> bool,
        ask: impl Fn(&Introduced) -> Reply<T>,
    ) -> Result<Vec<(Introduced, T)>, Denial> {
        let mut last = Denial::TaskVersion;
        for _ in 0..limits::INTRODUCTIONS_MAX {
            let mut who = self.meet().await?;
            who.retain(|one| keep(one));
            let answers = match who.as_slice() {
                [] => return Err(Denial::IdentityNotHeld),
                [one] => vec![ask(one).await],
                several => join_all(several.iter().map(&ask)).await,
            };
            match gather(who, answers) {
                Err(Denial::TaskVersion) => last = Denial::TaskVersion,
                // In which way it is over, the next introduction says.
                Err(Denial::TaskEnded) if self.is_for_another() => last = Denial::TaskEnded,
                answer => return answer,
            }
        }
        Err(last)
    }

    const fn is_for_another(&self) -> bool {
        !matches!(self.whom, Whom::Caller)
    }

    /// What a stream makes of news. Who acts for another is introduced again in any case, because that
    /// tells what became of the workload.
    const fn heard(&self, closing: Closing) -> Wake {
        Wake::News(if self.is_for_another() { Closing::Changed } else { closing })
    }

    /// Does `work` for as long as the caller is there.
    pub(crate) async fn unless_gone<T>(
        &self,
        work: impl Future<Output = Result<T, Denial>>,
    ) -> Result<T, Denial> {
        tokio::select! {
            biased;
            denial = self.guest.gone() => Err(denial),
            done = work => done,
        }
    }

    /// Waits for a reason to speak again, or to stop.
    pub(crate) async fn wait(
        &self,
        who: impl Iterator<Item = &mut Introduced>,
        bundles: &mut watch::Receiver<Arc<Bundles>>,
        due: Option<Timestamp>,
    ) -> Result<Wake, Denial> {
        let news = who.map(|one| Box::pin(next_news(&mut one.news)));
        let news = select_all(news.collect::<Vec<_>>());
        tokio::select! {
            biased;
            denial = self.guest.gone() => Err(denial),
            (closing, ..) = news => closing.map(|closing| self.heard(closing)),
            changed = bundles.changed() => match changed {
                Ok(()) => Ok(Wake::Bundles),
                Err(_desk_is_gone) => Err(Denial::NotServing),
            },
            () = self.until(due) => Ok(Wake::Due),
        }
    }

    /// Waits until the clock shows `due`. Naps, because a clock can be set and a nap cannot.
    async fn until(&self, due: Option<Timestamp>) {
        let Some(due) = due else { return std::future::pending().await };
        loop {
            let left = Duration::from_millis(due.since(self.now()).as_millis());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(limits::NAP_MAX)).await;
        }
    }
}

/// What was served at once, if it was; else the caller asks in two steps.
fn served<T>(answer: Result<AtOnce<T>, Denial>) -> Result<Option<(Introduced, T)>, Denial> {
    match answer {
        Ok(AtOnce::Served(held)) => Ok(Some(*held)),
        Ok(AtOnce::Introduced(_) | AtOnce::Later) => Ok(None),
        // It was amended in between, and is introduced anew.
        Err(Denial::TaskVersion) => Ok(None),
        Err(denial) => Err(denial),
    }
}

async fn next_news(news: &mut watch::Receiver<Option<Closing>>) -> Result<Closing, Denial> {
    match news.changed().await {
        Ok(()) => Ok(news.borrow_and_update().unwrap_or(Closing::Changed)),
        // The desk forgot the task or is closing; the client may come back and be met anew.
        Err(_forgotten) => Err(Denial::NotServing),
    }
}

/// Puts answers to their identities. Whether to give up, to ask again or to go on without one of them
/// depends on why it was refused.
fn gather<T>(
    who: Vec<Introduced>,
    answers: Vec<Result<T, Denial>>,
) -> Result<Vec<(Introduced, T)>, Denial> {
    let mut held = Vec::with_capacity(who.len());
    let mut first = None;
    for (one, answer) in who.into_iter().zip(answers) {
        match answer {
            Ok(credential) => held.push((one, credential)),
            Err(denial) if is_passing(denial) => return Err(denial),
            Err(denial) => first = first.or(Some(denial)),
        }
    }
    match (held.is_empty(), first) {
        (true, denial) => Err(denial.unwrap_or(Denial::NoIdentity)),
        (false, _) => Ok(held),
    }
}

/// Whether the same question may be answered differently soon.
pub(crate) fn is_passing(denial: Denial) -> bool {
    crate::status::code(denial) == tonic::Code::Unavailable
}

/// What a stream says, one message after another.
pub(crate) trait Speaker: Send + 'static {
    /// What it says.
    type Message: Send + 'static;

    /// Waits for the next thing to say. An error is the last.
    fn next(&mut self) -> impl Future<Output = Result<Self::Message, Denial>> + Send;
}

/// A response stream that is pulled.
///
/// The speaker runs only when the transport asks for a message, which it does when the client has room
/// for one. A client that does not read therefore costs no queue and no signatures, and when it reads
/// again it gets the state of that moment.
pub(crate) type Pulled<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, tonic::Status>> + Send>>;

/// Lets `speaker` speak until its first error.
pub(crate) fn pull<S: Speaker>(speaker: S) -> Pulled<S::Message> {
    pull_as(speaker, std::convert::identity, crate::status::of)
}

/// The same in the words of another service.
pub(crate) fn pull_as<S: Speaker, M: Send + 'static>(
    speaker: S,
    message: fn(S::Message) -> M,
    status: fn(Denial) -> tonic::Status,
) -> Pulled<M> {
    Box::pin(stream::unfold(Some(speaker), move |speaker| async move {
        let mut speaker = speaker?;
        match speaker.next().await {
            Ok(said) => Some((Ok(message(said)), Some(speaker))),
            Err(denial) => Some((Err(status(denial)), None)),
        }
    }))
}
