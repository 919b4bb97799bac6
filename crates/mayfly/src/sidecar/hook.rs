//! The user's commands: told what is new, bounded in time, never trusted to succeed.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::process::Command;

use super::set::{FileSet, Part};

/// A command line for `sh -c`.
#[derive(Clone, Debug)]
pub struct Hook {
    /// What the shell is given.
    pub line: String,
    /// How long it may take; then it is killed with all that it started in its process group.
    pub patience: Duration,
}

/// Why a command failed. It is said, and that is all: the files are as they should be.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// There is no shell, or no process to be had.
    #[error("the command cannot be started: {0}")]
    Start(#[from] std::io::Error),
    /// It says so itself.
    #[error("the command failed: {0}")]
    Failed(std::process::ExitStatus),
    /// It took too long.
    #[error("the command was killed after {} s", .0.as_secs())]
    TooLong(Duration),
    /// The task ended, or the sidecar was asked to stop, while it ran.
    #[error("the command was killed because the files are going away")]
    Overtaken,
}

/// Names and values that a command is given on top of our own environment.
pub(super) type Environment = Vec<(&'static str, String)>;

/// What a command after a swap is told.
#[must_use]
pub(super) fn environment(dir: &Path, set: &FileSet, changed: &[Part]) -> Environment {
    let names: Vec<&str> = set.files().map(|(name, _)| name).collect();
    let changed: Vec<&str> = changed.iter().map(|part| part.as_str()).collect();
    vec![
        ("MAYFLY_SIDECAR_EVENT", "written".to_owned()),
        ("MAYFLY_SIDECAR_DIR", dir.display().to_string()),
        ("MAYFLY_SIDECAR_CHANGED", changed.join(" ")),
        ("MAYFLY_SIDECAR_FILES", names.join(" ")),
        ("MAYFLY_SIDECAR_SPIFFE_ID", set.spiffe_id().to_owned()),
        ("MAYFLY_SIDECAR_NOT_AFTER", set.not_after().seconds().to_string()),
    ]
}

/// What a command after the end is told.
#[must_use]
pub(super) fn environment_of_end(dir: &Path, why: &str) -> Environment {
    vec![
        ("MAYFLY_SIDECAR_EVENT", "ended".to_owned()),
        ("MAYFLY_SIDECAR_DIR", dir.display().to_string()),
        ("MAYFLY_SIDECAR_REASON", why.to_owned()),
    ]
}

impl Hook {
    /// Runs it to its end. Dropping the future kills it.
    ///
    /// # Errors
    /// [`HookError`] if it did not succeed in time.
    pub(super) async fn run(&self, environment: &Environment) -> Result<(), HookError> {
        let mut command = Command::new("/bin/sh");
        // What it says goes where our own complaints go; standard output is for reports.
        let voice = std::os::fd::AsFd::as_fd(&std::io::stderr()).try_clone_to_owned()?;
        command
            .arg("-c")
            .arg(&self.line)
            .envs(environment.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::from(voice))
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let group = Group(child.id());
        let exit = tokio::time::timeout(self.patience, child.wait()).await;
        match exit {
            Ok(exit) => {
                // What it left running on purpose, a server it has started, is not ours to end.
                group.disband();
                let exit = exit?;
                if exit.success() { Ok(()) } else { Err(HookError::Failed(exit)) }
            }
            Err(_elapsed) => Err(HookError::TooLong(self.patience)),
        }
    }
}

/// The process group of a command, killed when this is dropped.
struct Group(Option<u32>);

impl Group {
    fn disband(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            // The leader has not been waited for, so the number is still its own.
            let killed = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            if let Err(errno) = killed {
                tracing::debug!(%errno, "the command's group was gone already");
            }
        }
    }
}
