//! Revocation lists, as webpki and x509-parser read them.

use mayfly_core::{Cause, Serial, Span, Timestamp, registrar::Ground};
use mayfly_sign::{KeyRing, LeafKey, PublicUrl, Reason, crl, shards, x509};
use webpki::{BorrowedCertRevocationList, CertRevocationList, RevocationOptionsBuilder};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, ParsedExtension};

use crate::common::{NOW, id, ring, serial, webpki, x509_grant};

fn contents(revoked: &[(Serial, Timestamp, Reason)]) -> crl::Contents<'_> {
    crl::Contents {
        number: 7,
        this_update: NOW,
        next_update: NOW.plus(Span::from_secs(3600)),
        revoked,
    }
}

fn leaf(ring: &KeyRing, slot: u32) -> Vec<u8> {
    let key = LeafKey::generate().expect("a key");
    x509::issue(x509_grant(slot, id("/agent"), NOW), &ring.signer(), key).expect("svid").chain_der
}

fn judge(leaf: &[u8], ring: &KeyRing, lists: &[(String, Vec<u8>)]) -> Result<(), webpki::Error> {
    let lists: Vec<CertRevocationList<'_>> = lists
        .iter()
        .map(|(_, der)| BorrowedCertRevocationList::from_der(der).expect("a list").into())
        .collect();
    let lists: Vec<_> = lists.iter().collect();
    let options = RevocationOptionsBuilder::new(&lists).expect("lists").build();
    webpki(leaf, &ring.x509_bundle(), NOW, Some(options))
}

fn public_ring() -> KeyRing {
    let url = PublicUrl::parse("https://mayfly.example.org").expect("a url");
    ring().with_public_url(Some(url))
}

/// The shards that `revoked` would be published in, one by each authority.
fn shards_of(ring: &KeyRing, revoked: &[(Serial, Timestamp, Reason)]) -> Vec<(String, Vec<u8>)> {
    let publisher = ring.publisher();
    let cut = shards::all().flat_map(|shard| {
        let here = revoked.iter().filter(|(serial, ..)| shards::of(serial) == shard);
        let here: Vec<_> = here.copied().collect();
        publisher.shard(shard, &contents(&here)).expect("a shard")
    });
    cut.collect()
}

/// A ring in the middle of a rotation: with an old, an active and a prepared authority in turn.
fn rotating() -> KeyRing {
    let mut ring = ring();
    while ring.x509_bundle().len() < 2 {
        ring.handle_timeout(ring.poll_timeout()).expect("a step");
    }
    ring
}

#[test]
fn a_listed_leaf_is_refused_and_the_others_are_not() {
    let ring = rotating();
    let (ended, alive) = (leaf(&ring, 1), leaf(&ring, 2));
    let revoked = [(serial(1), NOW, Reason::from(Cause::Exited))];
    let lists = ring.crls(&contents(&revoked)).expect("lists");
    assert_eq!(judge(&ended, &ring, &lists), Err(webpki::Error::CertRevoked));
    assert_eq!(judge(&alive, &ring, &lists), Ok(()));
    let empty = ring.crls(&contents(&[])).expect("lists");
    assert_eq!(judge(&ended, &ring, &empty), Ok(()));
}

#[test]
fn every_published_authority_speaks_for_itself() {
    let ring = rotating();
    let lists = ring.crls(&contents(&[])).expect("lists");
    let bundle = ring.x509_bundle();
    assert_eq!((lists.len(), bundle.len()), (2, 2));
    for (authority, (key_id, list)) in bundle.iter().zip(&lists) {
        let (_, authority) = x509_parser::parse_x509_certificate(authority).expect("a certificate");
        let (rest, list) = CertificateRevocationList::from_der(list).expect("a list");
        assert!(rest.is_empty());
        assert_eq!(list.issuer().as_raw(), authority.subject().as_raw());
        list.verify_signature(authority.public_key()).expect("its signature");
        assert!(authority.subject().to_string().contains(key_id.as_str()));
    }
    // One list alone leaves the other authority's leaves unknown, which is a refusal.
    let active = leaf(&ring, 1);
    let (first, second) = lists.split_at(1);
    assert_eq!(judge(&active, &ring, first), Ok(()));
    assert_eq!(judge(&active, &ring, second), Err(webpki::Error::UnknownRevocationStatus));
}

