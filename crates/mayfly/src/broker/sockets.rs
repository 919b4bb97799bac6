//! The tasks' own sockets, as they come and go.

use std::{path::Path, sync::Arc};

use mayfly_core::TaskId;
use mayfly_serve::{Doors, Listener};
use tonic::service::Routes;

use crate::{
    means::{SocketOrder, SocketWork},
    paths::Paths,
};

/// Opens and closes the tasks' own sockets, in the order in which it was told to.
pub(super) async fn keep_sockets(
    SocketWork { mut orders, done }: SocketWork,
    paths: Paths,
    doors: Arc<Doors>,
    routes: Routes,
) {
    // Ends with the driver, which holds the only sender.
    while let Some(order) = orders.recv().await {
        match order {
            SocketOrder::Open(task) => {
                let path = paths.task_socket(task);
                match Listener::bind_alone(&path, 0o777) {
                    Ok(listener) => doors.open(Some(task), listener, routes.clone()),
                    Err(error) => tracing::error!(%task, %error, "the task has no socket"),
                }
            }
            SocketOrder::Close(task) => {
                doors.close(task);
                remove(&paths.task_socket(task));
            }
        }
        done.send_modify(|done| *done += 1);
    }
}

/// Removes what another run has left of tasks that have no socket: they ended, or never came to be on disk.
pub(super) fn sweep(paths: &Paths, doors: &Doors) {
    let Ok(entries) = std::fs::read_dir(paths.tasks()) else { return };
    let names = entries.flatten().map(|entry| entry.file_name());
    let tasks = names.filter_map(|name| TaskId::parse(name.to_str()?).ok());
    for task in tasks.filter(|task| !doors.is_open(*task)) {
        remove(&paths.task_socket(task));
    }
}

/// Removes a socket with its folder. Its listener, which is about to go, does not miss it; one that was
/// there from another run goes too.
fn remove(socket: &Path) {
    let Some(dir) = socket.parent() else { return };
    let is_removed = std::fs::remove_file(socket).and_then(|()| std::fs::remove_dir(dir)).is_ok();
    if !is_removed {
        drop(std::fs::remove_dir_all(dir));
    }
}
