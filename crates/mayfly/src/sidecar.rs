//! The sidecar: the Workload API, followed into files, for programs that read files.
//!
//! nginx, PostgreSQL and a thousand others know certificates only as files. What the broker says is
//! therefore written down for them, with three promises: the files of one moment appear *together*
//! ([`Folder`] swaps one symbolic link), they never outlive what they stand for ([`plan`] decides when
//! they go), and nothing is touched in the directory that the sidecar did not put there.
//!
//! `follow` hears, [`plan`] decides, [`set`] says which files there are, [`Folder`] writes them,
//! [`Hook`] tells the server. Only the last two touch the world.

use std::time::Duration;

use mayfly_core::Timestamp;
use mayfly_verify::Endpoint;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::clock;

#[cfg(test)]
mod fixtures;
mod folder;
mod follow;
mod hook;
pub mod plan;
pub mod set;

pub use folder::{Folder, FolderError};
pub use follow::{Bundles, Following, Heard, Token};
pub use hook::{Hook, HookError};
pub use plan::Why;
pub use set::{FileSet, Part};

/// How long a sleep may be at most: a stepped wall clock is noticed after that.
const NAP_MAX: Duration = Duration::from_secs(30);
/// First and longest pause before writing is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long one write is waited for where one is all that is wanted.
const ONCE_PATIENCE: Duration = Duration::from_secs(30);

/// What is to be kept, and who is told.
#[derive(Debug, Default)]
pub struct Orders {
    /// Audiences to keep a token for.
    pub audiences: Vec<String>,
    /// Run after each swap.
    pub on_renew: Option<Hook>,
    /// Run after the files have been removed for good.
    pub on_end: Option<Hook>,
    /// Write once and leave.
    pub once: bool,
    /// Leave the files where they are when asked to stop.
    pub keep_on_exit: bool,
}

