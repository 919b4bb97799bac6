//! The loop between the registrar, which decides, and everything that has means.
//!
//! One task owns the [`Registrar`]; everybody else sends messages through a bounded door. If the match
//! over effects ever wants an `if`, the `if` belongs in core.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use mayfly_core::{
    Closing, Denial, Effect, Event, Grant, Identity, Record, Registrar, Sequence, TaskId,
    TaskVersion, Ticket,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    board::Poster,
    clock::{self, Clock},
    means::Means,
    measures,
    signers::Signed,
};

/// Messages that may wait for the driver. Full is an answer: the caller hears `Overloaded`.
const INBOX_MAX: usize = 65_536;
/// Messages handled before their effects are carried out: one group commit serves them all.
const ROUND_MAX: usize = 1024;

/// A No, or a wish to be asked again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum No {
    /// Refused.
    Denied(Denial),
    /// The profiles or the task have moved since they were looked at.
    Reconsider,
}

/// An identity, with the news of its task.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// Who the caller is.
    pub identity: Identity,
    /// Changes when the task ends, is suspended or changes.
    pub news: watch::Receiver<Option<Closing>>,
}

/// What becomes of a caller who is met.
#[derive(Debug)]
pub enum Met {
    /// This is who it is.
    Introduced(Vec<Introduction>),
    /// This is who it is, and what it wished for.
    Served(Box<Introduction>, Signed),
}

/// What is done with an acknowledgement, in the driver's turn: whoever wants to know how the task is with
/// it need not ask again.
pub struct Told(Box<dyn FnOnce(Acknowledged<'_>) + Send>);

/// The registrar as it is then, and what it has acknowledged; or its No.
type Acknowledged<'a> = Result<(&'a Registrar, TaskId, TaskVersion), No>;

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Told")
    }
}

/// Who waits for the answer to a ticket.
#[derive(Debug)]
pub enum Waiter {
    /// For an introduction.
    Introduction(oneshot::Sender<Result<Vec<Introduction>, No>>),
    /// For an introduction or, if that is enough to go by, for a credential.
    Meeting(oneshot::Sender<Result<Met, No>>),
    /// For a credential.
    Credential(oneshot::Sender<Result<Signed, No>>),
    /// For an acknowledgement.
    Acknowledgement(Told),
}

type Question = Box<dyn FnOnce(&Registrar) + Send>;

/// What the driver hears.
pub enum Message {
    /// Something happened; nobody waits for an answer.
    Event(Event),
    /// Somebody asks, and waits.
    Call(Event, Ticket, Waiter),
    /// Signatures were made, or not.
    Signed(Vec<(Ticket, Result<Signed, mayfly_sign::SignError>)>),
    /// Somebody wants to read.
    Question(Question),
    /// The streams of all tasks but these are to look again at what they hold.
    Wake(BTreeSet<TaskId>),
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Event(event) => f.debug_tuple("Event").field(event).finish(),
            Self::Call(event, ticket, _) => {
                f.debug_tuple("Call").field(event).field(ticket).finish()
            }
            Self::Signed(lot) => write!(f, "Signed({} grants)", lot.len()),
            Self::Question(_) => f.write_str("Question"),
            Self::Wake(but) => write!(f, "Wake(all but {})", but.len()),
        }
    }
}

/// The door to the driver.
#[derive(Clone, Debug)]
pub struct Inbox {
    sender: mpsc::Sender<Message>,
    tickets: Arc<AtomicU64>,
}

impl Inbox {
    /// Opens the door; what comes through it goes to [`Driver::run`].
    #[must_use]
    pub fn open() -> (Self, Letters) {
        let (sender, receiver) = mpsc::channel(INBOX_MAX);
        (Self { sender, tickets: Arc::default() }, Letters(receiver))
    }

    /// Tells the driver something, waiting for room. `false` when it is gone.
    pub async fn tell(&self, event: Event) -> bool {
        self.sender.send(Message::Event(event)).await.is_ok()
    }

