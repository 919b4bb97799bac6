//! Keeps a [`View`] up to date from `mayfly.v1.RevocationFeed`.
//!
//! Two tasks live as long as the follower: one reads the feed and comes back when it is lost, the other
//! counts the silence and shuts live connections when patience ends. New connections need neither:
//! the view judges the silence by itself.
//!
//! Silence is counted from when the broker spoke, not from when its words arrived: a relay that holds
//! them back gains nothing by it. The opening answers a nonce, so it was made after it was asked for;
//! from there on the broker's steady clock says how much later each message was made. The two clocks
//! drift apart, so the stream is opened anew every few minutes, from where it stands.

use std::{sync::Arc, time::Duration};

use mayfly_core::{Position, Timestamp, TrustDomain};
use mayfly_proto::mayfly::v1::{FollowResponse, revocation_feed_client::RevocationFeedClient};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tonic::{Streaming, transport::Channel};

use crate::{
    backoff::Backoff,
    endpoint::Endpoint,
    jwk::{JwkSet, JwkSets},
    patience::{Patience, Sight},
    reader::{Flaw, News, Reader, Standing, Vouch},
    refused::Refused,
    telemetry,
    view::{Hole, View},
    workload::request,
};

/// Largest message of the feed: a full window and something around it.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// How long a stream is relied on to know the time. Clocks that differ by a ten thousandth, which is
/// a bad one, have drifted apart by 30 ms then.
const ANCHOR_LIFE: Duration = Duration::from_mins(5);

/// Whose word is taken for whose.
#[derive(Clone, Debug, Default)]
pub enum Trust {
    /// Nobody stands between us and the broker: the kernel says whose socket it is.
    #[default]
    Socket,
    /// The feed comes by others, and counts only if it is sealed by this trust domain.
    Keys {
        /// Whose feed it is.
        domain: TrustDomain,
        /// Its token keys, and whenever they change.
        keys: watch::Receiver<JwkSets>,
    },
}

/// How a feed is followed.
#[derive(Clone, Debug, Default)]
pub struct FollowOptions {
    /// What to do when the feed is silent.
    pub patience: Patience,
    /// Whose word is taken.
    pub trust: Trust,
    /// The least time between two messages that bring changes; zero for each at once. It is never
    /// longer than a third of the silence that is borne.
    pub pace: Duration,
}

/// Follows one feed until it is dropped; then its view is dark for good.
#[derive(Debug)]
pub struct Follower {
    view: Arc<View>,
    _tasks: JoinSet<()>,
}

impl Follower {
    /// Begins to follow the feed at `endpoint`, which is the broker's own. Returns at once; until the
    /// first snapshot has come the view refuses everybody. To be called within a tokio runtime.
    #[must_use]
    pub fn connect(endpoint: &Endpoint, patience: Patience) -> Self {
        let options = FollowOptions { patience, ..FollowOptions::default() };
        Self::open(endpoint.channel(), options)
    }

    /// Begins to follow the feed behind `channel`. As [`connect`](Self::connect) otherwise.
    #[must_use]
    pub fn open(channel: Channel, options: FollowOptions) -> Self {
        let view = View::new(options.patience);
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(channel, options, Arc::clone(&view)));
        tasks.spawn(count_silence(Arc::clone(&view)));
        Self { view, _tasks: tasks }
    }

    /// What has been heard, shared with whoever verifies.
    #[must_use]
    pub const fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Waits until the view sees clearly. A snapshot that was made for somebody else may be older than
    /// some party's patience; the heartbeat after it is not.
    pub async fn ready(&self) {
        let mut heard = self.view.heard_changes();
        // The sender lives in the view, which `self` holds, so this cannot fail.
        let seeing = heard.wait_for(|_| self.view.sight(Instant::now()) == Sight::Clear);
        let _sees = seeing.await.is_ok();
    }

    /// Waits until the view stands at `position` or later.
    pub async fn caught_up(&self, position: Position) {
        let mut at: watch::Receiver<Position> = self.view.position();
        let _reached = at.wait_for(|at| *at >= position).await.is_ok();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.view.abandon();
    }
}