/// What happened, for whoever watches.
#[derive(Debug)]
pub enum Report<'a> {
    /// The set was swapped. What was written, and which parts of it are new.
    Written(&'a FileSet, Vec<Part>),
    /// The files are gone.
    Removed(&'a Why),
    /// Writing failed; what was there is still there, and it will be tried again.
    NotWritten(&'a FolderError),
    /// A command of the user's failed. Nothing is undone for that.
    Hook(&'a HookError),
    /// There is nothing to write yet, or the files cannot be renewed, and this is why.
    Waiting(&'a str),
}

/// How it ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The files were written, once, as ordered.
    Once,
    /// The task is over, and the files are gone.
    Ended(String),
    /// Somebody asked it to stop.
    Stopped,
}

/// Why it came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// The directory.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The broker says no, and will not say anything else.
    #[error("{0}")]
    Refused(String),
    /// Nobody answered.
    #[error("unavailable: the workload api has not answered within 30 s: {0}")]
    Silent(String),
}

/// Keeps the files of one directory. See the module.
#[derive(Debug)]
pub struct Sidecar {
    folder: Folder,
    following: Following,
    orders: Orders,
    kept: plan::Kept,
    retry: Option<Duration>,
    /// What was said last about waiting: the same is not said twice.
    waiting: Option<String>,
}

impl Sidecar {
    /// Begins to follow `endpoint` into `folder`.
    #[must_use]
    pub fn new(folder: Folder, endpoint: &Endpoint, orders: Orders) -> Self {
        let following = Following::start(endpoint, orders.audiences.clone());
        // A predecessor's files serve on until they expire or there are newer ones.
        let kept = plan::Kept { set: None, until: folder.left_until() };
        Self { folder, following, orders, kept, retry: None, waiting: None }
    }

    /// Runs until the task ends or `stop` is cancelled.
    ///
    /// # Errors
    /// [`SidecarError`] if there is nothing to be hoped for, or if one write was ordered and failed.
    pub async fn run(
        mut self,
        stop: CancellationToken,
        mut report: impl FnMut(&Report<'_>),
    ) -> Result<Outcome, SidecarError> {
        let began = clock::now();
        loop {
            let heard = self.following.heard();
            if let Some(outcome) = self.act(&heard, &stop, &mut report).await? {
                return Ok(outcome);
            }
            if self.orders.once && clock::until(began, clock::now()) >= ONCE_PATIENCE {
                return Err(SidecarError::Silent(heard.trouble.unwrap_or_default()));
            }
            let nap = sleep(self.nap(&heard));
            tokio::select! {
                () = self.following.changed() => {}
                () = nap => {}
                () = stop.cancelled() => return self.stop(&mut report),
            }
        }
    }

    /// Does what is to be done at this moment.
    async fn act(
        &mut self,
        heard: &Heard,
        stop: &CancellationToken,
        report: &mut impl FnMut(&Report<'_>),
    ) -> Result<Option<Outcome>, SidecarError> {
        if let Some(why) = &heard.hopeless {
            return Err(SidecarError::Refused(why.clone()));
        }
        match plan::step(heard, &self.orders.audiences, &self.kept, clock::now()) {
            plan::Step::Write(set) => self.write(set, stop, report).await,
            plan::Step::Remove(why) => self.remove(&why, report).await,
            plan::Step::Wait => self.wait(heard, report),
        }
    }

    async fn write(
        &mut self,
        set: FileSet,
        stop: &CancellationToken,
        report: &mut impl FnMut(&Report<'_>),
    ) -> Result<Option<Outcome>, SidecarError> {
        // The disk may be slow, and nothing else waits on this thread.
        let written = tokio::task::block_in_place(|| self.folder.replace(&set));
        if let Err(error) = written {
            if self.orders.once {
                return Err(error.into());
            }
            report(&Report::NotWritten(&error));
            self.retry = Some(self.retry.map_or(RETRY.0, |last| (last * 2).min(RETRY.1)));
            return Ok(None);
        }
        let changed = set.changed_since(self.kept.set.as_ref());
        report(&Report::Written(&set, changed.clone()));
        self.retry = None;
        self.waiting = None;
        self.kept = plan::Kept { until: Some(set.not_after()), set: Some(set) };
        if let (Some(hook), Some(set)) = (&self.orders.on_renew, &self.kept.set) {
            let environment = hook::environment(self.folder.path(), set, &changed);
            // Nothing is swapped while the command reads, but an end does not wait for it.
            let ran = tokio::select! {
                ran = hook.run(&environment) => ran,
                () = self.following.refused() => Err(HookError::Overtaken),
                () = stop.cancelled() => Err(HookError::Overtaken),
            };
            if let Err(error) = ran {
                report(&Report::Hook(&error));
            }
        }
        Ok(self.orders.once.then_some(Outcome::Once))
    }

    async fn remove(
        &mut self,
        why: &Why,
        report: &mut impl FnMut(&Report<'_>),
    ) -> Result<Option<Outcome>, SidecarError> {
        tokio::task::block_in_place(|| self.folder.clear())?;
        self.kept = plan::Kept::default();
        report(&Report::Removed(why));
        let Some(last_word) = why.is_final() else { return Ok(None) };
        if let Some(hook) = &self.orders.on_end {
            let environment = hook::environment_of_end(self.folder.path(), last_word);
            if let Err(error) = hook.run(&environment).await {
                report(&Report::Hook(&error));
            }
        }
        Ok(Some(Outcome::Ended(last_word.to_owned())))
    }

    fn wait(
        &mut self,
        heard: &Heard,
        report: &mut impl FnMut(&Report<'_>),
    ) -> Result<Option<Outcome>, SidecarError> {
        if let Some(refused) = &heard.refused
            && (self.orders.once || plan::is_final(refused))
        {
            return Err(SidecarError::Refused(refused.clone()));
        }
        let news = heard.refused.as_ref().or(heard.trouble.as_ref());
        if news != self.waiting.as_ref() {
            if let Some(news) = news {
                report(&Report::Waiting(news));
            }
            self.waiting = news.cloned();
        }
        Ok(None)
    }

    fn stop(&mut self, report: &mut impl FnMut(&Report<'_>)) -> Result<Outcome, SidecarError> {
        if !self.orders.keep_on_exit {
            tokio::task::block_in_place(|| self.folder.clear())?;
            report(&Report::Removed(&Why::Stopped));
        }
        Ok(Outcome::Stopped)
    }

    /// How long nothing has to be done if nothing is heard.
    fn nap(&self, heard: &Heard) -> Duration {
        let now = clock::now();
        let due: Option<Timestamp> = plan::due(heard, &self.kept, now);
        let due = due.map_or(NAP_MAX, |due| clock::until(now, due));
        // A millisecond more, so that what is due then is due when we look.
        let due = due.min(NAP_MAX) + Duration::from_millis(1);
        self.retry.map_or(due, |retry| retry.min(due))
    }
}