    /// Lets the streams of all tasks but `but` look again at what they hold.
    pub async fn wake_all_but(&self, but: BTreeSet<TaskId>) {
        // A driver that is gone has no streams.
        drop(self.sender.send(Message::Wake(but)).await);
    }

    /// Tells the driver something from a thread of its own, waiting for room.
    pub fn tell_blocking(&self, message: Message) -> bool {
        self.sender.blocking_send(message).is_ok()
    }

    fn call<T>(
        &self,
        event: impl FnOnce(Ticket) -> Event,
        waiter: impl FnOnce(oneshot::Sender<Result<T, No>>) -> Waiter,
    ) -> Result<oneshot::Receiver<Result<T, No>>, No> {
        let ticket = Ticket(self.tickets.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = oneshot::channel();
        let call = Message::Call(event(ticket), ticket, waiter(sender));
        self.sender.try_send(call).map_err(|error| No::Denied(full_or_gone(&error)))?;
        Ok(receiver)
    }

    /// Asks who a caller is.
    ///
    /// # Errors
    /// The registrar's No.
    pub async fn introduce(
        &self,
        event: impl FnOnce(Ticket) -> Event,
    ) -> Result<Vec<Introduction>, No> {
        answer(self.call(event, Waiter::Introduction)?).await
    }

    /// Asks who a caller is, who wishes for something.
    ///
    /// # Errors
    /// The registrar's No.
    pub async fn meet(&self, event: impl FnOnce(Ticket) -> Event) -> Result<Met, No> {
        answer(self.call(event, Waiter::Meeting)?).await
    }

    /// Asks for a credential.
    ///
    /// # Errors
    /// The registrar's No.
    pub async fn credential(&self, event: impl FnOnce(Ticket) -> Event) -> Result<Signed, No> {
        answer(self.call(event, Waiter::Credential)?).await
    }

    /// Asks for something that is answered once it is on disk.
    ///
    /// # Errors
    /// The registrar's No.
    pub async fn order(
        &self,
        event: impl FnOnce(Ticket) -> Event,
    ) -> Result<(TaskId, TaskVersion), No> {
        self.order_and(event, |_, task, version| (task, version)).await
    }

    /// The same, and what `look` sees in the turn in which it is acknowledged.
    ///
    /// # Errors
    /// The registrar's No.
    pub async fn order_and<T: Send + 'static>(
        &self,
        event: impl FnOnce(Ticket) -> Event,
        look: impl FnOnce(&Registrar, TaskId, TaskVersion) -> T + Send + 'static,
    ) -> Result<T, No> {
        let told = |sender: oneshot::Sender<Result<T, No>>| {
            Waiter::Acknowledgement(Told(Box::new(move |answer| {
                let answer =
                    answer.map(|(registrar, task, version)| look(registrar, task, version));
                // A caller that left does not want to know any more.
                drop(sender.send(answer));
            })))
        };
        answer(self.call(event, told)?).await
    }

    /// Reads the registrar's state in the driver's turn.
    ///
    /// # Errors
    /// `Overloaded` or `NotServing`.
    pub async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Registrar) -> T + Send + 'static,
    ) -> Result<T, Denial> {
        let (sender, receiver) = oneshot::channel();
        let question: Question = Box::new(move |registrar| {
            // A caller that left does not want to know any more.
            drop(sender.send(question(registrar)));
        });
        self.sender.try_send(Message::Question(question)).map_err(|error| full_or_gone(&error))?;
        receiver.await.map_err(|_driver_gone| Denial::NotServing)
    }
}

async fn answer<T>(receiver: oneshot::Receiver<Result<T, No>>) -> Result<T, No> {
    receiver.await.unwrap_or(Err(No::Denied(Denial::NotServing)))
}