/// The distribution point in the leaf and in the shard are the same octets, the scope is that of leaves,
/// and the extension is critical.
#[test]
fn a_shard_and_its_leaves_name_the_same_place() {
    let ring = public_ring();
    let der = leaf(&ring, 1);
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).expect("a certificate");
    let points = parsed.extensions().iter().find_map(|extension| {
        let ParsedExtension::CRLDistributionPoints(points) = extension.parsed_extension() else {
            return None;
        };
        Some(points)
    });
    let point = points.and_then(|points| points.first()).expect("a distribution point");
    let number = shards::of(&serial(1));
    let lists = ring.publisher().shard(number, &contents(&[])).expect("a shard");
    let (_, list) = lists.first().expect("an authority");
    let (_, list) = CertificateRevocationList::from_der(list).expect("a list");
    let issuing = list.extensions().iter().find_map(|extension| {
        let ParsedExtension::IssuingDistributionPoint(issuing) = extension.parsed_extension()
        else {
            return None;
        };
        Some((extension.critical, issuing))
    });
    let (critical, issuing) = issuing.expect("an issuing distribution point");
    assert!(critical && issuing.only_contains_user_certs && !issuing.only_contains_ca_certs);
    assert!(!issuing.indirect_crl && issuing.only_some_reasons.is_none());
    assert_eq!(issuing.distribution_point, point.distribution_point);
    assert!(issuing.distribution_point.is_some());
    assert_eq!(ring.publisher().shard(number, &contents(&[])).expect("a shard").len(), 1);
    assert!(self::ring().publisher().shard(number, &contents(&[])).expect("none").is_empty());
}

#[test]
fn shards_alone_are_enough_for_webpki_and_a_missing_one_is_a_refusal() {
    let ring = public_ring();
    let (ended, alive) = (leaf(&ring, 1), leaf(&ring, 2));
    let revoked = [(serial(1), NOW, Reason::CessationOfOperation)];
    let all = shards_of(&ring, &revoked);
    assert_eq!(all.len(), usize::from(shards::COUNT));
    assert_eq!(judge(&ended, &ring, &all), Err(webpki::Error::CertRevoked));
    assert_eq!(judge(&alive, &ring, &all), Ok(()));
    let mine = usize::from(shards::of(&serial(2)));
    let others: Vec<_> =
        (0..).zip(&all).filter(|(at, _)| *at != mine).map(|(_, list)| list.clone()).collect();
    let unknown = Err(webpki::Error::UnknownRevocationStatus);
    assert_eq!(judge(&alive, &ring, &others), unknown, "fails closed");
    // A leaf from before the URL was configured has no distribution point. webpki takes any shard to
    // speak for it, so whoever configures a URL waits for the old leaves to expire, or uses full lists.
    let full = ring.crls(&contents(&revoked)).expect("lists");
    assert_eq!(judge(&ended, &ring, &full), Err(webpki::Error::CertRevoked));
    assert_eq!(judge(&alive, &ring, &full), Ok(()));
}

/// A negative test of a known hole: two lists of one scope, the stale one first.
#[test]
fn a_stale_list_beside_a_fresh_one_hides_an_end_from_webpki() {
    let ring = ring();
    let ended = leaf(&ring, 1);
    let stale = ring.crls(&contents(&[])).expect("lists");
    let revoked = [(serial(1), NOW, Reason::CessationOfOperation)];
    let newer = crl::Contents { number: 8, ..contents(&revoked) };
    let fresh = ring.crls(&newer).expect("lists");
    let both: Vec<_> = stale.iter().chain(&fresh).cloned().collect();
    assert_eq!(judge(&ended, &ring, &both), Ok(()), "which is why files are replaced whole");
    assert_eq!(judge(&ended, &ring, &fresh), Err(webpki::Error::CertRevoked));
}

#[test]
fn a_list_says_when_and_why_and_its_number() {
    let ring = ring();
    let revoked = [
        (serial(1), NOW, Reason::CessationOfOperation),
        (serial(2), NOW.minus(Span::from_secs(5)), Reason::Unspecified),
        (serial(3), NOW, Reason::from(Ground::Suspended)),
    ];
    let lists = ring.crls(&contents(&revoked)).expect("lists");
    let (_, der) = lists.first().expect("a list");
    let (_, list) = CertificateRevocationList::from_der(der).expect("a list");
    assert_eq!(list.crl_number().map(ToString::to_string), Some("7".to_owned()));
    let seconds = |at: Timestamp| i64::try_from(at.seconds()).expect("a date");
    assert_eq!(list.last_update().timestamp(), seconds(NOW));
    let next = list.next_update().expect("a date").timestamp();
    assert_eq!(next, seconds(NOW) + 3600);
    let entries: Vec<_> = list
        .iter_revoked_certificates()
        .map(|entry| {
            let why = entry.reason_code().map(|(_, reason)| reason.0);
            let serial = Serial::from_bytes(entry.raw_serial()).expect("one of ours");
            (serial, entry.revocation_date.timestamp(), why)
        })
        .collect();
    let wanted = [
        (serial(1), seconds(NOW), Some(5)),
        (serial(2), seconds(NOW) - 5, None),
        (serial(3), seconds(NOW), Some(6)),
    ];
    assert_eq!(entries, wanted, "cessationOfOperation, none, certificateHold");
}

#[test]
fn a_list_that_ends_before_it_begins_is_not_signed() {
    let backwards = crl::Contents { next_update: NOW, ..contents(&[]) };
    assert!(ring().crls(&backwards).is_err());
}

#[test]
fn every_cause_has_a_reason() {
    let named = Cause::ALL.map(|cause| Reason::from(cause) != Reason::Unspecified);
    assert_eq!(named.iter().filter(|named| !**named).count(), 1, "only a blind watcher has none");
}
