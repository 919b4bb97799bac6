use std::collections::BTreeSet;

use mayfly_core::{Place, Serial, Slot, Status, TrustDomain, registrar::Ground};
use mayfly_sign::{KeyRing, PublicUrl, RotationPolicy};

use super::*;

const NOW: Timestamp = Timestamp(1_795_339_123_000);
const TTL: Span = Span::from_secs(300);

fn ring(url: Option<&str>) -> KeyRing {
    let domain = TrustDomain::parse("example.org").unwrap();
    let ring = KeyRing::create(domain, RotationPolicy::for_credentials(TTL), NOW).unwrap();
    ring.with_public_url(url.map(|url| PublicUrl::parse(url).unwrap()))
}

fn public() -> KeyRing {
    ring(Some("https://mayfly.example.org"))
}

fn entry(luck: u64, not_after: Timestamp) -> RevokedCertificate {
    let place = Place { window: Window::of(not_after), slot: Slot(7) };
    let serial = Serial::new(place, luck);
    RevokedCertificate { serial, revoked_at: NOW, not_after, ground: Ground::Alone }
}

fn facts(revoked: &[RevokedCertificate]) -> Facts {
    Facts { revoked: revoked.to_vec(), ..Facts::default() }
}

fn stamp(number: u64, after: Span) -> Stamp {
    Stamp { number, date: NOW.plus(after) }
}

struct Bench {
    ring: KeyRing,
    mirrors: Mirrors,
    number: u64,
}

impl Bench {
    fn new(ring: KeyRing) -> Self {
        Self { ring, mirrors: Mirrors::default(), number: 0 }
    }

    fn renew(&mut self, facts: Facts, after: Span) -> Arc<Published> {
        self.number += 1;
        let hint = self.ring.refresh_hint();
        let stamp = stamp(self.number, after);
        self.mirrors.renew(&self.ring.publisher(), facts, stamp, hint).unwrap();
        self.mirrors.published()
    }
}

/// The shards and status lists that differ, and whether the full list does.
fn changed(before: &Published, after: &Published) -> (BTreeSet<u32>, BTreeSet<u32>, bool) {
    let mut shards = BTreeSet::new();
    for (id, lists) in &after.shards {
        let others = &before.shards[id];
        shards.extend(lists.iter().filter(|(at, list)| others[at] != **list).map(|(at, _)| *at));
    }
    let is_new = |(window, list): &(&u32, &Asset)| before.statuses.get(window) != Some(list);
    let statuses = after.statuses.iter().filter(is_new).map(|(window, _)| *window).collect();
    (shards, statuses, before.crl != after.crl)
}

#[test]
fn only_what_changed_is_signed_again() {
    let mut bench = Bench::new(public());
    let not_after = NOW.plus(TTL);
    let before = bench.renew(facts(&[]), Span(0));
    assert_eq!(before.shards.values().map(BTreeMap::len).collect::<Vec<_>>(), [64]);
    let same = bench.renew(facts(&[]), Span::from_secs(1));
    assert!(Arc::ptr_eq(&before, &same), "nothing changed, so nobody is woken");

    let after = bench.renew(facts(&[entry(70, not_after)]), Span::from_secs(2));
    let none = BTreeSet::new();
    assert_eq!(changed(&before, &after), (BTreeSet::from([70 % 64]), none.clone(), true));
    assert_ne!(before.crl_pem, after.crl_pem);
    assert_eq!((&before.bundle, &before.keys), (&after.bundle, &after.keys));

    // A task with tokens alone: no revocation list has anything to say about it.
    let window = Window::of(not_after);
    let mut ended = facts(&[entry(70, not_after)]);
    let mut bitmap = Bitmap::default();
    bitmap.set(Slot(3), Status::Revoked);
    ended.bitmaps.insert(window, bitmap);
    let told = bench.renew(ended, Span::from_secs(3));
    assert_eq!(changed(&after, &told), (none, BTreeSet::from([window.0]), false));
}

#[test]
fn a_list_is_signed_anew_before_it_ends_and_once_after_an_entry_has_expired() {
    let mut bench = Bench::new(ring(None));
    let empty = bench.renew(facts(&[]), Span(0));
    assert_eq!(bench.mirrors.due_at(), NOW.plus(RENEWAL));
    assert!(RENEWAL < LIFE, "a list is replaced long before it may no longer be relied on");
    let renewed = bench.renew(facts(&[]), RENEWAL);
    assert_ne!(empty.crl, renewed.crl);

    // RFC 5280 §3.3: an entry stands on one list that was signed after its certificate's end.
    let mut bench = Bench::new(ring(None));
    let listed = [entry(1, NOW.plus(TTL))];
    let first = bench.renew(facts(&listed), Span(0));
    let due = bench.mirrors.due_at();
    assert_eq!(due, NOW.plus(TTL).plus(RETELL));
    assert!(due < listed[0].not_after.plus(limits::FORGET_AFTER), "it is not forgotten by then");
    let last = bench.renew(facts(&listed), due.since(NOW));
    assert_ne!(first.crl, last.crl);
    assert_eq!(bench.mirrors.due_at(), due.plus(RENEWAL), "once is enough");
}