const fn full_or_gone(error: &mpsc::error::TrySendError<Message>) -> Denial {
    match error {
        mpsc::error::TrySendError::Full(_) => Denial::Overloaded,
        mpsc::error::TrySendError::Closed(_) => Denial::NotServing,
    }
}

/// What came through the door. Dropping it refuses everybody who waits for an answer to theirs.
#[derive(Debug)]
pub struct Letters(mpsc::Receiver<Message>);

impl Drop for Letters {
    fn drop(&mut self) {
        self.0.close();
        // Whoever has taken a place by now puts its message there a moment later. A receiver that is just
        // dropped does not wait for that, and the message, with whom it would have to answer, stays for
        // as long as anybody holds the door: for ever, if it is the asker.
        while !matches!(self.0.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)) {
            std::thread::yield_now();
        }
    }
}

/// Owns the registrar.
#[derive(Debug)]
pub struct Driver<M> {
    registrar: Registrar,
    clock: Clock0,
    means: M,
    waiting: HashMap<Ticket, Waiter>,
    signed: HashMap<Ticket, Signed>,
    /// Who it is that waits for a credential, where the answer has to say it.
    recognised: HashMap<Ticket, Introduction>,
    news: BTreeMap<TaskId, watch::Sender<Option<Closing>>>,
    batch: Vec<(Sequence, Record)>,
    grants: Vec<(Ticket, Grant)>,
    poster: Poster,
    /// What the means answered at once.
    soon: VecDeque<Message>,
}

/// A clock with a `Debug`.
struct Clock0(Clock);

impl std::fmt::Debug for Clock0 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl<M: Means> Driver<M> {
    /// Takes a registrar that has been replayed and reconciled.
    #[must_use]
    pub fn new(registrar: Registrar, clock: Clock, (means, poster): (M, Poster)) -> Self {
        Self {
            registrar,
            clock: Clock0(clock),
            means,
            waiting: HashMap::new(),
            signed: HashMap::new(),
            recognised: HashMap::new(),
            news: BTreeMap::new(),
            batch: Vec::new(),
            grants: Vec::new(),
            poster,
            soon: VecDeque::new(),
        }
    }

    /// Runs until `stop`, and gives the means back, so that what they hold can be closed in order.
    pub async fn run(mut self, mut letters: Letters, stop: CancellationToken) -> M {
        let mut round = Vec::with_capacity(ROUND_MAX);
        self.carry_out();
        loop {
            let now = (self.clock.0)();
            let due = self
                .registrar
                .poll_timeout()
                .map_or(std::time::Duration::from_secs(3600), |then| clock::until(now, then));
            tokio::select! {
                () = stop.cancelled() => return self.means,
                count = letters.0.recv_many(&mut round, ROUND_MAX) => {
                    if count == 0 {
                        return self.means;
                    }
                }
                () = tokio::time::sleep(due) => {}
            }
            let now = (self.clock.0)();
            self.registrar.handle_timeout(now);
            for message in round.drain(..) {
                self.hear(now, message);
            }
            self.carry_out();
            while let Some(message) = self.soon.pop_front() {
                self.hear(now, message);
                self.carry_out();
            }
        }
    }

    fn hear(&mut self, now: mayfly_core::Timestamp, message: Message) {
        match message {
            Message::Event(event) => {
                self.poster.hear(&event);
                self.registrar.handle(now, event);
            }
            Message::Call(event, ticket, waiter) => {
                self.waiting.insert(ticket, waiter);
                self.registrar.handle(now, event);
            }
            Message::Signed(lot) => {
                for (ticket, signed) in lot {
                    self.hear_signed(now, ticket, signed);
                }
            }
            Message::Question(question) => question(&self.registrar),
            Message::Wake(but) => self.wake_all_but(&but),
        }
    }

