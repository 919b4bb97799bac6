//! The tasks' own sockets, as they come and go.

use std::{path::Path, sync::Arc};

use mayfly_serve::{Doors, Listener};
use tokio::sync::mpsc;
use tonic::service::Routes;

use crate::{means::SocketOrder, paths::Paths};

/// Opens and closes the tasks' own sockets, in the order in which it was told to.
pub(super) async fn keep_sockets(
    mut orders: mpsc::Receiver<SocketOrder>,
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
            // Whoever asked may have left.
            SocketOrder::Report(done) => drop(done.send(())),
            SocketOrder::Close(task) => {
                doors.close(task);
                remove(&paths.task_socket(task));
            }
        }
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
