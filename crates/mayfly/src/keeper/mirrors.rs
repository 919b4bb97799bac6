//! The lists and documents that are signed for everybody: which are out of date, and the new ones.
//!
//! A list is signed again for one of three reasons. What it says has changed. Or it grows old: verifiers
//! refuse everybody once `nextUpdate` has passed. Or an entry's certificate has expired since: RFC 5280
//! §3.3 lets an entry go only after it stood on one list signed after that, and the registrar drops it
//! two minutes later. Everything else is published again as it was, octet by octet, so that a client
//! that has it is told so.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mayfly_core::{Bitmap, Span, Timestamp, Window, limits, registrar::RevokedCertificate};
use mayfly_serve::http::{Asset, Media, Published};
use mayfly_sign::{
    Publisher, Reason, SignError,
    crl::Contents,
    shards,
    status::{self, slots_for},
};

use super::facts::Facts;
use crate::pem;

/// How long a list may be relied on. Verifiers refuse everyone after that, so it outlives an outage in
/// which SVIDs expire anyway.
const LIFE: Span = Span::from_secs(3600);
/// When an unchanged list is signed anew.
const RENEWAL: Span = Span::from_secs(900);
/// How long after a certificate's expiry a list that names it is signed for the last time: before the
/// registrar forgets it.
const RETELL: Span = Span(limits::FORGET_AFTER.0 / 2);
/// How long a list may be kept by those who fetch it.
const LIST_FRESH: Span = Span::from_secs(5);

/// Revocation lists in DER, with their authorities' key ids.
pub(super) type Lists = Vec<(String, Asset)>;

/// When, and under which number, something is signed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    /// Rises with every list and document.
    pub(super) number: u64,
    /// What stands in lists as the time of their making.
    pub(super) date: Timestamp,
}

/// Something signed, and what it was signed about.
#[derive(Debug)]
struct Kept<C, L> {
    content: C,
    renew_at: Timestamp,
    lists: L,
}

impl<C: PartialEq, L> Kept<C, L> {
    fn is_good(&self, content: &C, now: Timestamp) -> bool {
        self.content == *content && now < self.renew_at
    }
}

type Entries = Vec<RevokedCertificate>;

/// What was signed last.
#[derive(Debug, Default)]
pub(super) struct Mirrors {
    key_ids: Vec<String>,
    full: Option<Kept<Entries, Lists>>,
    shards: BTreeMap<u8, Kept<Entries, Lists>>,
    statuses: BTreeMap<Window, Kept<(Bitmap, u32), Asset>>,
    published: Arc<Published>,
    turn_at: Timestamp,
}

impl Mirrors {
    /// Signs what is out of date at `stamp`, and puts everything together.
    pub(super) fn renew(
        &mut self,
        publisher: &Publisher,
        facts: Facts,
        stamp: Stamp,
        refresh_hint: Span,
    ) -> Result<(), SignError> {
        if !publisher.key_ids().eq(self.key_ids.iter().map(String::as_str)) {
            // Lists are signed by every authority, and tokens by the newest.
            *self = Self { published: Arc::clone(&self.published), ..Self::default() };
            self.key_ids = publisher.key_ids().map(str::to_owned).collect();
            self.published = Arc::new(documents(publisher, stamp.number, refresh_hint));
        }
        self.renew_shards(publisher, &facts.revoked, stamp)?;
        self.renew_statuses(publisher, &facts, stamp)?;
        self.renew_full(publisher, facts.revoked, stamp)?;
        self.turn_at = Timestamp((u64::from(Window::of(stamp.date).0) + 1) * limits::WINDOW.0);
        self.put_together(publisher);
        Ok(())
    }

    /// What is to be published.
    pub(super) fn published(&self) -> Arc<Published> {
        Arc::clone(&self.published)
    }

    /// The full revocation list of each authority.
    pub(super) fn lists(&self) -> &[(String, Asset)] {
        self.full.as_ref().map_or(&[], |full| full.lists.as_slice())
    }

    /// Octets and entries of the active authority's full list.
    pub(super) fn size(&self) -> (usize, usize) {
        let bytes = self.lists().first().map_or(0, |(_, list)| list.body().len());
        (bytes, self.full.as_ref().map_or(0, |full| full.content.len()))
    }

    /// When something has to be signed though nothing has changed.
    pub(super) fn due_at(&self) -> Timestamp {
        let full = self.full.iter().map(|kept| kept.renew_at);
        let shards = self.shards.values().map(|kept| kept.renew_at);
        let statuses = self.statuses.values().map(|kept| kept.renew_at);
        let others = full.chain(shards).chain(statuses);
        // Where there are no status lists, windows come and go unnoticed.
        let turn = (!self.statuses.is_empty()).then_some(self.turn_at);
        others.chain(turn).min().unwrap_or_default()
    }

    fn renew_full(
        &mut self,
        publisher: &Publisher,
        entries: Entries,
        stamp: Stamp,
    ) -> Result<(), SignError> {
        if self.full.as_ref().is_some_and(|kept| kept.is_good(&entries, stamp.date)) {
            return Ok(());
        }
        let lists = sign(&entries, stamp, |contents| publisher.crls(contents))?;
        self.full =
            Some(Kept { renew_at: renew_at(&entries, stamp.date), content: entries, lists });
        Ok(())
    }