    fn hear_signed(
        &mut self,
        now: mayfly_core::Timestamp,
        ticket: Ticket,
        signed: Result<Signed, mayfly_sign::SignError>,
    ) {
        match signed {
            Ok(signed) => {
                self.signed.insert(ticket, signed);
                self.registrar.handle(now, Event::Signed { ticket });
            }
            Err(error) => {
                tracing::error!(%error, "a credential could not be signed");
                self.registrar.handle(now, Event::SigningFailed { ticket });
            }
        }
    }

    /// One arm per effect and no `if`: order comes from the registrar, means from here.
    fn carry_out(&mut self) {
        while let Some(effect) = self.registrar.poll_effect() {
            match effect {
                Effect::Journal(sequence, record) => self.batch.push((sequence, record)),
                Effect::Sign { ticket, grant } => self.grants.push((ticket, grant)),
                Effect::Release { ticket } => self.release(ticket),
                Effect::Withhold { ticket, denial } => self.withhold(ticket, No::Denied(denial)),
                Effect::Reconsider { ticket } => self.withhold(ticket, No::Reconsider),
                Effect::Recognise { ticket, identity } => self.recognise(ticket, identity),
                Effect::Introduce { ticket, identities } => self.introduce(ticket, identities),
                Effect::Acknowledge { ticket, task, version } => {
                    self.acknowledge(ticket, (task, version));
                }
                Effect::Publish(delta) => self.means.publish(&delta),
                Effect::RefreshCrl => self.means.refresh_crl(),
                Effect::Watch { task, holder } => {
                    self.soon.extend(self.means.watch(task, &holder));
                }
                Effect::Close { task, why } => self.close(task, why),
                Effect::OpenSocket { task } => self.means.open_socket(task),
                Effect::CloseSocket { task } => self.means.close_socket(task),
                Effect::Alert { finding, task, serial } => {
                    self.means.alert(finding, (task, serial));
                }
                Effect::Forget { task } => self.forget(task),
            }
        }
        self.poster.ordered(&self.registrar, &self.batch);
        self.soon.extend(self.means.append(&mut self.batch));
        self.soon.extend(self.means.sign(&mut self.grants));
    }

    fn release(&mut self, ticket: Ticket) {
        let Some(signed) = self.signed.remove(&ticket) else { return };
        let kind = signed.kind();
        // A caller that left gets nothing; its credential was promised and stays in the ledger.
        match (self.waiting.remove(&ticket), self.recognised.remove(&ticket)) {
            (Some(Waiter::Credential(waiter)), _) => drop(waiter.send(Ok(signed))),
            (Some(Waiter::Meeting(waiter)), Some(who)) => {
                drop(waiter.send(Ok(Met::Served(Box::new(who), signed))));
            }
            _ => return,
        }
        measures::issued(kind);
    }

    fn withhold(&mut self, ticket: Ticket, no: No) {
        measures::withheld(no);
        self.signed.remove(&ticket);
        self.recognised.remove(&ticket);
        match self.waiting.remove(&ticket) {
            Some(Waiter::Introduction(waiter)) => drop(waiter.send(Err(no))),
            Some(Waiter::Meeting(waiter)) => drop(waiter.send(Err(no))),
            Some(Waiter::Credential(waiter)) => drop(waiter.send(Err(no))),
            Some(Waiter::Acknowledgement(Told(told))) => told(Err(no)),
            None => {}
        }
    }

    fn recognise(&mut self, ticket: Ticket, identity: Identity) {
        let introduction = self.introduction(identity);
        self.recognised.insert(ticket, introduction);
    }

    fn introduce(&mut self, ticket: Ticket, identities: Vec<Identity>) {
        let introductions = identities.into_iter().map(|identity| self.introduction(identity));
        let introductions = introductions.collect();
        match self.waiting.remove(&ticket) {
            Some(Waiter::Introduction(waiter)) => drop(waiter.send(Ok(introductions))),
            Some(Waiter::Meeting(waiter)) => {
                drop(waiter.send(Ok(Met::Introduced(introductions))));
            }
            Some(Waiter::Credential(_) | Waiter::Acknowledgement(_)) | None => {}
        }
    }