#[test]
fn every_window_that_a_credential_can_expire_in_has_a_list_and_a_retired_one_is_gone() {
    let mut bench = Bench::new(public());
    let first = bench.renew(facts(&[]), Span(0));
    let (now, latest) = (Window::of(NOW), Window::of(NOW.plus(limits::CREDENTIAL_TTL_MAX)));
    assert!((now.0..=latest.0).all(|window| first.statuses.contains_key(&window)));
    let turn = bench.mirrors.due_at();
    assert_eq!(Window::of(turn).0, now.0 + 1, "the next window needs a list when this one ends");
    assert_eq!(Window::of(turn.minus(Span(1))), now);

    let until = now.forget_at();
    let kept = bench.renew(facts(&[]), until.minus(Span(1000)).since(NOW));
    assert!(kept.statuses.contains_key(&now.0), "for verifiers whose clocks are behind");
    let gone = bench.renew(facts(&[]), until.since(NOW));
    assert!(!gone.statuses.contains_key(&now.0), "retired whole");
    let newest = Window::of(until.plus(limits::CREDENTIAL_TTL_MAX));
    assert!(gone.statuses.contains_key(&newest.0));
    let named = String::from_utf8(gone.aggregation.clone().unwrap().body().to_vec()).unwrap();
    assert!(named.contains(&format!("/status/{}\"", newest.0)), "{named}");
    assert!(!named.contains(&format!("/status/{}\"", now.0)), "{named}");
}

#[test]
fn a_list_grows_before_an_index_beyond_its_end_is_handed_out() {
    let mut bench = Bench::new(public());
    let window = Window::of(NOW.plus(TTL));
    let first = bench.renew(facts(&[]), Span(0));
    let mut many = facts(&[]);
    many.next_slots.insert(window, slots_for(0) / 4 + 1);
    let grown = bench.renew(many, Span::from_secs(1));
    assert_eq!(changed(&first, &grown).1, BTreeSet::from([window.0]));
}

#[test]
fn without_a_public_url_nothing_is_published_that_nothing_points_to() {
    let published = Bench::new(ring(None)).renew(facts(&[entry(1, NOW.plus(TTL))]), Span(0));
    assert!(published.shards.is_empty() && published.statuses.is_empty());
    assert_eq!((&published.discovery, &published.aggregation), (&None, &None));
    assert!(published.keys.is_some() && published.bundle.is_some() && published.crl.is_some());
}

/// SPIFFE point 64: the sequence rises whenever the content changes.
#[test]
fn point_64_a_rotation_signs_everything_anew_and_raises_the_sequence() {
    let mut bench = Bench::new(public());
    let before = bench.renew(facts(&[]), Span(0));
    let at = bench.ring.poll_timeout();
    bench.ring.handle_timeout(at).unwrap();
    let after = bench.renew(facts(&[]), at.since(NOW));
    let sequence = |published: &Published| {
        let body = published.bundle.clone().unwrap();
        let document: serde_json::Value = serde_json::from_slice(body.body()).unwrap();
        (document["keys"].as_array().unwrap().len(), document["spiffe_sequence"].as_u64().unwrap())
    };
    assert_eq!(sequence(&before), (2, 1));
    assert_eq!(sequence(&after), (4, 2));
    assert_eq!((before.crls.len(), after.crls.len()), (1, 2), "each authority has its own list");
    assert_eq!(after.shards.len(), 2);
    let same = bench.renew(facts(&[]), at.since(NOW).0.checked_add(1000).map(Span).unwrap());
    assert_eq!(sequence(&same), (4, 2));
}

/// What one end costs when 100,000 certificates are revoked already: one shard and the full list.
#[test]
fn an_end_among_a_hundred_thousand_signs_one_shard() {
    let mut bench = Bench::new(public());
    let not_after = NOW.plus(TTL);
    let many: Vec<_> = (0..100_000).map(|luck| entry(luck, not_after)).collect();
    let before = bench.renew(facts(&many), Span(0));
    let mut more = many;
    more.push(entry(100_000, not_after));
    let started = crate::clock::instant();
    let after = bench.renew(facts(&more), Span::from_secs(1));
    let took = started.elapsed();
    assert_eq!(changed(&before, &after).0, BTreeSet::from([100_000 % 64]));
    let bytes = |list: &Option<Asset>| list.as_ref().map(|list| list.body().len());
    eprintln!(
        "100,001 entries: {took:?} in all, full list {:?} bytes, pem {:?}, a shard {:?}",
        bytes(&after.crl),
        bytes(&after.crl_pem),
        after.shards.values().next().map(|shards| shards[&0].body().len()),
    );
}