    fn renew_shards(
        &mut self,
        publisher: &Publisher,
        revoked: &[RevokedCertificate],
        stamp: Stamp,
    ) -> Result<(), SignError> {
        if publisher.public_url().is_none() {
            return Ok(());
        }
        let mut cut: BTreeMap<u8, Entries> = shards::all().map(|at| (at, Vec::new())).collect();
        for entry in revoked {
            cut.entry(shards::of(&entry.serial)).or_default().push(*entry);
        }
        for (shard, entries) in cut {
            if self.shards.get(&shard).is_some_and(|kept| kept.is_good(&entries, stamp.date)) {
                continue;
            }
            let lists = sign(&entries, stamp, |contents| publisher.shard(shard, contents))?;
            let renew_at = renew_at(&entries, stamp.date);
            self.shards.insert(shard, Kept { content: entries, renew_at, lists });
        }
        Ok(())
    }

    /// One list for every window in which a credential may expire that can still be shown: also for
    /// those in which nothing has ended, because a token that points to a list has to find it.
    fn renew_statuses(
        &mut self,
        publisher: &Publisher,
        facts: &Facts,
        stamp: Stamp,
    ) -> Result<(), SignError> {
        if publisher.public_url().is_none() {
            return Ok(());
        }
        let now = stamp.date;
        let first = Window::of(now.minus(limits::FORGET_AFTER));
        let last = Window::of(now.plus(limits::CREDENTIAL_TTL_MAX));
        self.statuses.retain(|window, _| (first..=last).contains(window));
        let mut blank: Option<(u32, String)> = None;
        for window in (first.0..=last.0).map(Window) {
            let bitmap = facts.bitmaps.get(&window).cloned().unwrap_or_default();
            let slots = slots_for(facts.next_slots.get(&window).copied().unwrap_or(0));
            let content = (bitmap, slots);
            if self.statuses.get(&window).is_some_and(|kept| kept.is_good(&content, now)) {
                continue;
            }
            let list = match &blank {
                Some((length, list)) if *length == slots && content.0.as_packed().is_empty() => {
                    list.clone()
                }
                Some(_) | None => status::encode(content.0.as_packed(), slots),
            };
            let contents = status::Contents {
                uri: "",
                aggregation: "",
                issued_at: now,
                expires_at: now.plus(LIFE),
                ttl: LIST_FRESH,
                list: &list,
            };
            let Some(token) = publisher.status_list(window, contents)? else { return Ok(()) };
            if content.0.as_packed().is_empty() {
                blank = Some((slots, list));
            }
            let asset = Asset::new(token, Media::StatusList, fresh(LIST_FRESH));
            let renew_at = now.plus(RENEWAL);
            self.statuses.insert(window, Kept { content, renew_at, lists: asset });
        }
        Ok(())
    }

    fn put_together(&mut self, publisher: &Publisher) {
        let mut next = Published::clone(&self.published);
        next.crls = self.lists().iter().cloned().collect();
        if next.crls != self.published.crls || next.crl_pem.is_none() {
            // The active authority comes first.
            next.crl = self.lists().first().map(|(_, list)| list.clone());
            let all = self.lists().iter().map(|(_, list)| list.body());
            let all = pem::blocks(pem::X509_CRL, all);
            next.crl_pem = Some(Asset::new(all, Media::Pem, fresh(LIST_FRESH)));
        }
        next.shards = BTreeMap::new();
        for (shard, kept) in &self.shards {
            for (id, list) in &kept.lists {
                let shards = next.shards.entry(id.clone()).or_default();
                shards.insert(u32::from(*shard), list.clone());
            }
        }
        let statuses = self.statuses.iter();
        next.statuses = statuses.map(|(window, kept)| (window.0, kept.lists.clone())).collect();
        let named = publisher.aggregation(self.statuses.keys().copied());
        next.aggregation = named.map(|json| Asset::new(json, Media::Json, fresh(LIST_FRESH)));
        if *self.published != next {
            self.published = Arc::new(next);
        }
    }
}

/// What changes only with the keys.
fn documents(publisher: &Publisher, sequence: u64, refresh_hint: Span) -> Published {
    let hint = fresh(refresh_hint);
    let json = |document: Vec<u8>| Some(Asset::new(document, Media::Json, hint));
    Published {
        discovery: publisher.discovery().and_then(json),
        keys: json(publisher.oidc_keys()),
        bundle: json(publisher.bundle(sequence, hint.as_secs())),
        ..Published::default()
    }
}

const fn fresh(span: Span) -> Duration {
    Duration::from_millis(span.as_millis())
}

/// When a list has to be signed again though nothing changes.
fn renew_at(entries: &[RevokedCertificate], date: Timestamp) -> Timestamp {
    let expiring = entries.iter().map(|entry| entry.not_after).filter(|at| *at >= date);
    let retell = expiring.min().map(|at| at.plus(RETELL));
    let renewal = date.plus(RENEWAL);
    retell.map_or(renewal, |retell| retell.min(renewal))
}

fn sign(
    entries: &[RevokedCertificate],
    stamp: Stamp,
    sign: impl FnOnce(&Contents<'_>) -> Result<Vec<(String, Vec<u8>)>, SignError>,
) -> Result<Lists, SignError> {
    let revoked = entries.iter().map(|e| (e.serial, e.revoked_at, Reason::from(e.ground)));
    let revoked: Vec<_> = revoked.collect();
    let Stamp { number, date } = stamp;
    let next_update = date.plus(LIFE);
    let contents = Contents { number, this_update: date, next_update, revoked: &revoked };
    let lists = sign(&contents)?.into_iter();
    Ok(lists.map(|(id, der)| (id, Asset::new(der, Media::Crl, fresh(LIST_FRESH)))).collect())
}