    fn introduction(&mut self, identity: Identity) -> Introduction {
        let news = self.news.entry(identity.task);
        let news = news.or_insert_with(|| watch::channel(None).0).subscribe();
        Introduction { identity, news }
    }

    fn acknowledge(&mut self, ticket: Ticket, (task, version): (TaskId, TaskVersion)) {
        if let Some(Waiter::Acknowledgement(Told(told))) = self.waiting.remove(&ticket) {
            told(Ok((&self.registrar, task, version)));
        }
    }

    fn close(&mut self, task: TaskId, why: Closing) {
        self.means.withdraw(task);
        if let Some(news) = self.news.get(&task) {
            news.send_replace(Some(why));
        }
    }

    fn wake_all_but(&self, but: &BTreeSet<TaskId>) {
        for (_, news) in self.news.iter().filter(|(task, _)| !but.contains(task)) {
            news.send_if_modified(|last| {
                // Whoever was told of an end or a quarantine is not told that it goes on.
                let goes_on = !matches!(last, Some(Closing::Ended | Closing::Suspended));
                if goes_on {
                    *last = Some(Closing::Changed);
                }
                goes_on
            });
        }
    }

    fn forget(&mut self, task: TaskId) {
        self.news.remove(&task);
        self.means.forget(task);
    }
}

#[cfg(test)]
mod tests {
    use mayfly_core::{
        Delta, Finding, Holder, Serial, Shard, Timestamp, TrustDomain, registrar::Charter,
    };
    use tokio::task::JoinSet;

    use super::*;
    use crate::board::Board;

    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
    const ASKERS: usize = 6;

    /// Means that have nothing to do.
    struct Idle;

    impl Means for Idle {
        fn append(&mut self, _: &mut Vec<(Sequence, Record)>) -> Option<Message> {
            None
        }

        fn sign(&mut self, _: &mut Vec<(Ticket, Grant)>) -> Option<Message> {
            None
        }

        fn publish(&mut self, _: &Delta) {}

        fn refresh_crl(&mut self) {}

        fn watch(&mut self, _: TaskId, _: &Holder) -> Option<Message> {
            None
        }

        fn open_socket(&mut self, _: TaskId) {}

        fn close_socket(&mut self, _: TaskId) {}

        fn withdraw(&mut self, _: TaskId) {}

        fn alert(&mut self, _: Finding, _: (Option<TaskId>, Option<Serial>)) {}

        fn forget(&mut self, _: TaskId) {}
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn whoever_asks_as_the_driver_goes_is_answered() {
        let charter = Charter {
            trust_domain: TrustDomain::parse("example.org").unwrap(),
            shard: Shard(0),
            policy_epoch: mayfly_core::PolicyEpoch::default(),
            admission: mayfly_core::Admission::default(),
        };
        for round in 0..20_000 {
            let registrar = Registrar::replay(charter.clone(), None, []);
            let (_board, poster) = Board::new(Sequence(0));
            let driver = Driver::new(registrar, Arc::new(|| Timestamp(0)), (Idle, poster));
            let ((inbox, letters), stop) = (Inbox::open(), CancellationToken::new());
            let mut driving = JoinSet::new();
            driving.spawn(driver.run(letters, stop.clone()));
            let mut asking = JoinSet::new();
            for asker in std::iter::repeat_n(inbox.clone(), ASKERS) {
                asking.spawn(async move { while asker.read(|_| ()).await.is_ok() {} });
            }
            inbox.read(|_| ()).await.unwrap();
            stop.cancel();
            driving.join_all().await;
            let asked = tokio::time::timeout(PATIENCE, asking.join_all()).await;
            assert!(asked.is_ok(), "somebody still waits, in round {round}");
        }
    }
}
