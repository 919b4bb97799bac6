//! What an orchestrator names, found on this machine.

use mayfly_attest::{AttestError, Process, Systemd, find_container, find_pod, find_unit};
use mayfly_core::{Denial, Holder};
use mayfly_serve::office::{HolderWish, Refusal};

use super::refusal;

/// The running thing that `wish` names. What does not run, or cannot be told apart, holds nothing.
pub(super) async fn find(wish: HolderWish, systemd: &Systemd) -> Result<Holder, Refusal> {
    let unfit = |detail: String| refusal(Denial::HolderUnfit, detail);
    let found = |what: &str, name: &str, found: Result<Option<Holder>, AttestError>| match found {
        Ok(Some(holder)) => Ok(holder),
        Ok(None) => Err(unfit(format!("no {what} `{name}` runs here, as far as can be seen"))),
        Err(error) => Err(unfit(format!("{what} `{name}`: {error}"))),
    };
    let key = |pid| {
        let process = Process::open(pid);
        let process = process.map_err(|error| unfit(format!("process {pid}: {error}")));
        process.map(|process| process.key())
    };
    Ok(match wish {
        HolderWish::Lineage(pid) => Holder::Lineage(key(pid)?),
        HolderWish::Process(pid) => Holder::Process(key(pid)?),
        HolderWish::Cgroup(path) => Holder::Cgroup(path),
        HolderWish::Unit(name) => {
            let unit = find_unit(&name, systemd).await;
            found("unit", &name, unit.map(|it| it.map(Holder::Unit)))?
        }
        HolderWish::Container(id) => {
            let container = find_container(&id).await;
            found("container", &id, container.map(|it| it.map(Holder::Container)))?
        }
        HolderWish::Pod(uid) => {
            let pod = find_pod(&uid).await;
            found("pod", &uid, pod.map(|it| it.map(Holder::Pod)))?
        }
        HolderWish::Socket => Holder::Socket,
        HolderWish::Lease => Holder::Lease,
        HolderWish::Job => Holder::Job,
    })
}
