//! Threads that turn grants into credentials.
//!
//! A signature takes tens of microseconds of one core, and waking a thread takes about as long. So few
//! grants are signed in the driver's own turn, and of many it hands all but a few over, in as many lots
//! as there are threads. When their queue is full the driver signs them all, which slows it down exactly
//! when it should.

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock, mpsc},
    thread::JoinHandle,
};

use mayfly_core::{Grant, Kind, Ticket};
use mayfly_sign::{JwtSvid, KeyPool, SignError, Signer, X509Svid};

use crate::{
    clock::Clock,
    driver::{Inbox, Message},
};

/// Lots of grants that may wait for a thread.
const LOTS_MAX: usize = 4096;
/// Grants that the driver signs itself at each turn: an end that was seen waits for them, some 0.1 ms.
const OWN_MAX: usize = 4;

/// What is signed together.
type Lot = Vec<(Ticket, Grant)>;

/// What was signed.
#[derive(Debug)]
pub enum Signed {
    /// A certificate with its key.
    X509(X509Svid),
    /// A token.
    Jwt(JwtSvid),
}

impl Signed {
    /// Which of the two.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::X509(_) => Kind::X509,
            Self::Jwt(_) => Kind::Jwt,
        }
    }
}

/// The keys in use. Replaced whole at a rotation.
pub struct Keys {
    signer: RwLock<Arc<Signer>>,
    pool: KeyPool,
    clock: Clock,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(..)")
    }
}

impl Keys {
    /// Starts with `signer`.
    #[must_use]
    pub fn new((signer, clock): (Arc<Signer>, Clock), pool: KeyPool) -> Self {
        Self { signer: RwLock::new(signer), pool, clock }
    }

    /// Makes some keys ahead, if there is room.
    pub fn top_up(&self, count: usize) {
        if let Err(error) = self.pool.fill(count, (self.clock)()) {
            tracing::error!(%error, "no keys could be made ahead");
        }
    }

    /// The keys that sign now.
    #[must_use]
    pub fn signer(&self) -> Arc<Signer> {
        Arc::clone(&self.signer.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts new keys in use.
    pub fn replace(&self, signer: Arc<Signer>) {
        *self.signer.write().unwrap_or_else(PoisonError::into_inner) = signer;
    }

    fn sign_all(&self, lot: Lot) -> Message {
        let signed = lot.into_iter().map(|(ticket, grant)| (ticket, self.sign(grant)));
        Message::Signed(signed.collect())
    }

    fn sign(&self, grant: Grant) -> Result<Signed, SignError> {
        let signer = self.signer();
        match grant.kind() {
            Kind::X509 => {
                let key = self.pool.take((self.clock)())?;
                mayfly_sign::x509::issue(grant, &signer, key).map(Signed::X509)
            }
            Kind::Jwt => mayfly_sign::jwt::issue(grant, &signer).map(Signed::Jwt),
        }
    }
}

/// The threads and their queue.
#[derive(Debug)]
pub struct Signers {
    queue: mpsc::SyncSender<Lot>,
    keys: Arc<Keys>,
    threads: Vec<JoinHandle<()>>,
}

impl Signers {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(count: usize, keys: &Arc<Keys>, inbox: &Inbox) -> std::io::Result<Self> {
        let (queue, work) = mpsc::sync_channel(LOTS_MAX);
        let work = Arc::new(Mutex::new(work));
        let threads = (0..count).map(|at| {
            let (work, keys, inbox) = (Arc::clone(&work), Arc::clone(keys), inbox.clone());
            let thread = std::thread::Builder::new().name(format!("sign-{at}"));
            thread.spawn(move || work_off(&work, &keys, &inbox))
        });
        let threads = threads.collect::<Result<_, _>>()?;
        Ok(Self { queue, keys: Arc::clone(keys), threads })
    }

    /// Signs `grants`. What is signed at once is returned; the rest arrives at the driver as
    /// [`Message::Signed`] too.
    #[must_use]
    pub fn submit(&self, grants: &mut Lot) -> Option<Message> {
        let mut own: Lot = grants.drain(..grants.len().min(OWN_MAX)).collect();
        let share = grants.len().div_ceil(self.threads.len().max(1));
        while !grants.is_empty() {
            let lot = grants.drain(..share.min(grants.len())).collect();
            match self.queue.try_send(lot) {
                Ok(()) => {}
                Err(mpsc::TrySendError::Full(lot) | mpsc::TrySendError::Disconnected(lot)) => {
                    own.extend(lot);
                }
            }
        }
        (!own.is_empty()).then(|| self.keys.sign_all(own))
    }
}

fn work_off(work: &Mutex<mpsc::Receiver<Lot>>, keys: &Keys, inbox: &Inbox) {
    loop {
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(lot) = next else { return };
        if !inbox.tell_blocking(keys.sign_all(lot)) {
            return;
        }
    }
}
