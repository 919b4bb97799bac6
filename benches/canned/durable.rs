//! The least that a signed answer costs which is on disk before it is given: a line to a file, one `fdatasync`
//! for all that wait, and a signature.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    sync::mpsc::{Receiver, Sender, channel},
};

use tokio::sync::oneshot;

use crate::measure::Fault;

/// As long as a record of the log.
const RECORD: [u8; 200] = [7; 200];
/// One commit serves so many.
const TOGETHER_MAX: usize = 1024;

/// Who waits for a commit.
type Waiter = oneshot::Sender<()>;

/// The writing thread's door, and what is done afterwards.
pub(super) struct Durable {
    door: Sender<Waiter>,
    sign: Box<dyn Fn() -> Option<()> + Send + Sync>,
}

impl Durable {
    /// Writes to a new file at `path`.
    pub(super) fn new(
        path: &Path,
        sign: impl Fn() -> Option<()> + Send + Sync + 'static,
    ) -> Result<Self, Fault> {
        let file = File::create(path)?;
        let (door, waiting) = channel();
        // Ends with the door.
        drop(
            std::thread::Builder::new()
                .name("writer".into())
                .spawn(move || write(file, &waiting))?,
        );
        Ok(Self { door, sign: Box::new(sign) })
    }

    /// Waits until a line is on disk, and signs.
    pub(super) async fn write(&self) -> Option<()> {
        let (waiter, written) = oneshot::channel();
        self.door.send(waiter).ok()?;
        written.await.ok()?;
        (self.sign)()
    }
}

fn write(mut file: File, waiting: &Receiver<Waiter>) {
    while let Ok(first) = waiting.recv() {
        let mut together = vec![first];
        together.extend(waiting.try_iter().take(TOGETHER_MAX));
        let lines = RECORD.repeat(together.len());
        if file.write_all(&lines).and_then(|()| file.sync_data()).is_err() {
            return;
        }
        for waiter in together {
            // Whoever has gone does not want to know any more.
            let _gone = waiter.send(());
        }
    }
}
