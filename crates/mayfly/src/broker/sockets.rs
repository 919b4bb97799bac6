//! The tasks' own sockets, as they come and go.

use std::{path::Path, sync::Arc};

use mayfly_serve::{Doors, Listener};
use tokio::sync::mpsc;
use tonic::service::Routes;

use super::BrokerError;
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
                let bound = prepare_dir(&path)
                    .map_err(BrokerError::from)
                    .and_then(|()| Ok(Listener::bind(&path, 0o777)?));
                match bound {
                    Ok(listener) => doors.open(Some(task), listener, routes.clone()),
                    Err(error) => tracing::error!(%task, %error, "the task has no socket"),
                }
            }
            // Whoever asked may have left.
            SocketOrder::Report(done) => drop(done.send(())),
            SocketOrder::Close(task) => {
                doors.close(task);
                if let Some(dir) = paths.task_socket(task).parent() {
                    // The listener removes its own file; one that was there from another run goes too.
                    drop(std::fs::remove_dir_all(dir));
                }
            }
        }
    }
}

fn prepare_dir(socket: &Path) -> std::io::Result<()> {
    socket.parent().map_or(Ok(()), std::fs::create_dir_all)
}
