//! Who is watched, and what comes of what is seen.

use std::sync::Arc;

use mayfly_attest::{CollectOptions, Collector, Exit, Seen, Sighting, Systemd, Watcher};
use mayfly_core::{Event, Registrar, Timestamp};
use mayfly_serve::{Eyes, LocalEyes};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{clock::Clock, desk::Policy, driver::Inbox, means::Sought};

/// Watches every holder that is alive, and ends the tasks of those that died while nobody looked.
pub(super) fn reconcile(
    registrar: &mut Registrar,
    (mut watcher, sought): (Watcher, &Sought),
    now: Timestamp,
) -> Watcher {
    for (task, holder) in registrar.reconcile() {
        sought.note(&holder);
        let event = match mayfly_attest::is_alive(&holder) {
            Ok(true) => {
                watcher.watch(task, holder, None).err().map(|_blind| Event::WatcherBlinded { task })
            }
            Ok(false) => Some(Event::HolderGone { task, exit: None }),
            // Not known is not alive: a task that nobody can see must not go on.
            Err(_) => Some(Event::WatcherBlinded { task }),
        };
        if let Some(event) = event {
            if registrar.task(task).is_some_and(|task| !task.state.is_ended()) {
                tracing::info!(%task, "its holder is gone since the last run");
            }
            registrar.handle(now, event);
        }
    }
    watcher
}

pub(super) async fn report_sightings(
    mut sightings: mpsc::Receiver<Sighting>,
    inbox: Inbox,
    stop: CancellationToken,
) {
    while let Some(Some(sighting)) = stop.run_until_cancelled(sightings.recv()).await {
        let task = sighting.task;
        let event = match sighting.what {
            Seen::ProcessExited { exit }
            | Seen::UnitEnded { exit }
            | Seen::CgroupEmptied { exit } => {
                let code = |exit| match exit {
                    Exit::Code(code) => code,
                    Exit::Signal(signal) => 128 + signal,
                };
                Event::HolderGone { task, exit: exit.map(code) }
            }
            Seen::Blinded => Event::WatcherBlinded { task },
        };
        if !inbox.tell(event).await {
            return;
        }
    }
}

/// Eyes that look at what the profiles in force ask for, and no further: it is paid for at each call.
pub(super) fn eyes(
    policy: &Arc<Policy>,
    sought: Arc<Sought>,
    systemd: Systemd,
    clock: &Clock,
) -> Arc<dyn Eyes> {
    let policy = Arc::clone(policy);
    let options = move || {
        let profiles = policy.current();
        CollectOptions {
            names: profiles.needs_names(),
            sha256: profiles.needs_sha256(),
            lineage: sought.lineage(),
            dwellings: sought.dwellings() || profiles.needs_dwellings(),
            ..CollectOptions::default()
        }
    };
    let collector = Arc::new(Collector::default().with_systemd(systemd));
    Arc::new(LocalEyes::new(collector, Arc::new(options), Arc::clone(clock)))
}