/// Why one stream of the feed came to its end.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("the feed answered `{:?}`: {}", .0.code(), .0.message())]
    Status(#[from] tonic::Status),
    #[error(transparent)]
    Flaw(#[from] Flaw),
    #[error(transparent)]
    Hole(#[from] Hole),
    #[error("the feed ended")]
    Ended,
    #[error("the feed was silent for too long")]
    Silent,
    #[error("there is no randomness for a nonce")]
    NoNonce,
}

impl Lost {
    async fn wait(&self, backoff: &mut Backoff) {
        match self {
            Self::Status(status) => backoff.wait_after(status).await,
            Self::Flaw(_) | Self::Hole(_) | Self::Ended | Self::Silent | Self::NoNonce => {
                backoff.wait().await;
            }
        }
    }

    /// Whether what was read before may be gone on from. After something that did not hold, everything
    /// is asked for anew.
    const fn may_resume(&self) -> bool {
        match self {
            Self::Status(_) | Self::Ended | Self::Silent | Self::NoNonce => true,
            Self::Flaw(_) | Self::Hole(_) => false,
        }
    }
}

async fn follow(channel: Channel, options: FollowOptions, view: Arc<View>) {
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
    let mut path = Path { channel, options, view, standing: None, resumes: true };
    loop {
        match path.follow_once(&mut backoff).await {
            Ok(()) => {}
            Err(lost) => {
                tracing::warn!(reason = %lost, "feed lost, asking again");
                path.resumes = lost.may_resume();
                path.options.trust.news_or(lost.wait(&mut backoff)).await;
            }
        }
    }
}

impl Trust {
    /// Judges with the keys as they are now.
    fn judge<T>(&self, judge: impl FnOnce(Option<&dyn Vouch>) -> T) -> T {
        match self {
            Self::Socket => judge(None),
            Self::Keys { domain, keys } => {
                let keys = keys.borrow();
                // A trust domain without keys vouches for nothing.
                let none = JwkSet::default();
                judge(Some(keys.of(domain).unwrap_or(&none)))
            }
        }
    }

    /// Waits, unless the keys change meanwhile: the key that was missing may be there.
    async fn news_or(&mut self, wait: impl Future<Output = ()>) {
        let Self::Keys { keys, .. } = self else { return wait.await };
        keys.mark_unchanged();
        let changed = async {
            if keys.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = wait => {}
            () = changed => {}
        }
    }
}

/// The way to the feed, and how far it was gone.
struct Path {
    channel: Channel,
    options: FollowOptions,
    view: Arc<View>,
    standing: Option<Standing>,
    resumes: bool,
}

impl Path {
    /// Follows one stream until it is lost, or until it is time to open another.
    async fn follow_once(&mut self, backoff: &mut Backoff) -> Result<(), Lost> {
        let patience = self.options.patience;
        let mut nonce = vec![0; 32];
        SystemRandom::new().fill(&mut nonce).map_err(|ring::error::Unspecified| Lost::NoNonce)?;
        let mut reader = Reader::new(nonce, self.standing);
        if !self.resumes {
            reader = reader.starting_over();
        }
        let pace = self.options.pace.min(patience.after() / 3);
        let pace_ms = u32::try_from(pace.as_millis()).unwrap_or(u32::MAX);
        let ask = request(reader.request(patience.heartbeat_ms(), pace_ms));
        // A peer that accepts and says nothing must not hold us: silence is an end like any other.
        let silence = patience.after().max(Duration::from_millis(500));
        let asked = Instant::now();
        let mut client = RevocationFeedClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut stream: Streaming<FollowResponse> =
            within(silence, client.follow(ask)).await??.into_inner();
        loop {
            let message = within(silence, stream.message()).await??.ok_or(Lost::Ended)?;
            let news = self.options.trust.judge(|keys| reader.take(message, keys))?;
            // An opening alone does not prove that the feed works; what follows it does.
            if self.take(news, |at| spoken(asked, reader.opened_at(), at))? {
                telemetry::feed_lag(self.view.heard().unwrap_or(asked).elapsed());
                self.standing = reader.standing();
                self.resumes = true;
                backoff.reset();
                if asked.elapsed() > ANCHOR_LIFE {
                    return Ok(());
                }
            }
        }
    }

    /// Says whether it brought the view up to some instant.
    fn take(&self, news: News, spoken: impl Fn(Timestamp) -> Instant) -> Result<bool, Lost> {
        match news {
            News::Opened { resumed, .. } => {
                tracing::debug!(resumed, "feed opened");
                return Ok(false);
            }
            News::Part => return Ok(false),
            News::Everything { set, at } => {
                tracing::debug!(position = set.position().sequence.0, "snapshot taken");
                self.view.replace(set, spoken(at))?;
            }
            News::Changes { deltas, at } => self.view.apply_all(&deltas, spoken(at))?,
            News::Nothing { position, at } => self.view.beat(position, at, spoken(at))?,
        }
        Ok(true)
    }
}

/// When the broker said what its clock dates `at`, by our clock and at the earliest: the opening was
/// made after it was asked for.
fn spoken(asked: Instant, opened: Timestamp, at: Timestamp) -> Instant {
    let since = Duration::from_millis(at.since(opened).as_millis());
    let before = Duration::from_millis(opened.since(at).as_millis());
    let spoken = asked + since;
    spoken.checked_sub(before).unwrap_or(asked).min(Instant::now())
}

async fn within<T>(silence: Duration, wait: impl Future<Output = T>) -> Result<T, Lost> {
    tokio::time::timeout(silence, wait).await.map_err(|_elapsed| Lost::Silent)
}

/// Says in the log when patience begins to run out, and shuts live connections when it has.
async fn count_silence(view: Arc<View>) {
    let mut heard = view.heard_changes();
    // Nothing is seen before the first word, and nobody needs to be told so.
    let mut said = Sight::Dark;
    loop {
        let Some(at) = *heard.borrow_and_update() else {
            if heard.changed().await.is_err() {
                return;
            }
            continue;
        };
        let now = Instant::now();
        let sight = view.sight(now);
        tell(sight, said, now.saturating_duration_since(at));
        said = sight;
        let patience = view.patience();
        let more = match sight {
            // Whatever is heard meanwhile, this instant is the first at which it could be missed.
            Sight::Clear => {
                tokio::time::sleep_until(at + patience.after()).await;
                true
            }
            Sight::Grace => heard_until(&mut heard, at + patience.limit()).await,
            Sight::Dark => {
                view.cut_all(&Refused::Dark);
                heard.changed().await.is_ok()
            }
        };
        if !more {
            return;
        }
    }
}

/// Waits until the feed speaks or the instant has come. `false` when the view is gone.
async fn heard_until(heard: &mut watch::Receiver<Option<Instant>>, limit: Instant) -> bool {
    tokio::select! {
        () = tokio::time::sleep_until(limit) => true,
        spoke = heard.changed() => spoke.is_ok(),
    }
}

fn tell(sight: Sight, said: Sight, silence: Duration) {
    telemetry::sight(sight);
    let silence_ms = u64::try_from(silence.as_millis()).unwrap_or(u64::MAX);
    match (sight, said) {
        (Sight::Clear, Sight::Clear)
        | (Sight::Grace, Sight::Grace)
        | (Sight::Dark, Sight::Dark) => {}
        (Sight::Clear, _) => tracing::info!("feed is heard"),
        (Sight::Grace, _) => {
            tracing::warn!(silence_ms, "feed is silent, going on with what was known last");
        }
        (Sight::Dark, _) => tracing::error!(silence_ms, "feed is silent, refusing everybody"),
    }
}
