//! What the lists are made of, as the registrar knows it.

use std::collections::BTreeMap;

use mayfly_core::{Bitmap, Denial, Registrar, Sequence, Window, registrar::RevokedCertificate};

use crate::driver::Inbox;

/// Entries read in one of the driver's turns: a list of any length holds nobody up.
const PORTION: usize = 8192;

/// Everything that lists say, as of about one moment.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Sorted by serial.
    pub(super) revoked: Vec<RevokedCertificate>,
    /// Windows in which something is not valid.
    pub(super) bitmaps: BTreeMap<Window, Bitmap>,
    /// The next free slot of each window from which something was issued.
    pub(super) next_slots: BTreeMap<Window, u32>,
    /// How far the journal is on disk.
    pub(super) durable: Sequence,
}

impl Facts {
    /// Asks the driver. What changes between two portions is told by another wake-up.
    pub(super) async fn read(inbox: &Inbox) -> Result<Self, Denial> {
        let mut facts = inbox.read(Self::of_windows).await?;
        loop {
            let last = facts.revoked.last().map(|entry| entry.serial);
            let question = move |registrar: &Registrar| {
                registrar.revoked_certificates_after(last, PORTION).copied().collect::<Vec<_>>()
            };
            let portion = inbox.read(question).await?;
            let is_last = portion.len() < PORTION;
            facts.revoked.extend(portion);
            if is_last {
                return Ok(facts);
            }
        }
    }

    fn of_windows(registrar: &Registrar) -> Self {
        let windows = registrar.revocations().windows();
        Self {
            revoked: Vec::new(),
            bitmaps: windows.map(|(window, bitmap)| (window, bitmap.clone())).collect(),
            next_slots: registrar.next_slots().collect(),
            durable: registrar.durable_sequence(),
        }
    }
}
